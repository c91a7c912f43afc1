# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""How long, with how many samples, at which learning rate and temperature a flow is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyro_neuralrg.arguments import check_integer, check_number

LARGEST_BATCH, SMALLEST_BATCH = 256, 64
BATCH_SITES = 2**16
"""Sites of a batch, within these bounds. All blocks of a layer share their weights, so that large
lattices need fewer samples: at 32 x 32, Tc, the same CPU time leaves 0.143 nats with 64, and with
256 as much as 0.150 (one seed, on a machine twice as fast)."""

WARMUP_STEPS = 100
"""Steps of the linear rise of the learning rate, but at most a tenth of all, if none are given."""

FINAL_RATE = 0.01
"""Last learning rate of the cosine, as a fraction of the largest one."""

LARGEST_RATE = 8e-3
RATE_SITES = 256
"""From here on the learning rate falls with the root of the number of sites: at 32 x 32, T = 2.0,
trainings ran away with 8e-3 and did not with 3e-3."""

TEMPERATURE_LEVELS = 100
"""Temperatures that cooling passes through; each one is a target to be set up."""


class Budget(NamedTuple):
    """Size of a training.

    Attributes:
        steps: optimiser steps.
        batch: samples per step.
        learning_rate: largest learning rate of Adam.
    """

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Cooling:
    """Training starts at ``start`` times the temperature, where q is close to the target.

    With the default, at 8 x 8, Tc, 6000 steps leave 0.0115 nats, with (1.5, 0.25) 0.0147 (one
    seed). Path gradients begin at the final temperature.

    Attributes:
        start: factor of the temperature at the first step, > 0.
        fraction: part of the steps after which the factor is 1, from 0 to 1.
    """

    start: float = 1.3
    fraction: float = 0.1

    def __post_init__(self) -> None:
        check_number("start", self.start, "a temperature factor > 0", above=0)
        check_number("fraction", self.fraction, "a fraction of the steps, 0 to 1", least=0, most=1)


@dataclass(frozen=True)
class Schedule:
    """Course of a training.

    Attributes:
        warmup: steps in which the learning rate rises; None: 100, but at most a tenth of all.
        cooling: how the temperature falls; None: not at all. A target without ``heated`` (a model)
            is not cooled.
        clip: largest norm of the gradient; None: unlimited.
        average: fraction of the steps, at the end, whose parameters are averaged for the result.

    Example:
        >>> Schedule(cooling=Cooling(start=1.5), average=0.2).cooling.fraction
        0.1
    """

    warmup: int | None = None
    cooling: Cooling | None = Cooling()
    clip: float | None = 100.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup is not None:
            check_integer("warmup", self.warmup, 0)
        if not isinstance(self.cooling, Cooling | None):
            raise TypeError(f"cooling is {self.cooling!r}; accepted: a Cooling or None")
        if self.clip is not None:
            check_number("clip", self.clip, "a positive number or None", above=0)
        check_number("average", self.average, "a fraction between 0 and 1", least=0, most=1)


def default_budget(shape: Sequence[int]) -> Budget:
    """The defaults of :func:`~pyro_neuralrg.train.training.fit` for a lattice of this shape.

    Example:
        >>> default_budget((8, 8)).batch, default_budget((32, 32)).batch
        (256, 64)
    """
    sites = math.prod(shape)
    steps = round(2000 * math.sqrt(max(1.0, sites / 64)))
    rate = LARGEST_RATE * math.sqrt(min(1.0, RATE_SITES / sites))
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, BATCH_SITES // sites))
    return Budget(steps=steps, batch=batch, learning_rate=rate)


def learning_rate_factor(step: int, steps: int, warmup: int | None = None, begun: int = 0) -> float:
    """Linear warm-up, then half a cosine down to ``FINAL_RATE``; relative to the largest rate.

    Args:
        step: number of the step.
        steps: length of the schedule.
        warmup: steps of the warm-up; None: ``WARMUP_STEPS``, but at most a tenth of all.
        begun: step at which it begins.

    Example:
        >>> [round(learning_rate_factor(step, 1000, warmup=4), 3) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if warmup is None:
        warmup = min(WARMUP_STEPS, steps // 10)
    progress = step / max(1, steps)
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return min(1.0, (step - begun + 1) / max(1, warmup)) * cosine


def temperature_factor(step: int, steps: int, cooling: Cooling | None) -> float:
    """Factor of the temperature at ``step``: linear from ``start`` to 1, in equal stairs.

    Example:
        >>> [temperature_factor(step, 4, Cooling(1.5, 0.5)) for step in range(4)]
        [1.5, 1.25, 1.0, 1.0]
    """
    length = 0 if cooling is None else round(cooling.fraction * steps)
    if cooling is None or step >= length:
        return 1.0
    levels = min(TEMPERATURE_LEVELS, length)
    level = step * levels // length
    return cooling.start + (1.0 - cooling.start) * level / levels
