# SPDX-License-Identifier: Apache-2.0
"""Targets whose energy is infinite, or has none, somewhere: weights of zero."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import Tensor

from pyro_neuralrg import Record, hierarchical_flow
from pyro_neuralrg.free_energy import estimate, expectations
from pyro_neuralrg.potentials import LatticePotential
from pyro_neuralrg.train import fit
from tests.infer.conftest import state

INF, SITES = math.inf, (-1, -2)
SAID = r"the energy of \d+ samples of step \d+ is infinite or NaN: their weights are zero"


def wall(x: Tensor, at: float = 4.0) -> Tensor:
    """Normals below a wall: Z = (sqrt(2 pi) P(x < at))^4."""
    return torch.where((x > at).any(-1).any(-1), INF, 0.5 * x.square().sum(SITES))


def box(x: Tensor) -> Tensor:
    """Nothing but walls: Z = 8^4."""
    return torch.where((x.abs() > 4).any(-1).any(-1), INF, 0.0 * x.sum(SITES))


def rods(x: Tensor) -> Tensor:
    """Pairs of normals that keep apart by a half: Z = (2 pi P(|x - y| > 1 / 2))^2."""
    apart = (x[..., 0] - x[..., 1]).abs() > 0.5
    return torch.where(apart.all(-1), 0.5 * x.square().sum(SITES), INF)


def root(x: Tensor) -> Tensor:
    """NaN, as are its gradients, beyond 3.5."""
    return (0.5 * x.square() - 0.5 * (3.5**2 - x.square()).sqrt()).sum(SITES)


def truncated(at: float) -> float:
    return 4 * math.log(math.sqrt(2 * math.pi) * 0.5 * (1 + math.erf(at / math.sqrt(2))))


U = torch.linspace(-3.5, 3.5, 200_001, dtype=torch.float64)
CASES = {
    "far wall": (wall, truncated(4.0)),
    "near wall": (lambda x: wall(x, 1.5), truncated(1.5)),
    "box": (box, 4 * math.log(8)),
    "rods": (rods, 2 * math.log(2 * math.pi * math.erfc(0.25))),
    "root": (
        root,
        4 * math.log(torch.trapezoid((0.5 * (3.5**2 - U**2).sqrt() - 0.5 * U**2).exp(), U)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_infinite_energy_is_a_weight_of_zero(name: str, seed: int) -> None:
    energy, exact = CASES[name]
    target, flow = LatticePotential.from_energy((2, 2), energy), hierarchical_flow((2, 2))
    with pytest.warns(UserWarning, match=SAID) as said:
        found = fit(target, flow, steps=150, batch=256, seed=seed, progress=False)
    assert len(said) == 1 + bool(found.divergences)
    assert {entry.filename for entry in said} == {__file__}
    assert (found.steps, found.stopped) == (150, None)
    assert found.zero_weights > 0
    if name == "root":
        with pytest.warns(UserWarning, match=r"the energy of \d+ of 20000 samples is NaN"):
            ln_z = estimate(target, flow, 20_000)
    else:
        ln_z = estimate(target, flow, 20_000)
    assert ln_z.zero_weights > 0
    assert ln_z.ess > 0.1
    assert abs(ln_z.importance + exact) < 4 * ln_z.importance_se


def test_without_walls_nothing_changes_until_the_first_is_met(tmp_path: Any) -> None:
    """Nor does a checkpoint of a training that has met one."""

    def run(energy: Any, **options: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        flow = hierarchical_flow((2, 2))
        target = LatticePotential.from_energy((2, 2), energy)
        return fit(target, flow, steps=40, batch=128, seed=3, progress=False, **options), flow

    plain, _ = run(lambda x: 0.5 * x.square().sum(SITES))
    with pytest.warns(UserWarning, match=SAID):
        found, flow = run(wall)
    step = next(i for i, (a, b) in enumerate(zip(*losses(plain, found), strict=True)) if a != b)
    assert 1 < step < 40
    assert plain.zero_weights == 0
    with pytest.warns(UserWarning, match=SAID):
        run(wall, record=Record(tmp_path), callback=lambda one: one.step == 35)
    again, resumed = run(wall, record=Record(tmp_path, resume=True))
    assert losses(found, again)[0] == losses(found, again)[1]
    assert again.zero_weights == found.zero_weights
    assert torch.equal(state(flow), state(resumed))


def losses(*found: Any) -> list[list[float]]:
    return [one.history.free_energy.tolist() for one in found]


@pytest.mark.parametrize("undefined", [True, False])
def test_a_model_with_a_bound_and_its_guide(undefined: bool) -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        root = 0.0 * (3.0 - x[..., 0]).sqrt()
        pyro.factor("bound", root if undefined else torch.where(root.isnan(), -INF, 0.0))

    guide = AutoDiagonalNormal(model, init_scale=1.0)
    guide()
    with torch.no_grad():
        guide.loc.zero_()
    with pytest.warns(UserWarning, match=SAID):
        found = fit(model, guide, steps=60, batch=256, lr=0.01, seed=0, progress=False)
    assert found.stopped is None
    assert bool(torch.isfinite(guide.loc).all())
    exact = math.log(0.5 * (1 + math.erf(3 / math.sqrt(2))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"the energy of \d+ of 4000 samples is NaN")
        ln_z = estimate(model, guide, 4000)
    assert abs(ln_z.importance + exact) < 4 * ln_z.importance_se


def half(x: Tensor, at: float = 1.9) -> Tensor:
    return torch.where(x[..., 0, 0] > at, math.nan, 0.5 * x.square().sum(SITES))


@pytest.mark.parametrize("number", range(6))
def test_few_energies_that_are_nan_let_it_go_on_from_its_first_step(number: int) -> None:
    """Nine in a thousand are at times more than one in a hundred of a batch, also in the first."""
    target, flow = Half(2.366), hierarchical_flow((2, 2))
    with pytest.warns(UserWarning, match=SAID) as said:
        found = fit(target, flow, steps=20, batch=256, lr=1e-4, seed=number, progress=False)
    assert len(said) == 1
    assert (found.steps, found.stopped, found.divergences) == (20, None, 0)
    assert found.zero_weights > 10


class Half(LatticePotential):
    """NaN beyond a plane; ``from_energy`` would refuse it if one of a few fields lay there."""

    def __init__(self, at: float) -> None:
        super().__init__((2, 2))
        self.at = at

    def energy(self, x: Tensor) -> Tensor:
        return half(x, self.at)


@pytest.mark.parametrize("seed", range(4))
def test_many_energies_that_are_nan_are_a_divergence(seed: int) -> None:
    target = LatticePotential.from_energy((2, 2), half)
    with pytest.raises(ValueError, match="gives a loss of nan at the first step"):
        fit(target, hierarchical_flow((2, 2)), steps=5, batch=256, seed=seed, progress=False)
    with pytest.raises(ValueError, match=r"log_weights has \d+ of 1000 entries that are NaN"):
        estimate(target, hierarchical_flow((2, 2)), 1000)


def test_expectations_count_them() -> None:
    """The mean of a normal below 1.5 is minus its density there over its probability."""
    q = dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)
    found = expectations(lambda x: wall(x, 1.5), q, {"x": lambda x: x.mean(SITES)}, 4000)
    density = math.exp(-0.5 * 1.5**2) / math.sqrt(2 * math.pi)
    exact = -density / (0.5 * (1 + math.erf(1.5 / math.sqrt(2))))
    mean = found.observables["x"]
    assert abs(float(mean.value) - exact) < 4 * float(mean.standard_error)
    assert found.free_energy.zero_weights == pytest.approx(4000 * (1 - 0.933193**4), abs=140)
