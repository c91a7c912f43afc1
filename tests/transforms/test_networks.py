# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Networks that see neighbouring blocks are convolutions, on tori of one and two blocks as well."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_neuralrg.transforms import Couplings, neighbour_coupling
from pyro_neuralrg.transforms.networks import NeighbourNetwork

INPUTS, HIDDEN = 2, 5


def network(count: tuple[int, ...], boundary: str, odd: bool) -> NeighbourNetwork:
    made = NeighbourNetwork(INPUTS, 1, count, (HIDDEN, HIDDEN), 1, odd, boundary)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def convolved(made: NeighbourNetwork, u: Tensor) -> Tensor:
    """The last hidden layer by torch's convolution, from ``(inputs, rows, columns)``.

    The first matrix has one column for each neighbour (row, column, input), the last axis first.
    """
    kernel = made.weights[0].unflatten(1, (3, 3, INPUTS))  # (width, column, row, input)
    kernel = kernel.permute(0, 3, 2, 1)
    if made.boundary == "periodic":
        padded = torch.cat([u[:, -1:], u, u[:, :1]], 1)
        padded = torch.cat([padded[:, :, -1:], padded, padded[:, :, :1]], 2)
    else:
        padded = F.pad(u, (1, 1, 1, 1))
    h = F.conv2d(padded.unsqueeze(0), kernel)[0]
    if not made.odd:
        h = h + made.biases[0][:, :, None]
    h = torch.tanh(h)
    h = torch.einsum("ab,bij->aij", made.weights[1], h)
    return torch.tanh(h if made.odd else h + made.biases[1][:, :, None])


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("count", [(4, 5), (3, 3), (2, 2), (2, 5), (5, 2), (1, 4), (4, 1), (1, 2)])
def test_hidden_layer_is_a_convolution(count: tuple[int, int], boundary: str, odd: bool) -> None:
    made = network(count, boundary, odd)
    u = torch.randn(INPUTS, *count, 3)
    found = made._hidden(u).reshape(HIDDEN, *count, 3)
    for column in range(3):
        torch.testing.assert_close(found[..., column], convolved(made, u[..., column]))


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_hidden_layer_of_a_chain(side: int, boundary: str) -> None:
    """Columns of the first matrix: what is before, itself, what is after."""
    made = network((side,), boundary, odd=True)
    u = torch.randn(INPUTS, side, 4)
    before, own, after = made.weights[0].unflatten(1, (3, INPUTS)).unbind(1)
    for at in range(side):
        h = own @ u[:, at]
        if boundary == "periodic" or at > 0:
            h = h + before @ u[:, at - 1]
        if boundary == "periodic" or at < side - 1:
            h = h + after @ u[:, (at + 1) % side]
        expected = torch.tanh(made.weights[1] @ torch.tanh(h))
        torch.testing.assert_close(made._hidden(u).reshape(HIDDEN, side, 4)[:, at], expected)


def same_weights(small: Couplings, large: Couplings) -> None:
    with torch.no_grad():
        for one, other in zip(small.parameters(), large.parameters(), strict=True):
            one.normal_(std=0.5)
            other.copy_(one)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((1,), (3,)),
        ((1,), (4,)),
        ((2,), (4,)),
        ((2,), (6,)),
        ((1, 1), (4, 3)),
        ((1, 2), (4, 4)),
        ((2, 1), (6, 4)),
        ((2, 2), (4, 6)),
        ((2, 4), (4, 4)),
        ((1, 2, 1), (3, 4, 2)),
    ],
    ids=str,
)
def test_a_periodic_field_is_that_of_a_smaller_torus(
    small: tuple[int, ...], large: tuple[int, ...], odd: bool
) -> None:
    """Its neighbours are the same values, so that the same weights must give the same map."""
    block = (2,) * len(small)
    options = {"layers": 4, "hidden": (5,), "odd": odd, "boundary": "periodic"}
    one, other = (neighbour_coupling(block, count, **options) for count in (small, large))
    same_weights(one, other)
    copies = [side // period for side, period in zip(large, small, strict=True)]
    z = torch.randn(3, math.prod(block), *small)
    x, ladj = one.forward_and_ladj(z)
    laid, laid_ladj = other.forward_and_ladj(z.repeat(1, 1, *copies))
    torch.testing.assert_close(laid, x.repeat(1, 1, *copies))
    torch.testing.assert_close(laid_ladj, ladj * math.prod(copies))
