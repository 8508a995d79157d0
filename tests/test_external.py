"""Experts from elsewhere: checkpoints as trainers write them, timm's names, zoos as folders."""

import copy
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import SelectAdaptivePool2d
from torch import nn

from mzlib import provenance
from mzlib.benchmark import load_suite
from mzlib.cli import main
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence, fingerprint
from mzlib.provenance import home
from mzlib.training import seeded
from mzlib.zoo import Expert, features, heads, outputs, with_fresh_head
from mzlib.zoo.checkpoints import load_checkpoint, load_timm_folder
from mzlib.zoo.external import candidates, open_zoo
from mzlib.zoo.recommended import RECOMMENDED, cost, download_bytes, recommended, within

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path):
    """Six images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(6):
        place = tmp_path / "photos" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "photos"


def save_resnet(path, classes=5, architecture="resnet18", wrap=lambda state: state, **options):
    """A network in eval mode, whose state dict, changed by `wrap`, lies at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = timm.create_model(architecture, num_classes=classes, **options).eval()
    state = wrap(dict(model.state_dict()))
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return model


def same(expert, model, size=64, channels=3):
    x = torch.randn(1, channels, size, size)
    return torch.allclose(expert.model(x), model(x), atol=1e-5)


def test_checkpoints_and_globs(tmp_path):
    model = save_resnet(tmp_path / "resnet18-birds.safetensors")
    [candidate] = candidates(str(tmp_path / "resnet18-birds.safetensors"))
    expert = candidate.load()
    assert same(expert, model) and expert.card["image_size"] == 224
    names = [c.name for c in candidates("timm:resnet18.a?_in1k,timm:resnet18.a1_in1k")]
    assert names == [f"timm:resnet18.a{i}_in1k" for i in (1, 2, 3)]
    assert candidates("hf-hub:timm/resnet18.a1_in1k")[0].name == "timm:resnet18.a1_in1k"


def test_a_checkpoint_of_any_name_with_its_architecture(tmp_path):
    model = save_resnet(tmp_path / "best.pth")
    [candidate] = candidates(f"{tmp_path}/best.pth:resnet18")
    assert candidate.name == "best" and same(candidate.load(), model)


def prefixed(prefix):
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def lightning(state):
    state = prefixed("model.")(state) | {"loss.weight": torch.ones(3)}
    return {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {}}


def sequential_head(state):
    weight, bias = state.pop("fc.weight"), state.pop("fc.bias")
    return state | {"fc.1.weight": weight, "fc.1.bias": bias}


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("resnet18.pth", prefixed("model.")),
        ("resnet18.pth", prefixed("module.")),
        ("resnet18.safetensors", prefixed("net.module.")),
        ("resnet18.ckpt", lightning),
        ("resnet18.pth", sequential_head),
        ("resnet18.pt", lambda state: {"model": sequential_head(prefixed("")(state))}),
        ("resnet18.tar", lambda state: {"state_dict": prefixed("module.")(state), "epoch": 1}),
    ],
)
def test_what_trainers_do_to_a_state_dict(tmp_path, name, wrap):
    model = save_resnet(tmp_path / name, wrap=wrap)
    assert same(load_checkpoint(tmp_path / name), model)


def test_a_head_of_several_layers_is_left_out(tmp_path):
    def deep_head(state):
        state = sequential_head(state)
        return state | {"fc.3.weight": torch.ones(2, 5), "fc.3.bias": torch.ones(2)}

    model = save_resnet(tmp_path / "resnet18.pth", wrap=deep_head)
    expert = load_checkpoint(tmp_path / "resnet18.pth")
    x = torch.randn(2, 3, 64, 64)
    assert not heads(expert.model)
    assert torch.allclose(features(expert.model, x), features(model, x), atol=1e-5)


def test_a_network_of_grey_images_sees_the_luminance(tmp_path):
    model = save_resnet(tmp_path / "resnet18-x.pth", in_chans=1)
    expert = load_checkpoint(tmp_path / "resnet18-x.pth")
    x = torch.randn(2, 3, 64, 64)
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    assert torch.allclose(expert.model(x), model(grey), atol=1e-4)
    assert len(set(expert.card["mean"])) == len(set(expert.card["std"])) == 1


def test_position_embeddings_of_another_size_are_resampled_by_timm(tmp_path):
    name = "vit_tiny_patch16_224"
    model = save_resnet(tmp_path / f"{name}-big.pth", architecture=name, img_size=128)
    expert = load_checkpoint(tmp_path / f"{name}-big.pth")
    assert expert.model.pos_embed.shape == (1, 197, 192)
    by_hand = timm.create_model(name, num_classes=5)
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    by_hand.load_state_dict(convert(dict(model.state_dict()), by_hand))
    assert same(expert, by_hand.eval(), 224)


