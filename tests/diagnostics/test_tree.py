# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""ArviZ's containers, for whichever ArviZ is installed."""

from __future__ import annotations

from pathlib import Path

import arviz
import numpy as np
import pytest
import xarray

from pyro_neuralrg.diagnostics import diagnose, group_of, make_tree, save_tree


@pytest.fixture(params=["installed", "1.0.0"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The generation of ArviZ: the installed one, and the one that holds xarray's trees."""
    if request.param != "installed":
        monkeypatch.setattr(arviz, "__version__", request.param)
    return int(arviz.__version__.split(".")[0])


def test_container_is_the_one_of_this_arviz(version: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 50))
    tree = make_tree({"posterior": {"x": values}, "sample_stats": {"lp": values}})
    assert isinstance(tree, xarray.DataTree if version >= 1 else arviz.InferenceData)
    assert list(group_of(tree, "sample_stats").data_vars) == ["lp"]
    assert group_of(tree, "prior") is None
    save_tree(tree, tmp_path / "run.nc")
    read = xarray.open_datatree(tmp_path / "run.nc", engine="h5netcdf")
    assert str(diagnose(read)) == str(diagnose(tree)) == repr(diagnose(tree))


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


def test_more_chains_than_draws_warn_of_nothing() -> None:
    assert make_tree({"posterior": {"x": np.zeros((64, 5))}}).posterior["x"].shape == (64, 5)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"posterior\['x'\] has shape \(3,\)"):
        make_tree({"posterior": {"x": np.zeros(3)}})
    with pytest.raises(ValueError, match=r"dims\['x'\] is \['row'\]; accepted: 2 names"):
        make_tree({"posterior": {"x": np.zeros((2, 5, 3, 3))}}, dims={"x": ["row"]})
