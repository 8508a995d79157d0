"""Kernels of per-sample gradients against their definition: one image and output at a time."""

import copy

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

import mzlib.zoo.architectures  # noqa: F401  registers mzlib_resnet and mzlib_densenet
from mzlib.linearization import (
    LinearizationError,
    label_gradient_product,
    ntk_gram,
    random_projection,
    tangent_kernel,
    tangents,
)
from mzlib.linearization import layers as L

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


class Affine(nn.Module):
    """A layer unknown to the package, with a parameter and a linear layer used twice."""

    def __init__(self):
        super().__init__()
        self.scale, self.twice = nn.Parameter(torch.ones(6)), nn.Linear(6, 6)

    def forward(self, x):
        return self.twice(torch.tanh(self.twice(x * self.scale))) + self.scale


class Tied(nn.Module):
    """A head whose weight is also used outside of its module."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        return self.head(x) @ self.head.weight


def conv_net(*layers, channels=6):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3))


NETS = {
    "strides": lambda: conv_net(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
    ),
    "groups": lambda: conv_net(
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Tanh(),
        nn.Conv2d(6, 6, 1, groups=2, stride=2),
    ),
    "dilation": lambda: conv_net(
        nn.Conv2d(3, 6, 3, dilation=2, padding=2),
        nn.GELU(),
        nn.Conv2d(6, 6, 3, dilation=(1, 2), padding="same"),
        nn.GELU(),
    ),
    "small_maps": lambda: conv_net(
        nn.Conv2d(3, 16, 3, stride=4),
        nn.GELU(),
        nn.Conv2d(16, 20, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(20, 16, 3, padding=(2, 1), dilation=(2, 1), groups=2),
        nn.GELU(),
        channels=16,
    ),
    "padding": lambda: conv_net(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(6, 6, 4, padding="same", padding_mode="reflect"),
    ),
    "standardized": lambda: conv_net(
        ScaledStdConv2dSame(3, 8, 3, stride=2, gamma=1.7),
        nn.Tanh(),
        StdConv2dSame(8, 8, 4, stride=(1, 2)),
        nn.Tanh(),
        StdConv2d(8, 16, 3, padding=1, groups=4),
        nn.Tanh(),
        ScaledStdConv2d(16, 16, 3, stride=2, padding=1),
        channels=16,
    ),
    "norms": lambda: nn.Sequential(
        nn.Flatten(2),
        nn.Linear(144, 6),
        nn.LayerNorm(6),
        nn.LayerNorm((3, 6)),
        nn.RMSNorm(6),
        nn.GroupNorm(3, 3),
        nn.Flatten(),
        nn.Linear(18, 3, bias=False),
    ),
    "reused": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), Affine(), nn.Linear(6, 3)
    ),
    "tied": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), Tied()),
    "unknown": lambda: conv_net(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.PReLU(6)),
    **{
        name: lambda name=name: timm.create_model(
            name, num_classes=2, **({"img_size": 32} if "vit" in name else {})
        )
        for name in (
            "mzlib_resnet",
            "mzlib_densenet",
            "resnet18",
            "densenet121",
            "mobilenetv3_small_050",
            "convnext_atto",
            "vit_tiny_patch16_224",
        )
    },
}


def build(name, dtype=torch.float64, device="cpu"):
    """Random weights in general position: no zero bias, no scale of 1e-6."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = NETS[name]()
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.to(device, dtype)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def images(n, dtype=torch.float64, device="cpu", size=None, seed=0):
    return torch.randn(
        n, 3, size or 12, size or 12, generator=torch.Generator().manual_seed(seed)
    ).to(device, dtype)


def size_of(name):
    return 32 if name in list(NETS)[10:] else 12


