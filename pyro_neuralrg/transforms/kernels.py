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
from numba import njit

from pyro_neuralrg.transforms.kernel_layers import (
    LANES,
    OPTIONS,
    Dtype,
    build_add_sums,
    build_exp,
    build_layer,
    build_unit_gradient,
    build_weight_gradient,
    view,
)

__all__ = ["Kernels", "Sizes", "build_kernels"]


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


# The networks


def _build_units(dtype: Dtype, sizes: Sizes) -> Any:
    """Fill ``y`` (depth, width, LANES) with the hidden units of one network."""
    half, width, depth = sizes
    bias, middle = sizes.bias, sizes.middle
    first_layer = build_layer(dtype, width, half)
    middle_layer = build_layer(dtype, width, width)
    _, elu = build_exp(dtype)
    rows = width * LANES

    @njit(**OPTIONS)
    def activate(y):  # type: ignore[no-untyped-def]
        for entry in range(rows):
            y[entry] = elu(y[entry])

    @njit(**OPTIONS)
    def units(w, net, u, y):  # type: ignore[no-untyped-def]
        first_layer(view(w, net * width * half), view(w, bias + net * width), u, y)
        activate(y)
        for index in range(1, depth):
            matrix = view(w, middle + (2 * (index - 1) + net) * width * width)
            biases = view(w, bias + (2 * index + net) * width)
            middle_layer(matrix, biases, view(y, (index - 1) * rows), view(y, index * rows))
            activate(view(y, index * rows))

    return units


def _build_output(dtype: Dtype, sizes: Sizes) -> Any:
    """From the hidden units ``y`` of one network to its output, (half, LANES)."""
    half, width, depth = sizes
    last, last_bias = sizes.last, sizes.last_bias
    last_layer = build_layer(dtype, half, width)
    last_units = (depth - 1) * width * LANES

    @njit(**OPTIONS)
    def output(w, net, y, out):  # type: ignore[no-untyped-def]
        matrix, biases = view(w, last + net * half * width), view(w, last_bias + net * half)
        last_layer(matrix, biases, view(y, last_units), out)

    return output


def _build_squash(dtype: Dtype, sizes: Sizes) -> Any:
    """tanh, in place."""
    exp, _ = build_exp(dtype)
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
    exp, _ = build_exp(dtype)
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
                    output(w, net, y, view(out, net * half * LANES))
                squash(out)
                couple(w, out, state[step], state[step + 2], ladj[piece], generate)

    return advance


def _build_head(dtype: Dtype, sizes: Sizes) -> Any:
    """From the gradient of a result to those of the moved half (in place) and the output."""
    half, bound = sizes.half, sizes.bound
    exp, _ = build_exp(dtype)
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
    tail, add_sums = _build_tail(dtype, sizes), build_add_sums(dtype)
    first_weights = build_weight_gradient(dtype, width, half)
    middle_weights = build_weight_gradient(dtype, width, width)
    last_weights = build_weight_gradient(dtype, half, width)
    middle_units = build_unit_gradient(dtype, width, width)
    last_units = build_unit_gradient(dtype, half, width)
    rows = width * LANES

    @njit(**OPTIONS)
    def network_gradient(w, net, u, y, g, total, grad_held):  # type: ignore[no-untyped-def]
        add_sums(g, view(total, last_bias + net * half), half)
        start, index = last + net * half * width, depth - 1
        biases = bias + (2 * index + net) * width
        top = view(y, index * rows)
        last_weights(g, top, view(total, start))
        last_units(view(w, start), g, top, view(total, biases))
        for index in range(depth - 2, -1, -1):
            start = middle + (2 * index + net) * width * width
            biases = bias + (2 * index + net) * width
            grad, below = view(y, (index + 1) * rows), view(y, index * rows)
            middle_weights(grad, below, view(total, start))
            middle_units(view(w, start), grad, below, view(total, biases))
        start = net * width * half
        first_weights(y, u, view(total, start))
        tail(view(w, start), y, grad_held)

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
                    g = view(grad, net * half * LANES)
                    network_gradient(w, net, held, y, g, total, grad_held)

    return pull_back
