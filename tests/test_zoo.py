import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mzlib import api
from mzlib.benchmark import load_results, load_suite
from mzlib.benchmark.data import load_task
from mzlib.errors import MzlibError
from mzlib.training import accuracy, default_device, predict
from mzlib.zoo import (
    MultiDomainNet,
    class_statistics,
    features,
    load_expert,
    to_fp16,
    with_fresh_head,
)
from mzlib.zoo.external import load_external
from mzlib.zoo.multi_domain import Adapted

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
INPUT = {
    "input_size": [3, 64, 64],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1,
    "interpolation": "bicubic",
    "crop_mode": "center",
}


@pytest.mark.parametrize(
    ("name", "millions", "width"), [("mzlib_resnet", 0.70, 192), ("mzlib_densenet", 0.34, 193)]
)
def test_architectures_are_registered_with_timm(name, millions, width):
    model = timm.create_model(name, num_classes=10).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    for size in (32, 64):
        x = torch.randn(2, 3, size, size)
        assert features(model, x).shape == (2, width) and model(x).shape == (2, 10)
        assert torch.allclose(model.get_classifier()(features(model, x)), model(x), atol=1e-5)
    with pytest.raises(ValueError, match="pretrained=False"):
        timm.create_model(name, pretrained=True)


def test_fresh_head_has_the_stated_distribution_and_its_own_seed():
    model = timm.create_model("mzlib_resnet", num_classes=7)
    heads = [
        with_fresh_head(model, 100, seed).get_classifier().weight.detach().clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert (
        heads[0].std().item() == pytest.approx(0.01, rel=0.02)
        and abs(heads[0].mean().item()) < 2e-4
    )
    assert not model.get_classifier().bias.any()


def randomised(variant):
    """A multi-domain net whose domains differ in everything that may differ."""
    torch.manual_seed(0)
    net = MultiDomainNet("mzlib_resnet", {"a": 3, "b": 5}, variant, 32)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
    for name, parameter in net.named_parameters():
        if ".adapter." in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return net.eval()


@pytest.mark.parametrize("variant", ["shared", "multi_bn", "adapter"])
def test_a_domain_taken_out_is_the_same_function_in_an_ordinary_network(variant):
    net, x = randomised(variant), torch.randn(4, 3, 32, 32)
    for domain, classes in (("a", 3), ("b", 5)):
        single = net.single(domain).eval()
        assert set(single.state_dict()) == set(
            timm.create_model("mzlib_resnet", num_classes=classes).state_dict()
        )
        assert torch.allclose(net(x, domain), single(x), atol=1e-5)
    same = torch.allclose(
        features(net.single("a").eval(), x), features(net.single("b").eval(), x), atol=1e-3
    )
    assert same == (variant == "shared")  # multi-BN and adapters really separate the domains


def test_training_on_one_domain_leaves_the_other_domains_own_parameters_alone():
    net = randomised("multi_bn").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    net(torch.randn(8, 3, 32, 32), "a").sum().backward()
    optimizer.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not [k for k in moved if ".of.b." in k or k.startswith("heads.b")]
    assert any(".of.a.running_mean" in k for k in moved) and any(
        k.endswith("conv1.weight") for k in moved
    )


def test_unknown_variant():
    with pytest.raises(MzlibError, match="shared.*multi_bn.*adapter.*got 'other'"):
        MultiDomainNet("mzlib_resnet", {"a": 2}, "other", 32)


def test_an_expert_read_from_disk_has_the_accuracy_on_its_card(tiny):
    suite, zoo = load_suite("tiny"), load_results("tiny").zoo.set_index("expert")
    for name in (
        "resnet-mixture",
        "resnet-glyphs-scratch",
        "resnet-glyphs-generic",
        "resnet-multi_bn:textures",
    ):
        expert = load_expert(name, tiny / "zoo" / "tiny")
        task = load_task(expert.card["source"], suite.image_size)
        device = default_device()  # where the accuracy of the card was measured
        logits = predict(expert.model.to(device), task.test.images, device)
        top1, _ = accuracy(logits, task.test.labels)
        assert round(top1, 5) == zoo.loc[name, "accuracy"] and expert.card[
            "accuracy"
        ] == pytest.approx(top1)
        assert expert.card["class_names"] == list(task.class_names) and not expert.model.training
        means, counts = class_statistics(expert.model, task.train.images, task.train.labels)
        assert torch.allclose(expert.class_means, means, rtol=2e-3, atol=2e-3) and torch.equal(
            expert.class_counts, counts
        )


def test_weights_are_fp16_and_small(tiny):
    from safetensors.torch import load_file

    state = load_file(tiny / "zoo" / "tiny" / "resnet-mixture.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    assert (tiny / "zoo" / "tiny" / "resnet-mixture.safetensors").stat().st_size < 1.5e6


@pytest.mark.parametrize(
    "architecture", ["mzlib_resnet", "mobilenetv3_small_050"]
)  # the latter widens its features in the head
def test_class_statistics_by_hand(architecture):
    model = timm.create_model(architecture, num_classes=2).eval()
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    means, counts = class_statistics(model, images, np.array([0, 2, 0, 2, 2, 1]))
    f = predict(lambda x: features(model, x), images, CPU)
    assert counts.tolist() == [2, 1, 3] and torch.allclose(
        means[2], f[[1, 3, 4]].mean(0), atol=1e-5
    )


def test_damaged_and_absent_experts_are_told_apart(tiny, tmp_path):
    folder = tmp_path / "zoo"
    shutil.copytree(tiny / "zoo" / "tiny", folder)
    with pytest.raises(MzlibError, match="expected an expert 'resnet-none'.*resnet-mixture"):
        load_expert("resnet-none", folder)
    with pytest.raises(
        MzlibError, match="expected a domain of resnet-multi_bn.*mixture.*got 'gtsrb'"
    ):
        load_expert("resnet-multi_bn:gtsrb", folder)
    with pytest.raises(MzlibError, match="expected a domain"):
        load_expert("resnet-multi_bn", folder)
    with pytest.raises(MzlibError, match="none to choose"):
        load_expert("resnet-mixture:mixture", folder)
    weights = folder / "resnet-mixture.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MzlibError, match="differs: train it again"):
        load_expert("resnet-mixture", folder)
    (folder / "resnet-glyphs-scratch.json").write_text('{"name": ')
    with pytest.raises(MzlibError, match="expected a JSON table"):
        load_expert("resnet-glyphs-scratch", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "missing required field `sha256`"),
        ({"sha256": 3}, r"Expected `str`, got `int` - at `\$.sha256`"),
        ({"architecture": None}, "missing required field `architecture`"),
        ({"architecture": "hf-hub:timm/resnet18.a1_in1k"}, "got 'hf-hub:timm/resnet18.a1_in1k'"),
        ({"architecture": "resnet18.of_nobody"}, "of timm, got 'resnet18.of_nobody'"),
        ({"architecture": [1]}, r"\$.architecture"),
        ({"architecture": "resnet18"}, "expected the card of the weights beside it"),
        ({"class_names": None}, "missing required field `class_names`"),
        ({"class_names": [1]}, r"\$.class_names"),
        ({"class_names": ["a"]}, "expected the card of the weights beside it"),
        ({"image_size": None}, "missing required field `image_size`"),
        ({"image_size": True}, r"\$.image_size"),
        ({"image_size": 60_000}, r"<= 2048 - at `\$.image_size`"),
        ({"source": 3}, r"\$.source"),
        ({"pretraining": None}, "missing required field `pretraining`"),
        ({"accuracy": "x"}, r"\$.accuracy"),
        ({"domains": 3}, r"\$.domains"),
        ({"mean": [1, 2]}, r"\$.mean"),
        ({"std": [1, 1, 0], "mean": [0, 0, 0]}, r"> 0.0 - at `\$.std"),
        ({"std": [1, 1, 1], "mean": [0, 0, float("nan")]}, "expected a JSON table"),
        ({"input": 3}, r"\$.input"),
        ({"input": INPUT | {"input_size": [3, 60_000, 60_000]}}, r"<= 2048 - at `\$.input.input_"),
        ({"input": INPUT | {"input_size": [1, 64, 64]}}, r"\$.input.input_size"),
        ({"input": INPUT | {"interpolation": "best"}}, r"\$.input.interpolation"),
        ({"input": INPUT | {"crop_pct": 0}}, r"\$.input.crop_pct"),
        (b"[]", "expected a JSON table"),
        (b"\xff", "expected a JSON table"),
        (b"[" * 100_000, "expected a JSON table"),
    ],
)
def test_a_card_that_is_wrong_is_told_in_one_line(tiny, tmp_path, change, message):
    for suffix in (".json", ".safetensors"):
        shutil.copy(tiny / "zoo" / "tiny" / f"resnet-mixture{suffix}", tmp_path)
    path = tmp_path / "resnet-mixture.json"
    card = json.loads(path.read_text()) | change if isinstance(change, dict) else {}
    path.write_bytes(
        json.dumps({k: v for k, v in card.items() if v is not None}).encode() if card else change
    )
    with pytest.raises(MzlibError, match=message) as error:
        load_expert("resnet-mixture", tmp_path)
    assert "resnet-mixture" in str(error.value) and "\n" not in str(error.value)


