# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The loop over the steps of a training, on one process or several, and where it stands."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.runtime.interrupts import HELD, deferred_interrupts
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.runtime.progress import Progress
from pyro_neuralrg.runtime.threads import own_threads
from pyro_neuralrg.statistics.weights import kish_fraction
from pyro_neuralrg.train.best import Best
from pyro_neuralrg.train.history import TrainingStep
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.train.schedule import Anneal, learning_rate_factor, temperature_factor
from pyro_neuralrg.transforms.compilation import compiled_operations

__all__ = ["Keeper", "Training"]

MOST_DIVERGENCES = 10
"""After one more a training ends: its rate is a thousandth of what was asked for."""

CHECKED_SAMPLES = 2000
"""Of each set of parameters that may be worse than those of the beginning."""

CHECKED_AT_ONCE = 8
"""Batches: without a gradient they take less memory than one does with it."""

WORSE_ERRORS = 2.0
"""Standard errors by which the loss is then higher."""

CLEARLY_BETTER_ERRORS = 4.0
"""Standard errors by which the loss of one batch is lower where no more are needed to tell."""


class Keeper(Protocol):
    """What writes a training down, now and then and in the end.

    See :class:`~pyro_neuralrg.train.checkpoints.Checkpoints` and
    :class:`~pyro_neuralrg.train.history_file.HistoryFile`.
    """

    def is_due(self, step: int) -> bool:
        """Whether it is time, with ``step`` steps taken."""

    def keep(self, training: Training) -> None:
        """Keep the training; called by all processes."""


class Measured(NamedTuple):
    """A loss at the final temperature, infinite if it is not finite.

    Attributes:
        loss: mean of the samples, in nats.
        spread: their standard deviation.
        number: how many there are.
    """

    loss: float
    spread: float
    number: int

    @property
    def error(self) -> float:
        """Standard error of the loss."""
        return self.spread / math.sqrt(self.number)

    def is_above(self, other: Measured, errors: float) -> bool:
        """Whether it is higher by more than so many standard errors."""
        return self.loss > other.loss + errors * math.hypot(self.error, other.error)


