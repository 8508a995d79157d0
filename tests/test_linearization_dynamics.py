"""The linearized model, its training by gradient descent, and Proposition 1 with eq. 1-5."""

import math

import pytest
import torch
from test_linearization import build, close, images
from torch.nn import functional as F

from mzlib.linearization import (
    Dynamics,
    LinearizationError,
    finetune_linearized,
    linearize,
    ntk_gram,
)


def directional(model, x, step):
    """⟨∇f_d(x_i), step⟩ by one backward pass an image and output [N, K]."""
    named = {n: p for n, p in model.named_parameters() if n in step}
    rows = [
        [
            sum(
                (g * step[n]).sum()
                for n, g in zip(
                    named,
                    torch.autograd.grad(
                        value, list(named.values()), retain_graph=True, materialize_grads=True
                    ),
                )
            )
            for value in model(image[None])[0]
        ]
        for image in x
    ]
    return torch.tensor(rows, dtype=x.dtype)


@pytest.mark.parametrize("name", ["strides", "mzlib_densenet", "vit_tiny_patch16_224"])
def test_linearize_is_the_first_order_expansion(name):
    model, x = build(name), images(3, size=12 if name == "strides" else 32)
    f_lin, w = linearize(model), dict(model.named_parameters())
    model.eval()
    for there in (w, {}):
        assert close(f_lin(x, there).detach(), model(x).detach(), 1e-12)
    generator = torch.Generator().manual_seed(1)
    step = {n: torch.randn(p.shape, generator=generator).double() for n, p in w.items()}
    change = (f_lin(x, {n: p + step[n] for n, p in w.items()}) - model(x)).detach()
    assert close(change, directional(model, x, step), 1e-10)
    double = (f_lin(x, {n: p + 2 * step[n] for n, p in w.items()}) - model(x)).detach()
    assert close(double, 2 * change, 1e-10)  # linear in w, however far
    one = next(iter(w))  # a part of the parameters, named
    moved = {one: w[one] + step[one]}
    assert close(
        (f_lin(x, moved) - model(x)).detach(), directional(model, x, {one: step[one]}), 1e-10
    )
    with pytest.raises(LinearizationError, match="nowhere"):
        f_lin(x, {"nowhere": torch.zeros(1)})


@pytest.fixture(scope="module")
def problem():
    """One output of a zoo network, eight images, ±1 labels, the kernel and its dynamics."""
    model, x = build("mzlib_resnet"), images(8, size=32)
    model.fc = torch.nn.Linear(192, 1, dtype=torch.float64)
    with torch.no_grad():
        model.fc.weight.copy_(torch.linspace(-1, 1, 192)[None] / 10)
        model.fc.bias.zero_()
    y = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1], dtype=torch.float64)[:, None]
    gram = ntk_gram(model.eval(), x, layers="all", outputs="logits", probes="exact")
    return model, x, y, Dynamics(gram, y, model(x).detach())


def test_descent_on_the_linearized_model_follows_equation_1(problem):
    model, x, y, dynamics = problem
    errors, largest = [], float(torch.linalg.eigvalsh(dynamics.gram)[-1])
    for steps in (20, 40):
        rate = 4 / largest / steps  # the same time in more steps
        _, losses = finetune_linearized(model, x, y, learning_rate=rate * len(x), steps=steps)
        expected = dynamics.losses(torch.arange(steps), rate)
        errors.append(((2 * len(x) * losses - expected).abs() / expected).max())
        exact = (
            torch.eye(8) - rate * dynamics.gram
        )  # descent itself: the residual shrinks by I − ηΘ
        residual = torch.linalg.matrix_power(exact, steps - 1) @ (y - dynamics.initial)
        assert math.isclose(2 * len(x) * losses[-1], residual.square().sum(), rel_tol=1e-8)
    assert (
        1e-4 < errors[0] < 0.1 and errors[1] < 0.6 * errors[0]
    )  # discretisation error of first order


def test_real_fine_tuning_follows_for_small_steps_and_departs_for_long_ways(problem):
    model, x, y, _ = problem

    def departure(scale, steps=10):
        """Distance of the real loss from eq. 1 for labels `scale` away from the outputs."""
        f = model(x).detach()
        dynamics = Dynamics(problem[3].gram, f + scale * y, f)
        rate = 0.4 / float(torch.linalg.eigvalsh(dynamics.gram)[-1])
        state = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        for _ in range(steps):
            residual = torch.func.functional_call(model, state, (x,)) - f - scale * y
            gradients = torch.autograd.grad(residual.square().sum() / 2, list(state.values()))
            state = {
                n: (p - rate * g).detach().requires_grad_()
                for (n, p), g in zip(state.items(), gradients)
            }
        loss = (torch.func.functional_call(model, state, (x,)) - f - scale * y).square().sum()
        # against the discrete linear dynamics, so that only the model's curvature is left
        linear = torch.linalg.matrix_power(torch.eye(8) - rate * dynamics.gram, steps) @ (scale * y)
        return float((loss.detach() - linear.square().sum()).abs() / linear.square().sum())

    near, far = departure(1e-3), departure(10.0)
    assert near < 1e-3 and far > 20 * near


