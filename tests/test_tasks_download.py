"""`get_task` without network: miniature archives in the data sets' own layouts, served by a local HTTP server."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
import torchvision.datasets as tv
from PIL import Image

from mzlib.benchmark.data import list_tasks, load_task, store
from mzlib.benchmark.data.download import get_together
from mzlib.errors import MzlibError

RNG = np.random.default_rng(0)


class Server(ThreadingHTTPServer):
    """Serves `files`; `fault` "short": closes after half of the promised bytes; "stall": waits there for `release`."""

    daemon_threads = True

    def __init__(self):
        self.files, self.fault, self.hits = {}, None, 0
        self.stalled, self.release = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name=""):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path[1:])
        self.server.hits += 1
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if (
            self.server.fault == "stall" and self.server.hits > 1
        ):  # the first request only looks for redirects
            self.wfile.flush()
            self.server.stalled.set()
            self.server.release.wait(60)
        if self.server.fault is None:
            self.wfile.write(content[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def picture(value, size=(50, 40), kind="JPEG"):
    pixels = np.clip(RNG.normal(value, 10, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def tar(files):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def get_task(name, size=64, root=None):
    return get_together([name], size, root)[0]


def killed_at_work(server, code):
    """Runs `code` in an interpreter of its own (a fork of this one, with its threads, can hang) until the server stalls."""
    imports = (
        "import torchvision.datasets as tv; from mzlib.benchmark.data import download; "
        "get_task = lambda name, size: download.get_together([name], size); "
    )
    with subprocess.Popen([sys.executable, "-c", imports + code]) as worker:
        stalled = server.stalled.wait(120)
        worker.kill()
    assert stalled


# One function per data set: serves its archive, points torchvision there; returns class names and images a class.


def dtd(server, monkeypatch):
    files, parts = {}, {"train": [], "val": [], "test": []}
    for c, name in enumerate(["banded", "dotted"]):
        for i in range(5):
            files[f"dtd/images/{name}/{name}_{i}.jpg"] = picture(60 + 100 * c)
            parts[["train", "train", "val", "test", "test"][i]].append(f"{name}/{name}_{i}.jpg")
    files |= {f"dtd/labels/{part}1.txt": "\n".join(names).encode() for part, names in parts.items()}
    server.files["dtd-r1.0.1.tar.gz"] = archive = tar(files)
    monkeypatch.setattr(tv.DTD, "_URL", server.url("dtd-r1.0.1.tar.gz"))
    monkeypatch.setattr(tv.DTD, "_MD5", md5(archive))
    return ["banded", "dotted"], [3, 3], [2, 2]


def cifar100(server, monkeypatch):
    def batch(labels):
        data = np.stack([np.full(3072, 60 + 100 * label, np.uint8) for label in labels])
        return pickle.dumps({"data": data, "fine_labels": labels})

    files = {"train": batch([0, 1] * 5), "test": batch([1, 0, 1])}
    files["meta"] = pickle.dumps({"fine_label_names": ["apple", "bear"]})
    archive = server.files["cifar-100-python.tar.gz"] = tar(
        {f"cifar-100-python/{n}": c for n, c in files.items()}
    )
    monkeypatch.setattr(tv.CIFAR100, "url", server.url("cifar-100-python.tar.gz"))
    monkeypatch.setattr(tv.CIFAR100, "tgz_md5", md5(archive))
    monkeypatch.setattr(tv.CIFAR100, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(tv.CIFAR100, "test_list", [["test", md5(files["test"])]])
    monkeypatch.setattr(tv.CIFAR100, "meta", tv.CIFAR100.meta | {"md5": md5(files["meta"])})
    return ["apple", "bear"], [5, 5], [1, 2]


def redirect(server, monkeypatch, module):
    """For classes that have their addresses inside a method: the same file names, from our server."""
    original = module.download_and_extract_archive

    def download(url, download_root, md5=None):
        name = url.split("/")[-1]
        original(
            server.url(name),
            download_root,
            md5=hashlib.md5(server.files.get(name, b"")).hexdigest(),
        )

    monkeypatch.setattr(module, "download_and_extract_archive", download)


def eurosat(server, monkeypatch):
    classes = enumerate(["Forest", "River"])
    files = {
        f"2750/{c}/{c}_{i}.jpg": picture(60 + 100 * n, (64, 64))
        for n, c in classes
        for i in range(10)
    }
    server.files["EuroSAT.zip"] = zipped(files)
    redirect(server, monkeypatch, tv.eurosat)
    return ["Forest", "River"], [8, 8], [2, 2]


def svhn(server, monkeypatch):
    where = {}
    for part, labels in (("train", [10, 1, 10, 1, 1]), ("test", [1, 10])):  # 10 is the digit 0
        pixels = np.stack(
            [np.full((32, 32, 3), 60 + 100 * (label % 10), np.uint8) for label in labels], -1
        )
        scipy.io.savemat(buffer := io.BytesIO(), {"X": pixels, "y": np.array(labels)[:, None]})
        name = f"{part}_32x32.mat"
        server.files[name] = buffer.getvalue()
        where[part] = [server.url(name), name, md5(buffer.getvalue())]
    monkeypatch.setattr(tv.SVHN, "split_list", where)
    return [str(d) for d in range(10)], [2, 3], [1, 1]


@pytest.mark.parametrize("prepare", [dtd, cifar100, eurosat, svhn])
def test_downloaded_once_and_converted(prepare, server, cache, monkeypatch):
    name = prepare.__name__
    class_names, *numbers = prepare(server, monkeypatch)
    assert not list_tasks().set_index("name").available[name]
    folder = get_task(name, 24)
    assert folder == cache / name
    assert sorted(p.name for p in folder.iterdir()) == [
        "meta.json",
        "test.parquet",
        "train.parquet",
    ]
    assert not list(cache.glob("*.partial")) and not list(cache.glob(".*.partial"))
    task = load_task(name)
    assert list(task.class_names) == class_names
    for split, number in zip((task.train, task.test), numbers):
        assert split.images.shape == (sum(number), 24, 24, 3)
        assert np.bincount(split.labels).tolist() == number
        assert (
            abs(split.images.mean((1, 2, 3)) - 60 - 100 * split.labels).max() < 12
        )  # image and label match
    row = list_tasks().set_index("name").loc[name]
    assert row.available and row.classes == len(class_names)
    assert [row.train, row.test] == [sum(number) for number in numbers]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["license"] and meta["size"] == 24 and "torchvision" in meta["commit"]
    table = pq.read_table(folder / "train.parquet")
    assert json.loads(table.schema.metadata[b"class_names"]) == class_names
    image = table["image"][0].as_py()
    assert Image.open(io.BytesIO(image["bytes"])).format == "WEBP"
    hits = server.hits
    assert get_task(name, 24) == get_task(name, 16) == folder and server.hits == hits
    if name == "eurosat":
        assert "80/20" in meta["split"]


def test_a_larger_size_replaces_the_stored_one(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    get_task("dtd", 16)
    assert load_task("dtd").train.images.shape[1] == 16
    with pytest.raises(MzlibError, match="run `mzlib data get dtd --size 32`"):
        load_task("dtd", 32)
    get_task("dtd", 32)
    assert (
        load_task("dtd", 32).train.images.shape[1] == 32
        and load_task("dtd").train.images.shape[1] == 32
    )


def nothing_but_the_lock(cache):
    return {p.name for p in cache.iterdir()} <= {".dtd.lock"}


def test_interrupted_download_leaves_nothing(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    server.fault = "short"
    with pytest.raises(
        MzlibError, match="dtd: expected to download torchvision.datasets.DTD.*again"
    ):
        get_task("dtd", 16)
    assert nothing_but_the_lock(cache)
    server.fault = None
    assert load_task(get_task("dtd", 16).name).train.images.shape == (6, 16, 16, 3)


def test_wrong_checksum_damaged_archive_and_missing_file(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    monkeypatch.setattr(tv.DTD, "_MD5", "0" * 32)
    with pytest.raises(MzlibError, match="corrupted"):
        get_task("dtd", 16)
    server.files.clear()
    with pytest.raises(MzlibError, match="404"):
        get_task("dtd", 16)
    server.files["dtd-r1.0.1.tar.gz"] = archive = b"no archive"
    monkeypatch.setattr(tv.DTD, "_MD5", md5(archive))
    with pytest.raises(MzlibError, match="ReadError"):
        get_task("dtd", 16)
    assert nothing_but_the_lock(cache)


def test_failure_keeps_what_was_there(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    get_task("dtd", 16)
    server.fault = "short"
    with pytest.raises(MzlibError, match="data get dtd"):
        get_task("dtd", 32)
    assert load_task("dtd").train.images.shape[1] == 16


def test_damaged_image_in_the_archive(server, cache, monkeypatch):
    original = picture
    monkeypatch.setitem(globals(), "picture", lambda value: original(value)[:700])
    dtd(server, monkeypatch)
    with pytest.raises(MzlibError, match="truncated"):
        get_task("dtd", 16)
    assert nothing_but_the_lock(cache)


def test_no_network(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tv.DTD, "_URL", "http://127.0.0.1:9/dtd-r1.0.1.tar.gz")
    with pytest.raises(MzlibError, match="refused.*check network"):
        get_task("dtd", 16)
    assert nothing_but_the_lock(cache)


def test_killed_download_leaves_no_task_and_the_next_one_clears_up(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    server.fault = "stall"
    killed_at_work(
        server, f"tv.DTD._URL, tv.DTD._MD5 = {tv.DTD._URL!r}, {tv.DTD._MD5!r}; get_task('dtd', 16)"
    )
    assert (cache / ".dtd.partial").exists()  # it was killed at work
    assert not list_tasks().set_index("name").available["dtd"]
    with pytest.raises(MzlibError, match="run `mzlib data get dtd`"):
        load_task("dtd")
    server.fault = None
    get_task("dtd", 16)
    assert {p.name for p in cache.iterdir()} == {"dtd", ".dtd.lock"}
    assert load_task("dtd").test.images.shape == (4, 16, 16, 3)


def test_two_at_a_time_download_once(server, cache, monkeypatch):
    dtd(server, monkeypatch)
    threads = [threading.Thread(target=get_task, args=("dtd", 16)) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert server.hits == 2  # one look for redirects, one download
    assert load_task("dtd").train.images.shape == (6, 16, 16, 3)


def test_names_without_a_download(cache):
    with pytest.raises(MzlibError, match="did you mean svhn"):
        get_task("svnh")
    with pytest.raises(MzlibError, match="no download for this task"):
        get_task("digits")
    with pytest.raises(MzlibError, match="made from .*wav files.*nowhere to download"):
        get_task("spoken_digits")


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file/below", "/proc/mzlib"):
        with pytest.raises(MzlibError, match="folder one can write to, got .*set MZLIB_DATA"):
            get_task("dtd", root=root)


def test_every_download_names_a_torchvision_class():
    from mzlib.benchmark.data import CARDS

    names = {n for n, card in CARDS.items() if card["origin"] == "torchvision"}
    wanted = "dtd flowers102 oxford_iiit_pets eurosat fgvc_aircraft cifar100 svhn food101"
    assert names == {n for n, card in CARDS.items() if "torchvision" in card} == set(wanted.split())
    for name in names:
        card = CARDS[name]
        keywords = [k for part in card["train_parts"] + card["test_parts"] for k in part]
        code = getattr(tv, card["torchvision"]).__init__.__code__
        assert set(keywords) | {"download"} <= set(code.co_varnames)
        assert card["test_parts"] or name == "eurosat"
    assert store.CONVERSION.format(size=8).endswith("quality 82")
