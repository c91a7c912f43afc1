# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The sweep: exact lengths, equal circuits, and points that are not computed twice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.paper import Start, sweep
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE

SHAPE = (4, 4)


def settings(**options: object) -> sweep.Settings:
    start = Start(shape=SHAPE, blocks="paper", batch=8, progress=False)
    defaults = {"temperatures": (2.0, 2.7), "seconds": 0.1, "circuits": (), "samples": 50}
    return sweep.Settings(start, **{**defaults, **options})


def point(case: sweep.Case, _: object = None) -> sweep.Point:
    return sweep.Point(case, 3, 10, case.temperature * 2.0**-case.depth, 0.01, 0.1, 0.5, 1.0)


def test_correlation_length_is_how_correlations_decay() -> None:
    correlations = IsingDual((16, 16), temperature=4.0).spins.correlations()[0]
    # C(r) ~ r^(-1/2) exp(-r / xi)
    decay = math.log(correlations[4] / correlations[5]) - 0.5 * math.log(5 / 4)
    assert sweep.correlation_length(4.0) == pytest.approx(1 / decay, rel=0.05)


def test_correlation_length_below_is_half_of_that_at_the_dual_temperature() -> None:
    k = 1 / 2.0
    dual = 1 / (0.5 * math.asinh(1 / math.sinh(2 * k)))
    above = sweep.correlation_length(dual)
    assert sweep.correlation_length(2.0) == pytest.approx(above / 2)
    assert sweep.correlation_length(CRITICAL_TEMPERATURE) == math.inf


def test_a_stopped_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(circuits=("tree",))
    prepared = asked.start.prepare()
    trained: list[sweep.Case] = []

    def train(case: sweep.Case, _: object) -> sweep.Point:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(case)
        return point(case)

    monkeypatch.setattr(sweep, "train_point", train)
    with pytest.raises(KeyboardInterrupt):
        sweep.compute(asked, prepared, tmp_path)
    assert len(sweep.Results.read(tmp_path).points) == 3
    monkeypatch.setattr(sweep, "train_point", lambda case, _: trained.append(case) or point(case))
    results = sweep.compute(asked, prepared, tmp_path)
    assert len(trained) == len(set(map(sweep.case_key, trained))) == 5
    assert [(p.case.temperature, p.case.depth) for p in results.points] == [
        (2.0, 1), (2.0, 2), (2.7, 1), (2.7, 2),
    ]  # fmt: skip
    assert [p.case.circuit for p in results.circuits] == ["tree"]
    assert sweep.Results.read(tmp_path) == results


def test_points_of_another_budget_are_kept_but_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_point", point)
    short = settings(temperatures=(2.0,), depths=(1,))
    prepared = short.start.prepare()
    sweep.compute(short, prepared, tmp_path)
    trained: list[sweep.Case] = []
    monkeypatch.setattr(sweep, "train_point", lambda case, _: trained.append(case) or point(case))
    sweep.compute(dataclasses.replace(short, seconds=0.2), prepared, tmp_path)
    assert len(trained) == 1
    sweep.compute(short, prepared, tmp_path)
    assert len(trained) == 1


def test_a_point_takes_its_budget_and_finds_its_gap() -> None:
    asked = settings(seconds=0.5)
    case = sweep.Case("mera", 1, 2.7, list(SHAPE), "paper", 8, 0.5, 0)
    found = sweep.train_point(case, asked)
    assert found.steps >= 1
    assert found.gap is not None
    assert found.relative is not None
    assert found.gap > -4 * found.gap_se
    exact = IsingDual(SHAPE, temperature=2.7).log_partition()
    assert found.relative == pytest.approx(found.gap / abs(exact))


def test_an_interrupted_point_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> object:
        return dataclasses.replace(fit(*arguments, **options), interrupted=True)

    monkeypatch.setattr(sweep, "fit", interrupted)
    case = sweep.Case("mera", 1, 2.7, list(SHAPE), "paper", 8, 0.1, 0)
    with pytest.raises(KeyboardInterrupt):
        sweep.train_point(case, settings())


