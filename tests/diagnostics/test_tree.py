# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's containers and figures, for whichever ArviZ is installed."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import arviz
import numpy as np
import pytest
import torch
import xarray

from pyro_neuralrg.diagnostics import make_tree, save_tree, summarise
from pyro_neuralrg.diagnostics.tree import _quiet


def autoregressive(correlation: float, chains: int, draws: int) -> np.ndarray:
    """Standard normal draws whose neighbours have this correlation."""
    noise = np.random.default_rng(int(torch.randint(2**31, ()))).normal(size=(draws, chains))
    series = [noise[0]]
    for step in noise[1:]:
        series.append(correlation * series[-1] + math.sqrt(1 - correlation**2) * step)
    return np.stack(series, 1)


def test_container_is_the_one_of_this_arviz() -> None:
    tree = make_tree({"posterior": {"x": np.zeros((2, 5))}})
    one = int(arviz.__version__.split(".")[0]) >= 1
    assert isinstance(tree, xarray.DataTree if one else arviz.InferenceData)


def test_dims_coords_and_attributes() -> None:
    tree = make_tree(
        {"posterior": {"x": np.zeros((2, 5, 3)), "y": np.zeros((2, 5))}},
        dims={"x": ["site"], "absent": ["other"]},
        coords={"site": ["a", "b", "c"], "other": [1]},
        attrs={"seed": 7},
    )
    assert tree.posterior["x"].dims == ("chain", "draw", "site")
    assert list(tree.posterior["site"].values) == ["a", "b", "c"]
    assert tree.posterior.attrs["seed"] == 7
    assert "other" not in tree.posterior.coords


def test_saved_file_holds_it_all(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    groups = {"posterior": {"x": values}, "sample_stats": {"diverging": values[..., 0] > 0}}
    save_tree(make_tree(groups, dims={"x": ["site"]}), tmp_path / "samples.nc")
    for group, variables in groups.items():
        with xarray.open_dataset(
            tmp_path / "samples.nc", group=group, engine="h5netcdf"
        ) as dataset:
            for name, expected in variables.items():
                np.testing.assert_array_equal(dataset[name], expected)


def test_figures_of_a_series_of_known_correlation() -> None:
    """ESS of an autoregressive series is n (1 - r) / (1 + r)."""
    values = autoregressive(0.6, 20, 2000)
    found = summarise(torch.from_numpy(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.ess_bulk == pytest.approx(40_000 * 0.25, rel=0.15)
    assert found.mcse == pytest.approx(1 / math.sqrt(40_000 * 0.25), rel=0.15)
    assert abs(found.mean) < 4 * found.mcse
    assert 0.999 < found.rhat < 1.01


def test_chains_that_disagree_have_a_high_rhat() -> None:
    values = autoregressive(0.0, 4, 200)
    values[0] += 3
    assert summarise(values).rhat > 1.1


@pytest.mark.parametrize("shape", [(1, 100), (4, 3), (1, 1)])
def test_what_cannot_be_told_is_nan(shape: tuple[int, int]) -> None:
    found = summarise(np.random.default_rng(0).normal(size=shape))
    assert math.isfinite(found.mean)
    assert math.isnan(found.rhat)
    assert math.isnan(found.mcse) == math.isnan(found.ess_bulk) == (shape[1] < 4)


def test_constant_series_warn_of_nothing() -> None:
    assert math.isnan(summarise(np.ones((4, 100))).rhat)


def test_more_chains_than_draws_warn_of_nothing() -> None:
    assert make_tree({"posterior": {"x": np.zeros((64, 5))}}).posterior["x"].shape == (64, 5)


@pytest.mark.parametrize(
    "text",
    [
        "More chains (64) than draws (5). Passed array should have shape (chains, draws, *shape)",
        "Found chain dimension to be longer than draw dimension. Check `sample_dims` is correct.",
    ],
    ids=["0.x", "1.x"],
)
def test_the_complaint_of_either_arviz_is_quiet(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _quiet():
            warnings.warn(text, UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="another"), _quiet():
        warnings.warn("another", UserWarning, stacklevel=1)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"values has shape \(10,\); accepted: \(chains, draws\)"):
        summarise(np.zeros(10))
    with pytest.raises(ValueError, match=r"posterior\['x'\] has shape \(3,\)"):
        make_tree({"posterior": {"x": np.zeros(3)}})
