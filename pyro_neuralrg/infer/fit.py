# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Train a flow on a target: Pyro's SVI with the PDD loss, a schedule, cooling and a history."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.infer import SVI
from torch import Tensor
from tqdm.auto import tqdm

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, check_number
from pyro_neuralrg.infer.free_energy import from_log_weights
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.history import History, TrainingStep
from pyro_neuralrg.infer.optimizer import GuardedAdam
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.infer.schedule import (
    Anneal,
    default_schedule,
    learning_rate_factor,
    temperature_factor,
)
from pyro_neuralrg.infer.seeds import seeded
from pyro_neuralrg.interrupts import deferred_interrupts
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.transforms import ConditionalHierarchicalFlow
from pyro_neuralrg.transforms.steps import compiled_steps

__all__ = ["FitResult", "fit"]

BAR_SECONDS = 0.2
"""The progress bar shows new figures this often."""


@dataclass(frozen=True)
class FitResult:
    """A finished, stopped or interrupted training.

    Attributes:
        flow: what was given (or built) and is now trained, in place.
        history: every step as arrays.
        steps: steps taken, those before ``start_step`` not counted.
        batch: samples per step.
        seconds: wall time.
        interrupted: Ctrl-C ended the training.
        stopped: why the training ended early, else None.
        optimizer_state: for ``fit(..., optimizer_state=...)`` and ``save(..., optimizer=...)``.
    """

    flow: Any
    history: History
    steps: int
    batch: int
    seconds: float
    interrupted: bool
    stopped: str | None
    optimizer_state: dict[str, Any] = field(repr=False)


def fit(
    target: Any,
    flow: Any = None,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    clip: float | None = 100.0,
    anneal: tuple[float, float] | None = (1.5, 0.25),
    average: float = 0.0,
    path_gradient: bool | None = None,
    compile: bool = False,
    seed: int | None = None,
    start_step: int = 0,
    optimizer_state: dict[str, Any] | None = None,
    progress: bool = True,
    callback: Callable[[TrainingStep], Any] | None = None,
) -> FitResult:
    """Train ``flow`` to sample ``target`` by minimising the free energy bound (paper Eq. 3-5).

    Adam under :class:`pyro.infer.SVI`; the learning rate rises shortly and then follows half a
    cosine. Training starts at a higher temperature and cools, which helps where the target has
    several modes. A loss or gradient that is not finite ends it with the last finite parameters;
    Ctrl-C ends it with the present ones. Neither the global random state (if ``seed`` is given)
    nor Pyro's parameter store (for flows) is changed.

    Args:
        target: a LatticePotential, or a Pyro model without arguments; or a PotentialFamily: each
            step then draws a context for each sample, and the loss is the mean over contexts, whose
            effective sample size means nothing (it is reported as NaN).
        flow: a flow, a SymmetrizedFlow, a FlowGuide or another reparameterised guide without
            arguments; for a family a ConditionalTransformModule, or a FlowGuide of one; default:
            ``target.flow()``. It is trained in place.
        steps: length of the schedule; default: by the shape, see
            :func:`~pyro_neuralrg.infer.schedule.default_schedule`.
        batch: samples per step; default: by the shape.
        lr: largest learning rate; default: by the shape.
        clip: largest norm of the gradient; None: unlimited.
        anneal: ``(start, fraction)``: begin at ``start`` times the temperature and reach the
            temperature after this fraction of the steps; None: no cooling. A target without
            ``heated`` (a model) is not cooled.
        average: fraction of the steps, at the end, whose parameters are averaged for the result.
        path_gradient: see :class:`~pyro_neuralrg.infer.pdd.PDD`; None: for flows of this package,
            where it is cheap, once the target has cooled. Far from the target the plain gradient
            has the smaller variance, and a path gradient can run away.
        compile: run the couplings of flows of this package through ``torch.compile``: twice as fast
            on two CPU cores, after 10 to 20 s of compiling. Without a compiler it warns, and works.
        seed: of the samples and of a flow built here; None: the global random state goes on.
        start_step: steps of this schedule already taken, to go on with an interrupted training.
        optimizer_state: of an earlier result, to go on with its moments.
        progress: show one progress bar.
        callback: called after each step; if it returns True, training stops.

    Raises:
        ValueError, TypeError: naming the argument; also if the first loss is not finite.

    Warns:
        UserWarning: if training stopped at a loss or gradient that is not finite.
    """
    _check(steps, batch, lr, clip, average, start_step, seed)
    _check_switch("compile", compile)
    _check_switch("path_gradient", path_gradient)
    cooling = _check_anneal(anneal)
    with seeded(seed), contextlib.ExitStack() as stack:
        if flow is None:
            flow = _default_flow(target)
        guide = _guide(flow, isinstance(target, PotentialFamily))
        if compile:
            stack.enter_context(compiled_steps())
        schedule = default_schedule(_shape(target, flow, (steps, batch, lr)))
        training = _Training(
            target=target,
            guide=guide,
            elbo=_QuietPDD(
                num_particles=schedule.batch if batch is None else int(batch),
                max_plate_nesting=_plates(target, guide),
                vectorize_particles=True,
                path_gradient=bool(path_gradient),
            ),
            optimizer=GuardedAdam(
                _trainable(target, guide), schedule.learning_rate if lr is None else lr, clip
            ),
            steps=schedule.steps if steps is None else int(steps),
            anneal=cooling if hasattr(target, "heated") else None,
            average=average,
            path_after_cooling=path_gradient is None and _has_score(guide),
        )
        if start_step >= training.steps:
            raise ValueError(
                f"start_step is {start_step}; accepted: an integer below steps, {training.steps}"
            )
        if isinstance(target, LatticePotential):
            target.try_energy(like=training.optimizer.parameters[0])
        if optimizer_state is not None:
            training.optimizer.set_state(optimizer_state)
        bar = stack.enter_context(
            tqdm(total=training.steps, initial=start_step, disable=not progress, desc="fit")
        )
        training.run(start_step, bar, callback)
    clear_cache = getattr(flow, "clear_cache", None)
    if clear_cache is not None:
        clear_cache()
    return training.result(flow)


