# SPDX-License-Identifier: Apache-2.0
"""Evidences of Pyro models by annealing, plain and behind guides and flows, against exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg import AutoHierarchicalFlow, FlowReparam, IsingDual
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.free_energy import reweight
from pyro_neuralrg.free_energy.annealing import Annealing
from pyro_neuralrg.mcmc import EnergyTarget, ModelTarget
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow
from tests.free_energy.solvable_model import DATA, at_the_mean, exact, exact_guide, model
from tests.free_energy.test_annealing import BETAS, EXACT, gaussian
from tests.free_energy.test_annealing import small as small_run

MODEL_BETAS = (0.0, 0.05, 0.2, 0.5, 1.0)


def small(target: Any = model, **options: Any) -> Annealing:
    return small_run(target, **{"model_args": (DATA,), "conditional_ess": 0.7, **options})


def behind(kind: Any, *arguments: Any) -> Any:
    """Untrained, wider than the posterior; a field depends on the scale a little."""
    guide = kind(model, *arguments, init_loc_fn=at_the_mean(), init_scale=0.9)
    guide(DATA)
    if kind is AutoHierarchicalFlow:
        for parameter in guide.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return NeuTraReparam(guide).reparam(model)


STARTS: dict[str, Callable[[], Any]] = {
    "plain": lambda: model,
    "hierarchical guide": lambda: behind(AutoHierarchicalFlow, "field"),
    "Pyro's guide": lambda: behind(AutoDiagonalNormal),
    "flow of one of two sites": lambda: poutine.reparam(
        model, {"field": FlowReparam(hierarchical_flow((3, 2)))}
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_evidence_and_posterior(start: str, seed: int) -> None:
    evidence, mean, _ = exact()
    run = small(STARTS[start](), seed=seed)
    assert abs(run.free_energy + evidence) < 4 * run.standard_error
    assert 0.0 < run.standard_error < 0.2
    assert set(run.sites) == {"field", "scale"}
    assert run.sites["field"].shape == (256, 3, 2)
    assert run.sites["scale"].shape == (256,)
    values = torch.cat([run.sites["field"].flatten(1), run.sites["scale"].log()[:, None]], -1)
    found = reweight(values, run.log_weights, groups=run.groups)
    assert bool(((found.value - mean).abs() < 5 * found.standard_error).all())
    if start in ("hierarchical guide", "Pyro's guide"):  # all of a position is drawn anew
        assert 0.0 < run.jump_acceptance[-1] < run.jump_acceptance[0] <= 1.0
    else:
        assert all(math.isnan(rate) for rate in run.jump_acceptance)


def test_from_the_posterior_itself_there_is_no_error(seed: int) -> None:
    guide = exact_guide()
    run = small(NeuTraReparam(guide).reparam(model), num_particles=32, seed=seed)
    assert run.betas == (0.0, 1.0)
    assert run.free_energy == pytest.approx(-exact()[0], abs=1e-9)
    assert run.jump_acceptance[0] == pytest.approx(1.0)
    assert all(parameter.requires_grad for parameter in guide.parameters())


@pytest.mark.parametrize("from_normal", [False, True])
def test_site_behind_a_flow_of_two_modes(seed: int, from_normal: bool) -> None:
    """A model of its own, which is not recognised as the potential's."""
    potential = IsingDual((2, 2))
    flow = potential.flow()
    assert isinstance(flow.base, TwoModes)

    def magnet() -> None:
        s = pyro.sample("s", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2).mask(False))
        pyro.factor("energy", -potential.energy(s))

    options: dict[str, Any] = {"model_args": None, "seed": seed}
    reparam = FlowReparam(flow, from_normal)
    run = small(poutine.reparam(magnet, {"s": reparam}), **options)
    assert abs(run.free_energy + potential.log_partition()) < 4 * run.standard_error
    assert 0.0 < run.jump_acceptance[-1] <= 1.0
    assert run.fields is run.sites["s"]
    # the same start, moves and jumps as where the energy is known
    direct = small(poutine.reparam(potential.model, {"x": reparam}), **options)
    assert run.free_energy == pytest.approx(direct.free_energy)


