# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers of the compiled couplings, the layout of their memory, and formulas on its rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pyro_neuralrg.transforms.networks import HEIGHT_GAIN
from pyro_neuralrg.transforms.vectors import (
    OUTERS,
    PRODUCTS,
    VECTOR_BYTES,
    VECTORS,
    exp,
    log,
    rowwise,
    tanh,
    where,
)

TILE = 32
"""Columns of a tile."""
CHUNK = 512
"""Columns of a chunk, cells times columns of a tile: its values fit into the second-level cache."""
AT_ONCE = CHUNK // TILE
"""Cells of a chunk."""
PARAMETERS, INPUTS, MOVED, CELLS, SEEN, TARGETS, UNITS, SITES, KEPT = range(9)
"""Columns of ``Program.couplings``."""
TANH, ELU = range(2)
"""Activations."""

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
PASS = {**OPTIONS, "nogil": True, "cache": True}
"""Of functions that Python calls."""
PART = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of functions that only others call, which then compile faster."""
ONE, YES, NO = np.int64(1), np.int64(1), np.int64(0)

_product_6, _product_2, _product_1 = (PRODUCTS[r, VECTORS] for r in (6, 2, 1))
_product_6_narrow, _product_1_narrow = PRODUCTS[6, 1], PRODUCTS[1, 1]
_outer_4_6, _outer_4_1, _outer_1_1 = OUTERS[4, 6], OUTERS[4, 1], OUTERS[1, 1]


class Program(NamedTuple):
    """Couplings as numbers, in the order of generation.

    Attributes:
        couplings: one row each: start in the parameters, inputs of the network of one cell, sites
            moved in one cell, cells, start in ``seen``, start in ``targets``, start among the
            units, start among the biases of sites, start among the rows kept for the backward pass.
        seen: rows of the state that the network of a cell sees, ``(cells, inputs)`` a coupling.
        targets: rows that are moved, ``(cells, moved)`` a coupling; -1 for one that is not there.
        widths: units of the hidden layers.
        rows: of the state, without the row of zeros.
        kept: rows that are kept for the backward pass.
        terms: tanh terms of each map.
        odd: 1 if the maps commute with x -> -x.
        activation: TANH or ELU.
        work: length of the working memory.
    """

    couplings: Any
    seen: Any
    targets: Any
    widths: Any
    rows: int
    kept: int
    terms: int
    odd: int
    activation: int
    work: int


class Weights(NamedTuple):
    """What the networks are made of, or their gradients, each empty if there is none.

    Attributes:
        parameters: of each coupling the matrix and the biases of each hidden layer, of ``place``
            and of ``form``; steepness before its softplus ``(terms, moved)``; bounds of the
            log-scales ``(moved,)``.
        sites: biases of the cells, ``(units, cells)`` a coupling.
        gains, shifts: what a context does to the units, ``(units, columns)``, whole tiles.
    """

    parameters: Any
    sites: Any
    gains: Any
    shifts: Any


class Layout(NamedTuple):
    """Where the rows of one chunk begin in the working memory.

    Attributes:
        x: inputs of the network.
        hidden: units of the hidden layers, one after the other.
        raw: units and heads before the gains of a context.
        last: what the heads see: the last hidden layer, or the inputs.
        square: the squares of it.
        place: shift and centres of the tanh terms.
        form: log-scales and heights before their bounds.
        v: what is moved.
        value, slope: of the map at v.
        q, scale: tanh of the form, and the exponential of the log-scale.
        height, gate, rise: of the tanh terms; the slope of the height's softplus; tanh at v.
        a, b: gradients of the value and of the logarithm of the slope.
        d_place, d_form, d_v, d_steepness, d_bound: gradients.
        d_hidden, d_below: gradients of one layer and of the one below it.
        ones: a row of ones.
        end: behind all of this.
    """

    x: int
    hidden: int
    raw: int
    last: int
    square: int
    place: int
    form: int
    v: int
    value: int
    slope: int
    q: int
    scale: int
    height: int
    gate: int
    rise: int
    a: int
    b: int
    d_place: int
    d_form: int
    d_v: int
    d_steepness: int
    d_bound: int
    d_hidden: int
    d_below: int
    ones: int
    end: int


@njit(**PASS)
def lay_out(inputs, widths, moved, terms):
    """The layout of a coupling."""
    heads = (1 + terms) * moved
    total, widest = 0, max(inputs, 2 * heads)
    for width in widths:
        total += width
        widest = max(widest, width)
    width = widths[-1] if len(widths) else inputs
    hidden = inputs
    raw = hidden + total
    last = hidden + total - width if len(widths) else 0
    square = raw + total + 2 * heads
    place = square + width
    form = place + heads
    v = form + heads
    value, slope, q, scale = v + moved, v + 2 * moved, v + 3 * moved, v + 4 * moved
    height = v + 5 * moved
    gate = height + terms * moved
    rise = gate + terms * moved
    a = rise + terms * moved
    b = a + moved
    d_place = b + moved
    d_form = d_place + heads
    d_v = d_form + heads
    d_steepness = d_v + moved
    d_bound = d_steepness + terms * moved
    d_hidden = d_bound + moved
    d_below = d_hidden + widest
    ones = d_below + widest
    n = CHUNK
    return Layout(
        0, hidden * n, raw * n, last * n, square * n, place * n, form * n, v * n, value * n,
        slope * n, q * n, scale * n, height * n, gate * n, rise * n, a * n, b * n, d_place * n,
        d_form * n, d_v * n, d_steepness * n, d_bound * n, d_hidden * n, d_below * n, ones * n,
        (ones + 1) * n,
    )  # fmt: skip


# Formulas on rows

copy = rowwise(lambda x: x)
add = rowwise(lambda x, y: x + y)
add_scaled = rowwise(lambda x, y, s: x + s * y)
add_number = rowwise(lambda x, s: x + s)
add_log = rowwise(lambda total, x: total + log(x))
square = rowwise(lambda x: x * x)
tanh_of = rowwise(tanh)
elu_of = rowwise(lambda x: where(x > 0.0, x, exp(x) - 1.0))
tanh_back = rowwise(lambda d, h: d * (1.0 - h * h))
elu_back = rowwise(lambda d, h: where(h > 0.0, d, d * (h + 1.0)))
square_back = rowwise(lambda d, h: 2.0 * d * h)
bend_row = rowwise(lambda x, gain, shift, bias: (x + bias, (x + bias) * (1.0 + gain) + shift))
unbend_row = rowwise(
    lambda d, raw, gain, d_gain, d_shift: (d * (1.0 + gain), d_gain + d * raw, d_shift + d)
)
unbend_row_only = rowwise(lambda d, gain: d * (1.0 + gain))


@rowwise
def scales(form, bound):
    """tanh of the form, and the scale e^s with s = bound tanh(form)."""
    q = tanh(form)
    return q, exp(bound * q)


@rowwise
def heights(form):
    """softplus(HEIGHT_GAIN form) and its slope."""
    y = HEIGHT_GAIN * form
    e = exp(-abs(y))
    more = 1.0 / (e + 1.0)
    return where(y > 0.0, y, 0.0) + log(e + 1.0), where(y > 0.0, more, e * more)


line = rowwise(lambda v, scale, shift: (scale * v + shift, scale))


@rowwise
def term_of(v, centre, height, value, slope, steepness):
    """One tanh term added to value and slope, and its tanh."""
    rise = tanh(steepness * (v - centre))
    return rise, value + height * rise, slope + height * steepness * (1.0 - rise * rise)


@rowwise
def curvature_of(total, height, rise, slope, steepness):
    """The part of one tanh term in d ln slope / dv."""
    bent = height * rise * (1.0 - rise * rise) / slope
    return total - 2.0 * steepness * steepness * bent


score_of_v = rowwise(lambda score, curvature, slope: (score - curvature) / slope)
through_inverse = rowwise(lambda d, d_log, curvature, slope: -(d + d_log * curvature) / slope)
negative = rowwise(lambda x: -x)
zero = rowwise(lambda x: 0.0 * x)


@rowwise
def line_back(a, b, v, slope, q, scale, bound):
    """From gradients of value and ln slope to those of shift, form, bound and v."""
    of_log_scale = (a * v + b / slope) * scale
    return a, of_log_scale * bound * (1.0 - q * q), of_log_scale * q, a * scale


@rowwise
def term_back(a, b, v, slope, centre, height, gate, rise, d_v, steepness):
    """The same of one tanh term: centre, form of the height, v, steepness."""
    beta, falling = b / slope, 1.0 - rise * rise
    y = (a * height - 2.0 * beta * height * steepness * rise) * falling
    of_height = a * rise + beta * steepness * falling
    return (
        -steepness * y,
        HEIGHT_GAIN * of_height * gate,
        d_v + steepness * y,
        y * (v - centre) + beta * height * falling,
    )


@rowwise
def bracket(x, shift, reach, scale):
    """Where the inverse begins: the terms add at most the sum of their heights."""
    lower, upper = (x - shift - reach) / scale, (x - shift + reach) / scale
    return lower, upper, 0.5 * (lower + upper), upper - lower


@rowwise
def newton(x, v, value, slope, lower, upper, last, small):
    """One step of the bracketed Newton iteration, and how far it went, relatively."""
    excess = value - x
    lower, upper = where(excess <= 0.0, v, lower), where(excess < 0.0, upper, v)
    newton = v - excess / slope
    size = abs(newton - v)
    good = (newton > lower) & (newton < upper) & (2.0 * size < last)
    good = good | (size <= small * (1.0 + abs(v)))
    following = where(good, newton, 0.5 * (lower + upper))
    # a column that has settled stays, however long others take
    settled = last <= small * (1.0 + abs(v))
    following, change = where(settled, v, following), abs(following - v)
    change = where(settled, last, change)
    return following, lower, upper, change, change / (1.0 + abs(following))


newton_only = rowwise(lambda x, v, value, slope: v - (value - x) / slope)


# Matrix products


@njit(**PART)
def multiply(a, at, a_row, a_k, work, x, y, rows, inputs, columns):
    """y = a x, rows x and y of ``work``: ``(rows, columns)`` from ``(inputs, columns)``."""
    lanes = VECTOR_BYTES // work.itemsize
    wide = lanes * VECTORS
    whole = columns - columns % wide
    for c in range(0, whole, wide):
        r = 0
        while r + 6 <= rows:
            _product_6(a, at + r * a_row, a_row, a_k, work, x + c, y + r * CHUNK + c, CHUNK, inputs)
            r += 6
        while r + 2 <= rows:
            _product_2(a, at + r * a_row, a_row, a_k, work, x + c, y + r * CHUNK + c, CHUNK, inputs)
            r += 2
        while r < rows:
            _product_1(a, at + r * a_row, a_row, a_k, work, x + c, y + r * CHUNK + c, CHUNK, inputs)
            r += 1
    for c in range(whole, columns, lanes):
        r = 0
        while r + 6 <= rows:
            _product_6_narrow(
                a, at + r * a_row, a_row, a_k, work, x + c, y + r * CHUNK + c, CHUNK, inputs
            )
            r += 6
        while r < rows:
            _product_1_narrow(
                a, at + r * a_row, a_row, a_k, work, x + c, y + r * CHUNK + c, CHUNK, inputs
            )
            r += 1


@njit(**PART)
def add_outer(work, g, x, total, at, t_row, t_other, rows, others, columns):
    """total[r, s] += sum over columns of g[r] x[s], rows g and x of ``work``."""
    r = 0
    while r + 4 <= rows:
        s, g_r, to = 0, g + r * CHUNK, at + r * t_row
        while s + 6 <= others:
            _outer_4_6(
                work, g_r, x + s * CHUNK, CHUNK, total, to + s * t_other, t_row, t_other, columns
            )
            s += 6
        while s < others:
            _outer_4_1(
                work, g_r, x + s * CHUNK, CHUNK, total, to + s * t_other, t_row, t_other, columns
            )
            s += 1
        r += 4
    while r < rows:
        for s in range(others):
            to = at + r * t_row + s * t_other
            _outer_1_1(
                work, g + r * CHUNK, x + s * CHUNK, CHUNK, total, to, t_row, t_other, columns
            )
        r += 1


@njit(**PART)
def add_sums(work, g, ones, total, at, rows, columns):
    """total[r] += sum over columns of g[r]."""
    add_outer(work, g, ones, total, at, ONE, ONE, rows, ONE, columns)
