# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from pyro_neuralrg import fit
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


def nothing() -> None:
    pass


def draws_nothing() -> None:
    pyro.sample("y", dist.Normal(pyro.param("a", torch.tensor(0.2)), 1.0), obs=torch.tensor(0.3))


def factor_alone(has_rsample: bool = True) -> None:
    pyro.factor("gf", pyro.param("b", torch.tensor(0.2)) * 1.0, has_rsample=has_rsample)


def with_factor() -> None:
    minibatch_guide()
    factor_alone()


PROGRAMS: list[Any] = [
    (plated_model, plated_guide, False),
    (minibatch_model, minibatch_guide, False),
    (minibatch_model, minibatch_guide, True),
    (minibatch_model, with_factor, False),
    (nothing, nothing, False),
    (nothing, minibatch_guide, False),
    (nothing, factor_alone, False),
    (draws_nothing, nothing, False),
    (draws_nothing, factor_alone, True),
]


def gradients() -> dict[str, torch.Tensor | None]:
    """Take the gradients out of the parameter store."""
    found = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        found[name], parameter.grad = parameter.grad, None
    return found


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of sites in one program only
@pytest.mark.parametrize(("model", "guide", "path_gradient"), PROGRAMS)
@pytest.mark.parametrize(("number", "vectorize"), [(1, False), (5, False), (5, True)])
def test_losses_agree(
    model: Any, guide: Any, path_gradient: bool, number: int, vectorize: bool
) -> None:
    """Under one seed all three are one number and one gradient, and those of Pyro's own loss."""
    elbo = PDD(number, vectorize_particles=vectorize, path_gradient=path_gradient)
    pyros = Trace_ELBO(number, vectorize_particles=vectorize)
    pyros._guess_max_plate_nesting(model, guide, (), {})  # which uses random numbers

    def backward(model: Any, guide: Any) -> float:
        loss = elbo.differentiable_loss(model, guide)
        if loss.requires_grad:
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
    assert all(gradient is not None for gradient in found[2].values())
    if path_gradient:
        assert all(bool(gradient.any()) for gradient in found[2].values())
    assert elbo.log_weights is not None
    assert elbo.log_weights.shape == (number,)
    assert not elbo.log_weights.requires_grad
    assert -elbo.log_weights.mean().item() == pytest.approx(losses[0], rel=1e-12)


def bernoulli() -> None:
    pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (bernoulli, bernoulli, "site 'k' has distribution Bernoulli, which has no rsample"),
        (draws_nothing, partial(factor_alone, False), "factor 'gf' has has_rsample=False"),
    ],
)
def test_what_is_not_reparameterised(model: Any, guide: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"guide {message}; accepted by PDD"):
        PDD().loss(model, guide)


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


def test_trains(target: Any, flow: Any) -> None:
    """As a module, in a loop of torch."""
    module: Any = PDD(64, vectorize_particles=True)(target.model, FlowGuide(flow))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        module().backward()
        optimiser.step()
    assert module().item() == pytest.approx(-target.log_partition(), abs=0.1)


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


def drawn_normal(loc: float = 0.0) -> None:
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(loc)), 1.0))


def nan_data() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(x, 1.0), obs=DATA.where(DATA > -1.0, math.nan))


def root() -> None:
    pyro.factor("f", (pyro.sample("x", dist.Normal(0.0, 1.0)) - 50.0).sqrt())


@pytest.mark.parametrize(
    ("model", "loc", "message"),
    [
        (nan_data, 0.0, "model site 'y' has 1 NaN of 6"),
        (root, 0.0, "the density of model site 'f' is NaN"),
        (root, math.nan, "guide site 'x' has 1 NaN of 1"),
    ],
)
def test_what_is_nan_is_named(model: Any, loc: float, message: str) -> None:
    guide = partial(drawn_normal, loc)
    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match=f"Encountered NaN: loss: {message}"):
        PDD(3).loss_and_grads(model, guide)
    if math.isfinite(loc):
        message = message.replace("model site 'y'", "observed site 'y'")
        with pytest.raises(ValueError, match=message):
            fit(model, guide, steps=2, batch=4, lr=0.01, progress=False)


def test_what_cannot_run_again_names_no_site() -> None:
    """The loss is NaN, and the data were an iterator."""

    def model(y: Iterator[torch.Tensor]) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", math.nan * x * next(y))

    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match="Encountered NaN: loss$"):
        PDD().loss(model, lambda y: drawn_normal(), iter([torch.tensor(1.0)]))
    y = torch.tensor(1.0)
    with pytest.warns(UserWarning, match="Encountered NaN: loss: the density of model site 'f'"):
        PDD().loss(lambda y: model(iter([y.add_(1.0)])), lambda y: drawn_normal(), y)
    assert y == 2.0


@pytest.mark.parametrize("is_event", [False, True])
def test_many_data_in_float32_are_summed_in_float64(is_event: bool) -> None:
    """Sums of 300,000 nats in float32 have steps of 0.03, which would be the noise of a loss."""
    data = torch.randn(200_000, dtype=torch.float32) + 2.0
    losses = []
    for y in (data, data.double()):

        def model(y: torch.Tensor = y) -> None:
            x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
            if is_event:
                pyro.sample("y", dist.Normal(x.expand(len(y)), 1.0).to_event(1), obs=y)
            else:
                with pyro.plate("data", len(y)):
                    pyro.sample("y", dist.Normal(x, 1.0), obs=y)

        at = dist.Delta(y.new_tensor(2.0))
        losses.append(PDD().loss(model, partial(pyro.sample, "x", at)))
    assert losses[0] == pytest.approx(losses[1], abs=0.005)


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
