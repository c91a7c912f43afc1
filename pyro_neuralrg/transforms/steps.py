# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What one coupling does, eagerly or through ``torch.compile``.

All couplings of a scale have the same shapes, so that one compiled function serves them all, and a
flow of any depth is compiled in seconds. On two cores with AVX-512, a training step of 256 fields
with path gradients takes with one thread, compiled, 33 ms (else 54) at 8 x 8, 95 ms (145) at
16 x 16 and 357 ms (654) at 32 x 32; with two threads 69 ms (116) at 16 x 16. As one graph the flow
took 70 s to compile at 8 x 8, and was no faster.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.transforms.elementwise import Elementwise

__all__ = ["Network", "compiled_steps", "has_compiler", "present_steps"]

Network = Callable[[Tensor, Tensor | None], Elementwise]
SHAPES = 64
"""How many shapes may be compiled: scales, times the batch sizes that are used."""


class Steps(NamedTuple):
    """The two functions that all couplings call.

    Attributes:
        couple: from a network, u, v and a context to f_u(v) and ln f_u'(v).
        couple_with_score: likewise with the score of v, to these and what is to be added to the
            score of u, and the new score of v; if asked also the gradient of ln q with respect to
            the context, which must require it; all but the values are detached.
    """

    couple: Callable[..., tuple[Tensor, Tensor]]
    couple_with_score: Callable[..., tuple[Tensor, ...]]


def couple(network: Network, u: Tensor, v: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The moved sites, and the logarithm of the slope for each."""
    return network(u, context).generate(v)


class _Here(torch.autograd.Function):
    """A context as one coupling sees it: what comes before ``place`` has no part in its gradient.

    In the graph it stands behind ``place``, where autograd need not look through all before it.
    """

    @staticmethod
    def forward(ctx: Any, context: Tensor, place: Tensor) -> Tensor:
        """The context itself."""
        return context.view_as(context)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of the context alone."""
        return gradients[0], None


def couple_with_score(
    network: Network, u: Tensor, v: Tensor, context: Tensor | None, score: Tensor, asked: bool
) -> tuple[Tensor, ...]:
    r"""The same, and how the score goes on.

    A path gradient needs no derivative but those of the values; the others are detached.

    :math:`s_v' = (s_v - \partial_v \ln f') / f'`, and with this :math:`s_u' = s_u - \partial_u \ln
    f' - s_v' \cdot \partial_u f`. Likewise for the context, which acts as u does.
    """
    if asked and context is not None:
        context = _Here.apply(context, u)
    values, log_slope = couple(network, u, v, context)
    ones = torch.ones_like(log_slope)
    (bent,) = torch.autograd.grad(
        log_slope, v, ones, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    moved = (score - bent) * (-log_slope.detach()).exp()
    wanted = [u, context] if asked and context is not None else [u]
    pulled, *more = torch.autograd.grad([log_slope, values], wanted, [ones, moved], True)
    return values, log_slope.detach(), -pulled, moved, *(-pull for pull in more)


def _couple_with_score_in_one_graph(
    network: Network, u: Tensor, v: Tensor, context: Tensor | None, score: Tensor, asked: bool
) -> tuple[Tensor, ...]:
    """The same in terms that can be compiled, a quarter slower if they are not."""
    wanted = (context,) if asked and context is not None else ()
    vjp: Any = torch.func.vjp  # its annotation knows functions of one result only
    (values, log_slope), pull = vjp(
        lambda u, v, *of_context: couple(network, u, v, *(of_context or (context,))), u, v, *wanted
    )
    ones = torch.ones_like(log_slope)
    bent = pull((torch.zeros_like(values), ones))[1]
    moved = (score - bent) * (-log_slope).exp()
    pulled, _, *more = pull((moved, ones))
    detached = [(-pull_of).detach() for pull_of in (pulled, *more)]
    return values, log_slope.detach(), detached[0], moved.detach(), *detached[1:]


EAGER = Steps(couple, couple_with_score)
_present: ContextVar[Steps] = ContextVar("steps", default=EAGER)


def present_steps() -> Steps:
    """The functions to call here and now."""
    return _present.get()


def has_compiler() -> bool:
    """Whether the system has a C++ compiler, which ``torch.compile`` needs on a CPU."""
    named = [os.environ["CXX"]] if os.environ.get("CXX") else []
    return any(map(shutil.which, [*named, "c++", "g++", "clang++", "cl"]))


@contextmanager
def compiled_steps() -> Iterator[None]:
    """Let all couplings run through ``torch.compile`` meanwhile, those of this thread.

    Where nothing can be compiled, all goes on as it is.

    Warns:
        UserWarning: once, if nothing can be compiled, with the reason.
    """
    guard = _Guard()
    steps = Steps(
        guard.compiled(couple, couple),
        guard.compiled(_couple_with_score_in_one_graph, couple_with_score),
    )
    token = _present.set(steps)
    try:
        with guard.limit():
            yield
    finally:
        _present.reset(token)


class _Guard:
    """Compiled functions, until the first of them fails; then the plain ones."""

    def __init__(self) -> None:
        self.failed = False

    def limit(self) -> Any:
        """As many shapes as we may have (a setting of the process), where torch has the setting."""
        try:
            return torch._dynamo.config.patch(recompile_limit=SHAPES)
        except Exception:  # no compiler for this Python, or another name of the setting
            return nullcontext()

    def compiled(self, function: Callable[..., Any], plain: Callable[..., Any]) -> Any:
        """``function`` compiled, or else ``plain``."""
        fast: Any = None

        def call(*arguments: Any) -> Any:
            nonlocal fast
            if self.failed:
                return plain(*arguments)
            try:
                with warnings.catch_warnings():  # the compiler's, of itself
                    warnings.simplefilter("ignore")
                    fast = fast or torch.compile(function, dynamic=False)
                    return fast(*arguments)
            except Exception as error:  # whatever a compiler may raise
                found = plain(*arguments)  # which raises what is not the compiler's
                self.failed = True
                lines = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(
                    f"torch.compile fails here ({lines[0][:200]}); going on without", stacklevel=2
                )
                return found

        return call