def kernel(model, x, outputs="logits", names=None):
    """Σ_d ⟨∇f_d(x_i), ∇f_d(x_j)⟩ by its definition: one backward pass an image and output."""
    model = copy.deepcopy(model).eval()
    chosen = [p for n, p in model.named_parameters() if names is None or n in names]
    f = (
        model
        if outputs == "logits"
        else lambda x: model.forward_head(model.forward_features(x), pre_logits=True)
    )
    # of a batch of two: torch's batch norm differentiates a lone image wrongly in some layouts
    outs, total = [f(image.repeat(2, 1, 1, 1))[0] for image in x], 0
    for d in range(len(outs[0])):
        g = torch.stack(
            [
                torch.cat(
                    [
                        t.flatten()
                        for t in torch.autograd.grad(
                            out[d], chosen, retain_graph=True, materialize_grads=True
                        )
                    ]
                )
                for out in outs
            ]
        )
        total = total + g @ g.T
    return total


def close(got, expected, tolerance):
    return (got.double().cpu() - expected.cpu()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETS)
def test_all_layers_equal_the_explicit_jacobian(name, device):
    model, x = build(name, device=device), images(3, device=device, size=size_of(name))
    expected = kernel(model, x)
    got = ntk_gram(model, x, layers="all", outputs="logits", probes="exact")
    assert close(got, expected, 1e-10) and torch.equal(got, got.T)
    single = ntk_gram(model.float(), x.float(), layers="all", outputs="logits", probes="exact")
    # in densenet121 float32 flips a ReLU close to zero, in autograd's forward pass as in ours
    plain = kernel(model, x.float()) if name == "densenet121" else None
    error = (
        0
        if plain is None
        else float((plain.double() - expected).abs().max() / expected.abs().max())
    )
    assert single.dtype == torch.float32 and close(single, expected, max(1e-5, error))


@pytest.mark.parametrize("name", ["strides", "small_maps", "standardized", "mzlib_resnet"])
def test_cross_gram_blocks_and_batches_change_nothing(name):
    model, x = build(name), images(7, size=size_of(name))
    whole = ntk_gram(model, x, layers="all", outputs="logits")
    assert close(
        ntk_gram(model, x[:4], x[4:], layers="all", outputs="logits"), whole[:4, 4:], 1e-12
    )
    # a budget below one image: blocks of one image each, and pieces of one output channel
    assert close(ntk_gram(model, x, layers="all", outputs="logits", memory_budget=1), whole, 1e-12)
    assert close(ntk_gram(model, x, layers="all", outputs="logits", batch_size=4), whole, 1e-12)


WINDOWS = {"window_size": 4, "depths": (2,), "num_heads": (2,), "embed_dim": 16}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "init_values": 0.5}),
        ("cait_xxs24_224", {"img_size": 32, "depth": 1, "depth_token_only": 1}),
        ("convnext_atto", STAGES),  # γ reshaped to the maps'
        ("swin_tiny_patch4_window7_224", {"img_size": 32, **WINDOWS}),  # shifted, with a mask
        ("swinv2_cr_tiny_224", {"img_size": 32, **WINDOWS}),  # positions through an MLP
        # and the weight of a linear layer that is not called
        ("swinv2_tiny_window8_256", {"img_size": 32, **WINDOWS}),
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}),
        ("levit_128s", {"img_size": 64, "embed_dim": (16, 16, 16)}),  # in a cache
    ],
)
def test_tokens_scales_and_positions_need_no_pass_of_their_own(name, options):
    model = seeded(lambda: timm.create_model(name, num_classes=2, **options))
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, 0.5, 1)
    before = dict(model.named_parameters())
    x = images(3, size=options.get("img_size", 32))
    t = tangents.Tangents(model, x, "all", "logits")
    slow = [key for key, p in before.items() if any(p is other for other in t.others)]
    # whose gradients are nearly zero, and which see windows, is not sure of any form
    assert len(t.copied) >= 2 and all(".bn." in key for key in slow)
    expected = kernel(model, x)
    for options in ({}, {"batch_size": 1}, {"batch_size": 2}):
        found = ntk_gram(model, x, layers="all", outputs="logits", probes="exact", **options)
        assert close(found, expected, 1e-10)
    after = dict(model.named_parameters())
    assert all(after[key] is p and p.requires_grad for key, p in before.items())


