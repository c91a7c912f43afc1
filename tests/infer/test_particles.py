# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Programs that do not take all particles at once, that draw nothing, and Pyro's other losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, FreeField, fit, hierarchical_flow
from pyro_neuralrg.infer import PDD, FlowGuide

DATA = torch.linspace(-1.0, 3.0, 50, dtype=torch.float64)
TO_EVENT = dist.Normal(torch.ones(4, dtype=torch.float64), 0.5).to_event(1)


def four_normals() -> Tensor:
    return pyro.sample("f", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def beside_a_plate() -> None:
    f = four_normals()
    with pyro.plate("d", 50):
        pyro.sample("y", dist.Normal(f.mean(-1, keepdim=True), 1.0), obs=DATA)


def without_batch_dimensions() -> None:
    """Of the same density."""
    f = four_normals()
    mean = (f[0] + f[1] + f[2] + f[3]) / 4.0
    pyro.sample("y", dist.Normal(mean * torch.ones(50), 1.0).to_event(1), obs=DATA)


def sum_over_everything() -> None:
    f = four_normals()
    pyro.factor("y", dist.Normal(f.mean(-1)[..., None], 1.0).log_prob(DATA).sum())


def branches() -> None:
    """Which vmap does not take."""
    f = four_normals()
    mean = f.mean() if f.sum() > -1e9 else f.max()
    pyro.sample("y", dist.Normal(mean * torch.ones(50), 1.0).to_event(1), obs=DATA)


def broadcasting() -> None:
    f = four_normals()
    with pyro.plate("d", 50):
        pyro.sample("y", dist.Normal(f.mean(-1), 1.0), obs=DATA)


def guide() -> None:
    mean = pyro.param("mean", torch.ones(4))
    pyro.sample("f", dist.Normal(mean, 0.5).to_event(1))


def exact_loss() -> float:
    """E_q[ln q - ln pi] of f ~ N(1, 0.25): the mean of four has variance 1/16."""
    log_q = -2.0 * (1.0 + math.log(2.0 * math.pi * 0.25))
    prior = -2.0 * (math.log(2.0 * math.pi) + 1.0 + 0.25)
    squares = float((DATA - 1.0).square().sum()) + 50.0 / 16.0
    return log_q - prior + 25.0 * math.log(2.0 * math.pi) + 0.5 * squares


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (beside_a_plate, "model does not.*'y' one draw has a log density.*by torch.func.vmap"),
        (without_batch_dimensions, "model does not.*by torch.func.vmap"),
        (sum_over_everything, "model does not.*site 'y' .*by torch.func.vmap"),
        (branches, "model does not.*one particle after another"),
        (broadcasting, None),
    ],
)
@pytest.mark.parametrize("number", [4, 50, 400])
def test_losses_are_exact(model: Callable[[], None], match: str | None, number: int) -> None:
    """Also where the number of particles is that of the data, or of the field's sites."""
    elbo = PDD(number, vectorize_particles=True)
    if match is None:
        loss = elbo.loss(model, guide)
    else:
        with pytest.warns(UserWarning, match=match) as caught:
            loss = elbo.loss(model, guide)
        assert caught[0].filename == __file__
    assert elbo.log_weights is not None
    error = float(elbo.log_weights.std()) / math.sqrt(number)
    assert elbo.log_weights.shape == (number,)
    assert abs(loss - exact_loss()) < 5.0 * error
    elbo.loss(model, guide)  # the warning comes once


@pytest.mark.parametrize("path_gradient", [False, True])
@pytest.mark.parametrize("model", [beside_a_plate, without_batch_dimensions, branches])
def test_gradients_are_those_of_a_model_that_broadcasts(
    model: Callable[[], None], path_gradient: bool
) -> None:
    found = []
    for program in (broadcasting, model):
        elbo = PDD(7, vectorize_particles=True, path_gradient=path_gradient)
        pyro.set_rng_seed(3)
        if program is model:
            with pytest.warns(UserWarning, match="does not take all particles"):
                loss = elbo.loss_and_grads(program, guide)
        else:
            loss = elbo.loss_and_grads(program, guide)
        parameter: Any = pyro.get_param_store()._params["mean"]
        found.append((torch.tensor(loss), parameter.grad.clone()))
        parameter.grad = None
    torch.testing.assert_close(found[1], found[0])


def test_a_guide_that_does_not_broadcast() -> None:
    def model() -> None:
        pyro.sample("g", dist.Normal(four_normals()[..., 0], 1.0))

    def guide_of_first() -> None:
        f = pyro.sample("f", TO_EVENT)
        pyro.sample("g", dist.Normal(f[0], 2.0))

    elbo = PDD(400, vectorize_particles=True)
    with pytest.warns(UserWarning, match="guide does not.*both programs run for one particle"):
        loss = elbo.loss(model, guide_of_first)
    assert elbo.log_weights is not None
    error = float(elbo.log_weights.std()) / 20.0
    exact = 2.0 * (1.0 + 0.25 - 1.0 - math.log(0.25)) + 0.5 * (4.0 - 1.0 - math.log(4.0))
    assert abs(loss - exact) < 5.0 * error


