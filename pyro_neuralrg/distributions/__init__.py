# SPDX-License-Identifier: Apache-2.0
"""Probability distributions over lattice fields: of flows, and Gaussian priors."""

from pyro_neuralrg.bases import StandardNormal, TwoModes
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.distributions.markov_field import (
    GaussianMarkovField,
    MaternField,
    StationaryField,
)
from pyro_neuralrg.distributions.symmetrized import LatticeSymmetry, SymmetrizedFlow, symmetry_group

__all__ = [
    "FlowDistribution",
    "GaussianMarkovField",
    "LatticeSymmetry",
    "MaternField",
    "StandardNormal",
    "StationaryField",
    "SymmetrizedFlow",
    "TwoModes",
    "symmetry_group",
]
