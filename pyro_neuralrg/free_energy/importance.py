# SPDX-License-Identifier: Apache-2.0
"""Free energies from samples of a flow: an importance-sampling estimate, and two bounds."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type, copied
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy.model_evidence import is_guide, model_log_weights, weighted_draws
from pyro_neuralrg.infer.pyro_internals import numbers_may_fail
from pyro_neuralrg.potentials.base import check_energy, check_separate, trial_pair
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.statistics import Estimate, LogWeights, summarise, with_error
from pyro_neuralrg.statistics.weights import can_be_trusted, may_be_undefined

ENERGIES = (
    "x -> -ln pi(x) of shape (n,); for a Pyro model estimate(model, guide, model_args=...), () if "
    "it has none"
)
"""What a target may be, for messages."""

WEIGHTS_REMEDY = (
    "train longer, draw more samples, or use evidence(target, q), which goes to bridge sampling or "
    "annealing"
)
"""For weights that cannot be trusted."""

MEANS_REMEDY = (
    "train longer, draw more samples, or use sample(target, q), which goes to chains or annealing"
)
"""Likewise, where means over the target are wanted and not its free energy."""


class FreeEnergyEstimate(NamedTuple):
    """Two estimates of -ln Z from the same log-weights, all energies in nats.

    Attributes:
        variational, variational_se: mean of ln q - ln pi, at least -ln Z in expectation (paper
            Eq. 4), and its standard error; infinite if a sample has weight zero.
        importance, importance_se: -ln of the mean weight, and its standard error (delta method,
            with a heavy tail as fitted, infinite of a k-hat above 1); consistent, biased by about
            half of that squared; infinite if all weights are zero.
        ess: Kish effective sample size as a fraction of ``num_samples``, between 0 and 1.
        num_samples: samples of q.
        pareto_k: shape of the tail of the weights (:class:`~pyro_neuralrg.statistics.LogWeights`);
            above 0.7 the importance estimate and its error bar cannot be trusted.
        zero_weights: samples whose weight is zero: of infinite energy, or NaN (:func:`estimate`).
    """

    variational: float
    variational_se: float
    importance: float
    importance_se: float
    ess: float
    num_samples: int
    pareto_k: float = math.nan
    zero_weights: int = 0

    def __repr__(self) -> str:
        return (
            f"FreeEnergyEstimate(-ln Z = {with_error(self.importance, self.importance_se)}, "
            f"at most {with_error(self.variational, self.variational_se)}; ESS "
            f"{self.ess:.1%} of {self.num_samples})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "-ln Z": with_error(self.importance, self.importance_se),
            "at most": with_error(self.variational, self.variational_se),
            "ESS": f"{self.ess:.1%} of {self.num_samples}",
            "Pareto k-hat": f"{self.pareto_k:.2f}",
            "samples of weight zero": self.zero_weights or None,
        }
        return html_table("FreeEnergyEstimate", rows)

    @property
    def is_trustworthy(self) -> bool:
        """At least ten effective samples, and a k-hat of at most 0.7."""
        return can_be_trusted(self.ess * self.num_samples, self.pareto_k)


class Bounds(NamedTuple):
    """Bounds of -ln Z in nats: ``lower <= -ln Z <= upper``, each in expectation.

    Attributes:
        lower, lower_se: mean of ln q - ln pi over the target, in expectation -ln Z -
            KL(pi/Z || q), and its standard error.
        upper, upper_se: the same over q, in expectation -ln Z + KL(q || pi/Z).
    """

    lower: float
    lower_se: float
    upper: float
    upper_se: float

    def __repr__(self) -> str:
        lower = with_error(self.lower, self.lower_se)
        return f"Bounds({lower} <= -ln Z <= {with_error(self.upper, self.upper_se)})"

    def _repr_html_(self) -> str:
        lower, upper = with_error(self.lower, self.lower_se), with_error(self.upper, self.upper_se)
        return html_table("Bounds of -ln Z", {"at least": lower, "at most": upper})


def estimate(
    target: Any,
    q: Any,
    num_samples: int = 10_000,
    batch_size: int = 1000,
    *,
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> FreeEnergyEstimate:
    r"""Estimate the free energy -ln Z of ``target`` from samples of ``q``.

    With :math:`w = \pi(x) / q(x)`, x ~ q: :math:`-E[\ln w] \ge -\ln Z` and :math:`-\ln E[w] = -\ln
    Z`. For a Pyro model with data y and its guide, :math:`\pi(x) = p(x, y)`, and Z is the evidence
    p(y).

    Args:
        target: a LatticePotential, a batched energy function ``x -> -ln pi(x)``, or a Pyro model,
            which need not be written for batches.
        q: a flow, a FlowGuide, a SymmetrizedFlow or another distribution over fields; or a guide of
            the model (``AutoContinuous`` ones are drawn in batches, others one by one).
        num_samples: samples of q.
        batch_size: samples in memory at a time.
        model_args: of model and guide; ``()`` says that the target of a FlowGuide is a model.
        model_kwargs: likewise by keyword.

    Raises:
        TypeError, ValueError: also if a guide has no density (``AutoDelta``) or has other latent
            sites, or a plate of the model is subsampled.

    An infinite energy is a weight of zero; so is NaN, of up to 1 % of the samples, which is said.

    Warns:
        UserWarning: if fewer than ten effective samples stand behind the importance estimate, or
            the Pareto k-hat of the weights is above 0.7.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(2), 1.0), 1)
        >>> found = estimate(lambda x: 0.5 * x.square().sum(-1), q, num_samples=100)
        >>> round(found.importance, 4), round(found.ess, 4)  # -ln(2 pi)
        (-1.8379, 1.0)
    """
    if is_guide(q) or model_args is not None or model_kwargs is not None:
        sizes = batch_sizes(num_samples, batch_size)
        values = model_log_weights(target, q, sizes, model_args, model_kwargs)
    else:
        values = log_weights(target, q, num_samples, batch_size)
    weights = LogWeights(without_undefined(values))
    weights.warn_if_poor(remedy=WEIGHTS_REMEDY)
    return from_log_weights(weights)


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

    Their distance is the sum of both Kullback-Leibler divergences. A mode that the flow misses
    shows in the lower bound alone, unless the reference misses it too. The error of reference
    samples from chains comes from their effective sample size.

    Args:
        target: a LatticePotential or a batched energy function.
        q: a flow, a FlowGuide, a SymmetrizedFlow or another distribution over fields.
        num_samples: samples of q, and of the target without a ``reference``.
        reference: fields of the target, ``(n,) + shape``, taken to be independent, or ``(chains,
            draws) + shape``; None draws them by ``target.sample_reference``.
        batch_size: fields in memory at a time.
        seed: of reference samples drawn here; None: torch's own generator, as for samples of q.

    References:
        Li & Wang, PRL 121, 260601 (2018), Eq. 4; Grosse, Ghahramani, Adams, "Sandwiching the
        marginal likelihood using bidirectional Monte Carlo" (2015).

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(2), 1.0), 1)
        >>> found = bounds(
        ...     lambda x: 0.5 * x.square().sum(-1), q, 100, reference=torch.randn(100, 2)
        ... )
        >>> round(found.lower, 4), round(found.upper, 4)  # -ln(2 pi), since q is the target
        (-1.8379, -1.8379)
    """
    batch_sizes(num_samples, batch_size)  # a check, before anything is drawn
    if reference is None:
        draw = getattr(target, "sample_reference", None)
        if draw is None:
            raise TypeError(
                f"reference is None and target, a {type(target).__name__}, has no "
                "sample_reference; accepted: fields of the target"
            )
        reference = draw(num_samples, seed)
    lower = _mean_over_reference(target, q, reference, batch_size)
    upper = LogWeights(log_weights(target, q, num_samples, batch_size)).mean_log
    return Bounds(-lower.value, lower.standard_error, -upper.value, upper.standard_error)


