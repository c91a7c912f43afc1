# SPDX-License-Identifier: Apache-2.0
"""The transfer matrix of lattices with a small cross-section: any dimension, boundary and field.

A few spins of any couplings are summed over one configuration after the other.

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

MAX_ENUMERATED = 20
"""Spins whose 2^N configurations are summed: a second."""

CONFIGURATIONS_AT_ONCE = 2**14
"""Configurations in memory at a time."""

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

    Differentiable in the couplings K_a = J_a / T of each axis, shape ``(axes,)``, or those of each
    site's bond to the next one along each axis, ``(axes,) + shape``, and the fields h_i / T of each
    site, float64. With ``boundary`` "open" couplings of axes end at the edges of all of them; those
    of sites have zeros of their own there, and "open" says only that none lead around the longest
    side. Time O(N 4^W) for a periodic, O(N 2^W) for an open lattice, with W spins in a
    cross-section (H. A. Kramers and G. H. Wannier, 1941).
    """
    spins, section, long = _rows_of_spins(shape)
    length, layer_shape = shape[long], (shape[long], len(spins[0]))
    uniform = couplings.dim() == 1
    bonds = _bonds_of_sites(couplings, shape, boundary).movedim(1 + long, 1)  # (axes, length, ...)
    along = bonds[long].reshape(layer_shape)
    across = torch.cat([bonds[:long], bonds[long + 1 :]]).movedim(1, 0)
    inside = [_layer_weights(spins, section, each) for each in (across[:1] if uniform else across)]
    inside = inside * length if uniform else inside
    on_sites = torch.movedim(fields, long, 0).reshape(layer_shape) @ spins.T
    layers = [weights + field for weights, field in zip(inside, on_sites, strict=True)]
    if boundary == "open" or length == 1:
        state = layers[0]
        for layer, bond in zip(layers[1:], along, strict=False):
            state = _through_bonds(state, bond) + layer
        return _log_sum(state)
    state = (spins * along[0]) @ spins.T + layers[0] + layers[1][:, None]
    for layer, bond in zip(layers[2:], along[1:], strict=False):
        state = _through_bonds(state, bond) + layer[:, None]
    return _log_sum((state + (spins * along[-1]) @ spins.T).reshape(-1))


def transfer_correlations(shape: tuple[int, ...], couplings: Tensor) -> Tensor:
    r"""<s_0 s_r> of the periodic lattice of two layers or more, without field, of shape ``shape``.

    States i, j of layers at a distance r have the weight :math:`(T^r)_{ij} (T^{n-r})_{ji}`.
    """
    spins, section, long = _rows_of_spins(shape)
    along, length = couplings[long].expand(spins.shape[1]), shape[long]
    bonds = torch.cat([couplings[:long], couplings[long + 1 :]])
    inside = _layer_weights(spins, section, _bonds_of_sites(bonds, section, "periodic"))
    powers = [(spins * along) @ spins.T + inside[:, None]]
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
    return torch.movedim(table.reshape(length, *section), 0, long)


def _rows_of_spins(shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...], int]:
    """States of a layer, its shape, and the axis that the layers follow."""
    long = shape.index(max(shape))
    section = shape[:long] + shape[long + 1 :]
    width = math.prod(section)
    bits = torch.arange(2**width)[:, None] >> torch.arange(width - 1, -1, -1) & 1
    spins = 1.0 - 2.0 * bits.to(torch.float64)  # (2^W, W): spin i is bit W - 1 - i
    return spins, section, long


def _bonds_of_sites(couplings: Tensor, shape: tuple[int, ...], boundary: str) -> Tensor:
    """K of each site's bond to the next one along each axis, zero where there is none.

    Those of axes end where the lattice is open; those of sites are taken as they are.
    """
    axes = len(shape)
    if couplings.dim() > 1:
        return couplings
    bonds = couplings.reshape(axes, *(1,) * axes).expand(axes, *shape)
    inside = torch.ones(axes, *shape, dtype=bonds.dtype)
    for axis, side in enumerate(shape if boundary == "open" else ()):
        inside[axis].select(axis, side - 1).zero_()
    return bonds * inside


def _layer_weights(spins: Tensor, section: tuple[int, ...], bonds: Tensor) -> Tensor:
    """Sum of K s s' over the bonds ``(axes,) + section`` within a layer, for each of its states."""
    grid = spins.reshape(-1, *section)
    total = torch.zeros(len(spins), dtype=torch.float64)
    for axis, each in enumerate(bonds):
        total = total + (grid * grid.roll(-1, axis + 1) * each).reshape(len(spins), -1).sum(1)
    return total


def _through_bonds(state: Tensor, couplings: Tensor) -> Tensor:
    """Multiply the 2^W rows by the bonds ``(W,)`` to the next layer, one spin at a time."""
    shape = state.shape
    for spin, coupling in enumerate(couplings):
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


def enumerated_log_partition(matrix: Tensor, fields: Tensor) -> Tensor:
    """ln of the sum over spins of exp(s.K.s / 2 + h.s), differentiable in K and h (float64)."""
    sites = torch.arange(len(fields))
    parts = []
    for numbers in torch.arange(2 ** len(fields)).split(CONFIGURATIONS_AT_ONCE):
        spins = 1.0 - 2.0 * (numbers[:, None] >> sites & 1).to(torch.float64)
        parts.append(torch.logsumexp((spins @ matrix * spins).sum(1) / 2 + spins @ fields, 0))
    return torch.stack(parts).logsumexp(0)
