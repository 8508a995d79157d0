"""Networks with once wrong kernels, raw errors, or another last layer."""

import sys
import types
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from test_linearization import build, close, images, kernel, seeded
from torch import nn
from torch.nn.utils import parametrizations

import mzlib.zoo.architectures  # noqa: F401  registers mzlib_resnet and mzlib_densenet
from mzlib.linearization import (
    LinearizationError,
    label_gradient_product,
    linearize,
    ntk_gram,
    random_projection,
    tangent_kernel,
)
from mzlib.linearization.choice import last_layer
from mzlib.linearization.gram import lgc_standard_error
from mzlib.linearization.model import Output
from mzlib.linearization.tangents import Tangents
from mzlib.selectors import lgc

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import linearization_sweep

LOGITS = {"layers": "all", "outputs": "logits", "probes": "exact"}


class TwoNames(nn.Module):
    """A layer registered under two names, and used under both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.b = self.a
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.mean(2).mean(2).repeat(1, 4)) * self.scale))


class SequenceFirst(nn.Module):
    """The default layout of torch's transformers: [positions, images, channels]."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(3, 1, 8, dropout=0)

    def forward(self, x):
        return self.block(x.flatten(2).permute(2, 0, 1)[:4]).mean(0)


class Caching(nn.Module):
    """Attention biases as timm keeps them: indexed once in eval mode, forgotten in train mode."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(3, 1, 1))
        self.cache = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        return torch.tanh(x * self.cache["bias"])


class InPlace(nn.Module):
    """A token, repeated for every image, to which the images are added in place."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x):
        tokens = self.token.repeat(len(x), 1, *x.shape[2:])
        tokens.add_(x)
        return torch.tanh(tokens)


