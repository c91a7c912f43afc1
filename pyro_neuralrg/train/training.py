# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Train a flow on a target: the PDD loss, a schedule, cooling and a history."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from pyro_neuralrg.arguments import (
    LARGEST_SEED,
    check_integer,
    check_number,
    refuse_without,
)
from pyro_neuralrg.files.interval import Interval
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.runtime.memory import check_memory
from pyro_neuralrg.runtime.processes import Processes, processes
from pyro_neuralrg.runtime.progress import Progress
from pyro_neuralrg.runtime.seeds import seeded
from pyro_neuralrg.train.checkpoints import Checkpoints, described
from pyro_neuralrg.train.history import History, TrainingStep
from pyro_neuralrg.train.history_file import HistoryFile
from pyro_neuralrg.train.loop import Training
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.train.schedule import COOLING, Anneal, Schedule, default_schedule
from pyro_neuralrg.transforms import ConditionalHierarchicalFlow

__all__ = ["FitResult", "fit"]

LARGE_BATCH = 2**17
"""Sites of a batch whose memory is looked at: fewer take less than half a GB."""


@dataclass(frozen=True)
class FitResult:
    """A finished, stopped or interrupted training.

    Attributes:
        flow: what was given (or built) and is now trained, in place.
        history: every step as arrays.
        steps: steps taken, those before a checkpoint included.
        batch: samples per step.
        seconds: wall time.
        interrupted: Ctrl-C, or SIGTERM with checkpoints, ended the training.
        stopped: why the training ended early, else None.
        divergences: times that it went back to its best parameters, see :func:`fit`.
        unsaved: why the last checkpoint or the history could not be written, else None.
    """

    flow: Any
    history: History
    steps: int
    batch: int
    seconds: float
    interrupted: bool
    stopped: str | None
    divergences: int = 0
    unsaved: str | None = None


