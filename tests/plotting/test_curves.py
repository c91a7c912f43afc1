# SPDX-License-Identifier: Apache-2.0
"""Curves over temperatures show the numbers they were given, and exact lines where known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pyro_neuralrg import plotting
from pyro_neuralrg.free_energy import Thermodynamics, scaling_collapse
from pyro_neuralrg.plotting import runs


def made_up(offset: float) -> Thermodynamics:
    """Every array another one, of three temperatures in no order."""
    names = [field.name for field in dataclasses.fields(Thermodynamics)]
    arrays = {name: 1.0 + offset + i + np.arange(3.0) for i, name in enumerate(names)}
    return Thermodynamics(**{**arrays, "temperature": np.array([2.0, 3.0, 2.5])})


def test_points_and_exact_lines() -> None:
    found = {"L = 8": made_up(0.0), "L = 16": made_up(0.1)}
    figure = plotting.plot_thermodynamics(found, critical=2.269)
    for ax, name in zip(figure.axes, runs.PANELS, strict=True):
        containers: list[Any] = list(ax.containers)
        for one, container in zip(found.values(), containers, strict=True):
            points = container.lines[0].get_xydata()
            expected = np.stack([one.temperature, getattr(one, name)], 1)
            np.testing.assert_allclose(points, expected)
            (bars,) = container.lines[2]
            lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
            np.testing.assert_allclose(lengths, 2 * getattr(one, f"{name}_se"))
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert ("L = 8, exact" in labels) == (name != "binder")
        lines: dict[Any, Any] = {line.get_label(): line.get_xydata() for line in ax.lines}
        if name != "binder":
            exact = getattr(found["L = 16"], f"exact_{name}")[[0, 2, 1]]
            np.testing.assert_allclose(lines["L = 16, exact"][:, 1], exact)
            np.testing.assert_allclose(lines["L = 16, exact"][:, 0], [2.0, 2.5, 3.0])


def test_one_result_without_exact_values() -> None:
    unknown = np.full(3, np.nan)
    found = dataclasses.replace(made_up(0.0), exact_energy=unknown, energy_se=unknown)
    first = plotting.plot_thermodynamics(found).axes[0]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["importance sampling"]
    assert "no error bar known" in first.get_title()


def test_curves_that_cross_and_collapse() -> None:
    """A line through (2, 0.5) with a slope of -L: all points on one line of x = (p - 2) L."""
    grid = np.array([1.9, 2.0, 2.1])
    curves = {side: (grid, 0.5 - side * (grid - 2.0), np.full(3, 0.1)) for side in (8, 4)}
    figure = plotting.plot_collapse(curves, scaling_collapse(curves, degree=1), critical=2.01)
    left, right = figure.axes
    for side, own, scaled in zip((4, 8), left.containers, right.containers, strict=True):
        points: Any = [one.lines[0].get_xydata() for one in (own, scaled)]
        np.testing.assert_allclose(points[0], np.stack(curves[side][:2], 1))
        np.testing.assert_allclose(points[1][:, 0], side * (grid - 2.0), atol=1e-6)
        np.testing.assert_allclose(points[1][:, 1], curves[side][1])
        assert own.get_label() == f"L = {side}"
        (bars,) = own.lines[2]
        np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars.get_segments()], 0.2)
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"] == [2.01]


def test_wrong_arguments_are_named() -> None:
    wrong: Any = {"a": 1}
    with pytest.raises(TypeError, match=r"found\['a'\] is an int; accepted: a Thermodynamics"):
        plotting.plot_thermodynamics(wrong)
    with pytest.raises(ValueError, match="found is empty; accepted"):
        plotting.plot_thermodynamics({})
    with pytest.raises(ValueError, match=r"critical is -1\.0; accepted"):
        plotting.plot_thermodynamics(made_up(0.0), critical=-1.0)
