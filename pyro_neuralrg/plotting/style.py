# SPDX-License-Identifier: Apache-2.0
"""Parts of all figures: colours, new Axes, curves with errors, pictures, notes, checks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from pyro_neuralrg.arguments import check_number, check_type

#: x, values and errors.
Points: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")
"""Colours of curves, of Okabe and Ito (2008)."""

STYLES = ("-", "--", "-.", ":", "-")
"""Their line styles, in the same order."""

MARKERS = ("o", "s", "^", "D", "v")
"""Their markers, in the same order."""

SIGNED = "cividis"  # lightness grows from end to end: the sign survives in grey
NOTEBOOK_DOTS_PER_INCH = 80
LETTERS_PER_INCH = 12  # of small bold type, rather too few


class Picture(Figure):
    """A figure that notebooks show without pyplot, which is not imported here."""

    def _repr_png_(self) -> bytes:
        return png(self, NOTEBOOK_DOTS_PER_INCH)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Example:
        >>> new_figure(6.0, 4.0)._repr_png_()[1:4]
        b'PNG'
    """
    return Picture(figsize=(width, height), layout="constrained")


def png(figure: Figure, dots_per_inch: float) -> bytes:
    """A figure as PNG of at most 256 colours: a third of the size of one of all."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dots_per_inch)
    with Image.open(drawn) as picture:  # of Pillow, which matplotlib needs
        picture.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE).save(
            small, format="png", optimize=True
        )
    return small.getvalue()


def axes_or_new(ax: Axes | None, width: float = 6.0, height: float = 4.0) -> Axes:
    """The Axes given, or those of a new figure."""
    check_type("ax", ax, Axes | None, "the Axes of one panel, or None")
    return new_figure(width, height).subplots() if ax is None else ax


def figure_or_new(figure: Figure | None, width: float, height: float) -> Figure:
    """The figure given, or a new one."""
    check_type("figure", figure, Figure | None, "a matplotlib Figure or None")
    return new_figure(width, height) if figure is None else figure


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


def known_points(
    ax: Axes, found: Mapping[str, Series], argument: str = "found"
) -> dict[str, Points]:
    """Finite points of each curve, by its name; ``ax`` gets a note of all that is missing."""
    check_named(argument, found, Series)
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


def look(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the curve of that number."""
    place = index % len(COLOURS)
    return {"color": COLOURS[place], "linestyle": STYLES[place], "marker": MARKERS[place]}


def draw_bars(ax: Axes, points: Points, index: int, label: str, **style: Any) -> None:
    """Points with error bars, in the look of the curve of that number but for the style given."""
    x, values, error = points
    chosen = {**look(index), "linestyle": "none", "linewidth": 1, "markersize": 4, **style}
    ax.errorbar(x, values, yerr=error, label=label, capsize=2, **chosen)


def draw_band(ax: Axes, points: Points, index: int, label: str) -> None:
    """A line with a band of one standard error, in the look of the curve of that number."""
    x, mean, error = points
    line = {**look(index), "marker": ""}
    ax.plot(x, mean, linewidth=1.5, label=label, **line)
    ax.fill_between(x, mean - error, mean + error, color=line["color"], alpha=0.25, linewidth=0)


def exact_line(ax: Axes, exact: float | None, label: str = "exact") -> None:
    """A dashed black line at the exact value, if it is known."""
    if exact is not None:
        exact = check_number("exact", exact, "a finite number or None")
        ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label=label)


def legend_beside(ax: Axes) -> None:
    """The legend to the right of the axes, where it hides neither data nor an exact line."""
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_field(ax: Axes, field: npt.NDArray[np.float64], norm: Normalize) -> Any:
    """A field on a colour scale with zero in the middle, without ticks.

    Of a three-dimensional lattice the middle slice, as the title says below what stands there; a
    one-dimensional one as a row.
    """
    picture = np.atleast_2d(field)
    if field.ndim == 3:
        middle = field.shape[2] // 2
        picture = field[:, :, middle]
        ax.set_title(f"{ax.get_title()}\nslice [:, :, {middle}]".strip(), fontsize="small")
    ax.set(xticks=[], yticks=[])
    return ax.imshow(picture, cmap=SIGNED, norm=norm, aspect="equal")


def note(ax: Axes, text: str) -> None:
    """A note above the axes, in bold, broken into lines that fit them, below what stands there.

    Example:
        >>> ax = axes_or_new(None)
        >>> note(ax, "not converged: " + ", ".join(["one sampler"] * 6))
        >>> len(ax.get_title().splitlines())
        2
        >>> note(ax, "another")
        >>> ax.get_title().splitlines()[2]
        'another'
    """
    most = max(20, int(LETTERS_PER_INCH * ax.bbox.width / ax.figure.dpi))
    broken = textwrap.fill(text, most, break_long_words=False)
    ax.set_title(f"{ax.get_title()}\n{broken}".strip(), fontweight="bold", fontsize="small")


def check_named(name: str, given: Any, kind: type = object) -> None:
    """Raise unless ``given`` maps one or more names to what is of the kind."""
    check_type(name, given, Mapping, f"a mapping of names to {kind.__name__}s")
    if not given:
        raise ValueError(f"{name} is empty; accepted: at least one entry")
    for key, value in given.items():
        check_type(f"{name}[{key!r}]", value, kind, f"a {kind.__name__}")