class Square(torch.autograd.Function):
    """A function whose inside torch does not see."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context, g):
        (x,) = context.saved_tensors
        return 2 * x * g


class Opaque(nn.Module):
    """A scale, then such a function, then a linear layer and another scale."""

    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.ones(2, 3))
        self.mix = nn.Linear(3, 3)

    def forward(self, x):
        squares = Square.apply(x.movedim(1, 3) * self.scales[0])
        return (self.mix(squares) * self.scales[1]).movedim(3, 1)


class Table(nn.Module):
    """A linear layer of a table, not of images (swinv2's position biases), of as many rows."""

    def __init__(self, rows):
        super().__init__()
        self.mlp = nn.Linear(2, 3)
        self.register_buffer("table", torch.arange(2.0 * rows).view(rows, 2))

    def forward(self, x):
        bias = self.mlp(self.table).mean(0)
        return torch.tanh(x + bias[:, None, None])


class Counting(nn.Module):
    """A buffer updated in every forward pass, and a route that depends on a value."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.weight if x.sum().item() != 0 else x


def followed(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


class Part(nn.Module):
    """A convolution and a parameter, and what `use` makes of them and of the images."""

    def __init__(self, use):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor([[[0.5]], [[2.0]], [[1.5]]]))
        self.use = use

    def forward(self, x):
        return torch.tanh(self.use(self, x))


def without_gradients(part, x):
    with torch.no_grad():
        return x * part.conv(x)


def bright(part, x):
    """Of the bright images alone the convolution."""
    chosen = x.mean((1, 2, 3)) > 0.5
    y = x * part.scale
    if chosen.any():
        y[chosen] = part.conv(x[chosen])
    return y


def dim(part, x):
    """The scale of all images but the bright ones."""
    chosen = x.mean((1, 2, 3)) < 0.5
    y = x.clone()
    y[chosen] = x[chosen] * part.scale
    return y + part.conv(x)


def twice(part, x):
    """The convolution, again where the images are bright."""
    y = part.conv(x)
    return part.conv(y) if x.mean() > 0.2 else y


def slope(part, x):
    """A gradient that the network takes by itself."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = part.conv(x).square().sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0] * part.scale


class Folded(nn.Module):
    """Images as [n, 3, L] or [n, 3, H, W, 1] before a layer that takes no [n, C, H, W]."""

    def __init__(self, norm, shape):
        super().__init__()
        self.norm = norm
        self.shape = shape

    def forward(self, x):
        return self.norm(x.reshape(len(x), 3, *self.shape)).view(x.shape)


class Quarters(nn.Module):
    """A convolution that sees the quarters of an image as images (mvitv2's heads)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        parts = x.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5)
        parts = torch.tanh(self.conv(parts.flatten(0, 2)))
        return parts.unflatten(0, (len(x), 4)).mean(1)


NETS = {
    "quarters": lambda: followed(Quarters()),
    "two_names": TwoNames,
    "sequence_first": SequenceFirst,
    "caching": lambda: followed(Caching()),
    "in_place": lambda: followed(InPlace()),
    "opaque": lambda: followed(Opaque()),
    "table_of_one": lambda: followed(Table(1)),
    "table_of_two": lambda: followed(Table(2)),
    "counting": lambda: followed(Counting()),
    "batch_norm_1d": lambda: followed(Folded(nn.BatchNorm1d(3), (-1,)), nn.Tanh()),
    "batch_norm_3d": lambda: followed(Folded(nn.BatchNorm3d(3), (12, 12, 1)), nn.Tanh()),
    "conv_1d": lambda: followed(Folded(nn.Conv1d(3, 3, 3, padding=1), (-1,)), nn.Tanh()),
    "no_grad": lambda: followed(Part(lambda part, x: x * part.scale + without_gradients(part, x))),
    # a token in the place of pixels that noise does not have
    "holes": lambda: followed(Part(lambda part, x: torch.where(x == 0, part.scale, part.conv(x)))),
    "slope": lambda: followed(nn.Conv2d(3, 3, 1), Part(slope)),
    "spectral": lambda: followed(nn.Tanh(), parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))),
    "lstm": lambda: nn.Sequential(
        nn.Flatten(2), nn.LSTM(144, 4, batch_first=True), First(), nn.Flatten()
    ),
}


class First(nn.Module):
    def forward(self, outputs):
        return outputs[0]


@pytest.mark.parametrize("name", NETS)
def test_kernels_equal_the_explicit_jacobian_and_leave_the_model_alone(name):
    model = seeded(NETS[name])
    x = images(5)
    x[:, :, 3:5] = 0
    model.train(name == "spectral")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = kernel(model, x)
    model.load_state_dict(state)
    for batch_size in (64, 2, 1):
        assert close(ntk_gram(model, x, batch_size=batch_size, **LOGITS), expected, 1e-10)
    for one, several in ((x[:1], x), (x, x[:1])):
        cross = ntk_gram(model, one, several, **LOGITS)
        assert close(cross, expected[: len(one), : len(several)], 1e-10)
    y = torch.tensor([1.0, -1, -1, 1, 1], dtype=torch.float64)
    product = label_gradient_product(model, x, y > 0, **LOGITS)
    assert torch.isclose(product[0, 0], y @ expected @ y)
    random_projection(model, x, layers="all", outputs="logits", dimension=8)
    # torch.func follows no buffer that changes, no function of one's own, no gradient inside
    if name not in ("counting", "opaque", "slope"):
        linearize(model)(x, {next(iter(parameters)): next(iter(parameters.values())).detach() + 1})
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[key] is value for key, value in parameters.items()) and len(after) > 0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("use", [bright, dim, twice])
def test_ways_that_noise_does_not_go_are_refused(use):
    model = seeded(lambda: followed(Part(use)))
    x = images(5)
    assert close(ntk_gram(model, x, **LOGITS), kernel(model, x), 1e-10)
    x[1:3] += 1
    with pytest.raises(LinearizationError, match="^expected .*names? .*of others"):
        ntk_gram(model, x, **LOGITS)


def test_a_layer_of_a_made_weight_may_be_the_last():
    model = seeded(NETS["spectral"])
    assert tangent_kernel(model, images(3)).layers == ["1", "1.parametrizations.weight"]


def test_networks_never_see_a_lone_image():
    model = build("mzlib_resnet", torch.float32)
    x = images(5, torch.float32, size=32)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    several = ntk_gram(model, x, layers="all", outputs="logits")
    alone = ntk_gram(model, x, layers="all", outputs="logits", batch_size=1)
    assert close(alone, several.double(), 1e-5)
    assert close(
        ntk_gram(model, x[:1], layers="all", outputs="logits"), several[:1, :1].double(), 1e-5
    )
    label_gradient_product(model, x[:3], torch.arange(3), outputs="logits")
    assert min(seen) >= 2


def test_a_plan_costs_two_passes_of_two_images():
    model = build("mzlib_resnet", torch.float32)
    x = images(5, torch.float32, size=32)
    seen = []
    model.conv1.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    Tangents(model, x, "last", "features")
    assert seen == [2, 2]  # the choice of the layer; its closed form beside its true gradient
    seen.clear()
    assert tangent_kernel(model, x).probes == 1
    assert seen == [2, 2, 2, 5]  # and whether one probe is exact; the images


@pytest.mark.parametrize(
    "name, options",
    [
        (
            "swinv2_cr_tiny_ns_224",
            {"img_size": 64, "depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16},
        ),
        ("levit_128s", {"img_size": 64}),
        ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}),
        ("resnetv2_50x1_bit", {"layers": (1, 1), "channels": (128, 256), "stem_chs": 32}),
    ],
)
def test_networks_of_timm_that_were_wrong_or_refused(name, options):
    size = options.get("img_size", 32)
    if name == "resnetv2_50x1_bit":  # weight-standardised convolutions
        model = seeded(lambda: timm.models.resnetv2.ResNetV2(num_classes=2, **options))
    else:
        model = seeded(lambda: timm.create_model(name, num_classes=2, **options))
    x = images(3, size=size)
    for layers in ("last", "all"):
        found = ntk_gram(model, x, layers=layers, outputs="logits", probes="exact")
        names = None if layers == "all" else Tangents(model, x, layers, "logits").layers
        names = names and [f"{names[0]}.{kind}" for kind in ("weight", "bias")]
        assert close(found, kernel(model, x, names=names), 1e-9)


@pytest.mark.parametrize("name", ["coat_lite_tiny", "edgenext_xx_small"])
def test_a_sample_of_the_sweep(name):
    """What `benchmarks/linearization_sweep.py` writes: works, and equals explicit gradients."""
    found = {}
    for part in linearization_sweep.facts("timm", name, timed=False):
        found |= part
    assert found["works"], found["reason"]
    assert found["layer"] and found["error"] < 1e-9


def test_label_gradient_product_loses_no_digits_in_single_precision():
    model = build("mzlib_resnet")
    x = images(12, size=32)
    labels = torch.arange(12) % 3
    exact = label_gradient_product(model, x, labels)
    single = label_gradient_product(model.float(), x.float(), labels)
    assert single.dtype == torch.float64 and close(single, exact, 2e-5)


def test_half_precision_returns_single():
    model = build("mzlib_resnet", torch.float32)
    x = images(4, torch.float32, size=32)
    single = ntk_gram(model, x, layers="all")
    half = tangent_kernel(model.bfloat16(), x.bfloat16(), layers="all")
    assert half.gram.dtype == torch.float32 and half.image_by_image == 0
    assert close(ntk_gram(model, x.bfloat16(), layers="all"), single.double(), 0.2)
    overflowing = build("strides", torch.float16)
    nn.init.constant_(overflowing[0].weight, 1e3)
    with pytest.raises(LinearizationError, match="float16 overflows"):
        ntk_gram(overflowing, 1e3 * images(2, torch.float16).abs(), outputs="logits")


def test_models_and_images_in_other_states():
    model = build("mzlib_resnet", torch.float32)
    x = images(4, torch.float32, size=32)
    expected = ntk_gram(model, x).double()
    assert close(ntk_gram(torch.compile(model, backend="eager"), x), expected, 1e-6)
    assert close(ntk_gram(model, x.clone().requires_grad_()), expected, 1e-6)
    assert close(ntk_gram(model, x.to(memory_format=torch.channels_last)), expected, 1e-5)
    with torch.inference_mode():
        assert close(ntk_gram(model, x.clone()), expected, 1e-6)
        born_there = build("mzlib_resnet", torch.float32)
    assert close(ntk_gram(born_there, x), expected, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's, not the kernel's
        assert close(ntk_gram(model, x), expected, 1e-6)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    plain = ntk_gram(vit, x, probes=1)
    vit.set_grad_checkpointing()
    assert torch.equal(ntk_gram(vit, x, probes=1), plain) and vit.grad_checkpointing
    data_parallel = nn.DataParallel(model)  # which moves it where there is a GPU
    x = x.to(next(model.parameters()).device)
    assert close(
        ntk_gram(data_parallel, x, outputs="logits"),
        ntk_gram(model, x, outputs="logits").double(),
        1e-6,
    )


class Wrapped(nn.Module):
    def __init__(self, model, wrap):
        super().__init__()
        self.model = model
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.model(x))


def unfit_models():
    turning = Part(lambda part, x: torch.fft.ifft2(x * part.phase).real)
    turning.phase = nn.Parameter(torch.ones(3, 1, 1, dtype=torch.complex64))
    resnet = timm.create_model("mzlib_resnet", num_classes=2).eval()
    x = torch.randn(2, 3, 32, 32)
    no_statistics = followed(nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh())
    return {
        "tuple": (Wrapped(resnet, lambda y: (y, y)), "logits", "got tuple"),
        "dict": (Wrapped(resnet, lambda y: {"a": y}), "logits", "got dict"),
        "features_only": (timm.create_model("resnet18", features_only=True), "logits", "got list"),
        "no_pooling": (timm.create_model("mzlib_resnet", num_classes=0), "features", None),
        "no_pooling_vit": (
            timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, global_pool=""),
            "features",
            r"got \[2, 5, 192\]",
        ),
        "scripted": (torch.jit.script(nn.Linear(2, 2)), "logits", "scripted or traced"),
        "traced": (torch.jit.trace(resnet, x), "logits", "scripted or traced"),
        "exported": (torch.export.export(resnet, (x,)).module(), "logits", "exported"),
        "wrong_size": (timm.create_model("vit_tiny_patch16_224", depth=1), "features", "resize"),
        "wrong_channels": (nn.Conv2d(4, 2, 3), "logits", "resize"),
        "ends_in_convolution": (
            nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten()),
            "features",
            "^expected a model with forward_head",
        ),
        "complex": (nn.Sequential(turning, nn.Flatten()), "logits", "complex"),
        "mixing_images": (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 2), nn.Softmax(0)),
            "logits",
            "no other",
        ),
        "no_statistics": (no_statistics, "logits", "without statistics"),
    }


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_linearized_is_refused_in_one_line():
    for name, (model, outputs, message) in unfit_models().items():
        x = torch.randn(3, 3, 32, 32)
        if message is None:
            assert ntk_gram(model, x, outputs=outputs).shape == (3, 3)
            continue
        layers = "all" if name in ("complex", "mixing_images") else "last"
        with pytest.raises(LinearizationError, match=message) as caught:
            ntk_gram(model, x, outputs=outputs, layers=layers)
        assert "\n" not in str(caught.value), name
        if name == "mixing_images":  # while the error is held
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name, head", [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_features_of_models_without_timms_methods(name, head):
    """What the last linear layer takes (torchvision); the logits of an output (Hugging Face)."""
    model = seeded(lambda: getattr(torchvision.models, name)())
    x = images(3, size=32)
    features = ntk_gram(model, x, probes=2)
    wrapped = Wrapped(model, lambda y: types.SimpleNamespace(logits=y))
    assert torch.equal(ntk_gram(wrapped, x, probes=2), features)
    parent, _, last = head.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    assert close(ntk_gram(model, x, outputs="logits", probes=2), features, 1e-10)


class Gate(nn.Module):
    """conv2 beside a projection that is called after it, then a gate of hardly any weight."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.projection = nn.Conv2d(3, 8, 1)
        self.gate = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        nn.init.constant_(self.gate.bias, 8.0)

    def forward(self, x):
        y = self.conv2(torch.tanh(self.conv1(x))) + self.projection(x)
        self.unused(y.mean((2, 3)))
        return y.mean((2, 3)) * self.gate(y.mean((2, 3))).sigmoid()


def test_the_last_layer_is_on_the_main_path():
    def last(model, outputs="features", size=32):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 3, size, size, generator=generator)
        name, _ = last_layer(Output(model, outputs), noise, generator)
        return name

    assert last(seeded(Gate).float(), "logits") == "conv2"
    # whatever a block is called: here "downsample" is the main path
    chain = nn.Sequential()
    chain.stem = nn.Conv2d(3, 4, 3)
    chain.downsample = nn.Conv2d(4, 4, 3)
    chain.pool = nn.AdaptiveAvgPool2d(1)
    chain.flat = nn.Flatten()
    chain.fc = nn.Linear(4, 3)
    assert last(chain, "logits") == "downsample"
    assert last(build("mzlib_resnet").float()) == "layer4.0.conv2"
    assert last(build("mzlib_densenet").float()) == "features.denseblock4.denselayer8.conv2"
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    assert last(vit) == "blocks.1.mlp.fc2"
    # nothing on the main path but the classifier
    assert last(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), "logits") == "1"


