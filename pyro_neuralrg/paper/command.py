# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One figure of the paper from beginning to end: check, compute, write, draw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pyro_neuralrg.paper import fig3a, fig3b, fig4a, fig4b, sweep
from pyro_neuralrg.paper.files import write_figure
from pyro_neuralrg.paper.start import Prepared, Start

__all__ = ["FIGURES", "Job", "make_folder", "prepare"]


class Kind(NamedTuple):
    """What makes one figure.

    Attributes:
        settings: Of a start, at full length.
        small: Likewise, in seconds.
        compute: The results, of settings, what is prepared and a folder that they are written to.
        draw: A figure of the results.
        describe: Lines of text about them.
        about: One line of help.
    """

    settings: Callable[[Start], Any]
    small: Callable[[Start], Any]
    compute: Callable[[Any, Prepared, Path], Any]
    draw: Callable[[Any], Figure]
    describe: Callable[[Any], list[str]]
    about: str


FIGURES = {
    "fig3a": Kind(
        fig3a.Settings, fig3a.Settings.small, fig3a.compute, fig3a.draw, fig3a.describe,
        "free energy and its error against training step",
    ),
    "fig3b": Kind(
        fig3b.Settings, fig3b.Settings.small, fig3b.compute, fig3b.draw, fig3b.describe,
        "structure factor in latent and in physical space from one cold start",
    ),
    "fig4a": Kind(
        fig4a.Settings, fig4a.Settings.small, fig4a.compute, fig4a.draw, fig4a.describe,
        "responses of the collective variables of every scale",
    ),
    "fig4b": Kind(
        fig4b.Settings, fig4b.Settings.small, fig4b.compute, fig4b.draw, fig4b.describe,
        "mutual information of the field and of the latents; makes Fig. 4(c) too",
    ),
    "sweep": Kind(
        sweep.Settings, sweep.Settings.small, sweep.compute, sweep.draw, sweep.describe,
        "temperatures and depths at a fixed budget a point; goes on where it was stopped",
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
    name: str, start: Start, *, small: bool = False, seconds: float | None = None,
    seeds: int | None = None,
) -> Job:  # fmt: skip
    """Check everything before any work is done.

    Args:
        name: Of the figure, one of ``FIGURES``.
        start: The model and where its flow comes from.
        small: Make it in seconds, to see that all works.
        seconds: Of training for each point of the sweep.
        seeds: Trainings of fig4a.

    Raises:
        ValueError, TypeError: naming what is not accepted.
        OSError: if the file of a flow cannot be read.

    Example:
        >>> prepare("fig4a", Start(shape=(4, 4))).prepared.flow.shape
        (4, 4)
    """
    if name not in FIGURES:
        raise ValueError(f"figure is {name!r}; accepted: {', '.join(FIGURES)}")
    for option, value, owner in (("seconds", seconds, "sweep"), ("seeds", seeds, "fig4a")):
        if value is not None and name != owner:
            raise ValueError(f"{option} is {value}; accepted for {owner} only")
    if name == "sweep" and start.saved is not None:
        raise ValueError(
            f"flow is {start.saved}; accepted: none, as the sweep trains one for every point"
        )
    kind = FIGURES[name]
    settings = kind.small(start) if small else kind.settings(start)
    if seconds is not None:
        settings = replace(settings, seconds=seconds)
    if seeds is not None:
        settings = replace(settings, seeds=seeds)
    return Job(name, settings, settings.start.prepare())


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
