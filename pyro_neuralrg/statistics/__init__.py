# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What series of draws, of shape ``(chains, draws)``, tell of a mean and with which error."""

from __future__ import annotations

from pyro_neuralrg.statistics.autocorrelation import (
    AutocorrelationTime,
    integrated_autocorrelation_time,
)
from pyro_neuralrg.statistics.convergence import FieldSummary, Figures, bfmi, summarise_field
from pyro_neuralrg.statistics.resampling import Estimate, jackknife
from pyro_neuralrg.statistics.summary import Summary, arviz_module, quiet, summarise
from pyro_neuralrg.statistics.table import summary_table
from pyro_neuralrg.statistics.weights import pareto_k

__all__ = [
    "AutocorrelationTime",
    "Estimate",
    "FieldSummary",
    "Figures",
    "Summary",
    "arviz_module",
    "bfmi",
    "integrated_autocorrelation_time",
    "jackknife",
    "pareto_k",
    "quiet",
    "summarise",
    "summarise_field",
    "summary_table",
]
