# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Pyro's objects: the loss, guides and the reparameterisation by a flow.

Names that stood here up to version 0.1 are forwarded, with a DeprecationWarning.
"""

import importlib
import warnings
from typing import Any

from pyro_neuralrg.infer.autoguide import AutoHierarchicalFlow
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.infer.reparam import FlowReparam

__all__ = ["PDD", "AutoHierarchicalFlow", "FlowGuide", "FlowReparam"]

_MOVED = {
    "pyro_neuralrg.free_energy": (
        "Annealing Bounds Expectations FreeEnergyEstimate Reweighted Thermodynamics "
        "anneal bounds estimate expectations reweight thermodynamics"
    ),
    "pyro_neuralrg.train": "DataFit FitResult History TrainingStep cross_entropy fit fit_data",
    "pyro_neuralrg": "load save",
    "pyro_neuralrg.flow_file": "Loaded",
}
"""Names by their new modules."""


def _forward(old: str, name: str, new: str) -> Any:
    """A name of the module ``new``, with a warning that points to the user of ``old``."""
    warnings.warn(
        f"{old}.{name} is now {new}.{name}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(new), name)


def __getattr__(name: str) -> Any:
    for new, names in _MOVED.items():
        if name in names.split():
            return _forward(__name__, name, new)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
