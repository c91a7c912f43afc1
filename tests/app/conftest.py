# SPDX-License-Identifier: Apache-2.0
"""The command, run quickly in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyro_neuralrg.app.cli import main

QUICK = ["--steps", "4", "--batch", "16", "--chains", "3", "--draws", "10"]
SMALL = ["--shape", "2", "2"]
TRAINED = {"flow.pt", "report.json", "free_energy.png"}
"""Files of a run that drew no samples."""


class Ended(NamedTuple):
    """The exit code, what was said, and the lines on stderr that are no progress bars."""

    code: int
    out: str
    lines: list[str]


Run = Callable[..., Ended]


def names(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def read(out: str | Path) -> dict[str, Any]:
    """The report, without times."""
    report = json.loads((Path(out) / "report.json").read_text())
    del report["training"]["seconds"]
    for sampler in report["sampling"].values():
        if isinstance(sampler, dict):
            del sampler["seconds"], sampler["ess_per_second"]
    return report


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command quickly on 2 x 2, if nothing else is said, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(arguments: str = "", out: str = "out") -> Ended:
        capsys.readouterr()
        try:
            code = main(["ising", *QUICK, *SMALL, "--out", out, *arguments.split()])
        except SystemExit as stop:
            code = stop.code
        said, error = capsys.readouterr()
        return Ended(code, said, [line for line in error.splitlines() if "neuralrg" in line[:9]])

    return call
