# SPDX-License-Identifier: Apache-2.0
"""A sequence of couplings as one operation on a CPU: a node of autograd's graph, tiles on threads.

Only the values that each coupling overwrites are kept. Gradients that are differentiated again,
forward-mode derivatives, the transforms of ``torch.func`` but for ``vmap``, accelerators and
``torch.compile`` take the reference, ``sequence.reference``.
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

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from pyro_neuralrg.compiled.program import TILE, Weights, program_of
from pyro_neuralrg.runtime.threads import remember_signature, share, takes_own_functions

Tensors = Sequence[Tensor | None]
"""Field ``(rows, n)``, and the four of :class:`~pyro_neuralrg.compiled.program.Weights`."""
GROUPS = 8
"""Parts of a batch that threads share; each adds up its own gradient of the weights, so that sums
do not depend on the number of threads."""
ANNOUNCED_AFTER = 1.0
"""Seconds after which a first call says that it compiles."""


def is_compiled(sequence: Any, h: Tensor) -> bool:
    """True if the compiled loops can serve these couplings and this field."""
    options = sequence.options
    return (
        h.device.type == "cpu"
        and h.dtype in (torch.float32, torch.float64)
        and h.shape[-1] > 0
        and options.activation in ("tanh", "elu")
        and not (options.odd and options.separate)
        and takes_own_functions()
        and _has_numba()
    )


@functools.cache
def _has_numba() -> bool:
    if importlib.util.find_spec("numba") is not None:
        return True
    warnings.warn(
        "numba is not installed: couplings run in plain torch, several times slower", stacklevel=2
    )
    return False


def apply_couplings(
    sequence: Any, tensors: Tensors, inverse: bool = False, score: Tensor | None = None
) -> tuple[Tensor, ...]:
    """z to x, or x to z if ``inverse``, with ladj ``(n,)`` and the score of x, if one is given.

    Also the gradients of gains and shifts. The last three are empty without a score or a context;
    with a score, all but the field are constants.
    """
    inside = torch._C._functorch.maybe_current_level() is not None
    free = inside or any(t is not None and t.requires_grad for t in tensors)
    store = torch.is_grad_enabled() and free
    score = None if score is None else score.detach()
    found: Any = _Couple.apply(*tensors, score, sequence, inverse, store)
    return tuple(found[:5])


class _Couple(torch.autograd.Function):
    """As :func:`apply_couplings`, and what is kept to go back."""

    @staticmethod
    @remember_signature
    def forward(*args: Any) -> Any:
        *tensors, score, sequence, inverse, store = args
        return _advance(sequence, tensors, inverse, store, score)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, score, ctx.sequence, ctx.inverse, _ = inputs
        out, ladj, *others = output
        ctx.mark_non_differentiable(*others, *([] if score is None else [ladj]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, others[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        *tensors, out, kept = ctx.saved_tensors
        d_out, d_ladj = gradients[:2]
        wants = ctx.needs_input_grad[:5]
        if d_out is None and d_ladj is None:
            return (None,) * 9
        d_out = torch.zeros_like(out) if d_out is None else d_out
        d_ladj = out.new_zeros(out.shape[-1]) if d_ladj is None else d_ladj
        batched = map(torch._C._functorch.is_legacy_batchedtensor, (d_out, d_ladj))
        if torch.is_grad_enabled() or forward_ad._current_level >= 0 or any(batched):
            found = _pull_reference(ctx, tensors, wants, d_out, d_ladj)
        else:
            found = _go_back(ctx, tensors, out, kept, d_out, d_ladj)
        return *found, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """The batch joins the columns, unless the couplings themselves are batched."""
        *tensors, score, sequence, inverse, store = args
        if score is not None:
            raise NotImplementedError("the pass with the score knows no vmap")
        h, arrays, sites, gains, shifts = tensors
        if in_dims[1] is not None or in_dims[2] is not None:
            reference = functools.partial(sequence.reference, inverse=inverse)
            of_each = torch.func.vmap(lambda *own: reference(own), tuple(in_dims[:5]))
            nothing = h.new_empty(0)
            return (*of_each(*tensors), *[nothing] * 4), (0, 0, *[None] * 4)
        size = info.batch_size
        fold = functools.partial(_fold, size=size)
        of_context = fold(gains, in_dims[3]), fold(shifts, in_dims[4])
        folded = (fold(h, in_dims[0]), arrays, sites, *of_context)
        out, ladj, *others = _Couple.apply(*folded, score, sequence, inverse, store)
        out, ladj = (part.unflatten(-1, (size, -1)) for part in (out, ladj))
        return (out, ladj, *others), (out.dim() - 2, 0, *[None] * 4)


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """``(..., n)`` with a batch at ``dim`` to ``(..., size * n)``."""
    if tensor is None:
        return None
    if dim is None:
        shape = (*tensor.shape[:-1], size, tensor.shape[-1])
        return tensor.unsqueeze(-2).expand(shape).flatten(-2)
    return tensor.movedim(dim, -2).flatten(-2)


def _pull_reference(
    ctx: Any, tensors: Tensors, wants: Sequence[bool], d_out: Tensor, d_ladj: Tensor
) -> list[Tensor | None]:
    """The gradient in plain torch, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():  # views: the field may depend on the arrays
        own = [
            t.view_as(t) if t is not None and want else t
            for t, want in zip(tensors, wants, strict=True)
        ]
        results = ctx.sequence.reference(own, ctx.inverse)
    wanted = [t for t, want in zip(own, wants, strict=True) if t is not None and want]
    found = iter(torch.autograd.grad(results, wanted, (d_out, d_ladj), create_graph=again))
    return [next(found) if want else None for want in wants]


