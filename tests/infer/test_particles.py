# SPDX-License-Identifier: Apache-2.0
"""Programs that do not take all particles at once, that draw nothing, and Pyro's other losses."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, FreeField, fit, hierarchical_flow
from pyro_neuralrg.infer import PDD, FlowGuide

DATA = torch.linspace(-1.0, 3.0, 50, dtype=torch.float64)


def four_normals() -> Tensor:
    return pyro.sample("f", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def broadcasting() -> None:
    f = four_normals()
    with pyro.plate("d", 50):
        pyro.sample("y", dist.Normal(f.mean(-1), 1.0), obs=DATA)


def beside_a_plate() -> None:
    f = four_normals()
    with pyro.plate("d", 50):
        pyro.sample("y", dist.Normal(f.mean(-1, keepdim=True), 1.0), obs=DATA)


def without_batch_dimensions() -> None:
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


def guide() -> Tensor:
    mean = pyro.param("mean", torch.ones(4))
    return pyro.sample("f", dist.Normal(mean, 0.5).to_event(1))


def guide_of_entries() -> None:
    """The same guide, which does not broadcast."""
    f = guide()
    pyro.factor("gf", f[0] - f[..., 0], has_rsample=True)


def exact_loss() -> float:
    """E_q[ln q - ln pi] of f ~ N(1, 0.25): the mean of four has variance 1/16."""
    log_q = -2.0 * (1.0 + math.log(2.0 * math.pi * 0.25))
    prior = -2.0 * (math.log(2.0 * math.pi) + 1.0 + 0.25)
    squares = float((DATA - 1.0).square().sum()) + 50.0 / 16.0
    return log_q - prior + 25.0 * math.log(2.0 * math.pi) + 0.5 * squares


Programs = tuple[Callable[[], Any], Callable[[], Any], str]
APART: list[Programs] = [
    (beside_a_plate, guide, "model does not.*'y' one draw has a log density.*by torch.func.vmap"),
    (without_batch_dimensions, guide, "model does not.*by torch.func.vmap"),
    (sum_over_everything, guide, "model does not.*site 'y' .*by torch.func.vmap"),
    (branches, guide, "model does not.*it runs for one particle after another"),
    (broadcasting, guide_of_entries, "guide does not.*both programs run for one particle"),
]


def said(match: str) -> Any:
    return pytest.warns(UserWarning, match=match) if match else contextlib.nullcontext([])


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of a factor in the guide only
@pytest.mark.parametrize(("model", "guide", "match"), [*APART, (broadcasting, guide, "")])
@pytest.mark.parametrize("number", [4, 50, 400])
def test_losses_are_exact(model: Any, guide: Any, match: str, number: int) -> None:
    """Also where the number of particles is that of the data, or of the field's sites."""
    elbo = PDD(number, vectorize_particles=True)
    with said(match) as caught:
        loss = elbo.loss(model, guide)
    assert all(warning.filename == __file__ for warning in caught)
    assert elbo.log_weights is not None
    assert elbo.log_weights.shape == (number,)
    assert abs(loss - exact_loss()) < 5.0 * float(elbo.log_weights.std()) / math.sqrt(number)
    elbo.loss(model, guide)  # the warning comes once


@pytest.mark.parametrize("path_gradient", [False, True])
@pytest.mark.parametrize(("model", "guide", "match"), APART[::3])
def test_gradients_are_those_of_a_model_that_broadcasts(
    model: Any, guide: Any, match: str, path_gradient: bool
) -> None:
    found = []
    for program, message in ((broadcasting, ""), (model, match)):
        elbo = PDD(7, vectorize_particles=True, path_gradient=path_gradient)
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        with said(message):
            loss = elbo.loss_and_grads(program, guide)
        found.append((torch.tensor(loss), pyro.param("mean").grad))
    torch.testing.assert_close(found[1], found[0])


def test_subsamples_are_those_of_the_guide() -> None:
    """Where the model runs by vmap; 2 of 4 data that count 10, 20, 30, 40 in an exact loss."""
    data = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)

    def model() -> None:
        f = four_normals()
        with pyro.plate("d", 4, subsample_size=2) as chosen:
            pyro.factor("y", data[chosen] + 0.0 * f.sum(-1, keepdim=True))

    def guide_of_half() -> None:
        pyro.plate("d", 4, subsample_size=2)
        four_normals()

    elbo = PDD(6, vectorize_particles=True)
    with said("by torch.func.vmap"):
        elbo.loss(model, guide_of_half)
    assert elbo.log_weights is not None
    sums = elbo.log_weights / 2.0
    assert sums[0].item() in (30.0, 40.0, 50.0, 60.0, 70.0)
    torch.testing.assert_close(sums, sums[0].expand(6))


