# SPDX-License-Identifier: Apache-2.0
r"""Path integrals of one quantum particle, exactly: the transfer matrix on a grid.

A ring of P beads has :math:`Z = \mathrm{Tr}\, T^P` with :math:`T(x, x') = e^{-\epsilon U(x) / 2}\,
e^{-a |x - x'|^2 / 2}\, e^{-\epsilon U(x') / 2}`, :math:`\epsilon = \beta / P` and :math:`a = m P /
\beta`. On the nodes of a Gauss-Legendre rule T is a symmetric matrix, whose eigenvalues give traces
to rounding. In two and three dimensions a central potential leaves one matrix for each angular
momentum (Thirumalai, Bruskin and Berne, J. Chem. Phys. 79, 5063, 1983).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.linalg import eigh

from pyro_neuralrg.statistics.draws import FloatArray

NODES_PER_WIDTH = 3.0
"""Nodes within the width of a bond; ln Z of a quartic moves by less than 1e-11 with more."""
MIN_NODES = 80
"""More, for few beads, whose weights exp(-beta U / P) are narrower than a bond."""
CONVERGED = 1e-11
"""Change of ln Z as the interval grows, and share of an angular momentum, that is no more."""
LEAST_SHARE = 1e-8
"""Of the trace of a ring, that of the twisted one, a difference: less is rounding."""
GROWTH = 1.3
"""Of the interval, and of the nodes within a width, from one solution to the next."""
PROBES, WITHIN = np.logspace(-8.0, 8.0, 2000), 40.0
"""Distances at which a potential is looked at, and how much of it is covered first, in 1 / beta."""
MAX_NODES = 3000
"""A matrix of so many takes seconds; a particle that needs more is hardly confined."""


NO_WALLS = "potential does not confine the particle"


@dataclass(frozen=True)
class Ring:
    """Numbers of the ring: beads P, a = m P / beta and epsilon = beta / P."""

    beads: int
    stiffness: float
    step: float

    @property
    def beta(self) -> float:
        """Inverse temperature."""
        return self.beads * self.step


class PathIntegral:
    """Eigenvalues and eigenvectors of the transfer matrix of a particle.

    Args:
        potential: U of positions ``(n,)``, of distances in more than one dimension.
        ring: its numbers.
        dimensions: 1, or 2 or 3 for a central potential.
        twisted: close the ring by x_P = -x_0: the trace is that of T^P times the parity.

    Raises:
        ValueError: if the potential does not confine the particle, or is not finite where it is;
            of a twisted ring if its trace is lost to rounding.
    """

    def __init__(
        self,
        potential: Callable[[FloatArray], FloatArray],
        ring: Ring,
        dimensions: int = 1,
        twisted: bool = False,
    ) -> None:
        self.ring, self.dimensions = ring, dimensions
        probes = np.concatenate([-PROBES[::-1], PROBES]) if dimensions == 1 else PROBES
        heights = potential(probes)
        if not np.isfinite(heights).any():
            raise ValueError("potential has no finite value; accepted: one that confines")
        self.lowest = float(np.nanmin(heights))
        self._potential = lambda x: potential(x) - self.lowest
        covered = np.abs(probes[ring.beta * (heights - self.lowest) < WITHIN])
        reach, density, before = float(covered.max()), 1.0, math.inf
        if reach == PROBES[-1]:
            raise ValueError(f"{NO_WALLS}; accepted: potentials that rise at infinity")
        while True:
            self._solve(reach, density)
            if not math.isfinite(self._log_trace):
                raise ValueError("potential is not finite close to its minimum; accepted: numbers")
            if abs(self._log_trace - before) <= CONVERGED * max(1.0, abs(self._log_trace)):
                break
            before, reach, density = self._log_trace, GROWTH * reach, GROWTH * density
        self._parities: list[FloatArray | float] = [1.0] * len(self.sectors)
        if twisted:
            self._twist()

    @property
    def log_trace(self) -> float:
        """ln Z of the ring."""
        return self._log_trace - self.ring.beta * self.lowest

    def _twist(self) -> None:
        """Count states by their parity: (-1)^l of an angular momentum l."""
        if self.dimensions == 1:
            ((_, _, vectors),) = self.sectors
            self._parities = [np.sign((vectors * vectors[::-1]).sum(0))]
        else:
            self._parities = [(-1.0) ** momentum for momentum in range(len(self.sectors))]
        shares = [
            degeneracy * float((parity * np.exp(self.ring.beads * logs - self._log_trace)).sum())
            for (degeneracy, logs, _), parity in zip(self.sectors, self._parities, strict=True)
        ]
        if not sum(shares) > LEAST_SHARE:
            raise ValueError(
                f"the trace of the twisted ring is below {LEAST_SHARE:g} of the other's, which is "
                "rounding; accepted: a larger beta, or levels further apart"
            )
        self._log_trace += math.log(sum(shares))

    def _solve(self, reach: float, density: float) -> None:
        spacing = 1.0 / (NODES_PER_WIDTH * math.sqrt(self.ring.stiffness))
        low = -reach if self.dimensions == 1 else 0.0
        number = math.ceil(density * (MIN_NODES + 0.5 * math.pi * (reach - low) / spacing))
        if number > MAX_NODES:
            raise ValueError(
                f"{NO_WALLS}: ln Z still grows with the interval at a distance of {reach:.3g}; "
                "accepted: potentials that rise at infinity"
            )
        nodes, weights = np.polynomial.legendre.leggauss(number)
        self.x = low + 0.5 * (reach - low) * (nodes + 1.0)
        self._halves = 0.5 * np.log(0.5 * (reach - low) * weights)
        self._halves -= 0.5 * self.ring.step * self._potential(self.x)
        if self.dimensions > 1:  # the measure of the distance
            self._halves += 0.5 * (self.dimensions - 1) * np.log(self.x)
        # degeneracy, ln of the eigenvalues and eigenvectors of each angular momentum
        self.sectors: list[tuple[int, FloatArray, FloatArray]] = []
        traces: list[float] = []
        for degeneracy, logs, vectors in self._solutions():
            self.sectors.append((degeneracy, logs, vectors))
            traces.append(math.log(degeneracy) + special.logsumexp(self.ring.beads * logs))
            if traces[-1] < max(traces) + math.log(CONVERGED):
                break
        self._log_trace = float(special.logsumexp(traces))

    def _solutions(self) -> Iterator[tuple[int, FloatArray, FloatArray]]:
        """Degeneracy, ln of the eigenvalues, falling, and eigenvectors, momentum by momentum."""
        for degeneracy, log_kernel in self._kernels():
            matrix = np.exp(self._halves[:, None] + self._halves + log_kernel)
            if not np.isfinite(matrix).all():
                raise ValueError("potential is not finite where the particle is; accepted: numbers")
            values, vectors = eigh(matrix)
            kept = values > values[-1] * np.finfo(float).eps
            yield degeneracy, np.log(values[kept][::-1]), vectors[:, kept][:, ::-1]

    def _kernels(self) -> Iterator[tuple[int, FloatArray]]:
        """Degeneracy and logarithm of the free kernel of each angular momentum."""
        a, x = self.ring.stiffness, self.x
        gauss = -0.5 * a * (x[:, None] - x) ** 2
        if self.dimensions == 1:
            yield 1, gauss
            return
        z = a * x[:, None] * x
        with np.errstate(divide="ignore"):  # of momenta that are not reached close to the origin
            for momentum in itertools.count():
                if self.dimensions == 2:
                    degeneracy = 1 if momentum == 0 else 2
                    yield degeneracy, gauss + np.log(2 * math.pi * special.ive(momentum, z))
                else:
                    radial = np.sqrt(0.5 * math.pi / z) * special.ive(momentum + 0.5, z)
                    yield 2 * momentum + 1, gauss + np.log(4 * math.pi * radial)

    def mean(self, values: FloatArray) -> float:
        """Mean of a function of one bead, given at the nodes :attr:`x`."""
        found = 0.0
        for (degeneracy, logs, vectors), parity in zip(self.sectors, self._parities, strict=True):
            shares = degeneracy * parity * np.exp(self.ring.beads * logs - self._log_trace)
            found += float(shares @ (vectors**2).T @ values)
        return found

    def correlations(self) -> FloatArray:
        """<x_0 x_k> for k = 0 ... P - 1, in one dimension."""
        ((_, logs, vectors),) = self.sectors
        squares = (vectors.T @ (self.x[:, None] * vectors)) ** 2
        beads, lags = self.ring.beads, np.arange(self.ring.beads)[:, None]
        left = np.exp(lags * (logs - logs[0]))
        right = self._parities[0] * np.exp((beads - lags) * (logs - logs[0]))
        scale = math.exp(beads * logs[0] - self._log_trace)
        return scale * np.einsum("kn,nm,km->k", left, squares, right)

    def levels(self, number: int) -> FloatArray:
        """The lowest energies of the ring of P beads, ascending; equal ones as often as they are.

        Angular momenta are solved until one begins above them all, whatever their share of Z.

        Raises:
            ValueError: if the matrix does not resolve so many.
        """
        found: list[FloatArray] = []
        for degeneracy, logs, _ in self._solutions():
            found.append(np.repeat(logs[:number], degeneracy))
            lowest = np.sort(np.concatenate(found))[::-1][:number]
            if len(lowest) == number and logs[0] < lowest[-1]:
                break
        if len(lowest) < number:
            raise ValueError(f"number is {number}; accepted: up to {len(lowest)}, as many as show")
        # of the free propagator of a bond, (m P / 2 pi beta)^(d / 2)
        log_norm = 0.5 * self.dimensions * math.log(self.ring.stiffness / (2 * math.pi))
        return self.lowest - (lowest + log_norm) / self.ring.step