def test_what_fp16_cannot_hold_is_refused():
    with pytest.raises(MzlibError, match="overflow or NaN in b"):
        to_fp16({"a": torch.ones(2), "b": torch.tensor([1e6])})


def test_experts_of_timm_keep_their_preprocessing(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained: create(name, pretrained=False)
    )  # no network here
    monkeypatch.setattr("mzlib.zoo.external._online", lambda: True)
    expert = load_external("timm:resnet18.a1_in1k")
    assert expert.card["image_size"] == 224 and expert.card["mean"] == pytest.approx(
        [0.485, 0.456, 0.406]
    )
    assert expert.model.get_classifier().out_features == 1000 and expert.class_means is None


@pytest.mark.parametrize(
    "name", ["mzlib_resnet", "mzlib_densenet", "test_vit2", "deit_tiny_distilled_patch16_224"]
)
def test_the_parameters_of_an_expert_are_those_of_its_backbone(name):
    """Not of what its source's classes add, in one head or in two."""
    for classes in (0, 3, 1000):
        expert = api.as_expert(timm.create_model(name, num_classes=classes))
        bare = timm.create_model(name, num_classes=0)
        assert expert.parameter_count == sum(p.numel() for p in bare.parameters())


def test_the_parameters_of_a_network_that_is_not_of_timm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 4), nn.ReLU(), nn.Linear(4, 10))
    assert api.as_expert(net).parameter_count == 3 * 224 * 224 * 4 + 4


