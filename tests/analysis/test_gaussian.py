# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Mutual information of Gaussian groups, and how a tree hands it on (paper Eq. 2)."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.analysis import gaussian_mutual_information, variables_of_scale
from pyro_neuralrg.transforms.scales import blocks_of_scale, sites_of_scale
from tests.analysis.linear import any_matrix, jacobian, linear_flow, orthogonal


def random_covariance(size: int) -> torch.Tensor:
    root = torch.randn(size, size)
    return root @ root.T + 0.1 * torch.eye(size)


def test_of_two_variables() -> None:
    covariance = torch.tensor([[4.0, 1.2], [1.2, 1.0]])
    exact = -0.5 * math.log(1 - 0.36)
    assert gaussian_mutual_information(covariance, [0], [1]) == pytest.approx(exact)


def test_chain_rule_and_symmetry() -> None:
    c = random_covariance(6)
    assert gaussian_mutual_information(c, [0, 3], [1, 2]) == pytest.approx(
        gaussian_mutual_information(c, [2, 1], [3, 0])
    )
    # I(A : BC) = I(A : B) + I(AB : C) - I(B : C)
    chain = (
        gaussian_mutual_information(c, [0], [1])
        + gaussian_mutual_information(c, [0, 1], [2])
        - gaussian_mutual_information(c, [1], [2])
    )
    assert gaussian_mutual_information(c, [0], [1, 2]) == pytest.approx(chain)


def test_independent_groups() -> None:
    covariance = torch.block_diag(random_covariance(2), random_covariance(3))
    assert gaussian_mutual_information(covariance, [0, 1], [2, 3, 4]) == pytest.approx(0, abs=1e-12)
    assert gaussian_mutual_information(covariance, [0], [1]) > 1e-3


@pytest.mark.parametrize("block", [orthogonal, any_matrix])
def test_a_tree_hands_mutual_information_on_to_the_kept_variables(block) -> None:
    """Eq. 2: I(A : B) = I(R_A z_A : R_B z_B) = I(R_A : R_B), at every scale of a tree."""
    flow = linear_flow((4, 8), block)
    if block is orthogonal:  # else the field is white noise
        for parameter in flow.buffers():
            parameter.mul_(torch.linspace(0.5, 2.0, parameter.shape[-1]))
    matrix = jacobian(flow)
    field = matrix @ matrix.T
    owner = blocks_of_scale(flow.circuit, 2).flatten()
    a, b = (owner == 0).nonzero().flatten(), (owner == 1).nonzero().flatten()
    exact = gaussian_mutual_information(field, a, b)
    assert exact > 0.01
    for scale in (1, 2):
        part = flow.up_to_scale(scale)
        to_u = torch.linalg.inv(
            part.forward_and_ladj(torch.eye(32).reshape(32, 4, 8))[0].reshape(32, 32).T
        )
        after = to_u @ field @ to_u.T
        assert gaussian_mutual_information(after, a, b) == pytest.approx(exact)
        kept = variables_of_scale(flow, scale)
        r_a, r_b = kept[torch.isin(kept, a)], kept[torch.isin(kept, b)]
        assert len(r_a) == len(r_b) == 4 ** (2 - scale)
        assert gaussian_mutual_information(after, r_a, r_b) == pytest.approx(exact)
    assert sites_of_scale(flow.circuit, 2).tolist() == [[0, 4]]


def test_latents_that_know_of_others_break_the_identity() -> None:
    """The second half of Eq. 2 needs independent latents: of another field they are not."""
    flow = linear_flow((2, 4), any_matrix)
    field = random_covariance(8)
    part = torch.linalg.inv(
        flow.up_to_scale(1).forward_and_ladj(torch.eye(8).reshape(8, 2, 4))[0].reshape(8, 8).T
    )
    after = part @ field @ part.T
    a, b = [0, 1, 4, 5], [2, 3, 6, 7]
    exact = gaussian_mutual_information(field, a, b)
    assert gaussian_mutual_information(after, a, b) == pytest.approx(exact)
    assert gaussian_mutual_information(after, [0], [2]) < 0.9 * exact


@pytest.mark.parametrize(
    ("covariance", "first", "second", "message"),
    [
        (torch.ones(2, 3), [0], [1], r"covariance has shape \(2, 3\)"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), [0], [1], "not symmetric and positive definite"),
        (torch.ones(2, 2), [0], [1], "not symmetric and positive definite"),
        (torch.full((2, 2), torch.nan), [0], [1], "not symmetric and positive definite"),
        (torch.eye(3), [], [1], "first is empty"),
        (torch.eye(3), [0], [3], "second is 3; accepted: .* from 0 to 2"),
        (torch.eye(3), [0, 1], [1], "disjoint groups"),
    ],
)
def test_bad_arguments(covariance, first, second, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_mutual_information(covariance, first, second)


def test_an_integer_covariance() -> None:
    with pytest.raises(TypeError, match="accepted: a floating tensor"):
        gaussian_mutual_information(torch.eye(2).long(), [0], [1])
