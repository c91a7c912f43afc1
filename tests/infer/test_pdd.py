# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from functools import partial
from typing import Any
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow, TwoModes
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.transforms import hierarchical_flow
from tests.infer.second_pass import loss_and_path_gradients

DATA = torch.tensor([0.3, -1.2, 2.0, 0.7, 0.1, 0.9], dtype=torch.float64)


def plated_model() -> None:
    """Latents outside and inside a plate, observations, and a trained parameter of the model."""
    scale = pyro.param("model_scale", torch.tensor(1.3), constraint=constraints.positive)
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6):
        local = pyro.sample("local", dist.Normal(loc, 1.0))
        pyro.sample("obs", dist.Normal(local, scale), obs=DATA)


def plated_guide() -> None:
    mean = pyro.param("mean", torch.tensor(0.4))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    loc = pyro.sample("loc", dist.Normal(mean, scale))
    with pyro.plate("data", 6):
        weight = pyro.param("weight", torch.tensor(0.5))
        pyro.sample("local", dist.Normal(weight * loc + 0.1, 0.8))


def minibatch_model() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 6, subsample_size=3) as chosen:
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=DATA[chosen])


def minibatch_guide() -> None:
    pyro.plate("data", 6, subsample_size=3)
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.4)), scale))


PROGRAMS = {
    "plated": (plated_model, plated_guide),
    "minibatch": (minibatch_model, minibatch_guide),
}


def gradients() -> dict[str, torch.Tensor]:
    """Take the gradients out of the parameter store."""
    found = {}
    for name, parameter in pyro.get_param_store()._params.items():
        found[name], parameter.grad = parameter.grad, None
    return found


@pytest.mark.parametrize(
    ("program", "path_gradient"), [("plated", False), ("minibatch", False), ("minibatch", True)]
)
@pytest.mark.parametrize("vectorize", [False, True])
def test_three_losses_agree(program: str, vectorize: bool, path_gradient: bool) -> None:
    """Under one seed all three are one number and one gradient, and those of Pyro's own loss."""
    model, guide = PROGRAMS[program]
    elbo = PDD(num_particles=5, vectorize_particles=vectorize, path_gradient=path_gradient)
    pyros = Trace_ELBO(num_particles=5, vectorize_particles=vectorize)
    pyros._guess_max_plate_nesting(model, guide, (), {})

    def backward(model: Any, guide: Any) -> float:
        loss = elbo.differentiable_loss(model, guide)
        loss.backward()
        return loss.item()

    losses, found = [], []
    for step in (pyros.loss_and_grads, elbo.loss, backward, elbo.loss_and_grads):
        pyro.set_rng_seed(0)
        losses.append(step(model, guide))
        found.append(gradients())
    assert losses == pytest.approx(losses[:1] * 4, rel=1e-10)
    torch.testing.assert_close(found[2], found[3])
    if not path_gradient:
        torch.testing.assert_close(found[2], found[0])
    assert all(bool(value.any()) for value in found[2].values())
    assert elbo.log_weights is not None
    assert elbo.log_weights.shape == (5,)
    assert not elbo.log_weights.requires_grad
    assert -elbo.log_weights.mean().item() == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("symmetrized", [False, True])
def test_path_gradient_vanishes_at_the_optimum(
    target: Any, flow: Any, symmetrized: bool, cache_size: int
) -> None:
    """Where q is the target the gradient of every single sample is zero; the plain one is not."""
    flow._cache_size, flow._cached_x_y = cache_size, (None, None)  # of torch's own
    flow.set_exact(target)
    guide = FlowGuide(SymmetrizedFlow(flow) if symmetrized else flow)

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2).mask(False))
        mirrored = -target.energy(-x) if symmetrized else torch.tensor(-math.inf)
        pyro.factor("f", torch.logaddexp(-target.energy(x), mirrored))

    sizes = []
    for path in (False, True):
        PDD(8, vectorize_particles=True, path_gradient=path).loss_and_grads(model, guide)
        sizes.append(float(flow.loc.grad.abs().max() + flow.log_scale.grad.abs().max()))
        flow.zero_grad()
    assert sizes[0] > 1e-2
    assert sizes[1] < 1e-10


