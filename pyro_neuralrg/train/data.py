# SPDX-License-Identifier: Apache-2.0
"""Train a flow on data by maximum likelihood: the other Kullback-Leibler divergence.

In Pyro's ``SVI`` the data are an observed site of the flow's distribution,
``pyro.sample("x", FlowDistribution(flow), obs=data)``, and the guide has nothing to draw.
:func:`fit_data` does the same with one Adam for all parameters, a schedule and held-out data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number, check_type, copied
from pyro_neuralrg.distributions.flow import (
    FlowDistribution,
    check_flow,
    event_shape,
    flow_dtype_and_device,
)
from pyro_neuralrg.runtime.console import Progress, warn_user
from pyro_neuralrg.runtime.processes import seeded
from pyro_neuralrg.statistics.resampling import sample_mean
from pyro_neuralrg.train.optimizer import JoinedAdam, learning_rate_factor

EVALUATED_AT_ONCE = 1000
"""Fields of a part of the data whose density is computed at once, without a gradient."""


@dataclass(frozen=True, repr=False)
class DataFit:
    """A finished or stopped training on data; all losses in nats per field.

    Attributes:
        flow: the given one, trained in place: with held-out data, at its best step.
        loss: mean of -ln q of each step's batch.
        checked: steps (counted from 1) after which the held-out loss was computed.
        held_out: mean of -ln q over the held-out data, there.
        best: the step with the lowest of these, or the last step without held-out data.
        seconds: wall time.
        stopped: reason of an early end, else None.
    """

    flow: Any
    loss: npt.NDArray[np.float64]
    checked: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.float64]
    best: int
    seconds: float
    stopped: str | None

    def __repr__(self) -> str:
        last = f", loss {self.loss[-1]:.6g} nats" if len(self.loss) else ""
        held_out = f", held out {min(self.held_out):.6g}" if len(self.held_out) else ""
        end = "" if self.stopped is None else f", stopped: {self.stopped}"
        best = f"best step {self.best}{last}{held_out}"
        return f"DataFit({best}, {self.seconds:.0f} s{end})"


def fit_data(
    flow: Any,
    data: Tensor,
    *,
    steps: int = 1000,
    batch: int = 256,
    lr: float = 3e-3,
    clip: float | None = 100.0,
    held_out: Tensor | None = None,
    check_every: int = 50,
    prepare: Callable[[Tensor], Tensor] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> DataFit:
    r"""Train ``flow`` to the distribution of ``data`` by minimising :math:`-E[\ln q(x)]`.

    The mean over the data is their entropy plus KL(pi || q), which punishes what the flow misses;
    the loss of :func:`~pyro_neuralrg.train.fit`, KL(q || pi), what it invents. Adam, with a short
    rise of the learning rate and then half a cosine.

    Args:
        flow: a TransformModule on fields, such as a HierarchicalFlow; trained in place.
        data: fields, ``(n,) + shape``; or whatever ``prepare`` takes, ``(n, ...)``.
        steps: optimiser steps.
        batch: data per step, drawn without replacement until all have been seen.
        lr: largest learning rate.
        clip: largest norm of the gradient; None: unlimited.
        held_out: more data, to choose the best step by.
        check_every: steps from one evaluation of the held-out data to the next.
        prepare: makes fields of a batch of data, anew each time: for instance the logit of grey
            values with noise between two levels.
        seed: of order and noise; None: the global random state goes on.
        progress: show one progress bar.

    Raises:
        TypeError, ValueError: naming the argument; also if the first loss is not finite.

    Warns:
        UserWarning: if training stopped at a loss or gradient that is not finite.

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> result = fit_data(flow, 2 * torch.randn(500, 4, 4), steps=20, progress=False)
        >>> bool(result.loss[-1] < result.loss[0])
        True
    """
    check_flow(flow)
    for name, number in (("steps", steps), ("batch", batch), ("check_every", check_every)):
        check_integer(name, number, 1)
    check_number("lr", lr, "a positive number", above=0)
    if clip is not None:
        check_number("clip", clip, "a positive number or None", above=0)
    for name, values in (("data", data), ("held_out", held_out)):
        if values is not None:
            check_type(name, values, Tensor, "a tensor")
            if values.dim() == 0 or len(values) == 0:
                seen = tuple(values.shape)
                raise ValueError(f"{name} has shape {seen}; accepted: at least one field")
    q, began = FlowDistribution(flow), time.perf_counter()
    losses: list[float] = []
    checks: list[tuple[int, float]] = []
    stopped = None

    def figures() -> str:
        seen = f", held out {checks[-1][1]:.3f}" if checks else ""
        return f"loss {losses[-1]:.3f}{seen}"

    with seeded(seed), Progress(steps, "fit_data", progress) as bar:
        for values in (data, held_out):
            if values is not None:
                _fields(flow, values[:1], prepare)
        optimizer = JoinedAdam([p for p in flow.parameters() if p.requires_grad], lr, clip)
        best = before = optimizer.vector()
        batches = _batches(len(data), min(batch, len(data)))
        for step in range(steps):
            optimizer.learning_rate = lr * learning_rate_factor(step, steps)
            x = _fields(flow, data[next(batches).to(data.device)], prepare)
            loss = -q.log_prob(x).mean()
            gradient = optimizer.gradient(loss)
            value, norm = torch.stack([loss.detach(), gradient.norm()]).tolist()
            if not (math.isfinite(value) and math.isfinite(norm)):
                if not losses:
                    raise ValueError(
                        f"data give a loss of {value} at the first step; accepted: fields where "
                        "the flow's density and its gradient are finite"
                    )
                stopped = f"the loss at step {step} is {value}, the norm of its gradient {norm}"
                optimizer.assign(before)
                warn_user(f"training stopped: {stopped}; the last finite parameters are kept")
                break
            before = optimizer.vector()
            optimizer.step(gradient, norm)
            losses.append(value)
            bar.step(figures)
            if held_out is not None and (step + 1) % check_every == 0:
                found, _ = cross_entropy(flow, held_out, prepare)
                if all(found < earlier for _, earlier in checks):
                    best = optimizer.vector()
                checks.append((step + 1, found))
        if checks:
            optimizer.assign(best)
    if hasattr(flow, "clear_cache"):
        flow.clear_cache()
    return DataFit(
        flow=flow,
        loss=np.array(losses),
        checked=np.array([step for step, _ in checks], dtype=np.int64),
        held_out=np.array([value for _, value in checks], dtype=np.float64),
        best=min(checks, key=lambda row: row[1])[0] if checks else len(losses),
        seconds=time.perf_counter() - began,
        stopped=stopped,
    )


def _batches(number: int, batch: int) -> Iterator[Tensor]:
    """Indices of batches, without replacement until all of an epoch have been seen."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        if len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(number)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def cross_entropy(
    flow: Any, data: Tensor, prepare: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """Mean of -ln q(x) over data in nats per field, and its standard error.

    The arguments are those of :func:`fit_data`; a ValueError says if the data do not fit the flow.

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> value, error = cross_entropy(hierarchical_flow((2,)), torch.zeros(3, 2))
        >>> round(error, 4)
        0.0
    """
    q, parts = FlowDistribution(flow), []
    with torch.no_grad():
        for part in data.split(EVALUATED_AT_ONCE):
            parts.append(-q.log_prob(_fields(flow, part, prepare)).double().cpu())
    found = sample_mean(torch.cat(parts))
    return found.value, found.standard_error


def _fields(flow: Any, data: Tensor, prepare: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The fields to be learned, in the dtype and on the device of the flow."""
    fields = data if prepare is None else prepare(copied(data))
    shape = event_shape(flow)
    if not fields.is_floating_point() or tuple(fields.shape[1:]) != shape:
        raise ValueError(
            f"data are {fields.dtype} fields of shape {tuple(fields.shape[1:])}; accepted: "
            f"floating ones of the flow's shape, {shape}, as they are or after prepare"
        )
    dtype, device = flow_dtype_and_device(flow)
    return fields.to(device, dtype)
