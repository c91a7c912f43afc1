# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Many couplings on one field, one after the other: the inner loop of every hierarchical flow.

On a CPU the whole sequence is one operation (:mod:`~pyro_neuralrg.transforms.compiled`); elsewhere,
and for what that does not know, it is the plain torch of this module, which is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyro_neuralrg.transforms.compilation import Operations, active_operations
from pyro_neuralrg.transforms.compiled import couple, couple_with_score, is_compiled
from pyro_neuralrg.transforms.networks import Bends, Inputs, NetworkOptions, Packing

CONTEXT_FEATURES = 5
"""Features of a context from which on slow couplings follow each of them less."""


class CouplingLayer(Protocol):
    """Couplings on the blocks of one layer, :class:`~pyro_neuralrg.transforms.Couplings`."""

    options: NetworkOptions
    halves: list[tuple[list[int], list[int]]]
    cells: int
    near: Tensor
    packing: Packing
    packed: nn.Parameter
    site_weight: nn.Parameter | None
    context_gain: nn.Parameter | None
    context_shift: nn.Parameter | None
    shifted_units: Tensor

    def site_biases(self) -> Tensor | None:
        """Biases of the units for each cell."""
        ...


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


class CouplingSequence(nn.Module):
    """Couplings of several layers on the rows of a field ``(rows, n)``, in the order of generation.

    It has no parameters of its own.

    Args:
        layers: couplings, each with the rows of the sites of its blocks, ``(size, cells)``; -1 for
            sites that are not there, which stay zero.
        rows: of the field.
    """

    index: Tensor
    constants: Tensor
    seen: Tensor
    targets: Tensor

    def __init__(self, layers: Sequence[tuple[CouplingLayer, Tensor]], rows: int) -> None:
        super().__init__()
        self.layers = tuple(couplings for couplings, _ in layers)  # no submodules
        self.rows = rows
        self.options: NetworkOptions = self.layers[0].options
        self.couplings: list[Coupling] = []
        seen, targets = self._plan(layers)
        self.register_buffer("seen", torch.cat(seen), persistent=False)
        self.register_buffer("targets", torch.cat(targets), persistent=False)
        start, total = 0, sum(c.packing.total for c in self.layers)
        index, constants = [], []
        for couplings in self.layers:
            packing = couplings.packing
            outside = packing.index == packing.total
            index.append(torch.where(outside, total, packing.index + start))
            constants.append(packing.constants[:-1])
            start += packing.total
        self.register_buffer("index", torch.cat(index), persistent=False)
        constants.append(torch.zeros(1))
        self.register_buffer("constants", torch.cat(constants), persistent=False)
        self.kept_rows = sum(c.cells * c.moved for c in self.couplings)
        """Values that the couplings overwrite."""
        self._program: Any = None
        self.operations: Operations | None = None
        """Functions that couple where they are not those of the module; see HierarchicalFlow."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "operations": None}

    def _plan(
        self, layers: Sequence[tuple[CouplingLayer, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Lay out all couplings; rows that their networks see, and rows that they move."""
        seen: list[Tensor] = []
        targets: list[Tensor] = []
        start = unit = site = 0
        for couplings, sites in layers:
            padded = torch.nn.functional.pad(sites, (0, 1), value=-1)  # what is outside
            for fixed, moved in couplings.halves:
                of_fixed = padded[fixed][:, couplings.near]  # (fixed, cells, near)
                of_fixed = of_fixed.permute(2, 0, 1).flatten(0, 1)
                inputs = len(of_fixed)
                target = sites[moved]
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
                        seen=sum(map(len, seen)),
                        target=sum(map(len, targets)),
                        whole=bool((target >= 0).all()),
                    )
                )
                seen.append(torch.where(of_fixed < 0, self.rows, of_fixed).flatten())
                targets.append(target.flatten())
                start += self.options.size(inputs, len(moved))
                unit += units
                site += units * couplings.cells
        return seen, targets

    # What the couplings are made of

    def inputs(self, context: Tensor | None) -> Inputs:
        """Arrays of the networks, and what sites and a context do to their units."""
        response = self.options.response
        packed = torch.cat([couplings.packed for couplings in self.layers]) * response
        arrays = self.constants.to(packed.dtype).index_add(0, self.index, packed)
        sites = gains = shifts = None
        if self.layers[0].site_weight is not None:
            biases = []
            for couplings in self.layers:
                of_layer = couplings.site_biases()
                assert of_layer is not None
                biases.append(of_layer.flatten().to(packed.dtype))  # whatever autocast made of it
            sites = torch.cat(biases) * response
        if context is not None and self.layers[0].context_gain is not None:
            gains = (self._context_gains() @ context).to(packed.dtype)
            shifts = (self._context_shifts() @ context).to(packed.dtype)
        return Inputs(arrays, sites, gains, shifts)

    def _context_gains(self) -> Tensor:
        """For all units."""
        gains = [couplings.context_gain for couplings in self.layers]
        joined: Tensor = torch.cat(gains)  # type: ignore[arg-type]
        return joined * self._context_response(joined)

    def _context_shifts(self) -> Tensor:
        """For all units; zero for those of an odd map that may not be shifted."""
        rows = []
        for couplings in self.layers:
            gain, shift = couplings.context_gain, couplings.context_shift
            assert gain is not None
            assert shift is not None
            rows.append(torch.zeros_like(gain).index_copy(0, couplings.shifted_units, shift))
        joined = torch.cat(rows)
        return joined * self._context_response(joined)

    def _context_response(self, matrix: Tensor) -> float:
        """Of entries that act on features of a context; slow couplings count these."""
        response = self.options.response
        return (
            response if response >= 1 else response * min(1.0, CONTEXT_FEATURES / matrix.shape[1])
        )

    # The passes

    def forward(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """z to x, rows ``(rows, n)``, and ladj ``(n,)``."""
        return self._run(h, self.inputs(context), False)

    def inverse(self, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """x to z, and the same ladj = ln |det dx/dz|."""
        return self._run(h, self.inputs(context), True)

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None, want_context: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to x, ladj and the score, both without a graph, and the score of the context.

        The last is the gradient of ln q with respect to the context at fixed x, if wanted.
        """
        if h.shape[-1] == 0:
            return (
                h,
                h.new_zeros(0),
                score,
                torch.zeros_like(context) if want_context and context is not None else None,
            )
        inputs = self.inputs(context)
        want_context = want_context and inputs.gains is not None
        if is_compiled(self, h):
            out, ladj, score, d_gains, d_shifts = couple_with_score(
                self, h, score, inputs, want_context
            )
        else:
            out, ladj, score, d_gains, d_shifts = self._reference_with_score(
                h, score, inputs, want_context
            )
        of_context = None
        if want_context:
            of_gains, of_shifts = (
                self._context_gains().T @ d_gains,
                self._context_shifts().T @ d_shifts,
            )
            of_context = -(of_gains + of_shifts).detach()
        return out, ladj, score, of_context

    def _run(self, h: Tensor, inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        if h.shape[-1] == 0:
            return h, h.new_zeros(0)
        if is_compiled(self, h):
            return couple(self, h, inputs, inverse)
        return self.reference(h, inputs, inverse)

    # The reference

    def reference(self, h: Tensor, inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        """All couplings in plain torch."""
        n = h.shape[-1]
        state = torch.cat([h, h.new_zeros(1, n)])  # a row for all that is outside
        ladj = h.new_zeros(n)
        run = (self.operations or active_operations()).couple
        order = list(zip(self.couplings, self.networks(inputs), strict=True))
        for coupling, (arrays, bends) in reversed(order) if inverse else order:
            x, v = self._seen(state, coupling), self._moved(state, coupling)
            values, log_slope = run(self.options, arrays, bends, x, v, inverse)
            state = self._put(state, coupling, values)
            ladj = ladj + self._sum(log_slope, coupling)
        return state[:-1], ladj

    def _reference_with_score(
        self, h: Tensor, score: Tensor, inputs: Inputs, want_context: bool
    ) -> tuple[Tensor, ...]:
        n = h.shape[-1]
        run = (self.operations or active_operations()).couple_with_score
        d_gains: list[Tensor] = []
        d_shifts: list[Tensor] = []
        with torch.enable_grad():
            if not h.requires_grad:
                h = h.detach().requires_grad_()
            if want_context and not (inputs.gains is None or inputs.gains.requires_grad):
                inputs = inputs.with_free_context()
            state = torch.cat([h, h.new_zeros(1, n)])
            scores = torch.cat([score, score.new_zeros(1, n)])
            ladj = h.new_zeros(n)
            for coupling, (arrays, bends) in zip(
                self.couplings, self.networks(inputs), strict=True
            ):
                x, v = self._seen(state, coupling), self._moved(state, coupling)
                of_v = self._moved(scores, coupling)
                live = None if coupling.whole else self._target(coupling) >= 0
                values, log_slope, of_x, of_v, *more = run(
                    self.options, arrays, bends, x, v, of_v, live, want_context
                )
                state = self._put(state, coupling, values)
                ladj = ladj + self._sum(log_slope.detach(), coupling)
                rows = self.seen[coupling.seen : coupling.seen + coupling.inputs * coupling.cells]
                scores = scores.index_add(0, rows, of_x.reshape(len(rows), n), alpha=-1)
                scores = self._put(scores, coupling, of_v)
                scores = torch.cat([scores[:-1], scores.new_zeros(1, n)])
                if want_context:
                    d_gains.append(more[0])
                    d_shifts.append(more[1])
        nothing = h.new_zeros(0)
        return (
            state[:-1],
            ladj,
            scores[:-1],
            torch.cat(d_gains) if want_context else nothing,
            torch.cat(d_shifts) if want_context else nothing,
        )

    def networks(self, inputs: Inputs) -> list[tuple[list[Tensor], Bends]]:
        """Arrays of each coupling's network, and what acts on its units."""
        sizes = [math.prod(shape) for coupling in self.couplings for shape in coupling.shapes]
        pieces = iter(inputs.arrays[:-1].split(sizes))
        units = [coupling.units for coupling in self.couplings]
        cells = [coupling.units * coupling.cells for coupling in self.couplings]
        parts = zip((inputs.sites, inputs.gains, inputs.shifts), (cells, units, units), strict=True)
        bends = [
            [None] * len(units) if part is None else part.split(lengths) for part, lengths in parts
        ]
        networks = []
        for coupling, sites, gains, shifts in zip(self.couplings, *bends, strict=True):
            arrays = [next(pieces).reshape(shape) for shape in coupling.shapes]
            of_cells = None if sites is None else sites.reshape(coupling.units, coupling.cells)
            networks.append((arrays, Bends(of_cells, gains, shifts)))
        return networks

    def _seen(self, state: Tensor, coupling: Coupling) -> Tensor:
        rows = self.seen[coupling.seen : coupling.seen + coupling.inputs * coupling.cells]
        return state.index_select(0, rows).reshape(coupling.inputs, -1)

    def _target(self, coupling: Coupling) -> Tensor:
        rows = self.targets[coupling.target : coupling.target + coupling.moved * coupling.cells]
        return rows.view(coupling.moved, coupling.cells)

    def _moved(self, state: Tensor, coupling: Coupling) -> Tensor:
        rows = self._target(coupling).flatten()
        if not coupling.whole:
            rows = torch.where(rows < 0, self.rows, rows)
        return state.index_select(0, rows).reshape(coupling.moved, coupling.cells, -1)

    def _put(self, state: Tensor, coupling: Coupling, values: Tensor) -> Tensor:
        rows = self._target(coupling)
        if not coupling.whole:  # what is not there goes to the row of zeros, as zero
            values = torch.where((rows >= 0)[..., None], values, 0.0)
            rows = torch.where(rows < 0, self.rows, rows)
        return state.index_copy(0, rows.flatten(), values.flatten(0, 1))

    def _sum(self, log_slope: Tensor, coupling: Coupling) -> Tensor:
        if not coupling.whole:
            log_slope = torch.where((self._target(coupling) >= 0)[..., None], log_slope, 0.0)
        return log_slope.sum((0, 1))
