# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of couplings: a whole circuit on a tile of columns, which stays in the cache.

Columns are fields of the batch. A tile of ``TILE`` of them runs through all couplings in place: the
state of a tile is ``(rows + 1, TILE)``, its last row zero, which is what lies outside of an open
lattice. Within a coupling a chunk of cells is evaluated at a time, with all its intermediate values
as rows of ``CHUNK`` columns in ``work``.

``advance`` goes from z to x, with the score of q if asked, or back; ``pull_back``, the gradient of
either, undoes one coupling after the other from the values that each has overwritten, and evaluates
its network again. Tests compare with :mod:`~pyro_neuralrg.transforms.coupling_sequence`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numba.np.unsafe.ndarray import to_fixed_tuple

from pyro_neuralrg.compiled import INVERSE_STEPS
from pyro_neuralrg.compiled import formulas as f
from pyro_neuralrg.compiled.formulas import NO, ONE, PART, PASS, YES, ZERO
from pyro_neuralrg.compiled.program import CHUNK, TILE, Cells, CouplingRecord

AT_ONCE = CHUNK // TILE
"""Cells of a chunk."""
NUM_FIELDS = len(CouplingRecord._fields)

# One coupling c on a chunk of its cells


@njit(**PART)
def coupling_of(p, number):
    """A coupling of the program."""
    return CouplingRecord(*to_fixed_tuple(p.couplings[number], NUM_FIELDS))


@njit(**PART)
def cells_of(c, first, n, t0):
    """A chunk of cells in the tile that begins at column t0 of n."""
    number = min(AT_ONCE, c.cells - first)
    return Cells(first, number, number * TILE, n, t0)


@njit(**PART)
def bend(w, c, bias, units, cells, width, rows, biased, work):
    """Add biases to the rows of a layer; let the context act on them.

    Of units without biases the sites scale the rows instead: there is no context then.
    """
    for u in range(width):
        offset, unit = w.arrays[bias + u], units + u
        if len(w.sites) == 0 and len(w.gains) == 0:
            if offset != 0:
                row = (work, rows + u * CHUNK)
                f.add_number((row,), (row,), (offset,), cells.size)
            continue
        for j in range(cells.number):
            row, here = (work, rows + u * CHUNK + j * TILE), offset
            if len(w.sites):
                site = w.sites[c.sites + unit * c.cells + cells.first + j]
                if not biased:
                    raw = (work, c.raw + unit * CHUNK + j * TILE)
                    f.scale_row((row,), (raw, row), (site,), TILE)
                    continue
                here += site
            if len(w.gains):
                at = (c.units + unit) * cells.n + cells.t0
                raw = (work, c.raw + unit * CHUNK + j * TILE)
                f.bend_row((row, (w.gains, at), (w.shifts, at)), (raw, row), (here,), TILE)
            else:
                f.add_number((row,), (row,), (here,), TILE)


@njit(**PART)
def layer(w, c, at, units, below, inputs, rows, width, cells, biased, work):
    """The rows of one layer, before its activation; returns where the next one's matrix begins."""
    columns = cells.size
    f.multiply(w.arrays, at, inputs, ONE, work, below, rows, width, inputs, columns)
    at += width * inputs
    bend(w, c, at, units, cells, width, rows, biased, work)
    return at + width


@njit(**PART)
def evaluate_network(p, w, c, cells, state, work):
    """From the state to place and form of the cells' maps, and what follows from the form.

    Returns the position of the steepness in the arrays.
    """
    columns = cells.size
    for j in range(cells.number):
        for i in range(c.inputs):
            seen = p.seen[c.seen + (cells.first + j) * c.inputs + i]
            f.copy(((state, seen * TILE),), ((work, c.x + i * CHUNK + j * TILE),), (), TILE)
    at, below, width, units, biased = c.arrays, c.x, c.inputs, ZERO, ONE - p.odd
    for next_width in p.widths:
        rows = c.hidden + units * CHUNK
        at = layer(w, c, at, units, below, width, rows, next_width, cells, biased, work)
        for u in range(next_width):
            row = (work, rows + u * CHUNK)
            if p.tanh:
                f.tanh_of((row,), (row,), (), columns)
            else:
                f.elu_of((row,), (row,), (), columns)
        units += next_width
        below, width = rows, next_width
    at = layer(w, c, at, units, below, width, c.place, c.heads, cells, biased, work)
    units += c.heads
    if p.odd:
        for u in range(width):
            f.square(((work, below + u * CHUNK),), ((work, c.square + u * CHUNK),), (), columns)
        below = c.square
    at = layer(w, c, at, units, below, width, c.form, c.heads, cells, YES, work)
    for o in range(c.moved):
        to, bound = o * CHUNK, w.arrays[at + p.terms * c.moved + o]
        out = (work, c.q + to), (work, c.scale + to)
        f.scales(((work, c.form + to),), out, (bound,), columns)
    for k in range(p.terms * c.moved):
        to, form = k * CHUNK, (work, c.form + (c.moved + k) * CHUNK)
        f.heights((form,), ((work, c.height + to), (work, c.gate + to)), (), columns)
    return at


