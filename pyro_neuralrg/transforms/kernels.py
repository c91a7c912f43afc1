# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of couplings: a whole circuit on a tile of columns, which stays in the cache.

Columns are fields of the batch, and independent. A tile of ``TILE`` of them runs through all
couplings, one after the other, in place: the state of a tile is ``(rows + 1, TILE)``, its last row
zero, which is what lies outside of an open lattice. Within a coupling a chunk of cells is evaluated
at a time, with all its intermediate values as rows of ``CHUNK`` columns in ``work``.

Three passes: ``forward`` (z to x; with the score of q if asked), ``inverse`` (x to z) and
``pull_back`` (the gradient of either). The backward pass undoes one coupling after the other from
the values that each has overwritten, and evaluates its network again.

What a coupling computes is written in plain torch in
:mod:`~pyro_neuralrg.transforms.coupling_sequence` and what it calls; tests compare the two.
:mod:`~pyro_neuralrg.transforms.compiled` calls this.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_neuralrg.transforms.elementwise import INVERSE_STEPS
from pyro_neuralrg.transforms.kernel_rows import (
    AT_ONCE,
    CELLS,
    CHUNK,
    INPUTS,
    KEPT,
    MOVED,
    NO,
    ONE,
    PARAMETERS,
    PART,
    PASS,
    SEEN,
    SITES,
    TANH,
    TARGETS,
    TILE,
    UNITS,
    YES,
    add,
    add_log,
    add_number,
    add_outer,
    add_scaled,
    add_sums,
    bend_row,
    bracket,
    copy,
    curvature_of,
    elu_back,
    elu_of,
    heights,
    lay_out,
    line,
    line_back,
    multiply,
    negative,
    newton,
    newton_only,
    scales,
    score_of_v,
    square,
    square_back,
    tanh_back,
    tanh_of,
    term_back,
    term_of,
    through_inverse,
    unbend_row,
    unbend_row_only,
    zero,
)

# One coupling on a chunk of cells


@njit(**PART)
def bend(w, bias, site, unit, all_cells, cell, cells, n, t0, width, rows, raw, work):
    """Add biases to the rows of a layer; let the context act on them."""
    for u in range(width):
        offset = w.parameters[bias + u]
        if len(w.sites) == 0 and len(w.gains) == 0:
            if offset != 0:
                row = rows + u * CHUNK
                add_number(((work, row),), ((work, row),), (offset,), cells * TILE)
            continue
        for j in range(cells):
            row = rows + u * CHUNK + j * TILE
            here = offset
            if len(w.sites):
                here += w.sites[site + u * all_cells + cell + j]
            if len(w.gains):
                at, keep = (unit + u) * n + t0, raw + u * CHUNK + j * TILE
                bend_row(
                    ((work, row), (w.gains, at), (w.shifts, at)), ((work, keep), (work, row)),
                    (here,), TILE,
                )  # fmt: skip
            else:
                add_number(((work, row),), ((work, row),), (here,), TILE)


