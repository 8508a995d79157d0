"""Ranking where an image has no class: numeric labels, several labels; what is refused."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import t
from torch import nn

from mzlib import api, ranking
from mzlib.cli import main
from mzlib.errors import MzlibError
from mzlib.images import as_labelled_images, open_images
from mzlib.ranking import known_selectors
from mzlib.selectors import SELECTORS, lfc
from mzlib.selectors.targets import NUMERIC, fitted, has_meaning, selectors_for
from mzlib.uncertainty import replicates

NUMBER = 60


@pytest.fixture
def experts():
    """One whose features tell how bright and how red an image is, one that is blind to both."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(convolution.weight)
    end = [convolution, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3)]
    return {"blind": nn.Sequential(nn.InstanceNorm2d(3), *end), "sees": nn.Sequential(*end)}


@pytest.fixture
def folder(tmp_path):
    """Noise of some brightness, red or not; what is asked for in three kinds of table."""
    rng = np.random.default_rng(0)
    brightness = rng.uniform(40, 150, NUMBER)
    red = rng.random(NUMBER) < 0.4
    rows = []
    for i in range(NUMBER):
        pixels = rng.normal(brightness[i], 25, (32, 32, 3))
        pixels[..., 0] += 60 * red[i]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        borne = [name for name, there in (("red", red[i]), ("dark", brightness[i] < 95)) if there]
        rows.append([f"{i}.png", brightness[i] / 7, " | ".join(borne) or "|"])
    table = pd.DataFrame(rows, columns=["path", "label", "tags"])
    table[["path", "label"]].to_csv(tmp_path / "numbers.csv", index=False)
    joined = table[["path", "tags"]].rename(columns={"tags": "label"})
    joined.to_csv(tmp_path / "tags.csv", index=False)
    columns = {"red": red.astype(int), "dark": (brightness < 95).astype(int)}
    table[["path"]].assign(**columns).to_csv(tmp_path / "columns.csv", index=False)
    lists = joined.assign(
        label=[text.replace(" ", "").strip("|").split("|") for text in joined.label]
    )
    lists["label"] = [[name for name in names if name] for names in lists.label]
    lists.to_json(tmp_path / "lists.jsonl", orient="records", lines=True)
    return tmp_path


def test_numbers_from_table_to_ranking(folder, experts):
    images = open_images(folder / "numbers.csv", labels="numeric")
    assert images.targets.shape == (NUMBER, 1) and images.targets.dtype == np.float64
    assert np.ptp(np.bincount(images.labels)) <= 1 and len(images.class_names) == 10
    lowest = images.targets[images.labels == 0, 0]
    assert lowest.max() <= images.targets[images.labels > 0].min()  # tenths, in order
    assert 0 < images.held_out.sum() < NUMBER / 3
    found = api.rank(images, experts, progress=False)
    assert found.table["selector"].unique().tolist() == list(NUMERIC)
    for name, rows in found.table.groupby("selector"):
        assert rows.set_index("expert").loc["sees", "rank"] == 1, name
        assert (rows["low"] < rows["score"]).all() and (rows["score"] < rows["high"]).all()
    rows = found.first.set_index("expert")
    assert rows.loc["sees", "score"] > 0.9 and rows.loc["blind", "score"] < 0.3
    evidence = found.evidence("sees")
    expected = NUMERIC["ridge_r2"].function(evidence.features, images.targets[found.sample.index])
    assert rows.loc["sees", "score"] == pytest.approx(expected, abs=1e-9)
    assert found.table["score_all"].isna().all()  # of this nothing is known here
    assert "numeric labels from" in found.facts["labels"] and "R²" in found.verdict


@pytest.mark.parametrize("name", ["tags.csv", "columns.csv", "lists.jsonl"])
def test_several_labels_from_table_to_ranking(folder, experts, name):
    images = open_images(folder / name, labels="several")
    named = {"dark", "red"}
    assert set(images.class_names) == {*named, "no label"} and images.targets.shape == (NUMBER, 2)
    rarest = int(images.targets.sum(0).argmin())
    assert (images.labels[images.targets[:, rarest]] == rarest).all()
    found = api.rank(images, experts, "lfc,lgc,ridge_loo", progress=False)
    assert found.best == "sees" and "LFC, mean over labels" in found.verdict
    scores = found.table.set_index(["selector", "expert"])["score"]
    features = found.evidence("sees").features
    borne = images.targets[found.sample.index].astype(int)
    by_hand = np.mean([lfc(features, column) for column in borne.T])
    assert scores["lfc", "sees"] == pytest.approx(by_hand, abs=1e-9)
    assert scores["ridge_loo", "sees"] > 0.9 > scores["ridge_loo", "blind"]
    assert np.isfinite(scores["lgc", "sees"])


