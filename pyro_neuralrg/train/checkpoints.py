# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Trainings that survive the end of their process: a folder of checkpoints, the newest intact."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.files.atomic import held, remove_leftovers
from pyro_neuralrg.files.format import FileFormat, VersionError, differences, named, one_line
from pyro_neuralrg.files.interval import Interval, attempt
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.train.loop import Training
from pyro_neuralrg.train.schedule import Schedule

__all__ = ["FORMAT", "CheckpointError", "Checkpoints", "described"]

FORMAT = FileFormat(
    name="pyro_neuralrg.training",
    version=2,
    writer="fit(..., checkpoint=...)",
    entries={
        "settings": (str,),
        "training": (dict,),
        "random": (dict,),
        "energies": (Tensor, type(None)),
    },
    sealed=True,
)

PATTERN = "training-*.pt"

LOCK = ".training.lock"
"""A file that is there, and locked, as long as a training uses the folder."""

KEEP = 3
"""Checkpoints, if nothing else is said."""

ENERGY_TOLERANCE = 1e-3
"""Of energies computed again, relative to their size: other machines round otherwise."""


class CheckpointError(ValueError):
    """A folder of checkpoints that a training cannot begin with; the message says why."""


class Checkpoints:
    """A folder with the newest states of one training, ``training-<steps taken>.pt``.

    Each is written under another name and then renamed, so that whatever happens there are whole
    files only, and begins with a checksum of all the rest. Reading them executes nothing. With
    several processes the first one reads and writes, for all. A folder serves one training at a
    time: from :meth:`begin` to :meth:`end` no other one can begin in it, where the file system has
    locks.

    Args:
        folder: made if it is missing.
        every: seconds from one checkpoint to the next; None: 60.
        every_steps: steps from one to the next, instead.
        keep: how many there are at most; None: three.

    Attributes:
        unsaved: why the newest checkpoint could not be written; None if it could.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> import tempfile
        >>> from pyro_neuralrg import IsingDual, fit
        >>> target = IsingDual((2, 2), temperature=3.0)
        >>> options = dict(steps=4, batch=8, seed=0, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     part = fit(
        ...         target, checkpoint=folder, callback=lambda step: step.step == 1, **options
        ...     )
        ...     rest = fit(target, checkpoint=folder, resume=True, **options)
        >>> part.steps, rest.steps
        (2, 4)
        >>> bool((rest.history.free_energy == fit(target, **options).history.free_energy).all())
        True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: float | None = None,
        every_steps: int | None = None,
        keep: int | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"checkpoint is {folder!r}; accepted: a folder")
        if folder == "":  # of which Path makes the current folder
            raise ValueError("checkpoint is ''; accepted: a folder")
        self.folder = Path(folder)
        self.interval = Interval(every, every_steps)
        self.number = check_integer("keep", KEEP if keep is None else keep, 1)
        self.settings = ""
        self.unsaved: str | None = None
        self._use = contextlib.ExitStack()

    def begin(self, training: Training, settings: str, resume: bool) -> None:
        """Load the newest intact checkpoint into the training, or see that there is none.

        Args:
            training: before its first step.
            settings: what must be the same, see :func:`described`.
            resume: load it.

        Raises:
            CheckpointError: if the folder cannot be made, or another training uses it; if there are
                checkpoints, but ``resume`` is False, they are of another training or another
                version, or none is intact.
        """
        self.settings = settings
        found = training.world.from_first(lambda: self._prepare(training, resume))
        if found is not None:
            training.load_state_dict(found["training"])
            _set_random_state(found["random"], training)
        self.interval.begin()

    def end(self) -> None:
        """Let others use the folder."""
        self._use.close()

    def has_any(self) -> bool:
        """Whether the folder holds checkpoints of a training, intact or not.

        Raises:
            OSError: if it cannot be read.
        """
        return bool(self._files())

    def is_due(self, step: int) -> bool:
        """Whether it is time for another checkpoint, with ``step`` steps taken."""
        return self.interval.is_over(step)

    def keep(self, training: Training) -> None:
        """Write a checkpoint of the training between two steps, and remove the oldest ones.

        Warns:
            UserWarning: if it cannot be written, once until one can; the training can go on all the
                same, and those that were written before stay.
        """
        random = _random_state(training)
        if training.world.is_first:
            path = self.folder / f"training-{training.step:010d}.pt"
            contents = {
                "settings": self.settings,
                "training": training.state_dict(),
                "random": random,
                "energies": _energies(training),
            }

            def write() -> None:
                FORMAT.write(path, contents)
                self._tidy(path)

            self.unsaved = attempt(write, path, "the training", self.unsaved is not None)
        self.interval.begin()

    def _prepare(self, training: Training, resume: bool) -> dict[str, Any] | None:
        """Make the folder and read the newest intact checkpoint, if there are any."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._use.enter_context(held(self.folder / LOCK))
            remove_leftovers(self.folder, PATTERN)
            files = self._files()
        except BlockingIOError:
            raise CheckpointError(
                f"checkpoint is {self.folder}, which another training uses right now; accepted: "
                "a folder of its own"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"checkpoint is {self.folder} ({one_line(error)}); accepted: a folder that can be "
                "read and written"
            ) from None
        if files and not resume:
            raise CheckpointError(
                f"checkpoint is {self.folder}, which holds those of an earlier training; accepted: "
                "resume=True, or a folder without checkpoints"
            )
        if not files:
            if resume:
                warnings.warn(
                    f"{self.folder} holds no checkpoint yet: training starts from the beginning",
                    stacklevel=2,
                )
            return None
        path, found = self._newest(files)
        _check_same(path, found["settings"], self.settings)
        _check_energies(path, found["energies"], _energies(training))
        return found

    def _newest(self, files: list[Path]) -> tuple[Path, dict[str, Any]]:
        """The newest file that is intact; a warning names those that are not."""
        failures, none_is = [], "is intact"
        for path in files:
            try:
                found = FORMAT.read(path)
            except VersionError as error:
                raise CheckpointError(str(error)) from None
            except (ValueError, OSError) as error:
                failures.append(str(error))
                if isinstance(error, OSError):  # it may be intact
                    none_is = "can be read"
                continue
            for failure in failures:
                warnings.warn(f"{failure}; going on from {path.name}", stacklevel=2)
            return path, found
        raise CheckpointError(
            f"checkpoint is {self.folder}, where none {none_is}: {'; '.join(failures)}"
        )

    def _files(self) -> list[Path]:
        """The checkpoints, the newest first.

        Raises:
            OSError: if the folder cannot be read, of which ``Path.glob`` makes an empty one.
        """
        names = fnmatch.filter(os.listdir(self.folder), PATTERN)
        return [self.folder / name for name in sorted(names, reverse=True)]

    def _tidy(self, newest: Path) -> None:
        """Remove all but the newest, and later ones, which were corrupt and have been redone."""
        files = self._files()
        later = [path for path in files if path.name > newest.name]
        for path in [*later, *files[len(later) + self.number :]]:
            path.unlink(missing_ok=True)


