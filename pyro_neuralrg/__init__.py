# SPDX-License-Identifier: Apache-2.0
"""Neural network renormalization group for lattice models and Pyro programs.

Learn an invertible, hierarchical change of variables for a lattice model, read its free energy with
an error bar, and sample it in the latent space (Li and Wang, PRL 121, 260601, 2018).
"""

from pyro_neuralrg.diagnostics import diagnose, to_arviz
from pyro_neuralrg.distributions import SymmetrizedFlow
from pyro_neuralrg.files import Record
from pyro_neuralrg.flow_file import load, save
from pyro_neuralrg.free_energy import anneal, estimate, expectations
from pyro_neuralrg.infer import PDD, AutoHierarchicalFlow, FlowGuide, FlowReparam
from pyro_neuralrg.mcmc import (
    HMC,
    MAMS,
    MCLMC,
    ChEESHMC,
    Cycle,
    IndependenceMetropolis,
    Mixture,
    VectorizedMCMC,
)
from pyro_neuralrg.potentials import FreeField, IsingDual, IsingDualFamily, LatticePotential, Phi4
from pyro_neuralrg.sampling import evidence, sample
from pyro_neuralrg.train import Cooling, Schedule, fit
from pyro_neuralrg.transforms import (
    ConditionalHierarchicalFlow,
    HierarchicalFlow,
    conditional_hierarchical_flow,
    hierarchical_flow,
)

__version__ = "0.1.0"
"""Version of the package."""

__all__ = [
    "HMC",
    "MAMS",
    "MCLMC",
    "PDD",
    "AutoHierarchicalFlow",
    "ChEESHMC",
    "ConditionalHierarchicalFlow",
    "Cooling",
    "Cycle",
    "FlowGuide",
    "FlowReparam",
    "FreeField",
    "HierarchicalFlow",
    "IndependenceMetropolis",
    "IsingDual",
    "IsingDualFamily",
    "LatticePotential",
    "Mixture",
    "Phi4",
    "Record",
    "Schedule",
    "SymmetrizedFlow",
    "VectorizedMCMC",
    "__version__",
    "anneal",
    "conditional_hierarchical_flow",
    "diagnose",
    "estimate",
    "evidence",
    "expectations",
    "fit",
    "hierarchical_flow",
    "load",
    "sample",
    "save",
    "to_arviz",
]
