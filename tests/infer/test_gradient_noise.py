# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The gradient with the smaller variance is taken: near the target the path's, far from it not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

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


def gap_of_training(
    kind: str, number: int, vectorize: bool, log_scale: float
) -> tuple[float, bool]:
    """The final gap from a narrow start far away, and whether the last gradient was the path's."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    path = {"plain": False, "path": "always", "switch": True}[kind]
    elbo = PDD(number, vectorize_particles=vectorize, path_gradient=path)
    svi = SVI(model, guide((0.0, log_scale)), pyro.optim.Adam({"lr": 0.03}), elbo)
    for _ in range(400):
        svi.step()
    return gap(), elbo.noise.is_path_better


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
    found = {
        kind: gap_of_training(kind, number, vectorize, log_scale)
        for kind in ("plain", "path", "switch")
    }
    assert found["path"][0] > 10.0 * found["plain"][0]
    assert found["switch"][0] < 0.3 * found["plain"][0]
    assert found["switch"][1]


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("start", "expected"), [((0.0, -4.0), False), ((4.9, 0.02), True), ((5.0, -4.0), False)]
)
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

    def gradient(elbo: PDD, far: bool = True) -> Tensor:
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        parameter: Any = pyro.get_param_store()._params
        elbo.loss_and_grads(model, guide((0.0, -4.0) if far else (4.9, 0.02)))
        return parameter["loc"].grad.clone()

    always = PDD(8, vectorize_particles=True, path_gradient="always")
    switching = PDD(8, vectorize_particles=True, path_gradient=True)
    plain = gradient(PDD(8, vectorize_particles=True))
    path = gradient(always)
    assert not torch.allclose(plain, path)
    for _ in range(4):
        torch.testing.assert_close(gradient(switching), plain)
    near = gradient(always, far=False)
    for _ in range(4, 9):  # the eighth is measured
        gradient(switching, far=False)
    torch.testing.assert_close(gradient(switching, far=False), near)


def test_flows_are_measured_as_their_gradients_are_computed() -> None:
    """Where draws come with their score, too; at the identity a wide target is near or far."""
    for loc, width, expected in ((0.0, 1.0, True), (100.0, 30.0, False)):

        def wide(loc: float = loc, width: float = width) -> None:
            pyro.sample("x", dist.Normal(torch.full((2, 2), loc), width).to_event(2))

        elbo = PDD(64, vectorize_particles=True, path_gradient=True)
        own = FlowGuide(hierarchical_flow((2, 2)))
        for _ in range(3):
            elbo.loss_and_grads(wide, own)
        pyro.clear_param_store()
        assert elbo.noise.is_path_better == expected


def test_fit_takes_the_better_one() -> None:
    path_gradients = []

    class Seen(GradientNoise):
        def begin(self) -> bool:
            found = super().begin()
            path_gradients.append(self.is_path_better)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_neuralrg.infer.pdd.GradientNoise", Seen)
        options = {"steps": 20, "batch": 8, "lr": 1e-3, "seed": 0, "progress": False}
        fit(model, guide((0.0, -4.0)), path_gradient=True, **options)
    assert path_gradients == [True, True] + 18 * [False]


@pytest.mark.parametrize("vectorize", [True, False])
def test_guides_of_modules_are_not_frozen(vectorize: bool) -> None:
    """Pyro warns in every step of parameters that require no gradient."""

    class Net(PyroModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Linear(width, 32))

        def forward(self) -> None:
            loc, log_scale = self.net(torch.ones(1)).chunk(2, -1)
            pyro.sample("x", dist.Normal(loc, log_scale.exp()).to_event(1))

    class Registered(Net):
        """As Pyro's VAE does."""

        def forward(self) -> None:
            pyro.module("own", self.net)
            super().forward()

    for own in (Net(2), Net(5), Registered(3)):
        pyro.clear_param_store()
        elbo = PDD(2, vectorize_particles=vectorize, path_gradient=True)
        svi = SVI(model, own, pyro.optim.Adam({"lr": 0.01}), elbo)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(5):
                svi.step()
