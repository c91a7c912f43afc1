# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Observables of lattice configurations: batched, torch in, torch out, differentiable.

The dual field gives each spin's exact conditional mean, E[s_i | x] = tanh(x_i + h_i / T),
independently of the other spins. The estimators that take ``x`` average over the spins with it
(Rao-Blackwell): the same mean as from sampled spins, less variance. Those that take ``spins`` take
any field. What is a function of several means is estimated from series of draws.
"""

from __future__ import annotations

from pyro_neuralrg.observables.energy import internal_energy, squared_internal_energy
from pyro_neuralrg.observables.order_parameter import (
    abs_magnetisation,
    expected_abs_magnetisation,
    fourth_moment,
    magnetisation,
    magnetisation_distribution,
    spin_fourth_moment,
    spin_structure_factor,
    structure_factor,
)
from pyro_neuralrg.observables.ratios import (
    binder_cumulant,
    correlation_length,
    specific_heat,
    susceptibility,
)
from pyro_neuralrg.observables.sites import spin_mean
from pyro_neuralrg.observables.standard import dual_observables, field_observables
from pyro_neuralrg.observables.two_point import (
    axis_correlations,
    correlations,
    mode_structure_factor,
    spin_axis_correlations,
    spin_correlations,
    spin_mode_structure_factor,
)

__all__ = [
    "abs_magnetisation",
    "axis_correlations",
    "binder_cumulant",
    "correlation_length",
    "correlations",
    "dual_observables",
    "expected_abs_magnetisation",
    "field_observables",
    "fourth_moment",
    "internal_energy",
    "magnetisation",
    "magnetisation_distribution",
    "mode_structure_factor",
    "specific_heat",
    "spin_axis_correlations",
    "spin_correlations",
    "spin_fourth_moment",
    "spin_mean",
    "spin_mode_structure_factor",
    "spin_structure_factor",
    "squared_internal_energy",
    "structure_factor",
    "susceptibility",
]
