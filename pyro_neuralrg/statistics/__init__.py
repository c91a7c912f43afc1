# SPDX-License-Identifier: Apache-2.0
"""Means with errors: of series of draws ``(chains, draws)``, and of importance weights."""

from pyro_neuralrg.statistics.autocorrelation import (
    AutocorrelationTime,
    integrated_autocorrelation_time,
    tau_int,
)
from pyro_neuralrg.statistics.draws import FloatArray, arviz_module, quiet
from pyro_neuralrg.statistics.resampling import Estimate, jackknife, with_error
from pyro_neuralrg.statistics.summary import (
    FieldSummary,
    Summary,
    bfmi,
    summarise,
    summarise_field,
    summary_table,
)
from pyro_neuralrg.statistics.weights import LogWeights, kish_fractions

__all__ = [
    "AutocorrelationTime",
    "Estimate",
    "FieldSummary",
    "FloatArray",
    "LogWeights",
    "Summary",
    "arviz_module",
    "bfmi",
    "integrated_autocorrelation_time",
    "jackknife",
    "kish_fractions",
    "quiet",
    "summarise",
    "summarise_field",
    "summary_table",
    "tau_int",
    "with_error",
]
