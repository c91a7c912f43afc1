# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Names of :mod:`pyro_neuralrg.mcmc` under their old path, with a DeprecationWarning."""

import importlib
import warnings
from typing import Any

_NEW = "pyro_neuralrg.mcmc"


def __getattr__(name: str) -> Any:
    module = importlib.import_module(_NEW)
    if name.startswith("__") or not hasattr(module, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"pyro_neuralrg.infer.mcmc.{name} is now {_NEW}.{name}; the old path goes with the next "
        "release",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(module, name)