@njit(**PART)
def softplus(x):
    """ln(1 + e^x)."""
    return max(x, x * 0) + math.log1p(math.exp(-abs(x)))


@njit(**PART)
def evaluate_map(p, w, at, c, o, columns, work):
    """Value and slope of the map of one site of the cells at v."""
    row = o * CHUNK
    value, slope, v = (work, c.value + row), (work, c.slope + row), (work, c.v + row)
    f.line((v, (work, c.scale + row), (work, c.place + row)), (value, slope), (), columns)
    for k in range(p.terms):
        steepness, term = softplus(w.arrays[at + k * c.moved + o]), (k * c.moved + o) * CHUNK
        centre, height = (work, c.place + c.moved * CHUNK + term), (work, c.height + term)
        out = (work, c.rise + term), value, slope
        f.term_of((v, centre, height, value, slope), out, (steepness,), columns)


@njit(**PART)
def curve(p, w, at, c, o, columns, out, work):
    """d ln slope / dv of one site of the cells, from what :func:`evaluate_map` has left."""
    slope, to = (work, c.slope + o * CHUNK), (work, out + o * CHUNK)
    work[out + o * CHUNK : out + o * CHUNK + columns] = 0
    for k in range(p.terms):
        steepness, term = softplus(w.arrays[at + k * c.moved + o]), (k * c.moved + o) * CHUNK
        given = to, (work, c.height + term), (work, c.rise + term), slope
        f.curvature_of(given, (to,), (steepness,), columns)


@njit(**PART)
def pull_map(p, w, at, c, o, columns, work):
    """From a and b, the gradients of value and ln slope, to those of place, form and v."""
    row = o * CHUNK
    a, b, v, slope = (work, c.a + row), (work, c.b + row), (work, c.v + row), (work, c.slope + row)
    d_v, bound = (work, c.d_v + row), w.arrays[at + p.terms * c.moved + o]
    given = a, b, v, slope, (work, c.q + row), (work, c.scale + row)
    out = (work, c.d_place + row), (work, c.d_form + row), (work, c.d_bound + row), d_v
    f.line_back(given, out, (bound,), columns)
    for k in range(p.terms):
        steepness, term = softplus(w.arrays[at + k * c.moved + o]), (k * c.moved + o) * CHUNK
        head = c.moved * CHUNK + term
        centre, height = (work, c.place + head), (work, c.height + term)
        gate, rise = (work, c.gate + term), (work, c.rise + term)
        of_head = (work, c.d_place + head), (work, c.d_form + head)
        f.term_back(
            (a, b, v, slope, centre, height, gate, rise, d_v),
            (*of_head, d_v, (work, c.d_steepness + term)), (steepness,), columns,
        )  # fmt: skip


@njit(**PART)
def unbend(w, d, c, bias, units, cells, width, rows, biased, work):
    """Undo :func:`bend` for gradients, which are added up."""
    for u in range(width if len(w.gains) else ZERO):
        at = (c.units + units + u) * cells.n + cells.t0
        for j in range(cells.number):
            row, raw = rows + u * CHUNK + j * TILE, c.raw + (units + u) * CHUNK + j * TILE
            out = (work, row), (d.gains, at), (d.shifts, at)
            f.unbend_row(((work, raw), (w.gains, at), *out), out, (), TILE)
    if biased and len(d.arrays):
        f.add_sums(work, rows, c.ones, d.arrays, bias, width, cells.size)
    for u in range(width if len(w.sites) and (len(d.sites) or not biased) else ZERO):
        for j in range(cells.number):
            row, to = rows + u * CHUNK + j * TILE, c.sites + (units + u) * c.cells + cells.first + j
            seen = c.ones if biased else c.raw + (units + u) * CHUNK + j * TILE
            if len(d.sites):
                f.add_outer(work, row, seen, d.sites, to, ONE, ONE, ONE, ONE, ONE * TILE)
            if not biased:
                f.scale_back(((work, row),), ((work, row),), (w.sites[to],), TILE)


