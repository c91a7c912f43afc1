# SPDX-License-Identifier: Apache-2.0
r"""Spin correlations on the ring, and on the torus from Pfaffians over four spin structures.

Notation of B. M. McCoy and T. T. Wu, The Two-Dimensional Ising Model (1973), chapters IV and VIII:
each site becomes four fermions R, L, U, D; with t = tanh K the partition function is

.. math:: Z = \tfrac12 (2 \cosh K_0 \cosh K_1)^N
    [-Pf A_{pp} + Pf A_{pa} + Pf A_{ap} + Pf A_{aa}],

p and a for periodic and antiperiodic fermions. The product of two spins turns t into 1/t on a path
of bonds between them: a change of low rank, so that each Pfaffian is multiplied by a small one.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.statistics import FloatArray

R, L, U, D = range(4)
SITE = np.array([[0, 1, -1, -1], [-1, 0, 1, -1], [1, -1, 0, 1], [1, 1, -1, 0]], dtype=float)
SECTORS = ((0, 0, -1.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.0))
"""Antiperiodic along axis 0?, axis 1?, and the sector's sign (McCoy & Wu, Eq. IV.3.23)."""

ZERO_MODE = 1e-9
"""Closer to the zero of a Pfaffian than this, the average of two near temperatures is taken."""

NUDGE = 1e-6
"""Their relative distance; correlations of a finite lattice are smooth: the error is squared."""

CANCELLED = 1e-6
"""Z over the sum of its sectors' sizes, below which too few digits of the difference are left."""


def ring_correlations(length: int, coupling: float) -> FloatArray:
    """(t^r + t^(n-r)) / (1 + t^n) with t = tanh K.

    On an odd antiferromagnetic ring numerator and denominator vanish at low temperature: there
    their common factor 1 - |t| is divided out.
    """
    if length == 1:
        return np.ones(1)
    distance = np.arange(length)
    near, size = np.minimum(distance, length - distance), abs(math.tanh(coupling))
    signs = (math.copysign(1.0, coupling)) ** near
    if coupling >= 0 or length % 2 == 0:
        return signs * (size**near + size ** (length - near)) / (1 + size**length)
    sums = np.concatenate([[0.0], np.cumsum(size**distance)])  # 1 + |t| + ... + |t|^(m - 1)
    return signs * size**near * sums[length - 2 * near] / sums[length]


def torus_correlations(shape: tuple[int, int], couplings: FloatArray) -> FloatArray:
    """<s_0 s_r> for all displacements r, of shape ``shape``, both sides at least 2.

    ``couplings`` K_a = J_a / T, not zero. Antiferromagnetic ones along an even side are gauged to
    ferromagnetic ones: every other spin changes its name, and the correlations their sign. A
    frustrated lattice (antiferromagnetic along an odd side) so cold that its four sectors cancel
    raises a NotImplementedError.
    """
    gauged, table_signs = np.array(couplings, dtype=float), np.ones(shape)
    for axis, side in enumerate(shape):
        if couplings[axis] < 0 and side % 2 == 0:
            gauged[axis] *= -1
            staggered = (-1.0) ** np.arange(side)
            table_signs = table_signs * (staggered[:, None] if axis == 0 else staggered)
    return table_signs * _gauged_correlations(shape, gauged)


