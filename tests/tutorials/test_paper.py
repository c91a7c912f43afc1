# SPDX-License-Identifier: Apache-2.0
"""The paper's figures: every script from nothing and from a saved flow, and under bad input."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual, hierarchical_flow, load, save
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingModel
from pyro_neuralrg.train import default_budget
from tests.tutorials import scripts

start, fig3a, fig3b, fig4a, fig4b, sweep = map(
    scripts.load, ("start", "fig3a", "fig3b", "fig4a", "fig4b", "sweep")
)
FIGURES = {"fig3a": fig3a, "fig3b": fig3b, "fig4a": fig4a, "fig4b": fig4b, "sweep": sweep}
Start, Model = start.Start, start.Model


@pytest.fixture
def flow(tmp_path: Path) -> str:
    """A saved flow that nobody trained."""
    save(tmp_path / "mine.pt", IsingDual((4, 4)).flow(), metadata={"seconds": [3.0, 2.0]})
    return str(tmp_path / "mine.pt")


def small(figure: Any, **options: Any) -> Any:
    return figure.Settings(**{**start.SMOKE, **figure.SMOKE, "progress": False, **options})


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_from_nothing_and_drawn_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for more in (["--smoke", "--shape", "2", "2"], ["--redraw"]):
        start.run(FIGURES[name], ["--out", str(tmp_path), *more])
        said.append(capsys.readouterr().out)
    trained = set() if name == "sweep" else {"flow.pt"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.pt"} | trained
    assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.01
    assert said[0] == said[1]
    assert "2 x 2" in said[0]
    assert f"{name}.png" in said[0]
    if trained:
        assert "8 steps of 16" in load(tmp_path / "flow.pt").metadata["training"]


@pytest.mark.slow
def test_a_script_is_a_command() -> None:
    command = [sys.executable, str(scripts.FOLDER / "fig3a.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(scripts.FOLDER.parents[1])}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "--snapshots" in said.stdout


@pytest.mark.parametrize("name", FIGURES)
def test_the_help_of_a_script_says_what_it_draws_and_writes(name: str) -> None:
    said = start.make_parser(FIGURES[name]).format_help()
    assert FIGURES[name].__doc__.splitlines()[0] in said
    about = said.partition("options:")[0]
    assert f"{name}.png" in about
    assert f"{name}.pt" in about
    assert len(set(re.findall(r"\w+", about))) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fig3a", "fig3b", "fig4a", "fig4b"])
def test_from_a_saved_flow(name: str, flow: str, tmp_path: Path) -> None:
    before = Path(flow).read_bytes()
    start.run(FIGURES[name], ["--smoke", "--flow", flow, "--out", str(tmp_path / "out")])
    assert Path(flow).read_bytes() == before
    results = start.read(tmp_path / "out", name)
    trains = name == "fig3a"  # its figure is of a training, which goes on from there
    assert (tmp_path / "out" / "flow.pt").exists() is trains
    assert ("saved flow, 8 steps of 16 more, seed 0" in results["title"]) is trains
    if name == "fig3b":
        assert results["seconds"] == [3.0, 2.0]
        assert results["protocol"] == {}


BAD = {
    "steps": ("fig3b", "--steps 0", "steps"),
    "sides joined": ("fig3b", "--shape 8x12", "accepted: sides apart, --shape 8 12"),
    "another shape": ("fig4a", "--shape 8 8 --flow mine.pt", "shape"),
    "no file": ("fig4a", "--flow nowhere.pt", "nowhere.pt"),
    "flow of a sweep": ("sweep", "--flow mine.pt", "flow"),
    "temperatures": ("sweep", "--temperatures 2 -1", "temperatures"),
    "depths": ("sweep", "--shape 4 4 --depths 3", "depths"),
    "no seeds": ("fig4a", "--seeds 0", "seeds"),
    "seeds of one flow": ("fig4a", "--seeds 2 --flow mine.pt", "seeds"),
    "steps beside a flow": ("fig4b", "--steps 2 --flow mine.pt", "steps"),
    "one chain": ("fig3b", "--chains 1", "chains"),
    "nothing to draw": ("fig3a", "--redraw", "fig3a.pt"),
}


@pytest.mark.usefixtures("flow")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, arguments, word = BAD[case]
    with pytest.raises(SystemExit) as stop:
        start.run(FIGURES[name], [*arguments.split(), "--out", "out"])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert word in error.splitlines()[-1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let a training end at once, and tell what was asked of it."""
    asked: dict[str, Any] = {"interrupted": False, "stopped": None}

    def fit(*_: Any, **options: Any) -> SimpleNamespace:
        asked.update(options)
        ended = {name: asked[name] for name in ("interrupted", "stopped")}
        return SimpleNamespace(**ended, steps=5, batch=32)

    monkeypatch.setattr(start, "fit", fit)
    return asked


