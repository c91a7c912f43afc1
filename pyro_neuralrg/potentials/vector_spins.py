# SPDX-License-Identifier: Apache-2.0
"""Spins that are vectors or angles (XY, Heisenberg, clock, Potts), and their continuous dual."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number, check_values
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.potentials.base import ORIGIN, LatticePotential, generator_of
from pyro_neuralrg.potentials.cluster import (
    SITES_AT_ONCE,
    lattice_bonds,
    reflected_clusters,
)
from pyro_neuralrg.potentials.ising import LOWEST_EIGENVALUE
from pyro_neuralrg.spectral import apply_matrices, apply_spectrum, neighbour_spectrum
from pyro_neuralrg.statistics.draws import FloatArray

MAX_STATES = 2200
"""States of a cross-section whose transfer matrix is made."""
SMALL_SQUARE = 0.01
"""Square of a field below which sinh r / r is a series, to 3e-13."""
SMALLEST_LENGTH = 1e-12
"""Of a field that has a direction."""
LOST_DIGITS = 1e-6
"""A sum this much smaller than its largest term has lost too many digits."""
FIRST_ANGLES, CONVERGED_ANGLES = 8, 1e-10
"""Angles of a clock that stands for an XY spin; doubling them moves ln Z by less, relatively."""


class SpinSpace(ABC):
    """Where one spin lives: unit vectors of ``components`` numbers, all equally likely a priori.

    Attributes:
        components: of a spin.
        log_volume: ln of the number of states, or of the area of the sphere.
        even: with each spin its opposite is a state.
    """

    components: int
    log_volume: float
    even: bool

    @abstractmethod
    def log_weight(self, x: Tensor) -> Tensor:
        """ln E[exp(s . x)] over a uniform spin, ``(..., components)`` to ``(...)``."""

    @abstractmethod
    def mean(self, x: Tensor) -> Tensor:
        """Mean of a spin of density in proportion to exp(s . x), of the shape of x."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, x: FloatArray) -> FloatArray:
        """Spins of density in proportion to exp(s . x), of the shape of x."""

    @abstractmethod
    def mirrors(self, rng: np.random.Generator, number: int) -> FloatArray:
        """Unit vectors ``(number, components)``, whose normal planes reflect states into states."""


@dataclass(frozen=True)
class Rotor(SpinSpace):
    """Unit vectors in two (XY) or three (Heisenberg) dimensions."""

    components: int = 2
    even = True

    def __post_init__(self) -> None:
        check_integer("components", self.components, 2, 3)

    @property
    def log_volume(self) -> float:  # type: ignore[override]
        """ln of the circumference of the circle, or of the area of the sphere."""
        return math.log(2 * math.pi if self.components == 2 else 4 * math.pi)

    def log_weight(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1)
        if self.components == 2:
            r = (square + ORIGIN).sqrt()
            return torch.special.i0e(r).log() + r
        small = square < SMALL_SQUARE
        r = torch.where(small, 1.0, square).sqrt()
        series = square / 6 - square**2 / 180 + square**3 / 2835
        return torch.where(small, series, (-torch.expm1(-2 * r) / (2 * r)).log() + r)

    def mean(self, x: Tensor) -> Tensor:
        r = (x.square().sum(-1, keepdim=True) + ORIGIN).sqrt()
        if self.components == 2:
            length = torch.special.i1e(r) / torch.special.i0e(r)
        else:  # coth r - 1 / r, by its series where that cancels
            small = r < 0.2
            safe = torch.where(small, 1.0, r)
            series = r / 3 - r**3 / 45 + 2 * r**5 / 945 - r**7 / 4725 + 2 * r**9 / 93555
            length = torch.where(small, series, 1 / safe.tanh() - 1 / safe)
        return length * x / r

    def draw(self, rng: np.random.Generator, x: FloatArray) -> FloatArray:
        """By von Mises angles, or in three dimensions by the exact height along x (Wood 1994)."""
        if self.components == 2:
            return _in_plane(
                rng.vonmises(np.arctan2(x[..., 1], x[..., 0]), np.linalg.norm(x, axis=-1))
            )
        r = np.maximum(np.linalg.norm(x, axis=-1), SMALLEST_LENGTH)
        height = 1 + np.log1p(rng.random(r.shape) * np.expm1(-2 * r)) / r
        along = np.where(r[..., None] > SMALLEST_LENGTH, x / r[..., None], [0.0, 0.0, 1.0])
        across = _directions(rng, x.shape)
        across -= (across * along).sum(-1, keepdims=True) * along
        across /= np.linalg.norm(across, axis=-1, keepdims=True)
        width = np.sqrt(np.maximum(0.0, 1 - height**2))
        return np.asarray(height[..., None] * along + width[..., None] * across)

    def mirrors(self, rng: np.random.Generator, number: int) -> FloatArray:
        return _directions(rng, (number, self.components))


