# SPDX-License-Identifier: Apache-2.0
"""Orthogonal wavelets: fixed rotations of blocks, at which the decimators of a flow may begin."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_choice
from pyro_neuralrg.lattice import Circuit
from pyro_neuralrg.spectral import mode_matrix
from pyro_neuralrg.transforms.base import LatticeTransform, Pushed
from pyro_neuralrg.transforms.scales import sites_of_layers

WAVELETS = ("haar",)


def check_wavelet(wavelet: str | None, circuit: Circuit) -> str | None:
    """Return the wavelet if it is None or known, and the circuit has decimators; or raise."""
    if wavelet is None:
        return None
    if circuit.name == "brickwork":
        raise ValueError(
            f"wavelet is {wavelet!r}, but a brickwork has no decimators; accepted: None, or the "
            "circuit 'mera' or 'tree'"
        )
    return check_choice("wavelet", wavelet, WAVELETS)


class BlockRotation(LatticeTransform):
    """One orthogonal matrix for all blocks of a layer, event shape ``(size, *count)``; ladj is 0.

    The first variable is the sum of a block's sites over the root of their number, the others are
    differences: products of cosines along the axes, for sides of two the Haar wavelets.

    Args:
        block: sites of a block along each axis.
        count: blocks along each axis.
        components: of a vector field, each rotated as a scalar one.

    Example:
        >>> BlockRotation((2,), (3,)).inv(torch.ones(2, 3))
        tensor([[1.4142, 1.4142, 1.4142],
                [0.0000, 0.0000, 0.0000]])
    """

    def __init__(self, block: tuple[int, ...], count: tuple[int, ...], components: int = 0) -> None:
        own = max(1, components)
        size = math.prod(block) * own
        super().__init__((size, *count))
        matrices = [mode_matrix(side, "free").T for side in block]
        self.rows = functools.reduce(np.kron, [*matrices, np.eye(own)])
        """What each variable is of the sites, in double precision, whatever the flow's."""
        self.halves: list[tuple[list[int], list[int]]] = [([], list(range(size)))]
        """As those of Couplings: it sees nothing, and moves all."""
        self.near = torch.zeros(math.prod(count), 1, dtype=torch.long)

    def matrix(self, like: Tensor) -> Tensor:
        """From z to x, in the dtype and on the device of ``like``."""
        return torch.from_numpy(self.rows).to(like).T.contiguous()

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = self.matrix(h)
        return rotated(matrix, h, inverse), h.new_zeros(h.shape[-1])

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        """The score is rotated as the field is."""
        matrix = self.matrix(h)
        score = rotated(matrix, score.detach(), inverse=False)
        return rotated(matrix, h, inverse=False), h.new_zeros(h.shape[-1]), score, None


def rotated(matrix: Tensor, h: Tensor, inverse: bool) -> Tensor:
    """Blocks ``(size, ...)`` times the matrix, or its transpose."""
    return torch.tensordot(matrix.T if inverse else matrix, h, 1)


def rotations_of_layers(
    circuit: Circuit, wavelet: str | None
) -> list[list[tuple[BlockRotation, Tensor]]]:
    """The rotations of each layer, of decimators only, with the sites of their blocks."""
    if wavelet is None:
        return [[] for _ in circuit.layers]
    pieces = zip(circuit.layers, sites_of_layers(circuit, filled_up=False), strict=True)
    return [
        [
            (BlockRotation(block, count, circuit.components), sites)
            for (block, count), sites in zip(layer.regions, of_layer, strict=True)
            if layer.kind == "decimator" and math.prod(block) > 1
        ]
        for layer, of_layer in pieces
    ]
