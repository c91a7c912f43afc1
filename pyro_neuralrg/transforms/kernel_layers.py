# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The pieces of the compiled loops: elementwise functions, one layer and its gradients.

Builders of compiled functions on ``LANES`` columns, laid out as :mod:`.kernels` says. Needs numba.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.polynomial import Chebyshev, Polynomial

__all__ = [
    "LANES",
    "OPTIONS",
    "Dtype",
    "build_add_sums",
    "build_exp",
    "build_layer",
    "build_unit_gradient",
    "build_weight_gradient",
    "view",
]

Dtype = Any  # np.float32 or np.float64
LANES = 512
# sums may be reordered, multiplications fused with additions; NaN and infinity keep their meaning
OPTIONS = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
}


# Elementwise


@intrinsic
def _power_of_two(typing_context: Any, r: Any) -> Any:
    """2^k from the r = k + :attr:`Exponential.rounder` that adding the rounder to a number made."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, mantissa = (32, 23) if r is types.float32 else (64, 52)
        integer = ir.IntType(bits)
        exponent = builder.bitcast(arguments[0], integer)
        shifted = builder.shl(exponent, ir.Constant(integer, mantissa))
        return builder.bitcast(shifted, context.get_value_type(r))

    return r(r), codegen


@intrinsic
def view(typing_context: Any, array: Any, start: Any) -> Any:
    """array[start:] of one that outlives it: without counting references, which takes time."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = make_array(array)(context, builder, arguments[0])
        view.data = builder.gep(view.data, [arguments[1]])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        return view._getvalue()

    return array(array, types.intp), codegen