@njit(**PART)
def evaluate_network(p, w, c, m, cell, cells, n, t0, state, work):
    """From the state to place and form of the cells' maps, and what follows from the form.

    Returns the position of the steepness among the parameters.
    """
    inputs, moved, all_cells = p.couplings[c, INPUTS], p.couplings[c, MOVED], p.couplings[c, CELLS]
    unit, site = p.couplings[c, UNITS], p.couplings[c, SITES]
    heads, columns = (1 + p.terms) * moved, cells * TILE
    for j in range(cells):
        base = p.couplings[c, SEEN] + (cell + j) * inputs
        for i in range(inputs):
            to = m.x + i * CHUNK + j * TILE
            copy(((state, p.seen[base + i] * TILE),), ((work, to),), (), TILE)
    at, below, width, units = p.couplings[c, PARAMETERS], m.x, inputs, 0
    for next_width in p.widths:
        rows = m.hidden + units * CHUNK
        multiply(w.parameters, at, width, ONE, work, below, rows, next_width, width, columns)
        at += next_width * width
        bend(w, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0,
             next_width, rows, m.raw + units * CHUNK, work)  # fmt: skip
        for u in range(next_width):
            row = rows + u * CHUNK
            if p.activation == TANH:
                tanh_of(((work, row),), ((work, row),), (), columns)
            else:
                elu_of(((work, row),), ((work, row),), (), columns)
        at += next_width
        units += next_width
        below, width = rows, next_width
    multiply(w.parameters, at, width, ONE, work, below, m.place, heads, width, columns)
    at += heads * width
    bend(w, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0,
         heads, m.place, m.raw + units * CHUNK, work)  # fmt: skip
    at += heads
    units += heads
    if p.odd:
        for u in range(width):
            square(((work, below + u * CHUNK),), ((work, m.square + u * CHUNK),), (), columns)
        below = m.square
    multiply(w.parameters, at, width, ONE, work, below, m.form, heads, width, columns)
    at += heads * width
    bend(w, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0,
         heads, m.form, m.raw + units * CHUNK, work)  # fmt: skip
    at += heads
    for o in range(moved):
        row = o * CHUNK
        bound = w.parameters[at + p.terms * moved + o]
        scales(
            ((work, m.form + row),), ((work, m.q + row), (work, m.scale + row)), (bound,), columns
        )
    for k in range(p.terms * moved):
        row, form = k * CHUNK, m.form + (moved + k) * CHUNK
        heights(((work, form),), ((work, m.height + row), (work, m.gate + row)), (), columns)
    return at


@njit(**PART)
def softplus(x):
    """ln(1 + e^x)."""
    return max(x, x * 0) + math.log1p(math.exp(-abs(x)))


@njit(**PART)
def evaluate_map(p, w, at, m, o, moved, columns, work):
    """Value and slope of the map of one site of the cells at v."""
    row = o * CHUNK
    value, slope, v = (work, m.value + row), (work, m.slope + row), (work, m.v + row)
    line((v, (work, m.scale + row), (work, m.place + row)), (value, slope), (), columns)
    for k in range(p.terms):
        steepness = softplus(w.parameters[at + k * moved + o])
        term, centre = (k * moved + o) * CHUNK, m.place + ((1 + k) * moved + o) * CHUNK
        term_of(
            (v, (work, centre), (work, m.height + term), value, slope),
            ((work, m.rise + term), value, slope), (steepness,), columns,
        )  # fmt: skip


@njit(**PART)
def curve(p, w, at, m, o, moved, columns, out, work):
    """d ln slope / dv of one site of the cells, from what :func:`evaluate_map` has left."""
    row, to = o * CHUNK, (work, out)
    zero(((work, m.ones),), (to,), (), columns)
    for k in range(p.terms):
        steepness = softplus(w.parameters[at + k * moved + o])
        term = (k * moved + o) * CHUNK
        curvature_of(
            (to, (work, m.height + term), (work, m.rise + term), (work, m.slope + row)),
            (to,), (steepness,), columns,
        )  # fmt: skip


@njit(**PART)
def pull_map(p, w, at, m, o, moved, columns, work):
    """From a and b, the gradients of value and ln slope, to those of place, form and v."""
    row = o * CHUNK
    a, b, v, slope = (work, m.a + row), (work, m.b + row), (work, m.v + row), (work, m.slope + row)
    d_v = (work, m.d_v + row)
    line_back(
        (a, b, v, slope, (work, m.q + row), (work, m.scale + row)),
        ((work, m.d_place + row), (work, m.d_form + row), (work, m.d_bound + row), d_v),
        (w.parameters[at + p.terms * moved + o],), columns,
    )  # fmt: skip
    for k in range(p.terms):
        steepness = softplus(w.parameters[at + k * moved + o])
        term, head = (k * moved + o) * CHUNK, ((1 + k) * moved + o) * CHUNK
        term_back(
            (a, b, v, slope, (work, m.place + head), (work, m.height + term),
             (work, m.gate + term), (work, m.rise + term), d_v),
            ((work, m.d_place + head), (work, m.d_form + head), d_v, (work, m.d_steepness + term)),
            (steepness,), columns,
        )  # fmt: skip