def test_the_copies_of_operands_count_in_the_budget(monkeypatch):
    options = {"img_size": 32, "num_classes": 2, **WINDOWS}
    model = seeded(lambda: timm.create_model("swin_tiny_patch4_window7_224", **options))
    x = images(2, size=32)
    t = tangents.Tangents(model, x, "all", "logits", memory_budget=1 << 24)
    assert 1 < t.batch and t.batch * t.activations * 2 <= 1 << 22
    monkeypatch.setattr(tangents.Operands, "copied", lambda self, operand, *_: operand)
    without = tangents.Tangents(model, x, "all", "logits")
    attention = 4 * 2 * 16 * 16 * 8  # windows, heads, positions squared, bytes
    assert t.activations - without.activations == 2 * attention  # blocks
    assert len(without.others) == 2


def test_all_else_is_differentiated_two_images_at_a_time():
    """Whatever the number of images: in the memory of two."""
    model, x = build("unknown"), images(7)
    t = tangents.Tangents(model, x, "all", "logits")
    assert t.others == [model[2].weight]  # of PReLU
    seen = []
    model[0].register_forward_hook(lambda _, args, output: seen.append(len(output)))
    t.block(x, torch.ones(1, t.dimension).double())
    assert seen == [7, 2, 2, 2, 2]


def test_weight_standardization_has_a_closed_form_in_the_budget():
    model, x = build("standardized"), images(4, size=7)
    t = tangents.Tangents(model, x, "all", "logits")
    assert t.image_by_image_share == 0
    ways = {weight.way for weights in t.weights.values() for weight in weights}
    assert ways == {"flat", "pairs", "pieces"}


PADDED = {
    "as in the zoo": (nn.Conv2d(3, 4, 3, padding=1), (2, 2)),
    "stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 4)),
    "dilation": (nn.Conv2d(3, 4, (3, 2), padding=(2, 1), dilation=(2, 1)), (3, 2)),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 3)),
    "reflection": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 2)),
    "TensorFlow's": (timm.layers.Conv2dSame(3, 4, 3, stride=2), (3, 3)),
}


@pytest.mark.parametrize("are_places", [True, False])
@pytest.mark.parametrize("name", PADDED)
def test_pairs_of_images_by_products_of_unfolded_inputs_or_of_their_places(
    name, are_places, monkeypatch
):
    module, size = PADDED[name]
    monkeypatch.setattr(L, "by_place", lambda *_: are_places)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, module.in_channels, *size, generator=generator, dtype=torch.float64)
    g = torch.randn(module.double()(x).shape, generator=generator, dtype=torch.float64)
    g[:, :, -1, -1] = 0  # a position that is left out
    x, g = x.movedim(1, -1), g.movedim(1, -1)
    gradients = L.weight_gradient(module, x, g)
    rows, cols = (x[:4], g[:4]), (x[4:], g[4:])
    gram = torch.zeros(4, 3, dtype=torch.float64)
    L.add_pairwise(gram, module, rows, cols, symmetric=False)
    assert close(gram, gradients[:4] @ gradients[4:].T, 1e-12)
    gram = torch.zeros(7, 7, dtype=torch.float64)
    L.add_pairwise(gram, module, (x, g), (x, g), symmetric=True)
    assert close(gram.triu(), (gradients @ gradients.T).triu(), 1e-12)


def test_places_are_taken_where_they_are_fewer_than_unfolded_inputs():
    """Of 3 × 3 filters on 2 × 2 pixels five ninths of what is unfolded is padding."""
    module = nn.Conv2d(192, 192, 3, padding=1)
    assert L.by_place(module, torch.zeros(1, 2, 2, 192), 4)
    assert not L.by_place(nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 8, 8, 4), 64)
    assert not L.by_place(nn.Conv2d(192, 192, 3, padding=1), torch.zeros(1, 8, 8, 192), 1)
    assert not L.by_place(nn.Linear(4, 4), torch.zeros(1, 2, 4), 2)


def test_norms_have_closed_forms():
    t = tangents.Tangents(build("norms"), images(2), "all", "logits")
    assert t.others == t.copied == []


