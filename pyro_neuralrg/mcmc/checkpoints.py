# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Contents of a sampling run's checkpoints: settings, adapted kernels and chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.mcmc.adaptation import Adaptation
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.runtime.processes import Processes

FORMAT = FileFormat(
    name="pyro_neuralrg.sampling",
    version=4,
    writer="VectorizedMCMC(..., record=Record(...))",
    entries={
        "settings": (str,),
        "seed": (int,),
        "kernel": (dict,),
        "chains": (dict,),
        "random": (Tensor,),
        "warmup": (dict, type(None)),
        "rows": (dict,),
        "mark": (dict,),
    },
)


def describe(kernel: Kernel, adaptation: Adaptation) -> dict[str, Any]:
    """Settings of kernel, target and warm-up that must be the same for a run to go on."""
    target = kernel.target
    composed = list(kernel.members) != [kernel.name]
    return {
        "kernel": {
            name: type(member).__name__
            for name, member in {"whole": kernel, **kernel.members}.items()
        },
        "options": {name: _options(member) for name, member in kernel.members.items()}
        | ({"whole": _options(kernel)} if composed else {}),
        "sites": {name: list(shape) for name, shape in target.sites.items()},
        "dtype": str(target.dtype),
        "device": target.device.type,
        "adaptation": asdict(adaptation),
    }


def _options(kernel: Kernel) -> dict[str, Any]:
    """Options of a kernel beside its target, as it was given; of a mass, its sum."""
    options: dict[str, Any] = {
        name: value
        for name, value in vars(kernel).items()
        if isinstance(value, int | float | str | tuple) and not name.startswith("_")
    }
    if kernel.inverse_mass is not None:
        options["inverse_mass"] = float(kernel.inverse_mass.sum())
    return options


def tuning(kernel: Kernel) -> dict[str, dict[str, Any]]:
    """Step size, inverse mass and trajectory length of each member, by its name."""
    return {
        name: {
            "step_size": member.step_size,
            "inverse_mass": member.inverse_mass,
            "trajectory_length": member.trajectory_length,
        }
        for name, member in kernel.members.items()
    }


def kernel_of(kernel: Kernel, tuned: Mapping[str, Mapping[str, Any]]) -> Kernel:
    """The kernel with the :func:`tuning` of a file."""
    device = kernel.target.device
    members = kernel.members
    for name, member in members.items():
        values = dict(tuned[name])
        if values["inverse_mass"] is not None:
            values["inverse_mass"] = values["inverse_mass"].to(device)
        members[name] = member.tuned(**values)
    return kernel.with_members(members)


def joined(values: Mapping[str, Any], world: Processes, axis: int = 0) -> dict[str, Any]:
    """The mapping with its tensors, whose ``axis`` is that of the chains, of all processes."""
    return {
        name: world.gather(value.movedim(axis, 0)).movedim(0, axis)
        if isinstance(value, Tensor)
        else value
        for name, value in values.items()
    }


def chains_of(kernel: Kernel, saved: Mapping[str, Any], rows: slice) -> ChainState:
    """The state of these chains in a file, on the kernel's device."""
    device = kernel.target.device
    entries: dict[str, Any] = {
        name: value[rows].to(device) if isinstance(value, Tensor) else value
        for name, value in saved.items()
    }
    return ChainState(**entries)
