# SPDX-License-Identifier: Apache-2.0
"""Linear flows, of which everything is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.transforms import HierarchicalFlow, hierarchical_flow


class Matrix(TransformModule):
    """x = A z in one block."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, y.unsqueeze(-1)).squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.slogdet(self.matrix)[1].expand(x.shape[:-1])


def haar(size: int) -> Matrix:
    """The 4 sites of a square from their normalised sum and three differences."""
    assert size == 4
    signs = [[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    return Matrix(torch.tensor(signs).T / 2)


def orthogonal(size: int) -> Matrix:
    return Matrix(torch.linalg.qr(torch.randn(size, size))[0])


def any_matrix(size: int) -> Matrix:
    return Matrix(torch.eye(size) + 0.5 * torch.randn(size, size) / math.sqrt(size))


def linear_flow(
    shape: tuple[int, ...], block: Callable[[int], Matrix], circuit: str = "tree"
) -> HierarchicalFlow:
    return hierarchical_flow(shape, circuit, bijector=block)


def jacobian(flow: HierarchicalFlow) -> Tensor:
    """dx/dz of a linear flow, ``(sites, sites)``."""
    units = torch.eye(math.prod(flow.shape))
    return flow.forward_and_ladj(units.reshape(-1, *flow.shape))[0].flatten(1).T


def gaussian(precision: Tensor) -> Callable[[Tensor], Tensor]:
    """The energy of a Gaussian field."""
    return lambda x: 0.5 * ((x.flatten(-2) @ precision) * x.flatten(-2)).sum(-1)
