"""Evidence: what one expert says about one sample of a target task, computed lazily and once.

One forward pass gives features and source probabilities together, in float32; gradient kernels are
computed only when a selector asks. What an expert cannot provide raises `Missing` with the reason.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mzlib.dataset import Subset, subset  # noqa: F401  (where other modules still look for them)
from mzlib.errors import Missing
from mzlib.linearization import Kernel, LinearizationError, ntk_gram, tangent_kernel
from mzlib.provenance import written
from mzlib.training import MEAN, STD, normalize, predicted
from mzlib.zoo import Expert, features, heads, outputs

VERSION = 2  # of what is kept: raise it when features or kernels are computed differently
PREPROCESSING = ("image_size", "mean", "std", "input")  # of an expert's card


def prepared(expert: Expert, images: Tensor) -> Tensor:
    """Uint8 [B, H, W, 3] -> float32 [B, 3, S, S] as the expert was trained to see them.

    By its card's size, mean and std.
    """
    return _resized(expert, normalize(images, **normalization(expert)))


def normalization(expert: Expert) -> dict:
    """Mean and deviation of the expert's input."""
    card = expert.card
    return {"mean": card.get("mean", MEAN), "std": card.get("std", STD)}


def _resized(expert: Expert, x: Tensor) -> Tensor:
    """Float [B, 3, H, W] at the size of an expert from outside; the zoo's see every size."""
    size = expert.card["image_size"]
    if x.shape[-1] == size or "mean" not in expert.card:
        return x
    return resized(x, size)


def resized(x: Tensor, size: int) -> Tensor:
    """Float [B, 3, H, W] -> [B, 3, size, size]."""
    return torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)


