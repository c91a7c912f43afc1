# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""``neuralrg paper``: every figure from nothing and from a saved flow, and under bad input."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual, hierarchical_flow, load, save
from pyro_neuralrg.app.cli import main
from pyro_neuralrg.paper import FIGURES, Start, fig3a, fig3b, fig4a, fig4b, prepare, sweep

MODULES = {"fig3a": fig3a, "fig3b": fig3b, "fig4a": fig4a, "fig4b": fig4b, "sweep": sweep}
NUMBERS = {
    "fig3a": "fig3a.json",
    "fig3b": "fig3b.json",
    "fig4a": "fig4a.npz",
    "fig4b": "fig4b.npz",
    "sweep": "sweep.json",
}


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("figure", FIGURES)
def test_from_nothing(figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", figure, "--smoke", "--shape", "2", "2", "--out", str(tmp_path)]) == 0
    expected = {f"{figure}.png", NUMBERS[figure]} | (set() if figure == "sweep" else {"flow.pt"})
    assert {path.name for path in tmp_path.iterdir()} == expected
    picture = matplotlib.image.imread(tmp_path / f"{figure}.png")
    assert picture.std() > 0.01
    again = MODULES[figure].draw(MODULES[figure].Results.read(tmp_path))
    assert again.axes
    out = capsys.readouterr().out
    assert "2 x 2" in out
    assert f"{figure}.png" in out
    if figure != "sweep":
        assert load(tmp_path / "flow.pt").metadata["steps"] == 8


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("figure", ["fig3a", "fig3b", "fig4a", "fig4b"])
def test_from_a_saved_flow(figure: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    target = IsingDual((4,))
    save(path, target.flow(), metadata={"training_seconds": 3.0})
    before = path.read_bytes()
    out = tmp_path / "out"
    assert main(["paper", figure, "--smoke", "--flow", str(path), "--out", str(out)]) == 0
    assert path.read_bytes() == before
    trains = figure == "fig3a"  # its figure is of a training, which goes on from there
    assert (out / "flow.pt").exists() is trains
    if trains:
        results = fig3a.Results.read(out)
        assert results.title.endswith("saved flow, 8 steps of 16 more, seed 0")
        assert "8 training steps took" in fig3a.draw(results)._suptitle.get_text()
    if figure == "fig3b":
        results = fig3b.Results.read(out)
        assert results.training_seconds == 3.0
        assert results.protocol == {}


FLOW = ["--flow", "flow.pt"]
BAD = {
    "figure": (["fig5"], "fig5"),
    "shape": (["fig3a", "--shape", "0"], "shape"),
    "four sides": (["fig3a", "--shape", "2", "2", "2", "2"], "shape"),
    "temperature": (["fig4a", "--temperature", "-1"], "temperature"),
    "steps": (["fig3b", "--steps", "0"], "steps"),
    "blocks": (["fig3b", "--blocks", "lego"], "blocks"),
    "seed": (["fig3b", "--seed", "-1"], "seed"),
    "another shape": (["fig4a", "--shape", "8", "8", *FLOW], "shape"),
    "no file": (["fig4a", "--flow", "nowhere.pt"], "nowhere.pt"),
    "no flow": (["fig4a", "--flow", "text.pt"], "text.pt"),
    "sweep of one flow": (["sweep", *FLOW], "flow"),
    "seconds elsewhere": (["fig4a", "--seconds", "3"], "seconds"),
    "no seconds": (["sweep", "--seconds", "0"], "seconds"),
    "no seeds": (["fig4a", "--seeds", "0"], "seeds"),
    "seeds elsewhere": (["fig4b", "--seeds", "2"], "seeds"),
    "seeds of one flow": (["fig4a", "--seeds", "2", *FLOW], "seeds"),
    "steps of a sweep": (["sweep", "--steps", "2"], "steps"),
    "steps beside a flow": (["fig4b", "--steps", "2", *FLOW], "steps"),
    "temperatures": (["sweep", "--temperatures", "2", "-1"], "temperatures"),
    "a temperature twice": (["sweep", "--temperatures", "2", "2.0"], "temperatures"),
    "depths": (["sweep", "--shape", "4", "4", "--depths", "3"], "depths"),
    "circuits": (["sweep", "--circuits", "ring"], "circuits"),
    "one chain": (["fig3b", "--chains", "1"], "chains"),
    "chains elsewhere": (["fig3a", "--chains", "9"], "chains"),
    "no trajectories": (["fig3b", "--trajectories", "0"], "trajectories"),
    "nothing to draw": (["fig3a", "--redraw"], "fig3a.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "flow.pt", hierarchical_flow((4, 4)))
    (tmp_path / "text.pt").write_text("no flow")
    given, word = BAD[case]
    arguments = [str(tmp_path / a) if a.endswith(".pt") else a for a in given]
    with pytest.raises(SystemExit) as stop:
        main(["paper", *arguments, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "error:" in error
    assert word in error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("figure", ["sweep", "fig4b"])
def test_redraw_computes_nothing(
    figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["paper", figure, "--smoke", "--shape", "4", "--out", str(tmp_path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    (tmp_path / f"{figure}.png").unlink()
    monkeypatch.setattr("pyro_neuralrg.paper.start.fit", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(sweep, "fit", lambda *_, **__: pytest.fail("trained"))
    assert main(["paper", figure, "--redraw", "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{figure}.png").exists()
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("content", ["{}", '{"points": [{}]}', "no JSON"])
def test_redraw_of_other_results_is_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["paper", "sweep", "--redraw", "--out", str(tmp_path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


@pytest.mark.usefixtures("as_a_reader")
def test_the_sweep_is_what_was_asked_for(tmp_path: Path) -> None:
    options = ["--temperatures", "2.2", "3", "--depths", "2", "--circuits", "--seconds", "0.1"]
    shape = ["--shape", "4", "4"]
    assert main(["paper", "sweep", "--smoke", *shape, *options, "--out", str(tmp_path)]) == 0
    results = sweep.Results.read(tmp_path)
    assert [(p.case.temperature, p.case.depth) for p in results.points] == [(2.2, 2), (3.0, 2)]
    assert results.circuits == []
    assert results.seconds == 0.1


def test_out_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["paper", "fig4a", "--smoke", "--out", str(tmp_path / "file")])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the weights\nare gone")

    monkeypatch.setattr("pyro_neuralrg.paper.start.fit", fail)
    assert main(["paper", "fig4b", "--smoke", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "neuralrg: error: the weights are gone\n"


def test_fig3a_estimates_agree_with_the_exact_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fig3a, "is_trustworthy", lambda _: True)  # of so few samples none is
    start = Start(shape=(2, 2), steps=150, batch=128, progress=False)
    job = prepare("fig3a", start, small=True)
    job.run(tmp_path)
    results = fig3a.Results.read(tmp_path)
    assert results.exact == pytest.approx(-IsingDual((2, 2)).log_partition())
    assert results.steps[-1] == len(results.loss) == 150
    assert results.importance[-1] == pytest.approx(results.exact, abs=4 * results.importance_se[-1])
    assert results.smc[-1] == pytest.approx(results.exact, abs=5 * results.smc_se[-1] + 0.01)
    assert results.variational[-1] > results.exact - 4 * results.variational_se[-1]
    assert results.variational[0] > results.variational[-1]  # the first snapshot knows less


def hand_made_energies() -> fig3a.Results:
    return fig3a.Results(
        title="Ising", exact=-10.0, loss=[-1.0, -8.0, -9.0], loss_se=[0.1, 0.2, 0.3], heated=1,
        training_seconds=1.0, training_cpu_seconds=1.0, steps=[2, 3], variational=[-8.5, -9.0],
        variational_se=[0.4, 0.3], importance=[-9.5, -9.8], importance_se=[math.nan, 0.2],
        ess=[0.1, 0.5], smc=[-10.5, -9.9], smc_se=[0.5, 0.2], smc_seconds=[1.0, 1.0],
    )  # fmt: skip


def test_fig3a_draws_each_estimate_under_its_name() -> None:
    above, below = fig3a.draw(hand_made_energies()).axes
    for ax, shift, scale in ((above, 0.0, 1.0), (below, -10.0, 10.0)):
        found = {c.get_label(): c.lines[0].get_xydata() for c in ax.containers}
        for name, values in {
            "variational": [-8.5, -9.0],
            "importance sampling": [-9.5, -9.8],
            "sequential Monte Carlo": [-10.5, -9.9],
        }.items():
            expected = [v if ax is above else abs(v - shift) / scale for v in values]
            np.testing.assert_allclose(found[name], np.stack([[2, 3], expected], 1))
    loss = {c.get_label(): c.lines[0].get_xydata() for c in below.containers}["loss of a step"]
    np.testing.assert_allclose(loss, [[2, 0.2], [3, 0.1]])  # the heated step is left out
    same = [
        {c.get_label(): c.lines[0].get_color() for c in ax.containers}["importance sampling"]
        for ax in (above, below)
    ]
    assert same[0] == same[1]
    assert "importance" in below.get_title()  # no error bar is known of its first point


def test_fig3a_gives_no_error_bar_that_cannot_be_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed = iter([False, True])
    monkeypatch.setattr(fig3a, "is_trustworthy", lambda _: next(believed))
    prepare("fig3a", Start(shape=(2, 2), progress=False), small=True).run(tmp_path)
    results = fig3a.Results.read(tmp_path)
    assert math.isnan(results.importance_se[0])
    assert results.importance_se[1] > 0


def test_fig3b_curves_start_cold_and_the_protocol_carries_chains_over(tmp_path: Path) -> None:
    start = Start(shape=(4, 4), temperature=2.0, steps=8, batch=16, progress=False)
    job = prepare("fig3b", start, small=True)
    job.run(tmp_path)
    results = fig3b.Results.read(tmp_path)
    assert set(results.curves) == {"latent HMC", "latent HMC and 2 jumps", "physical HMC"}
    for name, curve in results.curves.items():
        number = 12 if name == "physical HMC" else 6  # twice as many
        assert len(curve.mean) == len(curve.standard_error) == number
        assert curve.gradients == (4 if "jumps" in name else 2)
    assert results.curves["physical HMC"].mean[0] < 0.3  # exact: 0.9
    assert set(results.protocol) == {"latent", "physical"}
    for moving in results.protocol.values():
        assert len(moving.mean) == len(moving.acceptance) == 2 * 2  # 8 steps, every 4, 2 each


def test_fig3b_visits_go_on_from_the_latents(tmp_path: Path) -> None:
    job = prepare("fig3b", Start(shape=(2, 2), progress=False), small=True)
    visits = fig3b.Visits(job.settings, job.prepared)
    first = visits.positions["latent"].clone()
    record = fig3a.TrainingStep(3, 0.0, 0.0, 1.0, 1.0, 0.1, 0.0)
    visits(record._replace(step=2))
    assert visits.found["latent"].mean == []  # not yet time
    visits(record)
    assert visits.sites == {"latent": "x_latent", "physical": "x"}
    reached = visits.positions["latent"].clone()
    assert not torch.equal(reached, first)
    structure_factor = job.prepared.target.observables()["structure_factor"]
    where = structure_factor(visits.positions["physical"]).mean()
    assert visits.found["physical"].mean[-1] == pytest.approx(float(where), abs=1e-6)
    assert visits.found["physical"].mean[-2] != visits.found["physical"].mean[-1]
    with torch.no_grad():
        for parameter in job.prepared.flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    starts = []
    run = fig3b.VectorizedMCMC.run

    def spy(self: fig3b.VectorizedMCMC) -> None:
        starts.append(dict(self.initial_params))
        run(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig3b.VectorizedMCMC, "run", spy)
        visits(record._replace(step=7))
    assert torch.equal(starts[0]["x_latent"], reached)


def test_fig3b_tunes_for_the_chains_at_stiff_places(monkeypatch: pytest.MonkeyPatch) -> None:
    aims = []

    class Spy(fig3b.VectorizedMCMC):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            aims.append((self.warmup_steps, self.adaptation.target_acceptance))

    monkeypatch.setattr(fig3b, "VectorizedMCMC", Spy)
    job = prepare("fig3b", Start(shape=(2, 2), progress=False), small=True)
    local, whole = fig3b.samplers(job.settings, job.prepared)["latent HMC"]
    fig3b.sample(job.settings, job.prepared, local, whole, 2)
    assert aims[0] == (job.settings.pilot, 0.95)


def test_error_over_chains_is_that_of_the_mean() -> None:
    mean, error = fig3b._over_chains(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert mean == [2.0, 5.0]
    assert error == pytest.approx([1.0, 0.0])  # std 2 ** 0.5 of two chains


def test_fig4a_reports_every_seed(tmp_path: Path) -> None:
    job = prepare("fig4a", Start(shape=(4, 4), progress=False), small=True, own={"seeds": 2})
    lines = job.run(tmp_path)
    results = fig4a.Results.read(tmp_path)
    assert len(results.overlaps.before) == len(results.overlaps.after) == 2
    assert results.overlaps.before[0] != results.overlaps.before[1]
    assert len(results.top.variables) == 4
    assert list(results.responses) == [0, 1, 2]
    assert sum("overlap" in line for line in lines) == 2
    assert (tmp_path / "flow-1.pt").exists()


def test_fig4a_overlaps_of_block_spins_are_one() -> None:
    flow = hierarchical_flow((4, 4), depth=1)
    x = torch.randn(5, 4, 4)
    blocks = fig4a.block_wavelets(flow, 0)
    top = fig4a.Response(tuple(range(16)), blocks, blocks, 0 * blocks, 5)
    before, after, subspace, written, rotated = fig4a._overlaps(flow, x, top)
    assert (before, after, subspace) == pytest.approx((1, 1, 1))
    patterns = fig4a.written_patterns(flow, flow.inv(x), list(range(16)))
    alike = fig4a.overlap(patterns, blocks)
    assert (written, rotated) == pytest.approx((alike.before, alike.after))


def test_fig3b_counts_the_training_of_latent_samplers_only() -> None:
    curve = fig3b.Curve([0.1, 0.2], [0.01, 0.01], 0.8, 0.1, 10.0, 3.0, 4.0, 3.5)
    curves = {"latent HMC": curve, "physical HMC": curve}
    results = fig3b.Results("t", 0.5, 100.0, 90.0, curves, {}, 10, 100)
    axes = fig3b.draw(results).axes
    assert len(axes) == 2
    assert axes[0].lines[0].get_xdata().tolist() == [1, 2]
    mark, latent, physical = axes[1].lines[:3]
    assert mark.get_xdata() == [100.0, 100.0]
    assert latent.get_xdata().tolist() == [105.0, 107.0]  # training, tuning, two trajectories
    assert physical.get_xdata().tolist() == [5.0, 7.0]
    label = " ".join(axes[1].get_xlabel().split())
    assert label.startswith("wall time (s) of training, tuning and sampling")
    assert "CPU time of the process: training 90 s of 100 s, latent HMC 3.5 s of 7 s" in label
    names = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert "the flow is trained" in names
    assert axes[0].get_title().startswith("not converged")


def test_fig3b_of_a_training_of_unknown_length_says_so() -> None:
    curve = fig3b.Curve([0.1, 0.2], [0.01, 0.01], 0.8, 0.1, 10.0, 3.0, 4.0, 3.5)
    results = fig3b.Results("t", 0.5, None, None, {"latent HMC": curve}, {}, 10, 100)
    ax = fig3b.draw(results).axes[1]
    assert ax.lines[0].get_xdata().tolist() == [5.0, 7.0]
    assert "training (unknown, left out)" in ax.get_xlabel()


def test_fig3b_keeps_its_words_within_the_figure() -> None:
    curve = fig3b.Curve([0.1, 0.2], [0.01, 0.01], 0.8, 0.1, 10.0, 203.0, 435.0, 160.0)
    names = ("latent HMC", "latent HMC and 2 jumps", "physical HMC")
    title = Start(shape=(16, 16), blocks="paper", steps=5000, batch=512).prepare().title
    results = fig3b.Results(title, 0.5, 1457.0, 427.0, dict.fromkeys(names, curve), {}, 10, 100)
    figure = fig3b.draw(results)
    figure.savefig(io.BytesIO())
    for text in (figure._suptitle, *(ax.xaxis.label for ax in figure.axes)):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_fig4b_comes_back_as_it_was(tmp_path: Path) -> None:
    job = prepare("fig4b", Start(shape=(4,), progress=False), small=True)
    results = fig4b.compute(job.settings, job.prepared, tmp_path)
    again = fig4b.Results.read(tmp_path)
    for kind in ("field", "latents"):
        assert again.information[kind].total() == results.information[kind].total()
    assert again.ratio == results.ratio
    field, latents = (results.information[kind].total() for kind in ("field", "latents"))
    assert results.ratio.value == latents.value / field.value
    relative = math.hypot(
        latents.standard_error / latents.value, field.standard_error / field.value
    )
    assert results.ratio.standard_error == pytest.approx(abs(results.ratio.value) * relative)
    np.testing.assert_array_equal(again.scales.values, results.scales.values)
    assert field.value > 3 * field.standard_error


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="estimator is 'guess'; accepted: neighbours, bins"):
        fig4b._estimator("guess")
