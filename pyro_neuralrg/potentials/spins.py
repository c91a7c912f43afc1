# SPDX-License-Identifier: Apache-2.0
"""Ising spins with a coupling for each pair: spin glasses, random fields; and their dual."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import check_array, check_finite, check_number
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials import cluster
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.potentials.cluster import Spins
from pyro_neuralrg.potentials.exact import transfer
from pyro_neuralrg.potentials.ising import LOWEST_EIGENVALUE, SpinDual
from pyro_neuralrg.potentials.ising_model import SpinSystem
from pyro_neuralrg.spectral import computable
from pyro_neuralrg.statistics import FloatArray
from pyro_neuralrg.transforms import HierarchicalFlow

MAX_SITES = 4096
"""Sites of a matrix of couplings: it is dense, and its eigenvalues take minutes at 64 x 64."""


class SpinModel(SpinSystem):
    r"""Ising spins with any symmetric couplings, :math:`p(s) \propto e^{-H(s) / T}`.

    .. math:: H(s) = -\tfrac12 s^T K s - h^T s

    Where K has bonds of nearest neighbours only, ln Z and energies are exact if the cross-section
    is small (:class:`IsingModel` says how small); else up to 20 spins, by enumeration.

    Args:
        couplings: K, symmetric with a zero diagonal, ``(N, N)`` of the sites row by row: an array,
            a tensor, or a sparse tensor, which is made dense; at most 4096 sites.
        field: h of each site, shape ``shape``, or one number; in units of K.
        shape: lattice shape, one to three sides; default: ``(N,)``.
        temperature: T in units of K (k_B = 1), > 0.
        boundary: "periodic" or "open", of observables and of the flows of its dual.

    Attributes:
        couplings: K in float64, dense.
        field: h of each site, float64 of shape ``shape``; None if it is zero everywhere; the other
            arguments likewise.

    Example:
        >>> pair = SpinModel([[0.0, 1.0], [1.0, 0.0]])  # Z = 2 e + 2 / e
        >>> f"{pair.log_partition():.6f} {math.log(4 * math.cosh(1)):.6f}"
        '1.820075 1.820075'
    """

    def __init__(
        self,
        couplings: ArrayLike | Tensor,
        field: ArrayLike | Tensor | None = None,
        shape: Iterable[int] | None = None,
        temperature: float = 1.0,
        boundary: str = "periodic",
    ) -> None:
        matrix = _check_matrix(couplings)
        sides = (len(matrix),) if shape is None else check_shape(shape)
        if math.prod(sides) != len(matrix):
            raise ValueError(
                f"couplings has {len(matrix)} sites; accepted: one row for each site of the shape "
                f"{sides}"
            )
        super().__init__(sides, temperature, field, boundary)
        self.couplings = matrix
        self.lattice_bonds = _lattice_bonds_of(matrix, self.shape)

    @property
    def bonds(self) -> cluster.Bonds:
        left, right = self.couplings.triu().nonzero().unbind(1)
        strength = self.couplings[left, right] / self.temperature
        return cluster.Bonds(left.numpy(), right.numpy(), strength.numpy())

    def _coupled(self, values: Tensor, power: int = 1, both_ends: bool = False) -> Tensor:
        matrix = self.couplings.to(values)
        matrix = matrix if power == 1 else matrix**power
        local = values.flatten(-len(self.shape)) @ matrix
        return (local if both_ends else local / 2).reshape(values.shape)

    def _chains(self, field: FloatArray | None, chains: int, rounds: int, seed: int) -> Spins:
        couplings = (self.couplings / self.temperature).numpy()
        return cluster.tempered_spins(
            couplings, field, self.bonds, chains=chains, rounds=rounds, seed=seed
        )

    def _log_partition(self, beta: Tensor) -> Tensor:
        """ln Z at the inverse temperature ``beta``."""
        zero = torch.zeros(self.shape, dtype=torch.float64)
        fields = beta * (zero if self.field is None else self.field)
        section, bonds = transfer.cross_section(self.shape), self.lattice_bonds
        if bonds is not None:
            long = self.shape.index(max(self.shape))
            closed = bool(bonds[long].select(long, -1).any())
            limit = transfer.MAX_SECTION_PERIODIC if closed else transfer.MAX_SECTION_OPEN
            if section <= limit:
                ends = "periodic" if closed else "open"
                return transfer.transfer_log_partition(self.shape, beta * bonds, fields, ends)
        if len(self.couplings) <= transfer.MAX_ENUMERATED:
            matrix = beta * self.couplings
            return transfer.enumerated_log_partition(matrix, fields.flatten())
        raise NotImplementedError(
            f"ln Z of {self!r} is not known exactly: accepted are bonds of nearest neighbours with "
            f"at most {transfer.MAX_SECTION_PERIODIC} spins across the longest side (open along "
            f"it: {transfer.MAX_SECTION_OPEN}; here {section}), and any couplings of up to "
            f"{transfer.MAX_ENUMERATED} spins"
        )

    def __repr__(self) -> str:
        field = "" if self.field is None else ", field=..."
        pairs = int(self.couplings.count_nonzero()) // 2
        return (
            f"SpinModel({pairs} couplings{field}, shape={self.shape}, "
            f"temperature={self.temperature:.9g}, boundary={self.boundary!r})"
        )


class DualSpins(SpinDual):
    r"""The continuous field dual to spins of any symmetric couplings: :class:`IsingDual` for these.

    .. math::
        \pi(x) = \exp\left(-\tfrac12 x^T (K / T + \alpha I)^{-1} x\right)
        \prod_i \cosh(x_i + h_i / T)

    Its flows have a Gaussian layer of the covariance K / T + alpha I, see the bonds between
    neighbours of the lattice and the field where these differ from site to site, and are odd where
    there is no field. (8 x 8, +-J, T = 1, 200 steps: a gap of 5.5 nats, 12.5 without the bonds,
    11.8 with the spectrum of the averaged matrix instead, 32.6 with neither.) O(N^2).

    Args:
        couplings, field, shape, temperature, boundary: those of :class:`SpinModel`.

    Attributes:
        spins: the :class:`SpinModel` it is dual to.
        couplings, field, temperature: those of the spins.
        alpha: makes the lowest eigenvalue of K / T + alpha I equal to 0.1.
        covariance: K / T + alpha I, float64.

    References:
        S.-H. Li and L. Wang, Phys. Rev. Lett. 121, 260601 (2018), Eq. 7, for general K.

    Example:
        >>> target = DualSpins.spin_glass((4, 4), temperature=1.5, seed=1)
        >>> target.energy(torch.zeros(5, 4, 4))
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(
        self,
        couplings: ArrayLike | Tensor,
        field: ArrayLike | Tensor | None = None,
        shape: Iterable[int] | None = None,
        temperature: float = 1.0,
        boundary: str = "periodic",
    ) -> None:
        spins = SpinModel(couplings, field, shape, temperature, boundary)
        super().__init__(spins)
        matrix = spins.couplings / spins.temperature
        eigenvalues, self._vectors = torch.linalg.eigh(matrix)
        self.alpha = LOWEST_EIGENVALUE - float(eigenvalues[0])
        self._eigenvalues = eigenvalues + self.alpha
        self.covariance = matrix + self.alpha * torch.eye(len(matrix), dtype=matrix.dtype)
        self._register("precision", (self._vectors / self._eigenvalues) @ self._vectors.T)

    @classmethod
    def from_bonds(
        cls,
        shape: Iterable[int],
        bonds: ArrayLike | Tensor,
        field: ArrayLike | Tensor | None = None,
        temperature: float = 1.0,
        boundary: str = "periodic",
    ) -> DualSpins:
        """Spins with a coupling of their own for each bond of nearest neighbours.

        ``bonds`` are J from each site to the next one along each axis, ``(axes,) + shape``; what
        would lead beyond an open end, or along a side of 1, does not count, and a periodic side of
        2 has two bonds between its sites. The others are those of :class:`SpinModel`.

        Example:
            >>> from pyro_neuralrg.potentials import IsingDual
            >>> target = DualSpins.from_bonds((4, 4), torch.ones(2, 4, 4), temperature=2.5)
            >>> f"{target.log_partition():.6f} {IsingDual((4, 4), 2.5).log_partition():.6f}"
            '34.433169 34.433169'
        """
        sides = _check_sides(shape)
        matrix = _matrix_of(sides, bonds, check_boundary(boundary))
        return cls(matrix, field, sides, temperature, boundary)

    @classmethod
    def spin_glass(
        cls,
        shape: Iterable[int],
        temperature: float = 1.0,
        *,
        positive: float = 0.5,
        seed: int | torch.Generator | None = None,
        boundary: str = "periodic",
    ) -> DualSpins:
        """The Edwards-Anderson +-J model: bonds of 1 with probability ``positive``, else of -1.

        Without a ``seed`` torch's own random numbers continue.

        References:
            S. F. Edwards and P. W. Anderson, J. Phys. F 5, 965 (1975).

        Example:
            >>> sorted(set(DualSpins.spin_glass((3, 3), seed=0).couplings.unique().tolist()))
            [-1.0, 0.0, 1.0]
        """
        sides = _check_sides(shape)
        positive = check_number("positive", positive, "a probability", least=0, most=1)
        uniform = torch.rand(len(sides), *sides, generator=generator_of(seed), dtype=torch.float64)
        bonds = torch.where(uniform < positive, 1.0, -1.0)
        return cls.from_bonds(sides, bonds, None, temperature, boundary)

    @classmethod
    def random_field(
        cls,
        shape: Iterable[int],
        strength: float,
        temperature: float = 1.0,
        *,
        seed: int | torch.Generator | None = None,
        boundary: str = "periodic",
    ) -> DualSpins:
        """The Ising model, J = 1, in a field of independent normals times ``strength``.

        With ``strength = 0`` there is no field, and the symmetry x -> -x is back.

        Example:
            >>> [DualSpins.random_field((4, 4), h, 2.0, seed=1).even for h in (0.0, 1.0)]
            [True, False]
        """
        sides = _check_sides(shape)
        strength = check_number("strength", strength)
        field = strength * torch.randn(sides, generator=generator_of(seed), dtype=torch.float64)
        bonds = torch.ones(len(sides), *sides, dtype=torch.float64)
        return cls.from_bonds(sides, bonds, field, temperature, boundary)

    def _times_precision(self, x: Tensor) -> Tensor:
        h = computable(x).flatten(-len(self.shape))
        return (h @ self._constant("precision", h)).reshape(x.shape).to(x.dtype)

    def _times_power(self, x: Tensor, power: float) -> Tensor:
        matrix = (self._vectors * self._eigenvalues**power) @ self._vectors.T
        return (x.flatten(-len(self.shape)) @ matrix.to(x)).reshape(x.shape)

    def _bond_features(self) -> list[Tensor]:
        """K / T of each site and the next one along each axis; none if none differs inside."""
        bonds, inside = [], []
        for axis, side in enumerate(self.shape if max(self.shape) > 1 else ()):
            bonds.append(self.couplings[_ends(self.shape, axis)] / self.temperature)
            count = side if self.boundary == "periodic" else max(1, side - 1)
            inside.append(bonds[-1].narrow(axis, 0, count))
        return bonds if any(each.unique().numel() > 1 for each in inside) else []

    def flow(self, **options: Any) -> HierarchicalFlow:
        """As :meth:`SpinDual.flow`, with a Gaussian layer of this covariance unless it is given."""
        given = {"spectrum", "covariance"} & set(options)
        return super().flow(**({} if given else {"covariance": self.covariance}), **options)


