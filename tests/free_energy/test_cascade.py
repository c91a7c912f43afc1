# SPDX-License-Identifier: Apache-2.0
"""Cascades from small lattices to large ones against exact free energies and moments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg.distributions import FlowDistribution, TwoModes
from pyro_neuralrg.free_energy import Cascade, cascade, reweight
from pyro_neuralrg.free_energy.tempered import RefinedTarget
from pyro_neuralrg.mcmc import LatentTarget
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import HierarchicalFlow, hierarchical_flow

HOT = [IsingDual((2, 2), 4.0), IsingDual((4, 4), 4.0)]


def flows_of(targets: list[Any], **options: Any) -> list[HierarchicalFlow]:
    return [target.flow(**options) for target in targets]


def small(targets: Any, flows: Any, **options: Any) -> Cascade:
    given: dict[str, Any] = {"num_particles": 256, "num_steps": 3, "progress": False, **options}
    return cascade(targets, flows, **given)


def test_cascade_of_perfect_flows_has_no_error(seed: int) -> None:
    """Targets that are the flows' own densities, ln Z = 0."""
    flows = [hierarchical_flow((side, side), base=TwoModes(2.0)) for side in (2, 4, 8)]
    targets = [lambda x, q=q: -q.log_prob(x) for q in map(FlowDistribution, flows)]
    found = small(targets, flows, num_particles=16, num_steps=1, seed=seed)
    for level in found.levels:
        assert level.betas == (0.0, 1.0)
        assert level.free_energy == pytest.approx(0.0, abs=1e-9)
        assert level.standard_error < 1e-6
    evaluations = [level.gradient_evaluations for level in found.levels]
    volumes = [0, 4, 16, 64]  # an evaluation goes with one of the lattice before
    each = zip(evaluations, volumes, volumes[1:], strict=False)
    expected = sum(n * (coarse + volume) for n, coarse, volume in each) / 64 / 16
    assert found.work == pytest.approx(expected)


@pytest.mark.parametrize("given", [False, True])
def test_cascade_of_poor_flows_is_exact(given: bool, seed: int) -> None:
    """Flows that know nothing but the Gaussian part, of a magnet; also from exact coarse fields."""
    options: dict[str, Any] = {"conditional_ess": 0.8, "seed": seed}
    if given:
        options["reference"] = HOT[0].sample_reference(256, seed)
    found = small(HOT, flows_of(HOT), **options)
    assert len(found.levels) == 2 - given
    last = found.levels[-1]
    exact = -HOT[1].log_partition() + given * HOT[0].log_partition()
    assert abs(last.free_energy - exact) < 4 * last.standard_error < 1.0
    values = HOT[1].observables()["structure_factor"](last.fields)
    factor = reweight(values, last.log_weights, groups=last.groups)
    off = float(factor.value) - HOT[1].spins.structure_factor()
    assert abs(off) < 4 * float(factor.standard_error) < 0.1
    assert last.betas[1] < 1.0


def test_what_the_small_lattice_corrects_is_brought_along(seed: int) -> None:
    """A product of a coarse theory and normals: nothing is left for the larger lattice."""
    coarse = IsingDual((2, 2), 2.0)
    flows = [coarse.flow(), hierarchical_flow((4, 4), "tree")]

    def energy(x: torch.Tensor) -> torch.Tensor:
        z, ladj = flows[1].inverse_and_ladj(x)
        first, more = flows[0].forward_and_ladj(z[..., ::2, ::2])
        rest = z.square().sum((-1, -2)) - z[..., ::2, ::2].square().sum((-1, -2))
        return coarse.energy(first) - more + 0.5 * rest + ladj

    options: dict[str, Any] = {"num_particles": 64, "conditional_ess": 0.7, "seed": seed}
    found = small([coarse, energy], flows, **options)
    assert found.levels[0].betas[1] < 1.0
    assert found.levels[1].betas == (0.0, 1.0)
    normals = -6 * math.log(2 * math.pi)
    difference = found.levels[1].free_energy - found.levels[0].free_energy
    assert difference == pytest.approx(normals)


def test_energies_and_gradients_of_the_start() -> None:
    latents = [LatentTarget(*pair) for pair in zip(HOT, flows_of(HOT), strict=True)]
    kept = torch.tensor([0, 2, 8, 10])
    start = RefinedTarget(latents[1], 0.3, None, latents[0], kept)
    y = start.refined(torch.randn(5, 4), torch.Generator())
    fine = torch.tensor([site for site in range(16) if site not in kept.tolist()])
    normal = 0.5 * y[:, fine].square().sum(-1) + 6 * math.log(2 * math.pi)
    expected = 0.7 * (latents[0].energy(y[:, kept]) + normal) + 0.3 * latents[1].energy(y)
    energy, gradient = start.energy_and_grad(y)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(start.energy(y), expected)
    step = 1e-5 * torch.randn(5, 16)
    change = (start.energy(y + step) - start.energy(y - step)) / 2
    torch.testing.assert_close((gradient * step).sum(-1), change, rtol=1e-5, atol=1e-9)


PAIR = [FreeField((2, 2)), FreeField((4, 4))]
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"flows": flows_of(PAIR)[:1]}, ValueError, "flows are 1 of 2 targets"),
    ({"flows": flows_of(PAIR)[::-1], "targets": PAIR[::-1]}, ValueError, r"flows has shape \(2, 2"),
    ({"targets": HOT[::-1]}, ValueError, r"targets has shape \(4, 4\)"),
    ({"flows": 3}, TypeError, "flows is an int"),
    ({"targets": PAIR[0]}, TypeError, "targets is a FreeField"),
    ({"flows": [None, None]}, TypeError, "flows is a NoneType"),
    ({"reference": torch.zeros(2, 2, dtype=torch.float64)}, ValueError, r"reference has shape"),
    ({"reference": torch.zeros(16, 4, 4)}, ValueError, r"reference has shape"),
    ({"num_particles": 100}, ValueError, "num_particles is 100"),
    ({"conditional_ess": 1.0}, ValueError, r"conditional_ess is 1\.0"),
    ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"num_steps": 0}, ValueError, "num_steps is 0"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"targets": PAIR, "flows": flows_of(PAIR), **options}
    with pytest.raises(error, match=f"{match}.*; accepted: "):
        small(**arguments)
