"""Fine-tuning on your images: which epoch is kept, what an interruption leaves, what is saved."""

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import mzlib.zoo.architectures  # noqa: F401
from mzlib import api, finetuning
from mzlib.cli import main
from mzlib.dataset import Split, Task
from mzlib.errors import MzlibError
from mzlib.finetuning import UNFINISHED, best_epoch, default_rate, finetune, splits
from mzlib.training import Checkpoint
from mzlib.zoo import Expert

RNG = np.random.default_rng(0)
CARD = {"architecture": "mzlib_resnet", "pretraining": "scratch", "source": "x", "image_size": 32}


def stripes(number):
    """Images of two classes, upright and lying stripes, that one epoch can learn."""
    labels = np.arange(number) % 2
    images = RNG.integers(0, 40, (number, 32, 32, 3)).astype(np.uint8)
    images[labels == 0, ::4] += 180
    images[labels == 1, :, ::4] += 180
    return images, labels


@pytest.fixture
def task():
    return Task("stripes", "x", ("lying", "upright"), Split(*stripes(40)), Split(*stripes(20)))


@pytest.fixture
def large():
    return Task("stripes", "x", ("lying", "upright"), Split(*stripes(200)), Split(*stripes(20)))


@pytest.fixture
def expert():
    torch.manual_seed(0)
    model = timm.create_model("mzlib_resnet", num_classes=5, image_size=32)
    return Expert("e", model.eval(), CARD, digest="d")


def stored(folder):
    return load_file(folder / "model.safetensors")


def test_the_best_epoch_has_the_most_hits_then_the_least_loss_then_is_the_first():
    assert best_epoch([3, 5, 5, 4], [0.1, 0.9, 0.5, 0.0]) == 3
    assert best_epoch([5, 5], [1.0, 1.0]) == 1


def test_a_fifth_of_each_class_is_held_out_and_few_images_make_folds():
    labels = np.array([0] * 150 + [1] * 60 + [2] * 4 + [3] * 300)
    ((train, held_out),) = splits(labels, seed=0)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [30, 12, 0, 50]
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    folds = splits(labels[:190], seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(190))
    for train, held_out in folds:
        assert set(train).isdisjoint(held_out) and len(train) + len(held_out) == 190
    asked = splits(labels, seed=0, folds=True)
    assert sorted(np.concatenate([held for _, held in asked])) == list(range(len(labels)))
    again = splits(labels[:190], seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(folds[2], again[2]))


def test_rates_follow_the_expert():
    assert default_rate({"architecture": "mzlib_densenet"}) == 0.05
    assert default_rate({"architecture": "resnet101.tv_in1k"}) == 0.005


