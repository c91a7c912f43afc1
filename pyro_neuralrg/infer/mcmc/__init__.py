# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Markov chains over a batch: kernels as states and infos, adaptation beside them, a runner."""

from pyro_neuralrg.infer.mcmc.adaptation import Adaptation
from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo, Trajectory
from pyro_neuralrg.infer.mcmc.baselines import MALA, RandomWalkMetropolis
from pyro_neuralrg.infer.mcmc.chees import ChEESHMC
from pyro_neuralrg.infer.mcmc.compositions import Cycle, Mixture
from pyro_neuralrg.infer.mcmc.hmc import HMC
from pyro_neuralrg.infer.mcmc.jumps import IndependenceMetropolis
from pyro_neuralrg.infer.mcmc.model_target import ModelTarget, as_target
from pyro_neuralrg.infer.mcmc.results import Cost
from pyro_neuralrg.infer.mcmc.runner import VectorizedMCMC
from pyro_neuralrg.infer.mcmc.target import EnergyTarget, LatentTarget, Target

__all__ = [
    "HMC",
    "MALA",
    "Adaptation",
    "ChEESHMC",
    "ChainState",
    "Cost",
    "Cycle",
    "EnergyTarget",
    "IndependenceMetropolis",
    "Kernel",
    "LatentTarget",
    "Mixture",
    "ModelTarget",
    "RandomWalkMetropolis",
    "StepInfo",
    "Target",
    "Trajectory",
    "VectorizedMCMC",
    "as_target",
]
