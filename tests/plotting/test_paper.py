# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of the paper's kind show the numbers they were given, with their errors."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_neuralrg import plotting
from pyro_neuralrg.plotting import Series


def test_estimates_are_drawn_with_bars_and_named() -> None:
    found = {"a": Series([1, 2], [3.0, 4.0], [0.1, 0.2]), "b": Series([1], [2.0], [0.3])}
    ax = plotting.plot_estimates(found)
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    line = ax.containers[0].lines[0]
    assert line.get_ydata().tolist() == [3.0, 4.0]
    segments = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[1][:, 1], [3.8, 4.2])


def test_relative_errors_are_relative() -> None:
    ax = plotting.relative_errors({"a": Series([1, 2], [-9.0, -9.9], [0.5, 0.5])}, exact=-10.0)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [0.1, 0.01])
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [0.05, 0.15])
    assert 0 < bars[1][0, 1] < 1e-4  # reaches zero: down to the edge


@pytest.mark.parametrize("exact", [0.0, float("nan")])
def test_relative_errors_need_an_exact_value(exact: float) -> None:
    with pytest.raises(ValueError, match="exact"):
        plotting.relative_errors({"a": Series([1], [1.0], [0.1])}, exact=exact)


def test_relaxation_names_what_did_not_arrive() -> None:
    steps = np.arange(1, 101)
    error = np.full(100, 0.01)
    near = Series(steps, np.linspace(0.0, 0.5, 100), error)
    far = Series(steps, np.linspace(0.0, 0.2, 100), error)
    ax = plotting.relaxation(
        {"latent": near, "physical": far}, exact=0.5, xlabel="trajectories", label="S"
    )
    assert ax.get_title() == "not converged: physical"
    assert ax.lines[0].get_ydata().tolist() == near.values.tolist()
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.51)
    assert ax.lines[2].get_ydata()[0] == 0.5


def test_relaxation_without_an_exact_value_judges_nothing() -> None:
    ax = plotting.relaxation({"a": Series([1], [0.1], [0.0])}, xlabel="x", label="S")
    assert ax.get_title() == ""
    assert len(ax.lines) == 1


def test_relaxation_of_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        plotting.relaxation({"a": Series([1], [np.nan], [0.1])}, xlabel="x", label="S")


def test_depths_mark_the_correlation_length_on_the_curve() -> None:
    curve = Series([1, 2, 3], [1e-2, 1e-3, 1e-4], [1e-5] * 3)
    lengths = {"a": 4.0, "b": 2.0**9}
    ax = plotting.depths({"a": curve, "b": curve}, lengths=lengths)
    marks = [line for line in ax.lines if line.get_marker() == "|" and line.get_markersize() == 16]
    assert len(marks) == 1  # the other is longer than any depth reaches
    assert marks[0].get_xdata()[0] == pytest.approx(2.0)
    assert marks[0].get_ydata()[0] == pytest.approx(1e-3)


def test_light_cone_counts_what_is_inside() -> None:
    masks = [np.eye(4), np.ones((2, 2)), np.ones(3)]
    figure = plotting.light_cone(masks)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["scale 0: 4 of 16", "scale 1: 4 of 4", "scale 2: 3 of 3"]


@pytest.mark.parametrize("masks", [[], [np.ones((2, 2, 2))]])
def test_light_cone_of_other_dimensions(masks: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one or two dimensions"):
        plotting.light_cone(masks)


def test_relative_errors_end_below_the_smallest_and_not_where_bars_do() -> None:
    found = {"a": Series([1, 2], [-9.0, -9.9], [0.5, 0.5])}
    ax = plotting.relative_errors(found, exact=-10.0)
    assert 0.001 < ax.get_ylim()[0] < 0.01
    many = Series(np.arange(200), -10.0 + np.r_[1e-9, np.full(199, 0.1)], np.full(200, 1e-3))
    assert plotting.relative_errors({"a": many}, exact=-10.0).get_ylim()[0] > 1e-3
    assert plotting.relative_errors({"a": Series([1], [-10.0], [0.1])}, exact=-10.0)


def test_depths_are_integers() -> None:
    curve = Series([1, 2], [1e-2, 1e-3], [1e-5] * 2)
    ticks = plotting.depths({"a": curve}, lengths={}).get_xticks()
    assert all(tick == round(tick) for tick in ticks)
