# SPDX-License-Identifier: Apache-2.0
"""Many couplings on one field, one after the other: the inner loop of every hierarchical flow.

On a CPU the whole sequence is one operation (:mod:`~pyro_neuralrg.compiled`); elsewhere, and for
what that does not know, it is the plain torch of this module, which is the reference.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_neuralrg.compiled.operation import apply_couplings, is_compiled
from pyro_neuralrg.compiled.program import Weights
from pyro_neuralrg.transforms.base import Pushed
from pyro_neuralrg.transforms.networks import (
    Network,
    NetworkOptions,
    couple,
    couple_with_score,
    couple_with_score_in_one_graph,
)
from pyro_neuralrg.transforms.wavelets import BlockRotation, rotated

CONTEXT_FEATURES = 5
"""Features of a context from which on slow couplings follow each of them less."""
SHAPES = 64
"""Shapes that may be compiled: scales, times the batch sizes that are used."""


class Operations(NamedTuple):
    """The two functions of :mod:`~pyro_neuralrg.transforms.networks` that plain torch calls."""

    couple: Callable[..., tuple[Tensor, Tensor]]
    couple_with_score: Callable[..., tuple[Tensor, ...]]

    def __reduce__(self) -> Any:  # copies are not compiled
        return Operations, (couple, couple_with_score)


EAGER = Operations(couple, couple_with_score)


class Coupling(NamedTuple):
    """One coupling of a sequence, with the places of its own among those of all.

    Or a rotation, which moves whole blocks and sees nothing: its array is the matrix.
    """

    rotates: bool
    shapes: list[tuple[int, ...]]  # of the arrays of its network
    arrays: slice  # these, flat
    inputs: int  # what the network of one cell sees
    moved: int  # sites moved in one cell
    cells: int
    units: slice  # of its network
    sites: slice  # its biases of cells
    seen: slice  # its rows in ``CouplingSequence.seen``, ``(inputs, cells)``
    targets: slice  # likewise in ``targets``, ``(moved, cells)``
    whole: bool  # all its targets are there

    @property
    def moved_shape(self) -> tuple[int, int]:
        """Sites moved in one cell, and cells."""
        return self.moved, self.cells


class CouplingSequence(nn.Module):
    """Couplings of several layers on the rows of a field ``(rows, n)``, in the order of generation.

    It has no parameters of its own.

    Args:
        layers: :class:`~pyro_neuralrg.transforms.Couplings` and rotations, each with the rows of
            the sites of its blocks, ``(size, cells)``; -1 for sites that are not there, which stay
            zero.
        rows: of the field.
    """

    index: Tensor
    constants: Tensor
    seen: Tensor
    targets: Tensor

    def __init__(self, layers: Sequence[tuple[Any, Tensor]], rows: int) -> None:
        super().__init__()
        self.layers = tuple(layer for layer, _ in layers)  # no submodules
        self.stacks = tuple(layer for layer in self.layers if not isinstance(layer, BlockRotation))
        self.rows = rows
        self.options: NetworkOptions = self.stacks[0].options
        self.couplings: list[Coupling] = []
        names = ("seen", "targets", "index", "constants")
        tables: dict[str, list[Tensor]] = {name: [] for name in names}
        self._plan(layers, tables)
        start, total, like = 0, self.couplings[-1].arrays.stop, self.stacks[0].packed
        for layer in self.layers:
            if isinstance(layer, BlockRotation):
                tables["constants"].append(layer.matrix(like).flatten())
                start += len(tables["constants"][-1])
                continue
            packing = layer.packing
            outside = packing.index == packing.total
            tables["index"].append(torch.where(outside, total, packing.index + start))
            tables["constants"].append(packing.constants[:-1].to(like))
            start += packing.total
        tables["constants"].append(like.new_zeros(1))
        for name, parts in tables.items():
            self.register_buffer(name, torch.cat(parts), persistent=False)
        self.kept_rows = sum(c.cells * c.moved for c in self.couplings if not c.rotates)
        """Values that the couplings overwrite."""
        self.program: Any = None
        """The same for compiled code, made when first needed."""
        self.operations = EAGER
        """Compiled functions in place of these; see ``HierarchicalFlow.compile``."""

    def _plan(self, layers: Sequence[tuple[Any, Tensor]], tables: dict[str, list[Tensor]]) -> None:
        """Lay out all couplings; rows that their networks see, and rows that they move."""
        ends = dict.fromkeys(("arrays", "units", "sites", "seen", "targets"), 0)

        def place(name: str, length: int) -> slice:
            begin, ends[name] = ends[name], ends[name] + length
            return slice(begin, ends[name])

        for layer, sites in layers:
            padded = torch.nn.functional.pad(sites, (0, 1), value=-1)  # what is outside
            rotates, cells = isinstance(layer, BlockRotation), sites.shape[1]
            for fixed, moved in layer.halves:
                seen = padded[fixed][:, layer.near]  # (fixed, cells, near)
                seen = seen.permute(2, 0, 1).flatten(0, 1)
                targets, size = sites[moved], len(moved)
                units = 0 if rotates else self.options.units(size)
                shapes: list[tuple[int, ...]] = [(size, size)]
                shapes = shapes if rotates else self.options.shapes(len(seen), size)
                self.couplings.append(
                    Coupling(
                        rotates=rotates,
                        shapes=shapes,
                        arrays=place("arrays", sum(math.prod(shape) for shape in shapes)),
                        inputs=len(seen),
                        moved=size,
                        cells=cells,
                        units=place("units", units),
                        sites=place("sites", units * cells),
                        seen=place("seen", seen.numel()),
                        targets=place("targets", targets.numel()),
                        whole=bool((targets >= 0).all()),
                    )
                )
                tables["seen"].append(torch.where(seen < 0, self.rows, seen).flatten())
                tables["targets"].append(targets.flatten())

    def fits(self, layers: Sequence[Any]) -> bool:
        """True if it is of these layers in their present precision."""
        return self.layers == layers and self.constants.dtype == self.stacks[0].packed.dtype

    # What the couplings are made of

    def weights(self, context: Tensor | None) -> Weights:
        """Arrays of the networks, and what sites and a context do to their units."""
        response = self.options.response
        packed = torch.cat([couplings.packed for couplings in self.stacks]) * response
        arrays = self.constants.to(packed.dtype).index_add(0, self.index, packed)
        sites = gains = shifts = None
        if self.stacks[0].site_weight is not None:  # casts undo what autocast has made of products
            biases = [couplings.site_biases().flatten() for couplings in self.stacks]
            sites = torch.cat(biases).to(packed.dtype) * response
        if context is not None and self.stacks[0].context_gain is not None:
            gains, shifts = ((part @ context).to(packed.dtype) for part in self._of_context())
        return Weights(arrays, sites, gains, shifts)

    def _of_context(self) -> tuple[Tensor, Tensor]:
        """Matrices from a context to gains and shifts of all units, zeros for those without."""
        gains = torch.cat([couplings.context_gain for couplings in self.stacks])
        own = ((c.context_gain, c.shifted_units, c.context_shift) for c in self.stacks)
        shifts = torch.cat([torch.zeros_like(g).index_copy(0, rows, s) for g, rows, s in own])
        response = self.options.response
        if response < 1:
            response *= min(1.0, CONTEXT_FEATURES / gains.shape[1])
        return gains * response, shifts * response

    # The passes

    def run(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """z to x or back, ``(..., n)`` with the rows flattened; and ladj = ln |det dx/dz|."""
        if h.shape[-1] == 0:
            return h, h.new_zeros(0)
        run = apply_couplings if is_compiled(self, h) else CouplingSequence.reference
        out, ladj, *_ = run(self, (h.flatten(0, -2), *self.weights(context)), inverse)
        return out.view(h.shape), ladj

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None, want_context: bool
    ) -> Pushed:
        """z to x, with ladj, the score and, if wanted, that of the context, without graphs."""
        if h.shape[-1] == 0:
            return h, h.new_zeros(0), score, None if context is None else torch.zeros_like(context)
        rows, scores, weights = h.flatten(0, -2), score.flatten(0, -2), self.weights(context)
        want_context = want_context and weights.gains is not None
        if is_compiled(self, h):
            found = apply_couplings(self, (rows, *weights), False, scores)
        else:
            found = self._reference_with_score(rows, scores, weights, want_context)
        rows, ladj, scores, d_gains, d_shifts = found
        of_context = None
        if want_context:
            gains, shifts = self._of_context()
            of_context = -(gains.T @ d_gains + shifts.T @ d_shifts).detach()
        return rows.view(h.shape), ladj, scores.view(h.shape), of_context

    # The reference

    def reference(self, tensors: Sequence[Any], inverse: bool) -> tuple[Tensor, Tensor]:
        """All couplings in plain torch, on the field and the weights."""
        h, weights = tensors[0], Weights(*tensors[1:])
        state = torch.cat([h, h.new_zeros(1, h.shape[-1])])  # a row for all that is outside
        ladj = h.new_zeros(h.shape[-1])
        order = list(zip(self.couplings, self.networks(weights), strict=True))
        for coupling, network in reversed(order) if inverse else order:
            seen, moved, live = self._places(coupling)
            v = _rows(state, moved, *coupling.moved_shape)
            if coupling.rotates:
                state = _rotated(state, moved, v, network, inverse)
                continue
            x = _rows(state, seen, coupling.inputs)
            values, log_slope = self.operations.couple(network, x, v, inverse)
            state = state.index_copy(0, moved, _masked(values, live).flatten(0, 1))
            ladj = ladj + _masked(log_slope, live).sum((0, 1))
        return state[:-1], ladj

    def _reference_with_score(
        self, h: Tensor, score: Tensor, weights: Weights, want_context: bool
    ) -> tuple[Tensor, ...]:
        nothing = h.new_zeros(1, h.shape[-1])
        of_context: list[Sequence[Tensor]] = []
        with torch.enable_grad():
            if not h.requires_grad:
                h = h.detach().requires_grad_()
            if want_context and not weights.gains.requires_grad:
                free = (part.detach().requires_grad_() for part in weights[2:])
                weights = Weights(*weights[:2], *free)
            state, scores = torch.cat([h, nothing]), torch.cat([score, nothing])
            ladj = h.new_zeros(h.shape[-1])
            for coupling, network in zip(self.couplings, self.networks(weights), strict=True):
                shape = coupling.moved_shape
                seen, moved, live = self._places(coupling)
                v, of_v = _rows(state, moved, *shape), _rows(scores, moved, *shape)
                if coupling.rotates:
                    state = _rotated(state, moved, v, network, False)
                    scores = _rotated(scores, moved, of_v, network, False).detach()
                    continue
                x = _rows(state, seen, coupling.inputs)
                values, log_slope, of_x, of_v, *more = self.operations.couple_with_score(
                    network, x, v, of_v, live, want_context
                )
                state = state.index_copy(0, moved, _masked(values, live).flatten(0, 1))
                ladj = ladj + _masked(log_slope.detach(), live).sum((0, 1))
                scores = scores.index_add(0, seen, of_x.reshape(len(seen), -1), alpha=-1)
                scores = scores.index_copy(0, moved, _masked(of_v, live).flatten(0, 1))
                scores = torch.cat([scores[:-1], nothing])
                of_context.append(more)
        found = [torch.cat(part) for part in zip(*of_context, strict=True)]
        return state[:-1], ladj, scores[:-1], *(found or (nothing, nothing))

    def networks(self, weights: Weights) -> list[Network]:
        """The network of each coupling."""
        sizes = [math.prod(shape) for c in self.couplings for shape in c.shapes]
        pieces = iter(weights.arrays[:-1].split(sizes))  # one split: its backward pass is cheaper
        networks = []
        for c in self.couplings:
            sites = None if weights.sites is None else weights.sites[c.sites].view(-1, c.cells)
            gains, shifts = (None if part is None else part[c.units] for part in weights[2:])
            arrays = [next(pieces).reshape(shape) for shape in c.shapes]
            networks.append(Network(self.options, arrays, sites, gains, shifts))
        return networks

    def _places(self, coupling: Coupling) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows that are seen, rows that are moved, and which of these are there, if not all."""
        seen, moved = self.seen[coupling.seen], self.targets[coupling.targets]
        if coupling.whole:
            return seen, moved, None
        live = moved >= 0
        moved = torch.where(live, moved, self.rows)  # the others move in the row of zeros, as zero
        return seen, moved, live.view(*coupling.moved_shape, 1)


