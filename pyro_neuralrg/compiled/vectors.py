# SPDX-License-Identifier: Apache-2.0
"""Vector code for numba: formulas on rows, matrix products of rows, exp, log and tanh.

numba vectorises a loop only where LLVM can prove that its arrays do not overlap and its indices are
not negative, and calls a library for every single exp. Here the vector instructions are written
down: a formula is a Python function of :class:`Lanes`, and :func:`rowwise` makes of it something to
call in compiled code. Rows are pairs of a flat array and an offset.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))
VECTOR_BYTES = 64 if _WIDE else 32
VECTORS = 4 if _WIDE else 2
"""Vectors of a row that one product keeps in registers."""
CONTRACT = ("contract",)  # a product and a sum may be one instruction; nothing else is relaxed


class _Digits(NamedTuple):
    """Constants of a floating type."""

    name: str
    bits: int
    mantissa: int
    bias: int
    largest_exponent: float
    exp_terms: int
    log_terms: int


_SINGLE = _Digits("f32", 32, 23, 127, 87.0, 7, 5)
_DOUBLE = _Digits("f64", 64, 52, 1023, 708.0, 13, 11)
LN2_HIGH = 0.693359375
"""ln 2 to so few digits that its product with an exponent is exact."""
LN2_LOW = -2.121944400546905827679e-4


def _operation(name: str, *first: str, swapped: bool = False, **options: Any) -> Any:
    """A method that calls one of the builder's."""

    def method(self: Lanes, other: Any) -> Lanes:
        pair = self.value, self._other(other)
        pair = pair[::-1] if swapped else pair
        return self.new(getattr(self.builder, name)(*first, *pair, **options))

    return method


class Lanes:
    """A vector of numbers (or of truth values) in the code that is being written."""

    def __init__(self, builder: Any, digits: _Digits, value: Any) -> None:
        self.builder, self.digits, self.value = builder, digits, value

    def new(self, value: Any) -> Lanes:
        """Another value of the same kind."""
        return Lanes(self.builder, self.digits, value)

    def constant(self, number: float) -> Any:
        """A number in all lanes."""
        return _spread(self.value.type, number)

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Lanes) else self.constant(float(other))

    __add__ = __radd__ = _operation("fadd", flags=CONTRACT)
    __sub__ = _operation("fsub", flags=CONTRACT)
    __rsub__ = _operation("fsub", swapped=True, flags=CONTRACT)
    __mul__ = __rmul__ = _operation("fmul", flags=CONTRACT)
    __truediv__ = _operation("fdiv")
    __rtruediv__ = _operation("fdiv", swapped=True)
    __lt__ = _operation("fcmp_ordered", "<")
    __gt__ = _operation("fcmp_ordered", ">")
    __le__ = _operation("fcmp_ordered", "<=")
    __and__ = _operation("and_")
    __or__ = _operation("or_")

    def __neg__(self) -> Lanes:
        return self.new(self.builder.fneg(self.value))

    def __abs__(self) -> Lanes:
        kind, module = self.value.type, self.builder.module
        name = f"llvm.fabs.v{kind.count}{self.digits.name}"
        call = cgutils.get_or_insert_function(module, ir.FunctionType(kind, [kind]), name)
        return self.new(self.builder.call(call, [self.value]))


def where(condition: Lanes, yes: Any, no: Any) -> Lanes:
    """One of two, lane by lane; a comparison with NaN is false."""
    like = yes if isinstance(yes, Lanes) else no
    return like.new(like.builder.select(condition.value, like._other(yes), like._other(no)))


def exp(x: Lanes) -> Lanes:
    """e^x as 2^k times a series; |x| is cut off at 87, in double precision at 708."""
    d, build = x.digits, x.builder
    x = where(x < -d.largest_exponent, -d.largest_exponent, x)
    x = where(x > d.largest_exponent, d.largest_exponent, x)
    rounder = 1.5 * 2.0**d.mantissa  # whole numbers then stand in the last bits
    # no CONTRACT: the subtraction must see the rounded sum
    shifted = x.new(build.fadd((x * math.log2(math.e)).value, x.constant(rounder)))
    k = x.new(build.fsub(shifted.value, x.constant(rounder)))
    rest = (x - k * LN2_HIGH) - k * LN2_LOW
    value = x.new(x.constant(1 / math.factorial(d.exp_terms)))
    for n in range(d.exp_terms - 1, -1, -1):
        value = value * rest + 1 / math.factorial(n)
    whole = ir.VectorType(ir.IntType(d.bits), x.value.type.count)
    bits = build.shl(build.bitcast(shifted.value, whole), _spread(whole, d.mantissa))
    power = build.bitcast(build.add(bits, _spread(whole, d.bias << d.mantissa)), x.value.type)
    return value * x.new(power)


