# SPDX-License-Identifier: Apache-2.0
"""Warm-up: kernels, which know nothing of it, are tuned before the draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pyro_neuralrg.arguments import check_choice, check_number, check_type
from pyro_neuralrg.mcmc.kernel import (
    ChainState,
    Kernel,
    LocalKernel,
    StepInfo,
    gradient_of,
    is_covariance,
)
from pyro_neuralrg.mcmc.learning import (
    Agreement,
    Arrival,
    DecorrelationLength,
    DualAveraging,
    Learner,
    PooledCovariance,
    TrajectoryLength,
)
from pyro_neuralrg.mcmc.low_rank import LowRankCovariance
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.processes import Processes

MIN_STEPS = 10
"""Fewer steps tell less of a step size, or a mass, than the guess at the start."""

LAST_STEPS = 50
"""Steps that step size and trajectory length are given after the last mass, if there are enough, as
in Stan: a length begins anew with it, and of 15 steps was not half as long as it was to be."""

MAX_RHAT, RHAT_STEPS = 1.1, 50
"""R-hat at the end of warm-up that is warned of, over so many steps at least."""

MASSES = ("unit", "diagonal", "low_rank", "dense")


@dataclass(frozen=True)
class Adaptation:
    """Choice of what is adapted during warm-up.

    Fewer than ten steps only find the order of magnitude of the step size; the mass needs ten steps
    of positions and ten more for the step size that belongs to it.

    Attributes:
        target_acceptance: acceptance probability over the chains that the step size aims at; None
            takes each kernel's own (HMC 0.8, ChEES 0.651, Langevin 0.574, random walk 0.234).
        step_size: adapt the step size, shared by the chains, by dual averaging.
        mass: "unit" leaves it as it is; "diagonal" adapts it to the variances, "dense" to the
            covariance (for few dimensions), "low_rank" to the variances and to the directions that
            stand out of draws or gradients, of which it needs many: pooled over chains and windows
            of doubling length. None takes "diagonal" where a trajectory length is adapted, else
            "unit".
        trajectory_length: adapt the trajectory length of kernels that have one.
        steps: steps of the warm-up; as many as draws if None.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    target_acceptance: float | None = None
    step_size: bool = True
    mass: str | None = None
    trajectory_length: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.target_acceptance is not None:
            accepted = "a number in (0, 1), or None"
            check_number("target_acceptance", self.target_acceptance, accepted, above=0, below=1)
        for name in ("step_size", "trajectory_length"):
            check_type(name, getattr(self, name), bool, "True or False")
        if self.mass is not None:
            check_choice("mass", self.mass, MASSES)


