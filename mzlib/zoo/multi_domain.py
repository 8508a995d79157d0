"""One expert for all sources (Deshpande et al. 2021, Sec. 4.1): shared weights w_s and parameters
w_d of each domain.

- `shared`: nothing but the classifier belongs to a domain;
- `multi_bn`: batch-norm statistics, scale and bias of each domain;
- `adapter`: as multi_bn, and a parallel 1 x 1 convolution beside every 3 x 3 one (Rebuffi et al.
  2018, "Efficient parametrization of multi-domain deep neural networks"), starting at zero.

Any domain can be taken out as an ordinary network of the architecture: batch norms are picked, and
a parallel adapter is the centre tap of the convolution beside it, so it is added there: the same
function, no new layer type.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from mzlib.errors import MzlibError
from mzlib.zoo.architectures import create

VARIANTS = ("shared", "multi_bn", "adapter")


class PerDomain(nn.Module):
    """One module for every domain, of which the active one is applied."""

    def __init__(self, modules: dict[str, nn.Module]):
        super().__init__()
        self.of = nn.ModuleDict(modules)
        self.active = next(iter(modules))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The active one's."""
        return self.of[self.active](x)


class Adapted(nn.Module):
    """A convolution with a parallel 1 x 1 adapter of the same stride for every domain."""

    def __init__(self, conv: nn.Conv2d, domains: Iterable[str]):
        super().__init__()
        self.conv = conv
        self.adapter = PerDomain(
            {d: nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False) for d in domains}
        )
        for adapter in self.adapter.of.values():
            nn.init.zeros_(adapter.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Strides are taken before the adapter.

        torch 2.15 (oneDNN, AVX2, channels last) writes out of bounds in the gradient of a strided
        1 x 1 convolution.
        """
        down, across = self.conv.stride
        return self.conv(x) + self.adapter(x[:, :, ::down, ::across])


class MultiDomainNet(nn.Module):
    """`net(images [B, 3, H, W], domain) -> logits [B, classes of that domain]`.

    class_counts: number of classes of each domain; domain names must not contain a dot.
    """

    def __init__(
        self, architecture: str, class_counts: dict[str, int], variant: str, image_size: int
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise MzlibError(f"expected a variant of {VARIANTS}, got {variant!r}")
        self.backbone = create(architecture, 0, image_size)
        self.heads = nn.ModuleDict(
            {d: nn.Linear(self.backbone.head_hidden_size, k) for d, k in class_counts.items()}
        )
        if variant == "shared":
            return
        for name, module in list(self.backbone.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                own = PerDomain({d: copy.deepcopy(module) for d in class_counts})
                self.backbone.set_submodule(name, own)
            elif variant == "adapter" and getattr(module, "kernel_size", 0) == (3, 3):
                self.backbone.set_submodule(name, Adapted(module, class_counts))

    def forward(self, x: torch.Tensor, domain: str) -> torch.Tensor:
        """Logits [B, classes of the domain]."""
        for module in self.modules():
            if isinstance(module, PerDomain):
                module.active = domain
        return self.heads[domain](self.backbone(x))

    def single(self, domain: str) -> nn.Module:
        """A copy as the ordinary network that this one is on `domain`, classifier included."""
        net = copy.deepcopy(self.backbone)
        for name, module in list(net.named_modules()):
            if isinstance(module, Adapted):
                with torch.no_grad():
                    module.conv.weight[:, :, 1:2, 1:2] += module.adapter.of[domain].weight
                net.set_submodule(name, module.conv)
            elif isinstance(module, PerDomain) and not name.endswith(".adapter"):
                net.set_submodule(name, module.of[domain])
        net.reset_classifier(self.heads[domain].out_features)
        net.get_classifier().load_state_dict(self.heads[domain].state_dict())
        return net
