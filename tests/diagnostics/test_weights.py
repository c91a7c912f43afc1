# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights in ArviZ's containers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from pyro_neuralrg.diagnostics import save_tree, weights_to_arviz
from pyro_neuralrg.free_energy.importance import from_log_weights


def test_figures_agree_with_the_estimate_of_the_free_energy() -> None:
    weights = torch.randn(500) + 3.0
    group = weights_to_arviz(weights).importance
    known = from_log_weights(weights)
    assert group.attrs["log_partition"] == pytest.approx(-known.importance)
    assert group.attrs["pareto_k"] == known.pareto_k
    assert group.attrs["ess_fraction"] == pytest.approx(known.ess)
    assert group.attrs["ess"] == pytest.approx(known.ess * 500)
    np.testing.assert_array_equal(group["log_weight"], weights)
    normalised = np.exp(group["log_weight_normalised"].values)
    assert normalised.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(normalised, torch.softmax(weights, 0))


def test_weights_of_zero() -> None:
    group = weights_to_arviz([0.0, -math.inf, 0.0]).importance
    np.testing.assert_allclose(np.exp(group["log_weight_normalised"]), [0.5, 0.0, 0.5])
    assert group.attrs["ess"] == pytest.approx(2.0)
    assert group.attrs["log_partition"] == pytest.approx(math.log(2 / 3))


def test_observables_dims_coords_and_file(tmp_path: Path) -> None:
    values = {"m": torch.arange(4.0), "x": torch.arange(8.0).reshape(4, 2)}
    tree = weights_to_arviz(
        torch.zeros(4), values, dims={"x": ["row"]}, coords={"row": ["top", "bottom"]}
    )
    assert tree.importance["x"].dims == ("sample", "row")
    np.testing.assert_array_equal(tree.importance["x"].sel(row="bottom"), [1.0, 3.0, 5.0, 7.0])
    save_tree(tree, tmp_path / "weights.nc")
    found = xarray.open_datatree(tmp_path / "weights.nc", engine="h5netcdf")["importance"]
    np.testing.assert_array_equal(found["m"], values["m"])
    assert found.attrs["ess"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("weights", "observables", "message"),
    [
        (torch.zeros(2, 3), {}, r"log_weights has shape \(2, 3\)"),
        (torch.tensor([0.0, math.nan]), {}, "log_weights has 1 of 2 entries that are NaN"),
        (torch.full((3,), -math.inf), {}, "log_weights are 3 weights of zero"),
        (torch.zeros(0), {}, r"log_weights has shape \(0,\)"),
        (torch.zeros(3), {"m": torch.zeros(2)}, r"observables\['m'\] has shape \(2,\)"),
        (torch.zeros(3), {"log_weight": torch.zeros(3)}, "a name other than"),
    ],
)
def test_bad_arguments(weights: torch.Tensor, observables: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights_to_arviz(weights, observables)


def test_weights_that_cannot_be_written_to() -> None:
    weights = np.zeros(3)
    weights.flags.writeable = False
    assert weights_to_arviz(weights).importance.attrs["log_partition"] == pytest.approx(0.0)
