# SPDX-License-Identifier: Apache-2.0
"""Runs that survive the end of their process: a folder of checkpoints, the newest intact."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number, check_type, see
from pyro_neuralrg.files.format import FileFormat, VersionError, one_line, remove_leftovers
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.processes import Processes

LOCK = ".lock"
"""Name of the file that is locked as long as a run uses the folder."""

ENERGY_TOLERANCE = 1e-3
"""Largest change of an energy that is computed again, relative to its size: other machines and
batch sizes round otherwise."""


class CheckpointError(ValueError):
    """A folder of checkpoints that a run cannot begin with; ``differing``: :func:`differences`."""

    def __init__(self, message: str, differing: Mapping[str, tuple[Any, Any]] | None = None):
        super().__init__(message)
        self.differing = differing or {}


@dataclass(frozen=True)
class Record:
    """Folder of checkpoints of a training or a sampling run, and how often they are written.

    The folder holds the newest checkpoints of one run as numbered files. Each is written under
    another name and then renamed, and begins with a checksum of all the rest; reading them executes
    nothing. A run that was killed at any moment goes on from the newest intact one with
    ``resume=True``, on a CPU with the very numbers of one that was not. Ctrl-C and SIGTERM end a
    recorded run after its present step, which is kept. A folder serves one run at a time, where
    the file system has locks; of several processes the first one reads and writes, for all.

    Args:
        folder: made if it is missing.
        every: seconds from one checkpoint to the next; one at the end comes in any case.
        every_steps: steps from one to the next, instead.
        keep: how many of them, the newest, are kept.
        resume: go on from the newest intact checkpoint; from the beginning without one.
        history: also write the steps of a training so far to ``history.csv``, as often.

    Example:
        >>> import tempfile
        >>> from pyro_neuralrg import IsingDual, fit
        >>> target = IsingDual((2, 2), temperature=3.0)
        >>> options = dict(steps=4, batch=8, seed=0, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = Record(folder)
        ...     part = fit(target, record=record, callback=lambda step: step.step == 1, **options)
        ...     rest = fit(target, record=Record(folder, resume=True), **options)
        >>> part.steps, rest.steps
        (2, 4)
        >>> bool((rest.history.free_energy == fit(target, **options).history.free_energy).all())
        True
    """

    folder: str | os.PathLike[str]
    _: KW_ONLY
    every: float = 60.0
    every_steps: int | None = None
    keep: int = 3
    resume: bool = False
    history: bool = False

    def __post_init__(self) -> None:
        check_type("folder", self.folder, str | os.PathLike, "a path")
        if self.folder == "":  # of which Path makes the current folder
            raise ValueError("folder is ''; accepted: a path")
        check_number("every", self.every, "a number of seconds >= 0", least=0)
        if self.every_steps is not None:
            check_integer("every_steps", self.every_steps, 1)
        check_integer("keep", self.keep, 1)
        check_type("resume", self.resume, bool, "True or False")
        check_type("history", self.history, bool, "True or False")


class Checkpoints:
    """The numbered files of one run, such as ``training-0000000123.pt``, locked in the block.

    Every method is called by all processes. ``unsaved`` says why the newest checkpoint could not be
    written, None if it could.
    """

    def __init__(self, record: Record, format: FileFormat, world: Processes) -> None:
        self.record, self.format, self.world = record, format, world
        self.folder = Path(record.folder)
        self.unsaved: str | None = None
        self._lock = filelock.FileLock(self.folder / LOCK, timeout=0)
        self._settings = ""
        self._newest: int | None = None
        self._written_at = 0.0

    def __enter__(self) -> Checkpoints:
        """Make and lock the folder, and remove what killed runs left there."""
        self.world.broadcast_from_first(self._open)
        self._written_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest intact checkpoint, if the record is to be resumed and there are any.

        Raises:
            CheckpointError: if there are checkpoints, but ``resume`` is False, they are of another
                version or other settings, or not one is intact.
        """
        self._settings = json.dumps(settings, default=lambda number: number.item())
        return self.world.broadcast_from_first(self._find)

    def is_due(self, step: int) -> bool:
        """True if it is time for another checkpoint, with ``step`` steps taken."""
        if self.record.every_steps is not None:
            return step % self.record.every_steps == 0
        return time.monotonic() - self._written_at >= self.record.every

    def keep(self, step: int, contents: Mapping[str, Any]) -> None:
        """Write the checkpoint of this step if it is not there yet, and remove the oldest ones.

        If it cannot be written, a warning says so, once until one can; the earlier ones stay.
        """
        self.unsaved = self.world.broadcast_from_first(lambda: self._keep(step, contents))
        self._written_at = time.monotonic()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            remove_leftovers(self.folder, f"{self.format.kind}-*.pt")
        except filelock.Timeout:
            raise CheckpointError(
                f"folder is {self.folder}, which another run uses right now; accepted: a folder of "
                "its own"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"folder is {self.folder} ({one_line(error)}); accepted: a folder that can be read "
                "and written"
            ) from None

    def _acquire(self) -> None:
        """Lock the folder, where the file system has locks."""
        with suppress(NotImplementedError):
            try:
                self._lock.acquire()
            except OSError as error:  # a Timeout is one, too
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
                    raise

    def _find(self) -> dict[str, Any] | None:
        try:
            files = self._files()
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read ({one_line(error)})") from None
        kind = self.format.kind
        if not files:
            if self.record.resume:
                warn_user(
                    f"{self.folder} holds no checkpoint yet: {kind} starts from the beginning"
                )
            return None
        if not self.record.resume:
            raise CheckpointError(
                f"folder is {self.folder}, which holds checkpoints of an earlier {kind} run; "
                f"accepted: resume=True, or a folder without checkpoints{see('error-checkpoint')}"
            )
        path, found = self._newest_intact(files)
        differing = differences(found["settings"], self._settings)
        if differing:
            seen = "; ".join(f"{k} {old!r} (here {new!r})" for k, (old, new) in differing.items())
            message = f"{path} is of another run, with {seen}; accepted: the same settings"
            raise CheckpointError(message + see("error-checkpoint"), differing)
        self._newest = int(path.stem.rpartition("-")[2])
        return found

    def _files(self) -> list[Path]:
        """The checkpoints, intact or not, the newest first."""
        # not by Path.glob, which makes an empty folder of one that cannot be read
        names = fnmatch.filter(os.listdir(self.folder), f"{self.format.kind}-*.pt")
        return [self.folder / name for name in sorted(names, reverse=True)]

    def _newest_intact(self, files: list[Path]) -> tuple[Path, dict[str, Any]]:
        failures: list[str] = []
        for path in files:
            try:
                found = self.format.read(path)
            except VersionError as error:
                raise CheckpointError(str(error)) from None
            except (ValueError, OSError) as error:
                failures.append(str(error))
                continue
            for failure in failures:
                warn_user(f"{failure}; going on from {path.name}")
            return path, found
        raise CheckpointError(f"no intact checkpoint in {self.folder}: {'; '.join(failures)}")

    def _keep(self, step: int, contents: Mapping[str, Any]) -> str | None:
        path = self.folder / f"{self.format.kind}-{step:010d}.pt"
        try:
            if self._newest != step or not path.exists():
                self.format.write(path, {"settings": self._settings, **contents})
                self._newest = step
                self._tidy(path)
        except OSError as error:
            reason = f"{path} cannot be written ({one_line(error)})"
            if self.unsaved is None:
                warn_user(f"{reason}; the run goes on without it")
            return reason
        return None

    def _tidy(self, newest: Path) -> None:
        """Remove all but the newest, and later ones, which were corrupt and have been redone."""
        files = self._files()
        later = [path for path in files if path.name > newest.name]
        for path in [*later, *files[len(later) + self.record.keep :]]:
            path.unlink(missing_ok=True)


def check_energies(folder: str | os.PathLike[str], saved: Tensor, present: Tensor) -> None:
    """Raise a CheckpointError if energies at the same fields differ: of another target."""
    difference = (present - saved).abs() / (1 + saved.abs())
    worst = float(torch.where(difference.isnan(), torch.inf, difference).max())
    if worst > ENERGY_TOLERANCE:
        raise CheckpointError(
            f"{os.fspath(folder)} holds checkpoints of another target: its energies are off by up "
            f"to {worst:.2g} of their size; accepted: the same energy, data and flow"
        )


def differences(saved: str, present: str) -> dict[str, tuple[Any, Any]]:
    """Every setting, as JSON, that differs: its value in a file, and the present one.

    Example:
        >>> differences('{"steps": 3, "shape": [4]}', '{"steps": 5, "shape": [4]}')
        {'steps': (3, 5)}
    """
    theirs, ours = dict(_flat(json.loads(saved))), dict(_flat(json.loads(present)))
    return {
        name: (theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    }


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
