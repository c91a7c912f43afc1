# SPDX-License-Identifier: Apache-2.0
"""FlowReparam under Pyro's own handlers and samplers (paper Eq. 6)."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import AutoReparam

from pyro_neuralrg import FlowReparam, FreeField, IsingDual, hierarchical_flow
from pyro_neuralrg.distributions import StandardNormal, TwoModes
from pyro_neuralrg.mcmc import LatentTarget, as_target
from tests.mcmc.registry import ToyFlow

PRIOR = dist.Normal(torch.ones(2, 2, dtype=torch.float64), 0.5).to_event(2)


def perturbed_flow(shape: tuple[int, ...] = (2, 2), **options: Any) -> Any:
    flow = hierarchical_flow(shape, **options)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def sample_of(distribution: Any) -> Any:
    return lambda: pyro.sample("x", distribution)


def reparameterised(model: Any, flow: Any, **options: Any) -> Any:
    return poutine.reparam(model, {"x": FlowReparam(flow, **options)})


def latent_energy(model: Any, flow: Any) -> Any:
    return initialize_model(reparameterised(model, flow), initial_params={})[1]


@pytest.mark.parametrize("from_normal", [False, True])
def test_latents_of_two_modes_and_the_normals_that_samplers_may_see(from_normal: bool) -> None:
    target, flow = IsingDual((3, 4), 2.0), perturbed_flow((3, 4), base=TwoModes(3.0))
    latent = reparameterised(target.model, flow, from_normal=from_normal)
    _, potential, transforms, _ = initialize_model(latent, initial_params={})
    kernel_target = as_target(latent)
    assert isinstance(kernel_target, LatentTarget)
    for u in torch.randn(3, 3, 4):
        z, slope = (flow.base if from_normal else StandardNormal()).from_normal(u, 2)
        x, ladj = flow.forward_and_ladj(z)
        expected = target.energy(x) - ladj - slope
        torch.testing.assert_close(potential({"x_latent": u}), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(transforms["x_latent"].inv(u), z)
        flat = u.reshape(1, 12)
        torch.testing.assert_close(kernel_target.energy(flat), expected[None])
        torch.testing.assert_close(kernel_target.latent(flat)["x_latent"][0], z)
        torch.testing.assert_close(kernel_target.physical(flat)["x"][0], x.detach())
        torch.testing.assert_close(kernel_target.pack({"x_latent": z[None]}, 1), flat)
        torch.testing.assert_close(FlowReparam(flow).transform_sample(z), x.detach())
    starts = [poutine.trace(latent).get_trace().nodes["x_latent"]["value"] for _ in range(100)]
    assert float(torch.stack(starts)[:, 0, 0].abs().mean()) == pytest.approx(3.0, abs=0.4)


def test_prior_and_likelihood_keep_their_density() -> None:
    flow, data, z = perturbed_flow(), torch.randn(2, 2), torch.randn(2, 2)

    def model() -> None:
        x = pyro.sample("x", PRIOR)
        pyro.sample("data", dist.Normal(x, 1.0).to_event(2), obs=data)

    x, ladj = flow.forward_and_ladj(z)
    log_joint = PRIOR.log_prob(x) + dist.Normal(x, 1.0).log_prob(data).sum()
    found = latent_energy(model, flow)({"x_latent": z})
    torch.testing.assert_close(found, -(log_joint + ladj))


@pytest.mark.parametrize("kind", ["drawn", "in a plate", "initial value"])
def test_values_have_the_density_of_equation_six(kind: str) -> None:
    """Also one that InitMessenger sets: its latent is found, and the sign of the determinant."""
    flow, model, x = perturbed_flow(), sample_of(PRIOR), torch.randn(2, 2)
    if kind == "in a plate":
        model = pyro.plate("fields", 3)(model)
    if kind == "initial value":
        model = InitMessenger(init_to_value(values={"x": x}))(model)
    trace = poutine.trace(reparameterised(model, flow)).get_trace()
    trace.compute_log_prob()
    found, ladj = flow.forward_and_ladj(trace.nodes["x_latent"]["value"])
    assert found.shape == ((3, 2, 2) if kind == "in a plate" else (2, 2))
    assert float(ladj.detach().abs().min()) > 1e-3
    torch.testing.assert_close(trace.nodes["x"]["value"], x if kind == "initial value" else found)
    torch.testing.assert_close(trace.nodes["x"]["value"], found)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], PRIOR.log_prob(found) + ladj)


def test_a_flow_of_fewer_dimensions_acts_on_the_rightmost_ones() -> None:
    """Its log-determinants, one per row, are summed over the rows of the site."""
    flow = dist.transforms.affine_coupling(3)
    prior = dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)
    potential, z = latent_energy(sample_of(prior), flow), torch.randn(2, 3)
    jacobian = torch.autograd.functional.jacobian(flow, z).reshape(6, 6)
    expected = -prior.log_prob(flow(z)) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(potential({"x_latent": z}), expected)


def test_an_observed_site_stays_as_it_is() -> None:
    model = poutine.condition(sample_of(PRIOR), {"x": torch.ones(2, 2)})
    trace = poutine.trace(reparameterised(model, perturbed_flow())).get_trace()
    assert "x_latent" not in trace.nodes
    assert float(trace.log_prob_sum()) == pytest.approx(-2 * math.log(2 * math.pi * 0.25))


def level_and_field() -> None:
    level = pyro.sample("level", dist.Normal(0.5, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    x = pyro.sample("x", dist.Normal(level * torch.ones(2, 2), scale).to_event(2))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=torch.ones(2, 2))


def fields_in_a_plate() -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("fields", 3), poutine.scale(scale=2.0):
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), scale).to_event(2))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=torch.ones(3, 2, 2))


@pytest.mark.parametrize("from_normal", [False, True])
@pytest.mark.parametrize("auto", [None, lambda: AutoReparam(centered=0.0), AutoReparam])
@pytest.mark.parametrize("model", [level_and_field, fields_in_a_plate])
def test_a_batch_of_latents_has_the_energies_of_pyros_potential(
    model: Any, auto: Any, from_normal: bool
) -> None:
    """Also with Pyro's AutoReparam around, which takes the other sites; nothing trains it."""
    flow = perturbed_flow(base=TwoModes(2.0))
    latent = reparameterised(model, flow, from_normal=from_normal)
    strategy = auto() if auto else None  # one of its own: it keeps what it has chosen by name
    latent = strategy(latent) if strategy else latent
    target = as_target(latent).setup()
    assert ("scale" in target.sites) == (auto is None)
    assert "x_latent" in target.sites
    potential = initialize_model(latent, initial_params={})[1]
    positions = torch.randn(3, target.dim, requires_grad=True)
    expected = torch.stack([potential(target.unpack(u)) for u in positions])
    (gradient,) = torch.autograd.grad(expected.sum(), positions)
    energy, found = target.energy_and_grad(positions.detach())
    torch.testing.assert_close(energy, expected.detach())
    torch.testing.assert_close(found, gradient)
    store = pyro.get_param_store()
    assert ("scale_base_centered" in store) == (strategy is not None and strategy.centered is None)
    assert all(float(value.detach()) == 0.5 for value in store.values())


