# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The command line, end to end on lattices small enough to be quick, and under bad input."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import arviz
import numpy as np
import pytest
import torch

import pyro_neuralrg
from pyro_neuralrg import IsingDual, VectorizedMCMC
from pyro_neuralrg.app import ising
from pyro_neuralrg.app.cli import main
from pyro_neuralrg.app.ising import Experiment, Settings
from pyro_neuralrg.app.report import FILES, Output, as_json, table
from pyro_neuralrg.files import Record
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate
from pyro_neuralrg.potentials import IsingModel
from tests.broken_files import break_reading, fill_disk

pytestmark = [
    pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning"),
    pytest.mark.filterwarnings("default:.*(going on from|cannot be written):UserWarning"),
]

ROOT = Path(pyro_neuralrg.__file__).parents[1]
QUICK = ["--steps", "4", "--batch", "16", "--chains", "3", "--draws", "10"]
SMALL = ["--shape", "2", "2"]
TRAINED = {"flow.pt", "report.json", "free_energy.png"}


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


class Ended(NamedTuple):
    """The exit code, what was said, and the lines on stderr that are no progress bars."""

    code: int
    out: str
    lines: list[str]


Run = Callable[..., Ended]


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


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick run."""
    out = tmp_path_factory.mktemp("ising")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["ising", "--shape", "4", "4", *QUICK, "--out", str(out)]) == 0
    (out / "stdout.txt").write_text(said.getvalue())
    return out


def test_the_files_of_a_run(quick: Path) -> None:
    assert names(quick) == {*FILES, "stdout.txt"}
    flow = pyro_neuralrg.load(quick / "flow.pt").flow
    assert flow.shape == (4, 4)
    assert next(flow.parameters()).dtype == torch.float32
    x = arviz.from_netcdf(str(quick / "samples.nc")).posterior["x"]
    assert x.dims == ("chain", "draw", "row", "col")
    assert x.shape == (3, 10, 4, 4)
    for path in quick.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_the_report_is_consistent(quick: Path) -> None:
    report = json.loads((quick / "report.json").read_text())
    energy, sampling, training = (report[key] for key in ("free_energy", "sampling", "training"))
    assert report["shape"] == [4, 4]
    assert report["temperature"] == pytest.approx(2.0 / math.log(1.0 + math.sqrt(2.0)))
    assert {"seed", "versions", "device", "dtype", "stopped", "unsaved"} <= set(report)
    assert energy["gap"] == pytest.approx(energy["variational"] - energy["exact"])
    assert energy["relative_error"] == pytest.approx(energy["gap"] / abs(energy["exact"]))
    assert 0.0 < energy["ess"] <= 1.0
    assert energy["gap"] > 0.0
    assert energy["forward_kl"] == pytest.approx(energy["exact"] - energy["lower"])
    assert energy["forward_kl"] > 3.0 * energy["lower_se"] > 0.0
    assert abs(energy["importance"] - energy["exact"]) < energy["gap"]
    assert {"variational_se", "importance_se", "pareto_k", "num_samples"} <= set(energy)
    expected = {"structure_factor", "mcse", "rhat", "ess_bulk", "gradient_evaluations", "seconds"}
    assert expected <= set(sampling["latent"]) == set(sampling["physical"])
    assert sampling["exact_structure_factor"] is not None
    assert sampling["reference_structure_factor"] is None
    assert set(training) == {"steps", "batch", "seconds", "parameters"}
    assert training["steps"] == 4


def test_the_table_says_what_the_report_says(quick: Path) -> None:
    text, report = (quick / "stdout.txt").read_text(), read(quick)
    energy, sampling = report["free_energy"], report["sampling"]
    for value in (
        f"{energy['exact']:.6f}",
        f"{energy['importance']:.4f}",
        f"gap KL(q || pi/Z) {energy['gap']:.4f}",
        f"{energy['lower']:.4f} +- {energy['lower_se']:.4f}",
        f"KL(pi/Z || q) {energy['forward_kl']:.4f}",
        f"{sampling['physical']['structure_factor']:.5f}",
        f"{sampling['exact_structure_factor']:.6f}",
    ):
        assert value in text


def test_cluster_monte_carlo_where_no_exact_structure_factor_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"ESTIMATE_SAMPLES": 2000, "BOUND_SAMPLES": 64, "REFERENCE_SITES": 2**15}
    for name, size in sizes.items():
        monkeypatch.setattr(ising, name, size)
    settings = Settings((3, 4, 4), temperature=4.5, steps=2, batch=8, chains=2, draws=4)
    results = Experiment.prepare(settings).run()
    report = as_json(results)["sampling"]
    assert report["exact_structure_factor"] is None
    mean, error = report["reference_structure_factor"], report["reference_structure_factor_se"]
    expected, its_error = IsingModel((3, 4, 4), 4.5).reference_structure_factor(1000, 1)
    assert 0 < error < 0.1 * mean
    assert abs(mean - expected) < 4 * math.hypot(error, its_error)
    assert f"cluster Monte Carlo   {mean:.5f} +- {error:.5f}" in table(results)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["5", "3 2", "2 2 3", "2 1", "5 5 5"])
def test_other_lattices(shape: str, run: Run) -> None:
    ended = run(f"--shape {shape} --temperature 3.0 --steps 2 --draws 4")
    assert ended.code == 0
    assert names("out") == set(FILES)
    energy = read("out")["free_energy"]
    known = shape != "5 5 5"
    for name in ("exact", "gap", "relative_error", "forward_kl"):
        assert (energy[name] is not None) == known
    assert ("unknown" in ended.out) == ("sum of both KLs" in ended.out) == (not known)
    assert energy["lower"] < energy["importance"]


BAD = {
    "empty shape": ("--shape", "--shape"),
    "side 0": ("--shape 0 4", "shape"),
    "one site": ("--shape 1 1", "shape"),
    "temperature NaN": ("--temperature nan", "temperature"),
    "no steps": ("--steps 0", "steps"),
    "seed": ("--seed -1", "seed"),
    "device": ("--device abacus", "device"),
    "device without numbers": ("--device meta", "device"),
    "a side beyond integers": ("--shape 99999999999999999999 2", "shape"),
    "steps beyond floats": (f"--steps {10**400}", "steps"),
    "temperature next to 0": ("--temperature 1e-300", "spectrum"),
    "resume nothing": ("--resume", "checkpoint"),
    "time to no checkpoint": ("--every 5", "every is 5.0 without checkpoint"),
    "no checkpoint to keep": ("--checkpoint states --keep 0", "keep is 0"),
    "option": ("--temprature 1", "temprature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, run: Run) -> None:
    arguments, word = BAD[case]
    ended = run(arguments)
    assert (ended.code, ended.out, len(ended.lines)) == (2, "", 1)
    assert "error:" in ended.lines[0]
    assert word in ended.lines[0]
    assert not Path("out").exists()


def test_estimates_of_the_largest_seed() -> None:
    experiment = Experiment.prepare(Settings(shape=(2, 2), seed=2**63 - 1))
    assert experiment.estimate().num_samples > 0
    assert math.isfinite(experiment.bounds().upper)


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


def test_help_names_every_option(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    options = {entry.name for entry in (*fields(Settings), *fields(Record))}
    for option in options - {"record", "folder", "every_steps", "_"} | {"checkpoint", "out"}:
        assert f"--{option}" in ended.out


def test_a_second_run_in_the_same_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's files stay until all are there, and for good if it does not end well."""
    monkeypatch.setattr(ising, "ESTIMATE_SAMPLES", 500)
    monkeypatch.setattr(ising, "BOUND_SAMPLES", 64)
    Path("out").mkdir()
    first = {name: f"{name} of an earlier run".encode() for name in FILES}
    for name, data in first.items():
        (Path("out") / name).write_bytes(data)

    def kept() -> bool:
        return all((Path("out") / name).read_bytes() == data for name, data in first.items())

    stages: list[bool] = []
    inner, sample = Output._writing, Experiment.sample

    def watched(self: Output, name: str) -> AbstractContextManager[Path]:
        stages.append(kept())
        return inner(self, name)

    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(Output, "_writing", watched)
    monkeypatch.setattr(Experiment, "sample", fail)
    ended = run("--seed 1")
    assert ended.code == 1
    assert (
        "written to out/unfinished: flow.pt, report.json, free_energy.png; out keeps" in ended.out
    )
    assert kept()
    assert names("out/unfinished") == TRAINED
    monkeypatch.setattr(Experiment, "sample", sample)
    ended = run("--seed 2")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith(", in place of the files of an earlier run")
    assert len(stages) == 3 + len(FILES)
    assert all(stages)
    assert names("out") == set(FILES)
    assert read("out")["seed"] == 2
    assert not any((Path("out") / name).read_bytes() == data for name, data in first.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:training (diverged|stopped):UserWarning")
def test_a_training_that_meets_nan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best flow and its report are saved, apart from what an earlier run left."""
    Path("out").mkdir()
    Path("out/samples.nc").write_text("of an earlier run")
    Path("out/.report.json.0a.tmp").write_text("of one that was killed")
    energy, seen = IsingDual.energy, itertools.count(1)
    monkeypatch.setattr(
        IsingDual, "energy", lambda *a: energy(*a) + (math.nan if next(seen) > 4 else 0.0)
    )
    ended = run()
    assert ended.code == 1
    assert "stopped early: the loss at step 2 is nan" in ended.lines[-1]
    assert names("out") == {"samples.nc", "unfinished"}
    report = read("out/unfinished")
    assert report["stopped"].startswith("the loss at step 2 is nan")
    assert report["training"]["steps"] == 2
    assert report["free_energy"]["variational"] is None
    assert report["free_energy"]["exact"] is not None
    assert names("out/unfinished") == TRAINED
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
    def fail(*_: object) -> None:
        raise error("a\nb")

    monkeypatch.setattr(Experiment, stage, fail)
    ended = run()
    assert ended.code == 1
    assert "a b" in ended.lines[-1]
    assert names("out") == (set() if stage == "train" else TRAINED)


@pytest.mark.slow
def test_a_report_of_numbers_that_are_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = FreeEnergyEstimate(math.inf, math.nan, math.inf, math.nan, 0.0, 20)
    monkeypatch.setattr(Experiment, "estimate", lambda _: nothing)
    monkeypatch.setattr(Experiment, "bounds", lambda _: Bounds(-math.inf, math.nan, math.inf, 0.0))
    monkeypatch.setattr(IsingDual, "log_partition", lambda _: math.nan)
    ended = run()
    assert ended.code == 0
    assert names("out") == set(FILES)
    energy = read("out")["free_energy"]
    assert energy == dict.fromkeys(energy) | {"ess": 0.0, "num_samples": 20}
    assert "unknown (the exact formula gives nan)" in ended.out


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

    def crowded(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyro_neuralrg.app.report.save_tree", crowded)
    ended = run()
    assert ended.code == 1
    assert ended.lines[-1] == (
        "neuralrg: error: out/samples.nc cannot be written (No space left on device); "
        "saved: flow.pt, report.json"
    )
    assert names("out") == {"flow.pt", "report.json", new.name}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Hear Ctrl-C, which a script's background job ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
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


@pytest.mark.slow
def test_terminated_and_resumed(run: Run) -> None:
    """SIGTERM in the middle of the training saves a checkpoint and the report."""
    torch.set_default_dtype(torch.float32)  # as in the other process, for the same first weights
    options = "--steps 400 --batch 8 --checkpoint states --resume --history"
    with subprocess.Popen(
        [sys.executable, "-m", "pyro_neuralrg", "ising", *QUICK, *SMALL, *options.split(),
         "--out", "out"],
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        seen = ""
        while "ESS" not in seen:  # the progress bar shows the first steps
            assert process.poll() is None, seen
            seen += process.stderr.read(1)
        process.terminate()
        _, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    report = read("out")
    assert report["stopped"] == "interrupted"
    assert 0 < report["training"]["steps"] < 400
    assert names("states") == {"training"}  # no sampling yet
    table = Path("states/training/history.csv").read_text()
    assert len(table.splitlines()) == 1 + report["training"]["steps"]
    assert run(options, "other").code == run("--steps 400 --batch 8", "whole").code == 0
    assert read("other") == read("whole")


@pytest.fixture
def states(run: Run) -> str:
    """Options of a run that has ended."""
    assert run("--checkpoint states").code == 0
    return "--checkpoint states"


@pytest.mark.slow
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


@pytest.mark.slow
def test_states_of_other_runs_are_refused(states: str, run: Run) -> None:
    for arguments, words in REFUSED.items():
        refused(run, f"{states} {arguments}", *words)
    run("--checkpoint others --seed 1", "others-out")
    shutil.rmtree("states/physical")
    Path("others/physical").rename("states/physical")
    refused(run, f"{states} --resume", "physical", "seed 1 (here 0)")
    shutil.rmtree("states/training")
    refused(run, f"{states} --resume", "latent and physical without the training")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "after", "code"), [("training", 0, 2), ("latent", 1, 1)])
def test_states_that_cannot_be_read(
    name: str, after: int, code: int, states: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is done; if the disk breaks later, what was found is written."""
    break_reading(f"states/{name}", monkeypatch, after)
    before = Path("out/report.json").read_bytes()
    ended = run(f"{states} --resume")
    assert ended.code == code
    assert "[Errno 5] Input/output error" in ended.lines[-1]
    assert f"states/{name}" in ended.lines[-1]
    assert Path("out/report.json").read_bytes() == before
    assert Path("out/unfinished").exists() == (code == 1)
    if code == 1:
        report = read("out/unfinished")
        assert "Input/output error" in report["stopped"]
        assert report["free_energy"]["variational"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "killed", "damaged"), [(4, True, "latent"), (17, True, ""), (4, False, "")]
)
def test_ended_while_sampling_and_resumed(
    draw: int, killed: bool, damaged: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the latent sampler or in the physical one: the report of a run that was not."""
    run(out="whole")
    step, draws = VectorizedMCMC._step, itertools.count(1)

    def ending(mcmc: Any, *arguments: Any) -> Any:
        if mcmc._warmup is None and next(draws) == draw:
            sys.exit("killed") if killed else signal.raise_signal(signal.SIGTERM)
        return step(mcmc, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(VectorizedMCMC, "_step", ending)
        ended = run("--checkpoint states --every 0")
    if not killed:  # the draw it came in is kept
        assert ended.code == 130
        assert read("out")["stopped"] == "interrupted"
        assert arviz.from_netcdf("out/samples.nc").posterior["x"].shape[:2] == (3, 4)
    if damaged:
        newest = max(Path("states", damaged).glob("*.pt"))
        newest.write_bytes(newest.read_bytes()[:-500])
    ended = run("--checkpoint states --every 0 --resume")
    assert ended.code == 0
    assert any("going on from" in line for line in ended.lines) == bool(damaged)
    assert read("out") == read("whole")


@pytest.mark.slow
def test_checkpoints_for_which_there_is_no_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All results are there, one warning, and in the end a line and an exit code."""
    folder = Path("states/latent")
    run(out="whole")
    fill_disk(lambda path: folder in path.parents, monkeypatch)
    ended = run("--checkpoint states --every 0")
    assert ended.code == 1
    first, last = (line for line in ended.lines if "effective samples" not in line)
    assert first.startswith(f"neuralrg: warning: {folder}/")
    assert last.startswith(f"neuralrg: not written: {folder}/")
    assert "No space left on device" in first
    report, whole = read("out"), read("whole")
    (unsaved,) = report.pop("unsaved")
    assert unsaved in last
    assert whole.pop("unsaved") == []
    assert report == whole
    assert names("out") == set(FILES)


@pytest.mark.slow
def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "pyro_neuralrg", "ising", *SMALL, *QUICK, "--chains", "4",
        "--checkpoint", str(tmp_path / "states"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("free energy -ln Z") == 1
    assert names(tmp_path / "out") == set(FILES)
    assert read(tmp_path / "out")["training"]["batch"] == 16
    x = arviz.from_netcdf(str(tmp_path / "out" / "samples.nc")).posterior["x"].values
    assert x.shape == (4, 10, 2, 2)
    assert len(np.unique(x[:, -1].reshape(4, 4), axis=0)) == 4
    wrong = ["5" if part == "4" else part for part in command]
    found = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert found.stderr.count("chains is 5 over 2 processes; accepted: a multiple") == 1
