# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Couplings on many columns at once give what they give on few: whatever computes large batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.transforms import LatticeTransform, hierarchical_flow, realnvp_block

FEW, MANY = 50, 1300  # columns: too few, and enough, to be worth a path of their own

MAKERS: dict[str, Callable[[], LatticeTransform]] = {
    "paper": lambda: realnvp_block(4),
    "one-coupling": lambda: realnvp_block(4, layers=1),
    "three-couplings": lambda: realnvp_block(4, layers=3, hidden=(6, 6)),
    "eight-sites": lambda: realnvp_block(8, layers=4, hidden=(4,)),
    "two-sites": lambda: realnvp_block(2, layers=4),
    "uneven-widths": lambda: realnvp_block(4, layers=2, hidden=(5, 8)),
    "tanh": lambda: realnvp_block(4, layers=2, activation="tanh"),
    "odd": lambda: realnvp_block(4, layers=2, odd=True),
    "flow": lambda: hierarchical_flow((4, 4), bijector="realnvp", monotone_steps=0),
}
every = pytest.mark.parametrize("name", MAKERS)
both_ways = pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])


def prepared(name: str) -> tuple[LatticeTransform, Tensor]:
    transform = MAKERS[name]()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    columns = MANY // (4 if name == "flow" else 1)
    return transform, torch.randn(columns, *transform.event_shape)


def by_parts(transform: LatticeTransform, direction: str, at: Tensor) -> tuple[Tensor, Tensor]:
    """The same, few columns at a time."""
    size = FEW // (4 if len(transform.event_shape) > 1 else 1)
    parts = [getattr(transform, direction)(part) for part in at.split(size)]
    return torch.cat([out for out, _ in parts]), torch.cat([ladj for _, ladj in parts])


def scalar(out: Tensor, ladj: Tensor) -> Tensor:
    return (out.sin() * out).sum() + (ladj * ladj.cos()).sum()


@every
@both_ways
def test_values(name: str, direction: str) -> None:
    transform, at = prepared(name)
    for convert, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        transform, at = transform.to(convert), at.to(convert)
        for one, other in zip(
            getattr(transform, direction)(at), by_parts(transform, direction, at), strict=True
        ):
            assert one.dtype == convert
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@every
@both_ways
def test_gradients(name: str, direction: str) -> None:
    transform, at = prepared(name)
    at.requires_grad_()
    leaves = [at, *transform.parameters()]
    found = torch.autograd.grad(scalar(*getattr(transform, direction)(at)), leaves)
    expected = torch.autograd.grad(scalar(*by_parts(transform, direction, at)), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["paper", "three-couplings", "odd"])
@both_ways
def test_gradients_of_gradients(name: str, direction: str) -> None:
    transform, at = prepared(name)
    at.requires_grad_()
    leaves = [at, *transform.parameters()]
    results = []
    for evaluate in (getattr(transform, direction), lambda at: by_parts(transform, direction, at)):
        (force,) = torch.autograd.grad(scalar(*evaluate(at)), at, create_graph=True)
        results.append(torch.autograd.grad(force.square().sum(), leaves))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@both_ways
def test_gradients_of_gradients_with_frozen_weights(direction: str) -> None:
    transform, at = prepared("paper")
    transform.requires_grad_(False)
    at.requires_grad_()
    results = []
    for evaluate in (getattr(transform, direction), lambda at: by_parts(transform, direction, at)):
        (force,) = torch.autograd.grad(scalar(*evaluate(at)), at, create_graph=True)
        results.append(torch.autograd.grad(force.square().sum(), at)[0])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@both_ways
def test_gradients_where_only_one_result_or_one_input_counts(direction: str) -> None:
    transform, at = prepared("paper")
    for which in (0, 1):
        for leaves in ([at.clone().requires_grad_()], list(transform.parameters())):
            where = leaves[0] if leaves[0].shape == at.shape else at
            one = getattr(transform, direction)(where)[which].square().sum()
            other = by_parts(transform, direction, where)[which].square().sum()
            for mine, theirs in zip(
                torch.autograd.grad(one, leaves, allow_unused=True),
                torch.autograd.grad(other, leaves, allow_unused=True),
                strict=True,
            ):
                zeros = torch.zeros(()).expand(1)
                mine = zeros if mine is None else mine
                theirs = zeros if theirs is None else theirs
                torch.testing.assert_close(*torch.broadcast_tensors(mine, theirs))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
def test_vmap_and_forward_mode_on_many_columns() -> None:
    transform, at = prepared("paper")
    expected = by_parts(transform, "forward_and_ladj", at)[0]
    pieces = at.reshape(2, -1, 4)
    mapped = torch.func.vmap(lambda piece: transform.forward_and_ladj(piece)[0])(pieces)
    torch.testing.assert_close(mapped.reshape(at.shape), expected)
    direction = torch.randn_like(at)
    _, tangent = torch.func.jvp(lambda z: transform.forward_and_ladj(z)[0], (at,), (direction,))
    step = 1e-6
    ahead = by_parts(transform, "forward_and_ladj", at + step * direction)[0]
    behind = by_parts(transform, "forward_and_ladj", at - step * direction)[0]
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_column() -> None:
    transform, at = prepared("paper")
    at[7, 0] = float("nan")
    x, ladj = transform.forward_and_ladj(at)
    clean = torch.arange(len(at)) != 7
    assert bool(x[7].isnan().any())
    assert bool(ladj[7].isnan())
    assert bool(x[clean].isfinite().all())
    assert bool(ladj[clean].isfinite().all())
