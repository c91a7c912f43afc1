# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One figure of the paper from beginning to end: check, compute, write, draw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pyro_neuralrg.paper import fig3a, fig3b, fig4a, fig4b, sweep
from pyro_neuralrg.paper.files import write_figure
from pyro_neuralrg.paper.start import Prepared, Start

__all__ = ["FIGURES", "Job", "make_folder", "prepare", "redraw"]


class Kind(NamedTuple):
    """What makes one figure.

    Attributes:
        settings: Of a start, at full length.
        small: Likewise, in seconds.
        compute: The results, of settings, what is prepared and a folder that they are written to.
        read: The results of an earlier run, of the folder that they were written to.
        draw: A figure of the results.
        describe: Lines of text about them.
        about: One line of help.
        own: Fields of the settings that the command line asks for.
    """

    settings: Callable[[Start], Any]
    small: Callable[[Start], Any]
    compute: Callable[[Any, Prepared, Path], Any]
    read: Callable[[Path], Any]
    draw: Callable[[Any], Figure]
    describe: Callable[[Any], list[str]]
    about: str
    own: tuple[str, ...] = ()


FIGURES = {
    "fig3a": Kind(
        fig3a.Settings, fig3a.Settings.small, fig3a.compute, fig3a.Results.read,
        fig3a.draw, fig3a.describe,
        "free energy and its error against training step",
    ),
    "fig3b": Kind(
        fig3b.Settings, fig3b.Settings.small, fig3b.compute, fig3b.Results.read,
        fig3b.draw, fig3b.describe,
        "structure factor in latent and in physical space from one cold start",
        own=("chains", "trajectories"),
    ),
    "fig4a": Kind(
        fig4a.Settings, fig4a.Settings.small, fig4a.compute, fig4a.Results.read,
        fig4a.draw, fig4a.describe,
        "responses of the collective variables of every scale",
        own=("seeds",),
    ),
    "fig4b": Kind(
        fig4b.Settings, fig4b.Settings.small, fig4b.compute, fig4b.Results.read,
        fig4b.draw, fig4b.describe,
        "mutual information of the field and of the latents; makes Fig. 4(c) too",
    ),
    "sweep": Kind(
        sweep.Settings, sweep.Settings.small, sweep.compute, sweep.Results.read,
        sweep.draw, sweep.describe,
        "temperatures and depths at a fixed budget a point; goes on where it was stopped",
        own=("temperatures", "depths", "seconds", "circuits"),
    ),
}  # fmt: skip
"""The figures by name."""


@dataclass(frozen=True)
class Job:
    """A figure that is checked and ready; make one with :func:`prepare`.

    Attributes:
        name: Of the figure.
        settings: Of its module.
        prepared: Target and flow.
    """

    name: str
    settings: Any
    prepared: Prepared

    def run(self, folder: Path) -> list[str]:
        """Compute, write the results and the figure, and return lines about them.

        Raises:
            OSError: if a file cannot be written.
        """
        kind = FIGURES[self.name]
        results = kind.compute(self.settings, self.prepared, folder)
        write_figure(folder / f"{self.name}.png", kind.draw(results))
        return kind.describe(results)


def prepare(
    name: str, start: Start, *, small: bool = False, own: Mapping[str, Any] | None = None
) -> Job:
    """Check everything before any work is done.

    Args:
        name: Of the figure, one of ``FIGURES``.
        start: The model and where its flow comes from.
        small: Make it in seconds, to see that all works.
        own: Settings of this figure that differ from its defaults, those that its ``own`` names.

    Raises:
        ValueError, TypeError: naming what is not accepted.
        OSError: if the file of a flow cannot be read.

    Example:
        >>> prepare("fig4a", Start(shape=(4, 4)), own={"seeds": 2}).settings.seeds
        2
    """
    kind = _kind(name)
    own = {} if own is None else own
    for option, value in own.items():
        owners = [figure for figure, other in FIGURES.items() if option in other.own]
        if name not in owners:
            raise ValueError(f"{option} is {value}; accepted for {' and '.join(owners)} only")
    _check_training(name, start, own)
    settings = replace(kind.small(start) if small else kind.settings(start), **own)
    job = Job(name, settings, settings.start.prepare())
    if isinstance(settings, sweep.Settings):
        sweep.cases(settings, job.prepared.target.shape)
    return job


def _check_training(name: str, start: Start, own: Mapping[str, Any]) -> None:
    """What is asked of a training must be of use."""
    asked = {"steps": start.steps, "batch": start.batch, "seeds": own.get("seeds")}
    if name == "sweep":
        if start.saved is not None:
            raise ValueError(
                f"flow is {start.saved}; accepted: none, as the sweep trains one for every point"
            )
        if start.steps is not None:
            raise ValueError(f"steps is {start.steps}; accepted: none, as a point has its seconds")
    elif start.saved is not None and name != "fig3a":
        for option, value in asked.items():
            if value is not None:
                raise ValueError(
                    f"{option} is {value}; accepted: none beside a saved flow, as {name} trains it "
                    "no further"
                )


def redraw(name: str, folder: Path) -> list[str]:
    """Draw the figure again from the results of an earlier run, and return lines about them.

    Raises:
        OSError: if there are no results, or the figure cannot be written.
        ValueError: if a file holds no results, or those of another version.
    """
    kind = _kind(name)
    try:
        results = kind.read(folder)
        figure = kind.draw(results)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds results that cannot be read ({error}); accepted: those of this version"
        ) from None
    write_figure(folder / f"{name}.png", figure)
    return kind.describe(results)


def _kind(name: str) -> Kind:
    if name not in FIGURES:
        raise ValueError(f"figure is {name!r}; accepted: {', '.join(FIGURES)}")
    return FIGURES[name]


def make_folder(folder: Path) -> Path:
    """Make the folder and see that it can be written, before any work is done.

    Raises:
        OSError: It cannot; the message names the argument and the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"argument --out: {folder}: {error.strerror or error}; accepted: a writable folder"
        ) from None
    return folder
