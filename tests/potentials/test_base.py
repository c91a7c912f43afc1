# SPDX-License-Identifier: Apache-2.0
"""A user's own energy, and what the base class does for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_neuralrg.free_energy import anneal, estimate
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.mcmc import HMC, ChEESHMC
from pyro_neuralrg.potentials import FreeField, LatticePotential
from pyro_neuralrg.train import fit
from pyro_neuralrg.transforms import hierarchical_flow


def gaussian(x: Tensor) -> Tensor:
    return x.square().sum((-1, -2)) / 2


class Own(LatticePotential):
    """A user's class with an energy that is given."""

    def __init__(self, fn: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__((3, 4), **options)
        self.fn = fn

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        return self.fn(x)


def test_energy_may_be_infinite_and_its_trial_leaves_the_random_numbers_alone() -> None:
    state = torch.random.get_rng_state()
    wall = LatticePotential.from_energy(
        (3, 4), lambda x: torch.where((x > -1).all(-1).all(-1), gaussian(x), math.inf)
    )
    assert wall.energy(torch.full((3, 4), -2.0)) == math.inf
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_subclass_needs_one_method() -> None:
    potential = Own(gaussian, even=True)
    assert float(potential.energy(torch.ones(3, 4))) == 6
    assert float(potential.heated(2.0).energy(torch.ones(3, 4))) == 3
    free = FreeField((4, 4), 0.7)
    torch.testing.assert_close(free.heated(2.0).spectrum, 2 * free.spectrum)
    assert potential.flow().odd
    with pytest.raises(NotImplementedError, match=r"for Own\(\(3, 4\), boundary="):
        potential.log_partition()


def test_a_new_energy_is_not_given_an_inherited_gradient() -> None:
    class Quartic(FreeField):
        """A free field with one term more."""

        def energy(self, x: Tensor) -> Tensor:
            return super().energy(x) + x.pow(4).sum((-1, -2))

    class Same(FreeField):
        """Another name, the same energy."""

    x = torch.randn(3, 2, 2)
    energy, gradient = Quartic((2, 2), 1.0).energy_and_gradient(x)
    free_energy, free_gradient = FreeField((2, 2), 1.0).energy_and_gradient(x)
    torch.testing.assert_close(energy, free_energy + x.pow(4).sum((-1, -2)))
    torch.testing.assert_close(gradient, free_gradient + 4 * x.pow(3))
    assert Same.energy_and_gradient is FreeField.energy_and_gradient


@pytest.mark.parametrize("how", ["model", "potential_fn"])
def test_pyro_samples_it(how: str) -> None:
    """Pyro's own NUTS takes the model and the potential function, and finds the variance."""
    potential = FreeField((2, 2), 1.0)
    kernel = NUTS(**{how: getattr(potential, how)}, jit_compile=False, max_tree_depth=4)
    start = None if how == "model" else {"x": torch.zeros(2, 2)}
    mcmc = MCMC(kernel, 120, warmup_steps=50, initial_params=start, disable_progbar=True)
    mcmc.run()
    squares = mcmc.get_samples()["x"].square().mean((-1, -2))
    error = float(squares.std()) / math.sqrt(120 / 4)  # at least one effective draw in four
    assert abs(float(squares.mean() - potential.correlations()[0, 0])) < 4 * error


# as many fields as there are sites on a side: the last shape fits by chance
@pytest.mark.parametrize("axes", [(0, 1, 2), (-1,), (0, -1)], ids=str)
def test_a_subclass_of_the_wrong_shape_is_named(axes: tuple[int, ...]) -> None:
    """A scalar would broadcast over the batch and train to a wrong free energy."""
    potential = Own(lambda x: x.square().sum(axes))
    with pytest.raises(ValueError, match=r"energy of Own\(.* returned shape .*accepted"):
        potential.potential_fn({"x": torch.zeros(5, 3, 4)})
    with pytest.raises(ValueError, match="accepted: one number per field"), pyro.plate("p", 5):
        poutine.condition(potential.model, {"x": torch.zeros(5, 3, 4)})()
    with pytest.raises(ValueError, match="accepted: one number per field"):
        fit(potential, hierarchical_flow((3, 4)), steps=2, batch=3, progress=False)


COUPLED = {
    "mean": lambda x: ((x - x.mean()) ** 2).sum((-1, -2)) + 0.05 * x.square().sum((-1, -2)),
    "standardised": lambda x: ((x - x.mean(0)) / (1.0 + x.std(0))).square().sum((-1, -2)),
    "running sum": lambda x: gaussian(x).cumsum(0),
    "random": lambda x: gaussian(x + torch.randn_like(x)),
}


USES: dict[str, Callable[[LatticePotential], Any]] = {
    "kernel": HMC,
    "kernel in latent space": lambda target: HMC(target, flow=target.flow()),
    "fit": lambda target: fit(target, target.flow(), steps=1, batch=4, progress=False),
    "SVI": lambda target: one_loss(PDD(4, vectorize_particles=True), target),
    "anneal": lambda target: anneal(target, target.flow(), num_particles=64, progress=False),
}


def one_loss(loss: PDD, target: LatticePotential) -> None:
    pyro.clear_param_store()
    loss.loss(target.model, FlowGuide(target.flow()))


def test_one_loss_looks_at_each_kind_of_potential() -> None:
    loss = PDD(4, vectorize_particles=True)
    for potential in (Own(gaussian), Own(gaussian).heated(2.0)):
        one_loss(loss, potential)
    with pytest.raises(ValueError, match="for the same field alone"):
        one_loss(loss, Other(COUPLED["mean"]))


class Other(Own):
    """Of another class."""


@pytest.mark.parametrize("use", USES)
def test_a_subclass_couples_no_fields_and_leaves_them(use: str) -> None:
    for name, energy in COUPLED.items():
        with pytest.raises(ValueError, match=r"energy of Own\(.* for the same field alone; acc"):
            USES[use](Own(energy))
        with pytest.raises(ValueError, match=r"target gives .* for the same field alone; acc"):
            estimate(Own(energy), Own(gaussian).flow(), 10), name
    with pytest.raises(ValueError, match=r"energy of Own\(.* writes to its field; accepted: no"):
        USES[use](Own(lambda x: gaussian(x.mul_(2.0))))
    USES[use](Own(lambda x: gaussian(x + 1.0)))


@pytest.mark.parametrize("kernel", [HMC, ChEESHMC])
def test_a_flow_is_no_target(kernel: Any) -> None:
    with pytest.raises(TypeError, match="target is a HierarchicalFlow; accepted: a LatticePot"):
        kernel(hierarchical_flow((3, 4)))


@pytest.mark.parametrize("side", [2, 128])
@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_energy_that_couples_the_batch_is_refused(
    name: str, side: int, dtype: torch.dtype
) -> None:
    energy, shape = COUPLED[name], (side, side)
    torch.set_default_dtype(dtype)
    message = "nats for a field in a batch of 2, and .* for the same field alone; accepted: an"
    with pytest.raises(ValueError, match=f"fn gives .* {message}"):
        LatticePotential.from_energy(shape, energy)
    with pytest.raises(ValueError, match=f"energy gives .* {message}"):
        HMC(energy, shape=shape)
    if side > 2:  # of draws of a small mean the difference is below the rounding
        return
    q = dist.Normal(torch.zeros(shape), 1.0).to_event(2)
    with pytest.raises(ValueError, match=f"target gives .* {message}"):
        estimate(energy, q, 10, 4)


@pytest.mark.parametrize("side", [2, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_energy_of_rounding_and_of_walls_is_taken(side: int, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    precision = torch.randn(side**2, side**2) / side
    walls = lambda x: torch.where(x > 0.5, math.inf, x).sum((-1, -2))  # noqa: E731
    product = lambda x: (x.flatten(1) @ precision).square().sum(-1)  # noqa: E731
    for energy in (walls, product):
        state = torch.random.get_rng_state()
        potential = LatticePotential.from_energy((side, side), energy)
        assert potential.energy(torch.zeros(side, side)) == 0.0
        HMC(energy, shape=(side, side))
        assert torch.equal(torch.random.get_rng_state(), state)
