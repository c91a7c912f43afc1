# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Free energies from samples of a flow: variational bound and importance-sampling estimate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy.model_evidence import is_guide, model_log_weights
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.pyro_internals import check_model_args
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.statistics import pareto_k
from pyro_neuralrg.statistics.weights import kish_fraction

__all__ = [
    "FreeEnergyEstimate",
    "estimate",
    "from_log_weights",
    "log_weights",
    "log_weights_at",
    "weighted_samples",
]

FEW_EFFECTIVE_SAMPLES = 10
"""Below this number the error bar of the importance estimate means little."""

LARGEST_PARETO_K = 0.7
"""Above this k-hat as well (Vehtari et al. 2024)."""


class FreeEnergyEstimate(NamedTuple):
    """Two estimates of -ln Z from the same log-weights, all energies in nats.

    Attributes:
        variational: mean of ln q - ln pi, at least -ln Z in expectation (paper Eq. 4).
        variational_se: its standard error.
        importance: -ln of the mean weight; consistent, biased by about half its squared standard
            error.
        importance_se: its standard error (delta method).
        ess: Kish effective sample size as a fraction of ``num_samples``, between 0 and 1.
        num_samples: samples of q.
        pareto_k: shape of the tail of the weights, see :func:`~pyro_neuralrg.statistics.pareto_k`;
            above 0.7 the importance estimate and its error bar cannot be trusted. NaN where no
            tail can be fitted: fewer than 30 samples, or equal weights.
    """

    variational: float
    variational_se: float
    importance: float
    importance_se: float
    ess: float
    num_samples: int
    pareto_k: float = math.nan


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
    Z`. Of a Pyro model with data y and its guide, :math:`\pi(x) = p(x, y)`, and Z is the evidence
    p(y).

    Args:
        target: a LatticePotential, or a batched energy function ``x -> -ln pi(x)``; or a Pyro
            model, which need not be written for batches.
        q: a flow, a FlowGuide, a SymmetrizedFlow or another distribution over fields; or a guide of
            the model, such as an AutoHierarchicalFlow or one of Pyro's (``AutoContinuous`` ones are
            drawn in batches, others one draw after another).
        num_samples: samples of q.
        batch_size: samples in memory at a time.
        model_args: of model and guide. Given, also as ``()``, they say that ``target`` is a model
            where q, a FlowGuide, may go with an energy as well.
        model_kwargs: likewise by keyword.

    Raises:
        TypeError: if a size is no integer, or a guide is no density (``AutoDelta``).
        ValueError: if a size is below 1, the energy has the wrong shape or is NaN, a plate of the
            model is subsampled, or its latent sites are not the guide's.

    Warns:
        UserWarning: if fewer than ten effective samples stand behind the importance estimate, or
            the Pareto k-hat of the weights is above 0.7.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(2), 1.0), 1)
        >>> found = estimate(lambda x: 0.5 * x.square().sum(-1), q, num_samples=100)
        >>> round(found.importance, 4), round(found.ess, 4)  # -ln(2 pi)
        (-1.8379, 1.0)
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("data", dist.Normal(x, 1.0), obs=data)
        >>> def guide(data):
        ...     pyro.sample("x", dist.Normal(data / 2, 0.5**0.5))  # the posterior
        >>> data = torch.tensor(1.0)
        >>> found = estimate(model, guide, num_samples=100, model_args=(data,))
        >>> round(found.importance, 4), round(-dist.Normal(0.0, 2**0.5).log_prob(data).item(), 4)
        (1.5155, 1.5155)
    """
    if is_guide(q) or model_args is not None or model_kwargs is not None:
        args = () if model_args is None else model_args
        weights = _of_model(target, q, num_samples, batch_size, args, model_kwargs)
    else:
        weights = log_weights(target, q, num_samples, batch_size)
    found = from_log_weights(weights)
    warn_of_few_samples(found)
    return found


def is_trustworthy(found: FreeEnergyEstimate) -> bool:
    """Whether the importance estimate and its error bar rest on enough samples to be believed."""
    effective = found.ess * found.num_samples
    return effective >= FEW_EFFECTIVE_SAMPLES and not found.pareto_k > LARGEST_PARETO_K


def warn_of_few_samples(found: FreeEnergyEstimate, of: str = "importance") -> None:
    """Warn the caller's caller once, whichever of the two says so, of weights not to be trusted."""
    if is_trustworthy(found):
        return
    effective, heavy = found.ess * found.num_samples, found.pareto_k > LARGEST_PARETO_K
    tail = f" (Pareto k-hat {found.pareto_k:.2f})" if heavy else ""
    warnings.warn(
        f"the {of} estimate rests on {effective:.1f} effective samples of "
        f"{found.num_samples}{tail}: neither it nor its error bar can be trusted; train longer or "
        "draw more samples",
        stacklevel=3,
    )


def log_weights(target: Any, q: Any, num_samples: int, batch_size: int = 1000) -> Tensor:
    """``ln pi(x) - ln q(x)`` of samples x ~ q, float64 on the CPU, shape ``(num_samples,)``."""
    return torch.cat(
        [weights for _, weights in weighted_samples(target, q, num_samples, batch_size)]
    )


def _of_model(
    target: Any,
    q: Any,
    num_samples: int,
    batch_size: int,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> Tensor:
    """``ln p(x, y) - ln q(x)`` of a model, or of a potential's own, with its guide."""
    if not is_guide(q) and not isinstance(q, FlowGuide):
        raise TypeError(
            f"model_args are given, and q is a {type(q).__name__}; accepted: a guide of the model"
        )
    model = target.model if isinstance(target, LatticePotential) else target
    if not callable(model):
        raise TypeError(
            f"target is a {type(target).__name__}; accepted: a Pyro model or a LatticePotential"
        )
    check_model_args(args)
    sizes = list(_batches(num_samples, batch_size))
    return torch.cat(list(model_log_weights(model, q, sizes, args, kwargs)))


def _batches(num_samples: int, batch_size: int) -> Iterator[int]:
    """Sizes of batches that add up."""
    num_samples = check_integer("num_samples", num_samples, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    for start in range(0, num_samples, batch_size):
        yield min(batch_size, num_samples - start)


def weighted_samples(
    target: Any, q: Any, num_samples: int, batch_size: int = 1000
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of samples x ~ q with ``ln pi(x) - ln q(x)``, float64 on the CPU."""
    sizes = list(_batches(num_samples, batch_size))
    energy, density = _energy_function(target), _distribution(q)
    for size in sizes:
        with torch.no_grad():
            x = density.sample((size,))
            weights = _log_weights(energy, density, x)
        yield x, weights


def log_weights_at(target: Any, q: Any, x: Tensor, batch_size: int = 1000) -> Tensor:
    """``ln pi(x) - ln q(x)`` of fields ``batch + shape``, float64 on the CPU, shape ``batch``.

    Raises:
        TypeError: if x is no tensor.
        ValueError: if it is empty, or not one or two dimensions of fields.
    """
    energy, density = _energy_function(target), _distribution(q)
    if not isinstance(x, Tensor):
        raise TypeError(f"reference is a {type(x).__name__}; accepted: a tensor of fields")
    shape = tuple(density.event_shape)
    batch = x.dim() - len(shape)
    if batch not in (1, 2) or tuple(x.shape[batch:]) != shape or x.numel() == 0:
        raise ValueError(
            f"reference has shape {tuple(x.shape)}; accepted: (n,) or (chains, draws), each >= 1, "
            f"followed by {shape}"
        )
    like = density.sample((1,))
    with torch.no_grad():
        pieces = [
            _log_weights(energy, density, part.to(like))
            for part in x.flatten(0, batch - 1).split(batch_size)
        ]
    return torch.cat(pieces).view(x.shape[:batch])


def _log_weights(energy: Callable[[Tensor], Tensor], density: Any, x: Tensor) -> Tensor:
    minus_log_pi, log_q = energy(x), density.log_prob(x)
    if minus_log_pi.shape != log_q.shape:
        raise ValueError(
            f"target's energy has shape {tuple(minus_log_pi.shape)} for {len(x)} fields; "
            f"accepted: {tuple(log_q.shape)}"
        )
    return (-minus_log_pi.double() - log_q.double()).cpu()


def from_log_weights(weights: Tensor) -> FreeEnergyEstimate:
    """Both estimates from the log-weights ``ln pi(x) - ln q(x)`` of independent samples x ~ q.

    ``weights`` has shape ``(num_samples,)``. The delta method gives
    Var(-ln mean w) = Var(w) / (n mean(w)^2), which is (1/ess - 1) / (n - 1) in terms of the Kish
    fraction ess = (sum w)^2 / (n sum w^2). With a single sample the standard errors are NaN. A
    sample of weight zero (an infinite energy) makes the variational bound infinite; if all are of
    weight zero the ess is zero and the importance estimate infinite, with errors that are NaN, as
    is the Pareto k-hat.

    Raises:
        ValueError: if there is no log-weight, or one is NaN or plus infinity.
    """
    weights = weights.detach().reshape(-1).double()
    number = weights.numel()
    check_log_weights(weights)
    log_sum, ess = float(weights.logsumexp(0)), kish_fraction(weights)
    several, importance_se = number > 1, math.nan
    if ess > 0 and several:
        importance_se = math.sqrt(max(0.0, 1.0 / ess - 1.0) / (number - 1))
    return FreeEnergyEstimate(
        variational=-float(weights.mean()),
        variational_se=float(weights.std()) / math.sqrt(number) if several else math.nan,
        importance=math.log(number) - log_sum,
        importance_se=importance_se,
        ess=ess,
        num_samples=number,
        pareto_k=pareto_k(weights),
    )


def check_log_weights(weights: Tensor) -> None:
    if weights.numel() == 0:
        raise ValueError("weights is empty; accepted: at least one log-weight")
    for name, bad in (("NaN", weights.isnan()), ("infinite", weights == math.inf)):
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of {weights.numel()} log-weights are {name}; accepted: an "
                "energy and a density that are numbers for every field (an energy may be +inf)"
            )


def _energy_function(target: Any) -> Callable[[Tensor], Tensor]:
    energy = getattr(target, "energy", target)
    if not callable(energy):
        raise TypeError(
            f"target is a {type(target).__name__}; accepted: a LatticePotential or an energy "
            "function"
        )
    return energy


def _distribution(q: Any) -> Any:
    """The distribution behind a flow, a guide or a distribution."""
    if isinstance(q, torch.distributions.Distribution):
        return q
    if isinstance(getattr(q, "distribution", None), Callable):  # type: ignore[arg-type]
        return q.distribution()
    return FlowDistribution(q)