@njit(**PART)
def unbend(
    w, d, bias, site, unit, all_cells, cell, cells, n, t0, width, rows, raw, ones, biased, work
):
    """Undo :func:`bend` for gradients, which are added up."""
    if len(w.gains):
        for u in range(width):
            at = (unit + u) * n + t0
            for j in range(cells):
                row, keep = (work, rows + u * CHUNK + j * TILE), raw + u * CHUNK + j * TILE
                gain = (w.gains, at)
                if len(d.gains):
                    sums = (d.gains, at), (d.shifts, at)
                    unbend_row(
                        (row, (work, keep), gain, sums[0], sums[1]),
                        (row, sums[0], sums[1]),
                        (),
                        TILE,
                    )
                else:
                    unbend_row_only((row, gain), (row,), (), TILE)
    if biased and len(d.parameters):
        add_sums(work, rows, ones, d.parameters, bias, width, cells * TILE)
    if len(d.sites):
        for u in range(width):
            for j in range(cells):
                row, to = rows + u * CHUNK + j * TILE, site + u * all_cells + cell + j
                add_sums(work, row, ones, d.sites, to, ONE, ONE * TILE)


@njit(**PART)
def pull_network(p, w, d, c, m, cell, cells, n, t0, sign, at, slopes, work):
    """Add the gradient of what the networks see, times ``sign``, to ``slopes``.

    From the gradients of place and form; those of the weights are added to ``d``.
    """
    inputs, moved, all_cells = p.couplings[c, INPUTS], p.couplings[c, MOVED], p.couplings[c, CELLS]
    unit, site = p.couplings[c, UNITS], p.couplings[c, SITES]
    heads, columns, depth = (1 + p.terms) * moved, cells * TILE, len(p.widths)
    width = p.widths[depth - 1] if depth else inputs
    units = heads + p.widths.sum()
    if len(d.parameters):
        for k in range(p.terms * moved):
            before = d.parameters[at + k]
            d.parameters[at + k] = 0
            add_sums(work, m.d_steepness + k * CHUNK, m.ones, d.parameters, at + k, ONE, columns)
            slope = 1 / (1 + math.exp(-w.parameters[at + k]))
            d.parameters[at + k] = before + d.parameters[at + k] * slope
        add_sums(work, m.d_bound, m.ones, d.parameters, at + p.terms * moved, moved, columns)
    at -= heads
    unbend(w, d, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0, heads,
           m.d_form, m.raw + units * CHUNK, m.ones, YES, work)  # fmt: skip
    at -= heads * width
    if len(d.parameters):
        seen = m.square if p.odd else m.last
        add_outer(work, seen, m.d_form, d.parameters, at, ONE, width, width, heads, columns)
    multiply(w.parameters, at, ONE, width, work, m.d_form, m.d_hidden, width, heads, columns)
    if p.odd:
        for u in range(width):
            row = (work, m.d_hidden + u * CHUNK)
            square_back((row, (work, m.last + u * CHUNK)), (row,), (), columns)
    units -= heads
    at -= heads
    unbend(w, d, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0, heads,
           m.d_place, m.raw + units * CHUNK, m.ones, ONE - p.odd, work)  # fmt: skip
    at -= heads * width
    if len(d.parameters):
        add_outer(work, m.last, m.d_place, d.parameters, at, ONE, width, width, heads, columns)
    multiply(w.parameters, at, ONE, width, work, m.d_place, m.d_below, width, heads, columns)
    for u in range(width):
        row = (work, m.d_hidden + u * CHUNK)
        add((row, (work, m.d_below + u * CHUNK)), (row,), (), columns)
    here, other = m.d_hidden, m.d_below
    for layer in range(depth - 1, -1, -1):
        units -= width
        rows = m.hidden + units * CHUNK
        for u in range(width):
            row, unit_row = (work, here + u * CHUNK), (work, rows + u * CHUNK)
            if p.activation == TANH:
                tanh_back((row, unit_row), (row,), (), columns)
            else:
                elu_back((row, unit_row), (row,), (), columns)
        at -= width
        unbend(w, d, at, site + units * all_cells, unit + units, all_cells, cell, cells, n, t0,
               width, here, m.raw + units * CHUNK, m.ones, ONE - p.odd, work)  # fmt: skip
        below_width = p.widths[layer - 1] if layer else inputs
        below = rows - below_width * CHUNK if layer else m.x
        at -= width * below_width
        if len(d.parameters):
            add_outer(
                work, here, below, d.parameters, at, below_width, ONE, width, below_width, columns
            )
        multiply(w.parameters, at, ONE, below_width, work, here, other, below_width, width, columns)
        here, other = other, here
        width = below_width
    for j in range(cells):
        base = p.couplings[c, SEEN] + (cell + j) * inputs
        for i in range(inputs):
            to = (slopes, p.seen[base + i] * TILE)
            add_scaled((to, (work, here + i * CHUNK + j * TILE)), (to,), (sign,), TILE)


