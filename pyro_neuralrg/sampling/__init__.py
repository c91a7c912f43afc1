# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Draws of a target by the flow or guide that was trained for it, by the method that suits it."""

from pyro_neuralrg.sampling.draws import Samples, sample

__all__ = ["Samples", "sample"]
