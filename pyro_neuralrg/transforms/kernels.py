# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of a stack of Real NVP couplings with ELU networks, both ways and their gradients.

The columns (blocks times batch) are independent. ``LANES`` of them at a time run through all
couplings of the stack, one network after the other, so that everything a network computes stays in
the processor's caches, in a layout where the innermost loop over the lanes becomes vector
instructions: array ``[unit * LANES + lane]``. The backward loop evaluates each network again
instead of reading its activations from memory, and writes their gradients over them.

Arrays of the compiled functions:

* ``weights`` (couplings, :attr:`Sizes.stride`): one row for each coupling, as :class:`Sizes` lays
  it out, the s-network before the t-network; inside, in the units of :func:`_hidden_units`;
* ``states`` (pieces, couplings + 2, half * LANES): step j makes state j + 2, the half it moves,
  from state j and state j + 1, the half it holds fixed;
* ``order``: the coupling of each step.

Needs numba; :mod:`~pyro_neuralrg.transforms.compiled` imports it where that is installed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.polynomial import Chebyshev, Polynomial

__all__ = ["LANES", "Kernels", "Sizes", "build_kernels"]

Dtype = Any  # np.float32 or np.float64
LANES = 512
# sums may be reordered, multiplications fused with additions; NaN and infinity keep their meaning
OPTIONS = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
}


class Sizes(NamedTuple):
    """The sizes of one stack, and where things lie in a row of its weights.

    Attributes:
        half: sites held fixed by a coupling, and sites moved; even.
        width: units of each hidden layer; even.
        depth: number of hidden layers.
    """

    half: int
    width: int
    depth: int

    @property
    def middle(self) -> int:
        """Start of the matrices between hidden layers, ``(depth - 1, 2, width, width)``."""
        return 2 * self.width * self.half

    @property
    def last(self) -> int:
        """Start of the last matrices, ``(2, half, width)``."""
        return self.middle + (self.depth - 1) * 2 * self.width**2

    @property
    def bias(self) -> int:
        """Start of the biases of the hidden layers, ``(depth, 2, width)``."""
        return self.last + 2 * self.half * self.width

    @property
    def last_bias(self) -> int:
        """Start of the last biases, ``(2, half)``."""
        return self.bias + self.depth * 2 * self.width

    @property
    def bound(self) -> int:
        """Start of the factors of the scaled tanh, ``(half,)``."""
        return self.last_bias + 2 * self.half

    @property
    def stride(self) -> int:
        """Length of a row."""
        return self.bound + self.half


class Kernels(NamedTuple):
    """The compiled functions for one dtype and one :class:`Sizes`.

    Attributes:
        advance: ``(weights, order, generate, states, ladj)`` fills the states from the first two
            on, and ladj (pieces, LANES).
        pull_back: ``(weights, order, generate, states, grad_ladj, grads, sums)`` takes ``grads``
            (pieces, 2, half * LANES) from the last two states to the first two, of which the moved
            half stands first if the number of couplings is even, and adds the gradient of the
            weights to ``sums``.
    """

    advance: Callable[..., None]
    pull_back: Callable[..., None]


@functools.cache
def build_kernels(dtype: Dtype, sizes: Sizes) -> Kernels:
    """The kernels for ``np.float32`` or ``np.float64``; a first call takes seconds to compile."""
    units, scale = _build_units(dtype, sizes), _hidden_units(dtype, sizes)
    scaled_advance = _build_advance(dtype, sizes, units)
    scaled_pull_back = _build_pull_back(dtype, sizes, units)

    def advance(weights: Any, *others: Any) -> None:
        scaled_advance(weights * scale, *others)

    def pull_back(weights: Any, *others: Any) -> None:
        *arrays, sums = others
        scaled_sums = np.zeros_like(sums)
        scaled_pull_back(weights * scale, *arrays, scaled_sums)
        sums += scaled_sums * scale

    return Kernels(advance, pull_back)


def _hidden_units(dtype: Dtype, sizes: Sizes) -> Any:
    """Factors of a row of weights that give the hidden units, before and after elu, over ln 2.

    Then elu needs a power of 2 instead of e, without a multiplication.
    """
    scale = np.ones(sizes.stride)
    scale[: sizes.middle] /= math.log(2.0)
    scale[sizes.last : sizes.bias] *= math.log(2.0)
    scale[sizes.bias : sizes.last_bias] /= math.log(2.0)
    return scale.astype(dtype)


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
def _view(typing_context: Any, array: Any, start: Any) -> Any:
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
def _build_exp(dtype: Dtype) -> Any:
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
def _build_layer(dtype: Dtype, outputs: int, inputs: int) -> Any:
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
def _build_weight_gradient(dtype: Dtype, outputs: int, inputs: int) -> Any:
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
def _build_unit_gradient(dtype: Dtype, outputs: int, inputs: int) -> Any:
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


