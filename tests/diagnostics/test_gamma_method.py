# SPDX-License-Identifier: Apache-2.0
"""Draws as observables of pyerrors, whose Gamma method agrees with ours."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest

from pyro_neuralrg import HMC, FreeField, VectorizedMCMC
from pyro_neuralrg.diagnostics import make_tree, to_pyerrors
from pyro_neuralrg.statistics import tau_int
from tests.statistics.processes import autoregressive

pytestmark = pytest.mark.filterwarnings("ignore:`scipy.odr` is deprecated:DeprecationWarning")
needs_pyerrors = pytest.mark.skipif(
    importlib.util.find_spec("pyerrors") is None, reason="pyerrors is not installed"
)


@needs_pyerrors
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_times_and_errors_are_those_of_pyerrors(correlation: float) -> None:
    series = autoregressive(correlation, 4, 10_000)
    observable = to_pyerrors(make_tree({"posterior": {"m": series}}))["m"]
    observable.gamma_method()
    assert observable.e_content == {"run": [f"run|r{chain}" for chain in range(4)]}
    assert observable.value == pytest.approx(series.mean())
    found, time = tau_int(series), observable.e_tauint["run"]
    exact = (1 + correlation) / (2 * (1 - correlation))
    assert abs(time - found.time) < found.standard_error
    assert abs(found.time - exact) < 4 * found.standard_error
    assert observable.e_dtauint["run"] == pytest.approx(found.standard_error, rel=0.5, abs=0.02)
    error = math.sqrt(2 * found.time / series.size) * series.std()
    relative = found.standard_error / found.time
    assert observable.dvalue == pytest.approx(error, rel=relative)


@needs_pyerrors
def test_fields_and_runs() -> None:
    mcmc = VectorizedMCMC(HMC(FreeField((2, 3), 0.8)), 20, 5, num_chains=3, progress=False)
    mcmc.run()
    found = to_pyerrors(mcmc, ["x", "structure_factor"], ensemble="A")
    assert list(found) == ["x", "structure_factor"]
    x = mcmc.get_samples()["x"]
    assert found["x"].shape == (2, 3)
    assert found["x"][1, 2].value == pytest.approx(float(x[:, 1, 2].mean()))
    assert found["structure_factor"].names == ["A|r0", "A|r1", "A|r2"]


@needs_pyerrors
def test_bad_runs() -> None:
    with pytest.raises(ValueError, match="run, a dict, has no draws; accepted: a run Vectorized"):
        to_pyerrors({})
    for values, message in (
        (np.zeros((2, 4)), "x has 4 draws a chain; accepted: at least five"),
        (np.full((2, 9), np.nan), "x has 18 entries that are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            to_pyerrors(make_tree({"posterior": {"x": values}}))


def test_without_pyerrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyerrors", None)
    with pytest.raises(ImportError, match=r"pip install \"pyro-neuralrg\[pyerrors\]\""):
        to_pyerrors({})
