# SPDX-License-Identifier: Apache-2.0
"""One call for draws: exact means by every method, of potentials and of models."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_neuralrg import (
    AutoHierarchicalFlow,
    FlowGuide,
    FreeField,
    Record,
    diagnose,
    sample,
    to_arviz,
)
from pyro_neuralrg.sampling.choice import LOCAL_TIME, METHODS
from pyro_neuralrg.sampling.draws import _repeats, _starts
from tests.free_energy.solvable_model import DATA, at_the_mean, exact, model

QUIET: dict[str, Any] = {"progress": False}
TARGET = FreeField((2, 2), mass=0.7)
DRAWS = {"independence": 4000, "cycle": 2000, "annealing": 512, None: 4000}


def other_flow() -> Any:
    """The flow of a smaller mass: its draws are wider than the target, with bounded weights."""
    return FreeField((2, 2), mass=0.6).flow(dtype=torch.float64)


@pytest.mark.parametrize("method", [*METHODS, None])
def test_square_of_a_free_field(method: str | None, seed: int) -> None:
    square = {"square": lambda x: x.square().mean((-1, -2))}
    number = DRAWS[method]
    flow = other_flow()
    draws = sample(TARGET, flow, number, method=method, seed=seed, observables=square, **QUIET)
    found = draws.mean(draws.observables["square"])
    error = float(found.standard_error)
    assert 0 < error < 0.1
    exact = float(TARGET.spectrum.mean())
    assert float(found.value) == pytest.approx(exact, abs=4 * error)
    evidence, wide = draws.weights.log_mean, 4 * draws.weights.log_mean.standard_error
    assert evidence.value == pytest.approx(TARGET.log_partition(), abs=wide)
    assert (draws.log_weights is not None) == (draws.method == "annealing")
    assert f"by {method or 'independence'}: {draws.reason}" in repr(draws)
    assert len(draws.get_samples()["x"]) >= number
    assert "square" in draws.summary().index
    assert method == "cycle" or diagnose(draws).ok


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal])
def test_posterior_of_a_model(kind: Any, method: str, seed: int) -> None:
    guide = kind(model, init_loc_fn=at_the_mean(), init_scale=0.9)
    guide(DATA)
    options = {"model_args": (DATA,), "num_chains": 20, "seed": seed, **QUIET}
    draws = sample(model, guide, DRAWS[method], method=method, **options)
    found = draws.get_samples(group_by_chain=True)
    named = {row.partition("[")[0] for row in draws.summary().index}
    assert named - {"lp"} == found.keys()
    values = torch.cat([found["field"].flatten(2), found["scale"].log().unsqueeze(-1)], -1)
    _, mean, covariance = exact()
    for power, right in ((1, mean), (2, covariance.diagonal() + mean**2)):
        moment = values**power if draws.log_weights is None else values[0] ** power
        estimate = draws.mean(moment)
        assert float(((estimate.value - right) / estimate.standard_error).abs().max()) < 4.5


def test_weighted_draws_have_the_groups_of_a_model(seed: int) -> None:
    """Resampled into one chain, whose mean is that by the weights up to the resampling."""
    guide = AutoDiagonalNormal(model, init_loc_fn=at_the_mean(), init_scale=0.9)
    guide(DATA)
    options = {"model_args": (DATA,), "method": "annealing", "seed": seed, **QUIET}
    draws = sample(
        model, guide, 512, observables={"top": lambda x: x["field"].amax((-1, -2))}, **options
    )
    assert not hasattr(draws.to_arviz(dims={"field": ["row", "col"]}), "posterior")
    assert not diagnose(to_arviz(draws)).figures  # copies look like independent draws
    uneven = 3.0 * draws.get_samples()["scale"].double().log()
    draws = replace(draws, run=replace(draws.run, log_weights=uneven))
    more = {"prior": 7, "posterior_predictive": True, "log_likelihood": True}
    for idata in (to_arviz(draws, **more), draws.to_arviz(**more)):
        assert dict(idata.posterior.sizes)["draw"] == 512
        assert idata.prior.sizes["draw"] == 7
        assert idata.log_likelihood.sizes["draw"] == idata.posterior_predictive.sizes["draw"] == 512
        np.testing.assert_array_equal(idata.importance["log_weight"], draws.run.log_weights)
        scale, mean = idata.posterior["scale"], draws.mean(draws.get_samples()["scale"])
        off = abs(float(scale.mean()) - float(mean.value))
        assert off < 4 * float(scale.std()) / 512**0.5


def test_bars_tell_the_trial_of_cycles_from_their_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyro_neuralrg.sampling.draws.TRIAL_STEPS", 10)
    sample(TARGET, other_flow(), 40, method="cycle", num_chains=4, seed=0)
    stages = [re.split(r": \d", line)[0] for line in capsys.readouterr().err.splitlines()]
    assert stages == [
        "trial: warm-up of cycle", "trial: draws of cycle", "draws of cycle", "draws of cycle",
    ]  # fmt: skip


def test_seed_and_record(tmp_path: Path) -> None:
    flow = TARGET.flow(dtype=torch.float64)
    first, again = (sample(TARGET, FlowGuide(flow), 500, seed=3, **QUIET) for _ in range(2))
    assert torch.equal(first.get_samples()["x"], again.get_samples()["x"])
    kept = {"seed": 3, "num_chains": 5, **QUIET}
    one = sample(TARGET, flow, 100, record=Record(tmp_path), **kept)
    two = sample(TARGET, flow, 200, record=Record(tmp_path, resume=True), **kept)
    fields = [run.get_samples(group_by_chain=True)["x"] for run in (one, two)]
    assert torch.equal(fields[1][:, :20], fields[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nuts"}, "method is 'nuts'; accepted: independence"),
        ({"method": "annealing", "keep_draws": False}, "method is 'annealing'"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"q": torch.nn.Linear(2, 2)}, "q is a Linear; accepted: a flow"),
        ({"target": None}, "target is a NoneType"),
        ({"model_args": (DATA,)}, "arguments of run"),
        ({"record": Record("folder")}, "record is given, seed is None"),
        ({"target": lambda: None}, "target is a function, and q a flow; .*AutoContinuous guide"),
        ({"target": lambda x: math.inf * x.square().sum((-1, -2))}, "none of 4096 draws"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"target": TARGET, "q": TARGET.flow(), **QUIET, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        sample(**given)


@pytest.mark.parametrize(
    ("memory", "fraction", "k", "expected"),
    [
        (0.0, 0.3, 0.4, {1}),
        (0.0, 0.08, 0.4, {3}),
        (11 / 13, 0.3, 0.4, {3, 4, 5}),
        (11 / 13, 0.3, 0.7, {3, 4, 5}),
        (11 / 13, 0.1, 0.7, {6, 8, 10}),
        (1.0, 0.3, 0.4, {6}),
        (0.0, 0.01, 0.4, {6}),
        (0.0, 0.01, 0.7, {6}),
    ],
)
def test_cycles_are_repeated_as_chains_need_to_forget(
    memory: float, fraction: float, k: float, expected: set[int]
) -> None:
    """Of an autocorrelation time of (1 + r) / (1 - r), or of chains that stand still."""
    noise = math.sqrt(1 - memory**2) * torch.randn(2000, 20, 3)
    steps = [torch.randn(20, 3)]
    for one in noise:
        steps.append(memory * steps[-1] + one)
    trial: Any = SimpleNamespace(positions=torch.stack(steps, 1))
    weights: Any = SimpleNamespace(ess=fraction, pareto_k=k)
    number, time = _repeats(trial, weights)
    assert number in expected
    if memory < 1:
        of_trial = (1 + memory) / (1 - memory) / (number if memory else 1)
        heavy = k > 0.6 and fraction < 0.2
        assert time == pytest.approx(LOCAL_TIME if heavy else of_trial, rel=0.25)


def test_chains_are_as_many_as_the_trial_allows() -> None:
    """Of a flow that forgets at once more than the trial had, each of them long."""
    flow = TARGET.flow(dtype=torch.float64)
    draws = sample(TARGET, flow, 6000, method="cycle", seed=0, **QUIET)
    assert draws.trial is not None
    assert draws.trial.num_chains == 6
    assert 12 <= draws.run.num_chains <= 20
    assert 6000 <= len(draws.get_samples()["x"]) < 6020
    assert draws.run.kernel.repeats == 1
    given = sample(TARGET, flow, 600, method="cycle", num_chains=5, seed=0, **QUIET)
    assert given.run.num_chains == given.trial.num_chains == 5


def test_chains_start_far_apart_where_the_trial_was() -> None:
    positions = torch.arange(3 * 100.0).view(3, 100, 1)
    assert torch.equal(_starts(positions, 2), positions[:2, -1])
    starts = _starts(positions, 8)
    assert starts.shape == (8, 1)
    assert torch.equal(starts[:3], positions[:, -1])
    assert torch.equal(starts[3:6], positions[:, -1 - 33])
    assert torch.equal(starts[6:], positions[:2, -1 - 66])


def test_the_model_of_a_potential_and_undefined_energies() -> None:
    draws = sample(TARGET.model, other_flow(), 100, seed=0, **QUIET)
    assert draws.get_samples()["x"].shape[1:] == (2, 2)

    def half(x: torch.Tensor) -> torch.Tensor:
        """Of fields that are positive on average."""
        return TARGET.energy(x) + x.mean((-1, -2)).sqrt() * 0.0

    with pytest.warns(UserWarning, match="of 4096 draws of q is NaN"):
        found = sample(half, other_flow(), 200, seed=0, **QUIET)
    assert bool((found.get_samples()["x"].mean((-1, -2)) >= 0).all())