def _build_add_sums(dtype: Dtype) -> Any:
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


# The networks


def _build_units(dtype: Dtype, sizes: Sizes) -> Any:
    """Fill ``y`` (depth, width, LANES) with the hidden units of one network."""
    half, width, depth = sizes
    bias, middle = sizes.bias, sizes.middle
    first_layer = _build_layer(dtype, width, half)
    middle_layer = _build_layer(dtype, width, width)
    _, elu = _build_exp(dtype)
    rows = width * LANES

    @njit(**OPTIONS)
    def activate(y):  # type: ignore[no-untyped-def]
        for entry in range(rows):
            y[entry] = elu(y[entry])

    @njit(**OPTIONS)
    def units(w, net, u, y):  # type: ignore[no-untyped-def]
        first_layer(_view(w, net * width * half), _view(w, bias + net * width), u, y)
        activate(y)
        for index in range(1, depth):
            matrix = _view(w, middle + (2 * (index - 1) + net) * width * width)
            biases = _view(w, bias + (2 * index + net) * width)
            middle_layer(matrix, biases, _view(y, (index - 1) * rows), _view(y, index * rows))
            activate(_view(y, index * rows))

    return units


def _build_output(dtype: Dtype, sizes: Sizes) -> Any:
    """From the hidden units ``y`` of one network to its output, (half, LANES)."""
    half, width, depth = sizes
    last, last_bias = sizes.last, sizes.last_bias
    last_layer = _build_layer(dtype, half, width)
    last_units = (depth - 1) * width * LANES

    @njit(**OPTIONS)
    def output(w, net, y, out):  # type: ignore[no-untyped-def]
        matrix, biases = _view(w, last + net * half * width), _view(w, last_bias + net * half)
        last_layer(matrix, biases, _view(y, last_units), out)

    return output


def _build_squash(dtype: Dtype, sizes: Sizes) -> Any:
    """tanh, in place."""
    exp, _ = _build_exp(dtype)
    one, two = dtype(1), dtype(2)
    entries = sizes.half * LANES

    @njit(**OPTIONS)
    def squash(out):  # type: ignore[no-untyped-def]
        for entry in range(entries):
            out[entry] = two / (one + exp(-two * out[entry])) - one

    return squash


def _build_advance(dtype: Dtype, sizes: Sizes, units: Any) -> Any:
    half, width, depth = sizes
    bound = sizes.bound
    exp, _ = _build_exp(dtype)
    output, squash = _build_output(dtype, sizes), _build_squash(dtype, sizes)

    @njit(**OPTIONS)
    def couple(w, out, moved, result, ladj, generate):  # type: ignore[no-untyped-def]
        for i in range(half):
            for lane in range(LANES):
                entry = i * LANES + lane
                log_scale, shift = w[bound + i] * out[entry], out[half * LANES + entry]
                ladj[lane] += log_scale
                if generate:
                    result[entry] = moved[entry] * exp(log_scale) + shift
                else:
                    result[entry] = (moved[entry] - shift) * exp(-log_scale)

    @njit(**OPTIONS)
    def advance(weights, order, generate, states, ladj):  # type: ignore[no-untyped-def]
        y = np.empty(depth * width * LANES, weights.dtype)
        out = np.empty(2 * half * LANES, weights.dtype)
        for piece in range(states.shape[0]):
            state = states[piece]
            ladj[piece][:] = 0
            for step in range(order.shape[0]):
                w, held = weights[order[step]], state[step + 1]
                for net in range(2):
                    units(w, net, held, y)
                    output(w, net, y, _view(out, net * half * LANES))
                squash(out)
                couple(w, out, state[step], state[step + 2], ladj[piece], generate)

    return advance