def _gauged_correlations(shape: tuple[int, int], couplings: FloatArray) -> FloatArray:
    sectors = [_Sector(shape, couplings, *sector) for sector in SECTORS]
    if min(sector.distance_from_zero_mode for sector in sectors) < ZERO_MODE:
        low = _gauged_correlations(shape, couplings * (1 + NUDGE))
        high = _gauged_correlations(shape, couplings * (1 - NUDGE))
        return 0.5 * (low + high)
    top = max(sector.log_pfaffian for sector in sectors)
    weights = [s.sign * math.exp(s.log_pfaffian - top) for s in sectors]
    norm = sum(weights)
    if norm < CANCELLED * sum(map(abs, weights)):
        raise NotImplementedError(
            f"correlations of the frustrated periodic Ising lattice {shape} at K = J / T = "
            f"{couplings.tolist()} are not known exactly: the Pfaffians cancel at low temperature; "
            "accepted are higher temperatures, and lattices in reach of the transfer matrix"
        )
    table = np.empty(shape)
    for row, column in itertools.product(*(range(side // 2 + 1) for side in shape)):
        value = 1.0
        if row or column:
            terms = [w * s.path_ratio(row, column) for w, s in zip(weights, sectors, strict=True)]
            value = sum(terms) / norm
        for i, j in itertools.product((row, -row), (column, -column)):
            table[i, j] = value
    return table


def _momenta(side: int, antiperiodic: int) -> FloatArray:
    return 2 * math.pi * (np.arange(side) + 0.5 * antiperiodic) / side


def _symbol(
    tangents: FloatArray, k0: FloatArray | float, k1: FloatArray | float
) -> NDArray[np.complex128]:
    """A(k) = sum_d a(d) exp(i k d), ``(..., 4, 4)``: bonds U-D along axis 0, R-L along axis 1."""
    k0, k1 = np.broadcast_arrays(np.asarray(k0, dtype=float), np.asarray(k1, dtype=float))
    symbol = np.zeros((*k0.shape, 4, 4), dtype=complex) + SITE
    for (leave, enter), tangent, k in (((U, D), tangents[0], k0), ((R, L), tangents[1], k1)):
        symbol[..., leave, enter] += tangent * np.exp(1j * k)
        symbol[..., enter, leave] -= tangent * np.exp(-1j * k)
    return symbol


class _Sector:
    """One spin structure: its Pfaffian and the fermions' propagator."""

    def __init__(
        self, shape: tuple[int, int], couplings: FloatArray, first: int, second: int, sign: float
    ) -> None:
        momenta = _momenta(shape[0], first), _momenta(shape[1], second)
        tangents = np.tanh(couplings)
        self._symbol = _symbol(tangents, *np.meshgrid(*momenta, indexing="ij"))
        self.log_pfaffian = 0.5 * float(np.linalg.slogdet(self._symbol)[1].sum())
        # of 0 and pi, which equal their negatives, A(k) is real
        ends = ([k for k in axis if abs(math.sin(k)) < 1e-9] for axis in momenta)
        real = [_pfaffian(_symbol(tangents, *k).real) for k in itertools.product(*ends)]
        self.distance_from_zero_mode = min(map(abs, real), default=math.inf)
        # each site alone has the Pfaffian -1: counted from there, every sector is +1 at t = 0
        self.sign = sign * math.prod(math.copysign(1.0, -value) for value in real)
        self._shape, self._boundary = shape, (first, second)
        self._tangents = tangents
        size = np.exp(-np.abs(couplings))
        self._scales = 2 * size / (1 + size**2)  # sqrt(1 - t^2) = 1 / cosh K

    @functools.cached_property
    def _propagator(self) -> FloatArray:
        shape = self._shape
        inverse = np.linalg.inv(self._symbol).reshape(*shape, 16)
        reach = [np.arange(-(side // 2), side // 2 + 1) for side in shape]
        waves = [
            np.exp(-1j * np.outer(d, _momenta(side, anti)))
            for d, side, anti in zip(reach, shape, self._boundary, strict=True)
        ]
        table = np.einsum("ap,bq,pqn->abn", *waves, inverse, optimize=True) / math.prod(shape)
        return table.real.reshape(len(reach[0]), len(reach[1]), 4, 4)

    def path_ratio(self, rows: int, columns: int) -> float:
        """Pf A' / Pf A with t -> 1/t on a path, times the t of its bonds.

        The path has ``rows`` bonds along axis 0, then ``columns`` along axis 1. With the factors t
        nothing is divided by t, nor by the change 1/t - t, which vanishes at low temperature.
        """
        sites = [(row + end, 0) for row in range(rows) for end in (0, 1)]
        sites += [(rows, column + end) for column in range(columns) for end in (0, 1)]
        kind = np.array([U, D] * rows + [R, L] * columns)
        axis = np.repeat([0, 1], [2 * rows, 2 * columns])
        place = np.array(sites)
        shift = place[None] - place[:, None] + np.array([side // 2 for side in self._shape])
        matrix = self._propagator[shift[..., 0], shift[..., 1], kind[:, None], kind[None]]
        matrix = matrix * np.outer(self._scales[axis], self._scales[axis])
        first = np.arange(0, len(kind), 2)
        matrix[first, first + 1] -= self._tangents[axis[first]]
        matrix[first + 1, first] += self._tangents[axis[first]]
        return (-1.0) ** len(first) * _pfaffian(matrix)


def _pfaffian(matrix: FloatArray) -> float:
    """Pfaffian of a real antisymmetric matrix by pivoted elimination (Parlett-Reid).

    See M. Wimmer, ACM Trans. Math. Softw. 38, 30 (2012).
    """
    a = np.array(matrix, dtype=float)
    value = 1.0
    for k in range(0, len(a), 2):
        pivot = k + 1 + int(np.argmax(np.abs(a[k, k + 1 :])))
        if pivot != k + 1:
            a[[k + 1, pivot]] = a[[pivot, k + 1]]
            a[:, [k + 1, pivot]] = a[:, [pivot, k + 1]]
            value = -value
        if a[k, k + 1] == 0.0:
            return 0.0
        value *= a[k, k + 1]
        tail = slice(k + 2, None)
        ratio = a[k, tail] / a[k, k + 1]
        update = np.outer(ratio, a[k + 1, tail])
        a[tail, tail] += update.T - update
    return float(value)
