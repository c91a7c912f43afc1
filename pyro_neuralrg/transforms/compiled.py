# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Real NVP blocks through compiled loops, as one node of autograd's graph, where there is numba.

A step that runs through :mod:`~pyro_neuralrg.transforms.kernels` keeps, of everything a stack of
couplings computes, only the half that each coupling overwrites: its memory is that of a few fields.
Results and gradients are those of the plain path up to rounding. The plain path serves everything
else: few columns (not worth the seconds of compilation), accelerators, torch.func's transforms,
forward-mode derivatives, ``torch.compile`` and derivatives of gradients.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from pyro_neuralrg.transforms.kernels import Kernels, Sizes

__all__ = ["MIN_COLUMNS", "Stack", "couple", "is_worthwhile"]

MIN_COLUMNS = 512
PIECES_PER_THREAD = 2  # tenths of a millisecond of work; waking a thread takes hundredths
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class Stack(NamedTuple):
    """What is fixed about a stack of couplings whose halves are exchanged from one to the next.

    Attributes:
        halves: the sites that the first coupling holds fixed, and those that it moves.
        width: units of each hidden layer of its networks.
        depth: number of their hidden layers.
    """

    halves: tuple[list[int], list[int]]
    width: int
    depth: int


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def is_worthwhile(h: Tensor) -> bool:
    """Whether the compiled loops can and should serve ``h``, of shape ``(size, n)``."""
    return (
        h.dim() == 2
        and h.shape[-1] >= MIN_COLUMNS
        and h.device.type == "cpu"
        and h.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad.unpack_dual(h).tangent is None
        and _has_numba()
    )


def couple(
    h: Tensor,
    weights: Tensor,
    stack: Stack,
    generate: bool,
    plain: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Run a stack of couplings, z to x if ``generate``, else x to z.

    Args:
        h: ``(size, n)``.
        weights: one row for each coupling, in h's dtype, laid out as
            :class:`~pyro_neuralrg.transforms.kernels.Sizes` says.
        stack: the rest about them.
        generate: the direction.
        plain: the same function of ``(h, weights)`` in torch's own operations, for derivatives of
            gradients.

    Returns:
        The result, ``(size, n)``, and ``ladj = ln |det dx/dz|``, ``(n,)``.
    """
    return _Couple.apply(h, weights, stack, generate, plain)


class _Couple(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weights: Tensor, stack: Stack, generate: bool, plain: Any
    ) -> tuple[Tensor, Tensor]:
        run = _Run(stack, weights, generate)
        states = run.start(h)
        ladj = run.advance(states)
        ctx.run, ctx.plain = run, plain
        ctx.save_for_backward(h, weights, states)
        return run.join(states[:, -2:], run.end, h.shape[1]), ladj.flatten()[: h.shape[1]].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        h, weights, states = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            with torch.enable_grad():
                inputs = [
                    t if t.requires_grad else t.detach().requires_grad_() for t in (h, weights)
                ]
                results = ctx.plain(*inputs)
            found = torch.autograd.grad(
                results,
                inputs,
                grads,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            return *found, None, None, None
        return *ctx.run.pull_back(states, *grads), None, None, None


class _Run:
    """One pass: in which order the couplings act, and where the halves lie."""

    def __init__(self, stack: Stack, weights: Tensor, generate: bool) -> None:
        from pyro_neuralrg.transforms.kernels import Sizes, build_kernels

        self.sizes: Sizes = Sizes(len(stack.halves[0]), stack.width, stack.depth)
        self.kernels: Kernels = build_kernels(DTYPES[weights.dtype], self.sizes)
        self.weights = weights.detach().numpy()
        self.generate = generate
        count = len(weights)
        self.order = np.arange(count) if generate else np.arange(count)[::-1].copy()
        held = stack.halves[self.order[0] % 2]
        moved = stack.halves[1 - self.order[0] % 2]
        self.begin = torch.tensor([*moved, *held])
        self.end = self.begin if count % 2 == 0 else torch.tensor([*held, *moved])

    def split(self, h: Tensor, sites: Tensor, out: Tensor) -> None:
        """Write the halves of ``(size, n)`` into ``out``, ``(pieces, 2, half * LANES)``.

        Zeros fill up the last piece.
        """
        pieces = out.shape[0]
        halves = out.view(pieces, len(sites), -1)
        lanes = halves.shape[-1]
        full = h.shape[1] // lanes
        rows = h.index_select(0, sites)
        halves[:full] = rows[:, : full * lanes].unflatten(1, (full, lanes)).movedim(1, 0)
        if full < pieces:
            halves[full] = torch.nn.functional.pad(
                rows[:, full * lanes :], (0, pieces * lanes - h.shape[1])
            )

    def join(self, states: Tensor, sites: Tensor, columns: int) -> Tensor:
        """Undo :meth:`split`."""
        rows = states.unflatten(-1, (self.sizes.half, -1)).flatten(1, 2).movedim(0, 1)
        return rows.flatten(1)[:, :columns].index_select(0, sites.argsort())

    def start(self, h: Tensor) -> Tensor:
        """New states, the first two filled."""
        from pyro_neuralrg.transforms.kernel_layers import LANES

        pieces = -(-h.shape[1] // LANES)
        states = h.new_empty(pieces, len(self.order) + 2, self.sizes.half * LANES)
        self.split(h.detach(), self.begin, states[:, :2])
        return states

    def advance(self, states: Tensor) -> Tensor:
        """Fill the states; return ladj (pieces, LANES)."""
        ladj = states.new_empty(states.shape[0], states.shape[-1] // self.sizes.half)
        arrays = states.numpy(), ladj.numpy()
        _in_threads(
            lambda part: self.kernels.advance(
                self.weights, self.order, self.generate, *(array[part] for array in arrays)
            ),
            states.shape[0],
        )
        return ladj

    def pull_back(self, states: Tensor, grad_h: Tensor, grad_ladj: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the input (size, n) and of the weights."""
        columns, pieces = grad_h.shape[1], states.shape[0]
        grads = states.new_empty(pieces, 2, states.shape[-1])
        self.split(grad_h, self.end, grads)
        padded = states.new_zeros(pieces, states.shape[-1] // self.sizes.half)
        padded.view(-1)[:columns] = grad_ladj
        arrays = states.numpy(), padded.numpy(), grads.numpy()

        def pull(part: slice) -> Any:
            sums = np.zeros_like(self.weights)
            pieces = (array[part] for array in arrays)
            self.kernels.pull_back(self.weights, self.order, self.generate, *pieces, sums)
            return sums

        sums = sum(_in_threads(pull, pieces))
        if len(self.order) % 2:
            grads = grads.flip(1)
        return self.join(grads, self.begin, columns), torch.from_numpy(sums)


def _in_threads(work: Callable[[slice], Any], pieces: int) -> list[Any]:
    """Share the pieces among torch's number of threads; the kernels let go of Python's lock."""
    count = max(1, min(torch.get_num_threads(), pieces // PIECES_PER_THREAD))
    cuts = [pieces * index // count for index in range(count + 1)]
    mine, *others = map(slice, cuts, cuts[1:])
    if not others:
        return [work(mine)]
    waiting = [_pool().submit(work, part) for part in others]
    return [work(mine), *(future.result() for future in waiting)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads are started when first needed, and once."""
    if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(os.cpu_count())
