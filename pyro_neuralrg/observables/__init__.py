# SPDX-License-Identifier: Apache-2.0
"""Observables of lattice configurations: batched, torch in, torch out, differentiable.

Those that fit a target, as functions of its field x, are ``target.observables()``. The functions
of one configuration take ``(mean, variance, shape)``: the mean of every site and, where the sites
are independent spins, as those given the dual field with ``IsingDual.spin_moments(x)``, their
variance, over which the average is then taken exactly (Rao and Blackwell: the same expectation as
from sampled spins, less scatter). Functions of several means are estimated from series of draws.
Wrong arguments raise a TypeError or a ValueError that names the argument and what is accepted.
"""

from pyro_neuralrg.observables.configurations import (
    abs_magnetisation,
    axis_correlations,
    correlations,
    field_observables,
    fourth_moment,
    magnetisation,
    magnetisation_probabilities,
    mode_structure_factor,
    structure_factor,
)
from pyro_neuralrg.observables.ratios import (
    binder_cumulant,
    correlation_length,
    specific_heat,
    susceptibility,
)
from pyro_neuralrg.observables.vectors import vector_observables

__all__ = [
    "abs_magnetisation",
    "axis_correlations",
    "binder_cumulant",
    "correlation_length",
    "correlations",
    "field_observables",
    "fourth_moment",
    "magnetisation",
    "magnetisation_probabilities",
    "mode_structure_factor",
    "specific_heat",
    "structure_factor",
    "susceptibility",
    "vector_observables",
]