@pytest.mark.parametrize("number", [40, 200])
def test_what_is_kept_is_the_best_epoch_and_what_is_reported_is_its_confusion(
    number, expert, tmp_path
):
    task = Task("stripes", "x", ("lying", "upright"), Split(*stripes(number)), Split(*stripes(20)))
    options = {"epochs": 8, "batch_size": 8, "lr": 0.005}  # at ten times this rate luck decides
    done = finetune(task, expert, out=tmp_path, **options, progress=False)
    assert done.expert.model is not expert.model and expert.model.num_classes == 5
    assert len(done.losses) <= 8 and 1 <= done.epoch <= 8 and 0 <= done.validation <= 1
    assert done.accuracy > 0.9 and done.confusion.sum() == 20 == done.test_images
    right = np.diag(done.confusion)
    assert done.accuracy == pytest.approx(right.sum() / 20)
    assert done.balanced == pytest.approx((right / done.confusion.sum(1)).mean())
    table = pd.read_csv(tmp_path / "e" / "confusion.csv", index_col=0)
    assert table.to_numpy().tolist() == done.confusion.tolist()
    assert list(table.columns) == ["lying", "upright"]
    model = timm.create_model(f"local-dir:{done.folder}", pretrained=True).eval()
    assert list(model.pretrained_cfg["label_names"]) == ["lying", "upright"]
    state = done.expert.model.state_dict()
    assert all(torch.equal(v.cpu(), state[k].cpu()) for k, v in model.state_dict().items())
    last = load_file(done.folder / "last.safetensors")
    assert set(last) == set(state)
    if done.epoch == len(done.losses):
        assert all(torch.equal(last[k], state[k].cpu()) for k in last)
    assert not (done.folder / UNFINISHED).exists()


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    large, expert, tmp_path, monkeypatch, damage
):
    options = {"epochs": 4, "progress": False}
    whole = finetune(large, expert, out=tmp_path / "whole", **options)
    save = Checkpoint.save
    calls = []

    def interrupted(self, *args):
        save(self, *args)
        calls.append(self.path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(large, expert, out=tmp_path / "torn", **options)
    assert not (tmp_path / "torn" / "e" / "config.json").exists()
    if damage:  # as kill -9 on a disk without order would leave it: begun anew
        calls[0].write_bytes(calls[0].read_bytes()[:1000])
    epochs = []
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", lambda *args: (epochs.append(1), save(*args)))
        done = finetune(large, expert, out=tmp_path / "torn", **options)
    assert len(epochs) == (4 if damage else 2)
    a, b = stored(whole.folder), stored(done.folder)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert done.losses == whole.losses and done.epoch == whole.epoch


def finetune_until_killed(task, expert, out, options, moment):
    """In a process of its own, which ends by SIGKILL in epoch 2 or while its state is written."""
    torch.set_num_threads(1)  # as in this process: sums differ by the number of threads
    calls = []

    def killed(function):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == (7 if moment == "training" else 2):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    if moment == "training":  # five steps an epoch
        torch.optim.SGD.step = killed(torch.optim.SGD.step)
    else:
        os.replace = killed(os.replace)
    finetune(task, expert, out=out, **options)


@pytest.mark.parametrize("moment", ["training", "writing"])
def test_a_killed_run_goes_on_to_the_same_weights(large, expert, tmp_path, moment):
    options = {"epochs": 3, "progress": False}
    child = multiprocessing.get_context("spawn").Process(
        target=finetune_until_killed, args=(large, expert, tmp_path / "torn", options, moment)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = tmp_path / "torn" / "e"
    assert [entry.name for entry in left.iterdir()] == [UNFINISHED]
    losses = torch.load(left / UNFINISHED / "run.pt")["losses"]
    assert len(losses) == 1  # of the epoch that had ended
    done = finetune(large, expert, out=tmp_path / "torn", **options)
    whole = finetune(large, expert, out=tmp_path / "whole", **options)
    assert done.losses == whole.losses and done.losses[:1] == losses and done.epoch == whole.epoch
    a, b = stored(whole.folder), stored(done.folder)
    assert all(torch.equal(a[k], b[k]) for k in a) and not (left / UNFINISHED).exists()


def test_an_unfinished_run_of_another_kind_is_not_taken_over(large, expert, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(large, expert, out=tmp_path, epochs=2, progress=False)
    with pytest.raises(MzlibError, match="unfinished run with other .*--force"):
        finetune(large, expert, out=tmp_path, epochs=3, progress=False)
    done = finetune(large, expert, out=tmp_path, epochs=1, force=True, progress=False)
    assert len(done.losses) == 1


def test_a_folder_that_is_taken_is_refused_before_any_work(task, expert, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "train", None)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text("{}")
    with pytest.raises(MzlibError, match="expected a new folder.*--force"):
        finetune(task, expert, out=tmp_path, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(MzlibError, match="expected a folder that can be written"):
        finetune(task, expert, out=tmp_path / "file", progress=False)


def test_frozen_only_the_head_learns(task, expert, tmp_path):
    before = {k: v.clone() for k, v in expert.model.state_dict().items()}
    done = finetune(task, expert, out=tmp_path, epochs=2, freeze=True, progress=False)
    assert done.losses[1] < done.losses[0]
    after = done.expert.model.state_dict()
    head = [k for k in before if before[k].shape != after[k].shape]
    assert head == ["fc.weight", "fc.bias"]
    assert all(torch.equal(before[k], after[k]) for k in before if k not in head)


def test_a_time_limit_ends_after_an_epoch_with_a_model(large, expert, tmp_path):
    done = finetune(large, expert, out=tmp_path, epochs=50, time_limit=1e-3, progress=False)
    assert len(done.losses) == 1 and (done.folder / "config.json").is_file()


def test_what_gets_no_better_ends_early(large, expert, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning.Trainer, "_quality", lambda *args: (7, 1.0))
    done = finetune(large, expert, out=tmp_path, epochs=6, progress=False)
    assert done.epoch == 1 and len(done.losses) == 4  # three epochs, half of all, are waited for


def test_at_chance_it_says_so(task, expert, tmp_path):
    done = finetune(task, expert, out=tmp_path, epochs=1, lr=1e-9, progress=False)
    assert any("no better than always to say" in note for note in done.notes)


def test_predict_says_class_names(task, expert, tmp_path, capsys):
    done = finetune(task, expert, out=tmp_path / "out", epochs=8, batch_size=8, progress=False)
    photos = tmp_path / "photos" / "deeper"
    photos.mkdir(parents=True)
    for i, image in enumerate(task.test.images):
        Image.fromarray(image).save(photos / f"{i:02d}.png")
    table = api.predict(tmp_path / "photos", done.folder, progress=False)
    names = np.array(task.class_names)[task.test.labels]
    assert (table["label"] == names).mean() == pytest.approx(done.accuracy)
    assert table["probability"].between(0.5, 1).all()
    assert main(["predict", str(photos / "00.png"), "--model", str(done.folder), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image\tlabel\tprobability" and table["label"].iloc[0] in lines[1]
    for name in ("._00.png", "notes.pdf", ".hidden/0.png"):  # are no images
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "away").symlink_to(photos, target_is_directory=True)
    (photos / "broken.png").write_bytes(b"x")
    again = api.predict(tmp_path / "links", done.folder, progress=False)
    assert again["label"].dropna().tolist() == table["label"].tolist()
    broken = again.iloc[-1]
    assert broken["image"].endswith("broken.png") and broken.isna().sum() == 2
    (tmp_path / "none").mkdir()
    assert main(["predict", str(tmp_path / "none"), "--model", str(done.folder)]) == 1
    assert "expected images in" in capsys.readouterr().err
    assert main(["predict", str(photos), "--model", str(photos)]) == 1
    assert "expected a folder that mzlib finetune has written" in capsys.readouterr().err


@pytest.fixture
def model(task, expert, tmp_path):
    """The folder of a fine-tuned expert."""
    return finetune(task, expert, out=tmp_path / "out", epochs=1, progress=False).folder


def test_predict_skips_no_file_in_silence(task, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mzlib.layouts.extensions", lambda: frozenset({".png"}))  # no HEIC
    photos = tmp_path / "photos"
    (photos / "deeper").mkdir(parents=True)
    names = ["deeper/a.png", "x.png", "x_gt.png", "x_mask.png", "y.png"]
    for name, image in zip(names, task.test.images):
        Image.fromarray(image).save(photos / name)
    for name in ("a.heic", "b.heic", "notes.txt", "._x.png", "._x_gt.png"):
        (photos / name).write_bytes(b"x")
    table = api.predict(photos, model, progress=False)
    assert table["image"].tolist() == [str(photos / name) for name in names]
    assert table["label"].notna().all()
    notes = [
        f"2 HEIC files skipped (do pip install pillow-heif), first {photos / 'a.heic'}",
        f"1 files or links skipped that are no images, first {photos / 'notes.txt'}",
    ]
    assert table.attrs["notes"] == notes
    capsys.readouterr()
    assert main(["predict", str(photos), "--model", str(model)]) == 0
    said = capsys.readouterr()
    assert all(f"note: {note}\n" in said.err for note in notes)
    assert len(said.out.splitlines()) == 6
    assert main(["predict", str(photos), "--model", str(model), "--quiet"]) == 0
    assert "note" not in capsys.readouterr().err
    for name in names:
        (photos / name).unlink()
    with pytest.raises(MzlibError, match="got none; 2 HEIC files skipped .*; 1 files or links"):
        api.predict(photos, model, progress=False)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        ("", "''"),
        ("t.csv", "t.csv"),
        ("a.heic", "a.heic; do pip install pillow-heif"),
        ("nowhere", "nowhere, where nothing is"),
        (["t.csv"], "an object of list"),
        (np.zeros((2, 8, 8, 3), np.uint8), "an object of ndarray"),
    ],
)
def test_predict_says_what_is_no_image(images, got, tmp_path, monkeypatch):
    monkeypatch.setattr("mzlib.prediction.extensions", lambda: frozenset({".png"}))
    monkeypatch.chdir(tmp_path)
    for name in ("t.csv", "a.heic"):
        (tmp_path / name).write_text("path,label\n")
    with pytest.raises(MzlibError) as error:
        api.predict(images, "model", progress=False)
    assert str(error.value) == f"expected images (a file or a folder), got {got}"


def test_predict_says_what_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    for name in "dcba":
        (tmp_path / "finetuned" / name).mkdir(parents=True)
        (tmp_path / "finetuned" / name / "config.json").touch()
    (tmp_path / "finetuned" / "a" / "model.safetensors").touch()
    said = "expected a folder that mzlib finetune has written (it holds config.json), got "
    for model, got in (
        ("finetuned", "finetuned; it has the folders a, b, c"),
        ("finetuned/a/model.safetensors", "finetuned/a/model.safetensors"),
        ("nowhere", "nowhere"),
        ("", "''"),
        (None, "an object of NoneType"),
    ):
        with pytest.raises(MzlibError) as error:
            api.predict("x.png", model, progress=False)
        assert str(error.value) == said + got


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"epochs": 1.5}, {"batch_size": 0}, {"lr": 0}, {"lr": -1.0}]
)
def test_settings_that_are_none(task, expert, settings, tmp_path):
    with pytest.raises(MzlibError, match="expected .* above 0, got"):
        finetune(task, expert, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_networks_are_experts_where_timm_can_rebuild_them(task, tmp_path, monkeypatch):
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224**2, 2))
    with pytest.raises(MzlibError, match="an expert that timm can rebuild, got Sequential"):
        api.finetune(task, own, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    network = timm.create_model("resnet10t", num_classes=3)
    plain = api.as_expert(network)
    seen = []

    def remembered(images, expert, **options):
        seen.append(expert)
        return fine_tuned("resnet10t", 0.5, 0.5)

    monkeypatch.setattr(finetuning, "finetune", remembered)
    api.finetune(task, network)
    api.finetune(task, torch.nn.DataParallel(network))
    assert [(e.name, e.digest) for e in seen] == 2 * [(plain.name, plain.digest)]


def fine_tuned(name, validation, accuracy, seconds=1.0, images=400):
    fields = finetuning.Finetuned.__dataclass_fields__
    known = {"expert": SimpleNamespace(name=name), "validation": validation, "accuracy": accuracy}
    known["validation_images"] = images
    return finetuning.Finetuned(
        **dict.fromkeys(fields, 0.0) | known | {"notes": [], "losses": [], "seconds": seconds}
    )


def ranking(names, tied):
    rows = pd.DataFrame({"expert": names})
    candidates = {name: SimpleNamespace(load=lambda name=name: name) for name in names}
    facts = {"notes": []}
    return SimpleNamespace(first=rows, tied=names[:tied], experts=candidates, facts=facts)


def test_the_best_is_kept_by_validation_among_equals_by_rank_and_never_by_test(task, monkeypatch):
    results = {
        "a": fine_tuned("a", 0.7, 0.9),
        "b": fine_tuned("b", 0.8, 0.5),
        "c": fine_tuned("c", 0.8, 0.99),
    }
    monkeypatch.setattr(api, "rank", lambda *args, **options: ranking(["a", "b", "c"], 2))
    monkeypatch.setattr(api, "finetune", lambda images, expert, **options: results[expert])
    choice = api.choose(task, progress=False)
    assert [done.expert.name for done in choice.tried] == ["a", "b"]  # those tied for rank 1
    choice = api.choose(task, top=3, progress=False)
    assert choice.kept.expert.name == "b"


def test_few_validation_images_leave_the_order_as_it_is():
    def kept(images):
        tried = [fine_tuned("a", 0.7, 0, images=images), fine_tuned("b", 0.72, 0, images=images)]
        return finetuning.choose_best(tried).expert.name

    assert kept(30) == "a" and kept(3000) == "b"
    past = finetuning.Past(slope=0.01, between=0.0004, noise=1.0)
    # of 525 images as much noise, .7 · .3 / 525 = .0004, as there is between: half the way
    found = finetuning.shrunk(np.array([0.66, 0.74]), 525, past)
    assert found == pytest.approx([(0.66 + 0.705) / 2, (0.74 + 0.695) / 2])
    perfect = finetuning.shrunk(np.ones(2), 10, replace(past, between=0.0))
    assert perfect[0] > perfect[1]


def test_several_experts_of_few_images_are_compared_over_folds(task, monkeypatch):
    asked = []

    def remembered(images, expert, folds, **options):
        asked.append(folds)
        return fine_tuned(expert, 0.5, 0.5)

    monkeypatch.setattr(api, "rank", lambda *args, **options: ranking(["a", "b"], 1))
    monkeypatch.setattr(api, "finetune", remembered)
    api.choose(task, progress=False)
    api.choose(task, top=2, progress=False)
    monkeypatch.setattr(finetuning, "FOLDED", 0)
    api.choose(task, top=2, progress=False)
    assert asked == [False, True, True, False, False]


def test_choose_keeps_to_its_time_and_goes_on_without_who_cannot_be_fine_tuned(task, monkeypatch):
    monkeypatch.setattr(api, "rank", lambda *args, **options: ranking(["a", "b", "c"], 3))
    limits = []

    def slow(images, expert, time_limit, **options):
        limits.append(time_limit)
        if expert == "a":
            raise MzlibError("diverged")
        return fine_tuned(expert, 0.5, 0.5, seconds=1e6)

    monkeypatch.setattr(api, "finetune", slow)
    choice = api.choose(task, time_limit=100, progress=False)
    assert [done.expert.name for done in choice.tried] == ["b"] and max(limits) <= 100
    assert choice.notes == ["a was not fine-tuned: diverged", "no time was left to fine-tune c"]
    monkeypatch.setattr(
        api, "finetune", lambda *a, **k: (_ for _ in ()).throw(MzlibError("diverged"))
    )
    with pytest.raises(MzlibError, match="can be fine-tuned, got none: a was not"):
        api.choose(task, progress=False)


def test_choose_from_folder_to_page(tiny, tmp_path, capsys):
    for split, number in (("train", 12), ("test", 6)):
        images, labels = stripes(number)
        for i, (image, label) in enumerate(zip(images, labels)):
            place = tmp_path / "photos" / split / f"<i>{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name in ("resnet-mixture", "resnet-glyphs-scratch"):
        for suffix in (".json", ".safetensors"):
            source = tiny / "zoo" / "tiny" / (name + suffix)
            (folder / source.name).write_bytes(source.read_bytes())
    command = ["choose", str(tmp_path / "photos"), "--zoo", str(folder), "--top", "2"]
    assert main([*command, "--epochs", "1", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("validation accuracy") == 2 and "The best on validation images" in shown
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "What fine-tuning gave" in page and "(kept)" in page and "<i>0" not in page
    card = json.loads((tmp_path / "out" / "resnet-mixture" / "config.json").read_text())
    assert card["label_names"] == ["<i>0", "<i>1"]


def test_experts_from_outside_see_a_task_at_their_own_size(task, tmp_path):
    torch.manual_seed(0)
    card = CARD | {
        "architecture": "test_resnet",
        "image_size": 48,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "pretraining": "timm",
    }
    outside = Expert("o", timm.create_model("test_resnet", num_classes=3).eval(), card)
    pixels, lost = finetuning._part(task, ~task.held_out, card, None, False)
    assert pixels.pixels.shape == (40, 48, 48, 3) and not lost
    done = finetune(task, outside, out=tmp_path, epochs=1, progress=False)
    assert math.isfinite(done.losses[0])