def quartic() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand((2, 2)).to_event(2).mask(False))
    pyro.factor("f", -x.pow(4).sum((-1, -2)))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("surroundings", ["none", "plate", "scale"])
def test_path_gradient_is_that_of_a_second_pass(vectorize: bool, surroundings: str) -> None:
    flow = hierarchical_flow((2, 2), base=TwoModes(2.0))
    elbo = PDD(4, vectorize_particles=vectorize, path_gradient="always")
    kinds = {
        "none": lambda program: program,
        "plate": pyro.plate("copies", 3),
        "scale": pyro.poutine.scale(scale=2.5),
    }
    around: Any = kinds[surroundings]
    model, guide = around(quartic), around(FlowGuide(flow))
    losses, found = [], []
    for step in (elbo.loss_and_grads, partial(loss_and_path_gradients, elbo)):
        pyro.set_rng_seed(3)
        flow.zero_grad()
        losses.append(step(model, guide))
        found.append({n: p.grad for n, p in flow.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1])
    assert found[0]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


def test_path_gradient_makes_no_inverse_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would cost more than all the rest of the step."""
    flow = hierarchical_flow((2, 2))
    counted = Mock(side_effect=flow.renormalize)
    monkeypatch.setattr(flow, "renormalize", counted)
    FlowGuide(flow).distribution().log_prob(torch.zeros(2, 2))
    assert counted.call_count == 1, "what is counted is not what an inverse pass calls"
    elbo = PDD(4, vectorize_particles=True, path_gradient="always")
    elbo.loss_and_grads(quartic, FlowGuide(flow))
    assert counted.call_count == 1


def test_path_gradient_of_several_sites_is_refused() -> None:
    """One may depend on another, and its score alone has less."""
    with pytest.raises(ValueError, match=r"sites \['loc', 'local'\]; accepted: guides of one site"):
        PDD(path_gradient=True).loss_and_grads(plated_model, plated_guide)


def test_density_of_a_draw_with_score_keeps_its_gradient() -> None:
    """A draw for a path gradient must not serve a later ln q without its graph."""
    flow = hierarchical_flow((2, 2))
    q = FlowDistribution(flow)
    x, log_q, score = q.rsample_with_score((5,))
    assert not log_q.requires_grad
    assert not score.requires_grad
    again = q.log_prob(x)
    torch.testing.assert_close(again, log_q)
    parameters = list(flow.parameters())
    found = torch.autograd.grad(again.sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(q.log_prob(x.clone()).sum(), parameters)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("with_svi", [True, False])
def test_trains(target: Any, flow: Any, with_svi: bool) -> None:
    elbo, guide = PDD(64, vectorize_particles=True), FlowGuide(flow)
    svi = SVI(target.model, guide, pyro.optim.Adam({"lr": 0.1}), loss=elbo)
    module = elbo(target.model, guide)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(60):
        if with_svi:
            svi.step()
        else:
            optimiser.zero_grad()
            module().backward()
            optimiser.step()
    assert svi.evaluate_loss() == pytest.approx(-target.log_partition(), abs=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_warns_of_losses_that_are_not_finite(value: float) -> None:
    def guide() -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def model() -> None:
        pyro.factor("f", torch.full_like(pyro.sample("x", dist.Normal(0.0, 1.0)), -value))

    elbo = PDD(num_particles=3, vectorize_particles=True)
    with (
        pytest.warns(UserWarning, match="Encountered.*loss"),
        pyro.validation_enabled(False),  # else pyro.factor refuses a NaN by itself
    ):
        assert not math.isfinite(elbo.loss_and_grads(model, guide))


def test_repr_says_the_options() -> None:
    assert repr(PDD()) == "PDD(num_particles=1)"
    elbo = PDD(16, vectorize_particles=True, path_gradient=True)
    assert repr(elbo) == "PDD(num_particles=16, vectorize_particles=True, path_gradient=True)"


@pytest.mark.parametrize(("data", "expected"), [(10, 1), (10**5, 2)])
def test_small_problems_get_one_thread(data: int, expected: int) -> None:
    seen = []

    def model() -> None:
        seen.append(torch.get_num_threads())
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", data):
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(data))

    guide = AutoNormal(model)
    elbo = PDD(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    elbo.loss(model, guide)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        elbo.loss_and_grads(model, guide)
        assert seen[-1] == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