def _build_head(dtype: Dtype, sizes: Sizes) -> Any:
    """From the gradient of a result to those of the moved half (in place) and the output."""
    half, bound = sizes.half, sizes.bound
    exp, _ = _build_exp(dtype)
    zero, one = dtype(0), dtype(1)

    @njit(**OPTIONS)
    def head(  # type: ignore[no-untyped-def]
        w, out, moved, result, grad_result, grad_ladj, grad, total, generate
    ):
        for i in range(half):
            sum_bound, factor = zero, w[bound + i]
            for lane in range(LANES):
                entry = i * LANES + lane
                squashed, g = out[entry], grad_result[entry]
                if generate:
                    grad_moved = g * exp(factor * squashed)
                    grad_log_scale = grad_ladj[lane] + grad_moved * moved[entry]
                    grad[half * LANES + entry] = g
                else:
                    grad_moved = g * exp(-factor * squashed)
                    grad_log_scale = grad_ladj[lane] - g * result[entry]
                    grad[half * LANES + entry] = -grad_moved
                sum_bound += grad_log_scale * squashed
                grad[entry] = grad_log_scale * factor * (one - squashed * squashed)
                grad_result[entry] = grad_moved
            total[bound + i] += sum_bound

    return head


def _build_tail(dtype: Dtype, sizes: Sizes) -> Any:
    """Add the gradient of the first layer's input to that of the half held fixed."""
    half, width, zero = sizes.half, sizes.width, dtype(0)

    @njit(**OPTIONS)
    def tail(w, g, grad_held):  # type: ignore[no-untyped-def]
        for k in range(0, half, 2):
            for lane in range(LANES):
                upper, lower = zero, zero
                for i in range(width):
                    value = g[i * LANES + lane]
                    upper += w[i * half + k] * value
                    lower += w[i * half + k + 1] * value
                grad_held[k * LANES + lane] += upper
                grad_held[(k + 1) * LANES + lane] += lower

    return tail


def _build_network_gradient(dtype: Dtype, sizes: Sizes) -> Any:
    """Take the gradient ``g`` of one network's output back to the half held fixed.

    The gradients of the hidden units are written over them.
    """
    half, width, depth = sizes
    bias, middle, last, last_bias = sizes.bias, sizes.middle, sizes.last, sizes.last_bias
    tail, add_sums = _build_tail(dtype, sizes), _build_add_sums(dtype)
    first_weights = _build_weight_gradient(dtype, width, half)
    middle_weights = _build_weight_gradient(dtype, width, width)
    last_weights = _build_weight_gradient(dtype, half, width)
    middle_units = _build_unit_gradient(dtype, width, width)
    last_units = _build_unit_gradient(dtype, half, width)
    rows = width * LANES

    @njit(**OPTIONS)
    def network_gradient(w, net, u, y, g, total, grad_held):  # type: ignore[no-untyped-def]
        add_sums(g, _view(total, last_bias + net * half), half)
        start, index = last + net * half * width, depth - 1
        biases = bias + (2 * index + net) * width
        top = _view(y, index * rows)
        last_weights(g, top, _view(total, start))
        last_units(_view(w, start), g, top, _view(total, biases))
        for index in range(depth - 2, -1, -1):
            start = middle + (2 * index + net) * width * width
            biases = bias + (2 * index + net) * width
            grad, below = _view(y, (index + 1) * rows), _view(y, index * rows)
            middle_weights(grad, below, _view(total, start))
            middle_units(_view(w, start), grad, below, _view(total, biases))
        start = net * width * half
        first_weights(y, u, _view(total, start))
        tail(_view(w, start), y, grad_held)

    return network_gradient


def _build_pull_back(dtype: Dtype, sizes: Sizes, units: Any) -> Any:
    half, width, depth = sizes
    output, squash = _build_output(dtype, sizes), _build_squash(dtype, sizes)
    head = _build_head(dtype, sizes)
    network_gradient = _build_network_gradient(dtype, sizes)

    @njit(**OPTIONS)
    def pull_back(  # type: ignore[no-untyped-def]
        weights, order, generate, states, grad_ladj, grads, sums
    ):
        y = np.empty(depth * width * LANES, weights.dtype)
        out = np.empty(half * LANES, weights.dtype)
        grad = np.empty(2 * half * LANES, weights.dtype)
        steps = order.shape[0]
        for piece in range(states.shape[0]):
            state = states[piece]
            for step in range(steps - 1, -1, -1):
                w, total = weights[order[step]], sums[order[step]]
                held, moved, result = state[step + 1], state[step], state[step + 2]
                grad_held = grads[piece, (steps - step + 1) % 2]
                grad_result = grads[piece, (steps - step) % 2]
                for net in range(2):
                    units(w, net, held, y)
                    if net == 0:
                        output(w, net, y, out)
                        squash(out)
                        # of what the t-network shifts by, the gradient needs no value
                        ladj = grad_ladj[piece]
                        head(w, out, moved, result, grad_result, ladj, grad, total, generate)
                    g = _view(grad, net * half * LANES)
                    network_gradient(w, net, held, y, g, total, grad_held)

    return pull_back
