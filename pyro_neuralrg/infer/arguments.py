# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The checks of :mod:`pyro_neuralrg.arguments` under their earlier name."""

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, check_number

__all__ = ["LARGEST_SEED", "check_integer", "check_number"]
