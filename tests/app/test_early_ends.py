# SPDX-License-Identifier: Apache-2.0
"""Runs that fail or are interrupted save what there is, and spare the files of an earlier run."""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_neuralrg
from pyro_neuralrg import IsingDual
from pyro_neuralrg.app import ising
from pyro_neuralrg.app.ising import Experiment
from pyro_neuralrg.app.report import FILES, Output
from tests.app.conftest import TRAINED, Run, names, read

pytestmark = pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *where: Any) -> None:
    """Let a function raise."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*where, fail)


def test_a_second_run_in_the_same_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's files stay until all are there, and for good if it does not end well."""
    monkeypatch.setattr(ising, "ESTIMATE_SAMPLES", 500)
    monkeypatch.setattr(ising, "BOUND_SAMPLES", 64)
    Path("out").mkdir()
    first = {name: f"{name} of an earlier run".encode() for name in FILES}
    for name, data in first.items():
        (Path("out") / name).write_bytes(data)

    def kept() -> list[bool]:
        return [(Path("out") / name).read_bytes() == data for name, data in first.items()]

    inner, sample = Output._writing, Experiment.sample

    def watched(self: Output, name: str) -> AbstractContextManager[Path]:
        assert all(kept())
        return inner(self, name)

    monkeypatch.setattr(Output, "_writing", watched)
    fail_with(RuntimeError("no more"), monkeypatch, Experiment, "sample")
    ended = run("--seed 1")
    assert ended.code == 1
    written = "written to out/unfinished: flow.pt, report.json, free_energy.png; out keeps"
    assert written in ended.out
    assert all(kept())
    assert names("out/unfinished") == TRAINED
    monkeypatch.setattr(Experiment, "sample", sample)
    ended = run("--seed 2")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith(", in place of the files of an earlier run")
    assert names("out") == set(FILES)
    assert read("out")["seed"] == 2
    assert not any(kept())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:training (diverged|stopped):UserWarning")
def test_a_training_that_meets_nan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best flow and its report are saved, apart from what an earlier run left."""
    Path("out").mkdir()
    Path("out/samples.nc").write_text("of an earlier run")
    Path("out/.report.json.0a.tmp").write_text("of one that was killed")
    plain, seen = IsingDual.energy, itertools.count(1)

    def energy(self: IsingDual, x: Tensor) -> Tensor:
        """NaN from the fifth batch on, the trial of two fields left out."""
        return plain(self, x) + (math.nan if len(x) > 2 and next(seen) > 6 else 0.0)

    monkeypatch.setattr(IsingDual, "energy", energy)
    ended = run()
    assert ended.code == 1
    assert "stopped early: the loss at step 2 is nan" in ended.lines[-1]
    assert names("out") == {"samples.nc", "unfinished"}
    assert names("out/unfinished") == TRAINED
    report = read("out/unfinished")
    assert report["stopped"].startswith("the loss at step 2 is nan")
    assert report["training"]["steps"] == 2
    assert report["free_energy"]["variational"] is None
    assert report["free_energy"]["exact"] is not None
    flow = pyro_neuralrg.load("out/unfinished/flow.pt").flow
    assert all(bool(torch.isfinite(p).all()) for p in flow.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "error"),
    [("train", ValueError), ("estimate", MemoryError), ("bounds", OverflowError),
     ("sample", RuntimeError), ("sample", OSError)],
)  # fmt: skip
def test_a_stage_that_fails(
    stage: str, error: type[Exception], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error("a\nb"), monkeypatch, Experiment, stage)
    ended = run()
    assert ended.code == 1
    assert "a b" in ended.lines[-1]
    assert names("out") == (set() if stage == "train" else TRAINED)


@pytest.mark.slow
def test_what_cannot_be_written_does_not_take_the_rest_along(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a file go that another run writes at this moment; older ones do."""
    Path("out").mkdir()
    old, new = (Path("out") / f".samples.nc.{name}.tmp" for name in ("0a", "0b"))
    for path, age in ((old, -10.0), (new, 1000.0)):
        path.write_text("torn")
        os.utime(path, 2 * (time.time() + age,))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fail_with(full, monkeypatch, "pyro_neuralrg.app.report.save_tree")
    ended = run()
    assert ended.code == 1
    assert ended.lines[-1] == (
        "neuralrg: error: out/samples.nc cannot be written (No space left on device); "
        "written to out: flow.pt, report.json"
    )
    assert names("out") == {"flow.pt", "report.json", new.name}


@pytest.mark.slow
def test_ctrl_c_while_writing_waits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Output._writing

    def pressed(self: Output, name: str) -> AbstractContextManager[Path]:
        signal.raise_signal(signal.SIGINT)
        return inner(self, name)

    monkeypatch.setattr(Output, "_writing", pressed)
    ended = run()
    assert ended.code == 130
    assert "interrupted; what was there is saved" in ended.lines[-1]
    assert names("out") == TRAINED
    assert read("out")["stopped"] == "interrupted"