@dataclass(frozen=True)
class Clock(SpinSpace):
    """Unit vectors in the plane at q equal angles; for q = 3 the states of a Potts spin."""

    states: int
    components = 2

    def __post_init__(self) -> None:
        check_integer("states", self.states, 2)

    @property
    def log_volume(self) -> float:  # type: ignore[override]
        """ln of the number of states."""
        return math.log(self.states)

    @property
    def even(self) -> bool:  # type: ignore[override]
        """True if the opposite of each state is one."""
        return self.states % 2 == 0

    def vectors(self, like: Tensor) -> Tensor:
        """The states, ``(states, 2)``."""
        angles = 2 * math.pi * torch.arange(self.states, dtype=torch.float64) / self.states
        return torch.stack([angles.cos(), angles.sin()], -1).to(like)

    def log_weight(self, x: Tensor) -> Tensor:
        return (x @ self.vectors(x).T).logsumexp(-1) - math.log(self.states)

    def mean(self, x: Tensor) -> Tensor:
        vectors = self.vectors(x)
        return (x @ vectors.T).softmax(-1) @ vectors

    def draw(self, rng: np.random.Generator, x: FloatArray) -> FloatArray:
        vectors = self.vectors(torch.from_numpy(x)).numpy()
        weights = x @ vectors.T
        return np.asarray(vectors[(weights + rng.gumbel(size=weights.shape)).argmax(-1)])

    def mirrors(self, rng: np.random.Generator, number: int) -> FloatArray:
        mirrors = math.pi / self.states * rng.integers(self.states, size=number)
        return _in_plane(mirrors + 0.5 * math.pi)


