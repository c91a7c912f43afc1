# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Markov chains over a batch: kernels as states and infos, adaptation beside them, a runner."""

from pyro_neuralrg.infer.mcmc.adaptation import Adaptation
from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo
from pyro_neuralrg.infer.mcmc.cycle import Cycle
from pyro_neuralrg.infer.mcmc.hmc import HMC
from pyro_neuralrg.infer.mcmc.jumps import IndependenceMetropolis
from pyro_neuralrg.infer.mcmc.model_target import ModelTarget, as_target
from pyro_neuralrg.infer.mcmc.runner import Cost, VectorizedMCMC
from pyro_neuralrg.infer.mcmc.target import EnergyTarget, LatentTarget, Target

__all__ = [
    "HMC",
    "Adaptation",
    "ChainState",
    "Cost",
    "Cycle",
    "EnergyTarget",
    "IndependenceMetropolis",
    "Kernel",
    "LatentTarget",
    "ModelTarget",
    "StepInfo",
    "Target",
    "VectorizedMCMC",
    "as_target",
]
