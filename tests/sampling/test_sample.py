# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One call for draws: exact means by every method, of potentials and of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_neuralrg import AutoHierarchicalFlow, FlowGuide, IsingDual, Record, diagnose, sample
from pyro_neuralrg.sampling.choice import METHODS
from tests.free_energy.solvable_model import DATA, at_the_mean, exact, model

QUIET: dict[str, Any] = {"progress": False}
TARGET = IsingDual((3, 3), temperature=3.0)


def rough_flow() -> Any:
    """A flow whose draws are not the target's: the effective part of the weights is some percent."""
    flow = TARGET.flow(dtype=torch.float64)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


@pytest.mark.parametrize("method", [*METHODS, None])
def test_structure_factor_of_a_potential(method: str | None, seed: int) -> None:
    observables = {"factor": TARGET.observables()["structure_factor"]}
    draws = sample(
        TARGET, rough_flow(), 6000, method=method, seed=seed, observables=observables, **QUIET
    )
    found = draws.mean(draws.observables["factor"])
    error = float(found.standard_error)
    assert 0 < error < 0.05
    assert float(found.estimate) == pytest.approx(TARGET.spins.structure_factor(), abs=4 * error)
    assert (draws.log_weights is not None) == (draws.method == "annealing")
    assert draws.method in METHODS and draws.method in repr(draws) and draws.reason in repr(draws)
    fields = draws.get_samples()["x"]
    assert fields.shape == (len(fields), 3, 3) and len(fields) >= 6000
    assert "factor" in draws.summary().index
    assert diagnose(draws.to_arviz()).ok


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal])
def test_posterior_of_a_model(kind: Any, method: str, seed: int) -> None:
    guide = kind(model, init_loc_fn=at_the_mean(), init_scale=0.7)
    guide(DATA)
    draws = sample(model, guide, 4000, model_args=(DATA,), method=method, seed=seed, **QUIET)
    found = draws.get_samples(group_by_chain=True)
    values = torch.cat([found["field"].flatten(2), found["scale"].log().unsqueeze(-1)], -1)
    _, mean, covariance = exact()
    for power, right in ((1, mean), (2, covariance.diagonal() + mean**2)):
        moment = values**power if draws.log_weights is None else values[0] ** power
        estimate = draws.mean(moment)
        assert float(((estimate.estimate - right) / estimate.standard_error).abs().max()) < 4.5


def test_seed_and_record(tmp_path: Path) -> None:
    flow = rough_flow()
    first, again = (sample(TARGET, FlowGuide(flow), 500, seed=3, **QUIET) for _ in range(2))
    assert torch.equal(first.get_samples()["x"], again.get_samples()["x"])
    kept = sample(TARGET, flow, 500, seed=3, record=Record(tmp_path), **QUIET)
    more = sample(TARGET, flow, 1000, seed=3, record=Record(tmp_path, resume=True), **QUIET)
    one, two = (run.get_samples(group_by_chain=True)["x"] for run in (kept, more))
    assert torch.equal(two[:, : one.shape[1]], one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nuts"}, "method is 'nuts'; accepted: independence"),
        ({"method": "annealing", "keep_draws": False}, "method is 'annealing'"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"q": torch.nn.Linear(2, 2)}, "q is a Linear; accepted: a flow"),
        ({"target": None}, "target is a NoneType"),
        ({"model_args": (DATA,)}, "arguments of run"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"target": TARGET, "q": TARGET.flow(), **QUIET, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        sample(**given)
