"""Data sets of public GitHub repositories without network: archives made here, served by a local HTTP server.

`python tests/test_tasks_github.py FOLDER` writes the manifest again from the frozen sets in FOLDER.
"""

import gzip
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_tasks_download import (  # noqa: F401
    cache,
    get_task,
    killed_at_work,
    picture,
    server,
    tar,
    zipped,
)

from mzlib.benchmark.data import CARDS, download, load_task, manifest, store
from mzlib.benchmark.data.download import get_together
from mzlib.cli import main
from mzlib.errors import MzlibError

FROZEN = Path(os.environ.get("MZLIB_DATA") or "nowhere").absolute()
RECORDED = sorted(n for n, card in CARDS.items() if card["origin"] in ("github", "derived"))


def record(root: Path) -> pa.Table:
    """The manifest of the tasks in `root`."""
    parts, about = [], {}
    for name in (name for name in RECORDED if store.exists(root / name)):
        about[name], rows = manifest.contents(root / name)
        for split, (paths, y) in rows.items():
            columns = {
                "task": [name] * len(y),
                "split": [split] * len(y),
                "path": paths,
                "label": y.astype("int16"),
            }
            parts.append(pa.table(columns))
    return pa.concat_tables(parts).replace_schema_metadata({"tasks": json.dumps(about)})


def write(table: pa.Table, file: Path) -> None:
    pq.write_table(
        table,
        file,
        compression="zstd",
        compression_level=22,
        use_dictionary=["task", "split", "label"],
    )


@pytest.fixture
def github(server, monkeypatch):  # noqa: F811
    monkeypatch.setattr(download, "GITHUB", server.url().rstrip("/"))
    return server


def grey(value, size=(8, 8), kind="BMP"):
    Image.new("L", size, int(value)).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def prefix(name):
    """Name of the served file and the folder in it, as GitHub's."""
    repo, commit = CARDS[name]["source"].removeprefix("https://github.com/").split(" at commit ")
    return f"{repo}/archive/{commit}.tar.gz", f"{repo.split('/')[1]}-{commit}/"


def wbc(server):  # noqa: F811
    """The whole archive of a real card: 395 images whose grey value tells the label, and files of no interest."""
    url, top = prefix("wbc")
    splits = manifest.rows("wbc").values()
    files = {
        top + path: grey(40 + 50 * label)
        for paths, labels in splits
        for path, label in zip(paths, labels)
    }
    server.files[url] = tar({top + "README.md": b"#", **files, top + "zzz.bmp": b"no image"})
    return url, files


def test_a_real_card_from_archive_to_task(github, cache, capsys):  # noqa: F811
    wbc(github)
    with pytest.raises(
        MzlibError, match=r"run `mzlib data get wbc` \(from https://github.com/zxaoyou"
    ):
        load_task("wbc", 16)
    assert main(["data", "get", "wbc", "--size", "16"]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "wbc") and github.hits == 1
    assert sorted(p.name for p in cache.iterdir()) == [
        ".github-com-zxaoyou-segmentation_WBC-at-commit-"
        "fa9c01622f52bccb9aeb8a6f2628f564e377767d.lock",
        "wbc",
    ]
    task = load_task("wbc")
    assert (
        list(task.class_names) == ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
        and task.flip
    )
    for split, name in ((task.train, "train"), (task.test, "test")):
        paths, labels = manifest.rows("wbc")[name]
        assert (
            split.images.shape == (len(labels), 16, 16, 3)
            and split.labels.tolist() == labels.tolist()
        )
        assert (
            abs(split.images.mean((1, 2, 3)) - 40 - 50 * split.labels).max() < 3
        )  # image and label match
        images = pq.read_table(cache / f"wbc/{name}.parquet")["image"].to_pylist()
        assert [image["path"] for image in images] == paths
    meta = json.loads((cache / "wbc/meta.json").read_text())
    assert (meta["train"], meta["test"]) == (197, 198)
    assert meta["commit"].startswith("fa9c01") and "GPL" in meta["license"]
    assert main(["data", "get", "wbc"]) == 0 and github.hits == 2  # larger
    assert main(["data", "get", "wbc"]) == 0 and github.hits == 2