@njit(**PART)
def pull_layer(w, d, c, end, units, x, g, to, inputs, outputs, cells, biased, work):
    """From gradients g of the outputs of a layer, whose arrays end at ``end``, to those of its x.

    Those of its weights are added to ``d``; returns where its arrays begin.
    """
    columns, begin = cells.size, end - outputs - outputs * inputs
    unbend(w, d, c, end - outputs, units, cells, outputs, g, biased, work)
    if len(d.arrays):
        if outputs % 4:  # four rows at a time are faster
            f.add_outer(work, x, g, d.arrays, begin, ONE, inputs, inputs, outputs, columns)
        else:
            f.add_outer(work, g, x, d.arrays, begin, inputs, ONE, outputs, inputs, columns)
    f.multiply(w.arrays, begin, ONE, inputs, work, g, to, inputs, outputs, columns)
    return begin


@njit(**PART)
def pull_network(p, w, d, c, cells, sign, at, slopes, work):
    """Add the gradient of what the networks see, times ``sign``, to ``slopes``.

    From the gradients of place and form; those of the weights are added to ``d``.
    """
    columns, depth, heads = cells.size, len(p.widths), c.heads
    width = p.widths[depth - 1] if depth else c.inputs
    units = heads + p.widths.sum()
    if len(d.arrays):
        for k in range(p.terms * c.moved):
            before = d.arrays[at + k]
            d.arrays[at + k] = 0
            row = c.d_steepness + k * CHUNK
            f.add_sums(work, row, c.ones, d.arrays, at + k, ONE, columns)
            slope = 1 / (1 + math.exp(-w.arrays[at + k]))
            d.arrays[at + k] = before + d.arrays[at + k] * slope
        bounds = at + p.terms * c.moved
        f.add_sums(work, c.d_bound, c.ones, d.arrays, bounds, c.moved, columns)
    seen, biased, here, other = c.square if p.odd else c.last, ONE - p.odd, c.d_hidden, c.d_below
    at = pull_layer(w, d, c, at, units, seen, c.d_form, here, width, heads, cells, YES, work)
    for u in range(width if p.odd else ZERO):
        row = (work, here + u * CHUNK)
        f.square_back((row, (work, c.last + u * CHUNK)), (row,), (), columns)
    units -= heads
    at = pull_layer(w, d, c, at, units, c.last, c.d_place, other, width, heads, cells, biased, work)
    for u in range(width):
        row = (work, here + u * CHUNK)
        f.add((row, (work, other + u * CHUNK)), (row,), (), columns)
    for number in range(depth - 1, -1, -1):
        units -= width
        rows = c.hidden + units * CHUNK
        for u in range(width):
            row, unit_row = (work, here + u * CHUNK), (work, rows + u * CHUNK)
            if p.tanh:
                f.tanh_back((row, unit_row), (row,), (), columns)
            else:
                f.elu_back((row, unit_row), (row,), (), columns)
        inputs = p.widths[number - 1] if number else c.inputs
        below = rows - inputs * CHUNK if number else c.x
        at = pull_layer(w, d, c, at, units, below, here, other, inputs, width, cells, biased, work)
        here, other = other, here
        width = inputs
    for j in range(cells.number):
        for i in range(c.inputs):
            to = (slopes, p.seen[c.seen + (cells.first + j) * c.inputs + i] * TILE)
            f.add_scaled((to, (work, here + i * CHUNK + j * TILE)), (to,), (sign,), TILE)


# What the cells move


@njit(**PART)
def exchange(p, c, cells, state, out, work, back):
    """Copy the rows that the cells move to the working memory, or back.

    Those that are not there stand in the row behind the last one.
    """
    for j in range(cells.number):
        for o in range(c.moved):
            row = p.targets[c.targets + (cells.first + j) * c.moved + o]
            here = (state, (row if row >= 0 else p.rows) * TILE)
            there = (work, out + o * CHUNK + j * TILE)
            if back:
                f.copy((there,), (here,), (), TILE)
            else:
                f.copy((here,), (there,), (), TILE)


@njit(**PART)
def rotate(p, w, c, state, back, work):
    """Multiply the blocks of a rotation by its matrix, or by the transpose."""
    row, column = (ONE, c.moved) if back else (c.moved, ONE)
    for cell in range(0, c.cells, AT_ONCE):
        cells = cells_of(c, cell, ZERO, ZERO)
        exchange(p, c, cells, state, c.v, work, NO)
        f.multiply(
            w.arrays, c.arrays, row, column, work, c.v, c.value, c.moved, c.moved, cells.size
        )
        exchange(p, c, cells, state, c.value, work, YES)