class _QuietPDD(PDD):
    """PDD that leaves it to the training to speak of losses that are not finite."""

    def _check_loss(self, loss: float) -> None:
        pass


class _Training:
    """The loop over the steps, with what it needs and what it found."""

    def __init__(
        self,
        target: Any,
        guide: Callable[..., Any],
        elbo: PDD,
        optimizer: GuardedAdam,
        steps: int,
        anneal: Anneal | None,
        average: float,
        path_after_cooling: bool,
    ) -> None:
        self.target = target
        self.elbo = elbo
        self.optimizer = optimizer
        self.steps = steps
        self.anneal = anneal
        self.path_after_cooling = path_after_cooling
        self.average_from = steps - round(average * steps)
        self.largest_rate = optimizer.learning_rate
        optimizer.guard = self._loss_is_finite
        self.svi = SVI(self._model(1.0), guide, optimizer, loss=elbo)
        self.family = target if isinstance(target, PotentialFamily) else None
        self.factor = 1.0
        self.records: list[TrainingStep] = []
        self.average: Tensor | None = None
        self.averaged = 0
        self.interrupted = False
        self.stopped: str | None = None
        self.seconds = 0.0

    def run(self, start: int, bar: Any, callback: Callable[[TrainingStep], Any] | None) -> None:
        """Take the steps from ``start`` on, until the end or a reason to stop."""
        begin = time.perf_counter()
        shown = 0.0
        self.optimizer.clear_gradients()  # of whatever was done with the flow before
        try:
            for step in range(start, self.steps):
                if not self._step(step, begin):
                    break
                record = self.records[-1]
                bar.update()
                if record.seconds - shown > BAR_SECONDS:
                    shown = record.seconds
                    bar.set_postfix_str(_figures(record), refresh=False)
                if callback is not None and callback(record) is True:
                    self.stopped = f"the callback stopped it after step {step}"
                    break
        except KeyboardInterrupt:
            self.interrupted = True
            self.stopped = f"interrupted at step {start + len(self.records)}"
        with deferred_interrupts() as pressed:
            self.seconds = time.perf_counter() - begin
            if self.records:
                bar.set_postfix_str(_figures(self.records[-1]))
            if self.average is not None:
                self.optimizer.assign(self.average)
        self.interrupted = self.interrupted or bool(pressed)

    def result(self, flow: Any) -> FitResult:
        """What came out."""
        return FitResult(
            flow=flow,
            history=History.from_steps(self.records),
            steps=len(self.records),
            batch=self.elbo.num_particles,
            seconds=self.seconds,
            interrupted=self.interrupted,
            stopped=self.stopped,
            optimizer_state=self.optimizer.get_state(),
        )

    def _step(self, step: int, begin: float) -> bool:
        """One step of SVI; False if it had to stop."""
        factor = temperature_factor(step, self.steps, self.anneal)
        if factor != self.factor:
            self.svi.model = self._model(factor)
            self.factor = factor
        if self.path_after_cooling:
            self.elbo.path_gradient = factor == 1.0
        rate = self.largest_rate * learning_rate_factor(step, self.steps)
        self.optimizer.learning_rate = rate
        with pyro.validation_enabled(False):  # a NaN must reach us, not raise inside a distribution
            loss = self.svi.step(*self._arguments())
        if not math.isfinite(loss) or self.optimizer.failed:
            self._stop(step, loss)
            return False
        weights = self.elbo.log_weights
        assert weights is not None
        found = from_log_weights(weights)
        self.records.append(
            TrainingStep(
                step,
                loss,
                found.variational_se,
                found.ess if self.family is None else math.nan,
                factor,
                rate,
                time.perf_counter() - begin,
            )
        )
        if step >= self.average_from:
            self._accumulate()
        return True

    def _arguments(self) -> tuple[Tensor, ...]:
        """Of model and guide: for a family, a context for each sample."""
        if self.family is None:
            return ()
        like = self.optimizer.parameters[0]
        return (self.family.sample_contexts(self.elbo.num_particles, like),)

    def _loss_is_finite(self) -> bool:
        weights = self.elbo.log_weights
        return weights is not None and bool(weights.sum().isfinite())

    def _stop(self, step: int, loss: float) -> None:
        """End the training with the last parameters whose loss was finite."""
        if math.isfinite(loss):
            self.stopped = f"the gradient at step {step} is not finite"
        elif not self.records:
            raise ValueError(
                f"target or flow gives a loss of {loss} at the first step; accepted: an energy and "
                "a density that are finite where the flow samples"
            )
        else:
            self.stopped = f"the loss at step {step} is {loss}"
            self.optimizer.undo()
            self.average = None  # which holds the parameters that were bad
        warnings.warn(
            f"training stopped: {self.stopped}; the last finite parameters are kept", stacklevel=5
        )

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


