# SPDX-License-Identifier: Apache-2.0
"""The remembered pair: free where it may be used, forgotten where anything has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.transforms import LatticeTransform
from tests.transforms.registry import latents, perturbed

# one entry for each way in which a transform holds its tensors
NAMES = [
    "odd-with-spectrum",
    "realnvp-per-block",
    "shared-weights",
    "pyro-affine-coupling",
    "pyro-composed",
    "pyro-matrix-exponential",
    "pyro-spline-coupling",
    "layer-factory-channels",
    "neighbour-coupling-2d",
    "realnvp-block-4",
    "learned-spectrum-2d",
    "fourier-2d",
]


def evaluations(transform: LatticeTransform, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every real pass through the transform."""
    passes: list[str] = []
    for direction in ("forward", "inverse"):
        original = getattr(transform, direction)

        def counted(*arguments: Any, direction: str = direction, original: Any = original) -> Any:
            passes.append(direction)
            return original(*arguments)

        monkeypatch.setattr(transform, direction, counted)
    return passes


def agrees_with_a_fresh_copy(transform: LatticeTransform, z: Tensor, x: Tensor) -> None:
    """All public ways give what a transform that has seen nothing gives."""
    fresh = copy.deepcopy(transform)
    expected, ladj = fresh.forward_and_ladj(z)
    found = transform.log_abs_det_jacobian(z, x), transform(z), transform.inv(x)
    wanted = ladj, expected, fresh.inverse_and_ladj(x)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_of_a_fresh_sample_is_free(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, z = perturbed(name), latents(name, 3)
    passes = evaluations(transform, monkeypatch)
    x = transform(z)
    assert transform.inv(x) is z
    assert transform.with_cache(0) is transform
    transform.log_abs_det_jacobian(z, x)
    transform.inv.log_abs_det_jacobian(x, z)
    assert passes == ["forward"]
    z = transform.inv(latents(name))
    transform(z)
    assert passes == ["forward", "inverse"]


def assign(transform: LatticeTransform) -> None:
    state = {k: 0.9 * v if v.is_floating_point() else v for k, v in transform.state_dict().items()}
    transform.load_state_dict(state, assign=True)


def scale(transform: LatticeTransform) -> None:
    for tensor in (*transform.parameters(), *transform.buffers()):
        tensor.mul_(1.1 if tensor.is_floating_point() else 1)


CHANGES: dict[str, Callable[[LatticeTransform, Tensor, Tensor], object]] = {
    "latents": lambda transform, z, x: z.add_(1.0),
    "fields": lambda transform, z, x: x.mul_(0.5),
    "replaced": lambda transform, z, x: assign(transform),
    "scaled": lambda transform, z, x: scale(transform),
    "rounded": lambda transform, z, x: transform.to(torch.float32).to(torch.float64),
    "cleared": lambda transform, z, x: transform.clear_cache(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_seen(name: str, change: str) -> None:
    transform, z = perturbed(name), latents(name, 3)
    other = {k: v.detach() + 0.3 for k, v in transform.named_parameters()}
    expected = torch.func.functional_call(copy.deepcopy(transform), other, (z,))
    with torch.no_grad():
        x = transform(z)
        torch.testing.assert_close(torch.func.functional_call(transform, other, (z,)), expected)
        x = transform(z)
        CHANGES[change](transform, z, x)
        assert change == "latents" or transform.inv(x) is not z
        agrees_with_a_fresh_copy(transform, z, x)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_what_was_remembered(name: str) -> None:
    """Evaluated without gradients first: the graph is there when it is asked for."""
    transform, z = perturbed(name), latents(name, 3)
    with torch.no_grad():
        x = transform(z)
    z.requires_grad_()
    for _ in range(2):  # the second time the first graph has been spent
        (gradient,) = torch.autograd.grad(transform(z).square().sum(), z)
    fresh = copy.deepcopy(transform)
    (expected,) = torch.autograd.grad(fresh(z).square().sum(), z)
    torch.testing.assert_close(gradient, expected)

    x.requires_grad_()
    for _ in range(2):
        latent = transform.inv(x)
        log_q = transform.log_abs_det_jacobian(latent, x) + latent.square().sum()
        (gradient,) = torch.autograd.grad(log_q.sum(), x)
    latent, ladj = fresh.inverse_and_ladj(x)
    (expected,) = torch.autograd.grad((ladj + latent.square().sum()).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_frozen_thawed_and_without_gradients() -> None:
    """A log-determinant without its graph is not given out where there is to be one."""
    transform, z = perturbed("mera-2d"), latents("mera-2d", 3)
    transform.requires_grad_(False)
    x = transform(z).requires_grad_()
    (gradient,) = torch.autograd.grad(transform.inv(x).sum(), x)
    assert bool(gradient.isfinite().all())
    assert not transform.log_abs_det_jacobian(z, transform(z)).requires_grad
    transform.requires_grad_(True)
    assert transform.log_abs_det_jacobian(z, x).requires_grad
    with torch.no_grad():
        x = transform(z)
    assert transform.log_abs_det_jacobian(z, x).requires_grad


def test_no_trace_of_vmap_is_left() -> None:
    transform, z = perturbed("mera-2d"), latents("mera-2d", 3)
    expected, ladj = transform.forward_and_ladj(z)
    assert torch.allclose(torch.func.vmap(lambda one: transform(one))(z), expected)
    assert torch.allclose(transform(z), expected)
    assert torch.allclose(transform.inv(transform(z)), z)
    torch.func.grad(lambda one: transform(one).sum())(z[0])
    copied = copy.deepcopy(transform)
    assert torch.allclose(copied.log_abs_det_jacobian(z, copied(z)), ladj)
    assert torch.allclose(transform.log_abs_det_jacobian(z, transform(z)), ladj)


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode(name: str) -> None:
    transform, z = perturbed(name), latents(name, 3)
    with torch.inference_mode():
        x = transform(z)
        transform.log_abs_det_jacobian(transform.inv(x), x)
        inner = latents(name, 3)
        transform(inner)
        inner.add_(1.0)  # counts no version
        close_to = copy.deepcopy(transform)(inner)
        assert torch.allclose(transform(inner), close_to)
    assert torch.allclose(transform(z), x)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_direction_once_more_is_another_map(name: str) -> None:
    """A tensor that came out as x may go in as z."""
    transform = perturbed(name)
    fresh, x = copy.deepcopy(transform), transform(latents(name, 3))
    torch.testing.assert_close(transform(x), fresh(x.clone()))
    z = transform.inv(latents(name, 3))
    torch.testing.assert_close(transform.inv(z), fresh.inv(z.clone()))
    z = transform.inv(latents(name, 3))
    torch.testing.assert_close(transform.inverse_and_ladj(z), fresh.inverse_and_ladj(z.clone()))
