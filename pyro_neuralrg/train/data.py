# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Train a flow on data by maximum likelihood: the other Kullback-Leibler divergence.

In Pyro's ``SVI`` this takes no loss of its own: the data are an observed site of the flow's
distribution, the guide has nothing to draw, and minus the ELBO is minus the log-likelihood. A plate
with a subsample makes batches of the data; its loss is that of all data, in nats. :func:`fit_data`
does the same with one Adam for all parameters, a schedule and held-out data.

Example:
    >>> import pyro
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro_neuralrg.transforms import hierarchical_flow
    >>> flow, data = hierarchical_flow((4, 4)), 2 * torch.randn(500, 4, 4)
    >>> def model(data):
    ...     pyro.module("flow", flow)
    ...     with pyro.plate("data", len(data), subsample_size=100) as chosen:
    ...         pyro.sample("x", FlowDistribution(flow), obs=data[chosen])
    >>> def guide(data):
    ...     pass
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    >>> per_field = [svi.step(data) / len(data) for _ in range(20)]  # -ln q, nats
    >>> per_field[-1] < per_field[0]
    True
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.distributions.flow import (
    FlowDistribution,
    check_flow,
    event_shape,
    flow_dtype_and_device,
)
from pyro_neuralrg.runtime.progress import Progress
from pyro_neuralrg.runtime.seeds import seeded
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.train.schedule import learning_rate_factor

LEARNING_RATE = 3e-3
EVALUATED_AT_ONCE = 1000


@dataclass(frozen=True)
class DataFit:
    """A finished or stopped training on data; all losses in nats per field.

    Attributes:
        flow: what was given and is now trained, in place: with held-out data, at its best step.
        loss: mean of -ln q of each step's batch.
        checked: steps (counted from 1) after which the held-out data were looked at.
        held_out: mean of -ln q over them, there.
        best: the step with the lowest of these, or the last step without held-out data.
        seconds: wall time.
        stopped: why the training ended early, else None.
    """

    flow: Any
    loss: npt.NDArray[np.float64]
    checked: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.float64]
    best: int
    seconds: float
    stopped: str | None