def test_circuits_have_about_as_many_parameters() -> None:
    asked = settings(circuits=("tree", "brickwork", "mera"))
    shape = (8, 8)
    target = IsingDual(shape)
    flows = [sweep.build_flow(case, target) for case in sweep._whole_circuits(asked, shape)]
    counts = [sum(p.numel() for p in flow.parameters()) for flow in flows]
    assert max(counts) < 1.15 * min(counts)
    assert [flow.circuit.name for flow in flows] == ["tree", "brickwork", "mera"]
    assert all(flow.gaussian is None and flow.base == StandardNormal() for flow in flows)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"depths": (3,)}, "depths"),
        ({"circuits": ("ring",)}, "circuits"),
        ({"temperatures": (-1.0,)}, "temperature"),
    ],
)
def test_bad_input_before_any_training(
    options: dict[str, object], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_point", lambda *_: pytest.fail("it was trained"))
    prepared = settings().start.prepare()
    with pytest.raises(ValueError, match=word):
        sweep.compute(settings(**options), prepared, tmp_path)
    assert not list(tmp_path.iterdir())


class Clock:
    """Of CPU time, moved by hand."""

    now = 0.0

    def process_time(self) -> float:
        return self.now


def test_the_budget_is_cpu_time_and_compiling_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    asked = []

    def fit(
        *_: object, steps: int, callback: Callable[[None], bool], **__: object
    ) -> SimpleNamespace:
        clock.now += 0.0 if asked else 100.0  # the first training compiles
        asked.append(steps)
        for _ in range(steps):
            clock.now += 0.5
            if callback(None):
                break
        return SimpleNamespace(interrupted=False)

    monkeypatch.setattr(sweep, "fit", fit)
    monkeypatch.setattr(sweep, "time", clock)
    case = sweep.Case("tree", 1, 2.7, [2, 2], "paper", 8, 20.0, 0)
    found = sweep.train_point(case, settings())
    assert asked == [1, sweep.TIMED + 1, (20 - 3) / 0.5]
    assert found.steps == 34
    assert found.took == 20.0


def test_bad_budget() -> None:
    with pytest.raises(ValueError, match="seconds is 0"):
        settings(seconds=0)


def test_the_authors_stand_in_the_figure_of_their_lattice_only() -> None:
    for shape, there in (((32, 32), True), ((4, 4), False)):
        cases = [sweep.Case("mera", d, 2.0, list(shape), "paper", 8, 0.1, 0) for d in (1, 2)]
        results = sweep.Results("t", shape, 0.1, [point(c) for c in cases], [], [2], {"2": 2.19})
        figure = sweep.draw(results)
        labels = figure.axes[1].get_legend_handles_labels()[1]
        assert any("authors" in label for label in labels) is there


def test_a_case_that_is_asked_for_twice_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[sweep.Case] = []
    monkeypatch.setattr(sweep, "train_point", lambda case, _: trained.append(case) or point(case))
    start = Start(shape=SHAPE, blocks="paper", batch=8, temperature=2.7, progress=False)
    asked = dataclasses.replace(settings(circuits=("mera",)), start=start)
    results = sweep.compute(asked, start.prepare(), tmp_path)
    assert results.circuits[0] == results.points[-1]
    assert len(trained) == 4


def test_error_bars_are_relative_as_the_errors_are() -> None:
    case = sweep.Case("mera", 1, 2.7, list(SHAPE), "paper", 8, 0.1, 0)
    row = sweep.Point(case, 3, 10, gap=2.0, gap_se=0.5, relative=0.01, ess=0.5, took=1.0)
    unknown = dataclasses.replace(row, gap=None, relative=None)
    series = sweep._series([row, unknown], [1, 2])
    np.testing.assert_allclose(series.values, [0.01, math.nan])
    np.testing.assert_allclose(series.standard_error, [0.0025, math.nan])
