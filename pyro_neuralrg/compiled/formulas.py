# SPDX-License-Identifier: Apache-2.0
"""Formulas of the compiled couplings on rows of the working memory, and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pyro_neuralrg.compiled import HEIGHT_GAIN
from pyro_neuralrg.compiled.program import CHUNK
from pyro_neuralrg.compiled.vectors import (
    VECTOR_BYTES,
    VECTORS,
    exp,
    log,
    make_outer,
    make_product,
    rowwise,
    tanh,
    where,
)

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
PASS = {**OPTIONS, "nogil": True, "cache": True}
"""Options of functions that Python calls."""
PART = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of functions that only others call, which then compile faster."""
ZERO, ONE = np.int64(0), np.int64(1)
NO, YES = ZERO, ONE

_product_6, _product_2, _product_1 = (make_product(rows) for rows in (6, 2, 1))
_outer_4_6, _outer_4_1, _outer_1_1 = make_outer(4, 6), make_outer(4, 1), make_outer(1, 1)


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
scale_row = rowwise(lambda x, site: (x, x * (1.0 + site)))
scale_back = rowwise(lambda d, site: d * (1.0 + site))
unbend_row = rowwise(
    lambda raw, gain, d, d_gain, d_shift: (d * (1.0 + gain), d_gain + d * raw, d_shift + d)
)


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
    """The bracket of the inverse: the terms add at most the sum of their heights."""
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
    """y = a x, rows x and y of ``work``: ``(rows, columns)`` from ``(inputs, columns)``.

    Whole groups of vectors, whose last may run into columns of the chunk that nobody reads.
    """
    for c in range(0, columns, VECTORS * VECTOR_BYTES // work.itemsize):
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


@njit(**PART)
def add_outer(work, g, x, total, at, t_row, t_other, rows, others, columns):
    """total[r, s] += sum over columns of g[r] x[s], rows g and x of ``work``."""
    r = 0
    while r + 4 <= rows:
        s, g_r = 0, g + r * CHUNK
        while s + 6 <= others:
            x_s, to = x + s * CHUNK, at + r * t_row + s * t_other
            _outer_4_6(work, g_r, x_s, CHUNK, total, to, t_row, t_other, columns)
            s += 6
        while s < others:
            x_s, to = x + s * CHUNK, at + r * t_row + s * t_other
            _outer_4_1(work, g_r, x_s, CHUNK, total, to, t_row, t_other, columns)
            s += 1
        r += 4
    while r < rows:
        for s in range(others):
            g_r, x_s, to = g + r * CHUNK, x + s * CHUNK, at + r * t_row + s * t_other
            _outer_1_1(work, g_r, x_s, CHUNK, total, to, t_row, t_other, columns)
        r += 1


@njit(**PART)
def add_sums(work, g, ones, total, at, rows, columns):
    """total[r] += sum over columns of g[r]."""
    add_outer(work, g, ones, total, at, ONE, ONE, rows, ONE, columns)