def test_both_on_the_command_line(folder, tmp_path, monkeypatch, capsys, experts):
    monkeypatch.setattr(api, "_experts", lambda *args: api.candidates(list(named(experts))))
    page = tmp_path / "page.html"
    command = ["rank", str(folder / "numbers.csv"), "--quiet", "--zoo", "x"]
    assert main([*command, "--regression", "--report", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "By Ridge LOO, R², rank 1 is settled: sees." in shown and "lfc_numeric" in shown
    text = page.read_text("utf-8")
    assert "numeric labels from" in text and "groups of alike labels" in text
    assert "hard to tell apart" not in text and "Fine-tune the winner" not in text
    command[1] = str(folder / "tags.csv")
    assert main([*command, "--multi-label", "--selectors", "lfc,hscore"]) == 0
    shown = capsys.readouterr().out
    assert "By LFC, mean over labels, rank 1" in shown and "hscore" in shown


def named(experts):
    return [api.as_expert(model, name) for name, model in experts.items()]


def test_what_has_no_meaning_is_refused_in_one_line(folder, tmp_path, experts, capsys):
    command = ["rank", str(folder / "numbers.csv"), "--zoo", "x"]
    assert main(command) == 1
    assert "a measurement: expected classes (or do --regression)" in capsys.readouterr().err
    assert main([*command, "--regression", "--selectors", "ridge_r2,lfc"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "selectors of numeric labels (ridge_r2, " in error
    assert error.endswith("got lfc\n")
    assert main(["rank", str(folder / "columns.csv"), "--zoo", "x"]) == 1
    assert "(or do --multi-label)" in capsys.readouterr().err
    for selector in ("etran", "rsa", "ridge_r2"):
        with pytest.raises(MzlibError, match="expected selectors of several labels"):
            fitted((SELECTORS | NUMERIC)[selector], "several")
    with pytest.raises(MzlibError, match="expected selectors of classes labels .*got lfc_numeric"):
        fitted(NUMERIC["lfc_numeric"], "classes")
    images = open_images(folder / "numbers.csv", labels="numeric")
    with pytest.raises(MzlibError, match="one class an image to fine-tune"):
        api.finetune(images, named(experts)[0], out=tmp_path / "out")


def test_every_selector_has_a_meaning_for_one_kind_at_least():
    assert selectors_for("classes") == list(SELECTORS)
    assert set(NUMERIC) < set(selectors_for("numeric"))
    assert has_meaning(SELECTORS["rankme"], "numeric") and "lgc_full" in selectors_for("several")
    everything = known_selectors("all", "several")
    assert list(everything) == selectors_for("several") and "ncti" not in everything
    assert next(iter(known_selectors("all", "numeric"))) == "ridge_r2"


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("path,label\n", "numeric", "got no image"),
        ("path,label\na.png,1.5\nb.png,cat\n", "numeric", "a numeric label an image, got 'cat'"),
        ("path,label\na.png,2\nb.png,2\n", "numeric", "got the same for all"),
        ("path,label\na.png,2\nb.png,inf\n", "numeric", "got 'inf'"),
        ("path,label\na.png,x\nb.png,x\n", "several", "images of one class, 'x'"),
        ("path,label\na.png,x y\nb.png,x\n", "several", "as a|b, got one each, first 'x y'"),
        ("path,label\na.png,x\nb.png,y\n", "many", "labels of classes, several, numeric, got"),
    ],
)
def test_tables_that_hold_no_such_labels(tmp_path, content, kind, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(MzlibError, match=message):
        open_images(tmp_path / "t.csv", labels=kind)


def test_labels_that_one_image_bears_are_left_out_and_named(folder, experts):
    rows = (folder / "tags.csv").read_text().splitlines()
    rows[1] += " | rare"
    (folder / "tags.csv").write_text("\n".join(rows))
    images = open_images(folder / "tags.csv", labels="several")
    found = api.rank(images, experts, "lfc", images_per_class="all", progress=False)
    assert found.sample.targets.shape[1] == 2
    assert (
        "labels without two images that bear them and two that do not: rare" in found.facts["notes"]
    )


def test_arrays_with_numbers():
    x = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    y = np.linspace(0, 1, 12)
    images = as_labelled_images((x, y), labels="numeric")
    assert np.array_equal(images.targets[:, 0], y)


@pytest.fixture
def classes():
    """Twenty-four images of two classes, bright and dark."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.integers(0, 100, (24, 32, 32, 3)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def test_a_score_that_no_expert_has_has_a_reason(classes, experts):
    found = api.rank(classes, {"sees": experts["sees"]}, "lfc,etran", progress=False)
    row = found.table.set_index("selector").loc["etran"]
    assert np.isnan(row["score"]) and row["reason"] == ranking.ALONE
    with pytest.raises(MzlibError, match="got none: this score compares experts"):
        api.rank(classes, {"sees": experts["sees"]}, "etran", progress=False)


def test_the_interval_of_lgc_holds_its_probes_and_its_layer_is_told(classes):
    torch.manual_seed(0)
    found = api.rank(classes, timm.create_model("test_vit"), "lgc", progress=False)
    row = found.table.iloc[0]
    evidence = found.evidence(row["expert"])
    values = replicates(SELECTORS["lgc"], evidence)[:, 0]
    probes = evidence.last_conv_kernel_error
    assert probes > 0 and row["layer"] == evidence.last_layer != ""
    error = np.hypot(values[1:].std() * np.sqrt(len(values) - 2), probes)
    reach = t.ppf(0.975, len(values) - 2) * error
    assert row["high"] - row["score"] == pytest.approx(reach, rel=1e-6)
    assert found.layers == {row["layer"]: 1}


def test_probes_of_both_experts_make_a_difference_less_sure():
    scores = np.tile([[0.5], [0.4]], 21) + 1e-3 * np.random.default_rng(0).normal(size=(2, 21))
    assert ranking.surely_better(scores)[1, 0]
    assert ranking.surely_better(scores, probes=np.array([0.02, 0.0]))[1, 0]
    assert not ranking.surely_better(scores, probes=np.array([0.04, 0.04]))[1, 0]