@njit(**PART)
def mask(p, c, cells, work):
    """No gradient of value and slope for sites that are not there."""
    for j in range(cells.number):
        for o in range(c.moved):
            if p.targets[c.targets + (cells.first + j) * c.moved + o] < 0:
                at = o * CHUNK + j * TILE
                work[c.a + at : c.a + at + TILE] = 0
                work[c.b + at : c.b + at + TILE] = 0


@njit(**PART)
def add_log_slopes(p, c, cells, ladj, work):
    """Add ln slope of all sites that are there to ``ladj``, ``(TILE,)``."""
    for j in range(cells.number):
        for o in range(c.moved):
            if p.targets[c.targets + (cells.first + j) * c.moved + o] >= 0:
                slope = (work, c.slope + o * CHUNK + j * TILE)
                f.add_log(((ladj, 0), slope), ((ladj, 0),), (), TILE)


@njit(**PART)
def solve(p, w, at, c, o, columns, small, work):
    """v from x, which stands in row a, for one site of the cells (see elementwise.AffineTanh)."""
    row = o * CHUNK
    x, v = (work, c.a + row), (work, c.v + row)
    value, slope = (work, c.value + row), (work, c.slope + row)
    lower, upper = (work, c.d_hidden), (work, c.d_hidden + CHUNK)  # rows not in use meanwhile
    last, change = (work, c.d_below), (work, c.d_below + CHUNK)
    reach = lower
    work[c.d_hidden : c.d_hidden + columns] = 0
    for k in range(p.terms):
        f.add((reach, (work, c.height + (k * c.moved + o) * CHUNK)), (reach,), (), columns)
    given = x, (work, c.place + row), reach, (work, c.scale + row)
    f.bracket(given, (lower, upper, v, last), (), columns)
    for _ in range(INVERSE_STEPS if p.terms else 0):
        evaluate_map(p, w, at, c, o, columns, work)
        before, after = (x, v, value, slope, lower, upper, last), (v, lower, upper, last, change)
        f.newton(before, after, (small,), columns)
        largest = work[c.d_below + CHUNK]
        for t in range(c.d_below + CHUNK, c.d_below + CHUNK + columns):
            largest = max(largest, work[t])
        if largest <= small:
            break
    for _ in range(2 if p.terms else 0):
        evaluate_map(p, w, at, c, o, columns, work)
        f.newton_only((x, v, value, slope), (v,), (), columns)
    evaluate_map(p, w, at, c, o, columns, work)


# Tiles


@njit(**PART)
def read_tile(source, n, t0, rows, state):
    """Columns of ``(rows, n)`` to a state, zeros where there are none."""
    live = min(TILE, n - t0)
    state[:] = 0
    for row in range(rows):
        state[row * TILE : row * TILE + live] = source[row * n + t0 : row * n + t0 + live]


@njit(**PART)
def write_tile(state, n, t0, rows, out):
    """Undo :func:`read_tile`."""
    live = min(TILE, n - t0)
    for row in range(rows):
        out[row * n + t0 : row * n + t0 + live] = state[row * TILE : row * TILE + live]


@njit(**PART)
def keep(p, c, kept, index, state, restore):
    """Copy the rows that a coupling moves to those kept of a tile, or back."""
    for i in range(c.cells * c.moved):
        row = p.targets[c.targets + i]
        if row >= 0:
            here, there = (state, row * TILE), (kept, (index * p.kept + c.kept + i) * TILE)
            if restore:
                f.copy((there,), (here,), (), TILE)
            else:
                f.copy((here,), (there,), (), TILE)


@njit(**PART)
def buffers(p, like):
    """Working memory, and the state and its slopes (or scores) of a tile."""
    work = np.ones(p.work, like.dtype)
    state = np.empty((p.rows + 1) * TILE, like.dtype)
    return work, state, np.empty((p.rows + 1) * TILE, like.dtype)