def from_log_weights(weights: LogWeights) -> FreeEnergyEstimate:
    """Both estimates from the log-weights ``ln pi(x) - ln q(x)`` of independent samples x ~ q."""
    variational, importance = weights.mean_log, weights.log_mean_with_tail
    return FreeEnergyEstimate(
        variational=-variational.value,
        variational_se=variational.standard_error,
        importance=-importance.value,
        importance_se=importance.standard_error,
        ess=weights.ess,
        num_samples=len(weights),
        pareto_k=weights.pareto_k,
        zero_weights=int((weights.values == -math.inf).sum()),
    )


def log_weights(target: Any, q: Any, num_samples: int, batch_size: int = 1000) -> Tensor:
    """``ln pi(x) - ln q(x)`` of samples x ~ q, float64 on the CPU, shape ``(num_samples,)``."""
    return torch.cat([part for _, part in weighted_samples(target, q, num_samples, batch_size)])


def without_undefined(log_weights: Tensor) -> Tensor:
    """The log-weights, of zero where NaN, if they are few; said once."""
    bad, number = log_weights.isnan(), len(log_weights)
    if not bool(bad.any()) or not may_be_undefined(int(bad.sum()), number):
        return log_weights
    warn_user(f"the energy of {int(bad.sum())} of {number} samples is NaN: their weights are zero")
    return log_weights.masked_fill(bad, -math.inf)