def test_cross_entropy_and_batches():
    model, x = build("strides"), images(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    kwargs = dict(learning_rate=0.05, steps=40, loss="cross_entropy", batch_size=3, momentum=0.9)
    w, losses = finetune_linearized(model, x, labels, seed=1, **kwargs)
    final = F.cross_entropy(linearize(model)(x, w), labels)
    assert final < 0.75 * F.cross_entropy(model.eval()(x), labels) and losses.shape == (40,)
    again, _ = finetune_linearized(model, x, labels, seed=1, **kwargs)
    assert all(torch.equal(w[n], again[n]) for n in w)
    with pytest.raises(LinearizationError, match="cross_entropy"):
        finetune_linearized(model, x, labels, learning_rate=1, steps=1, loss="hinge")
    with pytest.raises(LinearizationError, match="gradient"):
        finetune_linearized(model.requires_grad_(False), x, labels, learning_rate=1, steps=1)


def test_equations_3_and_5_on_a_real_kernel(problem):
    dynamics = problem[3]
    step = 1e-6 / float(dynamics.gram.trace())
    falling = dynamics.losses(torch.tensor([0.0, step], dtype=torch.float64), rate=3.0)
    assert math.isclose((falling[1] - falling[0]) / step, dynamics.slope(rate=3.0), rel_tol=1e-4)
    left, right = dynamics.jensen()
    assert 0 < left < right
    delta = problem[2] - dynamics.initial
    assert math.isclose(
        left, delta.square().sum() / (delta.T @ dynamics.gram @ delta), rel_tol=1e-9
    )
    assert math.isclose(
        right,
        delta.T @ torch.linalg.solve(dynamics.gram, delta) / delta.square().sum(),
        rel_tol=1e-6,
    )


def test_hand_worked_two_images():
    # Θ = [[2, 1], [1, 2]]: eigenvalues 1 on (1, −1)/√2 and 3 on (1, 1)/√2; Y = (1, 0) lies half in
    # each
    gram, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, 0.0])
    d = Dynamics(gram, y)
    t = torch.tensor([0.0, 0.7])
    assert torch.allclose(
        d.losses(t, rate=0.5), (0.5 * torch.exp(-t) + 0.5 * torch.exp(-3 * t)).double()
    )
    assert math.isclose(d.slope(), -2 * 2)  # −2 YᵀΘY
    assert math.isclose(d.generalization(), (0.5 + 0.5 / 3) / 2)
    assert math.isclose(d.jensen()[0], 1 / 2) and math.isclose(d.jensen()[1], 2 / 3)
    f = d.predict(gram, torch.zeros(2), time=0.3)
    expected = y.double() - torch.linalg.matrix_exp(-0.3 * gram.double()) @ y.double()
    assert torch.allclose(f, expected)
    assert torch.allclose(d.predict(gram, torch.zeros(2), time=float("inf")), y.double())
    both = Dynamics(gram, torch.eye(2))  # several outputs: sums over them
    assert math.isclose(both.slope(), -8) and both.predict(
        gram[:1], torch.zeros(1, 2), time=1.0
    ).shape == (1, 2)


def test_singular_kernels_and_wrong_input():
    same = Dynamics(torch.ones(2, 2), torch.tensor([1.0, -1.0]))  # one image twice, with two labels
    assert same.generalization() == math.inf and same.jensen()[1] == math.inf
    assert torch.allclose(same.losses(torch.tensor([1e3])), torch.tensor([2.0]).double())
    learnt = Dynamics(torch.ones(2, 2), torch.ones(2))  # the same label: nothing in the null space
    assert math.isclose(learnt.generalization(), 0.5, rel_tol=1e-6)
    assert torch.allclose(
        learnt.predict(torch.ones(1, 2), torch.zeros(1), math.inf), torch.ones(1).double()
    )
    assert Dynamics(
        torch.ones(2, 2), torch.tensor([1.0, -1.0]), ridge=0.5
    ).generalization() == pytest.approx(2.0)
    for gram, message in (
        (torch.eye(3), "N, N"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.full((2, 2), math.nan), "finite"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "positive"),
    ):
        with pytest.raises(LinearizationError, match=message):
            Dynamics(gram, torch.ones(2)).slope()
