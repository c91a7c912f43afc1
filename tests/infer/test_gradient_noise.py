# SPDX-License-Identifier: Apache-2.0
"""The gradient with the smaller variance is taken: near the target the path's, far from it not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import Tensor

from pyro_neuralrg import fit, hierarchical_flow
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.infer.gradient_noise import GradientNoise

FAR, NEAR = (0.0, -4.0), (4.9, 0.02)
"""Starts: the mean, and the logarithm of the standard deviation."""
KINDS = False, "always", True


def model() -> None:
    """Normals about 5, whose free energy is known."""
    x = pyro.sample("x", dist.Normal(torch.zeros(16), 1.0).to_event(1).mask(False))
    pyro.factor("f", -0.5 * (x - 5.0).square().sum(-1))


def guide(start: tuple[float, float]) -> Callable[[], None]:
    def program() -> None:
        loc = pyro.param("loc", torch.full((16,), start[0]))
        log_scale = pyro.param("log_scale", torch.full((16,), start[1]))
        pyro.sample("x", dist.Normal(loc, log_scale.exp()).to_event(1))

    return program


def gap() -> float:
    """KL(q || pi / Z) in nats, exactly."""
    loc, log_scale = (pyro.param(name).detach() for name in ("loc", "log_scale"))
    each = 0.5 * ((2.0 * log_scale).exp() + (loc - 5.0).square() - 1.0) - log_scale
    return float(each.sum())


@pytest.mark.parametrize(
    ("number", "vectorize", "log_scale"),
    [
        (4, True, -5.0),
        pytest.param(5, True, -4.0, marks=pytest.mark.slow),
        pytest.param(3, False, -5.0, marks=pytest.mark.slow),
    ],
)
def test_far_from_the_target_it_ends_no_worse_than_plain(
    number: int, vectorize: bool, log_scale: float
) -> None:
    """Plain gradients leave 0.15 nats, path gradients alone 72, the better one of both 0.01."""
    found = []
    for path_gradient in KINDS:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = PDD(number, vectorize_particles=vectorize, path_gradient=path_gradient)
        svi = SVI(model, guide((0.0, log_scale)), pyro.optim.Adam({"lr": 0.03}), elbo)
        for _ in range(400):
            svi.step()
        found.append(gap())
    plain, path, better = found
    assert path > 10.0 * plain
    assert better < 0.3 * plain
    assert elbo.noise.is_path_better


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("start", "expected"), [(FAR, False), (NEAR, True), ((5.0, -4.0), False)])
def test_the_measured_choice_is_that_of_the_variances(
    start: tuple[float, float], expected: bool, vectorize: bool
) -> None:
    """Of the gradient by loc: s^2 for plain ones, (s - 1 / s)^2 for the path's, s the width."""
    width = math.exp(start[1])
    assert ((width - 1.0 / width) ** 2 < width**2) == expected
    elbo = PDD(8, vectorize_particles=vectorize, path_gradient=True)
    for _ in range(3):  # what is measured at the second evaluation holds for the next
        elbo.loss_and_grads(model, guide(start))
    assert elbo.noise.is_path_better == expected


def test_gradients_are_one_of_the_two() -> None:
    """At measured evaluations and between them, in a far and in a near place."""

    def gradient(elbo: PDD, start: tuple[float, float]) -> Tensor:
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        elbo.loss_and_grads(model, guide(start))
        gradient = pyro.param("loc").grad
        assert gradient is not None
        return gradient

    plain, path, switch = (PDD(8, vectorize_particles=True, path_gradient=kind) for kind in KINDS)
    assert not torch.allclose(gradient(plain, FAR), gradient(path, FAR))
    for _ in range(4):
        torch.testing.assert_close(gradient(switch, FAR), gradient(plain, FAR))
    for _ in range(4, 9):  # the eighth is measured
        found = gradient(switch, NEAR)
    torch.testing.assert_close(found, gradient(path, NEAR))


@pytest.mark.parametrize(("loc", "width", "expected"), [(0.0, 1.0, True), (100.0, 30.0, False)])
def test_flows_are_measured_as_their_gradients_are_computed(
    loc: float, width: float, expected: bool
) -> None:
    """Where draws come with their score, too; at the identity a wide target is near or far."""

    def wide() -> None:
        pyro.sample("x", dist.Normal(torch.full((2, 2), loc), width).to_event(2))

    elbo = PDD(64, vectorize_particles=True, path_gradient=True)
    own = FlowGuide(hierarchical_flow((2, 2)))
    for _ in range(3):
        elbo.loss_and_grads(wide, own)
    assert elbo.noise.is_path_better == expected


def test_fit_takes_the_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, are_path = GradientNoise.begin, []

    def seen(noise: GradientNoise) -> bool:
        found = begin(noise)
        are_path.append(noise.is_path_better)
        return found

    monkeypatch.setattr(GradientNoise, "begin", seen)
    options = {"steps": 20, "batch": 8, "lr": 1e-3, "seed": 0, "progress": False}
    fit(model, guide(FAR), path_gradient=True, **options)
    assert are_path == [True, True] + 18 * [False]


class Net(PyroModule):
    """A guide with a network that is registered as Pyro's VAE does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Linear(width, 32))

    def forward(self) -> None:
        if self.net[0].out_features == 3:
            pyro.module("own", self.net)
        loc, log_scale = self.net(torch.ones(1)).chunk(2, -1)
        pyro.sample("x", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("width", [2, 3])
def test_guides_of_modules_are_not_frozen(width: int, vectorize: bool) -> None:
    """Pyro warns in every step of parameters that require no gradient."""
    elbo = PDD(2, vectorize_particles=vectorize, path_gradient=True)
    svi = SVI(model, Net(width), pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(5):
        svi.step()