def _check_switch(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; accepted: True or False")


def _guide(flow: Any, takes_context: bool) -> Callable[..., Any]:
    """The guide that draws from ``flow``.

    For flows it does not name its parameters to Pyro: the optimiser holds them already, and a few
    hundred ``pyro.param`` statements would cost several milliseconds a step.
    """
    inner = flow.flow if isinstance(flow, FlowGuide) else flow
    conditional = isinstance(inner, ConditionalTransformModule)
    if conditional and not takes_context:
        raise TypeError(
            f"flow is a {type(flow).__name__}; accepted: flow.condition(context), a guide that "
            "draws the context, or a PotentialFamily as target"
        )
    if takes_context and not conditional:
        raise TypeError(
            f"flow is a {type(flow).__name__}; accepted for a PotentialFamily: a "
            "ConditionalTransformModule such as target.flow()"
        )
    if isinstance(flow, FlowGuide):
        return _Sampler(flow)
    if isinstance(
        flow,
        ConditionalTransformModule
        | torch.distributions.Distribution
        | torch.distributions.Transform,
    ):
        return _Sampler(FlowGuide(flow))
    if not callable(flow):
        raise TypeError(
            f"flow is a {type(flow).__name__}; accepted: a flow, a SymmetrizedFlow or a guide"
        )
    return flow


def _trainable(target: Any, guide: Callable[..., Any]) -> list[Tensor]:
    """The parameters of the flow, and those that a model or a guide makes with ``pyro.param``."""
    found = list(guide.parameters()) if isinstance(guide, _Sampler) else []
    programs = [] if isinstance(guide, _Sampler) else [guide]
    if not hasattr(target, "energy"):
        programs.append(target)
    with poutine.block(), poutine.trace(param_only=True) as capture:
        for program in programs:
            program()
    sites: Any = capture.trace.nodes.values()
    found += [site["value"].unconstrained() for site in sites]
    trainable = [parameter for parameter in found if parameter.requires_grad]
    if not trainable:
        raise ValueError("flow has no parameters to train; accepted: a flow or a guide with some")
    return trainable


def _has_score(guide: Callable[..., Any]) -> bool:
    """Whether samples come with the score, so that path gradients cost little more."""
    if not isinstance(guide, _Sampler):
        return False
    flow = guide.guide.flow
    if isinstance(flow, ConditionalTransformModule):
        return isinstance(flow, ConditionalHierarchicalFlow)
    return getattr(guide.distribution(), "has_score", False)


def _plates(target: Any, guide: Callable[..., Any]) -> float:
    """Nesting of plates: none for a potential and a flow, for Pyro to find out otherwise."""
    return 0 if isinstance(guide, _Sampler) and hasattr(target, "energy") else math.inf


class _Sampler:
    """A FlowGuide without its parameter statements."""

    def __init__(self, guide: FlowGuide) -> None:
        self.guide = guide

    def parameters(self) -> Iterator[Tensor]:
        """The parameters, for path gradients."""
        return self.guide.parameters()

    def distribution(self, *context: Tensor) -> Any:
        """What is sampled."""
        return self.guide.distribution(*context)

    def __call__(self, *context: Tensor) -> Tensor:
        return pyro.sample(self.guide.site, self.distribution(*context))


def _default_flow(target: Any) -> Any:
    if not hasattr(target, "flow"):
        raise ValueError(
            f"flow is None, and target, a {type(target).__name__}, offers none; accepted: a flow "
            "or a guide"
        )
    return target.flow()


def _shape(target: Any, flow: Any, given: tuple[Any, ...]) -> tuple[int, ...]:
    """The lattice shape, from whichever knows it; a single site if nothing depends on it."""
    for owner in (target, flow):
        shape = getattr(owner, "shape", None) or getattr(owner, "event_shape", None)
        if shape is not None:
            return tuple(shape)
    if None in given:
        raise ValueError("steps, batch or lr is None; accepted for a model and a guide: all three")
    return (1,)


def _check(
    steps: int | None,
    batch: int | None,
    lr: float | None,
    clip: float | None,
    average: float,
    start_step: int,
    seed: int | None,
) -> None:
    for name, value, least in (("steps", steps, 1), ("batch", batch, 2)):
        if value is not None:
            check_integer(name, value, least)
    check_integer("start_step", start_step, 0)
    if seed is not None:
        check_integer("seed", seed, 0, LARGEST_SEED)
    for name, rate in (("lr", lr), ("clip", clip)):
        if rate is not None:
            check_number(name, rate, "a positive number or None", above=0)
    check_number("average", average, "a fraction between 0 and 1", least=0, most=1)


def _check_anneal(anneal: tuple[float, float] | None) -> Anneal | None:
    if anneal is None:
        return None
    accepted = "(temperature factor > 0, fraction of the steps) or None"
    try:
        start, fraction = anneal
    except (TypeError, ValueError) as error:  # no pair
        raise type(error)(f"anneal is {anneal!r}; accepted: {accepted}") from None
    return Anneal(
        check_number("anneal", start, accepted, above=0, given=anneal),
        check_number("anneal", fraction, accepted, least=0, most=1, given=anneal),
    )


def _figures(record: TrainingStep) -> str:
    heat = f", T x {record.temperature_factor:.2f}" if record.temperature_factor != 1.0 else ""
    return f"F {record.free_energy:.3f} ± {record.free_energy_se:.3f}, ESS {record.ess:.0%}{heat}"