class Evil:
    def __reduce__(self):
        return (print, ("code of a pickle was run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("resnet34.safetensors", "resnet18", "expected weights that fit resnet34"),
        ("resnet18.pth", "evil", "expected a state dict of tensors"),
        ("resnet18.safetensors", b"junk", "expected a state dict"),
        ("resnet18.pth", b"", "expected a state dict"),
        ("resnet18.pth", {"epoch": 3}, "no tensors among epoch"),
        ("resnet18.pth", [1], "expected a state dict of tensors.*a list"),
        ("best.pth", "resnet18", "named after its timm architecture.*best.pth:ARCHITECTURE"),
        (
            "resnte18.safetensors",
            "resnet18",
            "named after its timm architecture.*did you mean .*resnet18",
        ),
    ],
)
def test_checkpoints_that_are_none(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content == "resnet18":
        save_resnet(path)
    elif content == "evil":
        torch.save({"weight": Evil()}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MzlibError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and "code of a pickle" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("zoo", "message"),
    [
        ("timm:resnt50.a1_in1k", "did you mean resnet50.a1_in1k"),
        ("timm:*no_such*", "no pretrained model"),
        ("resnet18", "expected timm:NAME.*did you mean timm:resnet18"),
        ("resnet18.a1_in1k", "did you mean timm:resnet18.a1_in1k"),
        ("torchvision:resnet18", "weights are in timm.*did you mean timm:resnet18.tv_in1k"),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V2", "did you mean timm:resnet50.tv2_in1k"),
        ("torchvision:MobileNet_V9", "expected timm:NAME, .* weights are in timm"),
        ("hf-hub:someone/net", "expected hf-hub:timm/NAME"),
        ("thumb46", "did you mean thumb64"),
        ("resnet-tiny_imagenett", "did you mean resnet-tiny_imagenet"),
        ("", "expected"),
    ],
)
def test_names_that_are_none_are_answered_with_what_was_meant(zoo, message, photos, capsys):
    assert main(["rank", str(photos), "--zoo", zoo]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "expected a JSON table"),
        ({}, "missing required field `architecture`"),
        ({"architecture": 3}, r"\$.architecture"),
        ({"architecture": "hf-hub:timm/resnet18"}, "of timm, got 'hf-hub"),
        ({"num_classes": "x"}, r"\$.num_classes"),
        ({"pretrained_cfg": "x"}, r"\$.pretrained_cfg"),
        ({"model_args": 3}, r"\$.model_args"),
        (
            {"model_args": {"depth": "x"}, "pretrained_cfg": {}},
            "model.safetensors beside it, got .*depth",
        ),
        ({"num_classes": 9}, "model.safetensors beside it, got RuntimeError"),
        ({"pretrained_cfg": {"mean": "x"}, "num_classes": 5}, r"\$.mean"),
        ({"pretrained_cfg": {"input_size": [3, 60_000, 60_000]}, "num_classes": 5}, "<= 2048"),
    ],
)
def test_folders_of_timm_that_are_none(tmp_path, config, message):
    if isinstance(config, dict) and config:
        config = {"architecture": "test_resnet"} | config
    save_file(
        timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MzlibError, match=message) as error:
        load_timm_folder(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


# names and zoos


def test_experts_of_one_file_name_have_names_of_their_own(tmp_path):
    nets = {run: save_resnet(tmp_path / run / "resnet18-best.pth") for run in ("runA", "runB")}
    found = candidates(f"{tmp_path}/runA,{tmp_path}/runB/resnet18-best.pth,{tmp_path}/runA")
    assert [c.name for c in found] == ["runA/resnet18-best.pth", "runB/resnet18-best.pth"]
    for candidate, net in zip(found, nets.values()):
        expert = candidate.load()
        assert expert.name == candidate.name and same(expert, net)
    experts = [load_checkpoint(tmp_path / run / "resnet18-best.pth") for run in nets]
    names = [c.name for c in candidates([*experts, experts[0]])]
    assert names == ["resnet18-best (1)", "resnet18-best (2)"]


def test_experts_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for folder in ("a/fold0", "b/fold0", "b/fold1"):
        save_resnet(tmp_path / folder / "test_resnet.pth", architecture="test_resnet")
    found = candidates(",".join(f"{tmp_path}/{f}" for f in ("a/fold0", "b/fold0", "b/fold1")))
    names = [f"{folder}/test_resnet.pth" for folder in ("a/fold0", "b/fold0", "b/fold1")]
    assert [c.name for c in found] == names
    shutil.copy(tmp_path / "b/fold1/test_resnet.pth", tmp_path / "b/fold1/test_resnet.pt")
    found = candidates(f"{tmp_path}/b/fold1")
    assert [c.name for c in found] == ["test_resnet.pt", "test_resnet.pth"]


def test_the_committed_zoo_is_in_the_suites_order():
    zoo = open_zoo(ROOT / "zoo" / "thumb64")
    suite = load_suite("thumb64")
    single = [name for name in suite.starting_points() if ":" not in name]
    assert [candidate.name for candidate in zoo.experts] == single
    assert zoo.generic == suite.generic


def test_a_package_outside_a_checkout_brings_its_experts(tmp_path, monkeypatch):
    """As a wheel lays it out: `mzlib/zoo/thumb64`, and nothing where one works."""
    package = tmp_path / "site-packages" / "mzlib" / "zoo"
    shutil.copytree(ROOT / "zoo" / "thumb64", package / "thumb64")
    monkeypatch.setattr("mzlib.zoo.external.__file__", str(package / "external.py"))
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path / "elsewhere"))
    found = candidates("thumb64")
    assert len(found) == 30 and found[0].load().name == "resnet-tiny_imagenet"
    assert not home().exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "expected a JSON table"),
        ("{}", "missing required field `experts`"),
        ('{"experts": [1]}', r"\$.experts"),
    ],
)
def test_an_index_that_is_wrong(tmp_path, index, message):
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(MzlibError, match=f"index.json.*{message}"):
        open_zoo(tmp_path)


