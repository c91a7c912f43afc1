# Copyright the pyro_neuralrg contributors.
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

from pyro_neuralrg.arguments import check_array, check_integer, check_number, check_values
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.configurations import Observable, field_observables
from pyro_neuralrg.potentials import cluster
from pyro_neuralrg.potentials.base import TWO_PHASES, generator_of
from pyro_neuralrg.potentials.dual import LOWEST_EIGENVALUE, SpinDual
from pyro_neuralrg.potentials.exact import enumeration, transfer
from pyro_neuralrg.potentials.ising_model import (
    LOWEST_TEMPERATURE,
    check_external_field,
    derivative_in,
)
from pyro_neuralrg.potentials.tempering import tempered_spins
from pyro_neuralrg.spectral import computable
from pyro_neuralrg.transforms import HierarchicalFlow

MAX_SITES = 4096
"""Sites of a matrix of couplings: it is dense, and its eigenvalues take minutes at 64 x 64."""


class SpinModel:
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
        self.shape = (len(matrix),) if shape is None else check_shape(shape)
        if math.prod(self.shape) != len(matrix):
            raise ValueError(
                f"couplings has {len(matrix)} sites; accepted: one row for each site of the shape "
                f"{self.shape}"
            )
        accepted = "a finite number > 0, as is 1 / T"
        self.temperature = check_number(
            "temperature", temperature, accepted, least=LOWEST_TEMPERATURE
        )
        self.couplings = matrix
        self.field = check_external_field(field, self.shape)
        self.boundary = check_boundary(boundary)
        self.lattice_bonds = _lattice_bonds_of(matrix, self.shape)

    @property
    def bonds(self) -> cluster.Bonds:
        """Both ends of all bonds, as indices into the flattened lattice, and their K / T."""
        left, right = self.couplings.triu().nonzero().unbind(1)
        strength = self.couplings[left, right] / self.temperature
        return cluster.Bonds(left.numpy(), right.numpy(), strength.numpy())

    @property
    def reduced_field(self) -> Tensor | None:
        """h / T of each site in float64, or None."""
        return None if self.field is None else self.field / self.temperature

    def energy_per_site(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        """H / N of spins, or its mean over independent spins of given means.

        Of shape ``batch`` from means of shape ``batch + shape``; the variance is not needed.
        """
        values = self._flat("mean", mean)
        total = (values * self._local_field(values, 0.5)).sum(-1)
        return (-total / values.shape[-1]).to(mean.dtype)

    def squared_energy_per_site(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        """(H / N)^2 of spins, or its mean over independent spins.

        See :meth:`IsingModel.squared_energy_per_site`. Without ``variance`` the spins are known.
        """
        square = self.energy_per_site(mean).square()
        if variance is None:
            return square
        rest = self._flat("variance", variance)
        local = self._local_field(self._flat("mean", mean), 1.0)
        pairs = (rest @ self.couplings.to(rest).square()) / 2
        scatter = (rest * (local.square() + pairs)).sum(-1) / rest.shape[-1] ** 2
        return square + scatter.to(mean.dtype)

    def _local_field(self, values: Tensor, share: float) -> Tensor:
        """The share of K t, and h, at each site."""
        local = share * (values @ self.couplings.to(values))
        return local if self.field is None else local + self.field.to(values).flatten()

    def _flat(self, name: str, values: Tensor) -> Tensor:
        return computable(check_values(name, values, self.shape)).flatten(-len(self.shape))

    def observables(self) -> dict[str, Observable]:
        """Observables of spins, or of their means and variances; see :class:`IsingModel`."""
        return {
            **field_observables(self.shape, self.boundary),
            "internal_energy": self.energy_per_site,
            "squared_internal_energy": self.squared_energy_per_site,
        }

    def sample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw ``n`` configurations by tempered Monte Carlo, ``(n,) + shape``.

        In chains as those of :meth:`IsingModel.sample`, each with replicas at higher temperatures
        and with cluster flips. Energies of +-J glasses of 6 x 6 are within two errors down to T =
        0.5; large and cold ones may need more than these 100 sweeps.
        """
        n, sites = check_integer("n", n, 1), len(self.couplings)
        chains = min(n, max(1, cluster.SITES_AT_ONCE // sites))
        field = self.reduced_field
        spins = tempered_spins(
            (self.couplings / self.temperature).numpy(),
            np.zeros(sites) if field is None else field.flatten().numpy(),
            self.bonds,
            chains=chains,
            rounds=-(-n // chains),
            seed=int(torch.randint(2**62, (), generator=generator_of(seed))),
        )
        spins = spins.reshape(-1, *self.shape)[:n]
        return torch.from_numpy(spins).to(torch.get_default_dtype())

    def log_partition(self) -> float:
        """Exact ln Z in nats, by the transfer matrix or by enumeration."""
        with torch.no_grad():
            return float(self._log_partition(self._beta))

    def internal_energy(self) -> float:
        """Exact <H> per site: -d ln Z / d beta / N."""
        return -derivative_in(self._log_partition)(self._beta).item() / len(self.couplings)

    def specific_heat(self) -> float:
        """Exact d<H>/dT per site, in units of k_B."""
        beta = self._beta
        second = derivative_in(derivative_in(self._log_partition))(beta)
        return (beta * (beta * second)).item() / len(self.couplings)

    @property
    def _beta(self) -> Tensor:
        return torch.tensor(1 / self.temperature, dtype=torch.float64)

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
        if len(self.couplings) <= enumeration.MAX_ENUMERATED:
            matrix = beta * self.couplings
            return enumeration.enumerated_log_partition(matrix, fields.flatten())
        raise NotImplementedError(
            f"ln Z of {self!r} is not known exactly: accepted are bonds of nearest neighbours with "
            f"at most {transfer.MAX_SECTION_PERIODIC} spins across the longest side (open along "
            f"it: {transfer.MAX_SECTION_OPEN}; here {section}), and any couplings of up to "
            f"{enumeration.MAX_ENUMERATED} spins"
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
        self.spins = spins = SpinModel(couplings, field, shape, temperature, boundary)
        self.temperature = spins.temperature
        self.couplings, self.field = spins.couplings, spins.field
        super().__init__(spins.shape, boundary, even=self.field is None)
        self.base = TWO_PHASES if self.even else NORMAL
        eigenvalues, self._vectors = torch.linalg.eigh(spins.couplings / spins.temperature)
        self.alpha = LOWEST_EIGENVALUE - float(eigenvalues[0])
        self._eigenvalues = eigenvalues + self.alpha
        self.covariance = spins.couplings / spins.temperature
        self.covariance = self.covariance + self.alpha * torch.eye(len(eigenvalues)).double()
        self._register("precision", (self._vectors / self._eigenvalues) @ self._vectors.T)
        self._register_field(spins.reduced_field)

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

    def _quadratic_form(self, x: Tensor) -> Tensor:
        h = computable(x)
        return (h * self._times_precision(h)).sum(self._axes).to(x.dtype)

    def _times_power(self, x: Tensor, power: float) -> Tensor:
        matrix = (self._vectors * self._eigenvalues**power) @ self._vectors.T
        return (x.flatten(-len(self.shape)) @ matrix.to(x)).reshape(x.shape)

    def _log_determinant(self) -> float:
        return float(self._eigenvalues.log().sum())

    def _bond_features(self) -> Tensor | None:
        """K / T of each site and the next one along each axis, None if none differs inside."""
        bonds, inside = [], []
        for axis, side in enumerate(self.shape if max(self.shape) > 1 else ()):
            bonds.append(self.couplings[_ends(self.shape, axis)] / self.temperature)
            count = side if self.boundary == "periodic" else max(1, side - 1)
            inside.append(bonds[-1].narrow(axis, 0, count))
        differ = any(each.unique().numel() > 1 for each in inside)
        return torch.stack(bonds) if differ else None

    def flow(self, **options: Any) -> HierarchicalFlow:
        """As :meth:`SpinDual.flow`, with a Gaussian layer of this covariance unless it is given."""
        given = {"spectrum", "covariance"} & set(options)
        return super().flow(**({} if given else {"covariance": self.covariance}), **options)

    def heated(self, factor: float) -> DualSpins:
        """The same couplings and external field at ``factor`` times the temperature."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        potential = DualSpins(self.couplings, self.field, self.shape, hot, self.boundary)
        return potential.to(self.device)

    def __repr__(self) -> str:
        return repr(self.spins).replace("SpinModel", "DualSpins", 1)


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
    square = matrix.dim() == 2 and 1 <= len(matrix) == matrix.shape[1] <= MAX_SITES
    if not square or not bool(matrix.isfinite().all()):
        seen = f"shape {tuple(matrix.shape)}" if not square else "entries that are not finite"
        raise ValueError(f"couplings has {seen}; accepted: {accepted}")
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
    matrix = torch.zeros(math.prod(shape), math.prod(shape), dtype=torch.float64)
    for axis, side in enumerate(shape):
        count = side if boundary == "periodic" else side - 1
        if side == 1:
            continue
        left, right = (ends.narrow(axis, 0, count) for ends in _ends(shape, axis))
        strength = values[axis].narrow(axis, 0, count).flatten()
        for pair in ((left, right), (right, left)):
            places = tuple(ends.flatten() for ends in pair)
            matrix.index_put_(places, strength, accumulate=True)
    return matrix


def _neighbours_of(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """K of each site and the next one along each axis, ``(axes,) + shape``; each pair once."""
    bonds = torch.zeros(len(shape), *shape, dtype=matrix.dtype)
    for axis, side in enumerate(shape):
        if side > 1:
            bonds[axis] = matrix[_ends(shape, axis)]
        if side == 2:
            bonds[axis].select(axis, 1).zero_()
    return bonds


def _lattice_bonds_of(matrix: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The bonds of a periodic lattice that make up the matrix; None if it has others."""
    bonds = _neighbours_of(matrix, shape)
    return bonds if torch.equal(_matrix_of(shape, bonds, "periodic"), matrix) else None
