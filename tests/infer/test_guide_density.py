# SPDX-License-Identifier: Apache-2.0
"""The density of AutoHierarchicalFlow, its path gradients, and sampling in its latent space."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import conditional_affine_coupling
from pyro.infer import Trace_ELBO
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import PDD, fit
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide.transform import SharedAmongDraws
from pyro_neuralrg.mcmc.model_target import ModelTarget
from pyro_neuralrg.transforms import RealNVP
from tests.infer import autoguide_models as models
from tests.infer.autoguide_models import (
    CASES,
    SMALL,
    Case,
    make,
    normals,
    quiet_subsampling,
    shaken,
    train,
)
from tests.infer.second_pass import loss_and_path_gradients

# Exactness ----------------------------------------------------------------------------------------


def check_density(guide: AutoHierarchicalFlow, dim: int) -> None:
    """By the Jacobian of the whole map, there and back."""
    flow, z = guide.get_transform(), torch.randn(dim)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.forward_and_ladj(z)[0], z)
    expected = torch.linalg.slogdet(jacobian)
    u, ladj = flow.forward_and_ladj(z)
    torch.testing.assert_close(ladj, expected.logabsdet)
    batch, ladjs = flow.forward_and_ladj(torch.stack([torch.zeros_like(z), z])[:, None])
    torch.testing.assert_close((batch[1, 0], ladjs[1, 0]), (u, ladj))
    torch.testing.assert_close(flow.inverse_and_ladj(u), (z, ladj))
    log_q = guide.get_posterior().log_prob(u.detach().clone())
    normal = dist.Normal(0.0, 1.0).log_prob(z).sum()
    torch.testing.assert_close(log_q, normal - expected.logabsdet)


def test_density_against_the_whole_jacobian(case: Case) -> None:
    check_density(shaken(make(case)), case.dim)


def split(guide: AutoHierarchicalFlow, u: Tensor) -> dict[str, Tensor]:
    """The unconstrained values of the sites, by name."""
    return {site["name"]: value for site, value in guide._unpack_latent(u)}


def potential(model: Any, args: tuple[Any, ...]) -> Any:
    with poutine.block():
        return initialize_model(model, args, initial_params={})[1]


def test_transport_and_elbo_have_one_density(case: Case) -> None:
    """Potential energy in z = that in x - ladj; the loss of a draw = ln q + that in x."""
    case = quiet_subsampling(case)
    guide = shaken(make(case))
    latent = NeuTraReparam(guide).reparam(case.model)
    name = f"{next(iter(guide._unconstrained_shapes))}_shared_latent"
    z = torch.randn(case.dim)
    u, ladj = guide.get_transform().forward_and_ladj(z)
    found = potential(latent, case.args)({name: z})
    expected = potential(case.model, case.args)(split(guide, u)) - ladj
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    pyro.set_rng_seed(7)
    loss = Trace_ELBO().loss(case.model, guide, *case.args)
    pyro.set_rng_seed(7)
    u = guide.get_posterior().sample()
    log_q = guide.get_posterior().log_prob(u)
    expected = log_q + potential(case.model, case.args)(split(guide, u))
    torch.testing.assert_close(torch.tensor(loss), expected.detach())


def test_odd_flows_are_symmetric_about_the_start() -> None:
    guide = shaken(make(CASES["field and globals"], odd=True, init_scale=None))
    flow = guide.get_transform()
    assert flow.field_flow is not None
    place = flow.frame.mean[2:]  # after the globals
    u = torch.randn(5, 10)
    mirrored = u.clone()
    mirrored[:, 1:9] = 2 * place - u[:, 1:9]
    q = guide.get_posterior()
    torch.testing.assert_close(q.log_prob(mirrored), q.log_prob(u))


def test_the_field_depends_on_the_globals() -> None:
    flow = shaken(make(CASES["field and globals"])).get_transform()
    z = torch.randn(10)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.forward_and_ladj(z)[0], z)
    others, field = [0, 9], list(range(1, 9))
    assert (jacobian[field][:, others] != 0).all()
    assert (jacobian[others][:, field] == 0).all()


def test_a_flow_of_ones_own_for_the_globals() -> None:
    splines = functools.partial(dist.transforms.spline_autoregressive, count_bins=4)
    guide = shaken(make(CASES["constrained"], globals_flow=splines), 0.1)
    check_density(guide, 7)
    train(guide, CASES["constrained"])


@pytest.mark.slow
def test_learns_a_gaussian_field_exactly() -> None:
    basis = torch.eye(16).reshape(16, 4, 4)
    blur = (basis + 0.5 * basis.roll(1, -1)).reshape(16, 16).T
    y = models.ramp(4, 4).reshape(-1)
    covariance = torch.linalg.inv(torch.eye(16) + blur.T @ blur / 0.49)
    mean = covariance @ blur.T @ y / 0.49
    evidence = dist.MultivariateNormal(torch.zeros(16), blur @ blur.T + 0.49 * torch.eye(16))
    log_evidence = float(evidence.log_prob(y))
    guide = AutoHierarchicalFlow(models.one_field, init_scale=0.5, **SMALL)
    fit(models.one_field, guide, steps=600, batch=64, lr=0.02, progress=False)
    elbo = PDD(num_particles=4000, vectorize_particles=True)
    bound = -elbo.loss(models.one_field, guide)
    assert elbo.log_weights is not None
    error = float(elbo.log_weights.std()) / math.sqrt(4000)
    assert log_evidence - 0.1 < bound < log_evidence + 4 * error
    with torch.no_grad():
        x = guide.get_posterior().sample((4000,))
    sd = covariance.diagonal().sqrt()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x.std(0) / sd, torch.ones(16), rtol=0, atol=0.1)


# Path gradients -----------------------------------------------------------------------------------

FLOWS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "blocks": {"bijector": RealNVP(layers=2, hidden=(4,))},
    "foreign": {"bijector": lambda size: conditional_affine_coupling(size, 11, hidden_dims=[4])},
    "spectrum": {**SMALL, "spectrum": torch.full((2, 3, 2), 2.0, dtype=torch.float64)},
    "odd": {**SMALL, "odd": True},
}


def log_q_at(flow: Any, u: Tensor) -> Tensor:
    z, ladj = flow.inverse_and_ladj(u)
    return -0.5 * z.square().sum(-1) - ladj


@pytest.mark.parametrize("kind", FLOWS)
def test_the_score_of_all_latents(kind: str) -> None:
    """Two fields and a global: also what the fields tell of the globals."""
    init_scale = None if kind == "small" else 0.5  # a matrix in the frame, or widths
    guide = AutoHierarchicalFlow(wide_fields, init_scale=init_scale, **FLOWS[kind])
    flow = shaken(guide).get_transform()
    z = torch.randn(4, 15)
    for has_graph in (True, False):
        with torch.set_grad_enabled(has_graph):
            u, ladj, score = flow.forward_with_score(z)
        leaf = u.detach().requires_grad_()
        expected = torch.autograd.grad(log_q_at(flow, leaf).sum(), leaf)[0]
        torch.testing.assert_close(score, expected, rtol=1e-7, atol=1e-8)
        assert not ladj.requires_grad
        torch.testing.assert_close(ladj, flow.forward_and_ladj(z)[1])


def wide_fields() -> None:
    means = normals("means", 3)
    a = pyro.sample("a", dist.Normal(means.sum() * torch.ones(2, 3), 1.0).to_event(2))
    pyro.sample("b", dist.Normal(a, 1.0).to_event(2))


def test_path_gradients_are_those_of_a_second_pass(case: Case) -> None:
    guide = shaken(make(case))
    elbo = PDD(3, max_plate_nesting=2, vectorize_particles=True, path_gradient="always")
    losses, gradients = [], []
    for step in (elbo.loss_and_grads, functools.partial(loss_and_path_gradients, elbo)):
        guide.zero_grad()
        pyro.set_rng_seed(4)
        losses.append(step(case.model, guide, *case.args))
        gradients.append({n: p.grad for n, p in guide.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert gradients[0]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8)


# Sampling in the latent space ---------------------------------------------------------------------


def test_chains_come_back_in_the_models_sites(case: Case) -> None:
    """One vmapped energy for all chains, and samples of the model's sites beside the latents."""
    case = quiet_subsampling(case)
    guide = shaken(make(case))
    neutra = NeuTraReparam(guide)
    latent = poutine.reparam(case.model, config=lambda _: neutra)
    target = ModelTarget(latent).setup(*case.args)
    assert target.is_transported
    z = torch.randn(2, 3, case.dim)
    physical = target.physical(z)
    u, ladj = guide.get_transform().forward_and_ladj(z)
    for i, j in ((0, 1), (1, 2)):
        for site, value in guide._unpack_latent(u[i, j]):
            constrained = torch.distributions.biject_to(site["fn"].support)(value)
            torch.testing.assert_close(physical[site["name"]][i, j], constrained)
    assert physical.keys() == guide._unconstrained_shapes.keys()
    one = z[1, 2].requires_grad_()
    u, ladj = guide.get_transform().forward_and_ladj(one)
    expected = potential(case.model, case.args)(split(guide, u)) - ladj
    (slope,) = torch.autograd.grad(expected, one)
    energy, gradient = target.energy_and_grad(z.detach().flatten(0, 1))
    torch.testing.assert_close(energy[5], expected.detach())
    torch.testing.assert_close(gradient[5], slope)
    torch.testing.assert_close(target.energy(z.detach().flatten(0, 1)), energy)
    assert target.lattices == dict.fromkeys(case.fields, case.lattice)


def test_draws_in_plates_share_the_determinant_both_ways() -> None:
    flow = shaken(make(CASES["field and globals"])).get_transform()
    z, shared = torch.randn(5, flow.event_shape[0]), SharedAmongDraws(flow, 4)
    u, share = shared(z), flow.forward_and_ladj(z)[1] / 4
    torch.testing.assert_close(shared.log_abs_det_jacobian(z, u), share)
    torch.testing.assert_close(shared.inv(u), z)
    torch.testing.assert_close(shared.inv.log_abs_det_jacobian(u, z), -share)


def test_chains_start_at_given_sites() -> None:
    guide = shaken(make(CASES["field and globals"]))
    target = ModelTarget(NeuTraReparam(guide).reparam(models.field_and_globals)).setup()
    start = {"x": torch.randn(3, 2, 4), "width": torch.randn(3), "mean": torch.randn(3)}
    found = target.physical(target.pack(start, 3))
    torch.testing.assert_close(found["x"], start["x"])
    torch.testing.assert_close(found["width"], start["width"].exp())
    z = torch.randn(3, 10)
    torch.testing.assert_close(target.pack({"width_shared_latent": z}, 3), z)