def described(training: Training, flow: Any, schedule: Schedule, options: Mapping[str, Any]) -> str:
    """What must be the same for a training to go on, as JSON.

    Args:
        training: the training.
        flow: what it trains.
        schedule: its steps, batch and learning rate.
        options: others of :func:`~pyro_neuralrg.train.training.fit`.
    """
    target, like = training.target, training.optimizer.parameters[0]
    temperature = getattr(target, "temperature", None)
    return json.dumps(
        {
            **schedule._asdict(),
            **options,
            "warmup": training.warmup,
            "clip": training.optimizer.clip,
            "anneal": training.anneal,
            "path_gradient": (
                "after cooling" if training.path_after_cooling else training.elbo.path_gradient
            ),
            "processes": training.world.size,
            "dtype": str(like.dtype),
            "device": like.device.type,
            "parameters": sum(parameter.numel() for parameter in training.optimizer.parameters),
            "target": {
                "kind": getattr(target, "__qualname__", type(target).__qualname__),
                "shape": list(getattr(target, "shape", ())),
                "boundary": getattr(target, "boundary", None),
                "temperature": temperature if isinstance(temperature, float) else None,
            },
            "flow": {
                "kind": getattr(flow, "__qualname__", type(flow).__qualname__),
                **_config(flow),
            },
        },
        default=_plain,
    )


def _plain(value: Any) -> Any:
    """Numbers of NumPy and of tensors."""
    return value.item()


def _config(flow: Any) -> dict[str, Any]:
    """The configuration of a flow, or of the flow of a guide, if it has one."""
    owners: tuple[Any, ...] = (flow, getattr(flow, "flow", None))
    for owner in owners:
        with contextlib.suppress(ValueError, AttributeError):
            return dict(owner.config)
    return {}


def _check_same(path: Path, saved: str, present: str) -> None:
    """Raise a CheckpointError that names every setting of the file which is not that of now."""
    differing = differences(saved, present)
    if differing:
        raise CheckpointError(
            f"{path} is of another training, with {named(differing)}; accepted: the same "
            "target, flow and settings"
        )


def _energies(training: Training) -> Tensor | None:
    """Of a few fixed fields: two targets of one name and shape differ in them."""
    if not isinstance(training.target, LatticePotential):
        return None
    return training.target.try_energy(like=training.optimizer.parameters[0])[1].cpu()


def _check_energies(path: Path, saved: Tensor | None, present: Tensor | None) -> None:
    if saved is None or present is None:
        return
    worst = float(((saved - present).abs() / (1 + present.abs())).max())
    if not worst <= ENERGY_TOLERANCE:
        raise CheckpointError(
            f"{path} is of another target: its energies are off by {worst:.2g} of their size; "
            "accepted: the same energy"
        )


def _random_state(training: Training) -> dict[str, Tensor]:
    """States of torch's generators, one row for each process."""
    found = {"cpu": training.world.gather(torch.random.get_rng_state()[None])}
    device = training.optimizer.parameters[0].device
    if device.type == "cuda":
        found["cuda"] = training.world.gather(torch.cuda.get_rng_state(device)[None])
    return found


def _set_random_state(saved: Mapping[str, Tensor], training: Training) -> None:
    world: Processes = training.world
    torch.random.set_rng_state(saved["cpu"][world.rank].clone())
    if "cuda" in saved:
        device = training.optimizer.parameters[0].device
        torch.cuda.set_rng_state(saved["cuda"][world.rank].clone(), device)
