# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Training, free energies and sampling."""

from pyro_neuralrg.infer.annealing import Annealing, anneal
from pyro_neuralrg.infer.autoguide import AutoHierarchicalFlow
from pyro_neuralrg.infer.bounds import Bounds, bounds
from pyro_neuralrg.infer.checkpoint import Loaded, load, save
from pyro_neuralrg.infer.fit import FitResult, fit
from pyro_neuralrg.infer.free_energy import FreeEnergyEstimate, estimate
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.history import History, TrainingStep
from pyro_neuralrg.infer.inpainting import inpaint
from pyro_neuralrg.infer.likelihood import DataFit, cross_entropy, fit_data
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.infer.pixels import Pixels
from pyro_neuralrg.infer.reweighting import Expectations, Reweighted, expectations, reweight
from pyro_neuralrg.infer.schedule import Schedule, default_schedule
from pyro_neuralrg.infer.thermodynamics import Thermodynamics, thermodynamics

__all__ = [
    "PDD",
    "Annealing",
    "AutoHierarchicalFlow",
    "Bounds",
    "DataFit",
    "Expectations",
    "FitResult",
    "FlowGuide",
    "FreeEnergyEstimate",
    "History",
    "Loaded",
    "Pixels",
    "Reweighted",
    "Schedule",
    "Thermodynamics",
    "TrainingStep",
    "anneal",
    "bounds",
    "cross_entropy",
    "default_schedule",
    "estimate",
    "expectations",
    "fit",
    "fit_data",
    "inpaint",
    "load",
    "reweight",
    "save",
    "thermodynamics",
]
