# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What one coupling does in plain torch, eagerly or through ``torch.compile`` (on accelerators)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.transforms.networks import Bends, NetworkOptions, evaluate

SHAPES = 64
"""How many shapes may be compiled: scales, times the batch sizes that are used."""


class Operations(NamedTuple):
    """The two functions that all couplings call; see below."""

    couple: Callable[..., tuple[Tensor, Tensor]]
    couple_with_score: Callable[..., tuple[Tensor, ...]]


def couple(
    options: NetworkOptions,
    arrays: Sequence[Tensor],
    bends: Bends,
    x: Tensor,
    v: Tensor,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The moved sites ``(moved, cells, n)``, and the logarithm of the slope for each."""
    maps = evaluate(options, arrays, bends, x, v.shape)
    return maps.inverse(v) if inverse else maps.forward(v)


def couple_with_score(
    options: NetworkOptions,
    arrays: Sequence[Tensor],
    bends: Bends,
    x: Tensor,
    v: Tensor,
    score: Tensor,
    live: Tensor | None,
    want_context: bool,
) -> tuple[Tensor, ...]:
    r"""The same, and how the score goes on.

    With :math:`s_v' = (s_v - \partial_v \ln f') / f'` the score of what is seen falls by
    :math:`\partial_x \ln f' + s_v' \cdot \partial_x f` (Vaitl, Winkler, Richter, Kessel, "Fast and
    unified path gradient estimators for normalizing flows", ICLR 2024).

    Returns:
        Values and ln slope; what is subtracted from the score of x; the new score of v; if the
        context is asked for, the same gradient with respect to gains and shifts. All but the values
        are to be taken as constants.
    """
    values, log_slope = couple(options, arrays, bends, x, v, False)
    ones = torch.ones_like(log_slope)
    (curvature,) = torch.autograd.grad(
        log_slope, v, ones, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    moved, ones = _live((score - curvature) * (-log_slope.detach()).exp(), ones, live)
    wanted = [x]
    if want_context:
        wanted += [part for part in (bends.gains, bends.shifts) if part is not None]
    pulled = torch.autograd.grad([log_slope, values], wanted, [ones, moved], retain_graph=True)
    return values, log_slope.detach(), pulled[0], moved, *pulled[1:]


def _couple_with_score_in_one_graph(
    options: NetworkOptions,
    arrays: Sequence[Tensor],
    bends: Bends,
    x: Tensor,
    v: Tensor,
    score: Tensor,
    live: Tensor | None,
    want_context: bool,
) -> tuple[Tensor, ...]:
    """The same in terms that can be compiled, a quarter slower if they are not."""

    def of(x: Tensor, v: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        here = Bends(bends.sites, *context) if context else bends
        return couple(options, arrays, here, x, v, False)

    wanted = (bends.gains, bends.shifts) if want_context else ()
    vjp: Any = torch.func.vjp  # its annotation knows functions of one result only
    (values, log_slope), pull = vjp(of, x, v, *wanted)
    ones = torch.ones_like(log_slope)
    curvature = pull((torch.zeros_like(values), ones))[1]
    moved, ones = _live((score - curvature) * (-log_slope).exp(), ones, live)
    pulled, _, *more = (part.detach() for part in pull((moved, ones)))
    return values, log_slope.detach(), pulled, moved.detach(), *more


def _live(moved: Tensor, ones: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """Without the sites that are not there."""
    return (moved, ones) if live is None else (moved * live, ones * live)


EAGER = Operations(couple, couple_with_score)
_active: ContextVar[Operations] = ContextVar("operations", default=EAGER)


def active_operations() -> Operations:
    """The functions to call here and now."""
    return _active.get()


@contextmanager
def compiled_operations() -> Iterator[None]:
    """Let the couplings' plain torch run through ``torch.compile`` meanwhile, in this thread.

    On a CPU couplings have a faster way of their own, :mod:`~pyro_neuralrg.compiled`. Where nothing
    can be compiled, all goes on as it is.

    Warns:
        UserWarning: once, if nothing can be compiled, with the reason.
    """
    failed: list[Exception] = []
    operations = Operations(
        _compiled(couple, couple, failed),
        _compiled(_couple_with_score_in_one_graph, couple_with_score, failed),
    )
    try:  # as many shapes as we may have, a setting of the process
        limit: Any = torch._dynamo.config.patch(recompile_limit=SHAPES)
    except Exception:  # no compiler for this Python, or another name of the setting
        limit = nullcontext()
    token = _active.set(operations)
    try:
        with limit:
            yield
    finally:
        _active.reset(token)


def _compiled(
    function: Callable[..., Any], plain: Callable[..., Any], failed: list[Exception]
) -> Callable[..., Any]:
    """``function`` compiled, or ``plain`` once anything has failed."""
    fast: Any = None

    def call(*arguments: Any) -> Any:
        nonlocal fast
        if failed:
            return plain(*arguments)
        try:
            with warnings.catch_warnings():  # the compiler's, of itself
                warnings.simplefilter("ignore")
                fast = fast or torch.compile(function, dynamic=False)
                return fast(*arguments)
        except Exception as error:  # whatever a compiler may raise
            found = plain(*arguments)  # which raises what is not the compiler's
            failed.append(error)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            warnings.warn(f"torch.compile fails here ({reason}); going on without", stacklevel=2)
            return found

    return call
