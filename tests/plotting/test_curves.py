# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What is missing in a curve is said on the Axes, by every function that draws curves."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from pyro_neuralrg import plotting
from pyro_neuralrg.analysis import GroupedInformation
from pyro_neuralrg.plotting import Series


def information(found: dict[str, Series]) -> Axes:
    groups = {}
    for name, series in found.items():
        x, values, error = (torch.tensor(np.array(a, dtype=float)) for a in series)
        groups[name] = GroupedInformation(values, error, torch.ones(len(x)), positions=x)
    return plotting.plot_information_by_distance(groups)


def effective(found: dict[str, Series]) -> Axes:
    return plotting.plot_effective_energy({name: [0.0, 1.0] for name in found}, computed=found)


FIGURES: dict[str, Callable[[dict[str, Series]], Axes]] = {
    "plot_estimates": plotting.plot_estimates,
    "plot_information_by_distance": information,
    "plot_effective_energy": effective,
}
"""Every function that draws curves, of the curves alone."""

BARS = [name for name in FIGURES if name != "plot_effective_energy"]  # of bands


def drawn(name: str, **curves: Series) -> Axes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return FIGURES[name](curves)


def title(ax: Axes) -> str:
    return " ".join(ax.get_title().split())


def test_all_functions_of_series_are_here() -> None:
    functions = {n: getattr(plotting, n) for n in plotting.__all__ if n.startswith("plot_")}
    parameters = {name: inspect.signature(f).parameters for name, f in functions.items()}
    takers = [
        name
        for name, taken in parameters.items()
        if any("Series" in str(p.annotation) for p in taken.values())
    ]
    assert takers
    assert set(takers) <= set(FIGURES)


def test_points_that_are_not_finite_are_left_out_and_unknown_errors_stay_unknown() -> None:
    series = Series([1, 2, 3, np.inf], [1.0, None, 3.0, 4.0], [0.1, 0.2, np.inf, 0.4])
    x, values, error = series.finite()
    assert x.tolist() == [1, 3]
    assert values.tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(error, [0.1, np.nan])
    with pytest.raises(ValueError, match="one length"):
        Series([1, 2], [1.0], [0.1]).finite()


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_missing_is_said(name: str) -> None:
    whole = Series([1, 2], [2.0, 3.0], [0.1, 0.1])
    assert drawn(name, a=whole).get_title() == ""
    ax = drawn(
        name,
        a=Series([1, 2, 3, 4], [2.0, np.nan, np.inf, 3.0], [0.1, 0.1, 0.1, np.nan]),
        b=Series([1, 2], [2.0, 3.0], [np.nan, np.nan]),
        c=whole,
    )
    assert title(ax).startswith(
        "2 of 4 points of 'a' are not finite and left out; no error bar known for 1 of 2 points of "
        "'a'; no error bar known for 'b'"
    )
    assert "'c'" not in title(ax)


@pytest.mark.parametrize("name", BARS)
def test_an_unknown_error_has_no_bar(name: str) -> None:
    ax = drawn(name, a=Series([1, 2, 3], [2.0, 2.5, 3.0], [0.1, np.nan, 0.2]))
    line, _, bars = ax.containers[0]
    assert len(line.get_ydata()) == 3
    ends = np.array([np.asarray(bar)[:, 1] for bar in bars[0].get_segments() if len(bar)])
    lengths = np.ptp(ends[np.isfinite(ends).all(1)], axis=1)
    np.testing.assert_allclose(lengths, [0.2, 0.4])


def test_a_band_has_a_gap_where_the_error_is_unknown() -> None:
    steps = np.arange(1.0, 10.0)
    error = np.where(steps > 5, np.nan, 0.5)
    ax = drawn("plot_effective_energy", a=Series(steps, np.full(9, 3.0), error))
    band = np.concatenate([path.vertices for path in ax.collections[-1].get_paths()])
    assert band[:, 0].max() == 5.0
    assert title(ax) == "no error bar known for 4 of 9 points of 'a'"


def test_notes_stand_below_one_another() -> None:
    ax = plotting.plot_free_energy([3.0, np.nan], estimate=(2.0, np.nan))
    plotting.plot_estimates({"b": Series([1], [2.0], [np.nan])}, ax=ax)
    assert ax.get_title().splitlines() == [
        "no error bar known for 'importance sampling'",
        "not converged: the loss is not finite",
        "no error bar known for 'b'",
    ]


def test_estimates_are_drawn_with_bars_and_named() -> None:
    found = {"a": Series([1, 2], [3.0, 4.0], [0.1, 0.2]), "b": Series([1], [2.0], [0.3])}
    ax = plotting.plot_estimates(found)
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    line, _, bars = ax.containers[0]
    assert line.get_ydata().tolist() == [3.0, 4.0]
    np.testing.assert_allclose(bars[0].get_segments()[1][:, 1], [3.8, 4.2])


def test_the_error_of_a_single_chain_is_not_known() -> None:
    values = np.random.default_rng(0).uniform(size=(1, 40))
    ax = plotting.plot_structure_factor({"one": values})
    assert title(ax).startswith("no error bar known for 'one'")
    assert not ax.collections or not any(len(p.vertices) for p in ax.collections[0].get_paths())
