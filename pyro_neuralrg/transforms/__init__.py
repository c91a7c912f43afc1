# SPDX-License-Identifier: Apache-2.0
"""Everything that is a Pyro TransformModule: the hierarchical flow and its parts.

Wrong arguments raise a TypeError or a ValueError that names the argument, the value seen and what
is accepted.
"""

from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.bijectors import (
    BIJECTORS,
    Bijector,
    BlockFactory,
    BlockLayout,
    LayerFactory,
    Neighbour,
    RealNVP,
)
from pyro_neuralrg.transforms.conditional import (
    ConditionalHierarchicalFlow,
    conditional_hierarchical_flow,
)
from pyro_neuralrg.transforms.coupling import Couplings, neighbour_coupling, realnvp_block
from pyro_neuralrg.transforms.fine import FineGivenCoarse
from pyro_neuralrg.transforms.fourier import (
    CovarianceLayer,
    FourierLayer,
    LearnedSpectrum,
    VectorFourierLayer,
)
from pyro_neuralrg.transforms.hierarchical import HierarchicalFlow, hierarchical_flow

__all__ = [
    "BIJECTORS",
    "Bijector",
    "BlockFactory",
    "BlockLayout",
    "ConditionalHierarchicalFlow",
    "Couplings",
    "CovarianceLayer",
    "FineGivenCoarse",
    "FourierLayer",
    "HierarchicalFlow",
    "LatticeTransform",
    "LayerFactory",
    "LearnedSpectrum",
    "Neighbour",
    "RealNVP",
    "VectorFourierLayer",
    "conditional_hierarchical_flow",
    "hierarchical_flow",
    "neighbour_coupling",
    "realnvp_block",
]
