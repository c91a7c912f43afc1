# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A table with one line per scalar and two per field."""

from __future__ import annotations

import arviz
import numpy as np
import pytest

from pyro_neuralrg.diagnostics import make_tree, summary
from pyro_neuralrg.statistics.convergence import summarise_field


@pytest.fixture
def draws(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "m": rng.normal(size=(4, 200)),
        "eta": 3.0 + rng.normal(size=(4, 200, 3)),
        "x": rng.normal(size=(4, 200, 4, 4)),
    }


def test_lines_and_figures(draws: dict[str, np.ndarray]) -> None:
    tree = make_tree(
        {"posterior": draws}, dims={"eta": ["school"]}, coords={"school": ["a", "b", "c"]}
    )
    table = summary(tree)
    assert list(table.index) == ["m", "eta[a]", "eta[b]", "eta[c]", "x[worst]", "x[median]"]
    assert list(table.columns) == ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    for index, label in enumerate(["eta[a]", "eta[b]", "eta[c]"]):
        values = draws["eta"][..., index]
        row = table.loc[label]
        assert row["mean"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        assert row["r_hat"] == pytest.approx(np.asarray(arviz.rhat(values)).item())
        bulk = np.asarray(arviz.ess(values, method="bulk")).item()
        assert row["ess_bulk"] == pytest.approx(bulk)
    found = summarise_field(draws["x"])
    assert table.loc["x[worst]", "r_hat"] == found.figures["rhat"].max()
    assert table.loc["x[worst]", "ess_tail"] == found.figures["ess_tail"].min()
    assert table.loc["x[median]", "mean"] == np.median(found.figures["mean"])


def test_a_choice_of_sites_is_told(draws: dict[str, np.ndarray]) -> None:
    table = summary(make_tree({"posterior": draws}), var_names=["m", "x"], max_sites=5)
    assert list(table["sites"]) == ["", "5 of 16 sites", "5 of 16 sites"]


def test_bad_names(draws: dict[str, np.ndarray]) -> None:
    tree = make_tree({"posterior": draws})
    with pytest.raises(ValueError, match=r"var_names has \['y'\]"):
        summary(tree, var_names=["y"])
    with pytest.raises(ValueError, match="group is 'prior'"):
        summary(tree, group="prior")
