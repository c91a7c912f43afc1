# SPDX-License-Identifier: Apache-2.0
"""Chains as ArviZ sees them: containers, convergence diagnostics and a verdict in words.

Every function raises a TypeError or ValueError that names the argument it cannot take.
"""

from pyro_neuralrg.diagnostics.checks import Finding, Thresholds
from pyro_neuralrg.diagnostics.convert import to_arviz, to_pyerrors, weights_to_arviz
from pyro_neuralrg.diagnostics.tree import group_of, make_tree, save_tree
from pyro_neuralrg.diagnostics.verdict import Diagnosis, diagnose
from pyro_neuralrg.statistics import Summary, summarise

__all__ = [
    "Diagnosis",
    "Finding",
    "Summary",
    "Thresholds",
    "diagnose",
    "group_of",
    "make_tree",
    "save_tree",
    "summarise",
    "to_arviz",
    "to_pyerrors",
    "weights_to_arviz",
]