def test_arguments_by_keyword_and_targets_that_are_ready(seed: int) -> None:
    options: dict[str, Any] = {"betas": MODEL_BETAS, "seed": seed}
    run = small(**options)
    with pytest.raises(ValueError, match=r"fields of the sites \['field', 'scale'\]; accepted"):
        _ = run.fields
    by_name = {"model_args": None, "model_kwargs": {"data": DATA}}
    assert small(**options, **by_name).free_energy == run.free_energy
    other = small(**options, model_kwargs={"noise": 1.5})
    assert abs(other.free_energy - run.free_energy) > 0.1
    ready = ModelTarget(model).setup(DATA)
    assert small(ready, **options, model_args=None).free_energy == run.free_energy
    potential = FreeField((2, 2), mass=1.0)
    assert small(potential, **options, model_args=()).fields.shape == (256, 2, 2)


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (model, {"model_args": None}, TypeError, "model_args, do not fit the model"),
    (model, {"model_args": DATA}, TypeError, "model_args is a Tensor; accepted: a sequence"),
    (EnergyTarget(FreeField((2, 2), mass=1.0)), {}, TypeError, "EnergyTarget takes none"),
    (model, {"flow": hierarchical_flow((3, 2))}, ValueError, "flow is for a potential or energy"),
    (model, {"flow": AutoDiagonalNormal(model)}, ValueError, "flow is for a potential or energy"),
    (3.0, {}, TypeError, "target is a float; accepted"),
]


@pytest.mark.parametrize(("target", "options", "error", "match"), BAD)
def test_bad_arguments(target: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        small(target, **options)


def covers(runs: list[Annealing], exact: float, bias: float = 0.0) -> None:
    """One standard error covers as often as it should; the bias of Z is within ``bias`` of it."""
    number = len(runs)
    pulls = torch.tensor([(run.free_energy - exact) / run.standard_error for run in runs])
    covered = float((pulls.abs() < 1.0).double().mean())
    assert abs(covered - 0.6827) < 3 * (0.6827 * 0.3173 / number) ** 0.5, covered
    ratios = torch.tensor([math.exp(exact - run.free_energy) for run in runs])
    off = float((ratios.mean() - 1.0) / ratios.std())
    assert abs(off) < bias + 3 / number**0.5, off
    # the errors are as large as the scatter, within what 200 runs tell
    claimed = torch.tensor([run.standard_error for run in runs]).square().mean().sqrt()
    assert float(ratios.std() / claimed) == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("betas", "resample_below"),
    [(BETAS, 0.0), (BETAS, 0.5), (BETAS, 1.0), (None, 0.0), (None, 0.5)],
)
def test_error_bars_cover_and_z_is_unbiased(betas: Any, resample_below: float) -> None:
    """But for the bias of adaptive temperatures."""
    options: dict[str, Any] = {"betas": betas, "conditional_ess": 0.9, "num_particles": 512}
    runs = [gaussian(resample_below=resample_below, seed=seed, **options) for seed in range(200)]
    covers(runs, EXACT, bias=0.0 if betas else 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["plain", "Pyro's guide", "a flow of two modes"])
def test_error_bars_cover_of_models_and_flows(start: str) -> None:
    if start in STARTS:
        target, free_energy = STARTS[start](), -exact()[0]
        runs = [small(target, betas=MODEL_BETAS, seed=seed) for seed in range(200)]
    else:  # untrained; the betas are those of a run before
        potential = IsingDual((2, 2))
        flow, free_energy = potential.flow(), -potential.log_partition()
        options: dict[str, Any] = {"num_steps": 4, "conditional_ess": 0.8}
        options["betas"] = small_run(potential, flow, seed=200, **options).betas
        runs = [small_run(potential, flow, seed=seed, **options) for seed in range(200)]
    covers(runs, free_energy)