def _rows(state: Tensor, rows: Tensor, *shape: int) -> Tensor:
    return state.index_select(0, rows).reshape(*shape, -1)


def _rotated(state: Tensor, rows: Tensor, v: Tensor, network: Network, back: bool) -> Tensor:
    """The state with its blocks v rotated."""
    (matrix,) = network.arrays
    return state.index_copy(0, rows, rotated(matrix, v, back).flatten(0, 1))


def _masked(values: Tensor, live: Tensor | None) -> Tensor:
    return values if live is None else torch.where(live, values, 0.0)


def compile_operations(**options: Any) -> Operations:
    """The two functions through ``torch.compile``, with its options.

    Where nothing can be compiled they are the plain ones, after one warning with the reason.
    """
    options = {"dynamic": False, **options}
    failed = False

    def compiled(function: Callable[..., Any], plain: Callable[..., Any]) -> Any:
        fast: Any = None

        def call(*arguments: Any) -> Any:
            nonlocal fast, failed
            if failed:
                return plain(*arguments)
            try:
                with warnings.catch_warnings(), _many_shapes():  # the compiler's, of itself
                    warnings.simplefilter("ignore")
                    fast = fast or torch.compile(function, **options)
                    return fast(*arguments)
            except Exception as error:  # whatever a compiler may raise
                found = plain(*arguments)  # which raises what is not the compiler's
                failed = True
                lines = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(
                    f"torch.compile fails here ({lines[0][:200]}); going on without", stacklevel=2
                )
                return found

        return call

    with_score = compiled(couple_with_score_in_one_graph, couple_with_score)
    return Operations(compiled(couple, couple), with_score)


def _many_shapes() -> Any:
    """Raise the limit of shapes (a setting of the process), where torch has the setting."""
    try:
        return torch._dynamo.config.patch(recompile_limit=SHAPES)
    except Exception:  # no compiler for this Python, or another name of the setting
        return nullcontext()
