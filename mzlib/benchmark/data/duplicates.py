"""Near-duplicates between the splits of a task: test images that a training image shows again,
nearly the same.

Two images count as near-duplicates when both hold, each rule alone being too easy to fool: the
Pearson correlation of their grey 24 x 24 thumbnails is above .985, and their 64-bit perceptual
hashes (signs of the low 8 x 8 frequencies of a 32 x 32 DCT against their median) differ in at most
6 bits.
"""

import numpy as np
import pandas as pd
from numpy import ndarray
from PIL import Image
from scipy.fft import dctn

from mzlib.benchmark.data import CARDS, embedded, load_task, manifest, store
from mzlib.dataset import Task

CORRELATION = 0.985
DISTANCE = 6  # bits of 64
BLOCK = 256  # test images compared at once


def near_duplicates(task: Task) -> pd.DataFrame:
    """test, train (indices into the splits), correlation, distance, same_label: of every test image
    that has a near-duplicate among the training images, the most similar one.
    """
    nearest = similar(Looks(task.test.images), Looks(task.train.images))
    tested = task.test.labels[nearest["test"]]
    trained = task.train.labels[nearest["train"]]
    return nearest.assign(same_label=tested == trained)


def similar(test: "Looks", train: "Looks") -> pd.DataFrame:
    """test, train, correlation, distance: of every image of `test` that has a near-duplicate in
    `train`, which may be of another task, the most similar one.
    """
    test_signs = np.where(test.hashes, 1.0, -1.0).astype(np.float32)
    train_signs = np.where(train.hashes, 1.0, -1.0).astype(np.float32)
    bits = test.hashes.shape[1]
    rows = []
    for start in range(0, len(test_signs), BLOCK):
        agreement = test_signs[start : start + BLOCK] @ train_signs.T  # bits - 2 distance
        for i, j in np.argwhere(agreement >= bits - 2 * DISTANCE):
            correlation = float(test.thumbnails[start + i] @ train.thumbnails[j])
            distance = (bits - int(agreement[i, j])) // 2
            rows.append((start + i, j, correlation, distance))
    table = pd.DataFrame(rows, columns=["test", "train", "correlation", "distance"])
    table = table[table["correlation"] > CORRELATION]
    table = table.sort_values("correlation", ascending=False, kind="stable")
    return table.drop_duplicates("test").sort_values("test", ignore_index=True)


class Looks:
    """thumbnails: float32 [N, 576], each of mean 0 and norm 1 (of a blank image 0); hashes: bool
    [N, 64].
    """

    def __init__(self, images: ndarray):
        grey = [Image.fromarray(image).convert("L") for image in images]
        small = np.stack([_resized(image, 24).ravel() for image in grey])
        small -= small.mean(1, keepdims=True)
        norm = np.linalg.norm(small, axis=1, keepdims=True)
        blank = np.zeros_like(small)
        self.thumbnails = np.divide(small, norm, out=blank, where=norm > 1e-3)
        large = [_resized(image, 32) for image in grey]
        low = [dctn(image, norm="ortho")[:8, :8].ravel() for image in large]
        frequencies = np.stack(low)
        middle = np.median(frequencies, axis=1, keepdims=True)
        self.hashes = frequencies > middle


def _resized(grey: Image.Image, side: int) -> ndarray:
    small = grey.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32)


def summary(name: str) -> dict:
    """task, train, test (numbers of images), near_duplicates (test images that have one), share of
    the test images, other_label (those whose near-duplicate has another label).
    """
    task = load_task(name)
    found = near_duplicates(task)
    tested = len(task.test.labels)
    return {
        "task": name,
        "train": len(task.train.labels),
        "test": tested,
        "near_duplicates": len(found),
        "share": round(len(found) / tested, 4),
        "other_label": int((~found["same_label"]).sum()),
    }


def check(name: str) -> str:
    """One line on a task or image folder: is it the frozen copy (`manifest.compare`), and which
    test images are known from training. Of a folder without splits, by the splits that `load_task`
    draws.

    Raises MzlibError where there is no task of that name; a known one that is not in the cache is
    said to be absent.
    """
    folder = store.root() / name
    if name in embedded.TABLES:
        origin = "embedded, drawn when it is loaded"
    elif name in CARDS or store.exists(folder):
        origin = manifest.compare(name, folder)
        if not store.exists(folder):
            return origin
    else:
        origin = "your own images, nothing to compare with"
    found = summary(name)
    return (
        f"{origin}; {found['near_duplicates']:,} of {found['test']:,} test images "
        f"({found['share']:.1%}) look like a training image, {found['other_label']:,} of them like "
        "one of another class"
    )