def _check_sides(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape, before a matrix of so many sites is made."""
    sides = check_shape(shape)
    if math.prod(sides) > MAX_SITES:
        raise ValueError(
            f"shape is {sides}, {math.prod(sides)} sites; accepted: up to {MAX_SITES} sites, as "
            "the matrix of couplings is dense"
        )
    return sides


def _check_matrix(couplings: Any) -> Tensor:
    """A matrix of couplings, dense in float64."""
    accepted = f"a finite symmetric matrix of up to {MAX_SITES} sites with a zero diagonal, "
    accepted += "dense, or a sparse torch tensor"
    if isinstance(couplings, Tensor) and couplings.layout != torch.strided:
        couplings = couplings.to_dense()
    matrix = torch.from_numpy(np.ascontiguousarray(check_array("couplings", couplings, accepted)))
    is_square = matrix.dim() == 2 and 1 <= len(matrix) == matrix.shape[1] <= MAX_SITES
    check_finite("couplings", matrix, is_square, accepted)
    if not torch.equal(matrix, matrix.T) or bool(matrix.diagonal().any()):
        kind = "a diagonal" if torch.equal(matrix, matrix.T) else "K_ij other than K_ji"
        raise ValueError(f"couplings has {kind}; accepted: {accepted}")
    return matrix


def _ends(shape: tuple[int, ...], axis: int) -> tuple[Tensor, Tensor]:
    """Each site and the next one along an axis, as indices into the flattened lattice."""
    index = torch.arange(math.prod(shape)).reshape(shape)
    return index, index.roll(-1, axis)


def _matrix_of(shape: tuple[int, ...], bonds: Any, boundary: str) -> Tensor:
    """K of the bonds from each site to the next one along each axis."""
    accepted = f"finite numbers of shape {(len(shape), *shape)}, one for each site and axis"
    values = torch.from_numpy(check_array("bonds", bonds, accepted))
    if tuple(values.shape) != (len(shape), *shape) or not bool(values.isfinite().all()):
        raise ValueError(f"bonds has shape {tuple(values.shape)} or nan; accepted: {accepted}")
    left, right, strength = cluster.lattice_bonds(shape, values.numpy(), boundary)
    matrix = np.zeros(2 * (math.prod(shape),))
    np.add.at(matrix, (left, right), strength)
    return torch.from_numpy(matrix + matrix.T)


def _lattice_bonds_of(matrix: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The bonds of a periodic lattice that make up the matrix, ``(axes,) + shape``, or None.

    K of each site and the next one along each axis, each pair once.
    """
    bonds = torch.zeros(len(shape), *shape, dtype=matrix.dtype)
    for axis, side in enumerate(shape):
        if side > 1:
            bonds[axis] = matrix[_ends(shape, axis)]
        if side == 2:
            bonds[axis].select(axis, 1).zero_()
    return bonds if torch.equal(_matrix_of(shape, bonds, "periodic"), matrix) else None
