# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The transfer matrix of lattices with a small cross-section: any dimension, boundary and field.

All sums are of positive terms and carried as logarithms, so that nothing cancels, overflows or
vanishes at low temperature, frustrated or not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SECTION_PERIODIC = 10
"""Spins of a cross-section of a periodic lattice: the matrix has 4^W entries."""

MAX_SECTION_OPEN = 18
"""Spins of a cross-section of an open lattice: the vector has 2^W entries."""

MAX_POWERS = 2**25
"""Entries of all powers of the matrix together, kept for correlations: a quarter of a gigabyte."""


def cross_section(shape: tuple[int, ...]) -> int:
    """Number of spins of a layer across the longest side."""
    return math.prod(shape) // max(shape)


def reaches_correlations(shape: tuple[int, ...]) -> bool:
    """True if :func:`transfer_correlations` takes the lattice."""
    width = cross_section(shape)
    return width <= MAX_SECTION_PERIODIC and max(shape) * 4**width <= MAX_POWERS


def transfer_log_partition(
    shape: tuple[int, ...], couplings: Tensor, fields: Tensor, boundary: str
) -> Tensor:
    r"""ln Z by multiplying layer after layer, along the longest side, spin by spin.

    Differentiable in the couplings K_a = J_a / T of each axis and the fields h_i / T of each site,
    float64. Time O(N 4^W) for a periodic, O(N 2^W) for an open lattice, with W spins in
    a cross-section (H. A. Kramers and G. H. Wannier, 1941).
    """
    spins, inside, long = _rows_of_spins(shape, couplings, boundary)
    along, length = couplings[long], shape[long]
    layers = torch.movedim(fields, long, 0).reshape(length, -1) @ spins.T + inside
    if boundary == "open" or length == 1:
        state = layers[0]
        for layer in layers[1:]:
            state = _through_bonds(state, along) + layer
        return _log_sum(state)
    bonds = along * (spins @ spins.T)
    state = bonds + layers[0] + layers[1][:, None]
    for layer in layers[2:]:
        state = _through_bonds(state, along) + layer[:, None]
    return _log_sum((state + bonds).reshape(-1))


def transfer_correlations(shape: tuple[int, ...], couplings: Tensor) -> Tensor:
    r"""<s_0 s_r> of the periodic lattice of two layers or more, without field, of shape ``shape``.

    States i, j of layers at a distance r have the weight :math:`(T^r)_{ij} (T^{n-r})_{ji}`.
    """
    spins, inside, long = _rows_of_spins(shape, couplings, "periodic")
    along, length = couplings[long], shape[long]
    powers = [along * (spins @ spins.T) + inside[:, None]]
    for _ in range(length - 2):
        powers.append(_through_bonds(powers[-1], along) + inside[:, None])
    table = torch.empty(length, spins.shape[1], dtype=torch.float64)
    for distance in range(1, length // 2 + 1):
        log_weight = powers[distance - 1] + powers[length - distance - 1].T
        probability = torch.softmax(log_weight.reshape(-1), 0).reshape(log_weight.shape)
        if distance == 1:
            table[0] = (probability.sum(1) * spins[:, 0]) @ spins
        table[distance] = (probability @ spins[:, 0]) @ spins
        table[length - distance] = table[distance]
    section = shape[:long] + shape[long + 1 :]
    return torch.movedim(table.reshape(length, *section), 0, long)


def _rows_of_spins(
    shape: tuple[int, ...], couplings: Tensor, boundary: str
) -> tuple[Tensor, Tensor, int]:
    """States of a layer, the sum of K s s' within each, and the axis that the layers follow."""
    long = shape.index(max(shape))
    section = shape[:long] + shape[long + 1 :]
    across = torch.cat([couplings[:long], couplings[long + 1 :]])
    width = math.prod(section)
    bits = torch.arange(2**width)[:, None] >> torch.arange(width - 1, -1, -1) & 1
    spins = 1.0 - 2.0 * bits.to(torch.float64)  # (2^W, W): spin i is bit W - 1 - i
    return spins, _layer_weights(spins, section, across, boundary), long


def _layer_weights(
    spins: Tensor, section: tuple[int, ...], couplings: Tensor, boundary: str
) -> Tensor:
    """Sum of K s s' over the bonds within a layer, for each of its states."""
    grid = spins.reshape(-1, *section)
    total = torch.zeros(len(spins), dtype=torch.float64)
    for axis, side in enumerate(section):
        if boundary == "periodic":
            products = grid * grid.roll(-1, axis + 1)
        else:
            products = grid.narrow(axis + 1, 0, side - 1) * grid.narrow(axis + 1, 1, side - 1)
        total = total + couplings[axis] * products.reshape(len(spins), -1).sum(1)
    return total


def _through_bonds(state: Tensor, coupling: Tensor) -> Tensor:
    """Multiply the 2^W rows by the bonds to the next layer, one spin at a time."""
    shape = state.shape
    for spin in range(shape[0].bit_length() - 1):
        up, down = state.reshape(2**spin, 2, -1).unbind(1)
        same = _log_add(up + coupling, down - coupling)
        other = _log_add(up - coupling, down + coupling)
        state = torch.stack([same, other], 1)
    return state.reshape(shape)


def _log_add(one: Tensor, two: Tensor) -> Tensor:
    """ln(e^a + e^b); unlike torch.logaddexp with second derivatives that are finite everywhere."""
    first = one >= two
    high, low = torch.where(first, one, two), torch.where(first, two, one)
    return high + torch.log1p(torch.exp(low - high))


def _log_sum(logs: Tensor) -> Tensor:
    """ln of the sum of 2^n terms, in pairs: the variances in its second derivatives add up."""
    while len(logs) > 1:
        logs = _log_add(logs[: len(logs) // 2], logs[len(logs) // 2 :])
    return logs[0]
