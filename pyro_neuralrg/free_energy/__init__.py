# SPDX-License-Identifier: Apache-2.0
"""Free energies, evidence and expectations from weighted draws of a flow.

Every function raises a TypeError or ValueError that names the argument it cannot take; NaN among
energies or densities is refused likewise.
"""

from pyro_neuralrg.free_energy.annealing import Annealing, anneal
from pyro_neuralrg.free_energy.cascade import Cascade, cascade
from pyro_neuralrg.free_energy.critical_points import (
    Crossing,
    Curve,
    ScalingCollapse,
    ScalingCurves,
    crossings,
    scaling_collapse,
    scaling_curves,
)
from pyro_neuralrg.free_energy.finite_size import FiniteSizeScaling, finite_size_scaling
from pyro_neuralrg.free_energy.importance import Bounds, FreeEnergyEstimate, bounds, estimate
from pyro_neuralrg.free_energy.reweighting import Expectations, Reweighted, expectations, reweight
from pyro_neuralrg.free_energy.temperature_curve import Thermodynamics, thermodynamics

__all__ = [
    "Annealing",
    "Bounds",
    "Cascade",
    "Crossing",
    "Curve",
    "Expectations",
    "FiniteSizeScaling",
    "FreeEnergyEstimate",
    "Reweighted",
    "ScalingCollapse",
    "ScalingCurves",
    "Thermodynamics",
    "anneal",
    "bounds",
    "cascade",
    "crossings",
    "estimate",
    "expectations",
    "finite_size_scaling",
    "reweight",
    "scaling_collapse",
    "scaling_curves",
    "thermodynamics",
]
