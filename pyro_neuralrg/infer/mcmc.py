# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Names of :mod:`pyro_neuralrg.mcmc` under their old path, with a DeprecationWarning."""

import importlib
from typing import Any

from pyro_neuralrg.infer import _forward

_NEW = "pyro_neuralrg.mcmc"


def __getattr__(name: str) -> Any:
    if name.startswith("__") or not hasattr(importlib.import_module(_NEW), name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _forward(__name__, name, _NEW)