def fit_data(
    flow: Any,
    data: Tensor,
    *,
    steps: int = 1000,
    batch: int = 256,
    lr: float = LEARNING_RATE,
    clip: float | None = 100.0,
    held_out: Tensor | None = None,
    check_every: int = 50,
    prepare: Callable[[Tensor], Tensor] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> DataFit:
    r"""Train ``flow`` to the distribution of ``data`` by minimising :math:`-E[\ln q(x)]`.

    The mean over the data is their entropy plus KL(pi || q), which punishes what the flow misses;
    the loss of :func:`~pyro_neuralrg.train.fit`, KL(q || pi), what it invents. Of samples of a
    target, :func:`~pyro_neuralrg.free_energy.bounds` turns the result into a bound of the free
    energy.
    Adam, with a short rise of the learning rate and then half a cosine.

    Args:
        flow: a TransformModule on fields, such as a HierarchicalFlow; trained in place.
        data: fields, ``(n,) + shape``; or whatever ``prepare`` takes, ``(n, ...)``.
        steps: optimiser steps.
        batch: data per step, drawn without replacement until all have been seen.
        lr: largest learning rate.
        clip: largest norm of the gradient; None: unlimited.
        held_out: more data, to choose the best step by.
        check_every: steps between two looks at the held-out data.
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
    for name, value in (("steps", steps), ("batch", batch), ("check_every", check_every)):
        check_integer(name, value, 1)
    for name, rate in (("lr", lr), ("clip", clip)):
        if rate is not None:
            check_number(name, rate, "a positive number or None", above=0)
    with seeded(seed):
        training = _DataTraining(flow, data, held_out, prepare, min(batch, len(data)))
        training.optimizer = JoinedAdam([p for p in flow.parameters() if p.requires_grad], lr, clip)
        return training.run(steps, lr, check_every, progress)


def cross_entropy(
    flow: Any, data: Tensor, prepare: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """Mean of -ln q(x) over data in nats per field, and its standard error.

    Args:
        flow: a TransformModule on fields.
        data: as for :func:`fit_data`.
        prepare: likewise.

    Raises:
        ValueError: if the data do not fit the flow.

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
    losses = torch.cat(parts)
    spread = float(losses.std()) if len(losses) > 1 else math.nan
    return float(losses.mean()), spread / math.sqrt(len(losses))


class _DataTraining:
    """The loop over the steps, with what it needs and what it found."""

    optimizer: JoinedAdam

    def __init__(
        self,
        flow: Any,
        data: Tensor,
        held_out: Tensor | None,
        prepare: Callable[[Tensor], Tensor] | None,
        batch: int,
    ) -> None:
        self.flow, self.data, self.held_out = flow, data, held_out
        self.prepare, self.batch = prepare, batch
        self.q = FlowDistribution(flow)
        self.waiting = torch.empty(0, dtype=torch.int64)
        self.loss: list[float] = []
        self.checks: list[tuple[int, float]] = []
        self.best: Tensor | None = None
        self.before: Tensor | None = None
        self.stopped: str | None = None
        for name, values in (("data", data), ("held_out", held_out)):
            if values is not None:
                _check_data(name, values)
                _fields(flow, values[:1], prepare)

    def run(self, steps: int, lr: float, check_every: int, progress: bool) -> DataFit:
        """Take the steps, until the end or a reason to stop."""
        began = time.perf_counter()
        with Progress(steps, "fit_data", progress) as bar:
            for step in range(steps):
                self.optimizer.learning_rate = lr * learning_rate_factor(step, steps)
                if not self._step(step):
                    break
                bar.step(self._figures)
                if self.held_out is not None and (step + 1) % check_every == 0:
                    self._check(step + 1)
        if self.best is not None:
            self.optimizer.assign(self.best)
        clear_cache = getattr(self.flow, "clear_cache", None)
        if clear_cache is not None:
            clear_cache()
        checked, held_out = ([row[i] for row in self.checks] for i in (0, 1))
        return DataFit(
            flow=self.flow,
            loss=np.array(self.loss),
            checked=np.array(checked, dtype=np.int64),
            held_out=np.array(held_out, dtype=np.float64),
            best=min(self.checks, key=lambda row: row[1])[0] if self.checks else len(self.loss),
            seconds=time.perf_counter() - began,
            stopped=self.stopped,
        )

    def _figures(self) -> str:
        held_out = f", held out {self.checks[-1][1]:.3f}" if self.checks else ""
        return f"loss {self.loss[-1]:.3f}{held_out}"

    def _step(self, step: int) -> bool:
        """One step of Adam; False if it had to stop."""
        x = _fields(self.flow, self.data[self._draw()], self.prepare)
        loss = -self.q.log_prob(x).mean()
        gradient = self.optimizer.gradient(loss)
        value, norm = torch.stack([loss.detach(), gradient.norm()]).tolist()
        if math.isfinite(value) and math.isfinite(norm):
            self.before = self.optimizer.vector()
            self.optimizer.step(gradient, norm)
            self.loss.append(value)
            return True
        if not self.loss:
            raise ValueError(
                f"data give a loss of {value} at the first step; accepted: fields where the flow's "
                "density and its gradient are finite"
            )
        self.stopped = f"the gradient at step {step} is not finite"
        if not math.isfinite(value):
            self.stopped = f"the loss at step {step} is {value}"
            assert self.before is not None
            self.optimizer.assign(self.before)
        warnings.warn(
            f"training stopped: {self.stopped}; the last finite parameters are kept", stacklevel=4
        )
        return False

    def _draw(self) -> Tensor:
        """Indices of the next batch."""
        if len(self.waiting) < self.batch:
            self.waiting = torch.cat([self.waiting, torch.randperm(len(self.data))])
        chosen, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
        return chosen.to(self.data.device)

    def _check(self, step: int) -> None:
        """Look at the held-out data; remember the parameters if they are the best."""
        assert self.held_out is not None
        value, _ = cross_entropy(self.flow, self.held_out, self.prepare)
        if all(value < earlier for _, earlier in self.checks):
            self.best = self.optimizer.vector()
        self.checks.append((step, value))


def _check_data(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is a {type(values).__name__}; accepted: a tensor")
    if values.dim() == 0 or len(values) == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; accepted: at least one field")


def _fields(flow: Any, data: Tensor, prepare: Callable[[Tensor], Tensor] | None) -> Tensor:
    """What the flow is to learn, in its dtype and on its device."""
    fields = data if prepare is None else prepare(data)
    shape = event_shape(flow)
    if not fields.is_floating_point() or tuple(fields.shape[1:]) != shape:
        raise ValueError(
            f"data are {fields.dtype} fields of shape {tuple(fields.shape[1:])}; accepted: "
            f"floating ones of the flow's shape, {shape}, as they are or after prepare"
        )
    dtype, device = flow_dtype_and_device(flow)
    return fields.to(device, dtype)
