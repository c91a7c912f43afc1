# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's containers, for whichever ArviZ is installed."""

from __future__ import annotations

from pathlib import Path

import arviz
import numpy as np
import pytest
import xarray

from pyro_neuralrg.diagnostics import make_tree, save_tree


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


def test_more_chains_than_draws_warn_of_nothing() -> None:
    assert make_tree({"posterior": {"x": np.zeros((64, 5))}}).posterior["x"].shape == (64, 5)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"posterior\['x'\] has shape \(3,\)"):
        make_tree({"posterior": {"x": np.zeros(3)}})
