# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A sequence of couplings as one operation on a CPU: a node of autograd's graph, tiles on threads.

It keeps, of everything the couplings compute, only the values that each overwrites. Derivatives of
its gradient, forward-mode derivatives, accelerators and ``torch.compile`` take the reference,
:meth:`~pyro_neuralrg.transforms.coupling_sequence.CouplingSequence.reference`. Under
``torch.func.vmap`` the batch joins the columns.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from pyro_neuralrg.runtime.threads import share
from pyro_neuralrg.signatures import remember_signature
from pyro_neuralrg.transforms.networks import Inputs

Tensors = tuple[Tensor | None, ...]
"""Field ``(rows, n)``, arrays of the networks, biases of sites, gains and shifts of a context."""
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
GROUPS = 8
"""Parts of a batch that threads share; each adds up its own gradient of the weights, so that sums
do not depend on the number of threads."""
ANNOUNCED_AFTER = 1.0
"""Seconds after which a first call says that it compiles."""


def is_compiled(sequence: Any, h: Tensor) -> bool:
    """Whether the compiled loops can serve these couplings and this field."""
    options = sequence.options
    return (
        h.device.type == "cpu"
        and h.dtype in DTYPES
        and h.shape[-1] > 0
        and options.activation in ("tanh", "elu")
        and not (options.odd and options.separate)
        and not torch.compiler.is_compiling()
        and not _has_tangents(h)
        and _has_numba()
    )


def _has_tangents(h: Tensor) -> bool:
    """Whether forward-mode derivatives are being taken."""
    if torch._C._functorch.maybe_current_level() is None:
        return bool(forward_ad._current_level >= 0)
    stack = torch._C._functorch.get_interpreter_stack() or []
    jvp = torch._C._functorch.TransformType.Jvp
    return any(interpreter.key() == jvp for interpreter in stack)


@functools.cache
def _has_numba() -> bool:
    if importlib.util.find_spec("numba") is not None:
        return True
    warnings.warn(
        "numba is not installed: couplings run in plain torch, several times slower", stacklevel=2
    )
    return False


def couple(sequence: Any, h: Tensor, inputs: Any, inverse: bool) -> tuple[Tensor, Tensor]:
    """z to x, or x to z if ``inverse``, rows ``(rows, n)``, and ladj ``(n,)``."""
    tensors = (h, inputs.arrays, inputs.sites, inputs.gains, inputs.shifts)
    out, ladj, _ = _Couple.apply(*tensors, sequence, inverse, _may_need_gradient(tensors))
    return out, ladj


def couple_with_score(
    sequence: Any, h: Tensor, score: Tensor, inputs: Any, want_context: bool
) -> tuple[Tensor, ...]:
    """As :meth:`CouplingSequence.push_score`, with gradients of gains and shifts."""
    tensors = (h, inputs.arrays, inputs.sites, inputs.gains, inputs.shifts)
    found = _CoupleWithScore.apply(
        *tensors, score.detach(), sequence, want_context, _may_need_gradient(tensors)
    )
    return found[:5]


def _may_need_gradient(tensors: Tensors) -> bool:
    if not torch.is_grad_enabled():
        return False
    inside = torch._C._functorch.maybe_current_level() is not None
    return inside or any(t is not None and t.requires_grad for t in tensors)


