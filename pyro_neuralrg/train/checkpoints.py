# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Contents of a training's checkpoints beside its state, and settings that must agree."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.runtime.processes import Processes

FORMAT = FileFormat(
    name="pyro_neuralrg.training",
    version=3,
    writer="fit(..., record=Record(...))",
    entries={
        "settings": (str,),
        "training": (dict,),
        "random": (dict,),
        "energies": (Tensor, type(None)),
    },
)


def random_state(world: Processes, device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators, one row for each process."""
    found = {"cpu": world.gather(torch.random.get_rng_state()[None])}
    if device.type == "cuda":
        found["cuda"] = world.gather(torch.cuda.get_rng_state(device)[None])
    return found


def set_random_state(saved: Mapping[str, Tensor], world: Processes, device: torch.device) -> None:
    """Set torch's generators to a state of :func:`random_state`."""
    torch.random.set_rng_state(saved["cpu"][world.rank].clone())
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"][world.rank].clone(), device)


def trial_energies(target: Any, like: Tensor) -> Tensor | None:
    """Energies of a few fixed fields: two targets of one name and shape differ in them."""
    if not isinstance(target, LatticePotential):
        return None
    return target.try_energy(like=like)[1].cpu()


def describe(owner: Any) -> dict[str, Any]:
    """Kind of a target or a flow, with what it tells of itself in plain numbers and words."""
    known: dict[str, Any] = {"kind": getattr(owner, "__qualname__", type(owner).__qualname__)}
    for name in ("shape", "boundary", "temperature"):
        value = getattr(owner, name, None)
        if isinstance(value, float | str | tuple):
            known[name] = value
    flows: tuple[Any, ...] = (owner, getattr(owner, "flow", None))  # the second of a guide
    for flow in flows:
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            return known | flow.config
    return known
