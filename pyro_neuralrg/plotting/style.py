# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Colours, line styles and new Axes, the same for all figures."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "MARKERS", "STYLES", "VERMILION", "axes_or_new"]

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")
STYLES = ("-", "--", "-.", ":", "-")
MARKERS = ("o", "s", "^", "D", "v")


def axes_or_new(ax: Axes | None) -> Axes:
    """The Axes given, or those of a new figure.

    Example:
        >>> axes_or_new(None).figure.get_size_inches().tolist()
        [6.0, 4.0]
    """
    return Figure(figsize=(6.0, 4.0), layout="constrained").subplots() if ax is None else ax
