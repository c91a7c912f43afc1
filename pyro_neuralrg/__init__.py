# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Neural network renormalization group for lattice models and Pyro programs."""

__version__ = "0.1.0"

__all__ = ["__version__"]
