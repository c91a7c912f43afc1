# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Where the exact structure factor is out of reach the main job reports cluster Monte Carlo."""

from __future__ import annotations

import pytest

from pyro_neuralrg.app import ising
from pyro_neuralrg.app.ising import Experiment, Results, Settings
from pyro_neuralrg.app.report import as_json, table
from pyro_neuralrg.potentials import IsingModel


def run(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(ising, "ESTIMATE_SAMPLES", 2000)
    monkeypatch.setattr(ising, "REFERENCE_SITES", 2**15)
    settings = Settings(shape, temperature=4.5, steps=2, batch=8, chains=2, draws=4)
    with pytest.warns(UserWarning, match="effective samples"):
        return Experiment.prepare(settings).run()


def test_reference_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    results = run((3, 4, 4), monkeypatch)
    report = as_json(results)["sampling"]
    assert report["exact_structure_factor"] is None
    mean, error = report["reference_structure_factor"], report["reference_structure_factor_se"]
    expected, its_error = IsingModel((3, 4, 4), 4.5).reference_structure_factor(4000, 1)
    assert 0 < error < 0.1 * mean
    assert abs(mean - expected) < 4 * (error**2 + its_error**2) ** 0.5
    assert f"cluster Monte Carlo   {mean:.5f} +- {error:.5f}" in table(results)


def test_no_reference_beside_an_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    results = run((3, 3, 3), monkeypatch)
    report = as_json(results)["sampling"]
    assert report["exact_structure_factor"] is not None
    assert report["reference_structure_factor"] is None
    assert report["reference_structure_factor_se"] is None
    assert "Monte Carlo " not in table(results)
