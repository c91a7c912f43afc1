# SPDX-License-Identifier: Apache-2.0
"""The scripts of the paper's figures, which are no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "tutorials" / "paper"


def load(name: str, folder: Path = FOLDER) -> ModuleType:
    """One of them, as ``python tutorials/paper/NAME.py`` finds it beside the others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(name)