@pytest.mark.parametrize("suite", ["thumb64", "mini"])
@pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="no results here")
def test_committed_experts_of_one_architecture_have_as_many_parameters(suite, monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(ROOT))
    results = load_results(suite)
    rows = results.scores[results.scores["selector"] == "parameter_count"]
    architecture = rows["expert"].str.partition("-")[0]
    found = rows.groupby(architecture)["score"].unique().map(list)
    for name, counts in found.items():
        bare = timm.create_model(f"mzlib_{name}", num_classes=0)
        assert counts == [sum(p.numel() for p in bare.parameters())]


@pytest.mark.parametrize("name", ["timm:resnet_of_nobody", "torchvision:Nothing_Weights.V1"])
def test_unknown_external_experts(name):
    with pytest.raises(MzlibError, match="could not load the expert"):
        load_external(name)


def test_cards_are_complete(tiny):
    card = json.loads((tiny / "zoo" / "tiny" / "resnet-glyphs-generic.json").read_text())
    assert card["pretraining"] == "generic" and card["training"]["start"] == "resnet-mixture"
    assert {
        "architecture",
        "source",
        "domain",
        "class_names",
        "accuracy",
        "training",
        "machine",
        "sha256",
    } <= set(card)
    assert card["training"]["recipe"]["momentum"] == 0.9 and card["machine"]["torch"].startswith(
        "2."
    )


def test_an_adapter_is_a_strided_convolution_of_few_channels():
    """Ten steps: torch's own gradient of it corrupts memory on some processors."""
    conv = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    adapted = Adapted(conv, ["a"]).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(weight := adapted.adapter.of["a"].weight)
    x = torch.randn(10, 3, 33, 32).to(memory_format=torch.channels_last)
    assert torch.allclose(
        adapted(x), conv(x) + torch.nn.functional.conv2d(x, weight, stride=2), atol=1e-5
    )
    for _ in range(10):
        adapted(x).square().sum().backward()
    assert weight.grad.isfinite().all()
