# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's flow written the straightforward way: the yardstick of training_step.py.

As a physicist would write it from the paper, and close in structure to the authors' public code:
index arrays for the blocks of each layer, the blocks gathered by advanced indexing and scattered
into a clone, a Real NVP whose couplings mask the block (so that the s- and t-networks are 4 wide on
both ends), separate networks for s and t, and a symmetrised density of three passes: one to sample,
two for ln q(x) and ln q(-x). No check for NaN and no printing, which the authors' code has.

:func:`straightforward_copy` takes the weights of a flow of ours, so that both have the same ln q.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pyro_neuralrg.transforms import Couplings, HierarchicalFlow


class ScaledTanh(nn.Module):
    """``a * tanh(x)`` with one learned factor for each entry."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(x)


def network(widths: Sequence[int], last: nn.Module | None) -> nn.Sequential:
    """Linear layers with ELU between them, and ``last`` behind."""
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*modules[:-1], *([] if last is None else [last]))


class MaskedRealNVP(nn.Module):
    """Real NVP on (n, size): couplings ``x = m x + (1 - m)(x e^s + t)``; s, t depend on m x."""

    def __init__(self, masks: Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        size = masks.shape[1]
        widths = [size, *hidden, size]
        self.register_buffer("masks", masks)
        self.scale_nets = nn.ModuleList(network(widths, ScaledTanh(size)) for _ in masks)
        self.shift_nets = nn.ModuleList(network(widths, None) for _ in masks)

    def _terms(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m x, (1 - m) s and (1 - m) t of one coupling."""
        mask = self.masks[index]
        held = x * mask
        s, t = self.scale_nets[index](held), self.shift_nets[index](held)
        return held, s * (1 - mask), t * (1 - mask)

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z to x with ln |det dx/dz|."""
        ladj = x.new_zeros(x.shape[0])
        for index, mask in enumerate(self.masks):
            held, s, t = self._terms(index, x)
            x = held + (1 - mask) * (x * torch.exp(s) + t)
            ladj = ladj + s.sum(-1)
        return x, ladj

    def renormalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x to z with ln |det dz/dx|."""
        ladj = x.new_zeros(x.shape[0])
        for index in reversed(range(len(self.masks))):
            held, s, t = self._terms(index, x)
            x = held + (1 - self.masks[index]) * (x - t) * torch.exp(-s)
            ladj = ladj - s.sum(-1)
        return x, ladj


class StraightforwardFlow(nn.Module):
    """A circuit of blocks on (batch, L, L) fields.

    Layer k gathers the sites ``rows[k], columns[k]`` of shape (blocks, 4).
    """

    def __init__(
        self,
        blocks: Sequence[MaskedRealNVP],
        rows: Sequence[Tensor],
        columns: Sequence[Tensor],
        side: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.rows, self.columns, self.side = list(rows), list(columns), side

    def generate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z to x with ln |det dx/dz|."""
        return self._through(reversed(range(len(self.blocks))), z, "generate")

    def renormalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x to z with ln |det dz/dx|."""
        return self._through(range(len(self.blocks)), x, "renormalize")

    def _through(self, layers: Iterable[int], x: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        ladj = x.new_zeros(x.shape[0])
        for layer in layers:
            rows, columns = self.rows[layer], self.columns[layer]
            blocks = x[:, rows, columns]
            moved, more = getattr(self.blocks[layer], direction)(blocks.reshape(-1, rows.shape[1]))
            x = x.clone()
            x[:, rows, columns] = moved.reshape(blocks.shape)
            ladj = ladj + more.reshape(x.shape[0], -1).sum(1)
        return x, ladj

    def log_prob(self, x: Tensor) -> Tensor:
        """ln q(x) by a pass from x to z."""
        z, ladj = self.renormalize(x)
        return normal_log_prob(z) + ladj

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Fields with ln q, by one pass from z to x."""
        z = torch.randn(batch, self.side, self.side, dtype=next(self.parameters()).dtype)
        x, ladj = self.generate(z)
        return x, normal_log_prob(z) - ladj

    def symmetrized_log_prob(self, x: Tensor) -> Tensor:
        """ln of (q(x) + q(-x)) / 2, by two passes."""
        both = torch.stack([self.log_prob(x), self.log_prob(-x)])
        return both.logsumexp(0) - math.log(2)

    def symmetrized_sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Fields of the symmetrised density with their ln q, by three passes."""
        x, _ = self.sample(batch)
        signs = torch.randint(2, (batch, 1, 1)).to(x.dtype) * 2 - 1
        x = x * signs
        return x, self.symmetrized_log_prob(x)


def normal_log_prob(z: Tensor) -> Tensor:
    """ln N(z; 0, 1) of (batch, L, L)."""
    return (-0.5 * z * z - 0.5 * math.log(2 * math.pi)).sum((-2, -1))


def straightforward_copy(flow: HierarchicalFlow) -> StraightforwardFlow:
    """The straightforward version of a "realnvp" flow of ours, with its weights.

    The lattice is periodic, L x L with L a power of two.
    """
    blocks, rows, columns = [], [], []
    side = flow.shape[0]
    for layer, transforms in zip(flow.circuit.layers, flow.layers, strict=True):
        couplings = transforms[0]
        blocks.append(_masked_copy(couplings))
        step = 2**layer.scale
        at = torch.arange(0, side, 2 * step)
        corner_row, corner_column = (layer.shift[axis] * step for axis in (0, 1))
        inside = torch.tensor([0, step])
        row = (at.reshape(-1, 1, 1, 1) + inside.reshape(2, 1) + corner_row) % side
        column = (at.reshape(-1, 1, 1) + inside + corner_column) % side
        row, column = torch.broadcast_tensors(row, column)
        rows.append(row.reshape(-1, 4))
        columns.append(column.reshape(-1, 4))
    return StraightforwardFlow(blocks, rows, columns, side)


def _masked_copy(couplings: Couplings) -> MaskedRealNVP:
    size = couplings.event_shape[0]
    networks = [[array.detach() for array in arrays] for arrays in couplings.networks()]
    hidden, example = couplings.options.hidden, couplings.packed
    masks = example.new_zeros(len(couplings.halves), size)
    for mask, (held, _) in zip(masks, couplings.halves, strict=True):
        mask[held] = 1
    block = MaskedRealNVP(masks, hidden).to(example.dtype)
    with torch.no_grad():
        for index, (held, moved) in enumerate(couplings.halves):
            block.scale_nets[index][-1].scale[moved] = networks[index][-1]
            for which, nets in enumerate((block.scale_nets, block.shift_nets)):
                _copy_network(networks[index], which, nets[index], held, moved)
    return block


def _copy_network(
    ours: list[Tensor], which: int, theirs: nn.Sequential, held: list[int], moved: list[int]
) -> None:
    """Ours hold s before t in every hidden layer; t ends in place, s in form."""
    linear = [module for module in theirs if isinstance(module, nn.Linear)]
    last = len(linear) - 1
    for index, module in enumerate(linear):
        at = 2 * index + (2 * (1 - which) if index == last else 0)
        weight, bias = ours[at], ours[at + 1]
        into = moved if index == last else list(range(module.out_features))
        out_of = held if index == 0 else list(range(module.in_features))
        rows = slice(None) if index == last else _half(weight.shape[0], which)
        columns = slice(None) if index == 0 else _half(weight.shape[1], which)
        places = torch.tensor(into)[:, None], torch.tensor(out_of)
        module.weight[places] = weight[rows, columns]
        module.bias[into] = bias[rows]


def _half(length: int, which: int) -> slice:
    return slice(which * length // 2, (which + 1) * length // 2)
