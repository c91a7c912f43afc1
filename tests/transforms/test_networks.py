# SPDX-License-Identifier: Apache-2.0
"""Networks that see neighbouring blocks are convolutions, on tori of one and two blocks as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_neuralrg.transforms import Couplings, neighbour_coupling, realnvp_block
from pyro_neuralrg.transforms.networks import Network, NetworkOptions, evaluate

HIDDEN = 5


def convolved(made: Couplings, u: Tensor, boundary: str) -> Tensor:
    """The shift by torch's convolution, from the fixed sites ``(rows, columns)``.

    The first matrix has one column for each neighbour (column, row), the last axis first.
    """
    layers, form, steepness = [9 * HIDDEN, HIDDEN, HIDDEN**2, HIDDEN, HIDDEN, 1], [HIDDEN, 1], [0]
    pieces = iter(made.packed.detach().split([*layers, *form, *steepness]))
    kernel = next(pieces).view(HIDDEN, 1, 3, 3).transpose(2, 3)
    if boundary == "periodic":
        padded = torch.cat([u[-1:], u, u[:1]], 0)
        padded = torch.cat([padded[:, -1:], padded, padded[:, :1]], 1)
    else:
        padded = F.pad(u, (1, 1, 1, 1))
    h = torch.tanh(F.conv2d(padded[None, None], kernel, next(pieces))[0])
    h = torch.einsum("ab,bij->aij", next(pieces).view(HIDDEN, HIDDEN), h)
    h = torch.tanh(h + next(pieces)[:, None, None])
    return torch.einsum("b,bij->ij", next(pieces), h) + next(pieces)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize("count", [(4, 5), (3, 3), (2, 2), (2, 5), (5, 2), (1, 4), (4, 1), (1, 2)])
def test_network_is_a_convolution(count: tuple[int, int], boundary: str) -> None:
    """One coupling of blocks of two sites: one held fixed, one moved along a line."""
    options = {"layers": 1, "hidden": (HIDDEN, HIDDEN), "num_tanh": 0, "boundary": boundary}
    made = neighbour_coupling((1, 2), count, **options)
    with torch.no_grad():
        made.packed.normal_()
    h = torch.zeros(3, 2, *count)
    h[:, 0] = torch.randn(3, *count)  # what is moved, zero, becomes the shift
    x, _ = made.forward_and_ladj(h)
    for field, moved in zip(h[:, 0], x[:, 1], strict=True):
        torch.testing.assert_close(moved, convolved(made, field, boundary))


def test_the_papers_networks_do_not_see_each_other() -> None:
    """s and t have ten units a layer each, whatever array they are evaluated in."""
    block = realnvp_block(4, layers=1)
    networks = 2 * ((10 * 2 + 10) + 2 * (10 * 10 + 10) + (2 * 10 + 2))
    assert block.packed.numel() == networks + 2  # and the bounds of s
    u, v = torch.randn(1, 2), torch.randn(1, 2)
    h = torch.zeros(1, 4)
    h[:, [0, 3]], h[:, [1, 2]] = u, v
    packed = block.packed.detach().clone().requires_grad_()
    x = torch.func.functional_call(block, {"packed": packed}, (h,))
    shift = torch.func.functional_call(
        block, {"packed": packed}, (h * torch.tensor([1.0, 0, 0, 1]),)
    )
    (of_shift,) = torch.autograd.grad(shift[:, [1, 2]].sum(), packed, retain_graph=True)
    (of_scale,) = torch.autograd.grad((x - shift)[:, [1, 2]].sum(), packed)
    assert not bool(((of_shift != 0) & (of_scale.abs() > 1e-12)).any())


def test_site_biases_and_context_bend_units() -> None:
    """(W x + b + site) (1 + gain) + shift, for the heads as for hidden units."""
    options = NetworkOptions(hidden=(), terms=0)
    weight, bias, bound = torch.randn(1, 2), torch.randn(1), torch.ones(1)
    arrays = [weight, bias, torch.zeros(1, 2), torch.zeros(1), torch.zeros(0, 1), bound]
    sites, gains, shifts = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    x = torch.randn(2, 3, 4)
    network = Network(options, arrays, sites, gains, shifts)
    found = evaluate(network, x.flatten(1), (1, 3, 4)).shift
    plain = torch.einsum("i,icn->cn", weight[0], x) + bias
    expected = (plain + sites[0, :, None]) * (1 + gains[0]) + shifts[0]
    torch.testing.assert_close(found[0], expected)
