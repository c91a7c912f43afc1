# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The command line, end to end on lattices small enough to be quick, and under bad input."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import arviz
import numpy as np
import pytest
import torch

import pyro_neuralrg
from pyro_neuralrg import IsingDual, VectorizedMCMC
from pyro_neuralrg.app.cli import main
from pyro_neuralrg.app.experiment import Experiment
from pyro_neuralrg.app.report import Output
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate
from pyro_neuralrg.mcmc.checkpoints import FORMAT
from pyro_neuralrg.potentials import IsingModel
from pyro_neuralrg.train import fit
from tests.broken_files import break_reading, fill_disk

ROOT = Path(pyro_neuralrg.__file__).parents[1]
FILES = {
    "report.json",
    "flow.pt",
    "samples.nc",
    "free_energy.png",
    "structure_factor.png",
    "configurations.png",
}
QUICK = ["--steps", "4", "--batch", "16", "--chains", "3", "--draws", "10"]


def run(tmp_path: Path, *arguments: str) -> dict:
    assert main(["ising", *QUICK, "--out", str(tmp_path), *arguments]) == 0
    return json.loads((tmp_path / "report.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick run of the command, as a user makes it."""
    out = tmp_path_factory.mktemp("ising")
    command = [sys.executable, "-m", "pyro_neuralrg", "ising", "--shape", "4", "4"]
    result = subprocess.run(
        [*command, *QUICK, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    (out / "stdout.txt").write_text(result.stdout)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "FutureWarning" not in result.stderr
    return out


def test_writes_every_file_and_nothing_else(quick: Path) -> None:
    assert {path.name for path in quick.iterdir()} == FILES | {"stdout.txt"}


def test_report_has_every_key(quick: Path) -> None:
    report = json.loads((quick / "report.json").read_text())
    assert report["shape"] == [4, 4]
    assert report["temperature"] == pytest.approx(2.0 / math.log(1.0 + math.sqrt(2.0)))
    assert {"seed", "versions"} <= set(report)
    assert set(report["free_energy"]) >= {
        "exact",
        "variational",
        "variational_se",
        "gap",
        "relative_error",
        "importance",
        "importance_se",
        "ess",
        "pareto_k",
        "lower",
        "lower_se",
        "forward_kl",
    }
    for sampler in ("latent", "physical"):
        assert set(report["sampling"][sampler]) >= {
            "structure_factor",
            "mcse",
            "rhat",
            "ess_bulk",
            "gradient_evaluations",
            "seconds",
        }
    assert set(report["training"]) >= {"steps", "batch", "seconds", "parameters"}
    assert report["training"]["steps"] == 4


def test_report_is_consistent(quick: Path) -> None:
    report = json.loads((quick / "report.json").read_text())
    energy = report["free_energy"]
    assert energy["gap"] == pytest.approx(energy["variational"] - energy["exact"])
    assert energy["relative_error"] == pytest.approx(energy["gap"] / abs(energy["exact"]))
    assert 0.0 < energy["ess"] <= 1.0
    assert energy["gap"] > 0.0
    assert energy["forward_kl"] == pytest.approx(energy["exact"] - energy["lower"])
    assert energy["forward_kl"] > 3.0 * energy["lower_se"] > 0.0
    assert abs(energy["importance"] - energy["exact"]) < energy["gap"]
    assert 0.0 < report["sampling"]["exact_structure_factor"] < 1.0


def test_exact_values_are_those_of_brute_force(quick: Path) -> None:
    """The structure factor from all 2^16 states."""
    report = json.loads((quick / "report.json").read_text())
    bits = torch.arange(2**16)[:, None] >> torch.arange(16)
    spins = (1.0 - 2.0 * (bits & 1)).view(-1, 4, 4)
    bonds = (spins * (spins.roll(1, -1) + spins.roll(1, -2))).sum((-1, -2))
    weights = torch.softmax(bonds / report["temperature"], 0)
    expected = (weights * spins.sum((-1, -2)) ** 2).sum() / 16**2
    assert report["sampling"]["exact_structure_factor"] == pytest.approx(float(expected), rel=1e-9)


def test_table_says_what_the_report_says(quick: Path) -> None:
    text = (quick / "stdout.txt").read_text()
    report = json.loads((quick / "report.json").read_text())
    for value in (
        f"{report['free_energy']['exact']:.6f}",
        f"{report['free_energy']['variational']:.4f}",
        f"{report['free_energy']['importance']:.4f}",
        f"gap KL(q || pi/Z) {report['free_energy']['gap']:.4f}",
        f"{report['free_energy']['lower']:.4f} +- {report['free_energy']['lower_se']:.4f}",
        f"KL(pi/Z || q) {report['free_energy']['forward_kl']:.4f}",
        f"{report['sampling']['latent']['structure_factor']:.5f}",
        f"{report['sampling']['physical']['structure_factor']:.5f}",
        f"{report['sampling']['exact_structure_factor']:.6f}",
    ):
        assert value in text


def test_flow_is_loaded_again(quick: Path) -> None:
    loaded = pyro_neuralrg.load(quick / "flow.pt")
    assert loaded.flow.shape == (4, 4)
    assert next(loaded.flow.parameters()).dtype == torch.float32


def test_samples_are_physical_fields(quick: Path) -> None:
    idata = arviz.from_netcdf(str(quick / "samples.nc"))
    assert idata.posterior["x"].dims == ("chain", "draw", "row", "col")
    assert idata.posterior["x"].shape == (3, 10, 4, 4)


def test_figures_are_pictures(quick: Path) -> None:
    for path in quick.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_what_another_run_writes_at_this_moment_stays(tmp_path: Path) -> None:
    """Here, what was written to after this one began; what is older goes."""
    output = Output.prepare(tmp_path)
    old, new = (tmp_path / f".samples.nc.{name}.tmp" for name in ("0a", "0b"))
    for path, age in ((old, -10.0), (new, 10.0)):
        path.write_text("torn")
        os.utime(path, 2 * (time.time() + age,))
    target = IsingDual((2, 2), temperature=3.0)
    output.write_training(fit(target, steps=1, batch=2, seed=0, progress=False))
    assert {path.name for path in tmp_path.iterdir()} == {"flow.pt", new.name}


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_same_seed_same_report(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "--shape", "4", "--dtype", "float64")
    second = run(tmp_path / "b", "--shape", "4", "--dtype", "float64")
    other = run(tmp_path / "c", "--shape", "4", "--dtype", "float64", "--seed", "1")
    for one in (first, second, other):
        del one["training"]["seconds"]
        for sampler in ("latent", "physical"):
            del one["sampling"][sampler]["seconds"], one["sampling"][sampler]["ess_per_second"]
    assert first == second
    assert first["free_energy"]["variational"] != other["free_energy"]["variational"]


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
@pytest.mark.parametrize("shape", ["5", "3 2", "2 2 3", "2 1"])
def test_other_lattices(shape: str, tmp_path: Path) -> None:
    report = run(tmp_path, "--shape", *shape.split(), "--temperature", "3.0")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert report["free_energy"]["exact"] is not None


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_where_no_exact_value_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path, "--shape", "5", "5", "5", "--steps", "2", "--draws", "4")
    energy = report["free_energy"]
    assert energy["exact"] is None
    assert energy["gap"] is None
    assert energy["relative_error"] is None
    assert energy["importance"] is not None
    assert energy["lower"] < energy["importance"]
    assert energy["forward_kl"] is None
    out = capsys.readouterr().out
    assert "unknown" in out
    assert "sum of both KLs" in out


BAD = {
    "empty shape": (["--shape"], "--shape"),
    "negative side": (["--shape", "-4", "4"], "shape"),
    "side 0": (["--shape", "0", "4"], "shape"),
    "four dimensions": (["--shape", "2", "2", "2", "2"], "shape"),
    "one site": (["--shape", "1", "1"], "shape"),
    "not an integer": (["--shape", "4.5", "4"], "shape"),
    "temperature 0": (["--temperature", "0"], "temperature"),
    "temperature NaN": (["--temperature", "nan"], "temperature"),
    "temperature infinite": (["--temperature", "inf"], "temperature"),
    "temperature a word": (["--temperature", "hot"], "temperature"),
    "no steps": (["--steps", "0"], "steps"),
    "no batch": (["--batch", "0"], "batch"),
    "no chains": (["--chains", "0"], "chains"),
    "no draws": (["--draws", "-1"], "draws"),
    "seed": (["--seed", "-1"], "seed"),
    "device": (["--device", "abacus"], "device"),
    "device without numbers": (["--device", "meta"], "device"),
    "device without a backend": (["--device", "hpu"], "device"),
    "device of nobody": (["--device", "privateuseone"], "device"),
    "a side beyond integers": (["--shape", "99999999999999999999", "2"], "shape"),
    "too large to hold": (["--shape", "10000000", "10000000"], "shape"),
    "too many chains to hold": (["--chains", "1000000000"], "chains"),
    "a batch too large to hold": (["--batch", "2000000000"], "batch"),
    "chains beyond integers": (["--chains", str(10**30)], "chains"),
    "batch beyond integers": (["--batch", str(10**30)], "batch"),
    "draws beyond integers": (["--draws", str(10**30)], "draws"),
    "steps beyond floats": (["--steps", str(10**400)], "steps"),
    "temperature next to 0": (["--temperature", "1e-300"], "spectrum"),
    "dtype": (["--dtype", "int64"], "dtype"),
    "resume nothing": (["--resume"], "checkpoint"),
    "time to no checkpoint": (["--every", "5"], "every is 5.0 without checkpoint"),
    "number of no checkpoints": (["--keep", "5"], "keep is 5 without checkpoint"),
    "no checkpoint to keep": (["--checkpoint", "states", "--keep", "0"], "keep is 0"),
    "time to a checkpoint": (["--checkpoint", "states", "--every", "-1"], "every"),
    "time that is no number": (["--checkpoint", "states", "--every", "nan"], "every"),
    "option": (["--temprature", "1"], "temprature"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, word = BAD[case]
    with pytest.raises(SystemExit) as stop:
        main(["ising", "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "error:" in error
    assert word in error
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["ising", *QUICK, "--out", str(occupied)])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert occupied.read_text() == "mine"


@pytest.mark.parametrize("name", sorted(FILES))
def test_out_with_a_folder_in_the_way(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["ising", *QUICK, "--out", str(tmp_path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{name} in it is a folder" in error
    assert "--out" in error


def test_a_history_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        main(["ising", *QUICK, "--out", str(tmp_path), "--history", str(tmp_path / "no" / "h.csv")])
    assert stop.value.code == 2
    assert "history is" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["no"]


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_a_history_and_forecasts_of_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyro_neuralrg.runtime.forecast.FORECAST_SECONDS", -1.0)
    table = tmp_path / "out" / "history.csv"  # in a folder that is not there yet
    options = ["--shape", "2", "2", "--history", str(table)]
    run(tmp_path / "out", *options, "--steps", "8")
    assert len(table.read_text().splitlines()) == 1 + 8
    notes = [line for line in capsys.readouterr().err.splitlines() if "a step now" in line]
    assert [note.split(":")[0] for note in notes] == 2 * ["warm-up", "draws"]


def test_a_training_that_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before its first step; the files of an earlier run stay."""
    (tmp_path / "report.json").write_text("of an earlier run")
    monkeypatch.setattr("pyro_neuralrg.runtime.memory.available_memory", lambda _: 1e8)
    command = ["ising", *QUICK, "--shape", "4", "4", "--out", str(tmp_path), "--batch", "100000"]
    assert main(command) == 2
    assert "batch is 100000, of which a training step takes about" in one_error(capsys)
    assert (tmp_path / "report.json").read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        (60.0, "shape is (4, 4): that takes"),
        (1e3, "shape is (4, 4) and batch is 16: that takes"),
        (1.5e3, "shape is (4, 4), chains is 3 and draws is 10: that takes"),
    ],
)
def test_settings_that_cannot_fit(
    there: float,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is available counts, whatever memory the machine has; nothing is built, or written."""
    monkeypatch.setattr("pyro_neuralrg.runtime.memory.available_memory", lambda _: there)
    monkeypatch.setattr(IsingDual, "__init__", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(SystemExit) as stop:
        main(["ising", *QUICK, "--shape", "4", "4", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert seen in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def nan_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the energy be NaN from one call on."""
    energy, seen = IsingDual.energy, []

    def breaking(self: IsingDual, x: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return energy(self, x) + (math.nan if len(seen) > calls else 0.0)

    monkeypatch.setattr(IsingDual, "energy", breaking)


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The lines on stderr that are no progress bars; one of them."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neuralrg:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.filterwarnings("ignore:training (diverged|stopped):UserWarning")
def test_a_training_that_meets_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best flow and its report are saved; a report of an earlier run is not kept."""
    (tmp_path / "samples.nc").write_text("of an earlier run")
    (tmp_path / ".report.json.0a.tmp").write_text("of one that was killed")
    nan_after(4, monkeypatch)
    assert main(["ising", *QUICK, "--shape", "2", "2", "--out", str(tmp_path)]) == 1
    assert "stopped early: the loss at step 2 is nan, after 10 divergences" in one_error(capsys)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stopped"] == "the loss at step 2 is nan, after 10 divergences before"
    assert report["training"]["steps"] == 2
    assert report["free_energy"]["variational"] is None
    assert report["free_energy"]["exact"] is not None
    assert {path.name for path in tmp_path.iterdir()} == {
        "flow.pt", "report.json", "free_energy.png",
    }  # fmt: skip
    flow = pyro_neuralrg.load(tmp_path / "flow.pt").flow
    assert all(bool(torch.isfinite(p).all()) for p in flow.parameters())


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), RuntimeError("a b"), MemoryError("a b"), OverflowError("a b"),
     OSError("a b")],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["train", "estimate", "sample"])
def test_a_stage_that_fails(
    stage: str,
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Experiment, stage, fail)
    arguments = ["ising", *QUICK, "--shape", "2", "2", "--out", str(tmp_path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(arguments) == 1
    assert "a b" in one_error(capsys)
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == (set() if stage == "train" else {"flow.pt", "report.json", "free_energy.png"})


def test_a_report_of_numbers_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = FreeEnergyEstimate(math.inf, math.nan, math.inf, math.nan, 0.0, 20)
    monkeypatch.setattr(Experiment, "estimate", lambda _: nothing)
    monkeypatch.setattr(Experiment, "bounds", lambda _: Bounds(-math.inf, math.nan, math.inf, 0.0))
    monkeypatch.setattr(IsingDual, "log_partition", lambda _: math.nan)
    monkeypatch.setattr(IsingModel, "structure_factor", lambda _: -math.inf)
    report = run(tmp_path, "--shape", "2", "2")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    energy = report["free_energy"]
    assert energy == dict.fromkeys(energy) | {"ess": 0.0, "num_samples": 20}
    assert report["sampling"]["exact_structure_factor"] is None
    out = capsys.readouterr().out
    assert "unknown (the exact formula gives nan here)" in out
    assert "unknown (the exact formula gives -inf here)" in out


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_the_report_does_not_wait_for_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(Output, "_write_figures", fail)
    assert main(["ising", *QUICK, "--shape", "2", "2", "--out", str(tmp_path)]) == 1
    assert one_error(capsys).endswith("no ink; saved: flow.pt, report.json, samples.nc")
    assert json.loads((tmp_path / "report.json").read_text())["shape"] == [2, 2]


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_ctrl_c_while_writing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = Output._named

    def pressed(self: Output, name: str) -> AbstractContextManager[Path]:
        signal.raise_signal(signal.SIGINT)
        return named(self, name)

    monkeypatch.setattr(Output, "_named", pressed)
    assert main(["ising", *QUICK, "--shape", "2", "2", "--out", str(tmp_path)]) == 130
    assert "interrupted; what was there is saved" in one_error(capsys)
    assert {"flow.pt", "report.json", "free_energy.png"} == {p.name for p in tmp_path.iterdir()}
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == "interrupted"


def test_no_device_of_that_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ising", *QUICK, "--device", "cuda:99", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "device" in capsys.readouterr().err


def test_help_names_every_option_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ising", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "shape", "temperature", "steps", "batch", "chains", "draws", "seed", "device", "dtype",
        "out", "checkpoint", "every", "keep", "resume",
    ):  # fmt: skip
        assert f"--{option}" in text
    assert "neuralrg-output" in text


def test_interrupted_run_is_saved(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a training that would take hours."""
    arguments = ["--shape", "4", "4", "--steps", "1000000", "--batch", "8", "--out", str(tmp_path)]
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        [sys.executable, "-m", "pyro_neuralrg", "ising", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_training(process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "free energy" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stopped"] == "interrupted"
    assert 0 < report["training"]["steps"] < 1_000_000
    assert report["sampling"]["latent"] is None
    assert pyro_neuralrg.load(tmp_path / "flow.pt").flow.shape == (4, 4)
    assert not list(tmp_path.glob(".*"))


def without_seconds(report: dict) -> dict:
    del report["training"]["seconds"]
    for sampler in report["sampling"].values():
        if isinstance(sampler, dict):
            del sampler["seconds"], sampler["ess_per_second"]
    return report


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
@pytest.mark.filterwarnings("default:.*holds no checkpoint yet:UserWarning")
def test_a_finished_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first --resume finds nothing and begins; the second one writes the outputs again."""
    states, out = tmp_path / "states", tmp_path / "out"
    options = ["--shape", "2", "2", "--checkpoint", str(states), "--resume"]
    first = without_seconds(run(out, *options))
    assert "holds no checkpoint yet: training starts from the beginning" in one_error(capsys)
    for path in out.iterdir():
        path.unlink()
    assert without_seconds(run(out, *options)) == first
    assert {path.name for path in out.iterdir()} == FILES
    names = ["latent.pt", "physical.pt", "training-0000000004.pt"]
    assert sorted(path.name for path in states.iterdir()) == names


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_another_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ["--checkpoint", str(tmp_path / "states")]
    run(tmp_path / "out", "--shape", "2", "2", *states)
    capsys.readouterr()
    before = (tmp_path / "out" / "report.json").read_bytes()
    command = ["ising", *QUICK, "--out", str(tmp_path / "out"), *states]
    assert main([*command, "--shape", "2", "2", "--seed", "3"]) == 2
    assert "an earlier training; accepted: resume=True" in one_error(capsys)
    assert main([*command, "--shape", "4", "2", "--seed", "3", "--resume"]) == 2
    error = one_error(capsys)
    for named in (" shape [2, 2] (here [4, 2])", "seed 0 (here 3)"):
        assert named in error
    assert (tmp_path / "out" / "report.json").read_bytes() == before


class KilledError(Exception):
    """The end of the process, as far as the command can tell."""


def at_draw(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Act in a draw, counted over both samplers."""
    draw, counter = VectorizedMCMC._one_draw, itertools.count(1)

    def watched(self: VectorizedMCMC, *arguments: object) -> object:
        if next(counter) == number:
            act()
        return draw(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(VectorizedMCMC, "_one_draw", watched)


def die() -> None:
    raise KilledError


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
@pytest.mark.filterwarnings("default:.*going on from .*previous:UserWarning")
@pytest.mark.parametrize("draw", [4, 17])
@pytest.mark.parametrize("damage", [False, True])
def test_killed_while_sampling_and_resumed(
    draw: int,
    damage: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the latent sampler or in the physical one: the report of a run that was not."""
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states"), "--every", "0"]
    whole = without_seconds(run(tmp_path / "whole", "--shape", "2", "2"))
    with monkeypatch.context() as patch:
        at_draw(draw, die, patch)
        with pytest.raises(KilledError):
            main(["ising", *QUICK, *options, "--out", str(tmp_path / "out")])
    capsys.readouterr()
    if damage:
        newest = tmp_path / "states" / ("latent.pt" if draw < 10 else "physical.pt")
        newest.write_bytes(newest.read_bytes()[:-500])
    resumed = without_seconds(run(tmp_path / "out", *options, "--resume"))
    assert ("is corrupt" in capsys.readouterr().err) == damage
    assert resumed == whole


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_terminated_while_sampling_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM keeps the draw it came in."""
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states")]
    whole = without_seconds(run(tmp_path / "whole", "--shape", "2", "2"))
    with monkeypatch.context() as patch:
        at_draw(4, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(["ising", *QUICK, *options, "--out", str(tmp_path / "out")]) == 130
    assert json.loads((tmp_path / "out" / "report.json").read_text())["stopped"] == "interrupted"
    idata = arviz.from_netcdf(str(tmp_path / "out" / "samples.nc"))
    assert idata.posterior["x"].shape[:2] == (3, 4)
    assert without_seconds(run(tmp_path / "out", *options, "--resume")) == whole


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_samplers_of_other_settings_are_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states")]
    run(tmp_path / "out", *options)
    before = (tmp_path / "out" / "report.json").read_bytes()
    capsys.readouterr()
    command = ["ising", *QUICK, *options, "--out", str(tmp_path / "out"), "--resume"]
    assert main([*command, "--chains", "4", "--draws", "11"]) == 2
    error = one_error(capsys)
    for named in ("chains 3 (here 4)", "draws 10 (here 11)"):
        assert named in error
    assert "num_chains" not in error
    assert "warmup" not in error
    assert (tmp_path / "out" / "report.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_samplers_are_not_taken_over_blindly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of other settings, whatever the folder is called; nor without their training."""
    states = tmp_path / "sites.x"
    options = ["--shape", "2", "2", "--checkpoint", str(states), "--out", str(tmp_path / "out")]
    run(tmp_path / "out", *options)
    capsys.readouterr()
    command = ["ising", *QUICK, *options]
    assert main([*command, "--chains", "4", "--resume"]) == 2
    assert "latent.pt is of another run, with chains 3 (here 4); accepted" in one_error(capsys)
    (states / "training-0000000004.pt").unlink()
    for more in ([], ["--resume"], ["--seed", "1"]):
        assert main([*command, *more]) == 2
        assert "holds latent.pt and physical.pt without the training" in one_error(capsys)


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_a_sampler_of_an_earlier_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not corrupt, and not overwritten."""
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states")]
    run(tmp_path / "out", *options)
    path = tmp_path / "states" / "latent.pt"
    replace(FORMAT, version=1, sealed=False).write(path, FORMAT.read(path))
    before = path.read_bytes()
    capsys.readouterr()
    assert main(["ising", *QUICK, *options, "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert re.search(r"latent\.pt has no seal: .* earlier version.*version 3$", one_error(capsys))
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_a_sampler_of_another_seed_is_not_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the training of this one: the physical target knows nothing of the flow."""
    options = ["--shape", "2", "2", "--checkpoint"]
    for seed in ("0", "1"):
        run(tmp_path / seed, *options, str(tmp_path / seed / "states"), "--seed", seed)
    shutil.copy(tmp_path / "0" / "states" / "physical.pt", tmp_path / "1" / "states")
    before = (tmp_path / "1" / "report.json").read_bytes()
    capsys.readouterr()
    command = ["ising", *QUICK, *options, str(tmp_path / "1" / "states"), "--seed", "1"]
    assert main([*command, "--out", str(tmp_path / "1"), "--resume"]) == 2
    assert "physical.pt is of another run, with seed 0 (here 1)" in one_error(capsys)
    assert (tmp_path / "1" / "report.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
@pytest.mark.filterwarnings("default:.*cannot be written:UserWarning")
@pytest.mark.parametrize("name", ["latent", "training"])
def test_checkpoints_for_which_there_is_no_room(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All results are there, one warning, and in the end a line and an exit code."""
    states = tmp_path / "states"
    options = ["--shape", "2", "2", "--checkpoint", str(states), "--every", "0"]
    whole = without_seconds(run(tmp_path / "whole", "--shape", "2", "2"))
    fill_disk(lambda path: path.name.startswith(name), monkeypatch)
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["ising", *QUICK, *options, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("neuralrg:")]
    assert len(lines) == 2
    assert lines[0].startswith(f"neuralrg: warning: {states}/{name}")
    assert lines[1].startswith(f"neuralrg: not written: {states}/{name}")
    assert all("No space left on device" in line for line in lines)
    report = without_seconds(json.loads((out / "report.json").read_text()))
    (unsaved,) = report.pop("unsaved")
    assert unsaved in lines[1]
    assert whole.pop("unsaved") == []
    assert report == whole
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_a_state_that_cannot_be_read_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk breaks after training: what it found is written, and the file is named."""
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states")]
    run(tmp_path / "out", *options)
    break_reading("latent", monkeypatch, after=1)
    capsys.readouterr()
    assert main(["ising", *QUICK, *options, "--out", str(tmp_path / "out"), "--resume"]) == 1
    error = one_error(capsys)
    assert "stopped early: [Errno 5] Input/output error" in error
    assert str(tmp_path / "states" / "latent.pt") in error
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "Input/output error" in report["stopped"]
    assert report["free_energy"]["variational"] is not None
    assert report["training"]["steps"] == 4


@pytest.mark.parametrize("name", ["latent", "training"])
@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_states_that_cannot_be_read(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Said before anything is done, and nothing begins anew."""
    options = ["--shape", "2", "2", "--checkpoint", str(tmp_path / "states")]
    run(tmp_path / "out", *options)
    before = (tmp_path / "out" / "report.json").read_bytes()
    break_reading(name, monkeypatch)
    capsys.readouterr()
    assert main(["ising", *QUICK, *options, "--out", str(tmp_path / "out"), "--resume"]) == 2
    error = one_error(capsys)
    assert "[Errno 5] Input/output error" in error
    assert str(tmp_path / "states") in error
    assert (tmp_path / "out" / "report.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
def test_outputs_for_which_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crowded(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyro_neuralrg.app.report.save_tree", crowded)
    assert main(["ising", *QUICK, "--shape", "2", "2", "--out", str(tmp_path)]) == 1
    assert one_error(capsys) == (
        f"neuralrg: error: {tmp_path}/samples.nc cannot be written (No space left on device); "
        "saved: flow.pt, report.json"
    )


@pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")
@pytest.mark.filterwarnings("default:.*cannot be written:UserWarning")
def test_a_folder_of_states_that_disappears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between training and sampling: it is made again; four checkpoints are kept."""
    states, estimate = tmp_path / "states", Experiment.estimate

    def removing(self: Experiment) -> FreeEnergyEstimate:
        shutil.rmtree(states)
        return estimate(self)

    monkeypatch.setattr(Experiment, "estimate", removing)
    options = ["--checkpoint", str(states), "--every", "0", "--keep", "4"]
    run(tmp_path / "out", "--shape", "2", "2", *options)
    numbers = ("", ".previous", ".previous-2", ".previous-3")
    expected = {f"{name}{number}.pt" for name in ("latent", "physical") for number in numbers}
    assert {path.name for path in states.iterdir()} == expected


@pytest.mark.slow
def test_terminated_and_resumed(tmp_path: Path) -> None:
    """SIGTERM, as batch systems send it, saves a checkpoint and the report."""
    arguments = [
        "--shape", "2", "2", "--steps", "400", "--batch", "8", "--chains", "2", "--draws", "10",
        "--checkpoint", str(tmp_path / "states"), "--resume",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pyro_neuralrg", "ising", *arguments]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_training(process)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stopped"] == "interrupted"
    assert 0 < report["training"]["steps"] < 400
    (state,) = (tmp_path / "states").iterdir()  # no sampling yet
    assert state.name == f"training-{report['training']['steps']:010d}.pt"
    resume = [*command, "--out", str(tmp_path / "other")]
    never_stopped = [*command[:-3], "--out", str(tmp_path / "whole")]
    for line in (resume, never_stopped):
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    resumed, whole = (
        without_seconds(json.loads((folder / "report.json").read_text()))
        for folder in (tmp_path / "other", tmp_path / "whole")
    )
    assert resumed == whole


@pytest.mark.slow
def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "pyro_neuralrg", "ising", "--shape", "2", "2", *QUICK, "--chains", "4",
        "--checkpoint", str(tmp_path / "states"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("free energy -ln Z") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["training"]["batch"] == 16
    idata = arviz.from_netcdf(str(tmp_path / "out" / "samples.nc"))
    assert idata.posterior["x"].shape == (4, 10, 2, 2)
    assert len(np.unique(idata.posterior["x"].values[:, -1].reshape(4, 4), axis=0)) == 4
    for option, odd, name in (("16", "15", "batch"), ("4", "5", "chains")):
        wrong = [odd if part == option else part for part in command]
        found = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        assert found.stderr.count(f"{name} is {odd} over 2 processes; accepted: a multiple") == 1


def wait_for_training(process: subprocess.Popen[str]) -> None:
    """Read the progress bar until it shows the first steps."""
    assert process.stderr is not None
    seen, deadline = "", time.monotonic() + 60
    while "ESS" not in seen:
        assert time.monotonic() < deadline, seen
        assert process.poll() is None, seen
        seen += process.stderr.read(1)
