# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The transfer matrix of lattices with a small cross-section: any dimension, boundary and field."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["MAX_SECTION_OPEN", "MAX_SECTION_PERIODIC", "cross_section", "transfer_log_partition"]

MAX_SECTION_PERIODIC = 10
"""Spins of a cross-section of a periodic lattice: the matrix has 4^W entries."""

MAX_SECTION_OPEN = 18
"""Spins of a cross-section of an open lattice: the vector has 2^W entries."""


def cross_section(shape: tuple[int, ...]) -> int:
    """Number of spins of a layer across the longest side."""
    return math.prod(shape) // max(shape)


def transfer_log_partition(
    shape: tuple[int, ...],
    couplings: Tensor,
    fields: Tensor,
    boundary: str,
    first_spin_up: bool = False,
) -> Tensor:
    r"""ln Z by multiplying layer after layer, along the longest side, spin by spin.

    Differentiable in the couplings and fields. Time O(N 4^W) for a periodic, O(N 2^W) for an open
    lattice, with W spins in a cross-section (H. A. Kramers and G. H. Wannier, 1941).

    Args:
        shape: lattice shape.
        couplings: K_a = J_a / T of each axis, float64.
        fields: h_i / T, float64 of the lattice's shape.
        boundary: "periodic" or "open".
        first_spin_up: sum over configurations with s_0 = +1 only.
    """
    long = shape.index(max(shape))
    length, section = shape[long], shape[:long] + shape[long + 1 :]
    across = torch.cat([couplings[:long], couplings[long + 1 :]])
    width = math.prod(section)
    spins = _configurations(width)
    inside = _layer_weights(spins, section, across, boundary)
    layers = torch.movedim(fields, long, 0).reshape(length, width) @ spins.T + inside
    if first_spin_up:
        closed = torch.where(spins[:, 0] > 0, 0.0, -math.inf).to(layers)
        layers = torch.cat([layers[:1] + closed, layers[1:]])
    bond = _bond_matrix(couplings[long])
    if boundary == "open" or length == 1:
        return _open_product(layers, bond, width)
    return _closed_product(layers, bond, width)


def _configurations(width: int) -> Tensor:
    """All 2^W states of a layer, shape ``(2^W, W)``; spin i is bit W - 1 - i."""
    states = torch.arange(2**width)
    bits = (states[:, None] >> torch.arange(width - 1, -1, -1)) & 1
    return 1.0 - 2.0 * bits.to(torch.float64)


def _layer_weights(
    spins: Tensor, section: tuple[int, ...], couplings: Tensor, boundary: str
) -> Tensor:
    """Sum of K s s' over the bonds within a layer, for each of its states."""
    grid = spins.reshape(-1, *section)
    total = torch.zeros(len(spins), dtype=torch.float64)
    for axis, side in enumerate(section):
        if side == 1:
            continue
        if boundary == "periodic":
            products = grid * grid.roll(-1, axis + 1)
        else:
            products = grid.narrow(axis + 1, 0, side - 1) * grid.narrow(axis + 1, 1, side - 1)
        total = total + couplings[axis] * products.reshape(len(spins), -1).sum(1)
    return total


def _bond_matrix(coupling: Tensor) -> Tensor:
    """exp(K s s') / exp(|K|), shape ``(2, 2)``; the factor is added back as a logarithm."""
    size = coupling.abs()
    same, other = torch.exp(coupling - size), torch.exp(-coupling - size)
    return torch.stack([torch.stack([same, other]), torch.stack([other, same])])


def _through_bonds(state: Tensor, bond: Tensor, width: int) -> Tensor:
    """Multiply the 2^W rows by the bonds to the next layer, one spin at a time."""
    shape = state.shape
    for spin in range(width):
        state = state.reshape(2**spin, 2, -1)
        state = torch.einsum("ab,lbr->lar", bond, state)
    return state.reshape(shape)


def _log_bond(bond: Tensor) -> Tensor:
    """|K| back from the matrix whose larger entry was scaled to one."""
    low = torch.minimum(bond[0, 0], bond[0, 1])
    return -0.5 * torch.log(low)


def _open_product(layers: Tensor, bond: Tensor, width: int) -> Tensor:
    top = layers[0].max().detach()
    state, log_scale = torch.exp(layers[0] - top), top
    for layer in layers[1:]:
        state, log_scale = _next(state, layer, bond, width, log_scale)
    bonds = width * (len(layers) - 1)
    return log_scale + bonds * _log_bond(bond) + torch.log(state.sum())


def _closed_product(layers: Tensor, bond: Tensor, width: int) -> Tensor:
    top = layers[0].max().detach()
    state, log_scale = torch.diag(torch.exp(layers[0] - top)), top
    for layer in layers[1:]:
        state, log_scale = _next(state, layer[:, None], bond, width, log_scale)
    trace = torch.diagonal(_through_bonds(state, bond, width)).sum()
    return log_scale + width * len(layers) * _log_bond(bond) + torch.log(trace)


def _next(
    state: Tensor, layer: Tensor, bond: Tensor, width: int, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    top = layer.max().detach()
    state = _through_bonds(state, bond, width) * torch.exp(layer - top)
    largest = state.max().detach()
    return state / largest, log_scale + top + torch.log(largest)
