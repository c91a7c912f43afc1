# SPDX-License-Identifier: Apache-2.0
"""Train a flow on a target: the PDD loss, a schedule, cooling and a history."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from pyro_neuralrg.arguments import a_kind, check_integer, check_number, check_type, copied, see
from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.files.record import Checkpoints, Record
from pyro_neuralrg.infer.autoguide import AutoHierarchicalFlow
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.model_sites import ImproperDraws, latent_sites
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.potentials.family import PotentialFamily
from pyro_neuralrg.runtime.console import Progress
from pyro_neuralrg.runtime.memory import check_fits
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.runtime.processes import Processes, processes, seeded
from pyro_neuralrg.train.history import History, TrainingStep
from pyro_neuralrg.train.loop import Training
from pyro_neuralrg.train.optimizer import Budget, JoinedAdam, Schedule, default_budget
from pyro_neuralrg.transforms import ConditionalHierarchicalFlow

TRAINING_FORMAT = FileFormat(
    "pyro_neuralrg.training", version=4, writer="fit(..., record=Record(...))"
)


@dataclass(frozen=True, repr=False)
class FitResult:
    """A finished, stopped or interrupted training.

    Attributes:
        flow: the given flow, or the one built here, trained in place.
        history: every step as arrays.
        steps: steps taken, those before a checkpoint included.
        batch: samples per step.
        seconds: wall time.
        interrupted: True if Ctrl-C, or SIGTERM with a record, ended the training.
        stopped: reason of an early end, else None.
        divergences: number of returns to the best parameters, see :func:`fit`.
        unsaved: reason why the last checkpoint could not be written, else None.
        zero_weights: samples, of all batches, whose energy was infinite or NaN, see :func:`fit`.
    """

    flow: Any
    history: History
    steps: int
    batch: int
    seconds: float
    interrupted: bool
    stopped: str | None
    divergences: int
    unsaved: str | None
    zero_weights: int

    def __repr__(self) -> str:
        end = "" if self.stopped is None else f", stopped: {self.stopped}"
        return f"FitResult({self.history}, batch {self.batch}, {self.seconds:.0f} s{end})"

    def _repr_html_(self) -> str:
        last = self.history.free_energy[-1:].tolist()
        rows = {
            "free energy of the last step": f"{last[0]:.6g} nats" if last else None,
            "ESS of the last step": f"{self.history.ess[-1]:.1%}" if last else None,
            "steps": f"{self.steps} of {self.batch} samples",
            "seconds": f"{self.seconds:.0f}",
            "divergences": self.divergences or None,
            "samples of weight zero": self.zero_weights or None,
            "stopped": self.stopped,
        }
        return html_table("FitResult", rows)


def fit(
    target: Any,
    flow: Any = None,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    path_gradient: bool | None = None,
    seed: int | None = None,
    progress: bool = True,
    callback: Callable[[TrainingStep], Any] | None = None,
    schedule: Schedule | None = None,
    record: Record | None = None,
    model_args: tuple[Any, ...] = (),
) -> FitResult:
    """Train ``flow`` to sample ``target`` by minimising the free energy bound (paper Eq. 3-5).

    Adam on :class:`~pyro_neuralrg.infer.pdd.PDD`; the learning rate rises shortly and then follows
    half a cosine. Training starts at a higher temperature and cools, which helps where the target
    has several modes. Ctrl-C ends it with the present parameters. Neither the global random state
    (if ``seed`` is given) nor Pyro's parameter store (for flows) is changed.

    A training diverges if a loss or gradient is not finite, or if the running mean of the loss is
    far above its lowest value at this temperature. It then goes back to the parameters of that
    value, without Adam's moments and at half the rate; after ten times it ends. A sample of
    infinite energy has a weight of zero: the loss is that of the flow where the energy is finite
    plus the nats that the others cost, still a bound. So has one whose energy is NaN, up to one
    sample in a hundred, as far as 2,000 samples and then each batch tell (by four standard errors);
    beyond, the training diverges.

    The result is not worse than the beginning: where the loss at the final temperature is higher by
    more than two standard errors, on 2,000 fresh samples of each, the best known parameters are the
    result.

    On a CPU, for a lattice model, torch has one thread meanwhile; couplings share the threads that
    it had. Where ``torch.distributed`` is initialised, all its processes must call this with the
    same arguments: each draws its part of the batch from a seed of its own, gradients and
    statistics are those of the whole batch, and parameters stay equal. The first process alone
    shows the bar and writes checkpoints, from which as many processes as wrote them can go on.

    Args:
        target: a LatticePotential or a Pyro model; or a PotentialFamily: each step then draws a
            context for each sample, the loss is the mean over contexts, and its ``ess`` is NaN.
        flow: a flow, a SymmetrizedFlow, a FlowGuide or another reparameterised guide; for a family
            a ConditionalTransformModule, or a FlowGuide of one. Trained in place. Default:
            ``target.flow()``.
        steps: length of the training; default: by the shape, as for ``batch`` and ``lr``, see
            :func:`~pyro_neuralrg.train.default_budget`; without a lattice as of one site.
        batch: samples per step.
        lr: largest learning rate.
        path_gradient: see :class:`~pyro_neuralrg.infer.pdd.PDD`; None: for flows and the guide of
            this package, where it is cheap, once the target has cooled.
        seed: of the samples and of a flow built here; None: the global random state goes on.
        progress: show one progress bar; a line now and then where stderr is no terminal.
        callback: called after each step, on every process; True from any stops the training.
        schedule: warm-up, cooling, clipping and averaging; default: ``Schedule()``.
        record: a folder for checkpoints, from which a killed training goes on; None: no files.
        model_args: arguments of a Pyro model and its guide.

    Raises:
        ValueError, TypeError: naming the argument; also if the first loss is not finite.
        MemoryLimitError: if the fields of a step alone do not fit into memory (a ValueError).
        CheckpointError: if another run uses the folder of the record, none of its checkpoints is
            intact, or they are of other settings, which are named (a ValueError).
        RuntimeError: if another process of the group has ended.

    Warns:
        UserWarning: each once: if a weight is zero; if the training diverged, ended for that, or
            ended worse than it began; if there is no checkpoint to resume from, the newest is not
            intact, or one cannot be written (the training goes on and tries again).
    """
    schedule = Schedule() if schedule is None else schedule
    if not (callable(target) or hasattr(target, "energy")):
        accepted = "a LatticePotential, a PotentialFamily or a Pyro model"
        check_type("target", target, LatticePotential, accepted)
    check_type("path_gradient", path_gradient, bool | None, "True, False or None")
    check_type("callback", callback, Callable | None, "a function or None")
    check_type("schedule", schedule, Schedule, "a Schedule")
    check_type("record", record, Record | None, "a Record or None")
    check_type("model_args", model_args, tuple, "a tuple")
    if model_args and hasattr(target, "energy"):
        raise ValueError("model_args are given with a potential; accepted: with a Pyro model")
    world = processes()
    with seeded(world.seed(seed)), contextlib.ExitStack() as stack:
        flow = _default_flow(target) if flow is None else flow
        budget = _budget(_lattice_shape(target, flow), steps, batch, lr)
        training = _training(target, flow, budget, schedule, path_gradient, world, model_args)
        _clear_cache(flow)
        checkpoints = None
        if record is not None:
            checkpoints = stack.enter_context(Checkpoints(record, TRAINING_FORMAT, world))
            found = checkpoints.find(_fixed_settings(training, flow, budget, seed))
            if found is not None:
                training.go_on_from(found, checkpoints)
        bar = stack.enter_context(
            Progress(training.steps, "training", progress and world.is_first, training.step)
        )
        training.run(bar, callback, checkpoints)
    _clear_cache(flow)
    return FitResult(
        flow=flow,
        history=History.from_steps(training.records),
        steps=len(training.records),
        batch=budget.batch,
        seconds=training.seconds,
        interrupted=training.interrupted,
        stopped=training.stopped,
        divergences=training.divergences,
        unsaved=None if checkpoints is None else checkpoints.unsaved,
        zero_weights=training.zero_weights,
    )


def _default_flow(target: Any) -> Any:
    if not hasattr(target, "flow"):
        raise ValueError(
            f"flow is None, and target, a {type(target).__name__}, offers no flow; accepted: a "
            "flow or a guide"
        )
    return target.flow()


def _lattice_shape(target: Any, flow: Any) -> tuple[int, ...] | None:
    """The lattice shape, from whichever knows it."""
    known = [
        tuple(getattr(owner, name))
        for owner in (target, flow)
        for name in ("shape", "event_shape")
        if isinstance(getattr(owner, name, None), tuple)
    ]
    if any(shape != known[0] for shape in known):
        raise ValueError(
            f"flow has shape {known[-1]}, the target {known[0]}; accepted: equal ones"
            f"{see('error-field-shape')}"
        )
    return known[0] if known else None


def _budget(
    shape: tuple[int, ...] | None, steps: int | None, batch: int | None, lr: float | None
) -> Budget:
    """The given numbers, else the defaults of the shape, those of one site where there is none."""
    known = default_budget(shape or ())
    return Budget(
        check_integer("steps", known.steps if steps is None else steps, 1),
        check_integer("batch", known.batch if batch is None else batch, 2),
        check_number("lr", known.learning_rate if lr is None else lr, "a positive number", above=0),
    )


def _training(
    target: Any,
    flow: Any,
    budget: Budget,
    schedule: Schedule,
    path_gradient: bool | None,
    world: Processes,
    model_args: tuple[Any, ...],
) -> Training:
    """The training that is to be run, with the same parameters on all processes."""
    share = world.share("batch", budget.batch)
    guide = _guide(flow, isinstance(target, PotentialFamily))
    parameters = _trainable(target, guide, model_args)
    optimizer = JoinedAdam(parameters, budget.learning_rate, schedule.clip)
    vector = optimizer.vector()
    if world.size > 1:
        optimizer.assign(world.broadcast_from_first(lambda: vector.cpu()).to(vector))
    fields = 2 * share * math.prod(_lattice_shape(target, flow) or ()) * vector.element_size()
    world.run_on_all(lambda: check_fits(f"batch is {budget.batch}", fields, vector.device))
    is_plain = isinstance(guide, _Sampler) and hasattr(target, "energy")
    elbo = PDD(
        num_particles=share,
        max_plate_nesting=0 if is_plain else math.inf,  # for Pyro to find out
        vectorize_particles=True,
        path_gradient=bool(path_gradient),
    )
    if isinstance(target, LatticePotential):
        target.try_energy(like=vector)
    return Training(
        target,
        guide,
        elbo,
        optimizer,
        steps=budget.steps,
        schedule=schedule,
        path_after_cooling=path_gradient is None and _has_score(guide),
        world=world,
        arguments=model_args,
    )


def _fixed_settings(
    training: Training, flow: Any, budget: Budget, seed: int | None
) -> dict[str, Any]:
    """Settings that must be the same for a training to go on."""
    path_gradient = "after cooling" if training.path_after_cooling else training.elbo.path_gradient
    vector = training.start
    return {
        **budget._asdict(),
        **asdict(training.schedule),
        "cooling": training.cooling and asdict(training.cooling),
        "seed": seed,
        "path_gradient": path_gradient,
        "processes": training.world.size,
        "dtype": str(vector.dtype),
        "device": vector.device.type,
        "parameters": vector.numel(),
        "target": _traits(training.target),
        "flow": _traits(flow),
    }


def _traits(owner: Any) -> dict[str, Any]:
    """Kind of a target or a flow, with what it tells of itself in plain numbers and words."""
    known: dict[str, Any] = {"kind": getattr(owner, "__qualname__", type(owner).__qualname__)}
    for name in ("shape", "boundary", "temperature"):
        value = getattr(owner, name, None)
        if isinstance(value, float | str | tuple):
            known[name] = value
    flows: tuple[Any, ...] = (owner, getattr(owner, "flow", None))  # the second of a guide
    for flow in flows:
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            return known | flow.config
    return known


def _clear_cache(flow: Any) -> None:
    """Forget samples of the flow that are not to outlive what made them."""
    if hasattr(flow, "clear_cache"):
        flow.clear_cache()


def _guide(flow: Any, takes_context: bool) -> Callable[..., Any]:
    """The guide that draws from ``flow``.

    For flows it does not name its parameters to Pyro: the optimiser holds them already, and a few
    hundred ``pyro.param`` statements would cost several milliseconds a step.
    """
    inner = flow.flow if isinstance(flow, FlowGuide) else flow
    conditional = isinstance(inner, ConditionalTransformModule)
    if conditional != takes_context:
        accepted = (
            " for a PotentialFamily: a ConditionalTransformModule such as target.flow()"
            if takes_context
            else ": flow.condition(context), a guide that draws the context, or a PotentialFamily "
            "as target"
        )
        raise TypeError(f"flow is {a_kind(flow)}; accepted{accepted}")
    if isinstance(flow, FlowGuide):
        return _Sampler(flow)
    if conditional or isinstance(
        flow, torch.distributions.Distribution | torch.distributions.Transform
    ):
        return _Sampler(FlowGuide(flow))
    check_type("flow", flow, Callable, "a flow, a SymmetrizedFlow or a guide")
    return flow


def _trainable(target: Any, guide: Callable[..., Any], model_args: tuple[Any, ...]) -> list[Tensor]:
    """The parameters of the flow, and those that a model or a guide makes with ``pyro.param``."""
    found = list(guide.parameters()) if isinstance(guide, _Sampler) else []
    programs = [] if isinstance(guide, _Sampler) else [guide]
    if not hasattr(target, "energy"):
        programs.append(target)
    with poutine.block(), poutine.trace(param_only=True) as capture:
        for program in programs:
            with poutine.trace() as run:
                ImproperDraws()(program)(*copied(model_args))
            if isinstance(guide, _Sampler):
                _check_site(guide.guide, latent_sites(run.trace))
    sites: Any = capture.trace.nodes.values()
    found += [site["value"].unconstrained() for site in sites]
    trainable = [parameter for parameter in found if parameter.requires_grad]
    if not trainable:
        raise ValueError("flow has no parameters to train; accepted: a flow or a guide with some")
    return trainable


def _check_site(guide: FlowGuide, sites: dict[str, Any]) -> None:
    """Refuse a model without the site that a flow draws, or with one of another shape."""
    if guide.site not in sites:
        raise ValueError(
            f"flow draws the site {guide.site!r}, the model has {', '.join(map(repr, sites))}; "
            "accepted: FlowGuide(flow, name) with the name of the model's site"
        )
    ours = tuple(guide.distribution().event_shape)
    seen = tuple(sites[guide.site]["value"].shape)
    if seen[-len(ours) :] != ours or math.prod(seen) != math.prod(ours):
        raise ValueError(
            f"flow has shape {ours}, site {guide.site!r} of the model {seen}; accepted: equal ones"
        )


def _has_score(guide: Callable[..., Any]) -> bool:
    """True if samples come with the score, so that path gradients cost little more."""
    if isinstance(guide, AutoHierarchicalFlow):
        return True
    if not isinstance(guide, _Sampler):
        return False
    flow = guide.guide.flow
    if isinstance(flow, ConditionalTransformModule):
        return isinstance(flow, ConditionalHierarchicalFlow)
    return getattr(guide.guide.distribution(), "has_score", False)


class _Sampler:
    """A FlowGuide without its parameter statements; a flow uses no argument but a context."""

    takes_batches = True

    def __init__(self, guide: FlowGuide) -> None:
        self.guide = guide

    def parameters(self) -> Iterator[Tensor]:
        """The parameters, for path gradients."""
        return self.guide.parameters()

    def __call__(self, *args: Any) -> Tensor:
        conditional = isinstance(self.guide.flow, ConditionalTransformModule)
        context = args[:1] if conditional else ()
        return pyro.sample(self.guide.site, self.guide.distribution(*context))
