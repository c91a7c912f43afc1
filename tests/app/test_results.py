# SPDX-License-Identifier: Apache-2.0
"""The report, the table and the files of a run, beside exact values."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import arviz
import pytest
import torch

import pyro_neuralrg
from pyro_neuralrg import IsingDual
from pyro_neuralrg.app import ising
from pyro_neuralrg.app.cli import main
from pyro_neuralrg.app.ising import Experiment, Settings
from pyro_neuralrg.app.report import FILES, as_json, table
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingModel
from tests.app.conftest import QUICK, Run, names, read

pytestmark = pytest.mark.filterwarnings("ignore:the importance estimate rests on:UserWarning")


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
    loaded = pyro_neuralrg.load(quick / "flow.pt")
    assert loaded.flow.shape == (4, 4)
    assert next(loaded.flow.parameters()).dtype == torch.float32
    assert loaded.metadata == {
        "shape": [4, 4], "temperature": CRITICAL_TEMPERATURE, "seed": 0, "steps": 4,
        "gap": read(quick)["free_energy"]["gap"], "version": pyro_neuralrg.__version__,
    }  # fmt: skip
    x = arviz.from_netcdf(str(quick / "samples.nc")).posterior["x"]
    assert x.dims == ("chain", "draw", "row", "col")
    assert x.shape == (3, 10, 4, 4)
    for path in quick.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_the_report_is_consistent_and_the_table_says_the_same(quick: Path) -> None:
    text, report = (quick / "stdout.txt").read_text(), read(quick)
    energy, sampling = report["free_energy"], report["sampling"]
    assert report["shape"] == [4, 4]
    assert report["temperature"] == pytest.approx(2.0 / math.log(1.0 + math.sqrt(2.0)))
    assert energy["gap"] == pytest.approx(energy["variational"] - energy["exact"])
    assert energy["relative_error"] == pytest.approx(energy["gap"] / abs(energy["exact"]))
    assert 0.0 < energy["ess"] <= 1.0
    assert energy["gap"] > 0.0
    assert energy["forward_kl"] == pytest.approx(energy["exact"] - energy["lower"])
    assert energy["forward_kl"] > 3.0 * energy["lower_se"] > 0.0
    assert abs(energy["importance"] - energy["exact"]) < energy["gap"]
    assert {"variational_se", "importance_se", "pareto_k", "num_samples"} <= set(energy)
    expected = {"structure_factor", "mcse", "rhat", "ess_bulk", "gradient_evaluations"}
    assert expected <= set(sampling["latent"]) == set(sampling["physical"])
    assert sampling["reference_structure_factor"] is None
    assert report["training"].keys() == {"steps", "batch", "parameters"}
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


def test_estimates_of_the_largest_seed() -> None:
    experiment = Experiment.prepare(Settings(shape=(2, 2), seed=2**63 - 1))
    assert experiment.estimate().num_samples > 0
    assert math.isfinite(experiment.bounds().upper)


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
