# SPDX-License-Identifier: Apache-2.0
"""Observables of vector fields against those of their components."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.observables import field_observables, vector_observables


def test_they_are_sums_over_components() -> None:
    v = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    parts, scalar = v.unbind(-1), field_observables((4, 3))
    found = {name: f(v) for name, f in vector_observables((4, 3), 2).items()}
    for name in ("structure_factor", "structure_factor_axis0", "structure_factor_axis1"):
        torch.testing.assert_close(found[name], sum(scalar[name](part) for part in parts))
    square = found["structure_factor"]
    torch.testing.assert_close(found["abs_magnetisation"], square.sqrt())
    torch.testing.assert_close(found["fourth_moment"], square.square())
    torch.testing.assert_close(found["mean_square"], v.square().sum(-1).mean((-1, -2)))


def test_of_one_component_they_are_the_scalar_ones() -> None:
    v = torch.randn(5, 6)
    scalar, vector = field_observables((6,), "open"), vector_observables((6,), 1, "open")
    assert vector.keys() - scalar.keys() == {"mean_square"}
    for name in vector.keys() & scalar.keys():
        torch.testing.assert_close(vector[name](v.unsqueeze(-1)), scalar[name](v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4,), 0), "components is 0; accepted: an integer >= 1"),
        (((0,), 2), r"shape is \(0,\); accepted"),
        (((4,), 2, "closed"), "boundary is 'closed'; accepted: periodic, open"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector_observables(*arguments)


def test_wrong_fields_are_named() -> None:
    for function in vector_observables((4,), 2).values():
        with pytest.raises(ValueError, match=r"v has shape \(4, 3\); accepted"):
            function(torch.zeros(4, 3))