# Calls of the kernels


class _Call:
    """Numbers of one call: columns in whole tiles, flat tensors for the kernels."""

    def __init__(self, sequence: Any, tensors: Tensors) -> None:
        from pyro_neuralrg.compiled import kernels

        h, arrays, sites, gains, shifts = tensors
        assert h is not None
        self.kernels: Any = kernels
        self.sequence = sequence
        self.like, self.n = h.detach(), h.shape[-1]
        self.tiles = -(-self.n // TILE)
        self.groups = min(GROUPS, self.tiles)
        self.columns = self.tiles * TILE
        whole = self.padded(gains), self.padded(shifts)
        self.weights = [self.flat(part) for part in (arrays, sites, *whole)]

    def flat(self, tensor: Tensor | None) -> Tensor:
        """A flat tensor, of the same memory if possible; an empty one for None."""
        if tensor is None:
            return self.like.new_empty(0)
        return tensor.detach().contiguous().view(-1)

    def padded(self, tensor: Tensor | None) -> Tensor | None:
        """Columns up to a whole tile, with zeros behind the last one."""
        if tensor is None or tensor.shape[-1] == self.columns:
            return tensor
        return torch.nn.functional.pad(tensor.detach(), (0, self.columns - self.n))

    def zeros(self, index: int, wanted: bool = True, groups: int = 1) -> Tensor:
        """Zeros for the gradient of one of the weights; empty if it is not wanted."""
        return self.like.new_zeros(groups, len(self.weights[index]) * wanted)

    def of_context(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of gains and shifts, ``(units, n)``."""
        return [part.view(-1, self.columns)[:, : self.n] for part in sums]

    def over_tiles(self, work: Callable[..., Any], *tensors: Tensor | None) -> None:
        """Call ``work(program, weights, group, first, last, *arrays)`` for each group of tiles.

        On torch's number of threads; not at all for tensors that have a shape, but no memory.
        """
        if isinstance(self.like, FakeTensor):
            return
        if self.sequence.program is None:
            self.sequence.program = program_of(self.sequence)
        weights = Weights(*(tensor.numpy() for tensor in self.weights))
        arrays = [self.flat(tensor).numpy() for tensor in tensors]
        cuts = [self.tiles * group // self.groups for group in range(self.groups + 1)]

        def part(group: int) -> None:
            work(self.sequence.program, weights, group, cuts[group], cuts[group + 1], *arrays)

        with _announced(self.like.dtype):
            share(part, self.groups)


def _advance(
    sequence: Any, tensors: Tensors, inverse: bool, store: bool, score: Tensor | None
) -> tuple[Tensor, ...]:
    """Result, ladj, score, gradients of gains and shifts, and what is kept to go back."""
    call = _Call(sequence, tensors)
    k, n, empty = call.kernels, call.n, call.like.new_empty
    out, ladj = empty(sequence.rows, n), empty(call.columns)
    kept = empty(call.tiles if store else 0, sequence.kept_rows, TILE)
    new_score = empty(0 if score is None else sequence.rows, n)
    sums = [call.zeros(index, score is not None) for index in (2, 3)]

    def work(p: Any, w: Any, _: int, first: int, last: int, *arrays: Any) -> None:
        *common, score, new_score, d_gains, d_shifts = arrays
        d = Weights(score[:0], score[:0], d_gains, d_shifts)
        k.advance(p, w, d, n, call.columns, first, last, inverse, *common, score, new_score)

    call.over_tiles(work, tensors[0], out, ladj, kept, score, new_score, *sums)
    return out, ladj[:n].clone(), new_score, *call.of_context(sums), kept


def _go_back(
    ctx: Any, tensors: Tensors, out: Tensor, kept: Tensor, d_out: Tensor, d_ladj: Tensor
) -> list[Tensor | None]:
    """Gradients with respect to the field, arrays, sites, gains and shifts."""
    wants = ctx.needs_input_grad[:5]
    call = _Call(ctx.sequence, tensors)
    d_h = call.like.new_empty(ctx.sequence.rows, call.n)
    sums = [call.zeros(index, wants[1 + index], call.groups) for index in (0, 1)]
    sums += [call.zeros(index) for index in (2, 3)]

    def work(p: Any, w: Any, group: int, first: int, last: int, *arrays: Any) -> None:
        *common, d_arrays, d_sites, d_gains, d_shifts = arrays
        d_arrays, d_sites = (t.reshape(call.groups, -1)[group] for t in (d_arrays, d_sites))
        d = Weights(d_arrays, d_sites, d_gains, d_shifts)
        call.kernels.pull_back(p, w, d, call.n, call.columns, first, last, ctx.inverse, *common)

    call.over_tiles(work, out, kept, d_out, call.padded(d_ladj), d_h, *sums)
    found = d_h, *(total.sum(0) for total in sums[:2]), *call.of_context(sums[2:])
    return [gradient if want else None for gradient, want in zip(found, wants, strict=True)]


_known: set[torch.dtype] = set()


@contextmanager
def _announced(dtype: torch.dtype) -> Iterator[None]:
    """Say so if a first call takes time, since it then compiles."""
    line = "pyro_neuralrg compiles its couplings for this kind of pass, once for this machine\n"
    timer = threading.Timer(ANNOUNCED_AFTER, sys.stderr.write, (line,))
    timer.daemon = True
    if dtype not in _known:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _known.add(dtype)
