# SPDX-License-Identifier: Apache-2.0
"""Figures of a run and of what a flow has learned.

Each function draws on the Axes ``ax``, or the ``figure`` of several panels, that it is given, or on
new ones (no pyplot, so no global state and no display), and returns them;
``axes.figure.savefig(path)`` writes them. Figures of chains that have not converged say so,
and so do those in which points or error bars are missing. What cannot be drawn (nothing, other
shapes, fields that are not finite) is refused by a TypeError or ValueError that names the argument.
Colours are those of Okabe and Ito (2008), which readers with any kind of colour vision tell apart;
curves differ in line style or marker as well.
"""

from __future__ import annotations

from pyro_neuralrg.plotting.learned import (
    plot_coupling_flow,
    plot_effective_energy,
    plot_information_by_distance,
    plot_information_by_scale,
    plot_information_matrix,
    plot_pyramid,
    plot_responses,
    plot_top_variable,
)
from pyro_neuralrg.plotting.runs import (
    plot_collapse,
    plot_configurations,
    plot_estimates,
    plot_free_energy,
    plot_ranks,
    plot_structure_factor,
    plot_thermodynamics,
    plot_trace,
)
from pyro_neuralrg.plotting.style import COLOURS, MARKERS, STYLES, Series, new_figure

__all__ = [
    "COLOURS",
    "MARKERS",
    "STYLES",
    "Series",
    "new_figure",
    "plot_collapse",
    "plot_configurations",
    "plot_coupling_flow",
    "plot_effective_energy",
    "plot_estimates",
    "plot_free_energy",
    "plot_information_by_distance",
    "plot_information_by_scale",
    "plot_information_matrix",
    "plot_pyramid",
    "plot_ranks",
    "plot_responses",
    "plot_structure_factor",
    "plot_thermodynamics",
    "plot_top_variable",
    "plot_trace",
]
