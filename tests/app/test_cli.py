# SPDX-License-Identifier: Apache-2.0
"""Options of the command: bad input is one line and exit code 2, before anything is done."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from pyro_neuralrg import IsingDual
from pyro_neuralrg.app.cli import _read_settings, build_parser
from pyro_neuralrg.app.ising import Settings
from pyro_neuralrg.app.report import FILES
from pyro_neuralrg.files import Record
from tests.app.conftest import Run

BAD = {
    "empty shape": ("--shape", "--shape"),
    "sides joined": ("--shape 8x12", "accepted: sides apart, --shape 8 12"),
    "a side of letters": ("--shape eight", "--shape 8 8"),
    "side 0": ("--shape 0 4", "shape"),
    "one site": ("--shape 1 1", "shape"),
    "temperature NaN": ("--temperature nan", "temperature"),
    "no critical temperature": ("--shape 8", "temperature is not given for the shape"),
    "no steps": ("--steps 0", "steps"),
    "draws without an R-hat": ("--draws 3", "draws is 3; accepted: an integer from 4"),
    "seed": ("--seed -1", "seed"),
    "device": ("--device abacus", "device"),
    "device without numbers": ("--device meta", "device"),
    "a side beyond integers": ("--shape 99999999999999999999 2", "shape"),
    "steps beyond floats": (f"--steps {10**400}", "steps"),
    "temperature next to 0": ("--temperature 1e-300", "temperature is so low"),
    "resume nothing": ("--resume", "--resume needs --checkpoint DIR"),
    "time to no checkpoint": ("--every 5", "--every needs --checkpoint DIR"),
    "no checkpoint to keep": ("--checkpoint states --keep 0", "keep is 0"),
    "option": ("--temprature 1", "temprature"),
    "part of an option": ("--step 5", "--step"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, run: Run) -> None:
    arguments, word = BAD[case]
    ended = run(arguments)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1)
    assert "error:" in ended.lines[0]
    assert word in ended.lines[0]
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["", *FILES])
def test_out_with_something_in_the_way(name: str, run: Run) -> None:
    """A file in the place of the folder, or a folder in the place of a file."""
    if name:
        (Path("out") / name).mkdir(parents=True)
    else:
        Path("out").write_text("mine")
    ended = run()
    assert ended.code == 2
    assert all(word in ended.lines[0] for word in ("--out", name))


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        (60.0, "shape is (4, 4): that takes"),
        (1e3, "shape is (4, 4) and batch is 16: that takes"),
        (1.5e3, "shape is (4, 4), chains is 3 and draws is 10: that takes"),
    ],
)
def test_settings_that_cannot_fit(
    there: float, seen: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is available counts, whatever memory the machine has; nothing is built, or written."""
    monkeypatch.setattr("pyro_neuralrg.runtime.memory.available_memory", lambda _: there)
    monkeypatch.setattr(IsingDual, "__init__", lambda *_, **__: pytest.fail("built"))
    ended = run("--shape 4 4")
    assert ended.code == 2
    assert seen in ended.lines[0]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("given", "steps", "draws"), [("", 400, 200), ("--steps 7", 7, 200), ("--draws 9", 400, 9)]
)
def test_quick_is_fewer_steps_and_draws_unless_given(given: str, steps: int, draws: int) -> None:
    options = vars(build_parser().parse_args(["ising", "--quick", *given.split()]))
    settings = _read_settings({k: v for k, v in options.items() if k not in {"command", "out"}})
    assert (settings.steps, settings.draws) == (steps, draws)
    usual = Settings()
    assert usual.steps is None
    assert usual.draws > settings.draws


def test_help_names_every_option(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    options = {entry.name for entry in (*fields(Settings), *fields(Record))}
    options |= {"checkpoint", "out", "quick"}
    for option in options - {"record", "folder", "every_steps", "_"}:
        assert f"--{option}" in ended.out