@njit(**PASS)
def advance(p, w, d, n, columns, first, last, inverse, start, end, ladj, kept, score, end_score):
    """z to x, or x to z if ``inverse``, for the tiles first <= i < last, with ladj.

    Flat arrays: start, end, score ``(rows, n)``; ladj ``(columns,)``, whole tiles; ``kept`` (tiles,
    kept, TILE) or empty. With a score, of z to x only, the gradient of ladj plus the new score
    times x with respect to gains and shifts is added to ``d``, if wanted.
    """
    work, state, slopes = buffers(p, start)
    small = start.dtype.type(0.1 * math.sqrt(1.2e-7 if start.itemsize == 4 else 2.2e-16))
    minus = start.dtype.type(-1)
    for index in range(first, last):
        t0 = index * TILE
        read_tile(start, n, t0, p.rows, state)
        if len(score):
            read_tile(score, n, t0, p.rows, slopes)
        sums = ladj[t0 : t0 + TILE]
        sums[:] = 0
        for step in range(len(p.couplings)):
            c = coupling_of(p, len(p.couplings) - 1 - step if inverse else step)
            if c.rotates:
                rotate(p, w, c, state, inverse, work)
                if len(score):
                    rotate(p, w, c, slopes, inverse, work)
                continue
            work[c.ones : c.ones + CHUNK] = 1
            if len(kept):
                keep(p, c, kept, index, state, NO)
            for cell in range(0, c.cells, AT_ONCE):
                cells = cells_of(c, cell, columns, t0)
                at = evaluate_network(p, w, c, cells, state, work)
                exchange(p, c, cells, state, c.a if inverse else c.v, work, NO)
                for o in range(c.moved):
                    if inverse:
                        solve(p, w, at, c, o, cells.size, small, work)
                    else:
                        evaluate_map(p, w, at, c, o, cells.size, work)
                if len(score):
                    exchange(p, c, cells, slopes, c.a, work, NO)
                    for o in range(c.moved):
                        a, b = (work, c.a + o * CHUNK), (work, c.b + o * CHUNK)
                        curve(p, w, at, c, o, cells.size, c.b, work)
                        f.score_of_v((a, b, (work, c.slope + o * CHUNK)), (a,), (), cells.size)
                        f.copy(((work, c.ones),), (b,), (), cells.size)
                    mask(p, c, cells, work)
                    exchange(p, c, cells, slopes, c.a, work, YES)
                    for o in range(c.moved):
                        pull_map(p, w, at, c, o, cells.size, work)
                    pull_network(p, w, d, c, cells, minus, at, slopes, work)
                exchange(p, c, cells, state, c.v if inverse else c.value, work, YES)
                state[p.rows * TILE :] = 0
                add_log_slopes(p, c, cells, sums, work)
            slopes[p.rows * TILE :] = 0
        write_tile(state, n, t0, p.rows, end)
        if len(score):
            write_tile(slopes, n, t0, p.rows, end_score)


@njit(**PASS)
def pull_back(p, w, d, n, columns, first, last, inverse, result, kept, d_result, d_ladj, d_start):
    """The gradient of :func:`advance` for some tiles.

    ``result`` is what that has made; ``d_start`` (rows, n) takes the gradient of what it began
    with, and those of the weights are added to ``d``.
    """
    work, state, slopes = buffers(p, result)
    plus = result.dtype.type(1)
    for index in range(first, last):
        t0 = index * TILE
        read_tile(result, n, t0, p.rows, state)
        read_tile(d_result, n, t0, p.rows, slopes)
        for step in range(len(p.couplings)):
            c = coupling_of(p, step if inverse else len(p.couplings) - 1 - step)
            if c.rotates:
                rotate(p, w, c, state, not inverse, work)
                rotate(p, w, c, slopes, not inverse, work)
                continue
            work[c.ones : c.ones + CHUNK] = 1
            if not inverse:
                keep(p, c, kept, index, state, YES)
            for cell in range(0, c.cells, AT_ONCE):
                cells = cells_of(c, cell, columns, t0)
                at = evaluate_network(p, w, c, cells, state, work)
                exchange(p, c, cells, state, c.v, work, NO)
                exchange(p, c, cells, slopes, c.a, work, NO)
                for o in range(c.moved):
                    row = o * CHUNK
                    evaluate_map(p, w, at, c, o, cells.size, work)
                    for j in range(cells.number):
                        to = (work, c.b + row + j * TILE)
                        f.copy(((d_ladj, t0),), (to,), (), TILE)
                    if inverse:
                        curve(p, w, at, c, o, cells.size, c.d_v, work)
                        a, b, curvature = (work, c.a + row), (work, c.b + row), (work, c.d_v + row)
                        given = a, b, curvature, (work, c.slope + row)
                        f.through_inverse(given, (a,), (), cells.size)
                mask(p, c, cells, work)
                for o in range(c.moved):
                    pull_map(p, w, at, c, o, cells.size, work)
                    if inverse:
                        a, d_v = (work, c.a + o * CHUNK), (work, c.d_v + o * CHUNK)
                        f.negative((a,), (d_v,), (), cells.size)
                exchange(p, c, cells, slopes, c.d_v, work, YES)
                pull_network(p, w, d, c, cells, plus, at, slopes, work)
            slopes[p.rows * TILE :] = 0
            if inverse:
                keep(p, c, kept, index, state, YES)
        write_tile(slopes, n, t0, p.rows, d_start)