@pytest.mark.parametrize("blocks", ["paper", "default"])
def test_training_follows_the_blocks(blocks: str, asked: dict[str, Any], tmp_path: Path) -> None:
    model = Model(Start(shape=(4, 4), blocks=blocks))
    model.train(tmp_path / "flow.pt")
    expected = (5000, 512, 1e-3) if blocks == "paper" else (default_budget((4, 4))[0], None, None)
    assert (asked["steps"], asked["batch"], asked["lr"]) == expected
    assert (asked["schedule"].cooling is None) == (blocks == "paper")
    assert f"{blocks} blocks, 5 steps of 32, seed 0" in model.title


def test_a_saved_flow_goes_on_without_cooling(asked: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    for metadata, seconds in (({"seconds": [3.0, 2.0], "training": "t"}, 3.0), ({}, math.nan)):
        save(path, hierarchical_flow((4, 4)), metadata={"temperature": 2.5, **metadata})
        with pytest.warns(UserWarning, match=r"trained at T = 2.5"):
            model = Model(Start(flow=str(path)))
        assert model.target.shape == (4, 4)
        model.train(path)
        assert asked["schedule"].cooling is None
        again = load(path).metadata
        assert again["training"].endswith(", 5 steps of 32 more")
        assert again["seconds"][0] == pytest.approx(seconds, abs=0.5, nan_ok=True)


@pytest.mark.parametrize(
    ("ended", "error"),
    [({"interrupted": True}, KeyboardInterrupt), ({"stopped": "x"}, RuntimeError)],
)
def test_nothing_is_made_of_a_training_that_ended_early(
    ended: dict[str, Any], error: type, asked: dict[str, Any], tmp_path: Path
) -> None:
    asked |= ended
    with pytest.raises(error):
        Model(Start(shape=(2, 2))).train(tmp_path / "flow.pt")
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_flow_and_latents_are_its_inverse() -> None:
    models = [Model(Start(shape=(4, 4), seed=seed)) for seed in (3, 3, 4)]
    z = torch.randn(start.FIELDS_AT_ONCE + 7, 4, 4)
    first, same, other = (model.flow(z) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.testing.assert_close(models[0].latents(first), z)


def test_what_is_not_known_is_nan() -> None:
    assert math.isnan(Model(Start(shape=(8, 8, 8))).exact("structure_factor"))
    assert Model(Start(shape=(4, 4))).exact("free_energy") == -IsingDual((4, 4)).log_partition()


@pytest.mark.slow
def test_fig3a_estimates_agree_with_the_exact_value(tmp_path: Path) -> None:
    options = {"steps": 150, "batch": 128, "samples": 2000}
    found = fig3a.compute(small(fig3a, shape=(2, 2), **options), tmp_path)
    assert found["exact"] == pytest.approx(-IsingDual((2, 2)).log_partition())
    assert found["steps"][-1] == len(found["loss"]) == 150
    for name in ("importance", "smc"):
        error = np.nan_to_num(found[f"{name}_se"][-1], nan=0.2)  # of a tail that is too heavy
        assert found[name][-1] == pytest.approx(found["exact"], abs=5 * error + 0.01)
    assert found["variational"][-1] > found["exact"] - 4 * found["variational_se"][-1]
    assert found["variational"][0] > found["variational"][-1]  # the first snapshot knows less


@pytest.mark.slow
def test_fig3b_curves_start_cold_and_the_protocol_carries_chains_over(tmp_path: Path) -> None:
    found = fig3b.compute(small(fig3b, temperature=2.0), tmp_path)
    assert len(found["curves"]) == 3
    for name, curve in found["curves"].items():
        number = 12 if name == fig3b.PHYSICAL else 6  # twice as many
        assert len(curve["mean"]) == len(curve["standard_error"]) == number
        assert curve["gradients"] == (4 if "jumps" in name else 2)
    assert found["curves"][fig3b.PHYSICAL]["mean"][0] < 0.3  # exact: 0.9
    for moving in found["protocol"].values():
        assert len(moving["mean"]) == 2 * 2  # 8 steps, every 4, 2 each


@pytest.mark.slow
def test_fig4a_reports_every_seed(tmp_path: Path) -> None:
    found = fig4a.compute(small(fig4a, seeds=2), tmp_path)
    assert len(set(found["before"])) == len(set(found["written_after"])) == 2
    assert list(found["rows"]) == ["top variables", 0, 1, 2]
    assert (tmp_path / "flow-1.pt").exists()


def test_fig4a_overlaps_of_block_spins_are_one() -> None:
    model = Model(Start(shape=(4, 4)))
    model.flow = hierarchical_flow((4, 4), depth=1)
    blocks = fig4a.block_wavelets(model.flow, 0)
    top = fig4a.Response(tuple(range(16)), blocks, blocks, 0 * blocks, 5)
    assert fig4a.overlaps(model, torch.randn(5, 4, 4), top)[:3] == pytest.approx((1, 1, 1))


def test_fig4a_draws_no_latent_twice() -> None:
    def row(*variables: int) -> dict[str, Any]:
        mean = torch.ones(len(variables), 4, 4)
        return {"variables": variables, "mean": mean, "standard_error": mean, "spread": mean,
                "num_samples": 5}  # fmt: skip

    rows = {"top variables": row(0, 2, 8, 10), 0: row(1, 3), 1: row(2, 8, 10), 2: row(0)}
    numbers = {name: [0.5] for name in fig4a.OVERLAPS}
    figure = fig4a.draw({"title": "", "rows": rows, **numbers})
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == [f"latent {latent}" for latent in (0, 2, 8, 10, 1, 3)]


@pytest.mark.slow
def test_fig4b_compares_totals(tmp_path: Path) -> None:
    found = fig4b.compute(small(fig4b, shape=(4,)), tmp_path)
    field, latents = (fig4b.information(found, kind).total() for kind in fig4b.KINDS)
    ratio = fig4b.ratio(found)
    assert ratio.value == latents.value / field.value
    relative = [total.standard_error / total.value for total in (field, latents)]
    assert ratio.standard_error == pytest.approx(abs(ratio.value) * math.hypot(*relative))
    assert field.value > 3 * field.standard_error


CASE = {
    "circuit": "mera", "depth": 1, "temperature": 2.7, "shape": [4, 4], "blocks": "paper",
    "batch": 8, "seconds": 0.5, "seed": 0,
}  # fmt: skip


def point(case: dict[str, Any], _: Any = None) -> dict[str, Any]:
    found = {"steps": 3, "parameters": 10, "gap": 2.0, "gap_se": 0.5, "free_energy": -200.0}
    return {**case, **found, "ess": 0.5, "took": 1.0}


def test_correlation_length_is_how_correlations_decay() -> None:
    correlations = np.asarray(IsingModel((16, 16), temperature=4.0).correlations())[0]
    # C(r) ~ r^(-1/2) exp(-r / xi)
    decay = math.log(correlations[4] / correlations[5]) - 0.5 * math.log(5 / 4)
    assert sweep.correlation_length(4.0) == pytest.approx(1 / decay, rel=0.05)
    dual = 1 / (0.5 * math.asinh(1 / math.sinh(2 / 2.0)))
    assert sweep.correlation_length(2.0) == pytest.approx(sweep.correlation_length(dual) / 2)
    assert sweep.correlation_length(CRITICAL_TEMPERATURE) == math.inf


def test_a_stopped_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(sweep, circuits=("tree", "mera"), temperature=2.7)
    trained: list[dict[str, Any]] = []

    def train(case: dict[str, Any], _: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(case)
        return point(case)

    monkeypatch.setattr(sweep, "train_point", train)
    with pytest.raises(KeyboardInterrupt):
        sweep.compute(settings, tmp_path)
    monkeypatch.setattr(sweep, "train_point", lambda case, _: trained.append(case) or point(case))
    results = sweep.compute(settings, tmp_path)
    assert len(trained) == 5  # a case that is asked for twice is trained once
    points = sweep.points_of(results, "points")
    asked = [(p["temperature"], p["depth"]) for p in points]
    assert asked == [(2.0, 1), (2.0, 2), (2.7, 1), (2.7, 2)]
    assert [p["circuit"] for p in sweep.points_of(results, "circuits")] == ["tree", "mera"]
    sweep.compute(replace(settings, seconds=9.0, circuits=()), tmp_path)  # another budget
    sweep.compute(settings, tmp_path)
    assert len(trained) == 5 + 4
    labels = sweep.draw(results).axes[1].get_legend_handles_labels()[1]
    assert labels == ["depth 1", "depth 2"]  # the authors' points are of 32 x 32
    error = sweep.curve(points, "depth", 1)
    np.testing.assert_allclose(error.values, 2.0 / 200.0)
    np.testing.assert_allclose(error.standard_error, 0.5 / 200.0)


@pytest.mark.slow
def test_a_point_takes_its_budget_and_finds_its_gap() -> None:
    found = sweep.train_point(CASE, small(sweep))
    assert found["steps"] >= 1
    assert found["gap"] > -4 * found["gap_se"]
    assert found["free_energy"] == -IsingDual((4, 4), temperature=2.7).log_partition()


def test_circuits_have_about_as_many_parameters() -> None:
    cases = sweep.cases(small(sweep, circuits=sweep.CIRCUITS), (8, 8))["circuits"]
    flows = [sweep.build_flow(case, IsingDual((8, 8))) for case in cases]
    counts = [sum(p.numel() for p in flow.parameters()) for flow in flows]
    assert max(counts) < 1.15 * min(counts)
    assert [flow.circuit.name for flow in flows] == list(sweep.CIRCUITS)
    assert all(flow.gaussian is None for flow in flows)
