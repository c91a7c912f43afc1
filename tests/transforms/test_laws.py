# SPDX-License-Identifier: Apache-2.0
"""The laws of a transform, each over the whole registry."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.transforms import HierarchicalFlow, LatticeTransform
from tests.transforms.registry import ENTRIES, latents, perturbed

NAMES = list(ENTRIES)
OWN_FLOWS = [name for name, entry in ENTRIES.items() if entry.is_flow and entry.ours]
EXACTNESS = 1e-10
"""Allowed error of values and log-determinants in float64."""
DIRECTIONS = ["forward_and_ladj", "inverse_and_ladj"]

every = pytest.mark.parametrize("name", NAMES)
every_own_flow = pytest.mark.parametrize("name", OWN_FLOWS)
both_ways = pytest.mark.parametrize("direction", DIRECTIONS)


def selected(condition: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [n for n in NAMES if getattr(ENTRIES[n], condition)])


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def jacobian(transform: LatticeTransform, direction: str, at: Tensor) -> Tensor:
    """The full matrix d out / d in by autodiff, for one event: one backward pass of a batch."""
    sites = at.numel()
    copies = at.expand(sites, *at.shape).clone().requires_grad_()
    out = getattr(transform, direction)(copies)[0].reshape(sites, sites)
    (rows,) = torch.autograd.grad(out.diagonal().sum(), copies)
    return rows.reshape(sites, sites)


# values and log-determinants


@every
def test_round_trip(name: str) -> None:
    transform, z = perturbed(name), latents(name, 20)
    with torch.no_grad():
        x, ladj = transform.forward_and_ladj(z)
        back, ladj_back = transform.inverse_and_ladj(x)
        again, _ = transform.forward_and_ladj(transform.inverse_and_ladj(z)[0])
    close(back, z, EXACTNESS)
    close(again, z, EXACTNESS)
    close(ladj_back, ladj, EXACTNESS)


@every
@both_ways
def test_ladj_is_that_of_the_full_jacobian(name: str, direction: str) -> None:
    transform = perturbed(name)
    sign = 1 if direction == "forward_and_ladj" else -1
    for at in latents(name, 2):
        expected = torch.linalg.slogdet(jacobian(transform, direction, at)).logabsdet
        _, ladj = getattr(transform, direction)(at)
        close(sign * ladj, expected, EXACTNESS)


@every
def test_pyro_interface_agrees(name: str) -> None:
    transform, z = perturbed(name), latents(name, 3)
    x, ladj = transform.forward_and_ladj(z)
    assert torch.equal(transform(z), x)
    assert torch.equal(transform.log_abs_det_jacobian(z, transform(z)), ladj)
    assert torch.equal(transform.log_abs_det_jacobian(z, x.clone()), ladj)
    close(transform.inv(x.detach().clone()), z, EXACTNESS)
    close(transform.inv.log_abs_det_jacobian(x, z), -ladj, EXACTNESS)


@every
def test_score_is_the_gradient_of_the_density(name: str) -> None:
    """The sample that comes with it is the same, with the same gradients of the parameters."""
    transform, z = perturbed(name), latents(name, 4)
    x, ladj, score = transform.forward_with_score(z)
    expected_x, expected_ladj = transform.forward_and_ladj(z)
    close(x, expected_x, 1e-12)
    close(ladj, expected_ladj, 1e-12)
    assert not score.requires_grad
    leaf = x.detach().requires_grad_()
    latent, at_leaf = transform.inverse_and_ladj(leaf)
    log_q = transform.base.log_prob(latent, latent.dim() - 1).sum() - at_leaf.sum()
    close(score, torch.autograd.grad(log_q, leaf)[0], 100 * EXACTNESS)
    parameters = list(transform.parameters())
    if parameters:
        weights = torch.randn_like(x)
        found, wanted = (
            torch.autograd.grad((value * weights).sum(), parameters, allow_unused=True)
            for value in (x, expected_x)
        )
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                close(mine, theirs, 1e-9)


@selected("odd")
def test_odd_transforms_commute_with_the_sign(name: str) -> None:
    transform, z = perturbed(name), latents(name, 5)
    for direction in DIRECTIONS:
        out, ladj = getattr(transform, direction)(z)
        mirrored, same = getattr(transform, direction)(-z)
        close(mirrored, -out, 1e-12)
        close(same, ladj, 1e-12)


@selected("starts_near_identity")
def test_own_bijectors_start_close_to_the_identity(name: str) -> None:
    transform, z = ENTRIES[name].make(), latents(name, 50)
    x, ladj = transform.forward_and_ladj(z)
    assert float((x - z).detach().square().mean().sqrt()) < 0.1
    assert float(ladj.detach().abs().max()) < 0.1 * math.prod(ENTRIES[name].shape)


@pytest.mark.parametrize("name", [n for n in NAMES if math.prod(ENTRIES[n].shape) <= 2])
def test_density_integrates_to_one(name: str) -> None:
    sites = math.prod(ENTRIES[name].shape)
    line = torch.linspace(-24.0, 24.0, {1: 4001, 2: 501}[sites])
    grid = torch.cartesian_prod(*[line] * sites).reshape(-1, *ENTRIES[name].shape)
    with torch.no_grad():
        z, ladj = perturbed(name).inverse_and_ladj(grid)
        log_q = ENTRIES[name].make().base.log_prob(z, z.dim() - 1) - ladj
    total = float(log_q.exp().sum()) * float(line[1] - line[0]) ** sites
    assert total == pytest.approx(1.0, abs=2e-4)


# derivatives


@every
@both_ways
def test_gradient_reaches_every_parameter(name: str, direction: str) -> None:
    transform = perturbed(name)
    out, ladj = getattr(transform, direction)(latents(name, 8))
    loss = (out * torch.randn_like(out)).sum() + ladj.sum()
    parameters = dict(transform.named_parameters())
    assert loss.requires_grad == bool(parameters)
    if parameters:
        loss.backward()
    for label, parameter in parameters.items():
        assert parameter.grad is not None, label
        assert bool(parameter.grad.isfinite().all()), label
        assert bool((parameter.grad != 0).any()), label


@selected("ours")
@both_ways
def test_vmap_of_the_gradient(name: str, direction: str) -> None:
    transform, batch = perturbed(name), latents(name, 2)

    def energy(at: Tensor) -> Tensor:
        if direction == "forward_and_ladj":
            out = transform(at)
            ladj = transform.log_abs_det_jacobian(at, out)
        else:
            out = transform.inv(at)
            ladj = transform.log_abs_det_jacobian(out, at)
        return (0.5 * out**2 + out.sin()).sum() - ladj

    gradient, value = torch.func.vmap(torch.func.grad_and_value(energy))(batch)
    leaves = batch.clone().requires_grad_()
    expected = torch.stack([energy(leaf) for leaf in leaves])
    (slow,) = torch.autograd.grad(expected.sum(), leaves)
    close(value, expected.detach(), 1e-9)
    close(gradient, slow, 1e-9)


@pytest.mark.parametrize(
    "name", ["neighbour-coupling-1d", "odd-two-sites", "conditioned-two-sites", "realnvp-block-2"]
)
@both_ways
def test_second_derivatives(name: str, direction: str) -> None:
    transform = perturbed(name)
    for parameter in transform.parameters():
        parameter.requires_grad_(False)
    at = latents(name, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(getattr(transform, direction), (at,))


# batches and dtypes


@every
@both_ways
def test_any_batch_shape(name: str, direction: str) -> None:
    transform, shape = perturbed(name), ENTRIES[name].shape
    batch = latents(name, 2, 3)
    out, ladj = getattr(transform, direction)(batch)
    assert out.shape == (2, 3, *shape)
    assert ladj.shape == (2, 3)
    single, single_ladj = getattr(transform, direction)(batch[1, 2])
    assert single.shape == shape
    assert single_ladj.shape == ()
    close(single, out[1, 2], 1e-11)
    close(single_ladj, ladj[1, 2], 1e-11)
    row, row_ladj = getattr(transform, direction)(batch.transpose(0, 1)[2])
    close(row, out[:, 2], 1e-11)
    close(row_ladj, ladj[:, 2], 1e-11)
    repeated, _ = getattr(transform, direction)(batch[0, :1].expand(3, *shape))
    close(repeated, out[0, :1].expand(3, *shape), 1e-11)
    nothing, nothing_ladj = getattr(transform, direction)(batch[:0])
    assert nothing.shape == (0, 3, *shape)
    assert nothing_ladj.shape == (0, 3)


@every
@both_ways
def test_float32_is_kept_and_close_to_float64(name: str, direction: str) -> None:
    transform, at = perturbed(name), latents(name, 10)
    out, ladj = getattr(transform, direction)(at)
    rounded, rounded_ladj = getattr(transform.to(torch.float32), direction)(at.float())
    assert rounded.dtype == rounded_ladj.dtype == torch.float32
    close(rounded.double(), out, 1e-3)
    close(rounded_ladj.double(), ladj, 1e-3)


@every
def test_parameters_exist_in_the_default_dtype_before_the_first_use(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        transform = ENTRIES[name].make()
        before = {label: id(parameter) for label, parameter in transform.named_parameters()}
        assert all(parameter.dtype == dtype for parameter in transform.parameters())
        assert all(b.dtype == dtype for b in transform.buffers() if b.is_floating_point())
        transform.inverse_and_ladj(latents(name, 2))
        assert before == {label: id(p) for label, p in transform.named_parameters()}


@pytest.mark.gpu
@every
@both_ways
def test_an_accelerator_gives_the_same(name: str, direction: str) -> None:
    transform, at = perturbed(name), latents(name, 3)
    out, ladj = getattr(transform, direction)(at)
    moved, moved_ladj = getattr(transform.to("cuda"), direction)(at.to("cuda"))
    assert moved.device.type == moved_ladj.device.type == "cuda"
    close(moved.cpu(), out, 1e-9)
    close(moved_ladj.cpu(), ladj, 1e-9)


# copies and files


def fresh_pair(name: str) -> tuple[LatticeTransform, Tensor]:
    """A transform right after use, so that whatever it caches is there."""
    transform, z = perturbed(name), latents(name, 2)
    transform.inv(transform(z))
    transform.inv(latents(name, 2))
    transform(z)
    return transform, z


@every
def test_deepcopy_and_pickle_right_after_use(name: str) -> None:
    transform, z = fresh_pair(name)
    x, ladj = transform.forward_and_ladj(z)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other(z), x)
        assert torch.equal(other.forward_and_ladj(z)[1], ladj)
        ours = {id(parameter) for parameter in transform.parameters()}
        assert not ours & {id(parameter) for parameter in other.parameters()}
        for parameter in other.parameters():
            parameter.data.zero_()
        assert torch.equal(transform.forward_and_ladj(z)[0], x)


@every
def test_state_dict_round_trip(name: str) -> None:
    transform, z = fresh_pair(name)
    stream = io.BytesIO()
    torch.save(transform.state_dict(), stream)
    stream.seek(0)
    other = ENTRIES[name].make()
    other(z)
    other.load_state_dict(torch.load(stream, weights_only=True))
    x, ladj = transform.forward_and_ladj(z)
    assert torch.equal(other(z), x)
    assert torch.equal(other.log_abs_det_jacobian(z, other(z)), ladj)


@every_own_flow
def test_config_builds_the_flow_again(name: str) -> None:
    flow, z = perturbed(name), latents(name, 3)
    other = HierarchicalFlow.from_config(json.loads(json.dumps(flow.config)))
    other.load_state_dict(flow.state_dict())
    assert other.config == flow.config
    torch.testing.assert_close(other.forward_and_ladj(z), flow.forward_and_ladj(z), rtol=0, atol=0)


# use under Pyro


@every
def test_domain_and_codomain(name: str) -> None:
    transform, shape = ENTRIES[name].make(), ENTRIES[name].shape
    assert transform.bijective
    assert transform.sign == 1
    for space in (transform.domain, transform.codomain):
        assert space.base_constraint is constraints.real
        assert space.event_dim == len(shape)
    assert transform.event_shape == shape
    assert transform.forward_shape((7, *shape)) == (7, *shape)


@every
def test_pyro_program(name: str) -> None:
    transform, shape = perturbed(name), ENTRIES[name].shape

    def program() -> Tensor:
        pyro.module("transform", transform)
        base = dist.Normal(0.0, 1.0).expand((4, *shape)).to_event(len(shape))
        with pyro.plate("draws", 4):
            return pyro.sample("x", dist.TransformedDistribution(base, [transform]))

    trace = poutine.trace(program).get_trace()
    site = trace.nodes["x"]
    assert site["fn"].event_shape == shape
    z, ladj = transform.inverse_and_ladj(site["value"].detach().clone())
    normal = -0.5 * z.flatten(1).square().sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)
    close(site["fn"].log_prob(site["value"]), normal - ladj, EXACTNESS)
    close(trace.log_prob_sum(), (normal - ladj).sum(), EXACTNESS)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))), reason="no C compiler"
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own, none of them about our code
@pytest.mark.parametrize("name", ["mera-1d-prime", "odd-two-sites", "realnvp-per-block-odd-side"])
def test_compiled_forward(name: str) -> None:
    transform, z = perturbed(name), latents(name, 5)
    compiled = torch.compile(transform.forward_and_ladj)
    torch.testing.assert_close(compiled(z), transform.forward_and_ladj(z), rtol=1e-9, atol=1e-9)
