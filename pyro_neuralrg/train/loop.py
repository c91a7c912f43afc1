# SPDX-License-Identifier: Apache-2.0
"""The loop over the steps of a training, on one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_neuralrg.arguments import on_copies, see
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.files.record import Checkpoints, check_energies
from pyro_neuralrg.infer.pdd import PDD, nan_site
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.runtime.console import HELD, Progress, deferred_interrupts, warn_user
from pyro_neuralrg.runtime.processes import Processes, random_state, set_random_state
from pyro_neuralrg.runtime.threads import own_threads
from pyro_neuralrg.statistics.weights import MAX_UNDEFINED, kish_fractions
from pyro_neuralrg.train.history import Best, History, TrainingStep
from pyro_neuralrg.train.optimizer import (
    JoinedAdam,
    Schedule,
    learning_rate_factor,
    temperature_factor,
)

MAX_DIVERGENCES = 10
"""After one more a training ends: its rate is a thousandth of what was asked for."""

CHECKED_SAMPLES = 2000
"""Samples of each set of parameters that may be worse than those of the beginning."""

CHECKED_AT_ONCE = 8
"""Batches of them at once: without a gradient they take less memory than one does with it."""

WORSE_ERRORS = 2.0
"""Standard errors by which a worse loss is higher."""

CLEARLY_BETTER_ERRORS = 4.0
"""Standard errors by which the loss of one batch is lower, where that one is enough."""

UNDEFINED_ERRORS = 4.0
"""Errors of a count of NaN energies by which it may be above their share."""

HISTORY = "history.csv"
"""Name of the table of steps in the folder of a record."""

STATE = (
    *("step", "factor", "divergences", "begun", "averaged", "seconds", "start", "average"),
    "zero_weights",
)
"""Attributes of a training that its checkpoints hold as they are."""


class Measured(NamedTuple):
    """A loss in nats, infinite if it is not finite: mean, deviation and number of its samples."""

    loss: float
    spread: float
    number: int

    def is_above(self, other: Measured, errors: float) -> bool:
        """True if it is higher by more than so many standard errors."""
        error = math.hypot(*(one.spread / math.sqrt(one.number) for one in (self, other)))
        return self.loss > other.loss + errors * error


def measured(log_weights: Tensor) -> tuple[Measured, Tensor]:
    """The loss of samples, and where their weights are finite; the others count as zero.

    With a share f of weights above zero it is the loss of q restricted to these, whose density is
    q / f, and once more -ln f, the nats that samples without weight cost: still a bound. It is not
    finite if fewer than two are, or more are NaN than one in a hundred gives by chance.
    """
    kept = log_weights.isfinite()
    number, finite = len(log_weights), int(kept.sum())
    if finite < number:
        undefined = number - finite - int((log_weights == -math.inf).sum())
        chance = UNDEFINED_ERRORS * math.sqrt(MAX_UNDEFINED * number)
        if finite < 2 or undefined > max(1.0, MAX_UNDEFINED * number + chance):
            return Measured(-float(log_weights.mean()), 0.0, 1), kept
    values, share = log_weights[kept] if finite < number else log_weights, finite / number
    loss = -float(values.mean()) - 2.0 * math.log(share)
    spread = math.hypot(float(values.std()), 2.0 * math.sqrt(1.0 - share))
    return Measured(loss, spread, finite), kept


@dataclass(eq=False, repr=False)
class Training:
    """The loop over the steps: what it needs and what it found.

    A step waits for an accelerator once, for its log-weights and the norm of its gradient together:
    if they are not finite, the step is not taken. ``elbo`` has this process's part of the batch, of
    which gradients are averaged over ``world``; ``arguments`` are those of a model and its guide.
    """

    target: Any
    guide: Callable[..., Any]
    elbo: PDD
    optimizer: JoinedAdam
    _: KW_ONLY
    steps: int
    schedule: Schedule
    path_after_cooling: bool
    world: Processes
    arguments: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self.cooling = self.schedule.cooling if hasattr(self.target, "heated") else None
        self.average_from = self.steps - round(self.schedule.average * self.steps)
        self.largest_rate = self.optimizer.learning_rate
        self.factor, self.model = math.nan, self._model(1.0)
        self.start = self.optimizer.vector()
        self.first: Measured | None = None
        self.best = Best(self.start)
        self.step = self.divergences = self.begun = self.averaged = self.zero_weights = 0
        self.average: Tensor | None = None
        self.records: list[TrainingStep] = []
        self.seconds = 0.0
        self.interrupted = False
        self.stopped: str | None = None

    def run(
        self,
        progress: Progress,
        callback: Callable[[TrainingStep], Any] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Take the steps that are left, until the end or a reason to stop."""
        begin = time.perf_counter() - self.seconds
        held = () if checkpoints is None and self.world.size == 1 else HELD
        # threads of our own for a lattice model; a Pyro model may need those of torch
        known = isinstance(self.target, LatticePotential | PotentialFamily)
        try:
            with deferred_interrupts(held) as pressed:
                if self.first is None:
                    self.first = self._measure(self.elbo.num_particles * self.world.size)
                with own_threads() if known else nullcontext():
                    while self.step < self.steps and self.stopped is None:
                        if self._take_step(begin):
                            progress.step(partial(_figures, self.records[-1]))
                            self._after_step(pressed, callback, checkpoints)
                self._write_table(checkpoints)
        except KeyboardInterrupt:
            self._interrupt()
        with deferred_interrupts() as pressed:
            self.seconds = time.perf_counter() - begin
            self._finish()
        self.interrupted = self.interrupted or bool(pressed)

    def _take_step(self, begin: float) -> bool:
        """One step of Adam; False if it was not taken."""
        step, optimizer, world = self.step, self.optimizer, self.world
        self._set_temperature(temperature_factor(step, self.steps, self.cooling))
        rate = self.largest_rate * 0.5**self.divergences
        rate *= learning_rate_factor(step, self.steps, self.schedule.warmup, self.begun)
        optimizer.learning_rate = rate

        surrogate, log_weights = self._evaluate(self.model)
        gradient = world.mean(optimizer.gradient(surrogate))
        log_weights = world.gather(log_weights)
        numbers = torch.cat([log_weights, gradient.norm()[None]]).cpu()  # the only wait
        log_weights, norm = numbers[:-1], float(numbers[-1])
        (loss, spread, finite), kept = measured(log_weights)
        if math.isfinite(loss) and finite < len(kept) and self._leave_out(len(kept) - finite):
            return False
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(loss)
            return False
        if finite < len(kept):  # the mean gradient of those that are left
            log_weights = torch.where(kept, log_weights, -math.inf)
            gradient, norm = gradient * (len(kept) / finite), norm * (len(kept) / finite)

        error = spread / math.sqrt(finite)
        several = isinstance(self.target, PotentialFamily)
        ess = math.nan if several else float(kish_fractions(log_weights))
        self.seconds = time.perf_counter() - begin
        self.records.append(TrainingStep(step, loss, error, ess, self.factor, rate, self.seconds))
        self.step += 1
        if self.best.add(loss, spread, optimizer.vector):
            best = self.best.loss
            self._go_back(f"the loss at step {step} is {loss:.6g}, the best was {best:.6g}")
            return self.stopped is None
        optimizer.step(gradient, norm)
        if step >= self.average_from:
            self.averaged += 1
            vector = optimizer.vector()
            weight = 1.0 / self.averaged
            self.average = vector if self.average is None else self.average.lerp(vector, weight)
        return True

    def _evaluate(self, model: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The loss of this process's samples, to be differentiated, and their log-weights."""
        guide, arguments = self.guide, self.arguments
        if arguments:
            model, guide = on_copies(model), on_copies(guide)
        if isinstance(self.target, PotentialFamily):  # a context for each sample
            like = self.optimizer.parameters[0]
            arguments = (self.target.sample_contexts(self.elbo.num_particles, like),)
        with (
            pyro.validation_enabled(False),  # a NaN must reach us, not raise in a distribution
            poutine.trace(param_only=True) as capture,
        ):
            surrogate = self.elbo.differentiable_loss(model, guide, *arguments)
        known = {id(parameter) for parameter in self.optimizer.parameters}
        sites: Any = capture.trace.nodes.values()
        made = [site["value"].unconstrained() for site in sites]
        unknown = sum(value.requires_grad and id(value) not in known for value in made)
        if unknown:
            raise ValueError(
                f"the model or guide made {unknown} parameters after training began; accepted: "
                "programs that create all their parameters when first run"
            )
        assert self.elbo.log_weights is not None
        return surrogate, self.elbo.log_weights

    def _set_temperature(self, factor: float) -> None:
        """Set the target from here on, and the kind of gradient."""
        if factor != self.factor:
            self.factor, self.model = factor, self._model(factor)
            if factor == 1.0 and self.first is not None:  # there, those of the beginning are known
                self.best = Best(self.start, self.first.loss, self.first.spread)
            else:
                self.best = Best(self.best.parameters)
        if self.path_after_cooling:
            self.elbo.path_gradient = factor == 1.0

    def _after_step(
        self,
        pressed: list[int],
        callback: Callable[[TrainingStep], Any] | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        """Everything between two steps; all processes agree on it."""
        asked = callback is not None and callback(self.records[-1]) is True
        due = checkpoints is not None and self.world.is_first and checkpoints.is_due(self.step)
        interrupted, asked, due = self.world.any_process(bool(pressed), asked, due)
        if asked:
            self.stopped = f"the callback stopped it after step {self.step - 1}"
        if interrupted:
            self._interrupt()
        is_last = self.stopped is not None or self.step == self.steps
        if checkpoints is not None and (due or is_last):
            checkpoints.keep(self.step, self._contents())
            if not is_last:  # at the end it is written in any case
                self._write_table(checkpoints)

    def _interrupt(self) -> None:
        self.interrupted = True
        self.stopped = f"interrupted at step {self.step}"

    def _leave_out(self, number: int) -> bool:
        """Count weights of zero; True if the step is to be taken anew, now that there are some."""
        self.zero_weights += number
        if self.elbo.only_finite:
            return False
        self.elbo.only_finite = True
        found = self._measure(CHECKED_SAMPLES).loss  # a batch tells little of their share
        if not math.isfinite(found):
            self._refuse(math.nan)
            return True
        self._warn(
            f"the energy of {number} samples of step {self.step} is infinite or NaN: their weights "
            "are zero, and training goes on with the others; the result counts them"
        )
        return True

    def _refuse(self, loss: float) -> None:
        """Go back from a loss or a gradient that is not finite; a ValueError at the first step."""
        if math.isfinite(loss):
            self._go_back(f"the gradient at step {self.step} is not finite")
        elif self.records:
            self._go_back(f"the loss at step {self.step} is {loss}")
        else:
            several = isinstance(self.target, PotentialFamily)
            where = "" if several else nan_site(self.model, self.guide, self.arguments)
            raise ValueError(
                f"target or flow gives a loss of {loss} at the first step{where}; accepted: an "
                "energy and a density that are finite where the flow samples"
            )

    def _go_back(self, reason: str) -> None:
        """Take up the best parameters again, at half the rate, which rises anew."""
        self.divergences += 1
        self.begun = self.step
        self.optimizer.assign(self.best.parameters)
        self.optimizer.reset()
        self.best.restart()
        self.average, self.averaged = None, 0
        if self.divergences > MAX_DIVERGENCES:
            self.stopped = f"{reason}, after {MAX_DIVERGENCES} divergences before"
            self._warn(f"training stopped: {self.stopped}; the best parameters are kept")
        elif self.divergences == 1:
            self._warn(
                f"training diverged: {reason}; it goes on from its best parameters at half the "
                f"rate, and again if need be{see('warning-diverged')}"
            )

    def _warn(self, message: str) -> None:
        if self.world.is_first:
            warn_user(message)

    def _finish(self) -> None:
        """Leave the result in the flow: parameters not worse than those of the beginning."""
        if self.average is not None:
            self.optimizer.assign(self.average)
        if self.first is None or not self.records:
            return
        batch = self._measure(self.elbo.num_particles * self.world.size)
        if not self.divergences and self.first.is_above(batch, CLEARLY_BETTER_ERRORS):
            return  # one batch tells
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
                    found.append(self._evaluate(model)[1])
        finally:
            elbo.num_particles, elbo.path_gradient = before
        loss, _ = measured(self.world.gather(torch.cat(found)).cpu().double())
        return loss if math.isfinite(loss.loss) else Measured(math.inf, 0.0, 1)

    def _model(self, factor: float) -> Callable[..., Any]:
        """The target's Pyro program at ``factor`` times its temperature."""
        target = self.target if factor == 1.0 else self.target.heated(factor)
        return getattr(target, "model", target)

    def _contents(self) -> dict[str, Any]:
        """The state between two steps, with that of the random numbers, for a checkpoint."""
        state = {
            **{name: getattr(self, name) for name in STATE},
            "parameters": self.optimizer.vector(),
            "optimizer": self.optimizer.state_dict(),
            "first": self.first and tuple(self.first),
            "best": self.best.state_dict(),
            "noise": self.elbo.noise.state_dict(),
            "history": torch.tensor(self.records, dtype=torch.float64),
        }
        random = random_state(self.world, self.start.device)
        return {"training": state, "random": random, "energies": self._trial_energies()}

    def go_on_from(self, contents: Mapping[str, Any], checkpoints: Checkpoints) -> None:
        """Stand where the training of a checkpoint did; it raises if its energies are others."""
        energies, like = self._trial_energies(), self.start
        if energies is not None and contents["energies"] is not None:
            check_energies(checkpoints.folder, contents["energies"], energies)
        state = contents["training"]
        for name in STATE:
            value = state[name]
            setattr(self, name, value.to(like) if isinstance(value, Tensor) else value)
        self.elbo.only_finite = self.zero_weights > 0
        self.model = self._model(self.factor)
        self.optimizer.assign(state["parameters"].to(like))
        self.optimizer.load_state_dict(state["optimizer"])
        self.first = state["first"] and Measured(*state["first"])
        self.best.load_state_dict(state["best"])
        self.elbo.noise.load_state_dict(state["noise"])
        rows = state["history"].tolist()
        self.records = [TrainingStep(int(step), *numbers) for step, *numbers in rows]
        set_random_state(contents["random"], self.world, like.device)

    def _trial_energies(self) -> Tensor | None:
        """Energies of a few fixed fields: two targets of one name and shape differ in them."""
        if not isinstance(self.target, LatticePotential):
            return None
        return self.target.try_energy(like=self.start)[1].cpu()

    def _write_table(self, checkpoints: Checkpoints | None) -> None:
        """Write the table of the steps so far, if it is asked for."""
        if checkpoints is None or not (checkpoints.record.history and self.world.is_first):
            return
        path = checkpoints.folder / HISTORY
        try:
            History.from_steps(self.records).to_csv(path)
        except OSError as error:
            warn_user(f"{path} cannot be written ({one_line(error)})")


def _figures(record: TrainingStep) -> str:
    heat = f", at {record.temperature_factor:.2f} T" if record.temperature_factor != 1.0 else ""
    ess = "" if math.isnan(record.ess) else f", ESS {100 * record.ess:.0f} %"  # of a family: none
    return f"loss {record.free_energy:.3f} ± {record.free_energy_se:.3f}{ess}{heat}"
