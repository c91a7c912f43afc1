# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks that are matrices: a Gaussian of any covariance, block by block and scale by scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = ["BlockMatrices"]


class BlockMatrices(LatticeTransform):
    r"""A matrix for the sites of each block: :math:`x = L U z`, L unit lower triangular.

    U is upper triangular with :math:`e^d` on its diagonal, so that :math:`\ln|\det| = \sum d` over
    the blocks. The identity at the start.

    Args:
        size: sites of a block.
        count: blocks along each axis.
        per_block: each block has a matrix of its own; else all share one.

    Example:
        >>> layer = BlockMatrices(4, (2, 2), per_block=True)
        >>> z = torch.randn(4, 2, 2)
        >>> bool(torch.equal(layer(z), z)), sum(p.numel() for p in layer.parameters())
        (True, 64)
    """

    def __init__(self, size: int, count: tuple[int, ...], *, per_block: bool) -> None:
        super().__init__((size, *count))
        places = count if per_block else (1,) * len(count)
        self.log_diagonal = nn.Parameter(torch.zeros(*places, size))
        self.off_diagonal = nn.Parameter(torch.zeros(*places, size, size - 1))

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to x, batch-last."""
        lower, upper = self._factors()
        return self._applied(lower @ upper, h), self._ladj(h)

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to z, batch-last."""
        lower, upper = self._factors()
        identity = torch.eye(len(h), dtype=h.dtype, device=h.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
        return self._applied(inverse, h), self._ladj(h)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U, from the entries of a matrix without its diagonal."""
        below = torch.nn.functional.pad(self.off_diagonal, (0, 1)).tril(-1)
        above = torch.nn.functional.pad(self.off_diagonal, (1, 0)).triu(1)
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        identity = torch.eye(below.shape[-1], dtype=below.dtype, device=below.device)
        return below + identity, above + diagonal

    def _applied(self, matrix: Tensor, h: Tensor) -> Tensor:
        """The matrices times the blocks' values, which stand first."""
        blocks = matrix.expand(*h.shape[1:-1], *matrix.shape[-2:]) @ h.movedim(0, -2)
        return blocks.movedim(-2, 0)

    def _ladj(self, h: Tensor) -> Tensor:
        blocks = math.prod(self.event_shape) // self.log_diagonal.numel()  # that share a matrix
        return (blocks * self.log_diagonal.sum()).expand(h.shape[-1])
