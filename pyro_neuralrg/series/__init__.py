# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What series of draws, of shape ``(chains, draws)``, tell of a mean and with which error."""

from __future__ import annotations

from pyro_neuralrg.series.autocorrelation import (
    AutocorrelationTime,
    integrated_autocorrelation_time,
)
from pyro_neuralrg.series.convergence import FieldSummary, Figures, bfmi, summarise_field
from pyro_neuralrg.series.jackknife import Estimate, jackknife
from pyro_neuralrg.series.pareto import pareto_k
from pyro_neuralrg.series.summary import Summary, arviz_module, quiet, summarise
from pyro_neuralrg.series.table import summary_table

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
