"""The linearized model: its outputs, its fine-tuning, its training dynamics in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .model import LinearizationError, Output, evaluating


def linearize(
    model: nn.Module, outputs: str = "logits"
) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """First-order expansion of the model at its present weights w₀.

    Deshpande et al. 2021, arXiv:2102.00084, Sec. 3.1:
    f_lin(x; w) = f(x; w₀) + ∇f(x; w₀)·(w − w₀), in eval mode. Returns f_lin(images [N, 3, H, W],
    parameters) -> [N, K] (`outputs="logits"`) or [N, D] ("features"); `parameters` maps names of
    `model.named_parameters()` to tensors w, those left out stay at w₀. Differentiable in
    `parameters`. w₀ is copied (one model's memory).

    Cost of a call: about two forward passes, by one forward-mode derivative. Raises
    `LinearizationError` for an unknown name or output; NotImplementedError by torch for a layer
    without a forward-mode derivative.
    """
    net = Output(model, outputs)
    state = {
        name: t.detach().clone() for name, t in [*net.named_parameters(), *net.named_buffers()]
    }

    def f_lin(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        unknown = [name for name in parameters if f"model.{name}" not in state]
        if unknown:
            raise LinearizationError(
                f"expected names of model.named_parameters(), got {unknown[:4]}"
            )
        moved = {f"model.{name}": w - state[f"model.{name}"] for name, w in parameters.items()}
        at = {name: state[name] for name in moved}
        # the fused attention kernels have no forward-mode derivative
        with evaluating(model), sdpa_kernel(SDPBackend.MATH):
            if not moved:
                return functional_call(net, state, (images,))
            value, change = jvp(
                lambda w: functional_call(net, {**state, **w}, (images,)), (at,), (moved,)
            )
        return value + change

    return f_lin


def finetune_linearized(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    steps: int,
    loss: str = "squared",
    batch_size: int | None = None,
    momentum: float = 0.0,
    outputs: str = "logits",
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient descent on f_lin: the convex problem whose solution Sec. 3.1 and eq. 1 describe.

    `loss="squared"`: ½‖Y − f‖² summed over the outputs and averaged over the batch, targets [N, K]
    float; on the whole set (`batch_size=None`) one step advances eq. 1 by t = 1 at rate η =
    learning_rate/N. "cross_entropy": targets int64 [N]. `seed` draws the batches. Returns the
    weights w by name (a dict for `linearize`) and the loss of each step's batch before the step
    [steps]. The model itself is left as it is.

    Cost of a step: about three forward + backward passes over the batch, memory of about three
    models.
    """
    losses = {
        "squared": lambda f, y: (f - y).square().sum() / (2 * len(f)),
        "cross_entropy": F.cross_entropy,
    }
    if loss not in losses:
        raise LinearizationError(f"expected loss in {sorted(losses)}, got {loss!r}")
    f_lin = linearize(model, outputs)
    w = {
        name: p.detach().clone().requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    if not w:
        raise LinearizationError("expected a model with gradient-requiring parameters, got none")
    optimizer = torch.optim.SGD(w.values(), lr=learning_rate, momentum=momentum)
    generator = torch.Generator().manual_seed(seed)
    size = batch_size or len(images)
    order = torch.empty(0, dtype=torch.long)
    history = []
    for _ in range(steps):
        batch = slice(None)
        if size < len(images):
            if len(order) < size:  # the next epoch
                order = torch.randperm(len(images), generator=generator)
            batch = order[:size]
            order = order[size:]
        value = losses[loss](f_lin(images[batch], w), targets[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.detach())
    return {name: p.detach() for name, p in w.items()}, torch.stack(history)


@dataclass(frozen=True)
class Dynamics:
    """Gradient flow on the linearized model in closed form, from Θ, Y and f₀.

    Θ [N, N]; Y and f₀ both [N] or [N, K], f₀ = 0 by default.
    Proposition 1 of Deshpande et al. 2021 (arXiv:2102.00084): with L = ‖Y − f‖² and ẇ = −η ∇fᵀ(f −
    Y), the residual is δY_t = e^{−ηΘt} δY. Several outputs share one Θ, so sums over K run over
    outputs. One eigendecomposition, O(N³), in float64; η·t has the unit of 1/Θ. `ridge` is added to
    every eigenvalue (0: the paper's formulas). Raises `LinearizationError` for shapes that do not
    fit or a Θ that is not finite, symmetric and positive.
    """

    gram: Tensor
    targets: Tensor
    initial: Tensor | None = None
    ridge: float = 0.0

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues [N], eigenvectors [N, N], and δY in their basis [N, K]."""
        n = len(self.targets)
        gram = self.gram.double()
        y = self.targets.to(gram)
        if gram.shape != (n, n) or (self.initial is not None and self.initial.shape != y.shape):
            raise LinearizationError(
                f"expected gram [N, N] and initial like targets, got {list(gram.shape)} and "
                f"targets {list(y.shape)}"
            )
        scale = gram.abs().max()
        if not torch.isfinite(scale) or (gram - gram.T).abs().max() > 1e-4 * scale:
            raise LinearizationError(
                "expected a finite symmetric kernel, got another: do ntk_gram(model, images)"
            )
        values, vectors = torch.linalg.eigh(gram)
        if values[0] < -1e-4 * scale:
            raise LinearizationError(
                f"expected a positive semi-definite kernel, got the eigenvalue {values[0]:.3g}"
            )
        residual = y if self.initial is None else y - self.initial.to(gram)
        turned = vectors.T @ residual.view(n, -1)
        return values.clamp(min=0) + self.ridge, vectors, turned

    def losses(self, times: Tensor, rate: float = 1.0) -> Tensor:
        """Eq. 1, L_t = δYᵀ e^{−2ηΘt} δY at `times` [T] -> [T]."""
        values, _, residual = self._parts
        decay = -2 * rate * times.to(values)
        shares = torch.exp(decay[:, None] * values)
        return shares @ residual.square().sum(1)

    def slope(self, rate: float = 1.0) -> float:
        """Eq. 3: dL/dt at t = 0, −2η δYᵀ Θ δY (the paper absorbs 2η in t)."""
        values, _, residual = self._parts
        power = residual.square().sum(1)
        return float(-2 * rate * (values @ power))

    def generalization(self) -> float:
        """Eq. 4: YᵀΘ⁻¹Y/n = (1/n) Σ_k (Y·v_k)²/λ_k, small is good; inf where Y meets a λ of 0."""
        values, vectors, _ = self._parts
        coordinates = vectors.T @ self.targets.to(values).view(len(values), -1)
        return float(_over(coordinates, values) / len(values))

    def jensen(self) -> tuple[float, float]:
        """Eq. 5, (left, right) with left ≤ right: (δYᵀΘδY/‖δY‖²)⁻¹ and δYᵀΘ⁻¹δY/‖δY‖²."""
        values, _, residual = self._parts
        power = residual.square().sum(1)
        norm = power.sum()
        return float(norm / (values @ power)), float(_over(residual, values) / norm)

    def predict(self, cross: Tensor, initial: Tensor, time: float, rate: float = 1.0) -> Tensor:
        """Outputs on M other images at `time` (inf: the end), from cross = Θ(test, train) [M, N].

        f_t(x) = f₀(x) + Θ(x, X) Θ⁻¹ (I − e^{−ηΘt}) δY (Sec. 3.1, App. A); `initial` is f₀ there,
        [M] or [M, K].
        """
        values, vectors, residual = self._parts
        null = values <= 1e-12 * values.max()
        # (1 − e^{−ηλt})/λ tends to ηt as λ → 0, a direction in which Θ(x, X) vanishes too
        reached = -torch.expm1(-rate * time * values)
        gain = torch.where(null, 0.0, reached / values)
        moved = gain[:, None] * residual
        change = cross.to(values) @ vectors @ moved
        return initial.to(values) + change.view(initial.shape)


def _over(coordinates: Tensor, values: Tensor) -> Tensor:
    """Σ_k c_k²/λ_k over the eigenbasis; eigenvalues of 0 divide, components of 0 do not count."""
    power = coordinates.square().sum(1)
    values = torch.where(values <= 1e-12 * values.max(), 0.0, values)
    return torch.where(power > 1e-12 * power.sum(), power / values, 0.0).sum()
