# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Many couplings on one field, one after the other: the inner loop of every hierarchical flow.

On a CPU the whole sequence is one operation (:mod:`~pyro_neuralrg.compiled`); elsewhere, and for
what that does not know, it is the plain torch of this module, which is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_neuralrg.compiled.operation import couple, is_compiled
from pyro_neuralrg.transforms.compilation import Operations, active_operations
from pyro_neuralrg.transforms.networks import Bends, Inputs, NetworkOptions

CONTEXT_FEATURES = 5
"""Features of a context from which on slow couplings follow each of them less."""


@dataclass(frozen=True)
class Coupling:
    """One coupling of a sequence.

    Attributes:
        start: of its network in the arrays of all.
        shapes: of the network's arrays.
        inputs: what the network of one cell sees.
        moved: sites moved in one cell.
        cells: their number.
        unit: start of its units among those of all.
        units: their number.
        site: start of its biases of cells among those of all.
        seen: start of its rows in ``CouplingSequence.seen``, ``(inputs, cells)``.
        target: likewise in ``targets``, ``(moved, cells)``.
        whole: all its targets are there.
    """

    start: int
    shapes: list[tuple[int, ...]]
    inputs: int
    moved: int
    cells: int
    unit: int
    units: int
    site: int
    seen: int
    target: int
    whole: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Sites moved, and cells."""
        return self.moved, self.cells


class CouplingSequence(nn.Module):
    """Couplings of several layers on the rows of a field ``(rows, n)``, in the order of generation.

    It has no parameters of its own.

    Args:
        layers: :class:`~pyro_neuralrg.transforms.Couplings`, each with the rows of the sites of its
            blocks, ``(size, cells)``; -1 for sites that are not there, which stay zero.
        rows: of the field.
    """

    index: Tensor
    constants: Tensor
    seen: Tensor
    targets: Tensor

    def __init__(self, layers: Sequence[tuple[Any, Tensor]], rows: int) -> None:
        super().__init__()
        self.layers = tuple(couplings for couplings, _ in layers)  # no submodules
        self.rows = rows
        self.options: NetworkOptions = self.layers[0].options
        self.couplings: list[Coupling] = []
        names = ("seen", "targets", "index", "constants")
        tables: dict[str, list[Tensor]] = {name: [] for name in names}
        self._plan(layers, tables)
        start, total = 0, sum(couplings.packing.total for couplings in self.layers)
        for packing in (couplings.packing for couplings in self.layers):
            outside = packing.index == packing.total
            tables["index"].append(torch.where(outside, total, packing.index + start))
            tables["constants"].append(packing.constants[:-1])
            start += packing.total
        tables["constants"].append(torch.zeros(1))
        for name, parts in tables.items():
            self.register_buffer(name, torch.cat(parts), persistent=False)
        self.kept_rows = sum(c.cells * c.moved for c in self.couplings)
        """Values that the couplings overwrite."""
        self.program: Any = None
        """The same for compiled code, made when first needed."""
        self.operations: Operations | None = None
        """Functions that couple where they are not those of the module; see HierarchicalFlow."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "operations": None}

    def _plan(self, layers: Sequence[tuple[Any, Tensor]], tables: dict[str, list[Tensor]]) -> None:
        """Lay out all couplings; rows that their networks see, and rows that they move."""
        start = unit = site = 0
        for couplings, sites in layers:
            padded = torch.nn.functional.pad(sites, (0, 1), value=-1)  # what is outside
            for fixed, moved in couplings.halves:
                seen = padded[fixed][:, couplings.near]  # (fixed, cells, near)
                seen = seen.permute(2, 0, 1).flatten(0, 1)
                inputs, target = len(seen), sites[moved]
                units = self.options.units(len(moved))
                self.couplings.append(
                    Coupling(
                        start=start,
                        shapes=self.options.shapes(inputs, len(moved)),
                        inputs=inputs,
                        moved=len(moved),
                        cells=couplings.cells,
                        unit=unit,
                        units=units,
                        site=site,
                        seen=sum(map(len, tables["seen"])),
                        target=sum(map(len, tables["targets"])),
                        whole=bool((target >= 0).all()),
                    )
                )
                tables["seen"].append(torch.where(seen < 0, self.rows, seen).flatten())
                tables["targets"].append(target.flatten())
                start += self.options.size(inputs, len(moved))
                unit += units
                site += units * couplings.cells

    # What the couplings are made of

    def inputs(self, context: Tensor | None) -> Inputs:
        """Arrays of the networks, and what sites and a context do to their units."""
        response = self.options.response
        packed = torch.cat([couplings.packed for couplings in self.layers]) * response
        arrays = self.constants.to(packed.dtype).index_add(0, self.index, packed)
        sites = gains = shifts = None
        if self.layers[0].site_weight is not None:  # casts undo what autocast has made of products
            biases = [couplings.site_biases().flatten() for couplings in self.layers]
            sites = torch.cat(biases).to(packed.dtype) * response
        if context is not None and self.layers[0].context_gain is not None:
            gains, shifts = ((part @ context).to(packed.dtype) for part in self._of_context())
        return Inputs(arrays, sites, gains, shifts)

    def _of_context(self) -> tuple[Tensor, Tensor]:
        """Matrices from a context to gains and shifts of all units.

        Those of an odd map that may not be shifted have zeros.
        """
        gains = torch.cat([couplings.context_gain for couplings in self.layers])
        shifts = torch.cat(
            [
                torch.zeros_like(c.context_gain).index_copy(0, c.shifted_units, c.context_shift)
                for c in self.layers
            ]
        )
        response = self.options.response
        if response < 1:
            response *= min(1.0, CONTEXT_FEATURES / gains.shape[1])
        return gains * response, shifts * response

    # The passes

    def forward(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """z to x, rows ``(rows, n)``, and ladj ``(n,)``."""
        return self._run(h, context, False)

    def inverse(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """x to z, and the same ladj = ln |det dx/dz|."""
        return self._run(h, context, True)

    def _run(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if h.shape[-1] == 0:
            return h, h.new_zeros(0)
        tensors = (h, *self.inputs(context))
        if is_compiled(self, h):
            out, ladj, *_ = couple(self, tensors, inverse)
            return out, ladj
        return self.reference(tensors, inverse)

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None, want_context: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to x, ladj and the score, both without a graph, and the score of the context.

        The last is the gradient of ln q with respect to the context at fixed x, if wanted.
        """
        if h.shape[-1] == 0:
            return h, h.new_zeros(0), score, None if context is None else torch.zeros_like(context)
        inputs = self.inputs(context)
        want_context = want_context and inputs.gains is not None
        if is_compiled(self, h):
            found = couple(self, (h, *inputs), False, score, want_context)
        else:
            found = self._reference_with_score(h, score, inputs, want_context)
        out, ladj, score, d_gains, d_shifts = found
        if not want_context:
            return out, ladj, score, None
        gains, shifts = self._of_context()
        return out, ladj, score, -(gains.T @ d_gains + shifts.T @ d_shifts).detach()

    # The reference

    def reference(self, tensors: Sequence[Any], inverse: bool) -> tuple[Tensor, Tensor]:
        """All couplings in plain torch, on the field and the inputs of the networks."""
        h, inputs = tensors[0], Inputs(*tensors[1:])
        state = torch.cat([h, h.new_zeros(1, h.shape[-1])])  # a row for all that is outside
        ladj = h.new_zeros(h.shape[-1])
        run = (self.operations or active_operations()).couple
        order = list(zip(self.couplings, self.networks(inputs), strict=True))
        for coupling, (arrays, bends) in reversed(order) if inverse else order:
            seen, moved, live = self._places(coupling)
            x, v = _rows(state, seen, coupling.inputs), _rows(state, moved, *coupling.shape)
            values, log_slope = run(self.options, arrays, bends, x, v, inverse)
            state = state.index_copy(0, moved, _masked(values, live).flatten(0, 1))
            ladj = ladj + _masked(log_slope, live).sum((0, 1))
        return state[:-1], ladj

    def _reference_with_score(
        self, h: Tensor, score: Tensor, inputs: Inputs, want_context: bool
    ) -> tuple[Tensor, ...]:
        run = (self.operations or active_operations()).couple_with_score
        nothing = h.new_zeros(1, h.shape[-1])
        of_context: list[Sequence[Tensor]] = []
        with torch.enable_grad():
            if not h.requires_grad:
                h = h.detach().requires_grad_()
            if want_context and not (inputs.gains is None or inputs.gains.requires_grad):
                free = (part.detach().requires_grad_() for part in inputs[2:] if part is not None)
                inputs = Inputs(*inputs[:2], *free)
            state, scores = torch.cat([h, nothing]), torch.cat([score, nothing])
            ladj = h.new_zeros(h.shape[-1])
            networks = self.networks(inputs)
            for coupling, (arrays, bends) in zip(self.couplings, networks, strict=True):
                seen, moved, live = self._places(coupling)
                x, v = _rows(state, seen, coupling.inputs), _rows(state, moved, *coupling.shape)
                of_v = _rows(scores, moved, *coupling.shape)
                values, log_slope, of_x, of_v, *more = run(
                    self.options, arrays, bends, x, v, of_v, live, want_context
                )
                state = state.index_copy(0, moved, _masked(values, live).flatten(0, 1))
                ladj = ladj + _masked(log_slope.detach(), live).sum((0, 1))
                scores = scores.index_add(0, seen, of_x.reshape(len(seen), -1), alpha=-1)
                scores = scores.index_copy(0, moved, _masked(of_v, live).flatten(0, 1))
                scores = torch.cat([scores[:-1], nothing])
                of_context.append(more)
        found = [torch.cat(part) for part in zip(*of_context, strict=True)]
        return state[:-1], ladj, scores[:-1], *(found or (nothing, nothing))

    def networks(self, inputs: Inputs) -> list[tuple[list[Tensor], Bends]]:
        """Arrays of each coupling's network, and what acts on its units."""
        sizes = [math.prod(shape) for coupling in self.couplings for shape in coupling.shapes]
        pieces = iter(inputs.arrays[:-1].split(sizes))
        networks = []
        for c in self.couplings:
            units = slice(c.unit, c.unit + c.units)
            cells = slice(c.site, c.site + c.units * c.cells)
            sites = None if inputs.sites is None else inputs.sites[cells].view(c.units, c.cells)
            gains, shifts = (None if part is None else part[units] for part in inputs[2:])
            arrays = [next(pieces).reshape(shape) for shape in c.shapes]
            networks.append((arrays, Bends(sites, gains, shifts)))
        return networks

    def _places(self, coupling: Coupling) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows that are seen, rows that are moved, and which of the latter are there, if not all.

        What is not there is moved in the row of zeros, as zero.
        """
        seen = self.seen[coupling.seen : coupling.seen + coupling.inputs * coupling.cells]
        moved = self.targets[coupling.target : coupling.target + coupling.moved * coupling.cells]
        if coupling.whole:
            return seen, moved, None
        live = moved >= 0
        return seen, torch.where(live, moved, self.rows), live.view(*coupling.shape, 1)


def _rows(state: Tensor, rows: Tensor, *shape: int) -> Tensor:
    return state.index_select(0, rows).reshape(*shape, -1)


def _masked(values: Tensor, live: Tensor | None) -> Tensor:
    return values if live is None else torch.where(live, values, 0.0)
