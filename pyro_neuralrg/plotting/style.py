# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Colours, line styles and new Axes, the same for all figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sized

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
    "axes_or_new",
    "check_some",
    "new_figure",
    "note",
    "png",
]

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


def check_some(name: str, given: Sized) -> None:
    """Raise ValueError if there is nothing to draw.

    Example:
        >>> check_some("found", {"a": 1})
    """
    if not len(given):
        raise ValueError(f"{name} is empty; accepted: at least one")


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
    inches = ax.bbox.width / ax.figure.dpi
    lines = textwrap.wrap(text, max(20, int(LETTERS_PER_INCH * inches)), break_long_words=False)
    above = ax.get_title().splitlines()
    ax.set_title("\n".join(above + lines), fontweight="bold", fontsize="small")
