# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of a run and of what a flow has learned.

Each function draws on the given Axes, or on those of a new :class:`matplotlib.figure.Figure`
(no pyplot, so no global state and no display), and returns the Axes, or the Figure of several
panels; ``axes.figure.savefig(path)`` writes it. Numbers are drawn as they were given, but for what
the function's own docstring says it makes of them: relative errors, running means and medians,
histograms and ranks, R-hat. Figures of chains that have not converged say so, and so do those in
which points or error bars are missing. Colours are those of Okabe and Ito (2008), which readers
with any kind of colour vision tell apart; curves differ in line style or marker as well.
"""

from __future__ import annotations

from pyro_neuralrg.plotting.curves import Series, estimates
from pyro_neuralrg.plotting.learned import (
    effective_energy,
    information_by_distance,
    information_by_scale,
    information_matrix,
    pyramid,
    responses,
    top_variable,
)
from pyro_neuralrg.plotting.runs import (
    configurations,
    free_energy,
    ranks,
    structure_factor,
    trace,
)
from pyro_neuralrg.plotting.style import COLOURS, MARKERS, STYLES, new_figure

__all__ = [
    "COLOURS",
    "MARKERS",
    "STYLES",
    "Series",
    "configurations",
    "effective_energy",
    "estimates",
    "free_energy",
    "information_by_distance",
    "information_by_scale",
    "information_matrix",
    "new_figure",
    "pyramid",
    "ranks",
    "responses",
    "structure_factor",
    "top_variable",
    "trace",
]
