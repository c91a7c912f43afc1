# SPDX-License-Identifier: Apache-2.0
"""ArviZ's figures of series and of fields, site by site, and ranks."""

from __future__ import annotations

import math

import arviz
import numpy as np
import pytest
import torch

from pyro_neuralrg.statistics import bfmi, summarise, summarise_field, summary_table
from pyro_neuralrg.statistics.summary import rank_counts
from tests.statistics.processes import autoregressive


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_figures_of_a_series_of_known_correlation() -> None:
    """ESS of an autoregressive series is n (1 - r) / (1 + r)."""
    values = autoregressive(0.6, 20, 2000)
    found = summarise(torch.from_numpy(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.ess_bulk == pytest.approx(40_000 * 0.25, rel=0.15)
    assert found.mcse == pytest.approx(1 / math.sqrt(40_000 * 0.25), rel=0.15)
    assert 0.999 < found.rhat < 1.01


def test_figures_are_arvizs(rng: np.random.Generator) -> None:
    values = rng.normal(size=(4, 100, 2, 3)).cumsum(1) * 0.1 + rng.normal(size=(4, 100, 2, 3))
    found = summarise_field(torch.from_numpy(values))
    assert (found.shape, found.coverage) == ((2, 3), "")
    for place, (row, col) in enumerate(np.ndindex(2, 3)):
        site = values[..., row, col]
        expected = {
            "mean": site.mean(),
            "sd": site.std(ddof=1),
            "mcse": arviz.mcse(site, method="mean"),
            "ess_bulk": arviz.ess(site, method="bulk"),
            "ess_tail": arviz.ess(site, method="tail", prob=(0.05, 0.95)),
            "rhat": arviz.rhat(site),
        }
        for name, value in expected.items():
            assert found.figures[name][place] == pytest.approx(np.asarray(value).item())
    worst = found.worst()
    for name, extreme in (("rhat", max), ("mcse", max), ("ess_bulk", min), ("ess_tail", min)):
        assert getattr(worst, name) == extreme(found.figures[name])
    assert math.isnan(worst.mean)
    assert found.median().rhat == np.median(found.figures["rhat"])


def test_the_worst_site_is_named(rng: np.random.Generator) -> None:
    values = rng.normal(size=(4, 50, 3, 4))
    values[0, :, 1, 2] += 3
    found = summarise_field(values)
    assert found.where(found.figures["rhat"]) == (1, 2)
    scalar = summarise_field(values[..., 1, 2])  # a field of one site
    assert scalar.shape == scalar.where(scalar.figures["rhat"]) == ()
    assert scalar.worst() == scalar.median()
    assert scalar.worst().rhat > 1.1


def test_large_fields_are_sampled() -> None:
    """At random, the same sites each time, as many as have four million numbers."""
    values = np.zeros((2, 8, 50, 40)) + np.arange(2000).reshape(50, 40)  # each site its own mean
    found = summarise_field(values, max_sites=30)
    assert found.coverage == "30 of 2000 sites"
    np.testing.assert_array_equal(found.figures["mean"], found.sites)
    for places in np.unravel_index(found.sites, (50, 40)):
        assert len(set(places)) > 15
    np.testing.assert_array_equal(found.sites, summarise_field(values, max_sites=30).sites)
    for draws, sites in ((2**17, 16), (2**19, 8)):
        constant = np.broadcast_to(np.float64(0.5), (2, draws, 40))
        assert len(summarise_field(constant).sites) == sites


@pytest.mark.parametrize("shape", [(1, 100), (4, 3), (1, 1)])
def test_unknown_figures_are_nan(shape: tuple[int, int], rng: np.random.Generator) -> None:
    found = summarise_field(rng.normal(size=shape)).worst()
    assert math.isfinite(found.mean)
    assert math.isnan(found.rhat)
    for value in (found.mcse, found.ess_bulk, found.ess_tail):
        assert math.isnan(value) == (shape[1] < 4)


def test_constant_sites(rng: np.random.Generator) -> None:
    for value in (0.0, 0.1, 1e-30, -3e8):  # the mean of 0.1 rounds, to an sd of 1e-17
        found = summarise(np.full((4, 100), value))
        assert found == pytest.approx((value, 0.0, *[math.nan] * 3, 0.0), nan_ok=True, abs=0, rel=0)
    each_its_own = summarise_field(np.arange(4.0)[:, None] * np.ones(100)).worst().rhat
    assert each_its_own > 1e3  # infinite, or large by rounding
    x, large = rng.normal(size=(4, 100, 2)), rng.normal(size=(4, 100, 20))
    x[..., 1] = large[..., 3] = large[..., 7] = 0.1
    table = summary_table({"x": x, "large": large})
    assert list(table["note"]) == ["", "constant", "2 constant", ""]
    assert table.loc["x[1]", "mean"] == 0.1
    assert "note" not in summary_table({"x": x[..., 0]})


def test_what_is_not_finite_has_no_figures(caplog: pytest.LogCaptureFixture) -> None:
    found = summarise(np.array([[0.0, 1.0, math.nan, 2.0, 0.0]]))
    assert all(map(math.isnan, found))
    assert not caplog.records


def test_bfmi_is_that_of_its_definition(rng: np.random.Generator) -> None:
    energy = rng.normal(size=(3, 200)).cumsum(1)
    expected = np.square(np.diff(energy)).mean(1) / energy.var(1)
    np.testing.assert_allclose(bfmi(torch.from_numpy(energy)), expected, rtol=0.02)


def test_ranks(rng: np.random.Generator) -> None:
    """Equal draws share theirs."""
    np.testing.assert_array_equal(rank_counts(np.zeros((2, 40)), bins=4), np.full((2, 4), 10))
    values = rng.normal(size=(4, 100))
    values[0] += 10
    counts = rank_counts(torch.from_numpy(values), bins=8)
    np.testing.assert_array_equal(counts.sum(0), 50)
    np.testing.assert_array_equal(counts[0], [0, 0, 0, 0, 0, 0, 50, 50])


def test_bad_arguments() -> None:
    for function in (summarise, summarise_field, rank_counts):
        with pytest.raises(ValueError, match=r"values has shape \(10,\); accepted"):
            function(np.zeros(10))
    with pytest.raises(ValueError, match=r"values has shape \(2, 0\); accepted"):
        summarise_field(np.zeros((2, 0)))
    with pytest.raises(ValueError, match=r"energy has shape \(10,\); accepted"):
        bfmi(np.zeros(10))
    with pytest.raises(ValueError, match="bins is 9; accepted"):
        rank_counts(np.zeros((2, 4)), bins=9)