def fit(
    target: Any,
    flow: Any = None,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    clip: float | None = 100.0,
    anneal: tuple[float, float] | None = COOLING,
    average: float = 0.0,
    path_gradient: bool | None = None,
    compile: bool = False,
    seed: int | None = None,
    progress: bool = True,
    callback: Callable[[TrainingStep], Any] | None = None,
    history: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float | None = None,
    every_steps: int | None = None,
    keep: int | None = None,
    resume: bool = False,
) -> FitResult:
    """Train ``flow`` to sample ``target`` by minimising the free energy bound (paper Eq. 3-5).

    Adam on :class:`~pyro_neuralrg.infer.pdd.PDD`; the learning rate rises shortly and then follows
    half a cosine. Training starts at a higher temperature and cools, which helps where the target
    has several modes. Ctrl-C ends it with the present parameters. Neither the global random state
    (if ``seed`` is given) nor Pyro's parameter store (for flows) is changed.

    A training diverges if a loss or gradient is not finite, or if the running mean of the loss is
    far above its lowest value at this temperature (:mod:`~pyro_neuralrg.train.best` says how far).
    It then takes up the parameters of that lowest value again, forgets Adam's moments, halves the
    rate, which rises anew, and goes on; after ten times it ends there.

    However a training ends, its result is not worse than its beginning: where the loss at the final
    temperature is higher by more than two standard errors, on 2,000 fresh samples of each, the best
    known parameters are the result instead. The samples are drawn after a divergence, or if one
    batch does not show already that the result is better.

    On a CPU, for a lattice model, torch has one thread meanwhile; couplings share the threads that
    it had, so that a core that is busy elsewhere does no harm.

    Where ``torch.distributed`` is initialised, all its processes must call this with the same
    arguments: each draws its part of the batch from a seed of its own, gradients and statistics are
    those of the whole batch, and parameters stay equal. The first process alone shows the bar and
    writes checkpoints, from which as many processes as wrote them can go on.

    With ``checkpoint``, a training that was killed at any moment goes on with ``resume=True``; on a
    CPU with the very numbers of one that was not. Ctrl-C and SIGTERM then, or with ``history``, end
    it after the present step, which is kept.

    Args:
        target: a LatticePotential, or a Pyro model without arguments; or a PotentialFamily: each
            step then draws a context for each sample, and the loss is the mean over contexts, whose
            effective sample size means nothing (it is reported as NaN).
        flow: a flow, a SymmetrizedFlow, a FlowGuide or another reparameterised guide without
            arguments; for a family a ConditionalTransformModule, or a FlowGuide of one; default:
            ``target.flow()``. It is trained in place.
        steps: length of the schedule; default: by the shape, see
            :func:`~pyro_neuralrg.train.schedule.default_schedule`.
        batch: samples per step; default: by the shape.
        lr: largest learning rate; default: by the shape.
        warmup: steps in which the rate rises to it; None: 100, but at most a tenth of all.
        clip: largest norm of the gradient; None: unlimited.
        anneal: ``(start, fraction)``: begin at ``start`` times the temperature and reach the
            temperature after this fraction of the steps; None: no cooling. A target without
            ``heated`` (a model) is not cooled.
        average: fraction of the steps, at the end, whose parameters are averaged for the result.
        path_gradient: see :class:`~pyro_neuralrg.infer.pdd.PDD`; None: for flows of this package,
            where it is cheap, once the target has cooled. Far from the target the plain gradient
            has the smaller variance, and a path gradient can run away.
        compile: run the couplings of flows of this package through ``torch.compile`` on an
            accelerator; on a CPU they are compiled in any case. Without a compiler it warns, and
            works.
        seed: of the samples and of a flow built here; None: the global random state goes on.
        progress: show one progress bar; a line now and then where stderr is no terminal.
        callback: called after each step, on every process; if it returns True on any, training
            stops.
        history: a CSV file for the steps so far, written anew, whole or not at all, as often as
            checkpoints and at the end. Its folder is made if it is missing.
        checkpoint: a folder for where the training stands, made if it is missing; see
            :class:`~pyro_neuralrg.train.checkpoints.Checkpoints`.
        every: seconds between checkpoints, 60 if None; one at the end comes in any case. Accepted
            with a checkpoint or a history only, as ``every_steps``.
        every_steps: steps between checkpoints, instead.
        keep: how many of them, the newest, are kept; three if None. Accepted with a checkpoint
            only, as ``resume``.
        resume: go on from the newest intact checkpoint; from the beginning if there is none.

    Raises:
        ValueError, TypeError: naming the argument; also if the first loss is not finite.
        MemoryLimitError: if a step takes more memory than is available (a ValueError): found out
            beforehand, with few samples, where there are 2^17 sites or more in a batch.
        CheckpointError: if the folder of checkpoints cannot be made or read, another training uses
            it at the moment, none in it is intact, or they are of another training, whose settings
            are named (a ValueError).
        RuntimeError: if another process of the group has ended.

    Warns:
        UserWarning: if the training diverged (said once), ended for that, or ended worse than it
            began; if a checkpoint is corrupt or cannot be read and the one before it is used, there
            is none to resume from, or one cannot be written (said once; the training goes on and
            tries again, see ``unsaved``).
    """
    _check(steps, batch, lr, warmup, clip, average, seed)
    _check_switch("compile", compile)
    _check_switch("path_gradient", path_gradient)
    cooling = _check_anneal(anneal)
    world = processes()
    if checkpoint is None and history is None:
        given = {"every": every, "every_steps": every_steps}
        refuse_without("checkpoint", "with a checkpoint or a history", **given)
    table = _table(world, history, every, every_steps)
    checkpoints = _checkpoints(checkpoint, every, every_steps, keep, resume)
    keepers = [keeper for keeper in (checkpoints, table) if keeper is not None]
    with seeded(world.seed(seed)), contextlib.ExitStack() as stack:
        if flow is None:
            flow = _default_flow(target)
        schedule = _schedule(target, flow, steps, batch, lr)
        training = _training(
            target, flow, schedule, warmup, compile, clip, cooling, average, path_gradient, world
        )
        _check_memory(training, schedule.batch, math.prod(_shape(target, flow, schedule)))
        _clear_cache(flow)
        if checkpoints is not None:
            options = {"average": average, "seed": seed}
            settings = described(training, flow, schedule, options)
            stack.callback(checkpoints.end)
            checkpoints.begin(training, settings, resume)
        if table is not None:
            table.begin(world)
        bar = stack.enter_context(
            Progress(training.steps, "fit", progress and world.is_first, training.step)
        )
        training.run(bar, callback, keepers)
    if table is not None:
        table.keep(training)  # whatever ended it
    unsaved = "; ".join(keeper.unsaved for keeper in keepers if keeper.unsaved is not None) or None
    _clear_cache(flow)
    return FitResult(
        flow=flow,
        history=History.from_steps(training.records),
        steps=len(training.records),
        batch=schedule.batch,
        seconds=training.seconds,
        interrupted=training.interrupted,
        stopped=training.stopped,
        divergences=training.divergences,
        unsaved=world.from_first(lambda: unsaved),
    )


