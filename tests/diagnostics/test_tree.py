# SPDX-License-Identifier: Apache-2.0
"""ArviZ's containers, for whichever ArviZ is installed, and importance weights in them."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch
import xarray

from pyro_neuralrg.diagnostics import diagnose, group_of, make_tree, save_tree, weights_to_arviz
from pyro_neuralrg.free_energy.importance import from_log_weights
from pyro_neuralrg.statistics import LogWeights


@pytest.mark.parametrize("version", [arviz.__version__, "1.0.0"])
def test_container_is_the_one_of_this_arviz(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed ArviZ, and the one that holds xarray's trees."""
    monkeypatch.setattr(arviz, "__version__", version)
    values = np.random.default_rng(0).normal(size=(2, 50))
    tree = make_tree({"posterior": {"x": values}, "sample_stats": {"lp": values}})
    holds_trees = int(version.split(".")[0]) >= 1
    assert isinstance(tree, xarray.DataTree if holds_trees else arviz.InferenceData)
    assert list(group_of(tree, "sample_stats").data_vars) == ["lp"]
    assert group_of(tree, "prior") is None
    save_tree(tree, tmp_path / "run.nc")
    read = xarray.open_datatree(tmp_path / "run.nc", engine="h5netcdf")
    assert str(diagnose(read)) == str(diagnose(tree)) == repr(diagnose(tree))


def test_dims_coords_and_attributes() -> None:
    tree = make_tree(
        {"posterior": {"x": np.zeros((64, 5, 3)), "y": np.zeros((64, 5))}},
        dims={"x": ["site"], "absent": ["other"]},
        coords={"site": ["a", "b", "c"], "other": [1]},
        attrs={"seed": 7},
    )
    assert tree.posterior["x"].dims == ("chain", "draw", "site")
    assert list(tree.posterior["site"].values) == ["a", "b", "c"]
    assert tree.posterior.attrs["seed"] == 7
    assert "other" not in tree.posterior.coords


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"posterior\['x'\] has shape \(3,\)"):
        make_tree({"posterior": {"x": np.zeros(3)}})
    with pytest.raises(ValueError, match=r"dims\['x'\] is \['row'\]; accepted: 2 names"):
        make_tree({"posterior": {"x": np.zeros((2, 5, 3, 3))}}, dims={"x": ["row"]})


DATES = [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)]
MIXED = [[1, "a"], ["a", math.nan], [None, 1], [1, DATES[0]], [b"a", "b"], [2**70, 1]]
NO_ROW = [[1], [1, 2, 3], [(1, 2), (3, 4)], [[1, 2], [3]], 5]


@pytest.mark.parametrize("values", [*MIXED, *NO_ROW], ids=repr)
def test_coordinates_that_no_file_takes(values: Any) -> None:
    with pytest.raises(ValueError, match=r"coords\['site'\] is .*; accepted: 2 numbers, 2 strings"):
        make_tree({"posterior": {"x": np.zeros((2, 5, 2))}}, {"x": ["site"]}, {"site": values})


@pytest.mark.parametrize(
    "values", [[1, 2.5], [True, False], ["a", "b"], "ab", DATES, np.arange(2)], ids=repr
)
def test_coordinates_are_in_the_file(values: Any, tmp_path: Path) -> None:
    groups, dims = {"posterior": {"x": np.zeros((2, 5, 2))}}, {"x": ["site"]}
    tree = make_tree(groups, dims, {"site": values})
    save_tree(tree, tmp_path / "run.nc")
    with xarray.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as read:
        np.testing.assert_array_equal(read.posterior["site"], tree.posterior["site"])