def _choice(comparison: str) -> Any:
    """x if it compares so with y, else y, as one instruction; y if one of them is NaN."""

    @intrinsic
    def choose(typing_context: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return x(x, x), codegen

    return choose


_larger, _smaller = _choice(">"), _choice("<")


class Exponential(NamedTuple):
    """Numbers for e^x = 2^k 2^g with k the integer nearest to x / ln 2 and |g| <= 1/2.

    Attributes:
        limit: of |x|, where 2^k stays a normal number.
        rounder: so large that a sum with it is rounded to an integer, whose lowest bits are those
            of k plus the bias of the exponent.
        series: 2^g as a polynomial in g, highest power first, to rounding.
        elu_series: the same of 2^g / ln 2; in single precision one degree less.
    """

    limit: Any
    rounder: Any
    series: tuple[Any, ...]
    elu_series: tuple[Any, ...]


def _exponential(dtype: Dtype) -> Exponential:
    mantissa, bias, degree, limit = (23, 127, 6, 87) if dtype is np.float32 else (52, 1023, 11, 700)
    # (2^g - 1) / g by its Taylor series, economised in Chebyshev polynomials; so 2^0 is exactly 1
    taylor = [math.log(2.0) ** k / math.factorial(k) for k in range(1, 25)]
    chebyshev = Polynomial(taylor).convert(domain=[-0.5, 0.5], kind=Chebyshev)
    powers = chebyshev.truncate(degree).convert(domain=[-1, 1], kind=Polynomial).coef
    series = (*powers[::-1], 1.0)
    # not exact in 0, where nothing depends on it, and so with fewer powers
    degree = 5 if dtype is np.float32 else 11
    elu = Chebyshev.interpolate(lambda g: 2.0**g / math.log(2.0), degree, domain=[-0.5, 0.5])
    elu_series = elu.convert(domain=[-1, 1], kind=Polynomial).coef[::-1]
    rounder = dtype(1.5 * 2**mantissa + bias)
    return Exponential(
        dtype(limit), rounder, tuple(map(dtype, series)), tuple(map(dtype, elu_series))
    )


@functools.cache
def build_exp(dtype: Dtype) -> Any:
    """e^x to rounding, clamped where 2^k would leave the normals; and elu(x ln 2) / ln 2.

    The latter is elu(x) = max(x, e^x - 1) in the units of :func:`_hidden_units`; in single
    precision to 1.3e-7 of them.
    """
    limit, rounder, series, elu_series = _exponential(dtype)
    log2_e, zero = dtype(math.log2(math.e)), dtype(0)
    elu_limit = dtype(limit * log2_e)

    # no reordering of sums here: it would undo the rounding
    @njit(**{**OPTIONS, "fastmath": {"contract"}})
    def exp(x):  # type: ignore[no-untyped-def]
        # x stands second where NaN is to stay NaN
        x = _larger(-limit, _smaller(limit, x))
        r = x * log2_e + rounder
        g = x * log2_e - (r - rounder)
        value = series[0]
        for k in range(1, len(series)):
            value = value * g + series[k]
        return value * _power_of_two(r)

    @njit(**{**OPTIONS, "fastmath": {"contract"}})
    def elu(x):  # type: ignore[no-untyped-def]
        clamped = _larger(-elu_limit, _smaller(zero, x))
        r = clamped + rounder
        g = clamped - (r - rounder)
        value = elu_series[0]
        for k in range(1, len(elu_series)):
            value = value * g + elu_series[k]
        return _larger(x, value * _power_of_two(r) - log2_e)

    return exp, elu


# One layer


@functools.cache
def build_layer(dtype: Dtype, outputs: int, inputs: int) -> Any:
    """out = w x + b; two rows at once, so that each load of x serves twice."""

    @njit(**OPTIONS)
    def layer(w, b, x, out):  # type: ignore[no-untyped-def]
        for i in range(0, outputs, 2):
            for lane in range(LANES):
                upper, lower = b[i], b[i + 1]
                for k in range(inputs):
                    value = x[k * LANES + lane]
                    upper += w[i * inputs + k] * value
                    lower += w[(i + 1) * inputs + k] * value
                out[i * LANES + lane] = upper
                out[(i + 1) * LANES + lane] = lower

    return layer


@functools.cache
def build_weight_gradient(dtype: Dtype, outputs: int, inputs: int) -> Any:
    """Add the gradient of w, from g of w y + b, to ``total``: all products of rows of g and y.

    Blocks of 2 x 5 sums need few loads for each product; single rows are what is left of 5.
    """
    if inputs % 5 and outputs % 5 == 0:  # g and y exchanged
        rows, columns, row_stride, column_stride = inputs, outputs, 1, inputs
    else:
        rows, columns, row_stride, column_stride = outputs, inputs, inputs, 1
    whole = columns - columns % 5
    zero = dtype(0)

    @njit(**OPTIONS)
    def products(a, b, total):  # type: ignore[no-untyped-def]
        for i in range(0, rows, 2):
            for k in range(0, whole, 5):
                s00, s01, s02, s03, s04 = zero, zero, zero, zero, zero
                s10, s11, s12, s13, s14 = zero, zero, zero, zero, zero
                for lane in range(LANES):
                    a0, a1 = a[i * LANES + lane], a[(i + 1) * LANES + lane]
                    b0, b1 = b[k * LANES + lane], b[(k + 1) * LANES + lane]
                    b2, b3 = b[(k + 2) * LANES + lane], b[(k + 3) * LANES + lane]
                    b4 = b[(k + 4) * LANES + lane]
                    s00 += a0 * b0
                    s01 += a0 * b1
                    s02 += a0 * b2
                    s03 += a0 * b3
                    s04 += a0 * b4
                    s10 += a1 * b0
                    s11 += a1 * b1
                    s12 += a1 * b2
                    s13 += a1 * b3
                    s14 += a1 * b4
                upper = i * row_stride + k * column_stride
                total[upper] += s00
                total[upper + column_stride] += s01
                total[upper + 2 * column_stride] += s02
                total[upper + 3 * column_stride] += s03
                total[upper + 4 * column_stride] += s04
                lower = upper + row_stride
                total[lower] += s10
                total[lower + column_stride] += s11
                total[lower + 2 * column_stride] += s12
                total[lower + 3 * column_stride] += s13
                total[lower + 4 * column_stride] += s14
            for k in range(whole, columns):
                s0, s1 = zero, zero
                for lane in range(LANES):
                    s0 += a[i * LANES + lane] * b[k * LANES + lane]
                    s1 += a[(i + 1) * LANES + lane] * b[k * LANES + lane]
                total[i * row_stride + k * column_stride] += s0
                total[(i + 1) * row_stride + k * column_stride] += s1

    @njit(**OPTIONS)
    def weight_gradient(g, y, total):  # type: ignore[no-untyped-def]
        if column_stride == 1:
            products(g, y, total)
        else:
            products(y, g, total)

    return weight_gradient


@functools.cache
def build_unit_gradient(dtype: Dtype, outputs: int, inputs: int) -> Any:
    """From g of w y + b, with y = elu(x), the gradient of x over y; add its sums to ``total``."""
    zero, one, ln_2 = dtype(0), dtype(1), dtype(math.log(2.0))

    @njit(**OPTIONS)
    def unit_gradient(w, g, y, total):  # type: ignore[no-untyped-def]
        for k in range(0, inputs, 2):
            upper_sum, lower_sum = zero, zero
            for lane in range(LANES):
                upper, lower = zero, zero
                for i in range(outputs):
                    value = g[i * LANES + lane]
                    upper += w[i * inputs + k] * value
                    lower += w[i * inputs + k + 1] * value
                # the slope of elu from its value
                upper *= _smaller(one, y[k * LANES + lane] * ln_2 + one)
                lower *= _smaller(one, y[(k + 1) * LANES + lane] * ln_2 + one)
                y[k * LANES + lane] = upper
                y[(k + 1) * LANES + lane] = lower
                upper_sum += upper
                lower_sum += lower
            total[k] += upper_sum
            total[k + 1] += lower_sum

    return unit_gradient


def build_add_sums(dtype: Dtype) -> Any:
    """Add the sum of each row of g to ``total``."""
    zero = dtype(0)

    @njit(**OPTIONS)
    def add_sums(g, total, rows):  # type: ignore[no-untyped-def]
        for i in range(rows):
            value = zero
            for lane in range(LANES):
                value += g[i * LANES + lane]
            total[i] += value

    return add_sums
