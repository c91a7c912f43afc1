# SPDX-License-Identifier: Apache-2.0
"""Markov chains over a batch: kernels as states and infos, adaptation beside them, a runner.

Every constructor raises a TypeError or ValueError that names the argument it cannot take.
"""

from pyro_neuralrg.mcmc.adaptation import Adaptation
from pyro_neuralrg.mcmc.compositions import Cycle, Mixture
from pyro_neuralrg.mcmc.hmc import HMC, MALA, ChEESHMC
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, LocalKernel, StepInfo, Trajectory
from pyro_neuralrg.mcmc.metropolis import (
    ConditionalMetropolis,
    IndependenceMetropolis,
    RandomWalkMetropolis,
)
from pyro_neuralrg.mcmc.microcanonical import MAMS, MCLMC
from pyro_neuralrg.mcmc.model_target import ModelTarget, as_target
from pyro_neuralrg.mcmc.run_state import Cost
from pyro_neuralrg.mcmc.runner import VectorizedMCMC
from pyro_neuralrg.mcmc.staging import StagingMetropolis
from pyro_neuralrg.mcmc.starts import Constrained
from pyro_neuralrg.mcmc.target import EnergyTarget, LatentTarget, Target

__all__ = [
    "HMC",
    "MALA",
    "MAMS",
    "MCLMC",
    "Adaptation",
    "ChEESHMC",
    "ChainState",
    "ConditionalMetropolis",
    "Constrained",
    "Cost",
    "Cycle",
    "EnergyTarget",
    "IndependenceMetropolis",
    "Kernel",
    "LatentTarget",
    "LocalKernel",
    "Mixture",
    "ModelTarget",
    "RandomWalkMetropolis",
    "StagingMetropolis",
    "StepInfo",
    "Target",
    "Trajectory",
    "VectorizedMCMC",
    "as_target",
]
