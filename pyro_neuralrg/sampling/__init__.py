# SPDX-License-Identifier: Apache-2.0
"""Draws of a target, and its evidence, by the flow or guide that was trained for it."""

from pyro_neuralrg.sampling.draws import Samples, sample
from pyro_neuralrg.sampling.evidence import Evidence, evidence

__all__ = ["Evidence", "Samples", "evidence", "sample"]
