# SPDX-License-Identifier: Apache-2.0
"""Guides that write themselves for models with fields on a lattice."""

from pyro_neuralrg.infer.autoguide.guide import AutoHierarchicalFlow

__all__ = ["AutoHierarchicalFlow"]