def test_a_file_of_the_committed_zoo_is_ranked_by_the_card_beside_it(tmp_path):
    name = "resnet-grocery-scratch"
    file = ROOT / "zoo" / "thumb64" / f"{name}.safetensors"
    [found] = candidates(str(file))
    expert = found.load()
    assert found.name == name and expert.card["source"] == "grocery"
    shutil.copy(file, tmp_path)  # without its card
    with pytest.raises(MzlibError, match=rf"card of an expert of mzlib beside it \({name}.json\)"):
        candidates(str(tmp_path / file.name))[0].load()


def test_recommended_networks_are_timms():
    found = candidates("recommended")
    assert [candidate.name for candidate in found] == [f"timm:{name}" for name in RECOMMENDED]
    assert 20 <= len(found) <= 25


def test_what_networks_cost_is_known_before_they_are_downloaded(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    parameters, gflops = cost("timm:resnet18.a1_in1k")
    assert parameters == 11_689_512 and gflops == pytest.approx(1.82, abs=0.01)  # timm: 1.82 GMACs
    save_resnet(tmp_path / "test_resnet.pth", architecture="test_resnet")
    small, large, local = candidates(
        f"timm:resnet18.a1_in1k,timm:resnet50.a1_in1k,{tmp_path}/test_resnet.pth"
    )
    assert download_bytes([small, local]) == 4 * parameters
    assert within([small, large, local], max_params=12) == [small, local]
    assert within([small, large, local], max_gflops=4) == [small, local]
    assert within([small, large, local]) == [small, large, local]
    weights = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"")
    assert download_bytes([small]) == 0


def test_the_table_of_recommended_networks(monkeypatch):
    name = "resnet18.a1_in1k"
    monkeypatch.setattr("mzlib.zoo.recommended.RECOMMENDED", {name: RECOMMENDED[name]})
    [row] = recommended().to_dict("records")
    assert row == {
        "name": "timm:resnet18.a1_in1k",
        "pretraining": "ImageNet-1k, supervised",
        "licence": "apache-2.0",
        "pixels": 224,
        "classes": 1000,
        "parameters": 11.7,
        "megabytes": 47,
        "gflops": 1.8,
    }


# what is kept


