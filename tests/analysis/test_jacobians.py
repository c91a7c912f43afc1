# SPDX-License-Identifier: Apache-2.0
"""Responses of linear flows are their wavelets; rotations of the latents are undone."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.analysis import (
    block_wavelets,
    overlap,
    responses,
    variables_of_scale,
    written_patterns,
)
from pyro_neuralrg.transforms import hierarchical_flow
from tests.analysis.linear import any_matrix, haar, jacobian, linear_flow, orthogonal
from tests.transforms.registry import perturb


@pytest.mark.parametrize("circuit", ["tree", "mera"])
@pytest.mark.parametrize("block", [orthogonal, any_matrix])
def test_linear_flow_answers_and_writes_with_its_matrix(block, circuit: str) -> None:
    flow = linear_flow((4, 4), block, circuit)
    matrix = jacobian(flow)
    answers = responses(flow, torch.randn(7, 4, 4), range(16), batch_size=3)
    torch.testing.assert_close(answers.mean.flatten(1), torch.linalg.inv(matrix))
    written = written_patterns(flow, torch.randn(7, 4, 4), torch.arange(16), batch_size=3)
    torch.testing.assert_close(written.mean.flatten(1), matrix.T)
    for found in (answers, written):
        assert found.spread.max() < 1e-12
        assert found.nonlinearity.max() < 1e-20


def test_moments_are_those_of_single_jacobians() -> None:
    flow = perturb(hierarchical_flow((4,)), 0.05)
    x = torch.randn(6, 4)
    of_one = torch.autograd.functional.jacobian
    single = torch.stack([of_one(lambda h: flow.inverse_and_ladj(h)[0], field) for field in x])
    found = responses(flow, x, [3, 1], batch_size=4)
    torch.testing.assert_close(found.mean, single.mean(0)[[3, 1]])
    torch.testing.assert_close(found.spread, single.std(0)[[3, 1]])
    torch.testing.assert_close(found.standard_error, single.std(0)[[3, 1]] / 6**0.5)
    assert (found.variables, found.num_samples) == ((3, 1), 6)
    square = single.var(0)[[3, 1]].sum(1)
    expected = square / (square + single.mean(0)[[3, 1]].square().sum(1))
    torch.testing.assert_close(found.nonlinearity, expected)
    assert (found.nonlinearity > 1e-4).all()
    z = flow.inverse_and_ladj(x)[0].detach()
    written = written_patterns(flow, z, [3, 1])
    torch.testing.assert_close(written.mean, torch.linalg.inv(single).mean(0).T[[3, 1]])


def test_one_field_has_no_spread_and_no_gradient_is_needed_or_left() -> None:
    flow, x = hierarchical_flow((4,)), torch.randn(1, 4)
    with torch.no_grad():
        found = responses(flow, x, [0])
        written_patterns(flow, x, [0])
    assert found.mean.isfinite().all()
    assert (found.spread + found.standard_error).isnan().all()
    assert all(parameter.grad is None for parameter in flow.parameters())
    assert not x.requires_grad


def test_the_top_of_a_haar_flow_are_quarters_after_a_rotation() -> None:
    flow = linear_flow((8, 8), haar)
    quarters = block_wavelets(flow, 2)
    found = overlap(responses(flow, torch.randn(3, 8, 8), variables_of_scale(flow, 2)), quarters)
    torch.testing.assert_close(found.cosines.abs(), torch.full((4, 4), 0.5))
    assert (found.before, found.after) == pytest.approx((0.5, 1.0))
    torch.testing.assert_close(found.rotated, torch.eye(4), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(found.subspace, torch.ones(4))


def test_overlap_is_best_among_rotations() -> None:
    ideal = torch.linalg.qr(torch.randn(9, 3))[0].T
    rows = ideal + 0.5 * torch.randn(3, 9)
    found = overlap(rows, ideal)
    best = float((found.rotation @ rows @ ideal.T).trace())
    for _ in range(200):
        other = torch.linalg.qr(torch.randn(3, 3))[0]
        assert float((other @ rows @ ideal.T).trace()) < best


def test_patterns_that_are_not_shared() -> None:
    found = overlap(torch.eye(4)[:2], torch.eye(4)[[1, 2]])
    assert found.before == pytest.approx(0.5)
    torch.testing.assert_close(found.subspace, torch.tensor([1.0, 0.0]))
