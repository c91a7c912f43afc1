# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A run in a file: where it stands and what it has drawn."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.files.atomic import also_named, remove_leftovers
from pyro_neuralrg.files.format import (
    DamagedFileError,
    FileFormat,
    OtherRunError,
    differences,
    named,
)
from pyro_neuralrg.mcmc.adaptation import Adaptation
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.runtime.processes import Processes

__all__ = [
    "FORMAT",
    "chains_of",
    "check_path",
    "check_same",
    "clean_up",
    "described",
    "is_there",
    "joined",
    "keep_before",
    "kernel_of",
    "previous",
    "read_newest",
    "tuning",
]

FORMAT = FileFormat(
    name="pyro_neuralrg.sampling",
    version=3,
    writer="VectorizedMCMC.save",
    entries={
        "settings": (str,),
        "seed": (int,),
        "kernel": (dict,),
        "chains": (dict,),
        "random": (Tensor,),
        "warmup": (dict, type(None)),
        "records": (dict,),
        "costs": (dict,),
    },
    sealed=True,
)

#: Of energies computed again: other batch sizes and machines round otherwise.
ENERGY_TOLERANCE = 1e-3


def check_path(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """As a path; that it cannot be written should not be found out after the draws."""
    if checkpoint == "":  # of which Path makes the current folder
        raise ValueError("checkpoint is ''; accepted: a file in a folder that exists")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(
            f"checkpoint is {str(path)!r}, and there is no folder {str(path.parent)!r}; accepted: "
            "a file in a folder that exists"
        )
    return path


def previous(path: Path, number: int = 1) -> Path:
    """Where the file is kept that was the newest so many files ago."""
    mark = "previous" if number == 1 else f"previous-{number}"
    return path.with_name(f"{path.stem}.{mark}{path.suffix}")


def keep_before(path: Path, keep: int = 2, verify: bool = False) -> None:
    """Let the present file, if there is one, be the one before, too: at no moment is it missing.

    Those before it move on, as far as there are to be ``keep`` files with the next one. With
    ``verify`` only if it is intact: the one before may be what the run goes on from. Nothing moves
    if it is the one before already, after which the next file could not be put in its place.
    """
    if not path.is_file():
        return
    with contextlib.suppress(FileNotFoundError):
        if path.samefile(previous(path)):
            return
    if verify:
        try:
            FORMAT.read(path)
        except (ValueError, OSError):
            return
    for number in range(keep - 2, 0, -1):
        with contextlib.suppress(FileNotFoundError):  # one was killed just here
            os.replace(previous(path, number), previous(path, number + 1))
    if keep > 1:
        also_named(path, previous(path))
    for number, file in _before(path).items():
        if number >= keep:
            file.unlink(missing_ok=True)


def _before(path: Path) -> dict[int, Path]:
    """The files before the newest one by their number, as far as there are any."""
    files = path.parent.glob(_pattern(path))
    marks = {file.stem.removeprefix(f"{path.stem}.previous") or "-1": file for file in files}
    numbered = {
        int(mark[1:]): file
        for mark, file in marks.items()
        if mark[0] == "-" and mark[1:].isdecimal()
    }
    return dict(sorted(numbered.items()))


def _pattern(path: Path) -> str:
    return f"{glob.escape(path.stem)}.previous*{glob.escape(path.suffix)}"


def _candidates(path: Path) -> list[Path]:
    """The file and those before it, the newest first; the first two may be missing."""
    return [path, *({1: previous(path)} | _before(path)).values()]


def clean_up(path: Path) -> None:
    """Remove what runs left that were killed while they wrote this file or one before it."""
    for names in (glob.escape(path.name), _pattern(path)):
        remove_leftovers(path.parent, names)


def is_there(path: Path) -> bool:
    """Whether there is a file, or one before it.

    Raises:
        OSError: if that cannot be told.
    """
    for file in _candidates(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            file.stat()
            return True
    return False


def read_newest(path: Path) -> dict[str, Any]:
    """The contents of a file; of one before it, if that is damaged, missing or unreadable.

    Raises:
        OSError: if one cannot be read that may be intact, and no other is.
        DamagedFileError: if there is none that is intact (a ValueError).
        FileNotFoundError: if there is none at all.
        ValueError: if the file is of another version or format.

    Warns:
        UserWarning: if one before is used.
    """
    failures: list[Exception] = []
    for file in _candidates(path):
        try:
            found = FORMAT.read(file)
        except (ValueError, OSError) as error:
            if not failures and not isinstance(error, DamagedFileError | OSError):
                raise
            failures.append(error)
            continue
        for failure in failures:
            warnings.warn(f"{_said(failure)}; going on from {file}", stacklevel=3)
        return found
    failures.sort(key=_hope, reverse=True)
    raise failures[0]


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is missing"
    return str(error)


def _hope(error: Exception) -> int:
    """Of finding the file intact another time: most where it could not be read."""
    if isinstance(error, OSError):
        return 0 if isinstance(error, FileNotFoundError) else 2
    return 1


def described(kernel: Kernel, adaptation: Adaptation, settings: Mapping[str, Any]) -> str:
    """What must be the same for a run to go on, as JSON."""
    target = kernel.target
    return json.dumps(
        {
            "kernel": {
                name: type(member).__name__
                for name, member in {"whole": kernel, **kernel.members}.items()
            },
            "options": {name: _options(member) for name, member in kernel.members.items()}
            | ({} if list(kernel.members) == [kernel.name] else {"whole": _options(kernel)}),
            "sites": {name: list(shape) for name, shape in target.sites.items()},
            "dtype": str(target.dtype),
            "device": target.device.type,
            "adaptation": asdict(adaptation),
            **settings,
        }
    )


def _options(kernel: Kernel) -> dict[str, Any]:
    """What a kernel was made with beside its target, but for what warm-up adapts."""
    adapted = {"step_size", "trajectory_length"}
    return {
        name: value
        for name, value in vars(kernel).items()
        if name not in adapted
        and isinstance(value, int | float | str | tuple)
        and not name.startswith("_")
    }


def check_same(path: Any, saved: str, present: str, **more: tuple[Any, Any]) -> None:
    """Raise an OtherRunError that names every setting of the file which is not that of this run.

    Args:
        path: the file.
        saved: its settings.
        present: those of this run.
        **more: other settings, there and here.
    """
    differing = differences(saved, present)
    differing |= {name: both for name, both in more.items() if both[0] != both[1]}
    if differing:
        raise OtherRunError(
            f"{path} is of another run, with {named(differing)}; accepted: the same kernel, target "
            "and settings",
            differing,
        )


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


def chains_of(path: Any, kernel: Kernel, saved: Mapping[str, Any], rows: slice) -> ChainState:
    """The state of these chains in a file, if their energies are those of the kernel's target."""
    device = kernel.target.device
    tensors = {name: value[rows] for name, value in saved.items() if isinstance(value, Tensor)}
    state = ChainState(**{**saved, **{name: value.to(device) for name, value in tensors.items()}})
    found = kernel.target.energy(state.position)
    difference = (found - state.energy).abs() / (1 + state.energy.abs())
    worst = float(torch.where(difference.isnan(), torch.inf, difference).max())
    if worst > ENERGY_TOLERANCE:
        raise ValueError(
            f"{path} is of another target: its energies are off by up to {worst:.2g} of their "
            "size; accepted: the same energy, data and flow"
        )
    return state