@njit(**PART)
def fetch(p, c, cell, cells, source, out, work):
    """The rows that the cells move, to the working memory; zeros for those that are not there."""
    moved = p.couplings[c, MOVED]
    for j in range(cells):
        base = p.couplings[c, TARGETS] + (cell + j) * moved
        for o in range(moved):
            row = p.targets[base + o]
            row = row if row >= 0 else p.rows
            copy(((source, row * TILE),), ((work, out + o * CHUNK + j * TILE),), (), TILE)


@njit(**PART)
def put(p, c, cell, cells, source, to, work):
    """Undo :func:`fetch`."""
    moved = p.couplings[c, MOVED]
    for j in range(cells):
        base = p.couplings[c, TARGETS] + (cell + j) * moved
        for o in range(moved):
            row = p.targets[base + o]
            if row >= 0:
                copy(((work, source + o * CHUNK + j * TILE),), ((to, row * TILE),), (), TILE)


@njit(**PART)
def mask(p, c, m, cell, cells, work):
    """No gradient of value and slope for sites that are not there."""
    moved = p.couplings[c, MOVED]
    for j in range(cells):
        base = p.couplings[c, TARGETS] + (cell + j) * moved
        for o in range(moved):
            if p.targets[base + o] < 0:
                at = o * CHUNK + j * TILE
                for row in (m.a + at, m.b + at):
                    zero(((work, m.ones),), ((work, row),), (), TILE)


@njit(**PART)
def add_log_slopes(p, c, m, cell, cells, ladj, work):
    """Add ln slope of all sites that are there to ``ladj``, ``(TILE,)``."""
    moved = p.couplings[c, MOVED]
    for j in range(cells):
        base = p.couplings[c, TARGETS] + (cell + j) * moved
        for o in range(moved):
            if p.targets[base + o] >= 0:
                slope = m.slope + o * CHUNK + j * TILE
                add_log(((ladj, 0), (work, slope)), ((ladj, 0),), (), TILE)


@njit(**PART)
def solve(p, w, at, m, o, moved, columns, small, work):
    """v from x, which stands in row a, for one site of the cells (see elementwise.AffineTanh)."""
    row = o * CHUNK
    x, v, value, slope = (
        (work, m.a + row),
        (work, m.v + row),
        (work, m.value + row),
        (work, m.slope + row),
    )
    reach, lower, upper = (work, m.d_hidden), (work, m.d_hidden), (work, m.d_hidden + CHUNK)
    last, change = (work, m.d_below), (work, m.d_below + CHUNK)  # rows not in use meanwhile
    zero(((work, m.ones),), (reach,), (), columns)
    for k in range(p.terms):
        add((reach, (work, m.height + (k * moved + o) * CHUNK)), (reach,), (), columns)
    bracket(
        (x, (work, m.place + row), reach, (work, m.scale + row)),
        (lower, upper, v, last),
        (),
        columns,
    )
    for _ in range(INVERSE_STEPS if p.terms else 0):
        evaluate_map(p, w, at, m, o, moved, columns, work)
        newton(
            (x, v, value, slope, lower, upper, last),
            (v, lower, upper, last, change),
            (small,),
            columns,
        )
        largest = work[m.d_below + CHUNK]
        for t in range(m.d_below + CHUNK, m.d_below + CHUNK + columns):
            largest = max(largest, work[t])
        if largest <= small:
            break
    for _ in range(2 if p.terms else 0):
        evaluate_map(p, w, at, m, o, moved, columns, work)
        newton_only((x, v, value, slope), (v,), (), columns)
    evaluate_map(p, w, at, m, o, moved, columns, work)


# Tiles


