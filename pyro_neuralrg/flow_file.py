# SPDX-License-Identifier: Apache-2.0
"""Trained flows in one file: JSON configuration and tensors, no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_neuralrg.arguments import check_type
from pyro_neuralrg.distributions.flow import flow_dtype_and_device
from pyro_neuralrg.files.format import FileFormat, one_line
from pyro_neuralrg.transforms import ConditionalHierarchicalFlow, HierarchicalFlow

FLOW_FORMAT = FileFormat("pyro_neuralrg.flow", version=4, writer="pyro_neuralrg.save")

KINDS = {kind.__name__: kind for kind in (HierarchicalFlow, ConditionalHierarchicalFlow)}


class Loaded(NamedTuple):
    """Contents of a file of :func:`save`: the flow in its dtype, and its metadata or {}."""

    flow: Any
    metadata: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    flow: HierarchicalFlow | ConditionalHierarchicalFlow,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a flow to ``path``, completely or not at all.

    Args:
        path: file to write; an existing one is replaced.
        flow: a HierarchicalFlow or a ConditionalHierarchicalFlow (for a SymmetrizedFlow or a
            FlowGuide: its ``.flow``). Other modules, an AutoHierarchicalFlow for one, hold a model,
            which no file takes: write ``torch.save(guide.state_dict(), path)``, and read with
            ``guide.load_state_dict(torch.load(path))`` into a guide made alike.
        metadata: JSON data to keep beside the flow (shape, temperature, seed, ...).

    Raises:
        TypeError: if ``flow`` is something else.
        ValueError: if ``metadata`` is not JSON data or ``flow`` has blocks from a user's own
            factory.
        OSError: if ``path`` cannot be written.
    """
    accepted = (
        f"{' or '.join(KINDS)}, or the .flow of a FlowGuide or a SymmetrizedFlow; an "
        "AutoHierarchicalFlow is written by torch.save(guide.state_dict(), path), and read by "
        "guide.load_state_dict(torch.load(path)) into a guide of the same model and options"
    )
    check_type("flow", flow, tuple(KINDS.values()), accepted)
    kind = next(name for name, known in KINDS.items() if isinstance(flow, known))
    try:
        described = json.dumps(dict(metadata or {}))
    except TypeError as error:
        raise ValueError(
            f"metadata is not JSON data ({error}); accepted: numbers, strings, lists, dicts"
        ) from None
    dtype, _ = flow_dtype_and_device(flow)
    contents = {
        "config": json.dumps({"kind": kind, **flow.config}),
        "dtype": str(dtype).removeprefix("torch."),
        "state_dict": {name: tensor.detach() for name, tensor in flow.state_dict().items()},
        "metadata": described,
    }
    FLOW_FORMAT.write(Path(path), contents)


def load(path: str | os.PathLike[str], map_location: Any = "cpu") -> Loaded:
    """Read a file of :func:`save`; never executes code from it.

    Args:
        path: the file.
        map_location: device of the flow.

    Raises:
        FileNotFoundError, OSError: if there is no such file, or it cannot be read.
        ValueError: if the file is corrupt, of another version, or holds anything but tensors and
            plain data; if torch does not find the device.
    """
    try:
        device = torch.empty(0, device=map_location).device
    except Exception as error:  # whatever its backend raises
        raise ValueError(
            f"map_location is {map_location!r}; accepted: a device that torch finds here "
            f"({one_line(error)})"
        ) from None
    payload = FLOW_FORMAT.read(Path(path))
    try:
        config = json.loads(payload["config"])
        flow = KINDS[config.pop("kind")].from_config(config)
        flow = flow.to(dtype=getattr(torch, payload["dtype"]), device=device)
        flow.load_state_dict(payload["state_dict"])
        metadata = dict(json.loads(payload["metadata"]))
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} holds a flow that cannot be built ({one_line(error)}); "
            f"{FLOW_FORMAT.accepted}"
        ) from None
    return Loaded(flow, metadata)
