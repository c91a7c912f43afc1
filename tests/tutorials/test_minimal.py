# SPDX-License-Identifier: Apache-2.0
"""The paper in one file, beside the package with the same weights."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pyro_neuralrg import HierarchicalFlow, IsingDual, hierarchical_flow

FILE = Path(__file__).parents[2] / "tutorials" / "minimal.py"


def load() -> Any:
    specification = importlib.util.spec_from_file_location("minimal", FILE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


minimal = load()


def test_it_is_short() -> None:
    assert len(FILE.read_text().splitlines()) <= 250


@pytest.mark.parametrize("temperature", [1.5, minimal.CRITICAL, 3.0])
@pytest.mark.parametrize("side", [4, 8])
def test_the_target(side: int, temperature: float) -> None:
    mine, theirs = minimal.IsingDual(side, temperature), IsingDual((side, side), temperature)
    assert mine.log_partition() == pytest.approx(theirs.log_partition(), rel=1e-12)
    x = 2 * torch.randn(5, side, side)
    torch.testing.assert_close(mine.energy(x.flatten(1)), theirs.energy(x), rtol=1e-5, atol=1e-4)


def copy_weights(flow: HierarchicalFlow, mine: Any) -> None:
    """Into the plain modules, from what the package packs into one vector a layer."""
    for block, layer in zip(mine.blocks, flow.layers, strict=True):
        (couplings,) = cast("Any", layer)
        packing = couplings.packing
        arrays = packing.constants.index_add(0, packing.index, couplings.packed.detach())
        shapes = couplings.options.shapes(2, 2)
        sizes = [math.prod(shape) for shape in shapes]
        for one, part in zip(block.couplings, arrays[:-1].split(sum(sizes)), strict=True):
            pieces = zip(part.split(sizes), shapes, strict=True)
            *layers, _, bound = (piece.view(shape) for piece, shape in pieces)
            one.bound.copy_(bound)
            copy_networks(one, layers[::2], layers[1::2])


def copy_networks(one: Any, matrices: list[Tensor], biases: list[Tensor]) -> None:
    """s has the first half of each hidden layer and the last head, t the others."""
    for half, network in enumerate((one.s, one.t)):
        first, *inner, last = (part for part in network if isinstance(part, nn.Linear))
        first.weight.copy_(matrices[0].chunk(2)[half])
        for linear, matrix in zip(inner, matrices[1:3], strict=True):
            linear.weight.copy_(matrix.chunk(2)[half].chunk(2, 1)[half])
        for linear, bias in zip((first, *inner), biases[:3], strict=True):
            linear.bias.copy_(bias.chunk(2)[half])
        last.weight.copy_(matrices[4 - half].chunk(2, 1)[half])
        last.bias.copy_(biases[4 - half])


@torch.no_grad()
def test_the_flow() -> None:
    flow = hierarchical_flow((8, 8), bijector="realnvp")
    for parameter in flow.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    mine = minimal.NeuralRG(8)
    copy_weights(flow, mine)
    z = torch.randn(7, 8, 8)
    x, ladj = flow.forward_and_ladj(z)
    found, its_ladj = mine.run(z.flatten(1), inverse=False)
    torch.testing.assert_close(found, x.flatten(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(its_ladj, ladj, rtol=1e-4, atol=1e-4)
    assert float((x - z).abs().max()) > 0.5
    log_q = minimal.log_normal(z.flatten(1)) - ladj
    torch.testing.assert_close(mine.log_q(found), log_q, rtol=1e-4, atol=1e-3)