class Training:
    """The loop over the steps, with what it needs and what it found.

    A step waits for an accelerator once, for its log-weights and the norm of its gradient together:
    whether they are finite decides whether the step is taken, and callbacks get numbers.

    Args:
        target: a LatticePotential, a PotentialFamily or a Pyro model.
        guide: what draws from the flow.
        elbo: the loss of this process's samples.
        optimizer: of all parameters; its gradients are averaged over ``world``.
        steps: length of the schedule.
        anneal: cooling, if any.
        average: fraction of the steps, at the end, whose parameters are averaged.
        path_after_cooling: use path gradients once the target has cooled.
        world: the processes that train together, each with an equal part of the batch.
        warmup: steps of the warm-up of the rate; None: see
            :func:`~pyro_neuralrg.train.schedule.learning_rate_factor`.
        compiles: take the steps through ``torch.compile``.

    Attributes:
        step: number of the next step.
        records: of the steps taken.
        seconds: that they took.
        interrupted: a signal ended the training.
        stopped: why it ended early, else None.
        divergences: times that it went back to its best parameters.
    """

    def __init__(
        self,
        target: Any,
        guide: Callable[..., Any],
        elbo: PDD,
        optimizer: JoinedAdam,
        *,
        steps: int,
        anneal: Anneal | None,
        average: float,
        path_after_cooling: bool,
        world: Processes,
        warmup: int | None = None,
        compiles: bool = False,
    ) -> None:
        self.target = target
        self.guide = guide
        self.elbo = elbo
        self.optimizer = optimizer
        self.steps = steps
        self.anneal = anneal
        self.path_after_cooling = path_after_cooling
        self.warmup = warmup
        self.compiles = compiles
        self.average_from = steps - round(average * steps)
        self.largest_rate = optimizer.learning_rate
        self.world = world
        self.family = target if isinstance(target, PotentialFamily) else None
        self.factor, self.model = 1.0, self._model(1.0)
        self.start = optimizer.vector()
        self.first: Measured | None = None
        self.best = Best(self.start)
        self.divergences = self.begun = 0
        self.step = 0
        self.records: list[TrainingStep] = []
        self.average: Tensor | None = None
        self.averaged = 0
        self.interrupted = False
        self.stopped: str | None = None
        self.seconds = 0.0

    def run(
        self,
        progress: Progress,
        callback: Callable[[TrainingStep], Any] | None = None,
        keepers: Sequence[Keeper] = (),
    ) -> None:
        """Take the steps that are left, until the end or a reason to stop."""
        begin = time.perf_counter() - self.seconds
        held = HELD if keepers or self.world.size > 1 else ()
        try:
            with deferred_interrupts(held) as pressed:
                if self.first is None:
                    self.first = self._measure(self.elbo.num_particles * self.world.size)
                    self._begin_record()
                with self._threads(), compiled_operations() if self.compiles else nullcontext():
                    while self.step < self.steps and self.stopped is None:
                        if self._take_step(begin):
                            progress.step(partial(_figures, self.records[-1]))
                            self._after_step(pressed, callback, keepers)
        except KeyboardInterrupt:
            self._interrupt()
        with deferred_interrupts() as pressed:
            self.seconds = time.perf_counter() - begin
            self._finish()
        self.interrupted = self.interrupted or bool(pressed)

    def try_step(self, batch: int) -> None:
        """Compute the gradient of so many samples, by path gradients if any step has them."""
        elbo = self.elbo
        before = elbo.num_particles, elbo.path_gradient
        elbo.num_particles = batch
        elbo.path_gradient = elbo.path_gradient or self.path_after_cooling
        try:
            self.optimizer.gradient(self._loss(self.model))
        finally:
            elbo.num_particles, elbo.path_gradient = before
            elbo.log_weights = None

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands between two steps, as tensors and numbers."""
        return {
            "step": self.step,
            "parameters": self.optimizer.vector(),
            "optimizer": self.optimizer.state_dict(),
            "start": self.start,
            "first": self.first and tuple(self.first),
            "best": self.best.state_dict(),
            "factor": self.factor,
            "divergences": self.divergences,
            "begun": self.begun,
            "average": self.average,
            "averaged": self.averaged,
            "history": torch.tensor(self.records, dtype=torch.float64),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where another training of the same settings did."""
        like = self.optimizer.vector()
        self.optimizer.assign(state["parameters"].to(like))
        self.optimizer.load_state_dict(state["optimizer"])
        self.start = state["start"].to(like, copy=True)
        self.first = state["first"] and Measured(*state["first"])
        self.best.load_state_dict(state["best"])
        self.factor = state["factor"]  # of the record of the best
        self.model = self._model(self.factor)
        self.divergences, self.begun = state["divergences"], state["begun"]
        average = state["average"]
        self.average = None if average is None else average.to(like, copy=True)
        self.averaged = state["averaged"]
        self.step = state["step"]
        self.seconds = state["seconds"]
        rows = state["history"].tolist()
        self.records = [TrainingStep(int(step), *numbers) for step, *numbers in rows]

    def _take_step(self, begin: float) -> bool:
        """One step of Adam; False if it was not taken."""
        step, optimizer = self.step, self.optimizer
        self._set_temperature(temperature_factor(step, self.steps, self.anneal))
        rate = self.largest_rate * 0.5**self.divergences
        rate *= learning_rate_factor(step, self.steps, self.warmup, self.begun)
        optimizer.learning_rate = rate

        gradient = self.world.mean(optimizer.gradient(self._loss(self.model)))
        log_weights = self.world.gather(self._log_weights())
        numbers = torch.cat([log_weights, gradient.norm()[None]]).cpu()  # the only wait
        log_weights, norm = numbers[:-1], float(numbers[-1])
        loss = -float(log_weights.mean())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(loss)
            return False

        spread = float(log_weights.std())
        error = spread / math.sqrt(len(log_weights))
        ess = math.nan if self.family is not None else kish_fraction(log_weights)
        self.seconds = time.perf_counter() - begin
        self.records.append(TrainingStep(step, loss, error, ess, self.factor, rate, self.seconds))
        self.step += 1
        if self.best.add(loss, spread, optimizer.vector):
            best = self.best.loss
            self._go_back(f"the loss at step {step} is {loss:.6g}, the best was {best:.6g}")
            return self.stopped is None
        optimizer.step(gradient, norm)
        if step >= self.average_from:
            self._accumulate()
        return True

    def _loss(self, model: Callable[..., Any]) -> Tensor:
        """The loss of this process's samples, to be differentiated.

        Raises:
            ValueError: if the programs made parameters that the optimiser was not given.
        """
        with (
            pyro.validation_enabled(False),  # a NaN must reach us, not raise in a distribution
            poutine.trace(param_only=True) as capture,
        ):
            loss = self.elbo.differentiable_loss(model, self.guide, *self._arguments())
        known = {id(parameter) for parameter in self.optimizer.parameters}
        sites: Any = capture.trace.nodes.values()
        unknown = sum(
            value.requires_grad and id(value) not in known
            for value in (site["value"].unconstrained() for site in sites)
        )
        if unknown:
            raise ValueError(
                f"the model or guide made {unknown} parameters after training began; accepted: "
                "programs that create all their parameters when first run"
            )
        return loss

    def _log_weights(self) -> Tensor:
        """Of the samples of the last loss."""
        assert self.elbo.log_weights is not None
        return self.elbo.log_weights

    def _set_temperature(self, factor: float) -> None:
        """What is trained on from here on, and by which gradient."""
        if factor != self.factor:
            self.factor, self.model = factor, self._model(factor)
            self._begin_record()
        if self.path_after_cooling:
            self.elbo.path_gradient = factor == 1.0

    def _arguments(self) -> tuple[Tensor, ...]:
        """Of model and guide: for a family, a context for each sample."""
        if self.family is None:
            return ()
        like = self.optimizer.parameters[0]
        return (self.family.sample_contexts(self.elbo.num_particles, like),)

    def _threads(self) -> AbstractContextManager[None]:
        """Threads of our own for a lattice model; a Pyro model may need those of torch."""
        known = isinstance(self.target, LatticePotential | PotentialFamily)
        return own_threads() if known else nullcontext()

    def _after_step(
        self,
        pressed: list[int],
        callback: Callable[[TrainingStep], Any] | None,
        keepers: Sequence[Keeper],
    ) -> None:
        """Whatever comes between two steps; all processes agree on it."""
        asked = callback is not None and callback(self.records[-1]) is True
        due = [self.world.is_first and keeper.is_due(self.step) for keeper in keepers]
        interrupted, asked, *due = self.world.any(bool(pressed), asked, *due)
        if asked:
            self.stopped = f"the callback stopped it after step {self.step - 1}"
        if interrupted:
            self._interrupt()
        last = self.stopped is not None or self.step == self.steps
        for keeper, now in zip(keepers, due, strict=True):
            if now or last:
                keeper.keep(self)

    def _interrupt(self) -> None:
        self.interrupted = True
        self.stopped = f"interrupted at step {self.step}"

    def _begin_record(self) -> None:
        """Begin the record of a temperature; at the final one those of the beginning are known."""
        if self.factor == 1.0 and self.first is not None:
            self.best.begin_with(self.first.loss, self.first.spread, self.start)
        else:
            self.best.begin()

    def _refuse(self, loss: float) -> None:
        """Go back from a step that cannot be taken: its loss, or its gradient, is not finite.

        Raises:
            ValueError: if there was no finite loss before.
        """
        if math.isfinite(loss):
            self._go_back(f"the gradient at step {self.step} is not finite")
        elif self.records:
            self._go_back(f"the loss at step {self.step} is {loss}")
        else:
            raise ValueError(
                f"target or flow gives a loss of {loss} at the first step; accepted: an energy and "
                "a density that are finite where the flow samples"
            )

    def _go_back(self, reason: str) -> None:
        """Take up the best parameters again, at half the rate, which rises anew.

        Warns:
            UserWarning: the first time, and if there were too many.
        """
        self.divergences += 1
        self.begun = self.step
        self.optimizer.assign(self.best.parameters)
        self.optimizer.reset()
        self.best.restart()
        self.average, self.averaged = None, 0
        if self.divergences > MOST_DIVERGENCES:
            self.stopped = f"{reason}, after {MOST_DIVERGENCES} divergences before"
            self._warn(f"training stopped: {self.stopped}; the best parameters are kept")
        elif self.divergences == 1:
            self._warn(
                f"training diverged: {reason}; it goes on from its best parameters at half the "
                "rate, and again if need be"
            )

    def _finish(self) -> None:
        """Leave the result in the flow: parameters that are not worse than those of the beginning.

        One batch tells as much of most trainings.

        Warns:
            UserWarning: if they would have been worse.
        """
        if self.average is not None:
            self.optimizer.assign(self.average)
        if self.first is None or not self.records:
            return
        batch = self._measure(self.elbo.num_particles * self.world.size)
        if not self.divergences and self.first.is_above(batch, CLEARLY_BETTER_ERRORS):
            return
        result = self.optimizer.vector()
        known = {"the result": result, "the first": self.start, "the best": self.best.parameters}
        losses = {}
        for name in ("the result", "the first"):
            self.optimizer.assign(known[name])
            losses[name] = self._measure(CHECKED_SAMPLES)
        if not losses["the result"].is_above(losses["the first"], WORSE_ERRORS):
            self.optimizer.assign(result)
            return
        self.optimizer.assign(known["the best"])
        losses["the best"] = self._measure(CHECKED_SAMPLES)
        name = min(losses, key=lambda one: losses[one].loss)
        self.optimizer.assign(known[name])
        self._warn(
            f"training ended at a loss of {losses['the result'].loss:.6g}, it began at "
            f"{losses['the first'].loss:.6g}: {name} parameters are kept"
        )

    def _measure(self, number: int) -> Measured:
        """The loss at the final temperature, of fresh samples of all processes; changes nothing."""
        elbo, device = self.elbo, self.optimizer.parameters[0].device
        before = elbo.num_particles, elbo.path_gradient
        here = math.ceil(number / self.world.size)
        at_once = min(here, CHECKED_AT_ONCE * elbo.num_particles)
        model, found = self._model(1.0), []
        elbo.num_particles, elbo.path_gradient = at_once, False
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
            ):
                for _ in range(math.ceil(here / at_once)):
                    self._loss(model)
                    found.append(self._log_weights())
        finally:
            elbo.num_particles, elbo.path_gradient = before
        losses = -self.world.gather(torch.cat(found)).cpu().double()
        loss, spread, number = float(losses.mean()), float(losses.std()), losses.numel()
        return Measured(loss, spread, number) if math.isfinite(loss) else Measured(math.inf, 0.0, 1)

    def _warn(self, message: str) -> None:
        if self.world.is_first:
            warnings.warn(message, stacklevel=5)

    def _accumulate(self) -> None:
        """Running mean of the parameters, in place."""
        self.averaged += 1
        if self.average is None:
            self.average = self.optimizer.vector()
        else:
            self.average.lerp_(self.optimizer.vector(), 1.0 / self.averaged)

    def _model(self, factor: float) -> Callable[..., Any]:
        """The target's Pyro program at ``factor`` times its temperature."""
        target = self.target if factor == 1.0 else self.target.heated(factor)
        return getattr(target, "model", target)


def _figures(record: TrainingStep) -> str:
    heat = f", T x {record.temperature_factor:.2f}" if record.temperature_factor != 1.0 else ""
    return f"F {record.free_energy:.3f} ± {record.free_energy_se:.3f}, ESS {record.ess:.0%}{heat}"