def changed(model, how):
    """A copy that differs in one thing only."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        if how == "weight":
            model.conv1.weight[0, 0, 0, 0] += 1e-3
        elif how == "statistics":
            model.bn1.running_mean[0] += 1e-3
        elif how == "pooling":
            model.global_pool = SelectAdaptivePool2d(pool_type="max", flatten=True)
        elif how == "activation":
            model.act1 = nn.SiLU()
        elif how == "eps":
            model.bn1.eps = 0.1
        elif how == "classifier":
            model.fc.bias[0] += 1
        elif how == "hidden attribute":
            model.drop_rate_of_nothing = 0.5
    return model


HOW = ["weight", "statistics", "pooling", "activation", "eps", "classifier", "mean", "input"]


def test_experts_that_differ_in_anything_share_nothing_that_is_kept(tmp_path):
    base = seeded(lambda: timm.create_model("resnet18", num_classes=3).eval(), 0)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    card = {"source": "x", "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}

    def expert(how):
        facts = dict(card)
        if how == "mean":
            facts["mean"] = [0.4] * 3
        if how == "input":
            facts["image_size"] = 64
        return Expert("same name", changed(base, how), facts, digest="the same")

    def read(how, cache):
        evidence = Evidence(expert(how), images, np.array([0, 1, 2]), cache=cache)
        return evidence.features, evidence.source_probabilities

    plain = {how: read(how, None) for how in ["nothing", *HOW]}
    for name, order in (("there", ["nothing", *HOW]), ("back", [*reversed(HOW), "nothing"])):
        for how in [*order, *order]:  # computed, then kept
            for value, expected in zip(read(how, tmp_path / name), plain[how]):
                assert torch.equal(value, expected), how
        assert len(list((tmp_path / name).iterdir())) == len(order)
    assert fingerprint(base) == fingerprint(copy.deepcopy(base).train())
    assert fingerprint(base) != fingerprint(changed(base, "hidden attribute"))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "folder"])
def test_a_file_that_is_not_ours_is_computed_again(tmp_path, damage):
    model = seeded(lambda: timm.create_model("test_resnet", num_classes=3).eval(), 0)
    expert = Expert("e", model, {"source": "x", "image_size": 32})
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)

    def read():
        return Evidence(expert, images, np.array([0, 1, 2]), cache=tmp_path).features

    expected = read()
    [path] = tmp_path.iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "foreign":
        save_file({"features": torch.zeros(3, 4)}, path, {"facts": "of another"})
    else:
        path.unlink()
        path.mkdir()
    assert torch.equal(read(), expected) and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_cache_has_a_limit_and_no_old_temporaries(tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / "cache"))
    folder = provenance.cache_folder()
    assert folder == tmp_path / "cache"
    (folder / "evidence").mkdir(parents=True)
    now = time.time()
    ages = {f"{i:024x}-outputs.safetensors": 100 - i for i in range(4)}
    ages |= {f"{7:024x}.1.tmp": 90_000, f"{8:024x}.2.tmp": 10, "holiday.jpg": 1e7}
    for name, age in ages.items():
        (folder / "evidence" / name).write_bytes(bytes(10))
        os.utime(folder / "evidence" / name, (now - age, now - age))
    provenance.tidy(folder, limit=30)
    left = {path.name for path in (folder / "evidence").iterdir()}
    newest = {f"{i:024x}-outputs.safetensors" for i in (2, 3)}
    assert left == newest | {f"{8:024x}.2.tmp", "holiday.jpg"}
    monkeypatch.delenv("MZLIB_CACHE")
    assert provenance.cache_folder().name == "mzlib"


# any of timm's networks

SAMPLED = {
    "deit": "deit_tiny_distilled_patch16_224",  # two heads
    "levit": "levit_128s",  # two heads behind batch norm
    "dla": "dla46_c",  # a convolution as head
    "resnetv2": "resnetv2_50x1_bit",
    "efficientformer": "efficientformer_l1",
    "crossvit": "crossvit_9_240",  # a head for each of two branches
    "sequencer": "sequencer2d_s",
    "mobilenetv3": "mobilenetv3_small_050",
}


@pytest.mark.parametrize("name", SAMPLED.values(), ids=SAMPLED)
def test_features_logits_and_a_fresh_head_of(name):
    """A sample of `benchmarks/timm_sweep.py`."""
    options = {} if name in NEEDS_ITS_SIZE else {"img_size": 64}
    try:
        model = seeded(lambda: timm.create_model(name, **options).eval(), 0)
    except TypeError:  # takes any size
        model = seeded(lambda: timm.create_model(name).eval(), 0)
    x = torch.randn(2, 3, NEEDS_ITS_SIZE.get(name, 64), NEEDS_ITS_SIZE.get(name, 64))
    with torch.inference_mode():
        found, logits = outputs(model, x)
        assert found.ndim == 2 and torch.allclose(logits, model(x), atol=1e-5)
        assert torch.equal(found, features(model, x)) and logits.shape == (2, model.num_classes)
    fresh = with_fresh_head(model, 5, seed=0)
    assert outputs(fresh, x)[1].shape == (2, 5) and fresh(x).shape == (2, 5)
    for head in heads(fresh):
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert head.bias is None or not head.bias.any()


NEEDS_ITS_SIZE = {"levit_128s": 224, "efficientformer_l1": 224, "crossvit_9_240": 240}


def test_a_classifier_that_is_not_timms():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.last = nn.Linear(4, 6)

        def forward(self, x):
            return self.last(self.conv(x).mean((2, 3)))

    model, x = Plain().eval(), torch.randn(2, 3, 8, 8)
    found, logits = outputs(model, x)
    assert torch.equal(model.last(found), logits) and heads(model) == [model.last]
    assert with_fresh_head(model, 5, 0)(x).shape == (2, 5)
