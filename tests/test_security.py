"""What comes from outside is data: archives write nothing outside their folder, checkpoints and
sources run nothing.

Names in HTML are in `test_rank_folders`, folders of timm and zoos in `test_external`, cards of
experts in `test_zoo`, suites, job files and tables in `test_benchmark`, archives of repositories
(names, links, sizes, interrupted downloads) in `test_tasks_github`.
"""

import io
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision.datasets as tv
from test_tasks_download import cache, md5, redirect, server, zipped  # noqa: F401

from mzlib.benchmark.data import download
from mzlib.benchmark.data.download import get_together
from mzlib.errors import MzlibError
from mzlib.zoo.checkpoints import load_checkpoint

PACKAGE = Path(__file__).parents[1] / "mzlib"


def hostile_tar(outside: Path) -> dict[str, bytes]:
    """Archives whose extraction as it stands would write below `outside`."""

    def archive(*members):
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as file:
            for name, kind, target in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, target, 4 * (kind == tarfile.REGTYPE)
                file.addfile(info, io.BytesIO(b"evil"))
        return buffer.getvalue()

    return {
        "absolute": archive((f"{outside}/evil", tarfile.REGTYPE, "")),
        "upwards": archive(
            ("dtd/" + "../" * 20 + f"{outside}/evil".lstrip("/"), tarfile.REGTYPE, "")
        ),
        "link": archive(
            ("dtd/out", tarfile.SYMTYPE, str(outside)), ("dtd/out/evil", tarfile.REGTYPE, "")
        ),
        "hard link": archive(
            ("dtd/out", tarfile.LNKTYPE, f"{outside}/kept"), ("dtd/out", tarfile.REGTYPE, "")
        ),
    }


@pytest.mark.parametrize("how", ["absolute", "upwards", "link", "hard link"])
def test_no_member_of_a_tar_leads_out(how, server, cache, tmp_path, monkeypatch):  # noqa: F811
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    server.files["dtd-r1.0.1.tar.gz"] = archive = hostile_tar(outside)[how]
    monkeypatch.setattr(tv.DTD, "_URL", server.url("dtd-r1.0.1.tar.gz"))
    monkeypatch.setattr(tv.DTD, "_MD5", md5(archive))
    monkeypatch.setattr(
        tarfile.TarFile,
        "extraction_filter",
        staticmethod(tarfile.fully_trusted_filter),
        raising=False,
    )
    with pytest.raises(MzlibError, match="dtd: expected to download"):
        get_together(["dtd"], 16)
    assert [p.name for p in outside.iterdir()] == ["kept"] and (
        outside / "kept"
    ).read_text() == "kept"
    assert {p.name for p in cache.iterdir()} <= {".dtd.lock"}


def test_no_member_of_a_zip_leads_out(server, cache, tmp_path, monkeypatch):  # noqa: F811
    outside = tmp_path / "outside"
    outside.mkdir()
    link = zipfile.ZipInfo("2750/out")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("../" * 20 + f"{outside}/evil".lstrip("/"), "evil")
        archive.writestr(f"{outside}/evil", "evil")
        archive.writestr(link, str(outside))
        archive.writestr("2750/out/evil", "evil")
    server.files["EuroSAT.zip"] = buffer.getvalue()
    redirect(server, monkeypatch, tv.eurosat)
    with pytest.raises(MzlibError, match="eurosat: expected to download"):
        get_together(["eurosat"], 16)
    assert not list(outside.iterdir()) and {p.name for p in cache.iterdir()} <= {".eurosat.lock"}


def test_no_member_of_a_zip_is_unpacked_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(download, "LIMIT", 1000)
    with pytest.raises(ValueError, match="x.png: expected at most 1000 bytes, got 10000"):
        download._opener("a.zip", zipped({"x.png": bytes(10_000)}))("x.png")


class Evil:
    """A pickle of it touches the file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_no_code(suffix, zipped, tmp_path):
    path = tmp_path / f"mzlib_resnet{suffix}"
    content = {"state_dict": {"weight": Evil(tmp_path / "evil")}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MzlibError, match="expected a state dict of tensors"):
        load_checkpoint(path)
    assert not (tmp_path / "evil").exists()


def test_no_source_runs_a_shell_or_unpickles():
    bad = re.compile(
        r"shell\s*=\s*True|os\.system|os\.popen|pickle\.loads?\(|torch\.load\((?!.*weights_only=True)|[^.\w](eval|exec)\("
    )
    lines = [
        f"{path}: {line}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if bad.search(line)
    ]
    assert not lines
