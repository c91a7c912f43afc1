# SPDX-License-Identifier: Apache-2.0
"""Training of flows: on a target by its energy, or on data."""

from pyro_neuralrg.train.data import DataFit, cross_entropy, fit_data
from pyro_neuralrg.train.history import History, TrainingStep
from pyro_neuralrg.train.optimizer import Budget, Cooling, Schedule, default_budget
from pyro_neuralrg.train.training import FitResult, fit

__all__ = [
    "Budget",
    "Cooling",
    "DataFit",
    "FitResult",
    "History",
    "Schedule",
    "TrainingStep",
    "cross_entropy",
    "default_budget",
    "fit",
    "fit_data",
]
