# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of a stack of Real NVP couplings with ELU networks, both ways and their gradients.

The columns (blocks times batch) are independent. ``LANES`` of them at a time run through all
couplings of the stack, so that everything a network computes stays in the processor's caches, in a
layout where the innermost loop over the lanes becomes vector instructions: array
``[unit * LANES + lane]``. The backward loop evaluates each network again instead of reading its
activations from memory.

Arrays of the compiled functions:

* ``weights`` (couplings, :attr:`Sizes.stride`): one row for each coupling, as :class:`Sizes` lays
  it out, the s-network before the t-network;
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
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial

__all__ = ["LANES", "Kernels", "Sizes", "build_kernels"]

Dtype = Any  # np.float32 or np.float64
LANES = 256
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
    network = _build_network(dtype, sizes)
    return Kernels(_build_advance(dtype, sizes, network), _build_pull_back(dtype, sizes, network))


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
    """

    limit: Any
    rounder: Any
    series: tuple[Any, ...]


def _exponential(dtype: Dtype) -> Exponential:
    mantissa, bias, degree, limit = (23, 127, 6, 87) if dtype is np.float32 else (52, 1023, 11, 700)
    # (2^g - 1) / g by its Taylor series, economised in Chebyshev polynomials; so 2^0 is exactly 1
    taylor = [math.log(2.0) ** k / math.factorial(k) for k in range(1, 25)]
    chebyshev = Polynomial(taylor).convert(domain=[-0.5, 0.5], kind=Chebyshev)
    powers = chebyshev.truncate(degree).convert(domain=[-1, 1], kind=Polynomial).coef
    series = (*powers[::-1], 1.0)
    return Exponential(dtype(limit), dtype(1.5 * 2**mantissa + bias), tuple(map(dtype, series)))


@functools.cache
def _build_exp(dtype: Dtype) -> Any:
    """e^x to rounding, clamped where 2^k would leave the normals; and elu(x) = max(x, e^x - 1)."""
    limit, rounder, series = _exponential(dtype)
    log2_e, zero, one = dtype(math.log2(math.e)), dtype(0), dtype(1)
    length = len(series)

    # no reordering of sums here: it would undo the rounding
    @njit(**{**OPTIONS, "fastmath": {"contract"}})
    def split(x):  # type: ignore[no-untyped-def]
        r = x * log2_e + rounder
        g = x * log2_e - (r - rounder)
        value = series[0]
        for k in range(1, length):
            value = value * g + series[k]
        return value, _power_of_two(r)

    # x stands second where NaN is to stay NaN
    @njit(**OPTIONS)
    def exp(x):  # type: ignore[no-untyped-def]
        value, scale = split(_larger(-limit, _smaller(limit, x)))
        return value * scale

    @njit(**OPTIONS)
    def elu(x):  # type: ignore[no-untyped-def]
        value, scale = split(_larger(-limit, _smaller(zero, x)))
        return _larger(x, value * scale - one)

    return exp, elu


# One layer


@functools.cache
def _build_layer(outputs: int, inputs: int) -> Any:
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
def _build_layer_gradient(dtype: Dtype, outputs: int, inputs: int) -> Any:
    """Gradients g of w y + b, with y = elu(x): add those of w to ``total``, write that of x."""
    zero, one = dtype(0), dtype(1)

    @njit(**OPTIONS)
    def weight_gradient(g, y, total):  # type: ignore[no-untyped-def]
        for i in range(0, outputs, 2):
            for k in range(0, inputs, 2):
                s00, s01, s10, s11 = zero, zero, zero, zero
                for lane in range(LANES):
                    g0, g1 = g[i * LANES + lane], g[(i + 1) * LANES + lane]
                    y0, y1 = y[k * LANES + lane], y[(k + 1) * LANES + lane]
                    s00 += g0 * y0
                    s01 += g0 * y1
                    s10 += g1 * y0
                    s11 += g1 * y1
                total[i * inputs + k] += s00
                total[i * inputs + k + 1] += s01
                total[(i + 1) * inputs + k] += s10
                total[(i + 1) * inputs + k + 1] += s11

    @njit(**OPTIONS)
    def unit_gradient(w, g, y, out):  # type: ignore[no-untyped-def]
        for k in range(0, inputs, 2):
            for lane in range(LANES):
                upper, lower = zero, zero
                for i in range(outputs):
                    value = g[i * LANES + lane]
                    upper += w[i * inputs + k] * value
                    lower += w[i * inputs + k + 1] * value
                # the slope of elu from its value: min(y + 1, 1)
                out[k * LANES + lane] = upper * min(y[k * LANES + lane] + one, one)
                out[(k + 1) * LANES + lane] = lower * min(y[(k + 1) * LANES + lane] + one, one)

    return weight_gradient, unit_gradient


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


def _build_network(dtype: Dtype, sizes: Sizes) -> Any:
    """Fill ``y`` with all hidden units, ``out`` with tanh (s) and shift, ``(2, half)``."""
    half, width, depth = sizes
    bias, middle, last, last_bias = sizes.bias, sizes.middle, sizes.last, sizes.last_bias
    exp, elu = _build_exp(dtype)
    first_layer = _build_layer(width, half)
    middle_layer = _build_layer(width, width)
    last_layer = _build_layer(half, width)
    one, two = dtype(1), dtype(2)
    rows = width * LANES

    @njit(**OPTIONS)
    def activate(y):  # type: ignore[no-untyped-def]
        for entry in range(2 * rows):
            y[entry] = elu(y[entry])

    @njit(**OPTIONS)
    def network(w, u, y, out):  # type: ignore[no-untyped-def]
        for net in range(2):
            first_layer(w[net * width * half :], w[bias + net * width :], u, y[net * rows :])
        activate(y)
        for index in range(2, 2 * depth):
            matrix = w[middle + (index - 2) * width * width :]
            middle_layer(
                matrix, w[bias + index * width :], y[(index - 2) * rows :], y[index * rows :]
            )
            if index % 2 == 1:
                activate(y[(index - 1) * rows :])
        for net in range(2):
            units = y[(2 * depth - 2 + net) * rows :]
            last_layer(
                w[last + net * half * width :],
                w[last_bias + net * half :],
                units,
                out[net * half * LANES :],
            )
        for entry in range(half * LANES):
            out[entry] = two / (one + exp(-two * out[entry])) - one

    return network


def _build_advance(dtype: Dtype, sizes: Sizes, network: Any) -> Any:
    half, width, depth = sizes
    bound = sizes.bound
    exp, _ = _build_exp(dtype)

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
        y = np.empty(2 * depth * width * LANES, weights.dtype)
        out = np.empty(2 * half * LANES, weights.dtype)
        for piece in range(states.shape[0]):
            state = states[piece]
            ladj[piece][:] = 0
            for step in range(order.shape[0]):
                w = weights[order[step]]
                network(w, state[step + 1], y, out)
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
        for k in range(half):
            for lane in range(LANES):
                value = zero
                for i in range(2 * width):
                    value += w[i * half + k] * g[i * LANES + lane]
                grad_held[k * LANES + lane] += value

    return tail


def _build_network_gradient(dtype: Dtype, sizes: Sizes) -> Any:
    """Take the gradient ``g`` of the output through the layers, back to the half held fixed."""
    half, width, depth = sizes
    bias, middle, last, last_bias = sizes.bias, sizes.middle, sizes.last, sizes.last_bias
    tail, add_sums = _build_tail(dtype, sizes), _build_add_sums(dtype)
    first_weights, _ = _build_layer_gradient(dtype, 2 * width, half)
    middle_weights, middle_units = _build_layer_gradient(dtype, width, width)
    last_weights, last_units = _build_layer_gradient(dtype, half, width)
    rows = width * LANES

    @njit(**OPTIONS)
    def network_gradient(w, u, y, g, hidden, total, grad_held):  # type: ignore[no-untyped-def]
        add_sums(g, total[last_bias:], 2 * half)
        for net in range(2):
            index = 2 * depth - 2 + net
            grad, units = g[net * half * LANES :], y[index * rows :]
            last_weights(grad, units, total[last + net * half * width :])
            last_units(w[last + net * half * width :], grad, units, hidden[index * rows :])
        for index in range(2 * depth - 1, 1, -1):
            start = middle + (index - 2) * width * width
            grad, units = hidden[index * rows :], y[(index - 2) * rows :]
            middle_weights(grad, units, total[start:])
            middle_units(w[start:], grad, units, hidden[(index - 2) * rows :])
        add_sums(hidden, total[bias:], 2 * depth * width)
        first_weights(hidden, u, total)
        tail(w, hidden, grad_held)

    return network_gradient


def _build_pull_back(dtype: Dtype, sizes: Sizes, network: Any) -> Any:
    half, width, depth = sizes
    head = _build_head(dtype, sizes)
    network_gradient = _build_network_gradient(dtype, sizes)

    @njit(**OPTIONS)
    def pull_back(  # type: ignore[no-untyped-def]
        weights, order, generate, states, grad_ladj, grads, sums
    ):
        y = np.empty(2 * depth * width * LANES, weights.dtype)
        hidden = np.empty_like(y)
        out = np.empty(2 * half * LANES, weights.dtype)
        grad = np.empty_like(out)
        steps = order.shape[0]
        for piece in range(states.shape[0]):
            state = states[piece]
            for step in range(steps - 1, -1, -1):
                w, total = weights[order[step]], sums[order[step]]
                held, moved, result = state[step + 1], state[step], state[step + 2]
                grad_held = grads[piece, (steps - step + 1) % 2]
                grad_result = grads[piece, (steps - step) % 2]
                network(w, held, y, out)
                head(w, out, moved, result, grad_result, grad_ladj[piece], grad, total, generate)
                network_gradient(w, held, y, grad, hidden, total, grad_held)

    return pull_back
