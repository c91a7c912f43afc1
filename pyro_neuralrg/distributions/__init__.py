# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Probability distributions over lattice fields built from flows."""

from pyro_neuralrg.bases import StandardNormal, TwoModes
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.distributions.symmetrized import SymmetrizedFlow
from pyro_neuralrg.distributions.symmetry import LatticeSymmetry, symmetry_group

__all__ = [
    "FlowDistribution",
    "LatticeSymmetry",
    "StandardNormal",
    "SymmetrizedFlow",
    "TwoModes",
    "symmetry_group",
]