@njit(**PART)
def load(source, n, t0, rows, state):
    """Columns of ``(rows, n)`` to a state, zeros where there are none."""
    live = min(TILE, n - t0)
    for row in range(rows):
        if live == TILE:
            copy(((source, row * n + t0),), ((state, row * TILE),), (), TILE)
        else:
            for t in range(TILE):
                state[row * TILE + t] = source[row * n + t0 + t] if t < live else 0
    state[rows * TILE :] = 0


@njit(**PART)
def store(state, n, t0, rows, out):
    """Undo :func:`load`."""
    live = min(TILE, n - t0)
    for row in range(rows):
        if live == TILE:
            copy(((state, row * TILE),), ((out, row * n + t0),), (), TILE)
        else:
            for t in range(live):
                out[row * n + t0 + t] = state[row * TILE + t]


@njit(**PART)
def keep(p, c, kept, at, state, restore):
    """Copy the rows that a coupling moves to ``kept`` from ``at`` on, or back."""
    for j in range(p.couplings[c, CELLS] * p.couplings[c, MOVED]):
        row = p.targets[p.couplings[c, TARGETS] + j]
        if row >= 0:
            here, there = (state, row * TILE), (kept, at + (p.couplings[c, KEPT] + j) * TILE)
            if restore:
                copy((there,), (here,), (), TILE)
            else:
                copy((here,), (there,), (), TILE)


@njit(**PASS)
def forward(p, w, d, n, columns, first, last, z, x, ladj, kept, score, out_score):
    """z to x for the tiles first <= i < last, with ladj and, if it is not empty, the score.

    Flat arrays: z, x, score ``(rows, n)``; ladj ``(columns,)``, whole tiles; ``kept`` (tiles, kept,
    TILE) or empty. With the score, the gradient of ladj plus the new score times x with respect to
    gains and shifts is added to ``d``, if wanted.
    """
    work = np.ones(p.work, z.dtype)
    state = np.empty((p.rows + 1) * TILE, z.dtype)
    slopes = np.empty((p.rows + 1) * TILE, z.dtype)
    sums = np.empty(TILE, z.dtype)
    minus = z.dtype.type(-1)
    for index in range(first, last):
        t0 = index * TILE
        load(z, n, t0, p.rows, state)
        if len(score):
            load(score, n, t0, p.rows, slopes)
        sums[:] = 0
        for c in range(len(p.couplings)):
            moved, all_cells = p.couplings[c, MOVED], p.couplings[c, CELLS]
            m = lay_out(p.couplings[c, INPUTS], p.widths, moved, p.terms)
            work[m.ones : m.end] = 1
            if len(kept):
                keep(p, c, kept, index * p.kept * TILE, state, NO)
            for cell in range(0, all_cells, AT_ONCE):
                cells = min(AT_ONCE, all_cells - cell)
                size = cells * TILE
                at = evaluate_network(p, w, c, m, cell, cells, columns, t0, state, work)
                fetch(p, c, cell, cells, state, m.v, work)
                for o in range(moved):
                    evaluate_map(p, w, at, m, o, moved, size, work)
                if len(score):
                    fetch(p, c, cell, cells, slopes, m.a, work)
                    for o in range(moved):
                        a, b = (work, m.a + o * CHUNK), (work, m.b + o * CHUNK)
                        curve(p, w, at, m, o, moved, size, m.b + o * CHUNK, work)
                        score_of_v((a, b, (work, m.slope + o * CHUNK)), (a,), (), size)
                        copy(((work, m.ones),), (b,), (), size)
                    mask(p, c, m, cell, cells, work)
                    put(p, c, cell, cells, m.a, slopes, work)
                    for o in range(moved):
                        pull_map(p, w, at, m, o, moved, size, work)
                    pull_network(p, w, d, c, m, cell, cells, columns, t0, minus, at, slopes, work)
                put(p, c, cell, cells, m.value, state, work)
                add_log_slopes(p, c, m, cell, cells, sums, work)
            slopes[p.rows * TILE :] = 0
        store(state, n, t0, p.rows, x)
        ladj[t0 : t0 + TILE] = sums
        if len(score):
            store(slopes, n, t0, p.rows, out_score)


