# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Colours, line styles, new Axes, notes and pictures, the same for all figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from pyro_neuralrg.arguments import check_number

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")
STYLES = ("-", "--", "-.", ":", "-")
SIGNED = "cividis"  # lightness grows from end to end: the sign survives in grey
MARKERS = ("o", "s", "^", "D", "v")
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


def axes_or_new(ax: Axes | None) -> Axes:
    """The Axes given, or those of a new figure."""
    return new_figure(6.0, 4.0).subplots() if ax is None else ax


def look(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the curve of that number."""
    place = index % len(COLOURS)
    return {"color": COLOURS[place], "linestyle": STYLES[place], "marker": MARKERS[place]}


def exact_line(ax: Axes, exact: float | None, label: str = "exact") -> None:
    """A dashed black line at the exact value, if it is known."""
    if exact is not None:
        exact = check_number("exact", exact, "a finite number or None")
        ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label=label)


def as_picture(field: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A row of a one-dimensional lattice, the middle layer of a three-dimensional one."""
    if field.ndim == 3:
        return field[:, :, field.shape[2] // 2]
    return np.atleast_2d(field)


def draw_signed(ax: Axes, picture: npt.NDArray[np.float64], norm: Normalize) -> Any:
    """A picture on a colour scale with zero in the middle, without ticks."""
    ax.set(xticks=[], yticks=[])
    return ax.imshow(picture, cmap=SIGNED, norm=norm, aspect="equal")


def check_named(name: str, given: Any, kind: type = object) -> None:
    """Raise unless ``given`` maps one or more names to what is of the kind."""
    check_kind(name, given, Mapping)
    if not given:
        raise ValueError(f"{name} is empty; accepted: at least one entry")
    for key, value in given.items():
        check_kind(f"{name}[{key!r}]", value, kind)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise a TypeError unless ``value`` is of the kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted: a {kind.__name__}")


def as_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """An array in double precision, None as NaN; a TypeError if these are no real numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(values).__name__}; accepted: real numbers") from None


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
    above = [ax.get_title()] if ax.get_title() else []
    ax.set_title("\n".join([*above, broken(ax, text)]), fontweight="bold", fontsize="small")


def broken(ax: Axes | Figure, text: str) -> str:
    """A text broken into lines that fit the width of the Axes or of the Figure."""
    figure = ax if isinstance(ax, Figure) else ax.figure
    most = max(20, int(LETTERS_PER_INCH * ax.bbox.width / figure.dpi))
    lines = (textwrap.wrap(line, most, break_long_words=False) for line in text.splitlines())
    return "\n".join(chain.from_iterable(lines))
