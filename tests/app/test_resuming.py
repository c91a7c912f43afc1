# SPDX-License-Identifier: Apache-2.0
"""Runs with checkpoints go on with the numbers of one that was not ended; others are refused."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest

import pyro_neuralrg
from pyro_neuralrg import VectorizedMCMC
from pyro_neuralrg.app.report import FILES
from pyro_neuralrg.sampling.draws import TRIAL_STEPS
from pyro_neuralrg.train.loop import Training
from tests.app.conftest import QUICK, SMALL, Run, names, read
from tests.broken_files import break_reading, fill_disk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning"),
    pytest.mark.filterwarnings("default:.*(going on from|cannot be written):UserWarning"),
]


@pytest.fixture
def states(run: Run) -> str:
    """Options of a run that has ended."""
    assert run("--checkpoint states").code == 0
    return "--checkpoint states"


def test_a_finished_run_is_resumed(states: str, run: Run) -> None:
    assert run(f"{states} --resume", "again").code == 0
    assert read("again") == read("out")
    assert names("states") == {"training", "latent", "physical"}


def refused(run: Run, arguments: str, *words: str) -> None:
    """Before anything is done: the report of the run before stays."""
    before = Path("out/report.json").read_bytes()
    ended = run(arguments)
    assert ended.code == 2
    assert all(word in ended.lines[0] for word in words), ended.lines
    assert Path("out/report.json").read_bytes() == before


REFUSED = {
    "": ["of an earlier", "accepted: --resume"],
    "--shape 4 2 --seed 3 --resume": ["shape [2, 2] (here [4, 2])", "seed 0 (here 3)"],
    "--chains 4 --draws 11 --resume": [" chains 3 (here 4)", "warm-up 10 (here 11)"],
    "--steps 5 --resume": ["steps 4 (here 5)"],
}


def test_states_of_other_runs_are_refused(states: str, run: Run) -> None:
    for arguments, words in REFUSED.items():
        refused(run, f"{states} {arguments}", *words)
    run("--checkpoint others --seed 1", "others-out")
    shutil.rmtree("states/physical")
    refused(run, f"{states} --chains 4 --resume", "latent", "chains 3 (here 4)")
    Path("others/physical").rename("states/physical")
    refused(run, f"{states} --resume", "physical", "seed 1 (here 0)")
    shutil.rmtree("states/training")
    refused(run, f"{states} --resume", "latent and physical without the training")


def test_a_disk_that_breaks_after_the_training(
    states: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is written."""
    break_reading("states/latent", monkeypatch, 1)
    before = Path("out/report.json").read_bytes()
    ended = run(f"{states} --resume")
    assert ended.code == 1
    assert "[Errno 5] Input/output error" in ended.lines[-1]
    assert "states/latent" in ended.lines[-1]
    assert Path("out/report.json").read_bytes() == before
    report = read("out/unfinished")
    assert "Input/output error" in report["stopped"]
    assert report["free_energy"]["variational"] is not None


@pytest.mark.parametrize(
    ("stage", "at", "killed", "damaged"),
    [
        ("training", 2, False, ""),
        ("warm-up", 4, True, ""),
        ("warm-up", 4, False, ""),
        ("sampling", 4, True, "latent"),
        ("sampling", 17, True, ""),
        ("sampling", 4, False, ""),
    ],
)
def test_ended_and_resumed(
    stage: str, at: int, killed: bool, damaged: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the training, the latent sampler or the physical one, killed or by SIGTERM."""
    run(out="whole")
    steps = itertools.count(1)
    kind, name = (Training, "_take_step") if stage == "training" else (VectorizedMCMC, "_step")
    step = getattr(kind, name)

    def ending(self: Any, *arguments: Any) -> Any:
        is_trial = getattr(self, "num_samples", 0) == TRIAL_STEPS
        due = is_trial == (stage == "warm-up") and getattr(self, "_warmup", None) is None
        if due and next(steps) == at:
            sys.exit("killed") if killed else signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, ending)
        ended = run("--checkpoint states --every 0 --history")
    if not killed:  # the step it came in is kept
        assert ended.code == 130
        assert read("out")["stopped"] == "interrupted"
    if stage == "training":
        assert read("out")["training"]["steps"] == at
        assert names("states") == {"training"}  # no sampling yet
        assert len(Path("states/training/history.csv").read_text().splitlines()) == 1 + at
    elif stage == "sampling" and not killed:
        assert arviz.from_netcdf("out/samples.nc").posterior["x"].shape[:2] == (3, at)
    if damaged:
        newest = max(Path("states", damaged).glob("*.pt"))
        newest.write_bytes(newest.read_bytes()[:-500])
    ended = run("--checkpoint states --every 0 --resume")
    assert ended.code == 0
    assert any("going on from" in line for line in ended.lines) == bool(damaged)
    assert read("out") == read("whole")


def test_checkpoints_for_which_there_is_no_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All results are there, a warning for each run, and in the end a line and an exit code."""
    folder = Path("states/latent")
    run(out="whole")
    fill_disk(lambda path: folder in path.parents, monkeypatch)
    ended = run("--checkpoint states --every 0")
    assert ended.code == 1
    of_trial, first, last = (line for line in ended.lines if "effective samples" not in line)
    assert of_trial.startswith(f"neuralrg: warning: {folder}/warm-up/")
    assert first.startswith(f"neuralrg: warning: {folder}/")
    assert last.startswith(f"neuralrg: not written: {folder}/")
    assert "No space left on device" in first
    report, whole = read("out"), read("whole")
    (unsaved,) = report.pop("unsaved")
    assert unsaved in last
    assert whole.pop("unsaved") == []
    assert report == whole
    assert names("out") == set(FILES)


def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "pyro_neuralrg", "ising", *SMALL, *QUICK, "--chains", "4",
        "--checkpoint", str(tmp_path / "states"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    root = Path(pyro_neuralrg.__file__).parents[1]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("free energy -ln Z") == 1
    assert names(tmp_path / "out") == set(FILES)
    assert read(tmp_path / "out")["training"]["batch"] == 16
    x = arviz.from_netcdf(str(tmp_path / "out" / "samples.nc")).posterior["x"].values
    assert x.shape == (4, 10, 2, 2)
    assert len(np.unique(x[:, -1].reshape(4, 4), axis=0)) == 4
    wrong = ["5" if part == "4" else part for part in command]
    found = subprocess.run(wrong, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert found.stderr.count("chains is 5 over 2 processes; accepted: a multiple") == 1
