# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What series of draws, of shape ``(chains, draws)``, tell of a mean and with which error."""

from __future__ import annotations

from pyro_neuralrg.series.autocorrelation import (
    AutocorrelationTime,
    integrated_autocorrelation_time,
)
from pyro_neuralrg.series.jackknife import Estimate, jackknife
from pyro_neuralrg.series.summary import Summary, arviz_module, quiet, summarise

__all__ = [
    "AutocorrelationTime",
    "Estimate",
    "Summary",
    "arviz_module",
    "integrated_autocorrelation_time",
    "jackknife",
    "quiet",
    "summarise",
]
