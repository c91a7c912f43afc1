# SPDX-License-Identifier: Apache-2.0
r"""A mass that knows a few directions: variances, and what stands out once they are divided by.

:math:`M^{-1} = s\,[1 + V (\Lambda - 1) V^T]\, s` with the deviations s of the coordinates and
orthonormal directions V, from draws and their scores as in Seyboldt, Carlson, Carpenter,
"Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence" (2026): in the subspace of
directions that stand out of either, :math:`1 + V (\Lambda - 1) V^T` is the geometric mean of the
covariance of the draws and the inverse of that of the scores, which of a normal are the same.
Draws show wide directions, scores stiff ones, which no covariance of as many draws would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.learning import TINY, Learner, PooledCovariance

NOISE_MARGIN = 1.3
"""Factor between the eigenvalues of pure noise and those that count as signal."""

LEAST = 0.4
"""|ln| of the variance along a direction that is worth its products."""


class LowRankCovariance(Learner):
    """Variances ``(dim,)``, or these beside directions that stand out, ``(dim, 1 + rank)``.

    Signal is told from noise by the law of Marchenko and Pastur, for as many draws as there are
    independent ones. The form is that of :class:`~pyro_neuralrg.mcmc.kernel.LowRankMass`.
    """

    MOST_ROWS = 2048  # kept of positions and of scores; those of a longer window are thinned
    MOST_DIRECTIONS = 64  # a step of the integrator multiplies by each of them twice

    def __init__(self) -> None:
        self._variances = PooledCovariance()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._variances.clear()
        self._rows: list[Tensor] = []
        self._seen, self._stride = 0, 1

    def update(self, positions: Tensor, gradients: Tensor) -> None:
        """Add positions ``(chains, dim)`` and the gradients of the energy there."""
        self._variances.update(positions)
        if self._seen % self._stride == 0:
            every = -(-2 * len(positions) // self.MOST_ROWS)
            self._rows.append(torch.stack([positions[::every], gradients[::every]]))
            if len(self._rows) * self._rows[0].shape[1] > self.MOST_ROWS:
                self._rows, self._stride = self._rows[::2], 2 * self._stride
        self._seen += 1

    def regularised(self) -> Tensor | None:
        """The inverse mass; None of fewer than two values."""
        variances = self._variances.regularised()
        if variances is None:
            return None
        rows = [row.to(variances) for row in self._rows]  # a file's are on the CPU
        positions, scores = torch.stack(rows, 1)  # (steps, chains, dim) each
        scale = variances.sqrt()
        parts = positions / scale, scores * scale
        if not all(bool(part.isfinite().all()) for part in parts):
            return variances
        most = min(self.MOST_DIRECTIONS, (len(variances) - 1) // 2)
        found = torch.cat([_outstanding(part) for part in parts], -1)
        order = found[0].argsort(descending=True)[:most]
        if not len(order):
            return variances
        basis = torch.linalg.qr(found[1:, order]).Q
        inside = [(part.flatten(0, 1) @ basis).mT.cov().reshape(len(order), -1) for part in parts]
        widths, turn = torch.linalg.eigh(_geometric_mean(*inside))
        apart = widths.log().abs() > LEAST
        if not bool(apart.any()):
            return variances
        return torch.cat([variances.unsqueeze(-1), (basis @ turn * widths)[:, apart]], -1)


def _outstanding(values: Tensor) -> Tensor:
    """Directions of ``(steps, chains, dim)`` whose variance is above that of noise, as columns.

    Above each is its variance, in units of the mean one of those that do not stand out.
    """
    steps, chains, dim = values.shape
    rows = values.flatten(0, 1) - values.mean((0, 1))
    own = rows.unflatten(0, (steps, chains)).flatten(1)
    alike = own @ own.mT  # of the draws of a chain
    memory = float(alike.square().sum() / alike.diagonal().mean().clamp(min=TINY) ** 2) / steps
    noise = NOISE_MARGIN * (1 + (dim * memory / len(rows)) ** 0.5) ** 2
    by_rows = len(rows) < dim
    squares, vectors = torch.linalg.eigh(rows @ rows.mT if by_rows else rows.mT @ rows)
    squares, vectors = squares.flip(0) / (len(rows) - 1), vectors.flip(1)
    total, counts = squares.sum(), torch.arange(1, len(squares) + 1).to(squares)
    rest = (total - squares.cumsum(0)) / (dim - counts).clamp(min=1.0)
    count = int((squares > noise * rest.clamp(min=TINY)).int().cumprod(0).sum())
    count = min(count, max(0, len(squares) // 2))
    chosen = rows.mT @ vectors[:, :count] if by_rows else vectors[:, :count]
    chosen = chosen / chosen.norm(dim=0)
    return torch.cat([(squares[:count] / rest[:count])[None], chosen])


def _geometric_mean(covariance: Tensor, precision: Tensor) -> Tensor:
    """The symmetric matrix A with A precision A = covariance."""
    root, inverse = _powers(precision, 0.5, -0.5)
    return inverse @ _powers(root @ covariance @ root, 0.5)[0] @ inverse


def _powers(matrix: Tensor, *powers: float) -> list[Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=float(values.max()) * torch.finfo(values.dtype).eps)
    return [(vectors * values**power) @ vectors.mT for power in powers]