def log(x: Lanes) -> Lanes:
    """ln x by the series of artanh, for normal positive numbers; NaN for what is not positive."""
    d, build = x.digits, x.builder
    whole = ir.VectorType(ir.IntType(d.bits), x.value.type.count)
    bits = build.bitcast(x.value, whole)
    exponent = build.sub(build.ashr(bits, _spread(whole, d.mantissa)), _spread(whole, d.bias))
    k = x.new(build.sitofp(exponent, x.value.type))
    fraction = build.and_(bits, _spread(whole, (1 << d.mantissa) - 1))
    one_bits = _spread(whole, d.bias << d.mantissa)
    m = x.new(build.bitcast(build.or_(fraction, one_bits), x.value.type))
    large = m > math.sqrt(2.0)
    k, m = where(large, k + 1.0, k), where(large, m * 0.5, m)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    value = x.new(x.constant(1 / (2 * d.log_terms + 1)))
    for n in range(d.log_terms - 1, 0, -1):
        value = value * q + 1 / (2 * n + 1)
    twice = s + s
    found = (twice + (twice * q * value + k * LN2_LOW)) + k * LN2_HIGH
    return where(x > 0.0, found, math.nan)


_ABOVE = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_FLAT = 7.90531110763549805
"""Coefficients of tanh's odd and even polynomial in single precision (Eigen's); where it is 1."""


def tanh(x: Lanes) -> Lanes:
    """tanh x, an odd function to the last digit."""
    if x.digits is _DOUBLE:
        size = 1.0 - 2.0 / (exp(2.0 * abs(x)) + 1.0)
        return where(x < 0.0, -size, size)
    x = where(x < -_FLAT, -_FLAT, x)
    x = where(x > _FLAT, _FLAT, x)
    square = x * x
    above, below = (x.new(x.constant(c[0])) for c in (_ABOVE, _BELOW))
    for c in _ABOVE[1:]:
        above = above * square + c
    for c in _BELOW[1:]:
        below = below * square + c
    return x * above / below


def _spread(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * kind.count)


# Loops


class _Writer:
    """Writes vector code for a call with arguments of these kinds, all arrays of one type.

    The first argument, or the first of the first row, is an array.
    """

    def __init__(self, context: Any, builder: Any, kinds: Any) -> None:
        self.context, self.builder, self.kinds = context, builder, kinds
        self.array = kinds[0] if isinstance(kinds[0], types.Array) else kinds[0][0][0]
        self.digits = _SINGLE if self.array.dtype == types.float32 else _DOUBLE
        self.real = context.get_value_type(self.array.dtype)
        self.size = self.digits.bits // 8
        self.lanes = VECTOR_BYTES // self.size
        self.kind = ir.VectorType(self.real, self.lanes)
        self.index = ir.IntType(64)

    def row(self, array: Any, offset: Any) -> Any:
        """Pointer to an entry of an array."""
        data = self.context.make_array(self.array)(self.context, self.builder, array).data
        return self.builder.gep(data, [offset])

    def step(self, pointer: Any, number: Any, stride: Any) -> Any:
        """Pointer so many strides further."""
        return self.builder.gep(pointer, [self.builder.mul(number, stride)])

    def at(self, pointer: Any, offset: Any) -> Any:
        """Pointer to the vector that begins at an offset."""
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.kind.as_pointer())

    def load(self, pointer: Any, offset: Any) -> Any:
        """A vector."""
        return self.builder.load(self.at(pointer, offset), align=self.size)

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        """Write a vector."""
        self.builder.store(value, self.at(pointer, offset), align=self.size)

    def spread(self, number: Any) -> Any:
        """A number in all lanes."""
        nothing = ir.Constant(self.kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, mask)

    def zeros(self, number: int) -> list[Any]:
        """Vectors of zeros."""
        return [ir.Constant(self.kind, [0.0] * self.lanes)] * number

    def add_products(self, left: list[Any], right: list[Any], sums: Sequence[Any]) -> list[Any]:
        """All products of one of each, added to the sums."""
        pairs = zip(itertools.product(left, right), sums, strict=True)
        product, add = self.builder.fmul, self.builder.fadd
        return [add(product(a, b, flags=CONTRACT), c, flags=CONTRACT) for (a, b), c in pairs]

    def loop(
        self, stop: Any, step: int, start: Sequence[Any], body: Callable[..., Any]
    ) -> list[Any]:
        """Run ``body(index, *values) -> values`` for 0, step, ... < stop, at least once."""
        builder, before = self.builder, self.builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(self.index)
        index.add_incoming(self.index(0), before)
        values = [builder.phi(value.type) for value in start]
        for value, first in zip(values, start, strict=True):
            value.add_incoming(first, before)
        following = list(body(index, *values))
        for value, new in zip(values, following, strict=True):
            value.add_incoming(new, loop)
        further = builder.add(index, self.index(step))
        index.add_incoming(further, loop)
        builder.cbranch(builder.icmp_signed("<", further, stop), loop, after)
        builder.position_at_end(after)
        return following