def test_one_probe_where_it_is_exact_and_enough_where_not():
    x = images(12, size=32)
    labels = torch.arange(12) % 3
    model = build("mzlib_resnet")
    found = tangent_kernel(model, x, labels)
    assert (found.probes, found.standard_error, found.layers) == (1, 0, ["layer4.0.conv2"])
    assert found.image_by_image == 0
    assert close(found.gram, ntk_gram(model, x), 1e-12)

    mixing = seeded(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2))
    found = tangent_kernel(mixing, x, labels, standard_error=0.003)
    assert found.standard_error <= 0.003 and 8 <= found.probes <= 32
    assert close(found.gram, ntk_gram(mixing, x, probes=found.probes), 0.1)
    assert tangent_kernel(mixing, x).probes == 8
    # the jackknife says how far seeds are apart
    few = [tangent_kernel(mixing, x, labels, standard_error=1, seed=s) for s in range(12)]
    scores = torch.tensor([lgc(f.gram, labels) for f in few])
    stated = sum(f.standard_error for f in few) / len(few)
    assert 0.5 < scores.std() / stated < 2


def test_standard_error_of_equal_and_of_two_kernels():
    labels = torch.tensor([0, 0, 1])
    gram = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])
    assert lgc_standard_error(gram.expand(4, 3, 3), labels) < 1e-12
    other = torch.eye(3)
    # of two, the jackknife's is half the distance of their scores
    expected = abs(lgc(gram, labels) - lgc(other, labels)) / 2
    assert lgc_standard_error(torch.stack([gram, other]), labels) == pytest.approx(expected)
