# SPDX-License-Identifier: Apache-2.0
"""Bijectors by name, mapping and factory, and blocks from elsewhere."""

from __future__ import annotations

import json

import numpy as np
import torch

from pyro_neuralrg.transforms import (
    BIJECTORS,
    BlockFactory,
    Neighbour,
    RealNVP,
    neighbour_coupling,
    realnvp_block,
)
from pyro_neuralrg.transforms.bijectors import as_bijector, bijector_config
from tests.transforms.registry import Scale


def test_names_mappings_and_factories() -> None:
    assert as_bijector("realnvp") == RealNVP()
    assert as_bijector({"name": "neighbour", "layers": 3}) == Neighbour(layers=3)
    assert as_bijector({"name": "realnvp", "hidden": [3, 4]}) == RealNVP(hidden=(3, 4))
    assert as_bijector(RealNVP(layers=4)) == RealNVP(layers=4)
    assert as_bijector(Scale) == BlockFactory(Scale)
    for name in BIJECTORS:
        bijector = as_bijector({"name": name, "layers": np.int64(3), "hidden": (7,)})
        assert as_bijector(json.loads(json.dumps(bijector_config(bijector)))) == bijector


def test_realnvp_is_the_papers() -> None:
    """Ten couplings, networks of three hidden layers of ten units, ELU; s ends in a scaled tanh."""
    block = realnvp_block(4)
    assert len(block.halves) == 10
    assert block.options.hidden == (10, 10, 10)
    assert block.options.activation == "elu"
    assert block.options.separate
    block = realnvp_block(4, layers=1)
    with torch.no_grad():
        block.packed.fill_(1e3)  # tanh is 1 everywhere
        block.packed[-2:] = torch.tensor([0.5, -0.25])
    _, ladj = block.forward_and_ladj(torch.rand(50, 4))
    torch.testing.assert_close(ladj, torch.full((50,), 0.25))


def test_a_coupling_moves_one_half_of_the_checkerboard() -> None:
    block = realnvp_block(4, layers=2)
    assert block.halves == [([0, 3], [1, 2]), ([1, 2], [0, 3])]
    layer = neighbour_coupling((2, 2), (4, 4), layers=6)
    assert layer.halves[::2] == [([0, 3], [1, 2]), ([0, 1], [2, 3]), ([0, 2], [1, 3])]
    pairs = zip(layer.halves[::2], layer.halves[1::2], strict=True)
    assert all(one == other[::-1] for one, other in pairs)
