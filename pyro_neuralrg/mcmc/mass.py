# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The mass of the momenta: the identity, a diagonal or a dense matrix, given by its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mass:
    """Momenta p ~ N(0, M), M^-1 being about the covariance of the target.

    Attributes:
        inverse: M^-1: its diagonal, shape ``(dim,)``, or the whole, shape ``(dim, dim)``.
        factor: square roots of the diagonal, or the lower Cholesky factor.
        unit: whether it is the identity.
    """

    inverse: Tensor
    factor: Tensor
    unit: bool = False

    @classmethod
    def of(cls, inverse: Tensor | None, like: Tensor) -> Mass:
        """The mass of an inverse (None: the identity) for positions such as ``like``.

        Raises:
            ValueError: if it is not of the positions' dimension.
        """
        dim = like.shape[-1]
        if inverse is None:
            ones = like.new_ones(dim)
            return cls(ones, ones, unit=True)
        if tuple(inverse.shape) not in {(dim,), (dim, dim)}:
            raise ValueError(
                f"inverse_mass has shape {tuple(inverse.shape)}; accepted: ({dim},) or "
                f"({dim}, {dim})"
            )
        exact = inverse.double()
        factor = exact.sqrt() if inverse.dim() == 1 else torch.linalg.cholesky(exact)
        return cls(inverse.to(like), factor.to(like))

    @property
    def _dense(self) -> bool:
        return self.inverse.dim() == 2

    def momentum(self, normal: Tensor) -> Tensor:
        """Momenta ``(chains, dim)`` of standard normals of that shape."""
        if self._dense:
            return torch.linalg.solve_triangular(self.factor.mT, normal.mT, upper=True).mT
        return normal if self.unit else normal / self.factor

    def displacement(self, normal: Tensor) -> Tensor:
        """Normals of covariance M^-1 of standard ones, ``(chains, dim)`` each."""
        return normal @ self.factor.mT if self._dense else normal * self.factor

    def velocity(self, momentum: Tensor) -> Tensor:
        """M^-1 p, shape ``(chains, dim)``."""
        if self._dense:
            return momentum @ self.inverse
        return momentum if self.unit else self.inverse * momentum

    def kinetic_energy(self, momentum: Tensor) -> Tensor:
        """p M^-1 p / 2 in nats, float64, shape ``(chains,)``."""
        return 0.5 * (momentum * self.velocity(momentum)).sum(-1).double()

    def whitened(self, positions: Tensor) -> Tensor:
        """Coordinates in which M is the identity, shape ``(chains, dim)``."""
        if self._dense:
            return torch.linalg.solve_triangular(self.factor, positions.mT, upper=False).mT
        return positions / self.factor


def check_inverse_mass(inverse_mass: Tensor | None) -> Tensor | None:
    """Return it if it is None or a covariance, else raise a ValueError."""
    if inverse_mass is not None and not is_covariance(inverse_mass):
        raise ValueError(
            f"inverse_mass is {inverse_mass!r}; accepted: finite variances > 0 of shape (dim,), a "
            "symmetric matrix (dim, dim) of positive eigenvalues, or None"
        )
    return inverse_mass


def is_covariance(values: Tensor) -> bool:
    """Report whether these are variances, or a covariance matrix, all finite and positive."""
    if not isinstance(values, Tensor) or values.dim() not in (1, 2):
        return False
    if values.shape[0] != values.shape[-1] or not bool(values.isfinite().all()):
        return False
    if values.dim() == 2:
        if not torch.allclose(values, values.mT, rtol=1e-4):
            return False
        values = torch.linalg.eigvalsh(values.double())
    return bool((values > 0).all())
