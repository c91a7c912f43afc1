# SPDX-License-Identifier: Apache-2.0
"""The Ising model of spins: exact quantities, cluster Monte Carlo and observables."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import (
    check_array,
    check_finite,
    check_integer,
    check_number,
    check_numbers,
    check_values,
)
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.configurations import Observable, field_observables
from pyro_neuralrg.potentials import cluster
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.potentials.cluster import Spins
from pyro_neuralrg.potentials.exact import pfaffian, torus, transfer
from pyro_neuralrg.spectral import computable
from pyro_neuralrg.statistics import Estimate, FloatArray

CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))
"""Critical T of the infinite square lattice with J = 1, in J / k_B (L. Onsager, 1944)."""

CRITICAL_TEMPERATURES = {2: CRITICAL_TEMPERATURE, 3: 1 / 0.221654626}
"""By dimension; of the simple cubic lattice J / T = 0.221654626(5), by Monte Carlo (A. M.
Ferrenberg, J. Xu and D. P. Landau, Phys. Rev. E 97, 043301 (2018))."""

LOWEST_TEMPERATURE = 1 / sys.float_info.max
"""Below it 1 / T overflows."""

LEAST_CHAINS = 32
"""Independent chains for an error bar, which is then itself known to 13 %."""


class SpinSystem(ABC):
    r"""Ising spins, :math:`p(s) \propto e^{-H(s) / T}`, whatever their couplings.

    Subclasses define ``bonds``, how couplings act, how chains are drawn, and ln Z as a function of
    the inverse temperature.
    """

    couplings: Any

    def __init__(self, shape: Iterable[int], temperature: float, field: Any, boundary: str) -> None:
        self.shape = check_shape(shape)
        accepted = "a finite number > 0, as is 1 / T"
        self.temperature = check_number(
            "temperature", temperature, accepted, least=LOWEST_TEMPERATURE
        )
        self.field = check_external_field(field, self.shape)
        self.boundary = check_boundary(boundary)

    @property
    @abstractmethod
    def bonds(self) -> cluster.Bonds:
        """Both ends of all bonds, as indices into the flattened lattice, and their K / T."""

    @abstractmethod
    def _coupled(self, values: Tensor, power: int = 1, both_ends: bool = False) -> Tensor:
        """The sum of K_ij^power v_j at each site i, of each bond at one or both of its ends."""

    @abstractmethod
    def _chains(self, field: FloatArray | None, chains: int, rounds: int, seed: int) -> Spins:
        """Spins in the field h / T, ``(rounds, chains, sites)``."""

    @abstractmethod
    def _log_partition(self, beta: Tensor) -> Tensor:
        """ln Z at the inverse temperature ``beta``."""

    @property
    def reduced_field(self) -> Tensor | None:
        """h / T of each site in float64, or None."""
        return None if self.field is None else self.field / self.temperature

    def energy_per_site(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        """H / N of spins, or its mean over independent spins of given means, in units of J.

        Of shape ``batch`` from means of shape ``batch + shape``; the variance is not needed.
        """
        values = computable(check_values("mean", mean, self.shape))
        total = (values * self._with_field(self._coupled(values))).sum(self._axes)
        return (-total / math.prod(self.shape)).to(mean.dtype)

    def squared_energy_per_site(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        r"""(H / N)^2 of spins, or its mean over independent spins, in units of J^2.

        About the means t the energy is a sum of terms without correlation,

        .. math:: H(s) = H(t) - \sum_i g_i (s_i - t_i) - \sum_{(ij)} J_{ij} (s_i - t_i)(s_j - t_j),

        with :math:`g_i = h_i + \sum_j J_{ij} t_j` and pairs (ij) of neighbours (whose two bonds
        along a periodic side of 2 make one :math:`J_{ij}`), so that its variance is :math:`\sum_i
        g_i^2 \sigma_i^2 + \sum_{(ij)} J_{ij}^2 \sigma_i^2 \sigma_j^2`. As much work as the energy.
        Without ``variance`` the spins are known.

        Example:
            >>> pair = IsingModel((2,), 1.0, boundary="open")  # H = -s_0 s_1
            >>> pair.squared_energy_per_site(torch.zeros(2), torch.ones(2))
            tensor(0.2500)
        """
        square = self.energy_per_site(mean).square()
        if variance is None:
            return square
        rest = computable(check_values("variance", variance, self.shape))
        local = self._with_field(self._coupled(computable(mean), both_ends=True))
        scatter = (rest * (local.square() + self._coupled(rest, power=2))).sum(self._axes)
        return square + (scatter / math.prod(self.shape) ** 2).to(mean.dtype)

    def _with_field(self, local: Tensor) -> Tensor:
        return local if self.field is None else local + self.field.to(local)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.shape), 0))

    def observables(self) -> dict[str, Observable]:
        """Observables that fit the model, as functions of spins, or of their means and variances.

        Those of :func:`~pyro_neuralrg.observables.field_observables`, and ``internal_energy`` and
        ``squared_internal_energy``, H / N and its square.
        """
        return {
            **field_observables(self.shape, self.boundary),
            "internal_energy": self.energy_per_site,
            "squared_internal_energy": self.squared_energy_per_site,
        }

    def sample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw ``n`` configurations by Monte Carlo, without a flow.

        Spins of +1 and -1, ``(n,) + shape`` in torch's default dtype, from as many independent
        chains as fit 65536 sites, 15 sweeps apart in each: of an :class:`IsingModel` by clusters
        (Swendsen-Wang), of a :class:`SpinModel` with replicas at higher temperatures besides.
        Energies of +-J glasses of 6 x 6 are within two errors down to T = 0.5; large and cold ones
        may need more than these 100 sweeps. Without a ``seed`` or generator torch's own random
        numbers continue.
        """
        n = check_integer("n", n, 1)
        chains = min(n, max(1, cluster.SITES_AT_ONCE // math.prod(self.shape)))
        spins = self._rounds(n, chains, seed).reshape(-1, *self.shape)[:n]
        return torch.from_numpy(spins).to(torch.get_default_dtype())

    def _rounds(self, n: int, chains: int, seed: int | torch.Generator | None) -> Spins:
        """At least ``n`` configurations, ``(rounds, chains, sites)``."""
        field = self.reduced_field
        own = None if field is None else field.flatten().numpy()
        number = int(torch.randint(2**62, (), generator=generator_of(seed)))
        return self._chains(own, chains, -(-n // chains), number)

    def log_partition(self) -> float:
        """Exact ln Z in nats; a NotImplementedError says which models are out of reach."""
        with torch.no_grad():
            return float(self._log_partition(self._beta))

    def internal_energy(self) -> float:
        """Exact <H> per site in units of J: -d ln Z / d beta / N."""
        return -derivative_in(self._log_partition)(self._beta).item() / math.prod(self.shape)

    def specific_heat(self) -> float:
        """Exact specific heat d<H>/dT per site in units of k_B: beta^2 d^2 ln Z / d beta^2 / N."""
        beta = self._beta
        second = derivative_in(derivative_in(self._log_partition))(beta)
        return (beta * (beta * second)).item() / math.prod(self.shape)

    @property
    def _beta(self) -> Tensor:
        return torch.tensor(1 / self.temperature, dtype=torch.float64)


class IsingModel(SpinSystem):
    r"""Ising spins on a lattice, :math:`p(s) \propto e^{-H(s) / T}`.

    .. math:: H(s) = -\sum_{a, \langle ij \rangle_a} J_a s_i s_j - \sum_i h_i s_i

    with the bonds of nearest neighbours along each axis a. Energies are in units of J, temperatures
    in J / k_B. Exact quantities raise NotImplementedError, with the reason, where no method reaches
    the lattice: rings (in closed form) and two-dimensional tori (by Kaufman's formula, stable to
    sides of 1024 and beyond) are reached without field and frustration, all else by the transfer
    matrix if the cross-section is small; :meth:`sample` has no such limit.

    Args:
        shape: lattice shape, one to three sides >= 1.
        temperature: T in units of J / k_B, > 0; default: :func:`critical_temperature`, which a
            lattice of one dimension has not.
        couplings: J of each axis, of either sign; default: 1 each. A periodic side of 2 counts both
            bonds of a pair, a side of 1 has none.
        field: external field h in units of J, one number or one per site (shape ``shape``).
        boundary: "periodic" or "open".

    Attributes:
        field: h of each site, float64 of shape ``shape``; None without a field, or if it is zero
            everywhere; the other arguments likewise.

    References:
        B. Kaufman, Crystal statistics II, Phys. Rev. 76, 1232 (1949).
        B. M. McCoy and T. T. Wu, The Two-Dimensional Ising Model (1973).

    Example:
        >>> model = IsingModel((8, 8))
        >>> f"{model.log_partition():.6f} {model.internal_energy():.6f}"
        '60.141781 -1.491589'
    """

    def __init__(
        self,
        shape: Iterable[int],
        temperature: float | None = None,
        couplings: Iterable[float] | None = None,
        field: ArrayLike | Tensor | None = None,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        temperature = critical_temperature(sides) if temperature is None else temperature
        super().__init__(sides, temperature, field, boundary)
        self.couplings = check_couplings(couplings, self.shape)
        # the exact methods see one of the equal sublattices without bonds between them
        has_bonds = [
            side > 1 and (coupling != 0 or self.field is not None)
            for side, coupling in zip(self.shape, self.couplings, strict=True)
        ]
        has_bonds[0] |= not any(has_bonds)  # free spins
        axes = [axis for axis, bonded in enumerate(has_bonds) if bonded]
        self._sublattice = tuple(slice(None) if bonded else 0 for bonded in has_bonds)
        self._sides = tuple(self.shape[axis] for axis in axes)
        self._strengths = tuple(self.couplings[axis] for axis in axes)
        self._num_sublattices = math.prod(self.shape) // math.prod(self._sides)

    @property
    def bonds(self) -> cluster.Bonds:
        strengths = [coupling / self.temperature for coupling in self.couplings]
        return cluster.lattice_bonds(self.shape, strengths, self.boundary)

    def _coupled(self, values: Tensor, power: int = 1, both_ends: bool = False) -> Tensor:
        total = torch.zeros_like(values)
        for axis, (side, coupling) in enumerate(zip(self.shape, self.couplings, strict=True)):
            if side == 1:
                continue
            near = self._neighbour(values, axis, 1)
            if both_ends:
                near = near + self._neighbour(values, axis, -1)
            # both bonds of a pair: (2 J)^2 of one pair, of which each bond brings half
            weight = power if self.boundary == "periodic" and side == 2 else 1
            total = total + weight * coupling**power * near
        return total

    def _neighbour(self, values: Tensor, axis: int, step: int) -> Tensor:
        """The value of each site's neighbour along an axis; zero beyond an open edge."""
        dim = axis - len(self.shape)
        neighbours = values.roll(step, dim)
        if self.boundary == "periodic":
            return neighbours
        edge = torch.tensor([0 if step > 0 else values.shape[dim] - 1], device=values.device)
        return neighbours.index_fill(dim, edge, 0.0)

    def reference_structure_factor(self, n: int, seed: int | None = None) -> Estimate:
        """Uniform structure factor of ``n`` >= 2 configurations drawn as by :meth:`sample`.

        The standard error is that of the means of independent chains, at least 32 (``n`` if less).
        It knows nothing of what all chains miss alike: where clusters do not help (frustrated or in
        opposing fields, cold) 100 sweeps may be too few.
        """
        chains = max(LEAST_CHAINS, cluster.SITES_AT_ONCE // math.prod(self.shape))
        chains = min(check_integer("n", n, 2), chains)
        spins = self._rounds(n, chains, seed)
        means = np.square(spins.mean(2, dtype=np.float64)).mean(0)
        return Estimate(float(means.mean()), float(means.std(ddof=1) / math.sqrt(chains)))

    def _chains(self, field: FloatArray | None, chains: int, rounds: int, seed: int) -> Spins:
        sites = math.prod(self.shape)
        return cluster.swendsen_wang(
            self.bonds, field, sites, chains=chains, rounds=rounds, seed=seed
        )

    def correlations(self) -> Tensor:
        """Exact <s_0 s_r> on the periodic lattice without field, float64 of shape ``shape``.

        Rings in closed form, two-dimensional tori by Pfaffians, narrow lattices that are frustrated
        or have three dimensions by the transfer matrix. Wide frustrated tori are refused when cold.

        Example:
            >>> IsingModel((4,), 1.0).correlations()
            tensor([1.0000, 0.9004, 0.8680, 0.9004], dtype=torch.float64)
        """
        table = torch.zeros(self.shape, dtype=torch.float64)
        table[self._sublattice] = torch.from_numpy(self._correlations())
        return table

    def structure_factor(self) -> float:
        """Exact uniform structure factor E[(sum_i s_i)^2] / N^2.

        The mean of :meth:`correlations`, or the second derivative of the transfer matrix's ln Z in
        a uniform field; where neither reaches, :meth:`reference_structure_factor` does.
        """
        if self._sums_correlations():
            return float(self._correlations().mean()) / self._num_sublattices
        self._require_transfer("the structure factor")

        mean_at = derivative_in(functools.partial(self._log_partition, self._beta))
        zero = torch.zeros((), dtype=torch.float64)
        mean, variance = mean_at(zero), derivative_in(mean_at)(zero)
        return float(variance + mean**2) / math.prod(self.shape) ** 2

    def _log_partition(self, beta: Tensor, extra: Tensor | None = None) -> Tensor:
        """ln Z at the inverse temperature ``beta``; ``extra`` is added to h_i / T."""
        return self._num_sublattices * self._sublattice_log_partition(beta, extra)

    def _sublattice_log_partition(self, beta: Tensor, extra: Tensor | None) -> Tensor:
        sides = self._sides
        couplings = beta * torch.tensor(self._strengths, dtype=torch.float64)
        if extra is None and self.field is None and self.boundary == "periodic":
            if len(sides) == 1:
                return torus.ring_log_partition(sides[0], couplings[0])
            if len(sides) == 2 and not self._frustrated():
                return torus.kaufman_log_partition((sides[0], sides[1]), couplings.abs())
        self._require_transfer("ln Z")
        field = torch.zeros(sides, dtype=torch.float64)
        if self.field is not None:
            field = self.field.reshape(sides)
        fields = beta * field + (0.0 if extra is None else extra)
        return transfer.transfer_log_partition(sides, couplings, fields, self.boundary)

    def _correlations(self) -> FloatArray:
        """Correlations on the sublattice."""
        if self.field is not None or self.boundary == "open":
            raise NotImplementedError(
                "correlations of the open lattice, or in a field, depend on both sites; accepted: "
                "boundary='periodic', field=None"
            )
        sides, beta = self._sides, 1 / self.temperature
        if len(sides) == 1:
            return pfaffian.ring_correlations(sides[0], beta * self._strengths[0])
        narrow = transfer.reaches_correlations(sides)
        if len(sides) == 2 and not (narrow and self._frustrated()):
            couplings = beta * np.array(self._strengths)
            return pfaffian.torus_correlations((sides[0], sides[1]), couplings)
        if not narrow:
            raise NotImplementedError(
                f"correlations of the periodic lattice {sides} are not known exactly: accepted are "
                f"one and two dimensions, and at most {transfer.MAX_SECTION_PERIODIC} spins across "
                "the longest side (fewer if that is very long)"
            )
        strengths = beta * torch.tensor(self._strengths, dtype=torch.float64)
        return transfer.transfer_correlations(sides, strengths).numpy()

    def _frustrated(self) -> bool:
        """True for an antiferromagnetic bond along an odd side: it cannot be gauged away."""
        pairs = zip(self._sides, self._strengths, strict=True)
        return any(strength < 0 and side % 2 for side, strength in pairs)

    def _sums_correlations(self) -> bool:
        """True if the structure factor is the mean of correlations that are known."""
        if len(self._sides) > 2 or self.boundary == "open" or self.field is not None:
            return False
        slow = self._frustrated() and not transfer.reaches_correlations(self._sides)
        return not slow or transfer.cross_section(self._sides) > transfer.MAX_SECTION_PERIODIC

    def _require_transfer(self, what: str) -> None:
        section = transfer.cross_section(self._sides)
        is_open = self.boundary == "open"
        limit = transfer.MAX_SECTION_OPEN if is_open else transfer.MAX_SECTION_PERIODIC
        if section > limit:
            raise NotImplementedError(
                f"{what} of the {self.boundary} Ising lattice {self.shape}"
                f"{'' if self.field is None else ' in a field'} is not known exactly: accepted are "
                "periodic lattices of one or two dimensions without field and frustration, and any "
                f"with at most {limit} spins across the longest side (here {section})"
            )

    def __repr__(self) -> str:
        field = "" if self.field is None else ", field=..."
        return (
            f"IsingModel({self.shape}, temperature={self.temperature:.9g}, "
            f"couplings={self.couplings}{field}, boundary={self.boundary!r})"
        )


def critical_temperature(shape: Iterable[int]) -> float:
    """Critical T of the infinite lattice of the dimension of ``shape`` with J = 1, in J / k_B.

    Sides of 1, along which there are no bonds, do not count: 2.269... of two others, 4.5115 of
    three. A ValueError for fewer.

    Example:
        >>> [round(critical_temperature(shape), 4) for shape in ((8, 8), (6, 6, 6), (8, 8, 1))]
        [2.2692, 4.5115, 2.2692]
    """
    sides = check_shape(shape)
    dimension = sum(side > 1 for side in sides)
    if dimension not in CRITICAL_TEMPERATURES:
        raise ValueError(
            f"temperature is not given for the shape {sides}, whose infinite lattice has no "
            "critical temperature; accepted: a finite number > 0, in units of J / k_B"
        )
    return CRITICAL_TEMPERATURES[dimension]


def check_couplings(couplings: Iterable[float] | None, shape: tuple[int, ...]) -> tuple[float, ...]:
    """J of each axis; 1 each for None."""
    if couplings is None:
        return (1.0,) * len(shape)
    accepted = f"one finite J for each side of {shape}"
    return check_numbers("couplings", couplings, accepted, len(shape))


def check_external_field(field: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The field of each site in float64, or None if it is zero everywhere."""
    if field is None:
        return None
    accepted = f"a finite number, or one per site, of shape {shape}"
    values = torch.from_numpy(check_array("field", field, accepted))
    check_finite("field", values, tuple(values.shape) in ((), shape), accepted)
    return values.expand(shape).clone() if bool(values.any()) else None


def derivative_in(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Forward-mode derivative in a scalar: no memory beyond that of the function itself."""

    def derivative(point: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # at its first forward-mode derivative torch itself calls torch.jit.script
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.func.jvp(function, (point,), (torch.ones_like(point),))[1]

    return derivative
