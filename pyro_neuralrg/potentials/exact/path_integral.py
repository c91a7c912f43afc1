# SPDX-License-Identifier: Apache-2.0
r"""Path integrals of one quantum particle, exactly: the transfer matrix on a grid.

A ring of P beads has :math:`Z = \mathrm{Tr}\, T^P` with :math:`T(x, x') = e^{-\epsilon U(x) / 2}\,
e^{-a |x - x'|^2 / 2}\, e^{-\epsilon U(x') / 2}`, :math:`\epsilon = \beta / P` and :math:`a = m P /
\beta`. On the nodes of a Gauss-Legendre rule T is a symmetric matrix, whose eigenvalues give traces
to rounding. In two and three dimensions a central potential leaves one matrix for each angular
momentum (Thirumalai, Bruskin and Berne, J. Chem. Phys. 79, 5063, 1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special
from scipy.linalg import eigh

from pyro_neuralrg.statistics.draws import FloatArray

NODES_PER_WIDTH = 4.0
"""Nodes within the width of a bond; with 3, ln Z of a quartic moves by less than 1e-11."""
MIN_NODES = 100
"""More, for few beads, whose weights exp(-beta U / P) are narrower than a bond."""
CONVERGED = 1e-11
"""Change of ln Z as the interval grows, and share of an angular momentum, that is no more."""
FIRST_REACH, GROWTH = 1.0, 1.5
MAX_NODES = 3000
"""A matrix of so many takes seconds; a particle that needs more is hardly confined."""


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

    Raises:
        ValueError: if the potential does not confine the particle.
    """

    def __init__(
        self, potential: Callable[[FloatArray], FloatArray], ring: Ring, dimensions: int = 1
    ) -> None:
        self.ring, self.dimensions = ring, dimensions
        reach, before = FIRST_REACH, math.inf
        while True:
            self._solve(potential, reach)
            if abs(self.log_trace - before) <= CONVERGED * max(1.0, abs(self.log_trace)):
                break
            before, reach = self.log_trace, GROWTH * reach

    def _solve(self, potential: Callable[[FloatArray], FloatArray], reach: float) -> None:
        spacing = 1.0 / (NODES_PER_WIDTH * math.sqrt(self.ring.stiffness))
        low = -reach if self.dimensions == 1 else 0.0
        number = MIN_NODES + math.ceil(0.5 * math.pi * (reach - low) / spacing)
        if number > MAX_NODES:
            raise ValueError(
                f"potential does not confine the particle within {reach / GROWTH:.3g}: ln Z still "
                "grows with the interval; accepted: potentials that rise at infinity"
            )
        nodes, weights = np.polynomial.legendre.leggauss(number)
        self.x = low + 0.5 * (reach - low) * (nodes + 1.0)
        halves = 0.5 * np.log(0.5 * (reach - low) * weights)
        halves -= 0.5 * self.ring.step * potential(self.x)
        if self.dimensions > 1:  # the measure of the distance
            halves += 0.5 * (self.dimensions - 1) * np.log(self.x)
        self.sectors: list[
            tuple[float, FloatArray, FloatArray]
        ] = []  # degeneracy, ln eigenvalues, vectors
        traces: list[float] = []
        for degeneracy, log_kernel in self._kernels():
            matrix = np.exp(halves[:, None] + halves + log_kernel)
            values, vectors = eigh(matrix)
            kept = values > values[-1] * np.finfo(float).eps
            logs = np.log(values[kept][::-1])
            self.sectors.append((degeneracy, logs, vectors[:, kept][:, ::-1]))
            traces.append(math.log(degeneracy) + special.logsumexp(self.ring.beads * logs))
            if traces[-1] < max(traces) + math.log(CONVERGED):
                break
        self.log_trace = float(special.logsumexp(traces))

    def _kernels(self) -> Iterator[tuple[float, FloatArray]]:
        """Degeneracy and logarithm of the free kernel of each angular momentum, or the parity."""
        a, x = self.ring.stiffness, self.x
        gauss = -0.5 * a * (x[:, None] - x) ** 2
        if self.dimensions == 1:
            yield 1.0, gauss
            return
        z = a * x[:, None] * x
        with np.errstate(divide="ignore"):  # of momenta that are not reached close to the origin
            for momentum in range(10_000):
                if self.dimensions == 2:
                    degeneracy = 1.0 if momentum == 0 else 2.0
                    yield degeneracy, gauss + np.log(2 * math.pi * special.ive(momentum, z))
                else:
                    radial = np.sqrt(0.5 * math.pi / z) * special.ive(momentum + 0.5, z)
                    yield 2.0 * momentum + 1.0, gauss + np.log(4 * math.pi * radial)

    def mean(self, values: FloatArray) -> float:
        """Mean of a function of one bead, given at the nodes :attr:`x`."""
        found = 0.0
        for degeneracy, logs, vectors in self.sectors:
            shares = degeneracy * np.exp(self.ring.beads * logs - self.log_trace)
            found += float(shares @ (vectors**2).T @ values)
        return found

    def correlations(self) -> FloatArray:
        """<x_0 x_k> for k = 0 ... P - 1, in one dimension."""
        ((_, logs, vectors),) = self.sectors
        squares = (vectors.T @ (self.x[:, None] * vectors)) ** 2
        beads, lags = self.ring.beads, np.arange(self.ring.beads)[:, None]
        left, right = np.exp(lags * (logs - logs[0])), np.exp((beads - lags) * (logs - logs[0]))
        scale = math.exp(beads * logs[0] - self.log_trace)
        return scale * np.einsum("kn,nm,km->k", left, squares, right)

    def levels(self, number: int) -> FloatArray:
        """The lowest energies of the ring of P beads, angular momenta by their degeneracies."""
        every: list[Any] = []
        for degeneracy, logs, _ in self.sectors:
            every += [np.repeat(logs[:number], int(degeneracy))]
        logs = np.sort(np.concatenate(every))[::-1][:number]
        return -(logs + self.log_norm) / self.ring.step

    @property
    def log_norm(self) -> float:
        """ln of the norm of the free propagator of a bond, (m P / 2 pi beta)^(d / 2)."""
        return 0.5 * self.dimensions * math.log(self.ring.stiffness / (2 * math.pi))