def _training(
    target: Any,
    flow: Any,
    schedule: Schedule,
    warmup: int | None,
    compile: bool,
    clip: float | None,
    anneal: Anneal | None,
    average: float,
    path_gradient: bool | None,
    world: Processes,
) -> Training:
    """What is to be run, checked, with the same parameters on all processes."""
    share = world.share("batch", schedule.batch)
    guide = _guide(flow, isinstance(target, PotentialFamily))
    optimizer = JoinedAdam(_trainable(target, guide), schedule.learning_rate, clip)
    if world.size > 1:
        optimizer.assign(world.from_first(lambda: optimizer.vector().cpu()).to(optimizer.vector()))
    elbo = PDD(
        num_particles=share,
        max_plate_nesting=_plates(target, guide),
        vectorize_particles=True,
        path_gradient=bool(path_gradient),
    )
    if isinstance(target, LatticePotential):
        target.try_energy(like=optimizer.parameters[0])
    return Training(
        target,
        guide,
        elbo,
        optimizer,
        steps=schedule.steps,
        anneal=anneal if hasattr(target, "heated") else None,
        average=average,
        path_after_cooling=path_gradient is None and _has_score(guide),
        warmup=warmup,
        compiles=compile,
        world=world,
    )


def _check_memory(training: Training, batch: int, sites: int) -> None:
    """Refuse a step that cannot fit, before the first one; small ones are not looked at."""
    world = training.world
    if world.share("batch", batch) * sites < LARGE_BATCH:
        return
    device = training.optimizer.parameters[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        world.together(lambda: check_memory(training.try_step, batch, sites, device, world.size))


def _schedule(
    target: Any, flow: Any, steps: int | None, batch: int | None, lr: float | None
) -> Schedule:
    """What was given, else the defaults of the shape."""
    known = default_schedule(_shape(target, flow, (steps, batch, lr)))
    return Schedule(
        steps=known.steps if steps is None else int(steps),
        batch=known.batch if batch is None else int(batch),
        learning_rate=known.learning_rate if lr is None else float(lr),
    )


def _checkpoints(
    folder: str | os.PathLike[str] | None,
    every: float | None,
    every_steps: int | None,
    keep: int | None,
    resume: bool,
) -> Checkpoints | None:
    """Where to keep the training, if anywhere."""
    if not isinstance(resume, bool):
        raise TypeError(f"resume is {resume!r}; accepted: True or False")
    if folder is None:
        refuse_without("checkpoint", "with a folder of them", keep=keep, resume=resume)
        return None
    return Checkpoints(folder, every, every_steps, keep)


def _table(
    world: Processes,
    path: str | os.PathLike[str] | None,
    every: float | None,
    every_steps: int | None,
) -> HistoryFile | None:
    """Where to write the steps, if anywhere; the first process checks the path."""
    if path is None:
        return None
    return world.from_first(lambda: HistoryFile(path, Interval(every, every_steps)))


def _clear_cache(flow: Any) -> None:
    """Forget samples of the flow that are not to outlive what made them."""
    clear_cache = getattr(flow, "clear_cache", None)
    if clear_cache is not None:
        clear_cache()


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
    warmup: int | None,
    clip: float | None,
    average: float,
    seed: int | None,
) -> None:
    for name, value, least in (("steps", steps, 1), ("batch", batch, 2), ("warmup", warmup, 0)):
        if value is not None:
            check_integer(name, value, least)
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