def test_budget_bounds_what_is_kept():
    model, x = build("mzlib_resnet", torch.float32), images(2, torch.float32, size=32)
    for budget, probes in ((1 << 22, 1), (1 << 26, 1), (1 << 26, 8)):
        t = tangents.Tangents(model, x, "all", "features", memory_budget=budget)
        blocks = t.block(x, torch.ones(probes, t.dimension))
        held = [block.flat for block in blocks]
        held += [tensor for block in blocks for pair in block.raw.values() for tensor in pair]
        kept = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())
        assert kept // 2 * t.room(probes) <= budget // 2 < kept // 2 * (t.room(probes) + 1)
        assert t.batch * t.activations * 2 <= budget // 4


@pytest.mark.parametrize("name", ["mzlib_resnet", "mzlib_densenet"])
def test_one_cotangent_is_exact_for_the_last_convolution(name):
    model, x = build(name), images(3, size=32)
    last = {
        "mzlib_resnet": "layer4.0.conv2",
        "mzlib_densenet": "features.denseblock4.denselayer8.conv2",
    }[name]
    expected = kernel(model, x, "features", [last + ".weight"])
    for seed in (0, 1):
        assert close(ntk_gram(model, x, seed=seed), expected, 1e-10)
    assert close(ntk_gram(model, x, layers=[last]), expected, 1e-10)


def test_probes_are_unbiased_for_the_other_layers():
    model, x = build("strides"), images(4)
    exact = ntk_gram(model, x, layers="all", outputs="logits", probes="exact")
    error = {
        k: sum(
            (ntk_gram(model, x, layers="all", outputs="logits", probes=k, seed=s) - exact).norm()
            / exact.norm()
            for s in range(4)
        )
        / 4
        for k in (1, 100)
    }
    assert error[100] < error[1] / 4 and error[100] < 0.05  # falls as 1/√probes
    same = [ntk_gram(model, x, layers="all", outputs="logits", probes=2, seed=5) for _ in range(2)]
    assert torch.equal(*same)


def test_layers_add_up_and_frozen_parameters_stay_out():
    model, x = build("mobilenetv3_small_050"), images(3, size=32)
    whole = ntk_gram(model, x, layers="all")
    parts = [[n] for n, m in model.named_children() if n != "classifier" and list(m.parameters())]
    assert close(sum(ntk_gram(model, x, layers=p) for p in parts), whole, 1e-12)
    model.blocks.requires_grad_(False)
    expected = sum(ntk_gram(model, x, layers=p) for p in parts if p != ["blocks"])
    assert close(ntk_gram(model, x, layers="all"), expected, 1e-12)


