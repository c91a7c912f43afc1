# Copyright the pyro_neuralrg contributors.
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
from torch import Tensor

from pyro_neuralrg import FlowReparam, FreeField, IsingDual, hierarchical_flow
from pyro_neuralrg.distributions import StandardNormal, TwoModes
from pyro_neuralrg.mcmc import LatentTarget, as_target
from tests.mcmc.registry import ToyFlow


def perturbed_flow(shape: tuple[int, ...], **options: Any) -> Any:
    flow = hierarchical_flow(shape, **options)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def latent_energy(model: Any) -> Any:
    return initialize_model(model, initial_params={})[1]


def test_energy_is_that_of_equation_six() -> None:
    target, flow = IsingDual((3, 4), 2.0), perturbed_flow((3, 4))
    potential = latent_energy(poutine.reparam(target.model, {"x": FlowReparam(flow)}))
    for z in torch.randn(3, 3, 4):
        x, ladj = flow.forward_and_ladj(z)
        found = potential({"x_latent": z})
        torch.testing.assert_close(found, target.energy(x) - ladj, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("from_normal", [False, True])
def test_latents_of_two_modes_and_the_normals_that_samplers_may_see(from_normal: bool) -> None:
    target, flow = IsingDual((2, 2), 2.0), perturbed_flow((2, 2), base=TwoModes(3.0))
    latent = poutine.reparam(target.model, {"x": FlowReparam(flow, from_normal=from_normal)})
    _, potential, transforms, _ = initialize_model(latent, initial_params={})
    kernel_target = as_target(latent)
    assert isinstance(kernel_target, LatentTarget)
    for u in torch.randn(3, 2, 2):
        z, slope = (flow.base if from_normal else StandardNormal()).from_normal(u, 2)
        x, ladj = flow.forward_and_ladj(z)
        expected = target.energy(x) - ladj - slope
        torch.testing.assert_close(potential({"x_latent": u}), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(transforms["x_latent"].inv(u), z)
        flat = u.reshape(1, 4)
        torch.testing.assert_close(kernel_target.energy(flat), expected[None])
        torch.testing.assert_close(kernel_target.latent(flat)["x_latent"][0], z)
        torch.testing.assert_close(kernel_target.physical(flat)["x"][0], x.detach())
        torch.testing.assert_close(kernel_target.pack({"x_latent": z[None]}, 1), flat)
        torch.testing.assert_close(FlowReparam(flow).transform_sample(z), x.detach())
    starts = torch.stack(
        [poutine.trace(latent).get_trace().nodes["x_latent"]["value"] for _ in range(100)]
    )
    sizes = starts[:, 0, 0].abs()
    assert float(sizes.mean()) == pytest.approx(3.0, abs=0.4)


def test_prior_and_likelihood_keep_their_density() -> None:
    flow, data = perturbed_flow((2, 2)), torch.randn(2, 2)

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.ones(2, 2), 0.5).to_event(2))
        pyro.sample("data", dist.Normal(x, 1.0).to_event(2), obs=data)

    potential = latent_energy(poutine.reparam(model, {"x": FlowReparam(flow)}))
    z = torch.randn(2, 2)
    x, ladj = flow.forward_and_ladj(z)
    log_joint = dist.Normal(1.0, 0.5).log_prob(x).sum() + dist.Normal(x, 1.0).log_prob(data).sum()
    torch.testing.assert_close(potential({"x_latent": z}), -(log_joint + ladj))


def test_a_batch_of_sites_in_a_plate() -> None:
    flow = perturbed_flow((2, 2))

    def model() -> Tensor:
        with pyro.plate("fields", 3):
            return pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))

    trace = poutine.trace(poutine.reparam(model, {"x": FlowReparam(flow)})).get_trace()
    z, x = trace.nodes["x_latent"]["value"], trace.nodes["x"]["value"]
    assert z.shape == x.shape == (3, 2, 2)
    trace.compute_log_prob()
    _, ladj = flow.forward_and_ladj(z)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum((-1, -2)) + ladj
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)


def test_an_initial_value_has_the_density_of_equation_six() -> None:
    """InitMessenger sets x: its latent is found, the log-determinant keeps its sign."""
    flow, x = perturbed_flow((2, 2)), torch.randn(2, 2)
    prior = dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)
    started = InitMessenger(init_to_value(values={"x": x}))(sample_of(prior))
    trace = poutine.trace(poutine.reparam(started, {"x": FlowReparam(flow)})).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["x_latent"]["value"]
    again, ladj = flow.forward_and_ladj(z)
    assert abs(float(ladj.detach())) > 1e-3
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(trace.nodes["x"]["value"], x)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], prior.log_prob(x) + ladj)


def test_a_flow_of_fewer_dimensions_acts_on_the_rightmost_ones() -> None:
    """Its log-determinants, one per row, are summed over the rows of the site."""
    flow = dist.transforms.affine_coupling(3)
    prior = dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)
    potential = latent_energy(poutine.reparam(sample_of(prior), {"x": FlowReparam(flow)}))
    z = torch.randn(2, 3)
    jacobian = torch.autograd.functional.jacobian(flow, z).reshape(6, 6)
    expected = -prior.log_prob(flow(z)) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(potential({"x_latent": z}), expected)


def test_an_observed_site_stays_as_it_is() -> None:
    prior = dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)
    model = poutine.condition(sample_of(prior), {"x": torch.zeros(2, 2)})
    latent = poutine.reparam(model, {"x": FlowReparam(perturbed_flow((2, 2)))})
    trace = poutine.trace(latent).get_trace()
    assert "x_latent" not in trace.nodes
    assert float(trace.log_prob_sum()) == pytest.approx(-2 * math.log(2 * math.pi))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [HMC, NUTS])
def test_pyros_samplers_find_the_free_field(kernel: Any) -> None:
    """Second moments of a free field, from Pyro's kernels in the latent space of some flow."""
    target, flow = FreeField((2, 2), 0.9), ToyFlow((2, 2))
    latent = poutine.reparam(target.model, {"x": FlowReparam(flow)})
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


def sample_of(distribution: Any) -> Any:
    return lambda: pyro.sample("x", distribution)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(2), r"event shape \(3, 2\).*of \(2, 2\)"),
        (dist.Normal(torch.zeros(2, 2), 1.0), r"event shape \(\).*to_event\(2\)"),
        (dist.LogNormal(torch.zeros(2, 2), 1.0).to_event(2), r"support .*accepted: the real line"),
    ],
)
def test_sites_that_do_not_fit(distribution: Any, message: str) -> None:
    model = poutine.reparam(sample_of(distribution), {"x": FlowReparam(hierarchical_flow((2, 2)))})
    with pytest.raises(ValueError, match=message):
        model()


def test_repr_says_the_options() -> None:
    flow = hierarchical_flow((2, 2))
    assert repr(FlowReparam(flow)) == f"FlowReparam({flow!r})"
    assert repr(FlowReparam(flow, from_normal=True)) == f"FlowReparam({flow!r}, from_normal=True)"


def test_a_mask_that_hides_the_log_determinant_is_warned_of() -> None:
    prior = dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)
    latent = poutine.reparam(sample_of(prior), {"x": FlowReparam(hierarchical_flow((2, 2)))})
    model = poutine.mask(latent, mask=False)
    with pytest.warns(UserWarning, match=r"fn\.mask\(False\)"):
        model()