class Warmup:
    """Adapts the kernels with a step size within a kernel, one step at a time.

    It learns from the chains of all processes, so that all of them find the same numbers. The given
    kernel is not changed; :attr:`kernel` is the present one.

    Raises:
        ValueError: if a trajectory length is to be adapted over a single chain, or a mass of low
            rank without gradients.
    """

    def __init__(
        self, kernel: Kernel, adaptation: Adaptation, steps: int, chains: int, world: Processes
    ) -> None:
        self.kernel = kernel
        self._world = world
        self._averaging = steps >= MIN_STEPS
        tunable = kernel.members if steps > 0 else {}
        self._step_sizes = {
            name: DualAveraging(
                member.step_size, adaptation.target_acceptance or member.target_acceptance
            )
            for name, member in tunable.items()
            if member.step_size is not None and adaptation.step_size
        }
        self._lengths: dict[str, TrajectoryLength | DecorrelationLength] = {
            name: member.length_learner()
            for name, member in tunable.items()
            if isinstance(member, LocalKernel)
            and member.trajectory_length is not None
            and adaptation.trajectory_length
        }
        if self._lengths and chains < 2:
            raise ValueError(
                f"num_chains is {chains}; accepted: at least 2, over which the trajectory length "
                "is adapted (or Adaptation(trajectory_length=False))"
            )
        mass = adaptation.mass or ("diagonal" if self._lengths else "unit")
        self._window_ends = [] if mass == "unit" else _window_ends(steps)
        if mass == "low_rank" and self._window_ends and not kernel.needs_gradient:
            raise ValueError(
                f"mass is 'low_rank', and {kernel.name!r} has no gradients to learn it from; "
                "accepted: 'unit', 'diagonal', 'dense'"
            )
        self._covariance: PooledCovariance | LowRankCovariance = (
            LowRankCovariance() if mass == "low_rank" else PooledCovariance(mass == "dense")
        )
        self._arrival, self._half = Arrival(), steps // 2
        self._agreement = Agreement()

    def begin(self, state: ChainState, generator: torch.Generator, anew: bool = False) -> int:
        """Find the order of magnitude of each step size; return the gradients per chain spent.

        With a new mass, or once chains that began far out have come in, ``anew``, trajectory
        lengths begin at one step: their criterion has its first maximum above, and others beyond.
        """
        evaluations = 0
        for name, average in self._step_sizes.items():
            member = self.kernel.members[name]
            step_size, cost = rough_step_size(member, state, generator, average.target, self._world)
            average.restart(step_size)
            evaluations += cost
        for name, length in self._lengths.items():
            if name in self._step_sizes:
                size = self._step_sizes[name].value
                length.restart(size if anew else max(size, length.average))
        self._tune()
        return evaluations

    def update(
        self, index: int, state: ChainState, info: StepInfo, generator: torch.Generator
    ) -> int:
        """Take in the ``index``-th warm-up step; return the gradients per chain spent on it."""
        for name, member in self.kernel.members.items() if self._averaging else ():
            part = info.part(name)
            if part is not None:
                known = part if name in self._lengths else part._replace(trajectory=None)
                self._learn(name, member, _of_all(known, self._world))
        if self._lengths and index >= self._half:
            self._agreement.update(self._world.gather(state.position))
        if self._window_ends and index >= self._window_ends[0]:
            learned = [self._world.gather(state.position)]
            if isinstance(self._covariance, LowRankCovariance):
                learned.append(self._world.gather(gradient_of(state)))
            self._covariance.update(*learned)
            if index + 1 in self._window_ends[1:] and self._set_mass(state):
                return self.begin(state, generator, anew=True)
        if self._has_arrived(index, state):
            return self.begin(state, generator, anew=True)
        self._tune()
        return 0

    def finish(self) -> Kernel:
        """Return the kernel for the draws; warn if chains do not agree that learned a length."""
        self._tune(averaged=True)
        steps = self._agreement.steps
        rhat = self._agreement.rhat if steps >= RHAT_STEPS else math.nan
        if rhat > MAX_RHAT and self._world.is_first:
            warn_user(
                f"the chains do not agree at the end of warm-up: R-hat is {rhat:.2f} over its last "
                f"{steps} steps; the length of trajectories may be wrong, and the first draws: "
                "give it more steps, or starts that are closer to the target"
            )
        return self.kernel

    def _learn(self, name: str, member: Kernel, info: StepInfo) -> None:
        if name in self._step_sizes:
            self._step_sizes[name].update(member.acceptance(info))
        if name in self._lengths and info.trajectory is not None:
            assert isinstance(member, LocalKernel)
            self._lengths[name].update(info.trajectory, info.acceptance_rate, member)

    def _has_arrived(self, index: int, state: ChainState) -> bool:
        """Notice that the farthest chain has come in, for lengths learned from its way are wrong.

        In the first half of a warm-up: later there are too few steps to learn others.
        """
        late = index >= self._half or self._arrival.is_noticed
        if late or not self._lengths or not self._averaging:
            return False
        return self._arrival.update(float(self._world.gather(state.energy).max()))

    def _set_mass(self, state: ChainState) -> bool:
        """Give kernels with a step size the mass of the window; report whether it has one."""
        covariance = self._covariance.regularised()
        self._covariance.clear()
        covariance = None if covariance is None else covariance.to(state.position)
        if covariance is None or not is_covariance(covariance):  # positions that ran away
            return False
        local = [name for name, one in self.kernel.members.items() if one.step_size is not None]
        self.kernel = self.kernel.with_tuning(
            {name: {"inverse_mass": covariance} for name in local}
        )
        return True

    def _tune(self, averaged: bool = False) -> None:
        tuning: dict[str, dict[str, float]] = {name: {} for name in self.kernel.members}
        for name, step_size in self._step_sizes.items():
            tuning[name]["step_size"] = step_size.average if averaged else step_size.value
        for name, length in self._lengths.items():
            size = tuning[name].get("step_size", self.kernel.members[name].step_size or math.inf)
            longest = math.inf if averaged else size * length.most_steps
            tuning[name]["trajectory_length"] = min(
                length.average if averaged else length.value, longest
            )
        self.kernel = self.kernel.with_tuning(tuning)

    @property
    def _learners(self) -> list[Learner]:
        learned = self._covariance, self._arrival, self._agreement
        return [*self._step_sizes.values(), *self._lengths.values(), *learned]

    def state_dict(self) -> dict[str, Any]:
        """All that has been learned but for the kernel, as plain numbers and tensors."""
        return {"learned": [one.state_dict() for one in self._learners]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; :attr:`kernel` is to be set beside."""
        for one, learned in zip(self._learners, state["learned"], strict=True):
            one.load_state_dict(learned)


def _window_ends(steps: int) -> list[int]:
    """Steps at which windows of the mass begin and end; none where there are too few.

    The first 15 % adapt without it, then come windows of doubling length, then 10 % more without,
    or 25 % up to ``LAST_STEPS``, but at least ``MIN_STEPS``. As in Stan, a window after which the
    next one would not fit takes the rest as well.

    >>> _window_ends(200)
    [30, 55, 150]
    >>> _window_ends(20)
    []
    """
    last = max(0.1 * steps, min(0.25 * steps, LAST_STEPS))
    start, stop = round(0.15 * steps), min(round(steps - last), steps - MIN_STEPS)
    length = max(1, min(25, (stop - start) // 2))
    ends = [start]
    while ends[-1] + 3 * length < stop:
        ends.append(ends[-1] + length)
        length *= 2
    return [*ends, stop] if stop - start >= MIN_STEPS else []


def _of_all(info: StepInfo, world: Processes) -> StepInfo:
    """The info with the acceptance, and the trajectory if there is one, of all chains."""
    path, error = info.trajectory, info.energy_error
    return info._replace(
        acceptance_rate=world.gather(info.acceptance_rate),
        trajectory=None if path is None else path.mapped(world.gather),
        energy_error=None if error is None else world.gather(error),
    )


def rough_step_size(
    kernel: Kernel,
    state: ChainState,
    generator: torch.Generator,
    target_acceptance: float,
    world: Processes,
) -> tuple[float, int]:
    """Double or halve the step size until the acceptance of one step crosses the target.

    With trajectories of one step, for none is longer than twice the length, half a step. Returns
    the largest size tried whose acceptance was above the target, and the gradients spent.
    """
    assert kernel.step_size is not None
    size, evaluations, direction = kernel.step_size, 0, 0
    for _ in range(30):
        length = None if kernel.trajectory_length is None else size / 2
        trial = kernel.tuned(step_size=size, trajectory_length=length)
        _, info = trial.step(state, generator)
        evaluations += info.gradient_evaluations
        info = _of_all(info._replace(trajectory=None), world)
        higher = kernel.acceptance(info) > target_acceptance
        if direction == 0:
            direction = 1 if higher else -1
        elif (direction == 1) != higher:
            return (size / 2 if direction == 1 else size), evaluations
        size *= 2.0**direction
    return size, evaluations
