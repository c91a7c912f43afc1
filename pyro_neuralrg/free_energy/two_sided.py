# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The free energy between two bounds: from samples of the flow, and from samples of the target."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type
from pyro_neuralrg.free_energy.importance import (
    as_distribution,
    energy_function,
    log_weights,
    log_weights_of,
)
from pyro_neuralrg.statistics import Estimate, LogWeights, summarise
from pyro_neuralrg.statistics.resampling import sample_mean


class Bounds(NamedTuple):
    """Bounds of -ln Z in nats: ``lower <= -ln Z <= upper``, each in expectation.

    Attributes:
        lower: mean of ln q - ln pi over the target; -ln Z - KL(pi/Z || q) in expectation.
        lower_se: its standard error.
        upper: mean of ln q - ln pi over q, the variational bound; -ln Z + KL(q || pi/Z) in
            expectation.
        upper_se: its standard error.
    """

    lower: float
    lower_se: float
    upper: float
    upper_se: float


def bounds(
    target: Any,
    q: Any,
    num_samples: int = 10_000,
    *,
    reference: Tensor | None = None,
    batch_size: int = 1000,
    seed: int | None = None,
) -> Bounds:
    r"""Bound the free energy from both sides.

    .. math:: E_{\pi/Z}[\ln q - \ln\pi] \le -\ln Z \le E_q[\ln q - \ln\pi]

    The distance of the two is the sum of both Kullback-Leibler divergences. A mode that the flow
    misses leaves the upper bound as good as it was (that of its part of Z) and shows in the lower,
    unless the reference misses it too. Both means are unbiased. The error of reference samples from
    chains comes from their effective sample size; they must have forgotten their starts.

    Args:
        target: as for :func:`~pyro_neuralrg.free_energy.estimate`.
        q: likewise.
        num_samples: samples of q, and of the target if there are none.
        reference: fields of the target, ``(n,) + shape``, taken to be independent, or ``(chains,
            draws) + shape``; None draws them by ``target.sample_reference``.
        batch_size: fields in memory at a time.
        seed: of the reference samples drawn here; None goes on with torch's own generator, as the
            samples of q always do.

    Raises:
        TypeError: if a size is no integer, or there are no reference samples.
        ValueError: if a size is below 1, ``reference`` has another shape, or an energy or ln q is
            NaN.

    References:
        Li & Wang, PRL 121, 260601 (2018), Eq. 4, for the upper bound; Grosse, Ghahramani, Adams,
        "Sandwiching the marginal likelihood using bidirectional Monte Carlo" (2015).

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(2), 1.0), 1)
        >>> found = bounds(
        ...     lambda x: 0.5 * x.square().sum(-1), q, 100, reference=torch.randn(100, 2)
        ... )
        >>> round(found.lower, 4), round(found.upper, 4)  # -ln(2 pi), since q is the target
        (-1.8379, -1.8379)
    """
    num_samples = check_integer("num_samples", num_samples, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    if reference is None:
        draw = getattr(target, "sample_reference", None)
        if draw is None:
            raise TypeError(
                f"reference is None and target, a {type(target).__name__}, has no "
                "sample_reference; accepted: fields of the target"
            )
        reference = draw(num_samples, seed)
    lower = _mean_log_weight(target, q, reference, batch_size)
    upper = LogWeights(log_weights(target, q, num_samples, batch_size)).mean_log
    return Bounds(-lower.value, lower.standard_error, -upper.value, upper.standard_error)


def _mean_log_weight(target: Any, q: Any, reference: Tensor, batch_size: int) -> Estimate:
    """Mean of ln pi - ln q of fields of the target, independent ones or those of chains."""
    energy, density = energy_function(target), as_distribution(q)
    check_type("reference", reference, Tensor, "a tensor of fields")
    shape = tuple(density.event_shape)
    batch = reference.dim() - len(shape)
    right = batch in (1, 2) and tuple(reference.shape[batch:]) == shape
    if not right or reference.numel() == 0:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)}; accepted: (n,) or (chains, draws), "
            f"each >= 1, followed by {shape}"
        )
    like = density.sample((1,))
    with torch.no_grad():
        pieces = [
            log_weights_of(energy, density, part.to(like))
            for part in reference.flatten(0, batch - 1).split(batch_size)
        ]
    weights = torch.cat(pieces)
    if bool(weights.isnan().any()):
        raise ValueError(
            f"{int(weights.isnan().sum())} of {weights.numel()} log-weights of the reference are "
            "NaN; accepted: an energy and a density that are numbers for every field"
        )
    if batch == 1:
        return sample_mean(weights)
    summary = summarise(weights.view(reference.shape[:2]))
    return Estimate(summary.mean, summary.mcse)
