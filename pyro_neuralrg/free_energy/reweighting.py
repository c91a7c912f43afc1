# SPDX-License-Identifier: Apache-2.0
"""Observables of the target from samples of a flow: self-normalised importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type, copied
from pyro_neuralrg.free_energy.importance import (
    MEANS_REMEDY,
    FreeEnergyEstimate,
    from_log_weights,
    weighted_samples,
    without_undefined,
)
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.statistics import Estimate, LogWeights
from pyro_neuralrg.statistics.resampling import WeightedGroups
from pyro_neuralrg.statistics.weights import MAX_PARETO_K, tail_of_squares


@dataclass(frozen=True, repr=False, eq=False)
class Reweighted(Estimate[Tensor]):
    """Means over the target, of which ``susceptibility`` and the like take several.

    Attributes:
        value: float64, of the shape of one value.
        standard_error: of each, float64, same shape; NaN of a single group.
        ess: Kish effective sample size of the weights as a fraction, between 0 and 1.
        pareto_k: of the weights; NaN for groups of several samples, which may be copies.
        values_pareto_k: of the weights times the values less their mean, the largest; likewise.
        groups: what the weights and the weighted values of each group add up to.
    """

    value: Tensor
    standard_error: Tensor
    ess: float
    pareto_k: float
    groups: WeightedGroups
    values_pareto_k: float = math.nan

    def __repr__(self) -> str:
        return f"Reweighted({self}, ESS {self.ess:.1%})"

    def _repr_html_(self) -> str:
        return html_table("Reweighted", {"value": self, "ESS": f"{self.ess:.1%}"})


class Expectations(NamedTuple):
    """Means over the target, and its free energy.

    Attributes:
        observables: by name.
        free_energy: from the same samples.
    """

    observables: dict[str, Reweighted]
    free_energy: FreeEnergyEstimate

    def _repr_html_(self) -> str:
        return html_table("Expectations", self.observables) + self.free_energy._repr_html_()


def reweight(
    values: Tensor, log_weights: Tensor | LogWeights, *, groups: int | None = None
) -> Reweighted:
    r"""Mean over the target of values at samples of another density.

    .. math:: \bar v = \frac{\sum_i w_i v_i}{\sum_i w_i}, \qquad
        \sigma^2 = \frac{n}{n - 1} \frac{\sum_i w_i^2 (v_i - \bar v)^2}{(\sum_i w_i)^2}

    The error is that of the delta method. The bias, of order 1 / n, is below it. Where the weights
    times the residuals have a heavy tail, of a Pareto k-hat above 1 / 3, which the samples seldom
    show, the error takes it in as fitted. Above 0.7, of the weights (``pareto_k``) or of these with
    the values (``values_pareto_k``), neither mean nor error can be trusted; ``ess`` tells how many
    samples are effective.

    Args:
        values: at the samples, ``(num_samples,)`` or ``(num_samples, ...)``.
        log_weights: ``ln pi - ln q`` of the samples up to a constant, ``(num_samples,)``; minus
            infinity is a weight of zero, whose value does not matter.
        groups: number of consecutive equal groups of samples, independent of each other, where
            those within a group are not (:func:`anneal`); None: all samples are independent.

    Raises:
        ValueError: also if the weights are all zero, NaN or plus infinity, or a value of positive
            weight is not finite.

    Warns:
        UserWarning: if the Pareto k-hat of the weights is above 0.7; of groups it is not known.

    References:
        Owen, "Monte Carlo theory, methods and examples" (2013), chapter 9, for the delta method;
        Nicoli et al., PRL 126, 032001 (2021), for lattice fields.

    Example:
        >>> found = reweight(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0]).log())
        >>> round(float(found.value), 4)
        0.25
    """
    check_type("log_weights", log_weights, Tensor | LogWeights, "a tensor")
    weights = log_weights if isinstance(log_weights, LogWeights) else LogWeights(log_weights)
    found = weighted_mean(values, weights, groups=groups)
    if found.pareto_k > MAX_PARETO_K:
        weights.warn_if_poor(remedy=MEANS_REMEDY)
    return found


def weighted_mean(
    values: Tensor, log_weights: Tensor | LogWeights, *, groups: int | None = None
) -> Reweighted:
    """The mean of :func:`reweight`, of weights that have been judged before."""
    check_type("values", values, Tensor, "a tensor")
    weights = log_weights if isinstance(log_weights, LogWeights) else LogWeights(log_weights)
    number, largest = len(weights), weights.values.max()
    groups = number if groups is None else check_integer("groups", groups, 1, number)
    if number % groups:
        raise ValueError(f"groups is {groups}; accepted: a divisor of {number}, the samples")
    if values.dim() == 0 or len(values) != number:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; accepted: ({number},) or ({number}, ...), "
            "as many as log_weights"
        )
    if largest == -math.inf:
        raise ValueError(
            f"log_weights are all -inf ({number} samples): none has any weight; accepted: at "
            "least one finite log-weight"
        )
    flat = values.detach().double().cpu().reshape(number, -1)
    bad = int((~flat.isfinite().all(-1) & (weights.values > -math.inf)).sum())
    if bad:
        raise ValueError(
            f"values of {bad} of {number} samples are not finite; accepted: finite values "
            "wherever the weight is not zero"
        )
    relative = (weights.values - largest).exp().unsqueeze(-1)
    # an infinite value of a sample without weight counts nothing
    weighted = torch.where(relative > 0, relative * flat, 0.0)
    sums = weighted.view(groups, -1, flat.shape[-1]).sum(1)
    masses = relative.view(groups, -1).sum(1)
    mean = sums.sum(0) / masses.sum()
    error, largest_k = torch.full_like(mean, math.nan), math.nan
    if groups > 1:
        residuals = sums - mean * masses.unsqueeze(-1)
        squares = residuals.square().sum(0)
        if groups < number or not math.isnan(weights.pareto_k):
            squares, shapes = tail_of_squares(residuals)
            known = shapes[~shapes.isnan()]
            largest_k = float(known.max()) if len(known) else math.nan
        error = (squares * (groups / (groups - 1))).sqrt() / masses.sum()
    return Reweighted(
        value=mean.view(values.shape[1:]),
        standard_error=error.view(values.shape[1:]),
        ess=weights.ess,
        pareto_k=weights.pareto_k if groups == number else math.nan,
        values_pareto_k=largest_k,
        groups=WeightedGroups(masses, sums.view(groups, *values.shape[1:])),
    )


def expectations(
    target: Any,
    q: Any,
    observables: Mapping[str, Callable[[Tensor], Tensor]],
    num_samples: int = 10_000,
    *,
    batch_size: int = 1000,
) -> Expectations:
    """Means of observables over the target, and its free energy, from samples of a flow.

    Arguments and warnings are those of :func:`~pyro_neuralrg.free_energy.estimate`, without models.
    Each of the observables, by name, maps fields ``(n,) + shape`` to values ``(n,)`` or ``(n,
    ...)``, which are kept, unlike the fields. See :func:`reweight` for errors and bias.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> _ = torch.manual_seed(0)
        >>> q = Independent(Normal(torch.zeros(2), 1.2), 1)
        >>> energy = lambda x: 0.5 * x.square().sum(-1)
        >>> found = expectations(energy, q, {"square": lambda x: x.square().mean(-1)})
        >>> square = found.observables["square"]
        >>> bool((square.value - 1.0).abs() < 4 * square.standard_error)
        True
    """
    check_type("observables", observables, Mapping, "functions of fields by name")
    for name, observable in observables.items():
        check_type(f"observables[{name!r}]", observable, Callable, "a function of fields")
    log_weights: list[Tensor] = []
    values: dict[str, list[Tensor]] = {name: [] for name in observables}
    for x, part in weighted_samples(target, q, num_samples, batch_size):
        log_weights.append(part)
        for name, observable in observables.items():
            values[name].append(_observed(name, observable, x))
    weights = LogWeights(without_undefined(torch.cat(log_weights)))
    weights.warn_if_poor(remedy=MEANS_REMEDY)
    means = {name: weighted_mean(torch.cat(found), weights) for name, found in values.items()}
    for name, mean in means.items():
        if weights.is_trustworthy and mean.values_pareto_k > MAX_PARETO_K:
            warn_user(
                f"the weights times {name!r} have a heavy tail (Pareto k-hat "
                f"{mean.values_pareto_k:.2f}): neither the mean nor its error bar can be trusted; "
                f"{MEANS_REMEDY}"
            )
    return Expectations(means, from_log_weights(weights))


def _observed(name: str, observable: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The observable of a batch of fields, float64 on the CPU."""
    with torch.no_grad():
        found = observable(copied(x))
    check_type(f"observables[{name!r}] of fields", found, Tensor, "a tensor")
    if found.dim() == 0 or len(found) != len(x):
        raise ValueError(
            f"observables[{name!r}] returned shape {tuple(found.shape)} for {len(x)} fields; "
            f"accepted: ({len(x)},) or ({len(x)}, ...)"
        )
    return found.double().cpu()
