"""A device that is not there: tensors whose memory the CPU cannot see.

`Away` says that it is elsewhere ("meta", a name that needs no driver), keeps its numbers in a tensor
of the CPU, and refuses what a GPU refuses: an operation on tensors of two devices, and to become an
array of numpy unless it is copied to the CPU first, in so many words.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

AWAY = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Away(torch.Tensor):
    """A tensor on the other device: where it is computed, `here` holds its values."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=AWAY
        )

    def __init__(self, here):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        """A copy in so many words, as on any device."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """Makes what is asked for on the other device an `Away`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    here = [t for t in tensors if not isinstance(t, Away) and t.ndim > 0]
    if away and here and func not in COPIES:
        raise RuntimeError(f"expected all tensors on the same device in {func}")
    device = kwargs.get("device")
    goes_away = bool(away) if device is None else torch.device(device) == AWAY
    plain = tree_map(lambda t: t.here if isinstance(t, Away) else t, (args, kwargs))
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
    result = func(*plain[0], **plain[1])
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if goes_away:
        result = tree_map(lambda t: Away(t) if isinstance(t, torch.Tensor) else t, result)
    if not away:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)
