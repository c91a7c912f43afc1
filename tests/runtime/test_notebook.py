# SPDX-License-Identifier: Apache-2.0
"""In a notebook results are small tables, and bars vanish when they are done."""

from __future__ import annotations

import io
import math
import sys
import types
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pyro_neuralrg import HMC, IsingDual, VectorizedMCMC, diagnose, hierarchical_flow
from pyro_neuralrg.diagnostics import make_tree
from pyro_neuralrg.free_energy import Bounds, Expectations, FreeEnergyEstimate, reweight
from pyro_neuralrg.free_energy.annealing import Annealing
from pyro_neuralrg.runtime.console import Progress
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.sampling import Evidence, Samples
from pyro_neuralrg.statistics import Estimate, LogWeights
from pyro_neuralrg.train import FitResult, History, TrainingStep


def table_rows(html: str) -> dict[str, str]:
    """Rows of all tables by name, the first caption under "caption"; raises if badly formed."""
    found: dict[str, str] = {}
    for table in ElementTree.fromstring(f"<div>{html}</div>"):
        assert table.tag == "table"
        caption, *rows = table
        found.setdefault("caption", caption.text or "")
        found |= {row[0].text or "": row[1].text or "" for row in rows}
    return found


def test_words_are_escaped_and_missing_ones_left_out() -> None:
    html = html_table("<script>", {"a & b": "1 < 2", "nothing": None, "none drawn": 0})
    assert table_rows(html) == {"caption": "<script>", "a & b": "1 < 2", "none drawn": "0"}


def all_results() -> dict[str, Any]:
    """One result of each kind."""
    target, flow = IsingDual((2, 2)), hierarchical_flow((4, 4), circuit="tree", odd=True)
    weights, small = LogWeights(torch.zeros(40)), (Estimate(1.0, 0.1), Estimate(1.2, 0.1))
    steps = [TrainingStep(0, 3.25, 0.1, 0.5, 1.0, 1e-3, 0.2)]
    annealed = Annealing(
        -14.25, 0.05, (0.0, 1.0), (0.5,), (0.0,), (0.9,), (math.nan,), (0.1,), 30, {},
        torch.zeros(8), 2,
    )  # fmt: skip
    free_energy = FreeEnergyEstimate(-14.20, 0.02, -14.25, 0.05, 0.5, 100, 0.3)
    magnetisation = reweight(torch.randn(40), weights)
    chains = np.random.default_rng(0).normal(size=(4, 100))
    found = [
        FitResult(flow, History.from_steps(steps), 1, 64, 0.2, False, None, 0, None, 2),
        free_energy,
        Bounds(-14.3, 0.02, -14.2, 0.02),
        Evidence(1.1, 0.05, "importance", "the weights are < 1", *small, weights),
        annealed,
        magnetisation,
        Expectations({"magnetisation": magnetisation}, free_energy),
        Samples("annealing", "few draws are effective", annealed, weights),
        VectorizedMCMC(HMC(target), num_samples=5, warmup_steps=5, num_chains=2),
        flow,
        diagnose(make_tree({"posterior": {"m": chains}})),
        Estimate(0.545123, 0.00161),
    ]
    return {type(result).__name__: result for result in found}


@pytest.fixture
def results() -> dict[str, Any]:
    return all_results()


KINDS = {
    "FitResult": "free energy of the last step",
    "FreeEnergyEstimate": "-ln Z",
    "Bounds": "at least",
    "Evidence": "ln Z",
    "Annealing": "-ln Z",
    "Reweighted": "ESS",
    "Expectations": "magnetisation",
    "Samples": "because",
    "VectorizedMCMC": "kernel",
    "HierarchicalFlow": "odd",
    "Diagnosis": "worst figures",
    "Estimate": "value",
}
"""A row of the table of each kind."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_a_table(kind: str, results: dict[str, Any]) -> None:
    rows = table_rows(results[kind]._repr_html_())
    assert KINDS[kind] in rows
    assert rows["caption"]
    assert all(rows.values())


def test_numbers_are_those_of_the_line(results: dict[str, Any]) -> None:
    assert table_rows(results["Estimate"]._repr_html_())["value"] == "0.5451(16)"
    for name, kind in {"-ln Z": "FreeEnergyEstimate", "ln Z": "Evidence"}.items():
        assert table_rows(results[kind]._repr_html_())[name] in repr(results[kind])
    flow = results["HierarchicalFlow"]
    assert table_rows(flow._repr_html_())["parameters"] == str(
        sum(parameter.numel() for parameter in flow.parameters())
    )
    assert table_rows(results["Diagnosis"]._repr_html_())["caption"] in repr(results["Diagnosis"])


@pytest.mark.parametrize(("where", "left"), [("notebook", False), ("terminal", True)])
def test_bars_vanish_in_notebooks_only(
    where: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    if where == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with Progress(3, "fit") as progress:
        for _ in range(3):
            progress.step(lambda: "loss 1")
    last = stream.getvalue().rstrip("\r").rsplit("\r", 1)[-1]
    assert ("3/3" in last) is left
