# SPDX-License-Identifier: Apache-2.0
"""Analyses of scalar fields refuse flows of vector fields by name; the others take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_neuralrg import analysis
from pyro_neuralrg.distributions import SymmetrizedFlow, symmetry_group
from pyro_neuralrg.transforms import HierarchicalFlow, Neighbour, hierarchical_flow

SCALAR_ONLY: dict[str, Callable[[HierarchicalFlow, torch.Tensor], Any]] = {
    "block_wavelets": lambda flow, x: analysis.block_wavelets(flow, 1),
    "top_variable": lambda flow, x: analysis.top_variable(flow, x),
    "running_couplings": lambda flow, x: analysis.running_couplings(_energy, flow, x),
    "fixed_point": lambda flow, x: analysis.fixed_point(flow, x),
    "mcrg": lambda flow, x: analysis.mcrg(x, flow.shape, blocking=flow),
    "symmetries": lambda flow, x: SymmetrizedFlow(
        flow, symmetry_group((4, 4, 2), translation_step=2)
    ),
}


def _energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(-3).sum(-1)


def small_flow() -> HierarchicalFlow:
    return hierarchical_flow((4, 4), components=2, bijector=Neighbour(layers=2, hidden=(4,)))


@pytest.mark.parametrize("name", SCALAR_ONLY)
def test_scalar_analyses_refuse_vectors(name: str) -> None:
    with pytest.raises(ValueError, match=r"is of a vector field, 2 components a site.*; accepted"):
        SCALAR_ONLY[name](small_flow(), torch.randn(60, 4, 4, 2))


def test_scales_of_vectors() -> None:
    flow = small_flow()
    fields = analysis.pyramid(flow, torch.randn(3, 4, 4, 2))
    assert [tuple(field.shape) for field in fields] == [(3, 4, 4, 2), (3, 2, 2, 2), (3, 1, 1, 2)]
    assert analysis.variables_of_scale(flow, 1).tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    even = SymmetrizedFlow(flow)
    x = torch.randn(5, 4, 4, 2)
    torch.testing.assert_close(even.log_prob(x), even.log_prob(-x))
