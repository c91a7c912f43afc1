# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Chains that stay in different modes, and distributions with two humps.

Plain numpy in, numbers out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Split", "critical_dip", "dip", "split_of_chains"]

#: Draws that the dip statistic looks at, at most: its cost is a loop over them.
MOST_POINTS = 1000
#: sqrt(n) times the dip of n uniform numbers exceeds this in fewer than one case of a thousand: of
#: 100 000 samples that quantile was 0.664, 0.696 and 0.716 for n = 50, 200 and 1000. Of other
#: distributions with one hump the dip is smaller.
CRITICAL = 0.72

Array = NDArray[np.float64]


class Split(NamedTuple):
    """The widest gap between the medians of chains.

    Attributes:
        gap: in units of the standard deviation within a chain.
        low: chains below the gap.
        high: chains above it.
        low_median: median of their medians.
        high_median: likewise.
    """

    gap: float
    low: int
    high: int
    low_median: float
    high_median: float


def split_of_chains(values: Array) -> Split:
    """How far apart the chains fall into two groups.

    Chains of the same distribution with ten or more effective draws each have gaps well below
    three. Chains that visit both of two modes in equal shares have a standard deviation of half
    their distance or more, so their gap is two at most. Medians, since a single far draw moves the
    mean of a chain with heavy tails.

    Args:
        values: shape ``(chains, draws)``, at least two chains.

    Returns:
        The widest gap; NaN where no chain varies.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(4, 100))
        >>> draws[:3] += 20
        >>> found = split_of_chains(draws)
        >>> found.low, found.high, 15 < found.gap < 25
        (1, 3, True)
    """
    medians = np.sort(np.median(values, axis=1))
    within = float(np.median(values.std(axis=1)))
    gaps = np.diff(medians)
    cut = int(np.argmax(gaps)) + 1
    return Split(
        float(gaps[cut - 1]) / within if within > 0 else math.nan,
        cut,
        len(medians) - cut,
        float(np.median(medians[:cut])),
        float(np.median(medians[cut:])),
    )


def dip(values: Array) -> float:
    """Hartigan's dip: how far the distribution of the draws is from the nearest with one hump.

    The largest difference of the two cumulative distributions. Equal draws count as an atom, which
    a distribution with one hump has only at its top.

    Args:
        values: independent draws, shape ``(n,)``; more than a thousand are thinned evenly.

    Returns:
        Between ``1 / (2 n)`` and 1/4.

    References:
        J. A. Hartigan and P. M. Hartigan, "The dip test of unimodality", Ann. Stat. 13 (1985).

    Example:
        >>> import numpy as np
        >>> float(dip(np.array([0.0, 0.0, 1.0, 1.0])))
        0.25
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if x.size > MOST_POINTS:
        x = x[np.linspace(0, x.size - 1, MOST_POINTS).round().astype(int)]
    points, counts = np.unique(x, return_counts=True)
    n = x.size
    above = np.cumsum(counts) / n  # the distribution at each point, and just below it
    below = above - counts / n
    low, high, largest = 0, len(points) - 1, 1.0 / n
    while low < high:
        convex = low + _hull(points[low : high + 1], below[low : high + 1], 1.0)
        concave = low + _hull(points[low : high + 1], above[low : high + 1], -1.0)
        minorant = np.interp(points, points[convex], below[convex])
        majorant = np.interp(points, points[concave], above[concave])
        middle = majorant - minorant
        # the modal interval shrinks to the touching points on either side of the largest distance
        touching = np.union1d(convex, concave)
        peak = int(touching[np.argmax(middle[touching])])
        if middle[peak] <= largest:
            break
        left = int(convex[convex <= peak].max())
        right = int(concave[concave >= peak].min())
        outside = [
            float((above - minorant)[low : left + 1].max()),
            float((majorant - below)[right : high + 1].max()),
        ]
        largest = max(largest, *outside)
        if (left, right) == (low, high):
            break
        low, high = left, right
    return largest / 2


def critical_dip(n: int) -> float:
    """The dip that uniform draws, the hardest to tell from two humps, exceed once in a thousand.

    Example:
        >>> round(critical_dip(400), 4)
        0.036
    """
    return CRITICAL / math.sqrt(min(n, MOST_POINTS))


def _hull(x: Array, y: Array, sign: float) -> NDArray[np.intp]:
    """Corners of the greatest convex minorant (sign 1) or the least concave majorant (sign -1)."""
    xs, ys = x.tolist(), (sign * y).tolist()
    corners: list[int] = []
    for new in range(len(xs)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (ys[b] - ys[a]) * (xs[new] - xs[b]) < (ys[new] - ys[b]) * (xs[b] - xs[a]):
                break
            corners.pop()
        corners.append(new)
    return np.array(corners, dtype=np.intp)
