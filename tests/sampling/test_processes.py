# SPDX-License-Identifier: Apache-2.0
"""Draws by two processes, which talk by gloo: one plan, one run, one set of moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyro_neuralrg.sampling.choice import METHODS
from tests.train.processes import together

pytestmark = pytest.mark.slow

# What both processes know: a free field, the flow of a smaller mass, and what is written of draws.
SETTING = """
    import pyro_neuralrg as rg
    target = rg.FreeField((2, 2), mass=0.7)
    flow = rg.FreeField((2, 2), mass=0.6).flow(dtype=torch.float64)
    square = {"square": lambda x: x.square().mean((-1, -2))}
    def note(name, **options):
        options = dict(observables=square, progress=False) | options
        draws = rg.sample(target, flow, 4000, **options)
        torch.save({
            "x": draws.get_samples()["x"], "method": draws.method, "reason": draws.reason,
            "mean": list(draws.mean(draws.observables["square"])),
            "exact": target.spectrum.mean(), "weights": draws.weights.values,
        }, folder / f"{name}{rank}.pt")
"""


def test_both_find_the_same_draws_of_the_target(tmp_path: Path) -> None:
    """By every method, from a record, and without a seed where torch's generators differ."""
    found = together(
        tmp_path,
        SETTING,
        f"""
        for method in {METHODS}:
            note(method, method=method, seed=1)
        kept = {{"seed": 1, "num_chains": 8}}
        note("kept", record=rg.Record(folder / "states"), **kept)
        note("loaded", record=rg.Record(folder / "states", resume=True), **kept)
        torch.manual_seed(rank)
        note("none")
        """,
    )
    assert found.stdout.endswith("[0, 0]\n"), found.stderr
    for name in (*METHODS, "kept", "loaded", "none"):
        one, other = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2))
        assert one["method"] == other["method"] == (name if name in METHODS else "independence")
        assert one["reason"] == other["reason"]
        for key in ("x", "mean", "weights"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
        assert len(one["x"]) >= 4000
        assert len(one["x"].unique(dim=0)) > 1000
        mean, error = one["mean"]
        assert 0 < float(error) < 0.1
        assert float(mean) == pytest.approx(float(one["exact"]), abs=4 * float(error))
    kept, loaded = (torch.load(tmp_path / f"{name}0.pt")["x"] for name in ("kept", "loaded"))
    torch.testing.assert_close(kept, loaded, rtol=0, atol=0)
