"""The linearized model and its kernel: tangent kernels, label products, fine-tuning.

Deshpande et al. 2021, arXiv:2102.00084, Sec. 3.1-3.2. `mzlib.selectors` turns kernels into scores
(LGC, eq. 8).
"""

from .dynamics import Dynamics, finetune_linearized, linearize
from .gram import Kernel, label_gradient_product, ntk_gram, random_projection, tangent_kernel
from .model import LinearizationError

__all__ = [
    "Dynamics",
    "Kernel",
    "LinearizationError",
    "finetune_linearized",
    "label_gradient_product",
    "linearize",
    "ntk_gram",
    "random_projection",
    "tangent_kernel",
]
