"""The zoo: experts, their architectures, folders of experts, and experts from elsewhere."""

from mzlib.zoo.expert import (
    Expert,
    class_statistics,
    load_expert,
    read_expert,
    save_expert,
    to_fp16,
)
from mzlib.zoo.heads import features, heads, outputs, with_fresh_head
from mzlib.zoo.multi_domain import VARIANTS, MultiDomainNet

__all__ = [
    "VARIANTS",
    "Expert",
    "MultiDomainNet",
    "class_statistics",
    "features",
    "heads",
    "load_expert",
    "outputs",
    "read_expert",
    "save_expert",
    "to_fp16",
    "with_fresh_head",
]