def test_the_model_is_left_as_it_was_found():
    model, x = build("mzlib_resnet", torch.float32), images(3, torch.float32, size=32)
    model.train()
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    model.conv1[0].weight.grad = torch.ones_like(model.conv1[0].weight)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    in_eval = ntk_gram(copy.deepcopy(model).eval(), x, layers="all")
    assert torch.equal(ntk_gram(model, x, layers="all"), in_eval)
    label_gradient_product(model, x, torch.tensor([0, 1, 1]))
    random_projection(model, x, dimension=16)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(LinearizationError, match="NaN or Inf"):
            ntk_gram(model, torch.full_like(x, bad), layers="all")
    assert flags == (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["conv1.0.weight"]
    assert torch.equal(random, torch.get_rng_state())


def test_batches_shrink_when_memory_runs_out(monkeypatch):
    model, x = build("strides"), images(7)
    expected, fill, seen = ntk_gram(model, x, outputs="logits"), tangents.Tangents._fill, []

    def full(self, block, batch, v, rows):
        seen.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory left")
        fill(self, block, batch, v, rows)

    monkeypatch.setattr(tangents.Tangents, "_fill", full)
    assert close(ntk_gram(model, x, outputs="logits", batch_size=8), expected, 1e-14)
    assert seen == [7, 4, 2, 2, 2, 1]
    assert tangents.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    monkeypatch.setattr(
        tangents.Tangents, "_fill", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        ntk_gram(model, x, outputs="logits")


@pytest.mark.parametrize("layers", ["all", "last_conv"])
def test_label_gradient_product_is_the_gram_between_labels(layers):
    model, x = build("mzlib_resnet"), images(7, size=32)
    labels = torch.tensor([4, 1, 1, 9, 4, 4, 1])
    y = 2.0 * (labels[:, None] == torch.tensor([1, 4, 9])) - 1
    for kwargs in ({"probes": 2, "seed": 3}, {"outputs": "logits", "probes": "exact"}):
        gram = ntk_gram(model, x, layers=layers, **kwargs)
        got = label_gradient_product(model, x, labels, layers=layers, batch_size=2, **kwargs)
        assert close(got, y.T.double() @ gram @ y.double(), 1e-10)


def test_random_projection_approximates_the_gram():
    model, x = build("small_maps"), images(6)
    kwargs = dict(layers="all", outputs="logits")
    gram = ntk_gram(model, x, seed=1, **kwargs)
    wide, narrow = (random_projection(model, x, dimension=d, seed=1, **kwargs) for d in (4000, 40))
    error = [(p @ p.T - gram).norm() / gram.norm() for p in (wide, narrow)]
    assert error[0] < 0.05 < error[1]  # ≈ 1/√4000 and 1/√40
    small = random_projection(model, x, dimension=40, seed=1, memory_budget=1, **kwargs)
    assert close(small, narrow, 1e-10)
    assert not close(random_projection(model, x, dimension=40, seed=2, **kwargs), narrow, 0.5)


@pytest.mark.parametrize("name", ["mzlib_resnet", "mzlib_densenet"])
def test_the_kernel_of_all_layers_comes_from_the_last_ones_pass(name, monkeypatch):
    model, x, labels = build(name), images(6, size=32), torch.arange(6) % 2
    last, every = tangent_kernel(model, x, labels).gram, ntk_gram(model, x, layers="all")
    options = {"with_outputs": True, "with_all_layers": True}
    assert tangent_kernel(model, x, labels, memory_budget=1, **options).all_layers is None
    alone, counted = tangent_kernel(model, x, with_outputs=True), []
    fill = tangents.Tangents._fill
    monkeypatch.setattr(
        tangents.Tangents,
        "_fill",
        lambda s, b, x, *rest: counted.append(len(x)) or fill(s, b, x, *rest),
    )
    found = tangent_kernel(model, x, labels, **options)
    assert counted == [2, 6]  # whether one probe is exact; the images
    assert close(found.all_layers, every, 1e-10) and close(found.gram, last, 1e-10)
    assert close(found.features, alone.features, 1e-10)


def test_one_image():
    model, x = build("mzlib_resnet"), images(1, size=32)
    gram = ntk_gram(model, x, layers="all", outputs="logits", probes="exact")
    assert gram.shape == (1, 1) and close(gram, kernel(model, x), 1e-10)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m, x: ntk_gram(m, x.byte()), "expected images"),
        (lambda m, x: ntk_gram(m, x[0]), "expected images"),
        (lambda m, x: ntk_gram(m, x[:0]), "expected images"),
        (lambda m, x: ntk_gram(m, x, x.byte()), "expected images"),
        (lambda m, x: ntk_gram(m, x, layers=["layer9"]), "layer9"),
        (lambda m, x: ntk_gram(m, x, layers="layer4"), "list of names"),
        (lambda m, x: ntk_gram(m, x, layers=["fc"]), "depend on"),
        (lambda m, x: ntk_gram(m, x, outputs="loss"), "outputs="),
        (lambda m, x: ntk_gram(m, x, probes=0), "probes"),
        (lambda m, x: ntk_gram(m.requires_grad_(False), x, layers="all"), "requires_grad_"),
        (lambda m, x: ntk_gram(nn.Sequential(m, nn.ReLU()), x), "forward_head"),
        (
            lambda m, x: ntk_gram(
                nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)),
                x,
                outputs="logits",
                layers="last_conv",
            ),
            "convolution",
        ),
        (
            lambda m, x: ntk_gram(nn.Sequential(nn.Conv2d(3, 2, 3)), x, outputs="logits"),
            r"\[N, D\]",
        ),
        (lambda m, x: label_gradient_product(m, x, torch.zeros(3)), "two classes"),
        (lambda m, x: label_gradient_product(m, x, torch.arange(2)), "expected 3 labels"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    with pytest.raises(LinearizationError, match=message):
        change(build("mzlib_resnet", torch.float32), images(3, torch.float32, size=32))
