# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of particles: resampling, and the next step of beta."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.statistics import kish_fractions

BETA_HALVINGS = 50
"""Halvings of the interval in which the next beta lies."""


def resample(
    log_weights: Tensor, threshold: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Resample the groups whose effective fraction is below the threshold.

    Args:
        log_weights: shape ``(groups, n)``.
        threshold: of Kish's effective fraction; groups without any weight stay as they are.
        generator: source of the random numbers.

    Returns:
        Indices into all particles, shape ``(groups, n)``; their log-weights, in a resampled group
        all ln of its mean weight; and True for each group that was resampled.
    """
    groups, size = log_weights.shape
    alive = torch.isfinite(log_weights).any(-1)
    poor = alive & (kish_fractions(log_weights) < threshold)
    chosen = torch.arange(groups * size, device=log_weights.device).view(groups, size)
    if bool(poor.any()):
        chosen[poor] = chosen[poor].gather(-1, systematic(log_weights[poor], generator))
        means = log_mean_exp(log_weights).unsqueeze(-1).expand_as(log_weights)
        log_weights = torch.where(poor.unsqueeze(-1), means, log_weights)
    return chosen, log_weights, poor


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


def next_beta(log_ratio: Tensor, log_weights: Tensor, beta: float, fraction: float) -> float:
    """The beta at which the conditional ESS falls to ``fraction``, or 1 if it does not.

    Args:
        log_ratio: ln w of the particles, whose weights take in w^(change of beta).
        log_weights: of the particles so far.
        beta: the present one.
        fraction: in (0, 1).
    """
    alive = torch.isfinite(log_ratio) & torch.isfinite(log_weights)
    log_ratio, log_weights = log_ratio[alive], log_weights[alive]
    if conditional_ess(log_ratio * (1.0 - beta), log_weights) >= fraction:
        return 1.0
    low, high = 0.0, 1.0 - beta
    for _ in range(BETA_HALVINGS):
        middle = 0.5 * (low + high)
        if conditional_ess(log_ratio * middle, log_weights) >= fraction:
            low = middle
        else:
            high = middle
    return min(1.0, beta + high)


def conditional_ess(increments: Tensor, log_weights: Tensor) -> float:
    """(sum W u)^2 / (sum W sum W u^2) of increments u of the weights W, all as logarithms."""
    first = torch.logsumexp(log_weights + increments, 0)
    second = torch.logsumexp(log_weights + 2.0 * increments, 0)
    return math.exp(float(2.0 * first - torch.logsumexp(log_weights, 0) - second))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, over the last dimension."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])
