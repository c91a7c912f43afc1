# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files of results: numbers as JSON, arrays as npz, each written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_neuralrg.files.atomic import writing
from pyro_neuralrg.flow_file import save
from pyro_neuralrg.plotting.style import png
from pyro_neuralrg.transforms import HierarchicalFlow

__all__ = [
    "read_arrays",
    "read_numbers",
    "write_arrays",
    "write_figure",
    "write_flow",
    "write_numbers",
]

DOTS_PER_INCH = 120


def write_numbers(path: Path, contents: Mapping[str, Any]) -> None:
    """Write plain data as JSON, what is not finite as null.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps(_finite(dict(contents)), indent=1, allow_nan=False) + "\n"
    with writing(path) as stream:
        stream.write(text.encode())


def read_numbers(path: Path) -> dict[str, Any]:
    """Read what :func:`write_numbers` wrote; null stays None.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON object.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} holds no results ({error}); accepted: a file that this command wrote"
        ) from None
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds no results; accepted: a file that this command wrote")
    return contents


def write_arrays(path: Path, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write arrays, and plain data beside them, as one npz file.

    Raises:
        OSError: if it cannot be written.
    """
    packed: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    packed["notes"] = np.array(json.dumps(_finite(dict(notes))))

    with writing(path) as stream:
        np.savez_compressed(stream, **packed)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read what :func:`write_arrays` wrote, the arrays and the plain data; executes no code.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as contents:
            arrays = {name: contents[name] for name in contents.files}
        notes = json.loads(str(arrays.pop("notes")))
    except OSError:
        raise
    except Exception as error:  # of zip, numpy or JSON
        raise ValueError(
            f"{path} holds no results ({error}); accepted: a file that this command wrote"
        ) from None
    return arrays, notes


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG of at most 256 colours.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = png(figure, DOTS_PER_INCH)
    with writing(path) as stream:
        stream.write(drawn)


def write_flow(path: Path, flow: HierarchicalFlow, metadata: Mapping[str, Any]) -> None:
    """Save a trained flow for ``--flow``.

    Raises:
        OSError: if it cannot be written.
    """
    save(path, flow, metadata=metadata)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
