# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of particles: how even they are, who is copied, and how far beta may go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_number

__all__ = ["effective_fraction", "effective_fractions", "log_mean_exp", "next_betas", "systematic"]

BISECTIONS = 50
"""Halvings of the interval in which the next beta lies."""


def systematic(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Systematic resampling: indices in proportion to weights, from one uniform number a row.

    Entry i is chosen n W_i times in expectation, and never more than one time off that.

    Args:
        log_weights: shape ``(groups, n)``, not all minus infinity in a row.
        generator: source of the uniform numbers.

    Returns:
        Increasing indices, shape ``(groups, n)``.

    Example:
        >>> systematic(torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log(), torch.Generator())
        tensor([[0, 0, 2, 3]])
    """
    rows, size = log_weights.shape
    start = torch.rand(
        rows, 1, generator=generator, dtype=log_weights.dtype, device=log_weights.device
    )
    points = (start + torch.arange(size, device=log_weights.device)) / size
    cumulative = torch.softmax(log_weights, -1).cumsum(-1)
    # the last weight that is none takes what rounding leaves
    indices = torch.searchsorted(cumulative / cumulative[:, -1:], points, right=True)
    return indices.clamp(max=size - 1)


def next_betas(
    betas: Sequence[float] | None, conditional_ess: float
) -> Callable[[Tensor, Tensor, float], float]:
    """What gives the next beta of log-ratios ln w, log-weights and the present beta."""
    fraction = check_number(
        "conditional_ess", conditional_ess, "a number in (0, 1)", above=0, below=1
    )
    if betas is None:
        return lambda log_ratio, weights, beta: next_beta(log_ratio, weights, beta, fraction)
    accepted = "increasing numbers from 0 to 1, both among them"
    if not isinstance(betas, Iterable):
        raise TypeError(f"betas is {betas!r}; accepted: {accepted}")
    given = [check_number("betas", beta, accepted, least=0, most=1, given=betas) for beta in betas]
    rising = all(a < b for a, b in itertools.pairwise(given))
    if len(given) < 2 or given[0] != 0.0 or given[-1] != 1.0 or not rising:
        raise ValueError(f"betas is {betas!r}; accepted: {accepted}")
    following = dict(itertools.pairwise(given))
    return lambda log_ratio, weights, beta: following[beta]


def next_beta(log_ratio: Tensor, weights: Tensor, beta: float, fraction: float) -> float:
    """The beta at which the conditional ESS falls to ``fraction``, or 1 if it does not."""
    alive = torch.isfinite(log_ratio) & torch.isfinite(weights)
    log_ratio, weights = log_ratio[alive], weights[alive]
    if conditional_ess(log_ratio * (1.0 - beta), weights) >= fraction:
        return 1.0
    low, high = 0.0, 1.0 - beta
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if conditional_ess(log_ratio * middle, weights) >= fraction:
            low = middle
        else:
            high = middle
    return min(1.0, beta + high)


def conditional_ess(increments: Tensor, weights: Tensor) -> float:
    """(sum W u)^2 / (sum W sum W u^2) of increments u of the weights W, all as logarithms."""
    first = torch.logsumexp(weights + increments, 0)
    second = torch.logsumexp(weights + 2.0 * increments, 0)
    return math.exp(float(2.0 * first - torch.logsumexp(weights, 0) - second))


def effective_fractions(log_weights: Tensor) -> Tensor:
    """Kish ESS over the last dimension as a fraction; NaN if all weights are zero."""
    size = log_weights.shape[-1]
    first = torch.logsumexp(log_weights, -1)
    return (2.0 * first - torch.logsumexp(2.0 * log_weights, -1) - math.log(size)).exp()


def effective_fraction(log_weights: Tensor) -> float:
    """Of one row of weights."""
    return float(effective_fractions(log_weights))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, over the last dimension."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])
