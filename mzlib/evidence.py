"""Evidence: what one expert says about one sample of a target task, computed lazily and once.

One forward pass gives features and source probabilities together, in float32; gradient kernels are computed only when a
selector asks. What an expert cannot provide raises `Missing` with the reason.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mzlib.dataset import Subset, subset  # noqa: F401  (where other modules still look for them)
from mzlib.errors import Missing
from mzlib.linearization import LinearizationError, ntk_gram, tangent_kernel
from mzlib.training import in_batches, normalize
from mzlib.zoo import Expert, features


def prepared(expert: Expert, images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, S, S] as the expert was trained to see them (its card's size, mean, std)."""
    size = expert.card["image_size"]
    x = normalize(images, *(expert.card[k] for k in ("mean", "std") if k in expert.card))
    if (
        x.shape[-1] != size and "mean" in expert.card
    ):  # experts from outside; the zoo's see every size as it comes
        x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)
    return x


def batch_size(images: torch.Tensor | np.ndarray, device: torch.device) -> int:
    """Images [N, H, W, 3] that go through a network at once: 256, on a CPU fewer of more than 64 x 64 pixels."""
    return (
        256
        if device.type == "cuda"
        else min(256, max(16, 2**20 // (images.shape[1] * images.shape[2])))
    )


class Evidence:
    """What selectors may ask of (expert, sample); attributes are named in `mzlib.selectors.SELECTORS[id].needs`.

    images: uint8 [N, H, W, 3]; labels: int [N]; reference: returns the reference net (`reference_net`), called only when a
    selector compares with it; None when there is none. seed: for selectors that draw. cache: folder in which what the
    expert computes is kept, by content: a file `<digest of expert, images and preprocessing>-<what>.safetensors`, with
    the digested facts as JSON in its header.
    """

    def __init__(
        self,
        expert: Expert,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        is_generic: bool = False,
        reference: Callable[[], torch.nn.Module] | None = None,
        seed: int = 0,
        device: torch.device = torch.device("cpu"),
        cache: Path | None = None,
    ):
        self.expert, self.is_generic, self.seed, self.device = expert, is_generic, seed, device
        self._reference, self._cache = reference, cache
        self.images = torch.from_numpy(
            np.require(images, requirements=["C", "W"])
        )  # a memory map stays one
        self.labels = torch.tensor(labels, device=device)
        self.model = expert.model.to(device)

    @cached_property
    def _facts(self) -> str:
        """Everything that features and kernels depend on, as JSON."""
        images = hashlib.sha256(self.images.numpy())
        images.update(str(tuple(self.images.shape)).encode())
        preprocessing = {key: self.expert.card.get(key) for key in ("image_size", "mean", "std")}
        return json.dumps(
            {
                "expert": self.expert.digest,
                "images": images.hexdigest(),
                "preprocessing": preprocessing,
            }
        )

    def _kept(
        self, what: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """`compute()`, or what an earlier call with the same expert and images has left in the cache."""
        if self._cache is None or not self.expert.digest:
            return compute()
        path = (
            self._cache
            / f"{hashlib.sha256(self._facts.encode()).hexdigest()[:24]}-{what}.safetensors"
        )
        try:
            return load_file(path, device=str(self.device))
        except (FileNotFoundError, SafetensorError):  # not there, or damaged: compute it again
            tensors = {name: t.contiguous() for name, t in compute().items()}
        self._cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, temporary, {"facts": self._facts})
        os.replace(temporary, path)
        return tensors

    @cached_property
    def _outputs(self) -> dict[str, torch.Tensor]:
        """Penultimate features [N, D] and classifier logits [N, S], from one forward pass, and the seconds that it took."""
        return self._kept("outputs", self._forward)

    @torch.inference_mode()
    def _forward(self) -> dict[str, torch.Tensor]:
        def forward(images):
            f = features(self.model, prepared(self.expert, images.to(self.device)))
            return f, classifier(f)

        classifier, start = self.model.get_classifier(), time.perf_counter()
        pairs = in_batches(forward, self.images, batch_size(self.images, self.device))
        outputs = {
            name: torch.cat(column) for name, column in zip(("features", "logits"), zip(*pairs))
        }
        return outputs | {"seconds": torch.tensor(time.perf_counter() - start, dtype=torch.float64)}

    @property
    def seconds(self) -> float:
        """What the forward pass took, when it was made."""
        return float(self._outputs["seconds"])

    @property
    def features(self) -> torch.Tensor:
        """Penultimate features, float32 [N, D]."""
        return self._outputs["features"]

    @cached_property
    def source_probabilities(self) -> torch.Tensor:
        """Softmax of the expert's own classifier, float32 [N, S]."""
        if isinstance(self.model.get_classifier(), torch.nn.Identity):
            raise Missing(f"{self.expert.name} has no source classifier")
        return self._outputs["logits"].softmax(1)

    @cached_property
    def _last(self) -> dict[str, torch.Tensor]:
        """The kernel of the last layer, the standard error of LGC from its probes, and the layer's name in bytes."""
        x = prepared(self.expert, self.images.to(self.device))
        labels = hashlib.sha256(self.labels.cpu().numpy().tobytes()).hexdigest()[:8]

        def compute() -> dict[str, torch.Tensor]:
            found = tangent_kernel(self.model, x, self.labels, layers="last")
            return {
                "kernel": found.gram,
                "standard_error": torch.tensor(found.standard_error, dtype=torch.float64),
                "layer": torch.tensor(list(", ".join(found.layers).encode()), dtype=torch.uint8),
            }

        try:
            return self._kept(f"kernel-last-{labels}", compute)
        except LinearizationError as error:
            raise Missing(str(error)) from error

    @property
    def last_conv_kernel(self) -> torch.Tensor:
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
        """Standard error of LGC from the random cotangents of `last_conv_kernel`; 0 where one is exact."""
        return float(self._last["standard_error"])

    @cached_property
    def full_kernel(self) -> torch.Tensor:
        """Gram matrix of the gradients of all parameters of the backbone, from one probe, float32 [N, N]."""
        x = prepared(self.expert, self.images.to(self.device))
        try:
            kept = self._kept(
                "kernel-all", lambda: {"kernel": ntk_gram(self.model, x, layers="all", probes=1)}
            )
        except LinearizationError as error:  # a layer that is not covered
            raise Missing(str(error)) from error
        return kept["kernel"]

    @cached_property
    def reference_features(self) -> torch.Tensor:
        """Penultimate features of a small net trained on the task from scratch, float32 [N, 192] (RSA, paper eq. 10)."""
        if self._reference is None:
            raise Missing("no reference net: it needs the task's training images")
        net = self._reference().to(self.device)
        with torch.inference_mode():
            return torch.cat(
                list(
                    in_batches(
                        lambda b: features(net, normalize(b.to(self.device))), self.images, 256
                    )
                )
            )

    @property
    def source_class_means(self) -> torch.Tensor:
        """Mean feature of every class of the source training set, float32 [S, D]."""
        if self.expert.class_means is None:
            raise Missing(f"{self.expert.name} carries no source statistics")
        return self.expert.class_means.to(self.device)

    @property
    def source_class_counts(self) -> torch.Tensor:
        """Images in every class of the source training set, int64 [S]."""
        if self.expert.class_counts is None:
            raise Missing(f"{self.expert.name} carries no source statistics")
        return self.expert.class_counts.to(self.device)

    @property
    def weight_matrices(self) -> list[torch.Tensor]:
        """Weights of every linear layer [out, in] and convolution [out, in, h, w], its classifier's among them."""
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        return [m.weight.detach() for m in self.model.modules() if isinstance(m, kinds)]

    @property
    def source_accuracy(self) -> float:
        if self.expert.card["accuracy"] is None:
            raise Missing(f"the source accuracy of {self.expert.name} is not known")
        return self.expert.card["accuracy"]

    @property
    def digest(self) -> str:
        """What identifies the expert: of its weights."""
        return self.expert.digest

    @property
    def parameter_count(self) -> int:
        return self.expert.parameter_count
