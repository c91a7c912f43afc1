# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Curves with error bars or bands, and a note on the Axes of what is missing in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from pyro_neuralrg.plotting.style import COLOURS, axes_or_new, check_named, look, note

#: x, values and errors.
Points: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Series(NamedTuple):
    """A curve with error bars, all of one length.

    Points that are not finite are left out; an error that is not finite is unknown, and its point
    has no bar. Figures say so in a note.

    Attributes:
        x: where the points are.
        values: the means.
        standard_error: of the means.
    """

    x: npt.ArrayLike
    values: npt.ArrayLike
    standard_error: npt.ArrayLike

    def finite(self) -> Points:
        """The three as arrays, without points that are not finite; unknown errors are NaN.

        Raises:
            ValueError: if the lengths differ.

        Example:
            >>> Series([1, 2, 3], [0.5, None, 0.25], [0.125, 0.125, None]).finite()[2]
            array([0.125,   nan])
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


def known_points(ax: Axes, found: Mapping[str, Series]) -> dict[str, Points]:
    """Finite points of each curve, by its name; ``ax`` gets a note of all that is missing."""
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


def draw_bars(
    ax: Axes, points: Points, index: int, label: str, *, joined: bool = False, size: float = 4.0
) -> None:
    """Points with error bars, in the look of the curve of that number."""
    x, values, error = points
    chosen = look(index) if joined else {**look(index), "linestyle": "none"}
    ax.errorbar(
        x, values, yerr=error, label=label, capsize=2, markersize=size, linewidth=1, **chosen
    )


def draw_band(ax: Axes, points: Points, index: int, label: str) -> None:
    """A line with a band of one standard error, in the look of the curve of that number."""
    x, mean, error = points
    line = {**look(index), "marker": ""}
    ax.plot(x, mean, linewidth=1.5, label=label, **line)
    ax.fill_between(x, mean - error, mean + error, color=line["color"], alpha=0.25, linewidth=0)


def plot_estimates(found: Mapping[str, Series], *, ax: Axes | None = None) -> Axes:
    """Estimates with error bars, for example on the Axes of :func:`plot_free_energy`.

    Shown in ``tutorials/figures/fig3a.png``.

    Args:
        found: estimates by name.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes, with the legend renewed.

    Example:
        >>> len(plot_estimates({"importance": Series([1, 2], [3.0, 2.0], [0.1, 0.1])}).containers)
        1
    """
    ax = axes_or_new(ax)
    for index, (name, points) in enumerate(known_points(ax, found).items()):
        draw_bars(ax, points, 1 + index % (len(COLOURS) - 1), name)  # the first is that of a loss
    ax.legend(frameon=False, fontsize="small")
    return ax