def test_a_site_that_another_reparameterisation_has_replaced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"site 'x' is a function of .*; accepted: FlowReparam in"):
        reparameterised(AutoReparam(centered=0.0)(level_and_field), perturbed_flow())()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [HMC, NUTS])
def test_pyros_samplers_find_the_free_field(kernel: Any) -> None:
    """Second moments of a free field, from Pyro's kernels in the latent space of some flow."""
    target, flow = FreeField((2, 2), 0.9), ToyFlow((2, 2))
    latent = reparameterised(target.model, flow)
    options = {"num_steps": 8} if kernel is HMC else {}
    mcmc = MCMC(kernel(latent, **options), num_samples=800, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["x_latent"]
    x = FlowReparam(flow).transform_sample(z)
    exact = target.sample_reference(200_000)
    for observable in (lambda x: x.mean((-1, -2)).square(), lambda x: x.square().mean((-1, -2))):
        values, reference = observable(x), observable(exact)
        ess = float(pyro.ops.stats.effective_sample_size(values.reshape(1, -1), 0, 1))
        error = float(values.std()) / math.sqrt(max(ess, 10.0))
        assert abs(float(values.mean() - reference.mean())) < 4 * error


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(2), r"event shape \(3, 2\).*of \(2, 2\)"),
        (dist.Normal(torch.zeros(2, 2), 1.0), r"event shape \(\).*to_event\(2\)"),
        (
            dist.LogNormal(torch.zeros(2, 2), 1.0).to_event(2),
            r"has support GreaterThan[^,]*; accepted: the real line",
        ),
    ],
)
def test_sites_that_do_not_fit(distribution: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reparameterised(sample_of(distribution), hierarchical_flow((2, 2)))()


def test_repr_says_the_options() -> None:
    flow = hierarchical_flow((2, 2))
    assert repr(FlowReparam(flow)) == f"FlowReparam({flow!r})"
    assert repr(FlowReparam(flow, from_normal=True)) == f"FlowReparam({flow!r}, from_normal=True)"


def test_a_mask_that_hides_the_log_determinant_is_warned_of() -> None:
    latent = reparameterised(sample_of(PRIOR), hierarchical_flow((2, 2)))
    with pytest.warns(UserWarning, match=r"fn\.mask\(False\)"):
        poutine.mask(latent, mask=False)()