def test_check_tells_frozen_from_rebuilt_from_other(github, cache, tmp_path, monkeypatch, capsys):  # noqa: F811
    def check():
        capsys.readouterr()
        assert main(["data", "check", "wbc"]) == 0
        return capsys.readouterr().out

    assert "wbc: not in" in check()
    wbc(github)
    get_task("wbc")
    assert "wbc: rebuilt: the recorded images" in check()
    write(record(cache), tmp_path / "manifest.parquet")
    monkeypatch.setattr(manifest, "FILE", tmp_path / "manifest.parquet")
    assert "wbc: the frozen copy" in check()
    table = pq.read_table(cache / "wbc/test.parquet")
    pq.write_table(table.take(list(range(len(table)))[::-1]), cache / "wbc/test.parquet")
    assert "wbc: neither" in check()
    assert manifest.compare("flowers102", cache / "wbc") == "not recorded, nothing to compare with"


def test_one_download_serves_all_tasks_of_a_repository(github, cache, tmp_path, capsys):  # noqa: F811
    url, top = prefix("mnist_digits")
    pixels = np.repeat(np.arange(10000) % 251, 28 * 28).astype(np.uint8).tobytes()
    header = np.array([2051, 10000, 28, 28], ">i4").tobytes()
    files = {"MNIST_data/t10k-images-idx3-ubyte.gz": gzip.compress(header + pixels, 1)}
    for paths, labels in manifest.rows("natural_images7").values():
        files |= {path: grey(30 * label, kind="JPEG") for path, label in zip(paths, labels)}
    github.files[url] = tar({top + name: content for name, content in files.items()})
    suite = (Path(__file__).parents[1] / "suites/mini.toml").read_text()
    suite = suite.replace("targets = [", 'targets = ["mnist_digits", "natural_images7", ', 1)
    (tmp_path / "some.toml").write_text(suite)
    assert main(["data", "get", "--suite", str(tmp_path / "some.toml"), "--size", "8"]) == 0, (
        capsys.readouterr().err
    )
    assert github.hits == 1
    task, (paths, _) = load_task("mnist_digits"), manifest.rows("mnist_digits")["test"]
    numbers = np.array([int(path.split("#")[1]) for path in paths])
    assert abs(task.test.images.mean((1, 2, 3)) - numbers % 251).max() < 3
    task = load_task("natural_images7")
    assert abs(task.train.images.mean((1, 2, 3)) - 30 * task.train.labels).max() < 3


def test_boxes_and_zip_members():
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(
        whole := io.BytesIO(), "PNG"
    )
    get = download._opener("repo/a.png", whole.getvalue())
    assert np.array_equal(get("2,3,4,5"), [[32, 33], [42, 43]]) and get("").size == (10, 10)
    get = download._opener(
        "repo/a.zip", zipped({"x/1.png": grey(7, kind="PNG"), "x/2.png": grey(9, kind="PNG")})
    )
    assert [np.asarray(get(f"x/{n}.png")).max() for n in (1, 2)] == [7, 9]


def test_lossless_only_where_it_costs_at_most_half_more():
    flat, noise = (
        Image.new("L", (64, 64), 99),
        Image.open(io.BytesIO(picture(128, (64, 64), "PNG"))),
    )
    kinds = [
        download._encode(*args)[12:16] for args in ((flat, 64, True), (noise, 64, True), (flat, 64))
    ]
    assert kinds == [b"VP8L", b"VP8 ", b"VP8 "]


def nothing_but_the_lock(root):
    return all(p.name.endswith(".lock") for p in root.iterdir())


@pytest.mark.parametrize("fault, expected", [
    ("short", "ReadError|EOFError|IncompleteRead|images of class"), ("404", "404"), ("no archive", "ReadError"),
    ("missing", "expected 17 train images of class 'eosinophil', got 16; the first missing one is Dataset 1/"),
    ("damaged", "expected an image, got UnidentifiedImageError"), ("large", "expected at most 300 bytes, got"),
])  # fmt: skip
def test_failed_downloads_leave_nothing_and_the_next_works(
    fault,
    expected,
    github,
    cache,  # noqa: F811
    monkeypatch,
):
    url, files = wbc(github)
    whole = dict(github.files)
    paths, labels = manifest.rows("wbc")["train"]
    number, one = sum(labels == 0), prefix("wbc")[1] + paths[list(labels).index(0)]
    expected = expected.replace("17", str(number)).replace("16", str(number - 1))
    if fault == "short":
        github.fault = "short"
    elif fault == "404":
        github.files.clear()
    elif fault == "no archive":
        github.files[url] = b"<html>"
    elif fault == "missing":
        github.files[url] = tar({name: content for name, content in files.items() if name != one})
    elif fault == "damaged":
        github.files[url] = tar(
            files | {one: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}
        )
    else:
        monkeypatch.setattr(download, "LIMIT", 300)
    with pytest.raises(
        MzlibError, match=f"wbc: expected to download https.*(?:{expected}).*data get wbc` again"
    ):
        get_task("wbc", 8)
    assert nothing_but_the_lock(cache)
    monkeypatch.setattr(download, "LIMIT", 2**20)
    github.fault, github.files = None, whole
    assert load_task(get_task("wbc", 8).name).train.images.shape == (197, 8, 8, 3)