def _in_plane(angles: Any) -> FloatArray:
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Uniform unit vectors along the last axis."""
    normals = rng.standard_normal(shape)
    return np.asarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True))


class VectorSpinDual(LatticePotential):
    r"""The continuous field dual to spins that are vectors, of nearest neighbours.

    .. math::
        \pi(x) = \exp\Big(-\tfrac12 \sum_a x_a^T (K + \alpha I)^{-1} x_a\Big) \prod_i
        E_s\big[e^{s \cdot x_i}\big], \qquad H(s) / T = -\sum_{\langle ij\rangle} \frac JT s_i
        \cdot s_j

    with :math:`K_{ij} = J / T` for each bond and the mean over one uniform spin, as
    :class:`IsingDual` for spins of one component. Fields are ``shape + (components,)``. Given the
    field the spins are independent, and the field given spins is normal.

    Args:
        shape: lattice shape, one to three sides >= 1.
        space: :class:`Rotor` (XY, Heisenberg) or :class:`Clock`.
        temperature: T > 0, with k_B = 1.
        coupling: J, of either sign.
        boundary: "periodic" or "open".

    Attributes:
        alpha: makes the lowest eigenvalue of K + alpha I equal to 0.1.
        spectrum: K + alpha I of each mode, times the identity of the components.

    Example:
        >>> xy = VectorSpinDual((16, 16), Rotor(2), temperature=1.0)
        >>> xy.shape
        (16, 16, 2)
        >>> potts = VectorSpinDual.potts((3, 3), temperature=1.0)
        >>> f"{potts.spin_log_partition():.6f}"  # of -J s . s', see potts()
        '13.609853'
    """

    _shown = ("space", "temperature", "coupling")

    def __init__(
        self,
        shape: Iterable[int],
        space: SpinSpace,
        temperature: float,
        *,
        coupling: float = 1.0,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        if not isinstance(space, SpinSpace):
            raise TypeError(f"space is {space!r}; accepted: Rotor(2), Rotor(3) or Clock(states)")
        self.space = space
        self.temperature = check_number("temperature", temperature, "a number > 0", above=0)
        self.coupling = check_number("coupling", coupling)
        bonds = (self.coupling / self.temperature,) * len(sides)
        neighbours = neighbour_spectrum(sides, bonds, check_boundary(boundary))
        self.alpha = LOWEST_EIGENVALUE - float(neighbours.min())
        self._eigenvalues = neighbours + self.alpha
        components = space.components
        spectrum = self._eigenvalues[..., None, None] * torch.eye(components, dtype=torch.float64)
        options: Any = {"even": space.even, "spectrum": spectrum, "components": components}
        super().__init__(sides, boundary, **options)
        self._register("precision", 1 / self._eigenvalues)

    @classmethod
    def potts(
        cls, shape: Iterable[int], temperature: float, boundary: str = "periodic"
    ) -> VectorSpinDual:
        r"""The Potts model of three states, :math:`H = -\sum \delta_{\sigma_i\sigma_j}`.

        Since :math:`\delta = (1 + 2\, s \cdot s') / 3`, its spins have J = 2 / 3; ln Z of the Potts
        model is that of the spins plus a third of the number of bonds over T.
        """
        return cls(shape, Clock(3), temperature, coupling=2 / 3, boundary=boundary)

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        parts = x.movedim(-1, 0)
        applied = apply_spectrum(parts, self._constant("precision", x), self.boundary)
        gaussian = 0.5 * (parts * applied).sum(0).flatten(-len(self.lattice)).sum(-1)
        return gaussian - self.space.log_weight(x).flatten(-len(self.lattice)).sum(-1)

    def spin_mean(self, x: Tensor) -> Tensor:
        """Mean of each spin given fields, of their shape."""
        return self.space.mean(check_values("x", x, self.shape))

    def log_partition(self) -> float:
        r"""Exact ln Z of the dual in nats, where that of the spins is known.

        :math:`\ln Z = \ln Z_\text{spins} - N \ln V + \frac{N d}2 \ln 2\pi + \frac d2 \ln\det(K +
        \alpha I) + \frac{\alpha N}2` with V the number of states of a spin, or its sphere's area.
        """
        sites, d = math.prod(self.lattice), self.components
        gaussian = 0.5 * d * float((2 * math.pi * self._eigenvalues).log().sum())
        constant = sites * (0.5 * self.alpha - self.space.log_volume)
        return self.spin_log_partition() + gaussian + constant

    def spin_log_partition(self) -> float:
        """Exact ln of the partition function of the spins, in nats.

        Of clocks by the transfer matrix, of XY spins by clocks of more and more angles, on lattices
        of a small cross-section; of Heisenberg spins in one dimension.

        Raises:
            NotImplementedError: if the cross-section has too many states.
        """
        if isinstance(self.space, Clock):
            return self._clock_log_partition(self.space.states)
        if self.components == 3:
            return self._chain_log_partition()
        sites, angles, before = math.prod(self.lattice), FIRST_ANGLES, math.inf
        while True:
            found = self._clock_log_partition(angles) + sites * math.log(2 * math.pi / angles)
            if abs(found - before) <= CONVERGED_ANGLES * max(1.0, abs(found)):
                return found
            before, angles = found, 2 * angles

    def spin_energy(self, x: Tensor) -> Tensor:
        """Mean of H / J N given fields, of batch shape: minus the sum over bonds of s . s'."""
        s = self.spin_mean(x).movedim(-1, 0)
        neighbours = neighbour_spectrum(self.lattice, (1.0,) * len(self.lattice), self.boundary)
        products = s * apply_spectrum(s, neighbours, self.boundary)
        bonds = products.sum(0).flatten(-len(self.lattice)).sum(-1)
        return -0.5 * bonds / math.prod(self.lattice)

    def observables(self) -> dict[str, Observable]:
        """Energy of the spins per site in units of J, and S(0), averaged over the spins.

        Exactly, given the field (Rao-Blackwell).
        """
        return {"spin_energy": self.spin_energy, "spin_structure_factor": self._spin_factor}

    def sample_spins(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Draw spins given fields, of their shape and dtype: independent of one another."""
        x = check_values("x", x, self.shape)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator_of(seed))))
        return torch.from_numpy(self.space.draw(rng, x.detach().double().cpu().numpy())).to(x)

    def reference_spins(self, n: int, seed: int | None = None) -> Tensor:
        """Draw ``n`` configurations of the spins by reflected clusters, ``(n,) + shape``, float64.

        Chains from random starts run side by side, with 100 sweeps before the first configuration
        and 15 from one to the next.

        References:
            U. Wolff, Phys. Rev. Lett. 62, 361 (1989).
        """
        n = check_integer("n", n, 1)
        generator = generator_of(seed)
        first, second = torch.randint(2**62, (2,), generator=generator).tolist()
        sites, components = math.prod(self.lattice), self.components
        chains = max(1, min(n, SITES_AT_ONCE // sites))
        strengths = (self.coupling / self.temperature,) * len(self.lattice)
        spins = reflected_clusters(
            lattice_bonds(self.lattice, strengths, self.boundary),
            self.space.mirrors,
            self.space.draw(np.random.default_rng(first), np.zeros((chains, sites, components))),
            rounds=-(-n // chains),
            seed=second,
        )
        return torch.from_numpy(spins.reshape(-1, *self.shape)[:n])

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw ``n`` fields given spins by :meth:`reference_spins`; see the base."""
        generator = generator_of(seed)
        spins, fields = torch.randint(2**62, (2,), generator=generator).tolist()
        x = self.sample_field(self.reference_spins(n, spins), fields)
        return x.to(self.device, torch.get_default_dtype())

    def sample_field(self, spins: Tensor, seed: int | None = None) -> Tensor:
        """Draw fields given spins ``batch + shape``: N((K + alpha I) s, K + alpha I)."""
        s = check_values("spins", spins, self.shape)
        noise = torch.randn(s.shape, generator=generator_of(seed), dtype=s.dtype).to(s.device)
        assert self.spectrum is not None
        square, root = self.spectrum + 0j, self.spectrum.sqrt() + 0j  # diagonal matrices
        mean = apply_matrices(s, square, self.boundary)
        return mean + apply_matrices(noise, root, self.boundary)

    def heated(self, factor: float) -> VectorSpinDual:
        """The same spins at ``factor`` > 0 times the temperature."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        options: Any = {"coupling": self.coupling, "boundary": self.boundary}
        return VectorSpinDual(self.lattice, self.space, hot, **options).to(self.device)

    def _spin_factor(self, x: Tensor) -> Tensor:
        """|mean spin|^2, with the variance of the spins given the field: |s| = 1."""
        s = self.spin_mean(x).flatten(-1 - len(self.lattice), -2)
        sites = s.shape[-2]
        variance = (1.0 - s.square().sum(-1)).sum(-1)
        return s.mean(-2).square().sum(-1) + variance / sites**2

    # Exact partition functions

    def _clock_log_partition(self, states: int) -> float:
        """By the transfer matrix along the longest axis."""
        long = self.lattice.index(max(self.lattice))
        length, across = self.lattice[long], self.lattice[:long] + self.lattice[long + 1 :]
        sites = math.prod(across)
        if states**sites > MAX_STATES:
            raise NotImplementedError(
                f"log_partition: no exact ln Z is known for {self!r}: a cross-section has "
                f"{states}^{sites} states; accepted: up to {MAX_STATES}"
            )
        k = self.coupling / self.temperature
        angles = 2 * np.pi * np.arange(states) / states
        grid = np.stack(np.meshgrid(*[angles] * sites, indexing="ij"), -1).reshape(-1, sites)
        inside = np.zeros(len(grid))
        if across:
            left, right, _ = lattice_bonds(across, np.ones((len(across), *across)), self.boundary)
            inside = np.cos(grid[:, left] - grid[:, right]).sum(-1)
        bonds = sum(np.cos(grid[:, None, i] - grid[None, :, i]) for i in range(sites))
        weights = k * (bonds + 0.5 * inside[:, None] + 0.5 * inside)
        return _log_trace(weights, k * inside, length, self)

    def _chain_log_partition(self) -> float:
        """Heisenberg spins on a line: eigenvalues 4 pi i_l(K) of degeneracy 2 l + 1."""
        if max(self.lattice) != math.prod(self.lattice):
            raise NotImplementedError(
                f"log_partition: no exact ln Z is known for {self!r}; accepted of Heisenberg "
                "spins: one dimension"
            )
        k, length = self.coupling / self.temperature, max(self.lattice)
        if length == 1 or k == 0:
            return length * math.log(4 * math.pi)
        momenta = np.arange(max(200, int(20 * math.sqrt(abs(k)))))
        with np.errstate(divide="ignore"):  # of momenta without a share
            bessel = np.log(special.ive(momenta + 0.5, abs(k))) + abs(k)
        logs = math.log(4 * math.pi) + 0.5 * math.log(0.5 * math.pi / abs(k)) + bessel
        if self.boundary == "open":
            return math.log(4 * math.pi) + (length - 1) * float(logs[0])
        signs = np.sign(k) ** (momenta * length)
        return _log_weighted_sum(length * logs, (2 * momenta + 1) * signs, self)


def _log_weighted_sum(logs: FloatArray, weights: FloatArray, target: VectorSpinDual) -> float:
    """ln of a weighted sum of exponentials, unless they cancel, as in frustrated rings."""
    found, sign = special.logsumexp(logs, b=weights, return_sign=True)
    if sign <= 0 or found < np.max(logs[weights != 0]) + math.log(LOST_DIGITS):
        raise NotImplementedError(
            f"log_partition: no exact ln Z is known for {target!r}: the terms of its transfer "
            "matrix cancel; accepted: a higher temperature, an even length or J > 0"
        )
    return float(found)


def _log_trace(
    log_weights: FloatArray, inside: FloatArray, length: int, target: VectorSpinDual
) -> float:
    """ln of the trace of a power of the transfer matrix, or of its sum over open ends."""
    if length == 1:
        return float(special.logsumexp(inside))
    top = log_weights.max()
    values, vectors = np.linalg.eigh(np.exp(log_weights - top))
    with np.errstate(divide="ignore"):
        logs = top + np.log(np.abs(values))
    if target.boundary == "periodic":
        return _log_weighted_sum(length * logs, np.sign(values) ** length, target)
    ends = (vectors.T @ np.exp(0.5 * (inside - inside.max()))) ** 2
    weights = ends * np.sign(values) ** (length - 1)
    return _log_weighted_sum((length - 1) * logs, weights, target) + float(inside.max())
