# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Chains as ArviZ sees them: containers and convergence diagnostics."""

from pyro_neuralrg.diagnostics.convert import to_arviz
from pyro_neuralrg.diagnostics.tree import make_tree, save_tree
from pyro_neuralrg.series import Summary, summarise

__all__ = ["Summary", "make_tree", "save_tree", "summarise", "to_arviz"]