def test_killed_download_leaves_no_task_and_the_next_one_clears_up(github, cache):  # noqa: F811
    wbc(github)
    github.fault, github.hits = "stall", 1
    killed_at_work(github, f"download.GITHUB = {download.GITHUB!r}; get_task('wbc', 8)")
    assert list(cache.glob(".*.partial")) and not (cache / "wbc").exists()  # it was killed at work
    github.fault = None
    get_task("wbc", 8)
    assert not list(cache.glob(".*.partial")) and load_task("wbc").test.images.shape == (
        198,
        8,
        8,
        3,
    )


def test_no_network(github, cache, capsys):  # noqa: F811
    github.shutdown()
    github.server_close()
    assert main(["data", "get", "wbc", "rsscn7"]) == 1
    errors = capsys.readouterr().err
    assert (
        "wbc: expected to download" in errors
        and "rsscn7: expected" in errors
        and "check network" in errors
    )
    assert nothing_but_the_lock(cache)


def test_names_and_links_in_the_archive_lead_nowhere(github, cache, tmp_path):  # noqa: F811
    url, files = wbc(github)
    one, secret = next(iter(files)), tmp_path / "secret.bmp"
    secret.write_bytes(grey(1))
    evil = ["../../evil", str(tmp_path / "evil"), one.split("/")[0] + "/../../../evil"]
    for kind in (None, tarfile.SYMTYPE, tarfile.LNKTYPE):  # None: the links are not there
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as archive:
            for name, content in {**{name: b"evil" for name in evil}, **files}.items():
                info = tarfile.TarInfo(name)
                if name == one and kind:
                    info.type, info.linkname = kind, str(secret)
                else:
                    info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        github.files[url] = buffer.getvalue()
        if kind:
            with pytest.raises(MzlibError, match="images of class"):
                get_task("wbc", 16)
        else:
            get_task("wbc", 8)
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]


def test_group_with_one_that_is_there(github, cache):  # noqa: F811
    wbc(github)
    assert (
        get_together(["wbc"], 8) == get_together(["wbc"], 8) == [cache / "wbc"] and github.hits == 1
    )


def test_no_task_chosen(capsys):
    assert (
        main(["data", "get"]) == 1
        and "expected names of tasks or a suite, got neither" in capsys.readouterr().err
    )


def test_every_recorded_card_has_a_sound_record():
    recorded = json.loads(pq.read_schema(manifest.FILE).metadata[b"tasks"])
    assert sorted(recorded) == RECORDED and len(RECORDED) == 62
    assert manifest.FILE.stat().st_size < 1.2e6
    table = pq.read_table(manifest.FILE).to_pandas()
    assert not table.duplicated(["task", "path"]).any()  # no image twice, so none in both splits
    for name, part in table.groupby("task"):
        for split in store.SPLITS:
            labels = part["label"][part["split"] == split]
            assert set(labels) == set(range(len(recorded[name]["class_names"])))
        assert not part["path"].str.contains(r"\.\./|^/|\\").any()


@pytest.mark.skipif(
    not store.exists(FROZEN / "plankton"), reason="needs the frozen sets in MZLIB_DATA"
)
def test_the_record_is_that_of_the_frozen_sets():
    table, committed = record(FROZEN), pq.read_table(manifest.FILE)
    assert json.loads(table.schema.metadata[b"tasks"]) == json.loads(
        committed.schema.metadata[b"tasks"]
    )
    assert table.to_pandas().equals(committed.to_pandas())
    for name in RECORDED:  # counts per class as in the cards of the frozen sets
        class_names, rows = manifest.about(name)["class_names"], manifest.rows(name)
        train, test = (np.bincount(rows[split][1]) for split in store.SPLITS)
        card = (FROZEN / name / "README.md").read_text()
        assert all(
            f"| {i} | {c} | {train[i]} | {test[i]} |" in card for i, c in enumerate(class_names)
        )


if __name__ == "__main__":
    write(record(Path(sys.argv[1])), manifest.FILE)