def batch_size(images: Tensor | np.ndarray, device: torch.device) -> int:
    """Images [N, H, W, 3] that go through a network at once: 256, on a CPU fewer of more than
    64 x 64 pixels.
    """
    if device.type == "cuda":
        return 256
    pixels = images.shape[1] * images.shape[2]
    return min(256, max(16, 2**20 // pixels))


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all that the function which a model computes depends on.

    Parameters and buffers by value, the modules by their printed form, and their attributes that
    are numbers, texts, functions or tuples of these (a pooling's name, a scale).
    """
    digest = hashlib.sha256(str(model).encode())
    for name, module in model.named_modules():
        attributes = {}
        for key, value in vars(module).items():
            if callable(value) and hasattr(value, "__qualname__"):
                attributes[key] = value.__qualname__
            elif _is_plain(value) and key != "training":
                attributes[key] = value
        digest.update(f"{name} {sorted(attributes.items(), key=lambda item: item[0])}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        content = flat.view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


class Evidence:
    """What selectors may ask of (expert, sample).

    Attributes are named in `mzlib.selectors.SELECTORS[id].needs`.

    images: uint8 [N, H, W, 3]; labels: int [N]; targets: as of `LabelledImages`. reference: returns
    the reference net (`reference_net`), called only when a selector compares with it; None when
    there is none. seed: for selectors that draw. asked: attributes that will be asked for:
    features and kernels among them come from one forward pass. cache: folder in which what the
    expert computes is kept, by content: a file `<digest of expert, images and
    preprocessing>-<what>.safetensors`, with the digested facts as JSON in its header.
    """

    def __init__(
        self,
        expert: Expert,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        targets: np.ndarray | None = None,
        is_generic: bool = False,
        reference: Callable[[], torch.nn.Module] | None = None,
        seed: int = 0,
        device: torch.device = torch.device("cpu"),
        cache: Path | None = None,
        asked: Collection[str] = (),
    ):
        self.expert = expert
        self.is_generic = is_generic
        self.seed = seed
        self.device = device
        self._reference = reference
        self._cache = cache
        self._shares_pass = {"features", "last_conv_kernel"} <= set(asked)
        self._shares_all = "full_kernel" in asked
        self._found: Kernel | Exception | None = None  # beside the features
        self._full: Tensor | None = None  # likewise
        writeable = np.require(images, requirements=["C", "W"])  # a memory map stays one
        self.images = torch.from_numpy(writeable)
        self.labels = torch.tensor(labels, device=device)
        self.targets = None if targets is None else torch.tensor(targets, device=device)
        self.model = expert.model.to(device)

    @cached_property
    def _facts(self) -> str:
        """Everything that features and kernels depend on, as JSON."""
        images = hashlib.sha256(self.images.numpy())
        images.update(str(tuple(self.images.shape)).encode())
        card = self.expert.card
        preprocessing = {key: card.get(key) for key in PREPROCESSING}
        facts = {
            "version": VERSION,
            "model": fingerprint(self.model),
            "images": images.hexdigest(),
            "preprocessing": preprocessing,
        }
        return json.dumps(facts, sort_keys=True)

    def _kept(self, what: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """`compute()`, or what an earlier call with the same expert and images has left."""
        if self._cache is None:
            return compute()
        digest = hashlib.sha256(self._facts.encode())
        stem = digest.hexdigest()[:24]
        path = self._cache / f"{stem}-{what}.safetensors"
        kept = self._read(path)
        if kept is None:
            kept = {name: tensor.contiguous() for name, tensor in compute().items()}
            with suppress(Exception), written(path) as temporary:  # no space, no permission
                save_file(kept, temporary, {"facts": self._facts})
        return kept

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        """The tensors of a file that says it holds what is asked for; None of any other."""
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                if (file.metadata() or {}).get("facts") != self._facts:
                    return None
                kept = {name: file.get_tensor(name) for name in file.keys()}
        except Exception:  # not there, damaged, another's: safetensors' errors are of many kinds
            return None
        with suppress(OSError):  # a cache of someone else
            os.utime(path)  # what was used last is kept longest
        return kept

    @cached_property
    def _outputs(self) -> dict[str, Tensor]:
        """Penultimate features [N, D] and classifier logits [N, S] of one forward pass, and the
        seconds that it took.
        """

        def compute() -> dict[str, Tensor]:
            start = time.perf_counter()
            found = self._beside_kernel() or self._forward()
            if self.device.type == "cuda":  # which computes while Python goes on
                torch.cuda.synchronize(self.device)
            seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            return {**found, "seconds": seconds}

        return self._kept("outputs", compute)

    def _beside_kernel(self) -> dict[str, Tensor]:
        """Features and logits of the pass for the kernels; none where that fails."""
        if not self._shares_pass:
            return {}
        try:
            found = tangent_kernel(
                self.model,
                self._prepared(),
                self.labels,
                layers="last",
                with_outputs=True,
                with_all_layers=self._shares_all,
            )
        except Exception as error:  # noqa: BLE001  raised when the kernel is asked for
            if not self._shares_all:  # which may be what fails: the last layer's is tried alone
                self._found = error.with_traceback(None)  # which would hold the pass's tensors
            return {}
        self._found = found
        self._full = found.all_layers
        if found.features is None:
            return {}
        return {"features": found.features.float(), "logits": found.logits.float()}

    def _forward(self) -> dict[str, Tensor]:
        def forward(x: Tensor) -> Tensor:
            found = outputs(self.model, _resized(self.expert, x))
            widths.append(found[0].shape[1])
            return torch.cat(found, 1)

        widths: list[int] = []
        batches = self._predicted(forward, **normalization(self.expert))
        rows = torch.cat(list(batches))
        width = widths[0]
        features = rows[:, :width]
        logits = rows[:, width:]
        return {"features": features.contiguous(), "logits": logits.contiguous()}

    def _predicted(self, function: Callable, **normalization):
        size = batch_size(self.images, self.device)
        images = self.images.numpy()
        return predicted(function, images, self.device, size, **normalization, exact=True)

    @property
    def seconds(self) -> float:
        """What the forward pass took, when it was made; with the kernels, if they shared it."""
        return float(self._outputs["seconds"])

    @property
    def features(self) -> Tensor:
        """Penultimate features, float32 [N, D]."""
        return self._outputs["features"]

    @cached_property
    def source_probabilities(self) -> Tensor:
        """Softmax of the expert's own classifier, float32 [N, S]."""
        if not heads(self.model):
            raise Missing(f"{self.expert.name} has no source classifier")
        return self._outputs["logits"].softmax(1)

    @cached_property
    def _last(self) -> dict[str, Tensor]:
        """The kernel of the last layer, the standard error of LGC from its probes, and the layer's
        name in bytes.
        """

        def compute() -> dict[str, Tensor]:
            found = self._found
            if isinstance(found, Exception):
                raise found
            self._found = None
            if found is None:
                found = tangent_kernel(self.model, self._prepared(), self.labels, layers="last")
            layer = ", ".join(found.layers).encode()
            return {
                "kernel": found.gram,
                "standard_error": torch.tensor(found.standard_error, dtype=torch.float64),
                "layer": torch.tensor(list(layer), dtype=torch.uint8),
            }

        if self._shares_pass:
            self._outputs  # noqa: B018  first: they are made together
        labels = self.labels.cpu().numpy()
        digest = hashlib.sha256(labels.tobytes())
        return self._kernel(digest.hexdigest()[:8], compute)

    def _prepared(self) -> Tensor:
        """All images at once, float32 [N, 3, S, S]."""
        return prepared(self.expert, self.images.to(self.device))

    def _kernel(self, what: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` finds, or why there is no kernel."""
        try:
            return self._kept(f"kernel-{what}", compute)
        except LinearizationError as error:  # a layer that is not covered
            raise Missing(str(error)) from error

    @property
    def last_conv_kernel(self) -> Tensor:
        """Gram matrix of the gradients of the last layer, float32 [N, N] (paper eq. 2, Sec. 3.3).

        The last convolution, or linear layer, on the main path to the features.
        """
        return self._last["kernel"]

    @property
    def last_layer(self) -> str:
        """The name of the layer of `last_conv_kernel`."""
        return bytes(self._last["layer"].tolist()).decode()

    @property
    def last_conv_kernel_error(self) -> float:
        """Standard error of LGC from the random cotangents of `last_conv_kernel`, or 0."""
        return float(self._last["standard_error"])

    @cached_property
    def full_kernel(self) -> Tensor:
        """Of the gradients of all the backbone's parameters, from one probe, float32 [N, N]."""

        def compute() -> dict[str, Tensor]:
            found = self._full
            self._full = None
            if found is None:
                found = ntk_gram(self.model, self._prepared(), layers="all", probes=1)
            return {"kernel": found}

        if self._shares_pass and self._shares_all:
            self._outputs  # noqa: B018  first: they are made together
        return self._kernel("all", compute)["kernel"]

    @cached_property
    def reference_features(self) -> Tensor:
        """Penultimate features of a small net trained on the task from scratch, float32 [N, 192].

        For RSA (paper eq. 10).
        """
        if self._reference is None:
            raise Missing("no reference net: it needs the task's training images")
        net = self._reference().to(self.device)
        seen = getattr(net, "seen", None)  # by the net last: one pass serves all experts
        if seen is None or not torch.equal(seen[0], self.images):
            batches = self._predicted(lambda x: features(net, x))
            net.seen = seen = self.images, torch.cat(list(batches))
        return seen[1]

    @property
    def source_class_means(self) -> Tensor:
        """Mean feature of every class of the source training set, float32 [S, D]."""
        if self.expert.class_means is None:
            raise Missing(f"{self.expert.name} carries no source statistics")
        return self.expert.class_means.to(self.device)

    @property
    def source_class_counts(self) -> Tensor:
        """Images in every class of the source training set, int64 [S]."""
        if self.expert.class_counts is None:
            raise Missing(f"{self.expert.name} carries no source statistics")
        return self.expert.class_counts.to(self.device)

    @property
    def weight_matrices(self) -> list[Tensor]:
        """Of every linear layer [out, in] and convolution [out, in, h, w], the head too."""
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        return [m.weight.detach() for m in self.model.modules() if isinstance(m, kinds)]

    @property
    def source_accuracy(self) -> float:
        """On the source's test images, a fraction."""
        if self.expert.card["accuracy"] is None:
            raise Missing(f"the source accuracy of {self.expert.name} is not known")
        return self.expert.card["accuracy"]

    @property
    def digest(self) -> str:
        """What identifies the expert: of its weights."""
        return self.expert.digest

    @property
    def parameter_count(self) -> int:
        """Of the backbone, without the source classifier."""
        return self.expert.parameter_count