class _Run:
    """Numbers of one call: columns in whole tiles, flat tensors for the kernels."""

    def __init__(self, sequence: Any, tensors: Tensors) -> None:
        from pyro_neuralrg.transforms import kernel_rows, kernels

        h, arrays, sites, gains, shifts = tensors
        assert h is not None
        self.kernels: Any = kernels
        self.kernel_rows: Any = kernel_rows
        self.sequence = sequence
        self.n = h.shape[-1]
        self.tiles = -(-self.n // kernel_rows.TILE)
        self.columns = self.tiles * kernel_rows.TILE
        self.like = h.detach()
        self.weights = (
            self.flat(arrays),
            self.flat(sites),
            self.flat(self.padded(gains)),
            self.flat(self.padded(shifts)),
        )

    def flat(self, tensor: Tensor | None) -> Tensor:
        """A flat tensor, the same memory if it can be; an empty one for None."""
        if tensor is None:
            return self.like.new_empty(0)
        return tensor.detach().contiguous().view(-1)

    def padded(self, tensor: Tensor | None) -> Tensor | None:
        """Columns up to a whole tile, with zeros behind the last one."""
        if tensor is None or tensor.shape[-1] == self.columns:
            return tensor
        return torch.nn.functional.pad(tensor.detach(), (0, self.columns - self.n))

    def empty(self, *shape: int) -> Tensor:
        """A tensor to be filled."""
        return self.like.new_empty(shape)

    def zeros(self, *shape: int) -> Tensor:
        """A tensor of zeros."""
        return self.like.new_zeros(shape)

    def over_tiles(self, work: Callable[..., Any], *tensors: Tensor) -> None:
        """Call ``work(program, weights, *arrays, group, first, last)`` for each group of tiles.

        On torch's number of threads; not at all for tensors that have a shape, but no memory.
        """
        if isinstance(self.like, FakeTensor):
            return
        groups = min(GROUPS, self.tiles)
        cuts = [self.tiles * group // groups for group in range(groups + 1)]
        program = program_of(self.sequence)
        weights = self.kernel_rows.Weights(*(tensor.numpy() for tensor in self.weights))
        arrays = [tensor.numpy() for tensor in tensors]

        def part(group: int) -> None:
            work(program, weights, *arrays, group, cuts[group], cuts[group + 1])

        with _announced(self.like.dtype):
            share(part, groups)


def program_of(sequence: Any) -> Any:
    """The sequence as the kernels read it, made once."""
    if sequence._program is None:
        sequence._program = _make_program(sequence)
    return sequence._program


def _make_program(sequence: Any) -> Any:
    from pyro_neuralrg.transforms import kernel_rows

    options = sequence.options
    rows: list[tuple[int, ...]] = []
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    kept = work = 0
    starts = [0, 0]
    for c in sequence.couplings:
        rows.append((c.start, c.inputs, c.moved, c.cells, *starts, c.unit, c.site, kept))
        for number, (source, width, into) in enumerate(
            ((sequence.seen, c.inputs, seen), (sequence.targets, c.moved, targets))
        ):
            begin = c.seen if number == 0 else c.target
            table = source[begin : begin + width * c.cells].view(width, c.cells)
            into.append(table.T.flatten())
            starts[number] += table.numel()
        kept += c.cells * c.moved
        layout = kernel_rows.lay_out.py_func(
            c.inputs, np.array(options.widths, np.int64), c.moved, options.terms
        )
        work = max(work, layout.end)
    return kernel_rows.Program(
        couplings=np.array(rows, np.int64),
        seen=torch.cat(seen).numpy(),
        targets=torch.cat(targets).numpy(),
        widths=np.array(options.widths, np.int64),
        rows=sequence.rows,
        kept=sequence.kept_rows,
        terms=options.terms,
        odd=int(options.is_odd_by_form),
        activation=kernel_rows.TANH if options.activation == "tanh" else kernel_rows.ELU,
        work=work,
    )


def _advance(
    sequence: Any,
    tensors: Tensors,
    inverse: bool = False,
    store: bool = False,
    score: Tensor | None = None,
    want_context: bool = False,
) -> tuple[Tensor, ...]:
    """Result, ladj, score, gradients of gains and shifts, and what is kept to go back."""
    run = _Run(sequence, tensors)
    k, n = run.kernels, run.n
    out, ladj = run.empty(sequence.rows, n), run.empty(run.columns)
    kept = run.empty(run.tiles if store else 0, sequence.kept_rows, run.kernel_rows.TILE)
    new_score = run.empty(sequence.rows if score is not None else 0, n)
    sums = [run.zeros(len(part) if want_context else 0) for part in run.weights[2:]]

    def work(p: Any, w: Any, h: Any, x: Any, ladj: Any, kept: Any, *rest: Any) -> None:
        score, new_score, d_gains, d_shifts, _, first, last = rest
        common = n, run.columns, first, last, h, x, ladj, kept
        if inverse:
            k.inverse(p, w, *common)
        else:
            d = run.kernel_rows.Weights(score[:0], score[:0], d_gains, d_shifts)
            k.forward(p, w, d, *common, score, new_score)

    given = run.flat(tensors[0]), run.flat(out), ladj, run.flat(kept)
    run.over_tiles(work, *given, run.flat(score), run.flat(new_score), *sums)
    of_context = [part.view(-1, run.columns)[:, :n] for part in sums]
    return out, ladj[:n].clone(), new_score, *of_context, kept


def _go_back(
    sequence: Any,
    tensors: Tensors,
    inverse: bool,
    wants: Sequence[bool],
    out: Tensor,
    kept: Tensor,
    d_out: Tensor,
    d_ladj: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients with respect to the field, arrays, sites, gains and shifts; empty if unwanted."""
    run = _Run(sequence, tensors)
    k, n = run.kernels, run.n
    d_h = run.empty(sequence.rows, n)
    groups = min(GROUPS, run.tiles)
    totals = [
        run.zeros(groups, len(part) if want else 0)
        for part, want in zip(run.weights[:2], wants[1:3], strict=True)
    ]
    want_context = wants[3] or wants[4]
    sums = [run.zeros(len(part) if want_context else 0) for part in run.weights[2:]]

    def work(p: Any, w: Any, result: Any, kept: Any, *rest: Any) -> None:
        above, of_ladj, to, parameters, sites, d_gains, d_shifts, group, first, last = rest
        d = run.kernel_rows.Weights(parameters[group], sites[group], d_gains, d_shifts)
        common = n, run.columns, first, last, inverse
        k.pull_back(p, w, d, *common, result, kept, above, of_ladj, to)

    below = run.flat(run.padded(d_ladj)), run.flat(d_h)
    run.over_tiles(work, run.flat(out), run.flat(kept), run.flat(d_out), *below, *totals, *sums)
    of_context = [part.view(-1, run.columns)[:, :n] for part in sums]
    return d_h, *(total.sum(0) for total in totals), *of_context


class _Couple(torch.autograd.Function):
    """z to x or back: ``(h, arrays, sites, gains, shifts, ...) -> (out, ladj, kept)``."""

    @staticmethod
    @remember_signature
    def forward(*args: Any) -> Any:
        """Both ways."""
        *tensors, sequence, inverse, store = args
        out, ladj, *_, kept = _advance(sequence, tuple(tensors), inverse, store)
        return out, ladj, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the backward pass needs."""
        *tensors, ctx.sequence, ctx.inverse, _ = inputs
        out, _, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of the field and of what the couplings are made of."""
        return *_pull(ctx, *gradients[:2]), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """The batch joins the columns, unless the couplings themselves are batched."""
        *tensors, sequence, inverse, store = args
        size = info.batch_size
        if in_dims[1] is not None or in_dims[2] is not None:
            each = [
                _Couple.apply(*_select(tensors, in_dims, i), sequence, inverse, store)
                for i in range(size)
            ]
            return tuple(map(torch.stack, zip(*each, strict=True))), (0, 0, 0)
        folded = _fold_inputs(tensors, in_dims, size)
        out, ladj, kept = _Couple.apply(*folded, sequence, inverse, store)
        return (_unfold(out, size), _unfold(ladj, size), kept), (out.dim() - 1, 0, None)


class _CoupleWithScore(torch.autograd.Function):
    """z to x: ``(h, arrays, sites, gains, shifts, ...) -> (out, ladj, score, ...)``.

    All but the field itself are constants.
    """

    @staticmethod
    @remember_signature
    def forward(*args: Any) -> Any:
        """Field, ladj, score, gradients of gains and shifts, what is kept."""
        *tensors, score, sequence, want_context, store = args
        return _advance(sequence, tuple(tensors), False, store, score, want_context)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the backward pass needs."""
        *tensors, _, ctx.sequence, _, _ = inputs
        ctx.inverse = False
        out, *constants, kept = output
        ctx.mark_non_differentiable(*constants, kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of the field and of what the couplings are made of."""
        return *_pull(ctx, gradients[0], None), None, None, None, None


class _PullBack(torch.autograd.Function):
    """``(d_out, d_ladj, h, arrays, sites, gains, shifts, out, kept, ...) -> gradients``."""

    @staticmethod
    @remember_signature
    def forward(*args: Any) -> Any:
        """Of the five, those that are wanted; the others are empty."""
        d_out, d_ladj, *tensors, out, kept, sequence, inverse, wants = args
        return _go_back(sequence, tuple(tensors), inverse, wants, out, kept, d_out, d_ladj)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What derivatives of the gradient need."""
        *tensors, _, _, ctx.sequence, ctx.inverse, ctx.wants = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """By the reference."""
        found = _second_derivative(ctx, gradients)
        return *found, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """As that of the forward pass; gradients of weights are taken one by one."""
        d_out, d_ladj, *tensors, out, kept, sequence, inverse, wants = args
        size = info.batch_size
        batched = in_dims[3] is not None or in_dims[4] is not None
        if not batched and not (wants[1] or wants[2]):
            dims = in_dims[2:7]
            folded = _fold_inputs(tensors, dims, size)
            above = [_fold(t, d, size) for t, d in zip((d_out, d_ladj), in_dims, strict=False)]
            out = _fold(out, in_dims[7], size)
            if all(dim is None for dim in (in_dims[2], *in_dims[5:7])):  # kept of fewer columns
                _, _, kept = _Couple.apply(*folded, sequence, inverse, True)
            found = _PullBack.apply(*above, *folded, out, kept, sequence, inverse, wants)
            d_h, _, _, *of_context = found
            unfolded = [_unfold(part, size) for part in (d_h, *of_context)]
            return (unfolded[0], *found[1:3], *unfolded[1:]), (1, None, None, 1, 1)
        each = []
        for i in range(size):
            *own, own_out, own_kept = _select(args[:9], in_dims, i)
            if not batched:  # kept for all together
                own_out, _, own_kept = _Couple.apply(*own[2:], sequence, inverse, True)
            each.append(_PullBack.apply(*own, own_out, own_kept, sequence, inverse, wants))
        return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * 5


def _pull(ctx: Any, d_out: Tensor | None, d_ladj: Tensor | None) -> list[Tensor | None]:
    """Gradients with respect to the five tensors."""
    *tensors, out, kept = ctx.saved_tensors
    wants = tuple(ctx.needs_input_grad[:5])
    if d_out is None and d_ladj is None:
        return [None] * 5
    d_out = torch.zeros_like(out) if d_out is None else d_out
    d_ladj = out.new_zeros(out.shape[-1]) if d_ladj is None else d_ladj
    if any(map(_is_special, (d_out, d_ladj))):
        return _gradient_of_reference(ctx, wants, d_out, d_ladj)
    found = _PullBack.apply(d_out, d_ladj, *tensors, out, kept, ctx.sequence, ctx.inverse, wants)
    return [part if want else None for part, want in zip(found, wants, strict=True)]


def _is_special(tensor: Tensor) -> bool:
    """Whether it is a batch of ``is_grads_batched``, or has a forward-mode derivative."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(tensor)
    return batched or forward_ad.unpack_dual(tensor).tangent is not None


def _gradient_of_reference(
    ctx: Any, wants: Sequence[bool], d_out: Tensor, d_ladj: Tensor
) -> list[Tensor | None]:
    """The same in plain torch."""
    *tensors, _, _ = ctx.saved_tensors
    with torch.enable_grad():
        own = [
            tensor.detach().requires_grad_() if want else tensor
            for tensor, want in zip(tensors, wants, strict=True)
        ]
        results = ctx.sequence.reference(own[0], Inputs(*own[1:]), ctx.inverse)
    wanted = [tensor for tensor, want in zip(own, wants, strict=True) if want]
    found = iter(torch.autograd.grad(results, wanted, (d_out, d_ladj)))
    return [next(found) if want else None for want in wants]


def _second_derivative(ctx: Any, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """Of the gradient with respect to (d_out, d_ladj, h, arrays, sites, gains, shifts)."""
    given = ctx.saved_tensors
    present = [index for index, tensor in enumerate(given) if tensor is not None]
    wanted = [index for index in range(5) if ctx.wants[index]]
    vjp: Any = torch.func.vjp

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        full: list[Any] = [None] * 7
        for index, tensor in zip(present, tensors, strict=True):
            full[index] = tensor

        def couple_again(*parts: Tensor) -> tuple[Tensor, Tensor]:
            of = list(full[2:])
            for index, part in zip(wanted, parts, strict=True):
                of[index] = part
            return ctx.sequence.reference(of[0], Inputs(*of[1:]), ctx.inverse)

        _, pull = vjp(couple_again, *(full[2 + index] for index in wanted))
        return pull((full[0], full[1]))

    _, pull = vjp(gradient, *(given[index] for index in present))
    found: list[Tensor | None] = [None] * 7
    pulled = pull(tuple(gradients[index] for index in wanted))
    for index, part in zip(present, pulled, strict=True):
        found[index] = part
    return found


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """``(..., n)`` with a batch at ``dim`` to ``(..., size * n)``."""
    if tensor is None:
        return None
    if dim is None:
        shape = (*tensor.shape[:-1], size, tensor.shape[-1])
        return tensor.unsqueeze(-2).expand(shape).flatten(-2)
    return tensor.movedim(dim, -2).flatten(-2)


def _fold_inputs(tensors: Sequence[Any], in_dims: Sequence[Any], size: int) -> list[Any]:
    """The field, gains and shifts folded; the couplings as they are."""
    h, arrays, sites, gains, shifts = tensors
    fold = functools.partial(_fold, size=size)
    return [fold(h, in_dims[0]), arrays, sites, fold(gains, in_dims[3]), fold(shifts, in_dims[4])]


def _unfold(tensor: Tensor, size: int) -> Tensor:
    """Undo :func:`_fold`, the batch before the columns."""
    return tensor.unflatten(-1, (size, tensor.shape[-1] // size))


def _select(tensors: Sequence[Any], in_dims: Sequence[Any], index: int) -> list[Any]:
    return [
        tensor if dim is None or tensor is None else tensor.select(dim, index)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


_known: set[torch.dtype] = set()


@contextmanager
def _announced(dtype: torch.dtype) -> Iterator[None]:
    """Say so if a first call takes time, since it then compiles."""
    if dtype in _known:
        yield
        return
    line = "pyro_neuralrg compiles its couplings, once for this machine\n"
    timer = threading.Timer(ANNOUNCED_AFTER, sys.stderr.write, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _known.add(dtype)