def test_nothing_is_said_of_models_that_are_random_by_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor is Pyro's guess of plates."""

    def noisy() -> None:
        mean = torch.nn.functional.dropout(four_normals().mean(-1), 0.5)
        with pyro.plate("d", 50):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA)

    with caplog.at_level(logging.INFO):
        PDD(5, vectorize_particles=True).loss(noisy, guide)
    assert not caplog.records


@pytest.mark.parametrize("is_used", [False, True])
def test_sites_beside_random_numbers_are_compared(is_used: bool) -> None:
    """One that depends on them says nothing, the others do."""

    def model() -> None:
        noise = torch.rand(1)[0] if is_used else 0.0 * torch.rand(1)[0]
        f = four_normals()
        pyro.factor("n", noise + 0.0 * f.sum(-1))
        with pyro.plate("d", 4):
            pyro.sample("y", dist.Normal(f.sum(), 1.0), obs=torch.ones(4))

    elbo = PDD(4, vectorize_particles=True)
    how = "" if is_used else "by torch.func.vmap"
    with said(f"model does not.*site 'y' one draw.*it runs {how}"):
        loss = elbo.loss(model, guide)
    assert math.isfinite(loss)


@pytest.mark.parametrize("path_gradient", [False, True])
def test_arguments_are_changed_by_the_evaluation_alone(path_gradient: bool) -> None:
    def centred(y: Tensor) -> None:
        f = four_normals()
        pyro.sample("y", dist.Normal(f.sum(-1), 1.0), obs=y.sub_(1.0))

    y = torch.tensor(5.0)
    elbo = PDD(4, vectorize_particles=True, path_gradient=path_gradient)
    elbo.loss_and_grads(centred, lambda y: guide(), y)
    assert y == 4.0


def test_fit_of_a_model_without_batch_dimensions() -> None:
    """With arguments, and the guide that has seen none: to the evidence of a normal posterior."""
    y = torch.tensor([0.5, 1.0, -0.2, 0.4], dtype=torch.float64)

    def model(y: Tensor) -> None:
        f = four_normals()
        pyro.sample("y", dist.Normal(torch.stack([f[i] for i in range(4)]), 1.0).to_event(1), obs=y)

    flow = AutoHierarchicalFlow(model, field="f")
    with said("model does not.*by torch.func.vmap"):
        result = fit(model, flow, steps=20, batch=16, lr=1e-3, model_args=(y,), progress=False)
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(y).sum()
    loss, error = result.history.free_energy[-1], result.history.free_energy_se[-1]
    assert abs(loss + float(evidence)) < 5.0 * error + 1e-3


LOSSES: dict[str, Any] = {
    **{name: getattr(pyro.infer, f"{name}_ELBO") for name in ("Trace", "TraceMeanField")},
    **{name: getattr(pyro.infer, f"{name}_ELBO") for name in ("TraceGraph", "TraceEnum")},
    "Renyi": pyro.infer.RenyiELBO,
    "TraceTMC": pyro.infer.tracetmc_elbo.TraceTMC_ELBO,
    # whose loss Pyro does not compute: inf
    "TailAdaptive": partial(pyro.infer.TraceTailAdaptive_ELBO, vectorize_particles=True),
}


def svi_of(kind: str, loss: Any) -> SVI:
    model, guide = broadcasting, AutoHierarchicalFlow(broadcasting, field="f")
    if kind == "flow":
        model, guide = FreeField((2, 2), 1.0).model, FlowGuide(hierarchical_flow((2, 2)))
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)


@pytest.mark.filterwarnings("ignore:.*no sample sites configured for enumeration:UserWarning")
@pytest.mark.parametrize("kind", ["flow", "guide"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pyro_take_our_guides(name: str, kind: str) -> None:
    svi = svi_of(kind, LOSSES[name](num_particles=3))
    before = [p.detach().clone() for p in svi.guide.parameters()]
    svi.step()
    assert math.isfinite(svi.step()) != (name == "TailAdaptive")
    after = list(svi.guide.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(after, before, strict=True))
    assert all(bool(p.isfinite().all()) for p in after)


@pytest.mark.parametrize("kind", ["flow", "guide"])
def test_traced_losses_are_refused(kind: str) -> None:
    svi = svi_of(kind, pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True))
    with (
        pytest.warns(DeprecationWarning, match="torch.jit.trace"),
        pytest.raises(ValueError, match=r"by torch.jit, .*accepted: PDD, or Pyro's losses without"),
    ):
        svi.step()
