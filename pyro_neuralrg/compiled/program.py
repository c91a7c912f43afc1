# SPDX-License-Identifier: Apache-2.0
"""Couplings as numbers, and the layout of the memory in which they are computed."""

from __future__ import annotations

import itertools
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

TILE = 32
"""Columns of a tile."""
CHUNK = 512
"""Columns of a chunk, cells times columns of a tile: its values fit into the second-level cache."""


class CouplingProgram(NamedTuple):
    """Couplings as numbers, in the order of generation."""

    couplings: Any  # one row each, the fields of CouplingRecord
    seen: Any  # rows of the state that the network of a cell sees, (cells, inputs) a coupling
    targets: Any  # rows that are moved, (cells, moved) a coupling; -1 for one that is not there
    widths: Any  # units of the hidden layers
    rows: int  # of the state, without the row of zeros
    kept: int  # rows that are kept for the backward pass
    terms: int  # tanh terms of each map
    odd: int  # 1 if the maps commute with x -> -x
    tanh: int  # 1 if that is the activation, 0 for elu
    work: int  # length of the working memory


class Weights(NamedTuple):
    """The tensors (arrays, in compiled code) that couplings depend on beside the field.

    Or their gradients. None, or empty in compiled code, where there is none.

    Attributes:
        arrays: of each network the matrix and the biases of each hidden layer, of ``place`` and of
            ``form``; steepness before its softplus ``(terms, moved)``; bounds of the log-scales
            ``(moved,)``; flat.
        sites: biases of the units for each cell, or gains of units that have none,
            ``(units, cells)`` a network, flat.
        gains: of a context, ``(units, n)``; in compiled code whole tiles.
        shifts: likewise.
    """

    arrays: Any
    sites: Any
    gains: Any
    shifts: Any


def _rows_of_work(
    inputs: int, widths: Sequence[int], heads: int, moved: int, terms: int
) -> dict[str, int]:
    """Names and numbers of the rows of one chunk in the working memory."""
    units, widest = sum(widths), max(inputs, 2 * heads, *widths)
    return {
        "x": inputs,  # what the network sees
        "hidden": units,  # units of the hidden layers, one after the other
        "raw": units + 2 * heads,  # units and heads before the gains of a context
        "square": widths[-1] if widths else inputs,  # of what the heads see
        "place": heads,  # shift and centres of the tanh terms
        "form": heads,  # log-scales and heights before their bounds
        "v": moved,  # what is moved
        "value": moved,  # of the map at v
        "slope": moved,
        "q": moved,  # tanh of the form
        "scale": moved,  # exponential of the log-scale
        "height": terms * moved,  # of the tanh terms
        "gate": terms * moved,  # slope of the height's softplus
        "rise": terms * moved,  # tanh at v
        "a": moved,  # gradient of the value
        "b": moved,  # of the logarithm of the slope
        "d_place": heads,
        "d_form": heads,
        "d_v": moved,
        "d_steepness": terms * moved,
        "d_bound": moved,
        "d_hidden": widest,  # gradients of one layer
        "d_below": widest,  # and of the one below it
        "ones": 1,
    }


_COUNTS = ("rotates", "inputs", "moved", "cells")
"""1 for a rotation; inputs of its network of one cell, sites moved in one cell, cells."""
_BEGINS = ("arrays", "seen", "targets", "units", "sites")  # where its own begin
_FIELDS = (
    *(*_COUNTS, *_BEGINS),
    "heads",  # outputs of each head of the network
    "kept",  # where its kept rows begin
    "last",  # row of what the heads see: the last hidden layer, or the inputs
    *_rows_of_work(1, (), 1, 1, 1),  # where these begin in the working memory
)
CouplingRecord: Any = namedtuple("CouplingRecord", _FIELDS)  # type: ignore[misc]
"""One coupling as numbers."""


class Cells(NamedTuple):
    """Some cells of a coupling in one tile."""

    first: int
    number: int
    size: int  # columns of their chunk
    n: int  # columns of gains and shifts
    t0: int  # where the tile begins


def program_of(sequence: Any) -> CouplingProgram:
    """Program of a :class:`~pyro_neuralrg.transforms.coupling_sequence.CouplingSequence`."""
    options = sequence.options
    couplings, seen, targets = [], [], []
    kept = work = 0
    for c in sequence.couplings:
        seen.append(sequence.seen[c.seen].view(c.inputs, c.cells).T.flatten())
        targets.append(sequence.targets[c.targets].view(c.moved, c.cells).T.flatten())
        heads = options.heads(c.moved)
        rows = _rows_of_work(c.inputs, options.widths, heads, c.moved, options.terms)
        *begins, end = itertools.accumulate(rows.values(), initial=0)
        layout = {name: row * CHUNK for name, row in zip(rows, begins, strict=True)}
        last = layout["raw"] - CHUNK * options.widths[-1] if options.widths else layout["x"]
        record = {name: getattr(c, name) for name in _COUNTS}
        record |= {name: getattr(c, name).start for name in _BEGINS}
        record |= {"heads": heads, "kept": kept, "last": last, **layout}
        couplings.append([record[name] for name in _FIELDS])
        kept += 0 if c.rotates else c.cells * c.moved
        work = max(work, end * CHUNK)
    return CouplingProgram(
        couplings=np.array(couplings, np.int64),
        seen=torch.cat(seen).numpy(),
        targets=torch.cat(targets).numpy(),
        widths=np.array(options.widths, np.int64),
        rows=sequence.rows,
        kept=kept,
        terms=options.terms,
        odd=int(options.is_odd_by_form),
        tanh=int(options.activation == "tanh"),
        work=work,
    )
