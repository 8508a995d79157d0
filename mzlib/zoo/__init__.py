"""The zoo: experts, their architectures, multi-domain experts, and experts of timm and torchvision."""

from mzlib.zoo.expert import (
    Expert,
    class_statistics,
    features,
    half,
    load_expert,
    read_expert,
    save_expert,
    with_fresh_head,
)
from mzlib.zoo.multi_domain import VARIANTS, MultiDomainNet

__all__ = [
    "VARIANTS",
    "Expert",
    "MultiDomainNet",
    "class_statistics",
    "features",
    "half",
    "load_expert",
    "read_expert",
    "save_expert",
    "with_fresh_head",
]
