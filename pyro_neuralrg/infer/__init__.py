# SPDX-License-Identifier: Apache-2.0
"""Pyro's objects: the loss, guides and the reparameterisation by a flow."""

from pyro_neuralrg.infer.autoguide import AutoHierarchicalFlow
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.infer.reparam import FlowReparam

__all__ = ["PDD", "AutoHierarchicalFlow", "FlowGuide", "FlowReparam"]
