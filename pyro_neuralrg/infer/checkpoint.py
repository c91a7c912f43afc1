# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Trained flows in one file: JSON configuration and tensors, no code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_neuralrg.transforms import ConditionalHierarchicalFlow, HierarchicalFlow

__all__ = ["Loaded", "load", "save"]

FORMAT = "pyro_neuralrg.flow"
VERSION = 2

#: What a file holds beside its format and version, and of which types.
ENTRIES: dict[str, tuple[type, ...]] = {
    "config": (str,),
    "dtype": (str,),
    "state_dict": (dict,),
    "optimizer": (dict, type(None)),
    "metadata": (str,),
    "sha256": (str,),
}

#: What can be saved, by the name that the file has for it.
KINDS: dict[str, type[HierarchicalFlow] | type[ConditionalHierarchicalFlow]] = {
    kind.__name__: kind for kind in (HierarchicalFlow, ConditionalHierarchicalFlow)
}


class Loaded(NamedTuple):
    """Contents of a file of :func:`save`.

    Attributes:
        flow: the flow, with its weights, in its dtype.
        optimizer_state: for ``fit(..., optimizer_state=...)``, or None.
        metadata: what was given to :func:`save`, else an empty dictionary.
    """

    flow: Any
    optimizer_state: dict[str, Any] | None
    metadata: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    flow: HierarchicalFlow | ConditionalHierarchicalFlow,
    *,
    optimizer: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a flow to ``path``, completely or not at all.

    Args:
        path: file to write; an existing one is replaced.
        flow: a HierarchicalFlow or a ConditionalHierarchicalFlow (for a SymmetrizedFlow or a
            guide: its ``.flow``).
        optimizer: ``FitResult.optimizer_state``, so that a training can go on later.
        metadata: JSON data to keep beside the flow (shape, temperature, seed, ...).

    Raises:
        TypeError: if ``flow`` is something else.
        ValueError: if ``metadata`` is not JSON data or ``flow`` has blocks from a user's own
            factory.
        OSError: if ``path`` cannot be written.
    """
    kind = next((name for name, known in KINDS.items() if isinstance(flow, known)), None)
    if kind is None:
        raise TypeError(
            f"flow is a {type(flow).__name__}; accepted: {' or '.join(KINDS)} "
            "(the .flow of a guide)"
        )
    try:
        described = json.dumps(dict(metadata or {}))
    except TypeError as error:
        raise ValueError(
            f"metadata is not JSON data ({error}); accepted: numbers, strings, lists, dicts"
        ) from None
    weights = flow.state_dict()
    contents = {
        "config": json.dumps({"kind": kind, **flow.config}),
        "dtype": _dtype_name(flow),
        "state_dict": {name: tensor.detach() for name, tensor in weights.items()},
        "optimizer": None if optimizer is None else dict(optimizer),
        "metadata": described,
    }
    payload = {"format": FORMAT, "version": VERSION, **contents, "sha256": checksum(contents)}
    _write(Path(path), payload)


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
    device = _device(map_location)
    payload = _read(Path(path))
    try:
        config = json.loads(payload["config"])
        flow = KINDS[config.pop("kind", HierarchicalFlow.__name__)].from_config(config)
        flow = flow.to(dtype=getattr(torch, payload["dtype"]), device=device)
        flow.load_state_dict(payload["state_dict"])
        metadata = dict(json.loads(payload["metadata"]))
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)} holds a flow that cannot be built ({_one_line(error)}); "
            f"accepted: a file of pyro_neuralrg.save, version {VERSION}"
        ) from None
    return Loaded(flow, payload["optimizer"], metadata)


def _write(path: Path, payload: dict[str, Any]) -> None:
    """Write under a temporary name in the same folder, then rename.

    Opened as any other file, not by ``tempfile``, so that it gets the permissions of one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            torch.save(payload, stream)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: Path) -> dict[str, Any]:
    """The contents, checked for format, version, types and checksum."""
    accepted = f"accepted: a file of pyro_neuralrg.save, version {VERSION}"
    with path.open("rb") as stream:
        try:
            payload = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is corrupt or holds more than tensors and plain data "
                f"({_one_line(error)}); {accepted}"
            ) from None
    known = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(known, str) or known != FORMAT:
        raise ValueError(f"{path} is not a saved flow; {accepted}")
    version = payload.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{path} has version {str(version)[:40]}; {accepted}")
    missing = set(ENTRIES) - set(payload)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; {accepted}")
    for name, types in ENTRIES.items():
        if not isinstance(payload[name], types):
            seen = type(payload[name]).__name__
            raise ValueError(f"{path} is corrupt: its {name} is a {seen}; {accepted}")
    if payload["sha256"] != checksum({name: payload[name] for name in ENTRIES if name != "sha256"}):
        raise ValueError(f"{path} is corrupt: its checksum is not that of its contents; {accepted}")
    return payload


def checksum(value: Any) -> str:
    """SHA-256 over plain data and tensors, down to their bytes.

    Torch's own reader does not check those.
    """
    found = hashlib.sha256()
    if isinstance(value, Mapping):
        for key, entry in value.items():
            found.update(f"{key!r}: {checksum(entry)}".encode())
    elif isinstance(value, list | tuple):
        for entry in value:
            found.update(checksum(entry).encode())
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(f"{type(value).__name__} {value!r}".encode())
    return found.hexdigest()


def _device(map_location: Any) -> torch.device:
    """The device, if torch finds it."""
    try:
        return torch.empty(0, device=map_location).device
    except Exception as error:  # whatever its backend raises
        raise ValueError(
            f"map_location is {map_location!r}; accepted: a device that torch finds here "
            f"({_one_line(error)})"
        ) from None


def _dtype_name(flow: nn.Module) -> str:
    """Name of the dtype of the flow's parameters, such as "float64"."""
    for tensor in flow.state_dict().values():
        if tensor.is_floating_point():
            return str(tensor.dtype).removeprefix("torch.")
    return str(torch.get_default_dtype()).removeprefix("torch.")


def _one_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