def written(write_code: Callable[..., Any]) -> Any:
    """Make ``call(*args)`` for compiled code of ``write_code(writer, *args)``."""

    def definition(typingctx: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            write_code(_Writer(context, builder, kinds), *args)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    definition.__signature__ = inspect.signature(write_code)  # type: ignore[attr-defined]
    return intrinsic(definition)


def rowwise(formula: Callable[..., Any]) -> Any:
    """Make ``call(inputs, outputs, scalars, columns)`` of a formula on rows.

    The formula takes a :class:`Lanes` for each input row (at least one) and each scalar, and
    returns one or a tuple for the output rows, which are written after all inputs are read. Rows
    are ``(array, offset)``, their number of columns a positive multiple of the lanes.
    """

    def write_code(write: _Writer, inputs: Any, outputs: Any, scalars: Any, columns: Any) -> None:
        builder, unpack = write.builder, cgutils.unpack_tuple
        sources, targets = (
            [write.row(*unpack(builder, row)) for row in unpack(builder, rows)]
            for rows in (inputs, outputs)
        )
        numbers = []
        for kind, number in zip(write.kinds[2], unpack(builder, scalars), strict=True):
            cast = write.context.cast(builder, number, kind, write.array.dtype)
            numbers.append(Lanes(builder, write.digits, write.spread(cast)))

        def body(c: Any) -> tuple[()]:
            given = [Lanes(builder, write.digits, write.load(row, c)) for row in sources]
            found = formula(*given, *numbers)
            found = found if isinstance(found, tuple) else (found,)
            for value, row in zip(found, targets, strict=True):
                write.store(value.value, row, c)
            return ()

        write.loop(columns, write.lanes, (), body)

    return written(write_code)


def make_product(rows: int) -> Any:
    """``call(a, at, a_row, a_k, x, x_at, y_at, row, inputs)`` with so many rows r and columns.

    y[r, :] = sum_k a[r, k] x[k, :], the sums in registers.
    """

    def write_code(
        write: _Writer, a: Any, at: Any, a_row: Any, a_k: Any, x: Any, x_at: Any,
        y_at: Any, row: Any, inputs: Any,
    ) -> None:  # fmt: skip
        builder = write.builder
        a_from, x_from, y_to = write.row(a, at), write.row(x, x_at), write.row(x, y_at)

        def body(k: Any, *sums: Any) -> list[Any]:
            x_k = write.step(x_from, k, row)
            columns = [write.load(x_k, write.index(v * write.lanes)) for v in range(VECTORS)]
            a_k_from = write.step(a_from, k, a_k)
            weights = [
                write.spread(builder.load(write.step(a_k_from, write.index(r), a_row)))
                for r in range(rows)
            ]
            return write.add_products(weights, columns, sums)

        sums = write.loop(inputs, 1, write.zeros(rows * VECTORS), body)
        for r in range(rows):
            y_r = write.step(y_to, write.index(r), row)
            for v in range(VECTORS):
                write.store(sums[r * VECTORS + v], y_r, write.index(v * write.lanes))

    return written(write_code)


def make_outer(rows: int, others: int) -> Any:
    """``call(work, g_at, x_at, row, total, at, t_row, t_other, columns)`` for so many rows of each.

    total[r, s] += sum_c g[r, c] x[s, c], the sums in registers.
    """

    def write_code(
        write: _Writer, work: Any, g_at: Any, x_at: Any, row: Any, total: Any, at: Any,
        t_row: Any, t_other: Any, columns: Any,
    ) -> None:  # fmt: skip
        builder = write.builder
        g, x, to = write.row(work, g_at), write.row(work, x_at), write.row(total, at)

        def load(pointer: Any, r: int, c: Any) -> Any:
            return write.load(pointer, builder.add(builder.mul(write.index(r), row), c))

        def body(c: Any, *sums: Any) -> list[Any]:
            left = [load(g, r, c) for r in range(rows)]
            right = [load(x, s, c) for s in range(others)]
            return write.add_products(left, right, sums)

        sums = write.loop(columns, write.lanes, write.zeros(rows * others), body)
        name = f"llvm.vector.reduce.fadd.v{write.lanes}{write.digits.name}"
        function = ir.FunctionType(write.real, [write.real, write.kind])
        add_up = cgutils.get_or_insert_function(builder.module, function, name)
        begin = ir.Constant(write.real, -0.0)
        for r in range(rows):
            to_r = write.step(to, write.index(r), t_row)
            for s in range(others):
                place = write.step(to_r, write.index(s), t_other)
                found = builder.call(add_up, [begin, sums[r * others + s]], fastmath=("reassoc",))
                builder.store(builder.fadd(builder.load(place), found), place)

    return written(write_code)
