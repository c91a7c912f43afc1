# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
r"""What is known exactly about finite Ising lattices, in float64.

Energies are in units of J, temperatures in J / k_B: :math:`p(s) \propto \exp(-H(s)/T)`,
:math:`H = -\sum_{a, \langle ij \rangle_a} J_a s_i s_j - \sum_i h_i s_i`. A periodic side of 2
counts both bonds of a pair, a side of 1 has none.

* :mod:`.torus`: Kaufman's product formula, two-dimensional tori of any size;
* :mod:`.transfer`: the transfer matrix, any lattice with a small cross-section (all of up to 20
  spins among them), with fields and open boundaries;
* :mod:`.correlations`: spin correlations on the torus from Pfaffians.
"""

from pyro_neuralrg.potentials.exact.api import (
    correlations,
    internal_energy,
    log_partition,
    specific_heat,
    structure_factor,
)

__all__ = [
    "correlations",
    "internal_energy",
    "log_partition",
    "specific_heat",
    "structure_factor",
]
