# SPDX-License-Identifier: Apache-2.0
"""Targets: energies of fields on a lattice, with exact references where they are known.

Wrong arguments raise a TypeError or a ValueError that names the argument, the value seen and what
is accepted.
"""

from __future__ import annotations

from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.crystal import LennardJonesCrystal
from pyro_neuralrg.potentials.family import (
    IsingDualFamily,
    IsingFieldFamily,
    Phi4Family,
    PotentialFamily,
)
from pyro_neuralrg.potentials.free_field import FreeField
from pyro_neuralrg.potentials.ising import IsingDual
from pyro_neuralrg.potentials.ising_model import (
    CRITICAL_TEMPERATURE,
    IsingModel,
    critical_temperature,
)
from pyro_neuralrg.potentials.phi4 import Phi4
from pyro_neuralrg.potentials.ring_polymer import (
    Central,
    DoubleWell,
    Morse,
    QuarticWell,
    RingPolymer,
)
from pyro_neuralrg.potentials.spins import DualSpins, SpinModel
from pyro_neuralrg.potentials.vector_spins import Clock, Rotor, SpinSpace, VectorSpinDual

__all__ = [
    "CRITICAL_TEMPERATURE",
    "Central",
    "Clock",
    "DoubleWell",
    "DualSpins",
    "FreeField",
    "IsingDual",
    "IsingDualFamily",
    "IsingFieldFamily",
    "IsingModel",
    "LatticePotential",
    "LennardJonesCrystal",
    "Morse",
    "Phi4",
    "Phi4Family",
    "PotentialFamily",
    "QuarticWell",
    "RingPolymer",
    "Rotor",
    "SpinModel",
    "SpinSpace",
    "VectorSpinDual",
    "critical_temperature",
]