def test_subsamples_are_those_of_the_guide() -> None:
    """Where the model runs by vmap; 2 of 4 data that count 10, 20, 30, 40 in an exact loss."""
    data = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)

    def model() -> None:
        f = four_normals()
        with pyro.plate("d", 4, subsample_size=2) as chosen:
            pyro.factor("y", data[chosen] + 0.0 * f.sum(-1, keepdim=True))

    def guide_of_half() -> None:
        pyro.plate("d", 4, subsample_size=2)
        pyro.sample("f", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    elbo = PDD(6, vectorize_particles=True)
    with pytest.warns(UserWarning, match=r"by torch.func.vmap"):
        elbo.loss(model, guide_of_half)
    assert elbo.log_weights is not None
    sums = elbo.log_weights / 2.0
    assert sums[0].item() in (30.0, 40.0, 50.0, 60.0, 70.0)
    torch.testing.assert_close(sums, sums[0].expand(6))


def test_nothing_is_said_where_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """Neither of models that are random by themselves, nor Pyro's guess; nothing is used up."""

    def noisy() -> None:
        with pyro.plate("d", 50):
            mean = torch.nn.functional.dropout(torch.ones(()), 0.5)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA)

    with caplog.at_level(logging.INFO):
        PDD(5, vectorize_particles=True).loss(noisy, lambda: None)
        pyro.set_rng_seed(0)
        first = PDD(5, vectorize_particles=True).loss(broadcasting, guide)
        pyro.set_rng_seed(0)
        elbo = PDD(5, vectorize_particles=True)
        elbo._guess_max_plate_nesting(broadcasting, guide, (), {})
        traces = elbo._get_traces(broadcasting, guide, (), {})
        model_trace, guide_trace = next(iter(traces))
        loss = (guide_trace.log_prob_sum() - model_trace.log_prob_sum()) / 5.0
        assert loss.item() == pytest.approx(first, rel=1e-12)
    assert not caplog.records


def test_fit_of_a_model_without_batch_dimensions() -> None:
    """With arguments, and the guide that has seen none: to the evidence of a normal posterior."""
    y = torch.tensor([0.5, 1.0, -0.2, 0.4], dtype=torch.float64)

    def model(y: Tensor) -> None:
        f = four_normals()
        pyro.sample("y", dist.Normal(torch.stack([f[i] for i in range(4)]), 1.0).to_event(1), obs=y)

    flow = AutoHierarchicalFlow(model, field="f")
    with pytest.warns(UserWarning, match=r"model does not.*by torch.func.vmap"):
        result = fit(model, flow, steps=20, batch=16, lr=1e-3, model_args=(y,), progress=False)
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(y).sum()
    loss, error = result.history.free_energy[-1], result.history.free_energy_se[-1]
    assert abs(loss + float(evidence)) < 5.0 * error + 1e-3


def draws_nothing() -> None:
    pyro.sample("y", dist.Normal(pyro.param("a", torch.tensor(0.2)), 1.0), obs=torch.tensor(0.3))


def with_factor() -> None:
    x = pyro.sample("f", TO_EVENT)
    b = pyro.param("b", torch.tensor(0.2))
    pyro.factor("gf", -x.square().sum(-1) / 3.0 + b, has_rsample=True)


def factor_alone() -> None:
    pyro.factor("gf", pyro.param("b", torch.tensor(0.2)) * 1.0, has_rsample=True)


def nothing() -> None:
    pass


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of sites in one program only
@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (nothing, nothing),
        (nothing, guide),
        (nothing, factor_alone),
        (draws_nothing, nothing),
        (draws_nothing, factor_alone),
        (broadcasting, with_factor),
    ],
)
@pytest.mark.parametrize(("number", "vectorize"), [(1, False), (3, False), (3, True)])
def test_losses_are_those_of_pyro(
    model: Callable[[], None], guide: Callable[[], None], number: int, vectorize: bool
) -> None:
    """Also of programs without sample sites, and of guides with factors."""
    found = []
    for kind in (Trace_ELBO, PDD):
        elbo = kind(number, vectorize_particles=vectorize)
        elbo._guess_max_plate_nesting(model, guide, (), {})
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = elbo.loss_and_grads(model, guide)
        grads = {n: p.grad for n, p in pyro.get_param_store()._params.items()}
        found.append((torch.tensor(loss), grads))
    torch.testing.assert_close(found[1], found[0])


def test_factors_that_are_not_reparameterised() -> None:
    def score_factor() -> None:
        pyro.factor("gf", pyro.param("b", torch.tensor(0.2)) * 1.0, has_rsample=False)

    with pytest.raises(ValueError, match="guide factor 'gf' has has_rsample=False; accepted"):
        PDD().loss(draws_nothing, score_factor)


LOSSES = ("Trace", "TraceMeanField", "TraceGraph", "TraceEnum", "Renyi", "TraceTMC")


def programs_of(kind: str) -> tuple[Any, Any]:
    if kind == "flow":
        return FreeField((2, 2), 1.0).model, FlowGuide(hierarchical_flow((2, 2)))
    return broadcasting, AutoHierarchicalFlow(broadcasting, field="f")


@pytest.mark.filterwarnings("ignore:.*no sample sites configured for enumeration:UserWarning")
@pytest.mark.parametrize("kind", ["flow", "guide"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pyro_take_our_guides(name: str, kind: str) -> None:
    names = {"Renyi": "RenyiELBO", "TraceTMC": "TraceTMC_ELBO"}
    module: Any = pyro.infer
    path = names.get(name, f"{name}_ELBO")
    loss = getattr(module, path, None) or pyro.infer.tracetmc_elbo.TraceTMC_ELBO
    model, guide = programs_of(kind)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss(num_particles=3))
    before = [p.detach().clone() for p in guide.parameters()]
    svi.step()
    changed = [not torch.equal(p, q) for p, q in zip(guide.parameters(), before, strict=True)]
    assert any(changed)
    assert math.isfinite(svi.step())


@pytest.mark.parametrize("kind", ["flow", "guide"])
def test_traced_losses_are_refused(kind: str) -> None:
    model, guide = programs_of(kind)
    loss = pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
    with (
        pytest.warns(DeprecationWarning, match="torch.jit.trace"),
        pytest.raises(ValueError, match=r"by torch.jit, .*accepted: PDD, or Pyro's losses without"),
    ):
        svi.step()
