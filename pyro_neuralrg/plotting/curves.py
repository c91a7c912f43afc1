# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Curves with error bars, and a note on the Axes of what is missing in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from pyro_neuralrg.plotting.style import COLOURS, MARKERS, axes_or_new, check_named, note

Array = npt.NDArray[np.float64]


class Series(NamedTuple):
    """A curve with error bars, all of one length.

    Points that are not finite are left out; an error that is not finite is unknown, and its point
    has no bar. Figures say so in a note.

    Attributes:
        x: Where.
        values: The means.
        standard_error: Of them.
    """

    x: npt.ArrayLike
    values: npt.ArrayLike
    standard_error: npt.ArrayLike

    def finite(self) -> tuple[Array, Array, Array]:
        """The three as arrays, without points that are not finite; unknown errors are NaN.

        Raises:
            ValueError: The lengths differ.

        Example:
            >>> Series([1, 2, 3], [0.5, None, 0.25], [0.125, 0.125, None]).finite()
            (array([1., 3.]), array([0.5 , 0.25]), array([0.125,   nan]))
        """
        x, values, error = (np.array(a, dtype=np.float64, ndmin=1) for a in self)
        if not x.shape == values.shape == error.shape or x.ndim != 1:
            raise ValueError(
                f"x, values and standard_error have shapes {x.shape}, {values.shape}, "
                f"{error.shape}; accepted: one length"
            )
        known = np.isfinite(x) & np.isfinite(values)
        error = np.where(np.isfinite(error), error, np.nan)
        return x[known], values[known], error[known]


def known_points(ax: Axes, found: Mapping[str, Series]) -> dict[str, tuple[Array, Array, Array]]:
    """What is finite of each curve, by its name; ``ax`` gets a note of all that is missing.

    Raises:
        TypeError: An entry is no Series.
        ValueError: There are none, or lengths differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> curves = known_points(ax, {"a": Series([1, 2], [3.0, None], [None, 0.1])})
        >>> " ".join(ax.get_title().split())
        "1 of 2 points of 'a' are not finite and left out; no error bar known for 'a'"
    """
    check_named("found", found, Series)
    points = {name: series.finite() for name, series in found.items()}
    missing = []
    for name, (x, _, error) in points.items():
        given, unknown = np.size(found[name].x), int(np.isnan(error).sum())
        if x.size < given:
            left_out = given - x.size
            missing.append(f"{left_out} of {given} points of '{name}' are not finite and left out")
        if unknown:
            some = f"{unknown} of {x.size} points of " if unknown < x.size else ""
            missing.append(f"no error bar known for {some}'{name}'")
    if missing:
        note(ax, "; ".join(missing))
    return points


def estimates(found: Mapping[str, Series], *, ax: Axes | None = None) -> Axes:
    """Estimates with error bars, for example on the Axes of ``free_energy``.

    Shown in ``tutorials/figures/fig3a.png``.

    Args:
        found: For each name its estimates.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes, with the legend renewed.

    Raises:
        ValueError: There are none, or lengths differ.

    >>> len(estimates({"importance": Series([1, 2], [3.0, 2.0], [0.1, 0.1])}).containers)
    1
    """
    ax = axes_or_new(ax)
    for index, (name, (x, values, error)) in enumerate(known_points(ax, found).items()):
        ax.errorbar(
            x, values, yerr=error, color=COLOURS[1 + index % (len(COLOURS) - 1)], capsize=3,
            marker=MARKERS[(1 + index) % len(MARKERS)], markersize=4, linestyle="none", label=name,
        )  # fmt: skip
    ax.legend(frameon=False, fontsize="small")
    return ax
