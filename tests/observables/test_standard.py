# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The observables by name: those of the functions, for each draw, wherever they are sent."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import IsingDual
from pyro_neuralrg import observables as obs


def test_they_are_the_functions_with_the_field_over_temperature() -> None:
    shape, couplings, temperature = (3, 4), (0.5, -1.0), 1.7
    x, field = torch.randn(2, 5, 3, 4), torch.randn(3, 4)
    bias = field / temperature
    energies = (x, shape, couplings, field, "periodic", bias)
    modes = obs.mode_structure_factor(x, shape, bias)
    expected = {
        "magnetisation": obs.magnetisation(obs.spin_mean(x, bias), shape),
        "abs_magnetisation": obs.expected_abs_magnetisation(x, shape, bias),
        "structure_factor": obs.structure_factor(x, shape, bias),
        "fourth_moment": obs.fourth_moment(x, shape, bias),
        "internal_energy": obs.internal_energy(
            obs.spin_mean(x, bias), shape, couplings, field, "periodic"
        ),
        "squared_internal_energy": obs.squared_internal_energy(*energies),
        "structure_factor_axis0": modes[..., 1, 0],
        "structure_factor_axis1": modes[..., 0, 1],
    }
    functions = obs.dual_observables(shape, temperature, couplings, field)
    assert list(functions) == list(expected)
    sent = pickle.loads(pickle.dumps(functions))
    for name, values in expected.items():
        torch.testing.assert_close(functions[name](x), values)
        torch.testing.assert_close(sent[name](x), values)
        assert functions[name](x.float()).dtype == torch.float32


def test_fields_of_any_lattice() -> None:
    x = torch.randn(6, 3, 1, 2)
    functions = obs.field_observables((3, 1, 2))
    modes = obs.spin_mode_structure_factor(x, (3, 1, 2))
    mean = x.mean((-3, -2, -1))
    expected = {
        "magnetisation": mean,
        "abs_magnetisation": mean.abs(),
        "structure_factor": mean**2,
        "fourth_moment": mean**4,
        "structure_factor_axis0": modes[..., 1, 0, 0],
        "structure_factor_axis2": modes[..., 0, 0, 1],
    }
    assert list(functions) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(functions[name](x), values)


def test_open_lattices_have_no_plane_waves() -> None:
    assert not any("axis" in name for name in obs.dual_observables((3, 4), boundary="open"))
    assert not any("axis" in name for name in obs.field_observables((3, 4), "open"))


@pytest.mark.parametrize("field", [0.3, np.linspace(-0.5, 0.5, 4)[::-1], [0.1, 0.2, -0.3, 0.4]])
def test_what_a_potential_takes_they_take(field: Any) -> None:
    """The mean energy of samples of a target built with the same arguments is exact."""
    target = IsingDual((4,), 1.5, (0.8,), field, "open")
    x = target.sample_reference(20_000)
    functions = obs.dual_observables((4,), 1.5, (0.8,), field, "open")
    energy = functions["internal_energy"](x)
    error = float(energy.std()) / math.sqrt(len(x) / 2)  # sweeps are correlated
    assert abs(float(energy.mean()) - target.exact_internal_energy()) < 4 * error


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (0,)}, ValueError, r"shape is \(0,\)"),
        ({"boundary": "closed"}, ValueError, r"boundary is 'closed'"),
        ({"couplings": (1.0,)}, ValueError, r"couplings has 1 entries; accepted: 2"),
        ({"temperature": -1.0}, ValueError, r"temperature is -1.0; accepted"),
        ({"field": 0.3}, ValueError, r"temperature is None; accepted: .* where there is a field"),
        (
            {"field": [1.0, 2.0], "temperature": 1.0},
            ValueError,
            r"field is \[1.0, 2.0\]; accepted: .* of shape \(2, 3\)",
        ),
        ({"field": "up", "temperature": 1.0}, TypeError, r"field is 'up'; accepted"),
        ({"field": math.nan, "temperature": 1.0}, ValueError, r"field is nan; accepted"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        obs.dual_observables(**{"shape": (2, 3)} | arguments)
