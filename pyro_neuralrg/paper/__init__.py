# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of the paper, each computed from nothing or from a saved flow, and drawn.

``python -m pyro_neuralrg paper fig3a`` (or ``fig3b``, ``fig4a``, ``fig4b``, ``sweep``). Each module
has settings, results that are written and read, and a function that draws them.
"""

from __future__ import annotations

from pyro_neuralrg.paper.command import FIGURES, Job, make_folder, prepare, redraw
from pyro_neuralrg.paper.light_cone import light_cone, reach
from pyro_neuralrg.paper.start import BLOCKS, Prepared, Start, paper_flow

__all__ = [
    "BLOCKS",
    "FIGURES",
    "Job",
    "Prepared",
    "Start",
    "light_cone",
    "make_folder",
    "paper_flow",
    "prepare",
    "reach",
    "redraw",
]
