# SPDX-License-Identifier: Apache-2.0
r"""Formulas for finite Ising lattices, in float64, by which :class:`IsingModel` is exact.

* :mod:`.torus`: Kaufman's product formula, two-dimensional tori of any size;
* :mod:`.transfer`: the transfer matrix, any lattice with a small cross-section (all of up to 20
  spins among them), with fields and open boundaries;
* :mod:`.pfaffian`: spin correlations on the torus from Pfaffians.
"""
