# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A user's own energy, and what the base class does for it."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_neuralrg.potentials import FreeField, LatticePotential
from pyro_neuralrg.train import fit
from pyro_neuralrg.transforms import hierarchical_flow


def gaussian(x: Tensor) -> Tensor:
    return x.square().sum((-1, -2)) / 2


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x.square().sum(), ValueError, r"fn returned shape \(\) for fields of shape"),
        (lambda x: x.square().sum((0, 1)), ValueError, r"fn returned shape \(4,\).*accepted"),
        (lambda x: x.log().sum((-1, -2)), ValueError, "fn returned NaN.*accepted"),
        (lambda x: (x > 0).sum((-1, -2)), TypeError, "the result of fn is torch.int64; accepted"),
        (3, TypeError, "fn is a int; accepted: a function of fields"),
        (lambda x: gaussian(x - 1), ValueError, "even is True but"),
    ],
)
def test_bad_energies_are_named(fn: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LatticePotential.from_energy((3, 4), fn, even=True)


@pytest.mark.parametrize(
    ("spectrum", "message"),
    [
        (torch.ones(2, 3, 4), r"spectrum has shape \(2, 3, 4\).*accepted.*\(3, 4\)"),
        (torch.zeros(3, 4), r"spectrum has .* entries down to 0\.0; accepted"),
        (torch.full((3, 4), math.nan), "spectrum has .* entries down to nan; accepted"),
        ([1.0], "spectrum is list; accepted"),
    ],
)
def test_bad_spectrum_is_named(spectrum: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LatticePotential.from_energy((3, 4), gaussian, spectrum=spectrum)


def test_energy_may_be_infinite_and_its_trial_leaves_the_random_numbers_alone() -> None:
    state = torch.random.get_rng_state()
    wall = LatticePotential.from_energy(
        (3, 4), lambda x: torch.where((x > -1).all(-1).all(-1), gaussian(x), math.inf)
    )
    assert wall.energy(torch.full((3, 4), -2.0)) == math.inf
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_subclass_needs_one_method() -> None:
    class Gaussian(LatticePotential):
        def energy(self, x: Tensor) -> Tensor:
            self.check_field(x)
            return gaussian(x)

    potential = Gaussian((3, 4), even=True)
    assert float(potential.energy(torch.ones(3, 4))) == 6
    assert float(potential.heated(2.0).energy(torch.ones(3, 4))) == 3
    free = FreeField((4, 4), 0.7)
    torch.testing.assert_close(free.heated(2.0).spectrum, 2 * free.spectrum)
    assert potential.flow().odd
    with pytest.raises(NotImplementedError, match=r"for Gaussian\(\(3, 4\), boundary="):
        potential.log_partition()


def test_constants_follow_the_field_s_precision() -> None:
    class Weighted(LatticePotential):
        def __init__(self) -> None:
            super().__init__((3,))
            self._register("weight", torch.tensor([1.0, 2.0, 3.0]) / 3)

        def energy(self, x: Tensor) -> Tensor:
            self.check_field(x)
            return (x.square() * self._constant("weight", x)).sum(-1)

    potential = Weighted()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert potential._constant("weight", torch.zeros(3, dtype=dtype)).dtype == dtype
    moved = potential.to("meta")
    assert moved._constant("weight", torch.zeros(3)).device.type == "meta"
    assert potential.device.type == "cpu"


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
    mcmc = MCMC(kernel, 200, warmup_steps=50, initial_params=start, disable_progbar=True)
    mcmc.run()
    squares = mcmc.get_samples()["x"].square().mean((-1, -2))
    error = float(squares.std()) / math.sqrt(200 / 4)  # at least one effective draw in four
    assert abs(float(squares.mean() - potential.correlations()[0, 0])) < 4 * error


# as many fields as there are sites on a side: the last shape fits by chance
@pytest.mark.parametrize("axes", [(0, 1, 2), (-1,), (0, -1)], ids=str)
def test_a_subclass_of_the_wrong_shape_is_named(axes: tuple[int, ...]) -> None:
    """A scalar would broadcast over the batch and train to a wrong free energy."""

    class Wrong(LatticePotential):
        def energy(self, x: Tensor) -> Tensor:
            return x.square().sum(axes)

    potential = Wrong((3, 4))
    with pytest.raises(ValueError, match=r"energy of Wrong\(.* returned shape .*accepted"):
        potential.potential_fn({"x": torch.zeros(5, 3, 4)})
    with pytest.raises(ValueError, match="accepted: one number per field"), pyro.plate("p", 5):
        poutine.condition(potential.model, {"x": torch.zeros(5, 3, 4)})()
    with pytest.raises(ValueError, match="accepted: one number per field"):
        fit(potential, hierarchical_flow((3, 4)), steps=2, batch=3, progress=False)
