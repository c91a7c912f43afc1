# SPDX-License-Identifier: Apache-2.0
"""Evidences of Pyro models from their guides, against exact ones."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_mean
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, FlowGuide
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.mcmc import ModelTarget
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow
from tests.free_energy.solvable_model import (
    DATA,
    NOISE,
    at_the_mean,
    exact,
    exact_guide,
    model,
    observe,
)


def prepared(kind: Any, **options: Any) -> Any:
    guide = kind(model, **options)
    guide(DATA)
    return guide


def wide(kind: Any, **options: Any) -> Any:
    return prepared(kind, init_loc_fn=at_the_mean(), init_scale=0.9, **options)


def swapped(data: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.2, 0.8))
    field = pyro.sample("field", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    observe(field, scale, data)


@pytest.mark.parametrize(
    ("program", "args", "kwargs"),
    [(model, (DATA,), {}), (model, (), {"data": DATA, "noise": NOISE}), (swapped, (DATA,), {})],
)
def test_the_posterior_itself_is_exact(program: Any, args: Any, kwargs: Any) -> None:
    """A constrained site, masked data, no batches, sites in another order than the guide's."""
    found = estimate(program, exact_guide(), 50, 20, model_args=args, model_kwargs=kwargs)
    assert found.importance == pytest.approx(-exact()[0], abs=1e-9)
    assert found.variational == pytest.approx(-exact()[0], abs=1e-9)
    assert found.num_samples == 50


@pytest.mark.parametrize(
    ("kind", "options", "number"),
    [(AutoHierarchicalFlow, {"field": "field"}, 4000), (AutoNormal, {}, 400)],
)
def test_a_wide_guide_gives_it_within_its_error(kind: Any, options: Any, number: int) -> None:
    guide = wide(kind, **options)
    found = estimate(model, guide, number, model_args=(DATA,))
    assert 0.02 < found.importance_se < 0.4
    assert abs(found.importance + exact()[0]) < 4 * found.importance_se
    assert found.variational > -exact()[0] + 4 * found.variational_se  # it is not the posterior


def test_the_bound_by_hand() -> None:
    """And looking at the model uses no random numbers up."""
    guide = wide(AutoDiagonalNormal)
    torch.manual_seed(3)
    found = estimate(model, guide, 500, model_args=(DATA,))
    torch.manual_seed(3)
    u = guide.get_posterior().sample((500,))
    minus_log_p = ModelTarget(model).setup(DATA).energy(u)
    expected = (guide.get_posterior().log_prob(u) + minus_log_p).mean()
    assert found.variational == pytest.approx(expected.item())


def test_a_potential_with_an_autoguide_is_its_own_model() -> None:
    potential = FreeField((3, 3), mass=1.0)
    options: dict[str, Any] = {"init_loc_fn": init_to_mean, "init_scale": 1.0}
    guide = AutoHierarchicalFlow(potential.model, "x", spectrum=potential.spectrum, **options)
    found = estimate(potential, guide, 1000)
    assert abs(found.importance + potential.log_partition()) < max(4 * found.importance_se, 1e-9)
    assert found.ess > 0.5


def test_a_flow_guide_with_a_model_rather_than_an_energy(target: Any, flow: Any) -> None:
    flow.set_exact(target)
    found = estimate(target.model, FlowGuide(flow), 20, model_args=())
    assert found.importance == pytest.approx(-target.log_partition())


def test_refuses_points_of_single_sites() -> None:
    def two() -> None:
        pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("t", dist.Normal(0.0, 1.0))

    def by_hand() -> None:
        pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("t", dist.Delta(torch.tensor(0.5)))

    of_each = AutoGuideList(two)
    of_each.append(AutoNormal(poutine.block(two, hide=["t"])))
    of_each.append(AutoDelta(poutine.block(two, hide=["s"])))
    for guide in (by_hand, of_each):
        with pytest.raises(TypeError, match="guide's site 't' is a point; accepted"):
            estimate(two, guide, 10, model_args=())


def test_refuses_subsampled_data() -> None:
    def subsampled(data: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3, subsample_size=2) as index:
            pyro.sample("data", dist.Normal(x, 1.0), obs=data[index])

    for guide in (AutoDiagonalNormal(subsampled), AutoNormal(subsampled)):
        guide(DATA[:, 0])
        with pytest.raises(ValueError, match=r"plate 'rows' .* subsampled \(2 of 3\); accepted"):
            estimate(subsampled, guide, 10, model_args=(DATA[:, 0],))


def of_other_sites(data: Tensor) -> None:
    pyro.sample("level", dist.Normal(0.0, 1.0))
    model(data)


BAD: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (model, lambda: prepared(AutoDelta), {}, TypeError, "guide is an AutoDelta, a point; acc"),
    (model, lambda: prepared(AutoLaplaceApproximation), {}, TypeError, "ation, a point; accepted"),
    (of_other_sites, exact_guide, {}, ValueError, r"model has the latent sites \{'level': .* acc"),
    (of_other_sites, lambda: prepared(AutoNormal), {}, ValueError, r"sites \['field', 'level', 's"),
    (model, lambda: AutoIAFNormal(model), {}, ValueError, r"and the guide \{\}; accepted"),
    (model, lambda: hierarchical_flow((3, 2)), {}, TypeError, "q is a Hier.*; accepted: a guide o"),
    ("model", exact_guide, {}, TypeError, "target is a str; accepted: a Pyro model"),
    (model, exact_guide, {"model_args": DATA}, TypeError, "model_args is a Tensor; accepted: a"),
]


@pytest.mark.parametrize(("target", "guide", "options", "error", "match"), BAD)
def test_bad_arguments(
    target: Any, guide: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        estimate(target, guide(), **({"num_samples": 10, "model_args": (DATA,)} | options))