@pytest.mark.parametrize(
    ("name", "dims", "seen"),
    [
        ("draw", ["site"], "draw_"),
        ("chain", ["site"], "chain_"),
        ("site", ["site"], "site_"),
        ("x/y", ["site"], "x_y_"),
        ("", ["site"], "_"),
        ("a\0b", None, "a_b"),
        ("theta", ["draw"], "theta"),
        ("theta", ["a/b"], "theta"),
    ],
)
def test_names_that_are_taken_or_that_no_file_takes(
    name: str, dims: list[str] | None, seen: str, tmp_path: Path
) -> None:
    """They are changed and told when the tree is made, and all values are in the file."""
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    named, coords = ({name: dims}, {dims[0]: ["p", "q", "r"]}) if dims else ({}, {})
    coords.pop("draw", None)
    with pytest.warns(UserWarning, match="names of variables or dimensions were changed") as said:
        tree = make_tree({"posterior": {name: values, "x_y": values[..., 0]}}, named, coords)
    assert [Path(warning.filename).name for warning in said] == ["test_tree.py"]
    save_tree(tree, tmp_path / "run.nc")
    read = xarray.open_datatree(tmp_path / "run.nc", engine="h5netcdf").posterior.load()
    assert set(read.data_vars) == {seen, "x_y"}
    np.testing.assert_array_equal(read[seen], values)
    assert read[seen].dims[:2] == ("chain", "draw")
    assert list(read[read[seen].dims[2]].values) == [*coords.values(), [0, 1, 2]][0]


def test_a_changed_name_is_the_same_in_every_group() -> None:
    draws = np.zeros((2, 5))
    groups = {"posterior": {"draw": draws}, "observed_data": {"draw": np.zeros(3), "row": draws}}
    with pytest.warns(UserWarning, match="'draw' is 'draw_';"):
        tree = make_tree(groups)
    assert list(tree.posterior) == ["draw_"]
    assert list(tree.observed_data) == ["draw_", "row"]
    with pytest.warns(UserWarning, match="'sample' is 'sample_';"):
        assert "sample_" in weights_to_arviz(np.zeros(4), {"sample": np.arange(4.0)}).importance


def test_weights_agree_with_the_estimate_of_the_free_energy() -> None:
    weights = torch.randn(500) + 3.0
    group, known = weights_to_arviz(weights).importance, from_log_weights(LogWeights(weights))
    assert group.attrs["log_partition"] == pytest.approx(-known.importance)
    assert group.attrs["log_partition_se"] == known.importance_se
    copies = weights_to_arviz(LogWeights(weights, copies=True)).importance
    assert math.isnan(copies.attrs["log_partition_se"])
    assert group.attrs["pareto_k"] == known.pareto_k
    assert group.attrs["ess"] == pytest.approx(known.ess * 500)
    np.testing.assert_array_equal(group["log_weight"], weights)
    normalised = np.exp(group["log_weight_normalised"].values)
    np.testing.assert_allclose(normalised, torch.softmax(weights, 0))


def test_weights_of_zero_observables_and_coordinates() -> None:
    values = {"m": torch.arange(3.0), "x": torch.arange(6.0).reshape(3, 2)}
    options = {"dims": {"x": ["row"]}, "coords": {"row": ["top", "bottom"]}}
    group = weights_to_arviz([0.0, -math.inf, 0.0], values, **options).importance
    np.testing.assert_allclose(np.exp(group["log_weight_normalised"]), [0.5, 0.0, 0.5])
    assert group.attrs["ess"] == pytest.approx(2.0)
    assert group["x"].dims == ("sample", "row")
    np.testing.assert_array_equal(group["x"].sel(row="bottom"), [1.0, 3.0, 5.0])
    np.testing.assert_array_equal(group["m"], values["m"])


@pytest.mark.parametrize(
    ("weights", "observables", "message"),
    [
        (torch.zeros(2, 3), {}, r"log_weights has shape \(2, 3\)"),
        (torch.full((3,), -math.inf), {}, "log_weights are 3 weights of zero"),
        (torch.zeros(3), {"m": torch.zeros(2)}, r"observables\['m'\] has shape \(2,\)"),
        (torch.zeros(3), {"log_weight": torch.zeros(3)}, "a name other than"),
    ],
)
def test_bad_weights(weights: torch.Tensor, observables: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights_to_arviz(weights, observables)