def weighted_samples(
    target: Any, q: Any, num_samples: int, batch_size: int = 1000
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of samples x ~ q with ``ln pi(x) - ln q(x)``, float64 on the CPU."""
    sizes = batch_sizes(num_samples, batch_size)
    energy, density = energy_function(target), as_distribution(q)
    shape, own = getattr(target, "shape", None), tuple(density.event_shape)
    if isinstance(shape, tuple) and shape != own:
        raise ValueError(f"q has shape {own}, the target {shape}; accepted: equal ones")
    for index, size in enumerate(sizes):
        with torch.no_grad():
            x, log_q = weighted_draws(density, size)
            weights = _log_weights_of(energy, x, log_q)
            if index == 0 and size > 1:
                pair = trial_pair(shape, x) if isinstance(shape, tuple) else x[:2]
                with numbers_may_fail():
                    check_separate(energy, pair, "target")
        yield x, weights


def energy_function(target: Any) -> Callable[[Tensor], Tensor]:
    """The energy of a potential, or a function as it is."""
    energy = getattr(target, "energy", target)
    check_type("target", energy, Callable, "a LatticePotential or an energy function")
    with contextlib.suppress(ValueError):  # of a signature that is not known
        try:
            inspect.signature(energy).bind(None)
        except TypeError as error:
            raise TypeError(
                f"target does not take fields alone: {error}; accepted: {ENERGIES}"
            ) from None
    return energy


def as_distribution(q: Any) -> Any:
    """The distribution of a flow or a guide, or a distribution as it is."""
    if isinstance(q, torch.distributions.Distribution):
        return q
    distribution = getattr(q, "distribution", None)
    if callable(distribution):
        return distribution()
    accepted = "a flow, a FlowGuide, a SymmetrizedFlow or a distribution"
    check_type("q", q, torch.distributions.Transform, accepted)
    return FlowDistribution(q)


def batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    """Numbers of samples in each batch, from checked arguments."""
    num_samples = check_integer("num_samples", num_samples, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    return [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]


def _log_weights_of(energy: Callable[[Tensor], Tensor], x: Tensor, log_q: Tensor) -> Tensor:
    """``ln pi(x) - ln q(x)`` of a batch of fields, float64 on the CPU."""
    minus_log_pi = energy(copied(x))
    check_type("target of fields", minus_log_pi, Tensor, ENERGIES)
    check_energy(minus_log_pi, x, tuple(x.shape[log_q.dim() :]), "target")
    return (-minus_log_pi.double() - log_q.double()).cpu()


def _mean_over_reference(target: Any, q: Any, reference: Tensor, batch_size: int) -> Estimate:
    """Mean of ln pi - ln q of fields of the target, independent ones or those of chains."""
    energy, density = energy_function(target), as_distribution(q)
    check_type("reference", reference, Tensor, "a tensor of fields")
    shape = tuple(density.event_shape)
    batch = reference.dim() - len(shape)
    if batch not in (1, 2) or reference.shape[batch:] != shape or reference.numel() == 0:
        raise ValueError(
            f"reference has shape {tuple(reference.shape)}; accepted: (n,) or (chains, draws), "
            f"each >= 1, followed by {shape}"
        )
    like = density.sample((1,))
    parts = reference.flatten(0, batch - 1).split(batch_size)
    with torch.no_grad():
        fields = (part.to(like) for part in parts)
        pieces = [_log_weights_of(energy, x, density.log_prob(x)) for x in fields]
    weights = LogWeights(torch.cat(pieces))
    if batch == 1:
        return weights.mean_log
    summary = summarise(weights.values.view(reference.shape[:2]))
    return Estimate(summary.mean, summary.mcse)
