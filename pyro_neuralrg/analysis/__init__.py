# SPDX-License-Identifier: Apache-2.0
"""Analysis of a flow and its fields: responses, mutual information, renormalization, exponents.

Every function raises a TypeError or ValueError that names the argument it cannot take.
"""

from pyro_neuralrg.analysis.blocking import block_spins
from pyro_neuralrg.analysis.couplings import RunningCouplings, running_couplings
from pyro_neuralrg.analysis.exponents import (
    MCRG,
    Linearization,
    RGStep,
    matching_normalization,
    mcrg,
)
from pyro_neuralrg.analysis.fixed_point import FixedPoint, fixed_point
from pyro_neuralrg.analysis.information import (
    Bins,
    Estimator,
    GroupedInformation,
    MutualInformation,
    Neighbours,
    by_distance,
    by_scale,
    gaussian_mutual_information,
    mutual_information,
)
from pyro_neuralrg.analysis.jacobians import (
    Overlap,
    Response,
    overlap,
    responses,
    responses_by_scale,
    written_patterns,
)
from pyro_neuralrg.analysis.operators import (
    OPERATORS,
    Operator,
    lattice_operators,
    operator_sums,
)
from pyro_neuralrg.analysis.renormalization import (
    TopEnergy,
    effective_energy,
    pyramid,
    resample,
    top_energy,
    top_variable,
)
from pyro_neuralrg.analysis.scales import (
    block_wavelets,
    latents_of_scale,
    light_cone,
    reach,
    scale_of_latents,
    variables_of_scale,
)

__all__ = [
    "MCRG",
    "OPERATORS",
    "Bins",
    "Estimator",
    "FixedPoint",
    "GroupedInformation",
    "Linearization",
    "MutualInformation",
    "Neighbours",
    "Operator",
    "Overlap",
    "RGStep",
    "Response",
    "RunningCouplings",
    "TopEnergy",
    "block_spins",
    "block_wavelets",
    "by_distance",
    "by_scale",
    "effective_energy",
    "fixed_point",
    "gaussian_mutual_information",
    "latents_of_scale",
    "lattice_operators",
    "light_cone",
    "matching_normalization",
    "mcrg",
    "mutual_information",
    "operator_sums",
    "overlap",
    "pyramid",
    "reach",
    "resample",
    "responses",
    "responses_by_scale",
    "running_couplings",
    "scale_of_latents",
    "top_energy",
    "top_variable",
    "variables_of_scale",
    "written_patterns",
]
