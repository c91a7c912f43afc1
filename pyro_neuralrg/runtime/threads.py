# SPDX-License-Identifier: Apache-2.0
"""Threads and autograd functions of our own, in the place of torch's operations.

The threads of torch (OpenMP) meet at a barrier after each of its operations, where they spin for a
core that another process may have: thousands of small operations then take several times as long as
on one thread. These take up parts of some milliseconds, one after the other, and wait only for the
last; a core that is busy elsewhere takes fewer parts.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

SHARED_ENTRIES = 2**15
"""Entries of a tensor from which on it is worth while to share its fields among threads."""
SHARED_FIELDS = 64
"""Fields of a part, whatever the number of threads, so that it changes no bit of a result."""

_lock = threading.Lock()
_held: list[int] = []
"""Torch's number of threads, once for each :func:`own_threads` that is under way."""


def number_of_threads() -> int:
    """Number of threads that torch has, or had when :func:`own_threads` began."""
    return _held[0] if _held else torch.get_num_threads()


@contextmanager
def own_threads() -> Iterator[None]:
    """Leave torch's number of threads to :func:`share` meanwhile, and torch itself one."""
    with _lock:
        _held.append(number_of_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:  # of several threads of Python the last to leave puts the number back
            number = _held.pop()
            if not _held:
                torch.set_num_threads(number)


def share(work: Callable[[int], None], number: int) -> None:
    """Call ``work(part)`` for all parts, each on whichever thread is free."""
    parts = iter(range(number))
    torch_has_one = bool(_held)

    def take() -> None:
        for part in parts:  # one iterator for all threads
            work(part)

    def help_along() -> None:
        if torch_has_one:  # in this thread, too
            torch.set_num_threads(1)
        take()

    others = [_pool().submit(help_along) for _ in range(min(number_of_threads(), number) - 1)]
    try:
        take()
    finally:
        begun = [other for other in others if not other.cancel()]
        for other in begun:
            other.exception()  # waits
    for other in begun:
        other.result()


def by_fields(function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """``function(h)``, which treats the entries of the first dimension alike, in parts of them.

    Without a graph. Each part runs on one thread: those of MKL change the last digits of a result.
    All at once inside the transforms of torch.func, whose state belongs to one thread.
    """
    if h.device.type != "cpu" or torch._C._functorch.maybe_current_level() is not None:
        return function(h)
    with own_threads():
        if h.numel() < SHARED_ENTRIES:
            return function(h)
        pieces = h.detach().split(SHARED_FIELDS)
        found = list(pieces)

        @torch.no_grad()
        def work(part: int) -> None:
            found[part] = function(pieces[part])

        share(work, len(pieces))
    return torch.cat(found)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads are started when first needed, and once."""
    if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(os.cpu_count())


def takes_own_functions() -> bool:
    """True if functions with no more than a backward pass and a rule for ``vmap`` can be used.

    Not under forward-mode derivatives, ``torch.compile`` or other transforms of ``torch.func``.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return all(one.key() == torch._C._functorch.TransformType.Vmap for one in stack)


def remember_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``inspect.signature`` find the signature at once.

    ``torch.autograd.Function.apply`` asks for that of ``forward`` in each call: three hundredths of
    a training step at 8 x 8.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
