# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Colours, line styles and new Axes, the same for all figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "MARKERS",
    "SIGNED",
    "STYLES",
    "VERMILION",
    "as_numbers",
    "axes_or_new",
    "broken",
    "check_kind",
    "check_named",
    "new_figure",
    "note",
    "png",
]

Array = npt.NDArray[np.float64]

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
    """The Axes given, or those of a new figure.

    Example:
        >>> axes_or_new(None).figure.get_size_inches().tolist()
        [6.0, 4.0]
    """
    return new_figure(6.0, 4.0).subplots() if ax is None else ax


def check_named(name: str, given: Any, kind: type = object) -> None:
    """Raise unless ``given`` maps names to what is to be drawn.

    Raises:
        TypeError: if it is no mapping, or an entry is not of the kind.
        ValueError: if it is empty.

    Example:
        >>> check_named("found", {"a": 1}, int)
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}; accepted: a mapping of names")
    if not given:
        raise ValueError(f"{name} is empty; accepted: at least one")
    for key, value in given.items():
        check_kind(f"{name}[{key!r}]", value, kind)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise a TypeError unless ``value`` is of the kind.

    Example:
        >>> check_kind("found", 1, int)
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted: a {kind.__name__}")


def as_numbers(name: str, values: npt.ArrayLike) -> Array:
    """An array in double precision.

    Raises:
        TypeError: if the values are no real numbers.

    Example:
        >>> as_numbers("loss", [1, None])
        array([ 1., nan])
    """
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
    """A text broken into lines that fit the width of the Axes or of the Figure.

    Example:
        >>> print(broken(new_figure(2.0, 2.0), "twenty-four letters fit into two inches of it"))
        twenty-four letters fit
        into two inches of it
    """
    figure = ax if isinstance(ax, Figure) else ax.figure
    most = max(20, int(LETTERS_PER_INCH * ax.bbox.width / figure.dpi))
    lines = (textwrap.wrap(line, most, break_long_words=False) for line in text.splitlines())
    return "\n".join(chain.from_iterable(lines))