@njit(**PASS)
def inverse(p, w, n, columns, first, last, x, z, ladj, kept):
    """x to z for the tiles first <= i < last; arrays as those of :func:`forward`."""
    work = np.ones(p.work, z.dtype)
    state = np.empty((p.rows + 1) * TILE, z.dtype)
    sums = np.empty(TILE, z.dtype)
    small = z.dtype.type(0.1 * math.sqrt(1.2e-7 if z.itemsize == 4 else 2.2e-16))
    for index in range(first, last):
        t0 = index * TILE
        load(x, n, t0, p.rows, state)
        sums[:] = 0
        for c in range(len(p.couplings) - 1, -1, -1):
            moved, all_cells = p.couplings[c, MOVED], p.couplings[c, CELLS]
            m = lay_out(p.couplings[c, INPUTS], p.widths, moved, p.terms)
            work[m.ones : m.end] = 1
            if len(kept):
                keep(p, c, kept, index * p.kept * TILE, state, NO)
            for cell in range(0, all_cells, AT_ONCE):
                cells = min(AT_ONCE, all_cells - cell)
                at = evaluate_network(p, w, c, m, cell, cells, columns, t0, state, work)
                fetch(p, c, cell, cells, state, m.a, work)
                for o in range(moved):
                    solve(p, w, at, m, o, moved, cells * TILE, small, work)
                put(p, c, cell, cells, m.v, state, work)
                add_log_slopes(p, c, m, cell, cells, sums, work)
        store(state, n, t0, p.rows, z)
        ladj[t0 : t0 + TILE] = sums


@njit(**PASS)
def pull_back(p, w, d, n, columns, first, last, inverse, result, kept, d_result, d_ladj, d_start):
    """The gradient of :func:`forward`, or of :func:`inverse` if ``inverse``, for some tiles.

    ``result`` is what that has made; ``d_start`` (rows, n) takes the gradient of what it began
    with, and those of the weights are added to ``d``.
    """
    work = np.ones(p.work, result.dtype)
    state = np.empty((p.rows + 1) * TILE, result.dtype)
    slopes = np.empty((p.rows + 1) * TILE, result.dtype)
    plus = result.dtype.type(1)
    number = len(p.couplings)
    for index in range(first, last):
        t0 = index * TILE
        load(result, n, t0, p.rows, state)
        load(d_result, n, t0, p.rows, slopes)
        for step in range(number):
            c = step if inverse else number - 1 - step
            moved, all_cells = p.couplings[c, MOVED], p.couplings[c, CELLS]
            m = lay_out(p.couplings[c, INPUTS], p.widths, moved, p.terms)
            work[m.ones : m.end] = 1
            if not inverse:
                keep(p, c, kept, index * p.kept * TILE, state, YES)
            for cell in range(0, all_cells, AT_ONCE):
                cells = min(AT_ONCE, all_cells - cell)
                size = cells * TILE
                at = evaluate_network(p, w, c, m, cell, cells, columns, t0, state, work)
                fetch(p, c, cell, cells, state, m.v, work)
                fetch(p, c, cell, cells, slopes, m.a, work)
                for o in range(moved):
                    evaluate_map(p, w, at, m, o, moved, size, work)
                    a, b = (work, m.a + o * CHUNK), (work, m.b + o * CHUNK)
                    for j in range(cells):
                        copy(((d_ladj, t0),), ((work, m.b + o * CHUNK + j * TILE),), (), TILE)
                    if inverse:
                        curvature = (work, m.d_v + o * CHUNK)
                        curve(p, w, at, m, o, moved, size, m.d_v + o * CHUNK, work)
                        through_inverse(
                            (a, b, curvature, (work, m.slope + o * CHUNK)), (a,), (), size
                        )
                mask(p, c, m, cell, cells, work)
                for o in range(moved):
                    pull_map(p, w, at, m, o, moved, size, work)
                    if inverse:
                        negative(((work, m.a + o * CHUNK),), ((work, m.d_v + o * CHUNK),), (), size)
                put(p, c, cell, cells, m.d_v, slopes, work)
                pull_network(p, w, d, c, m, cell, cells, columns, t0, plus, at, slopes, work)
            slopes[p.rows * TILE :] = 0
            if inverse:
                keep(p, c, kept, index * p.kept * TILE, state, YES)
        store(slopes, n, t0, p.rows, d_start)
