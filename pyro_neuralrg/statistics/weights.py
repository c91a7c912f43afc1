# SPDX-License-Identifier: Apache-2.0
"""Importance weights: the mean they estimate, its error, and whether to trust either."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import see
from pyro_neuralrg.statistics.draws import as_array
from pyro_neuralrg.statistics.resampling import Estimate, sample_mean

MIN_TAIL_WEIGHTS, MIN_ABOVE = 30, 4
"""With fewer weights no tail is fitted; with at most so many above the others it has no shape."""

LOG_NEGLIGIBLE, MIN_LOG_RANGE = -700.0, 1e-6
"""Log-weights this far below the largest, or this much alike, differ by rounding only."""

MIN_EFFECTIVE_SAMPLES = 10
"""With fewer the error bar of the mean weight means little."""

MAX_PARETO_K = 0.7
"""Above this k-hat as well (Vehtari et al. 2024)."""

FINITE_VARIANCE_K = 0.5
"""Above this k-hat weights have no variance."""

HEAVY_PARETO_K = 1 / 3
"""Above this k-hat the error of a mean is itself hardly known: samples seldom show the tail."""

TAIL_BEYOND = 10
"""An error takes in the tail up to where one in so many sets of samples reaches: with one standard
error more of k-hat, q of 0.75 sd of a normal in 4 dimensions has <x^2> beyond 3 errors in 0.5 % of
200 runs, where it has 4.5 % by the samples alone."""

MAX_UNDEFINED = 0.01
"""Share of samples whose energy may be NaN, as at the rim of a root's domain; one always may."""


class LogWeights:
    r"""Log-weights :math:`\ln w_i` of n samples, whose mean weight is wanted.

    Of weights :math:`w = \pi(x) / q(x)`, x ~ q, the mean is Z.

    Args:
        values: ``ln w``, array or tensor ``(num_samples,)``, kept as float64 on the CPU; minus
            infinity is a weight of zero.
        copies: samples may be copies of one another, as after resampling; their weights have no
            tail to be fitted.

    Raises:
        ValueError: if there is no log-weight, the shape is another, or one is NaN or plus infinity.

    References:
        A. Kong, A note on importance sampling using standardized weights (1992), for the ESS;
        A. Vehtari et al., Pareto smoothed importance sampling, JMLR 25 (2024).

    Example:
        >>> weights = LogWeights(torch.tensor([1.0, 2.0, 5.0]).log())
        >>> weights, round(weights.log_mean.value, 4)  # ln(8 / 3)
        (LogWeights(3 samples, 71.1 % effective), 0.9808)
    """

    def __init__(self, values: Any, *, copies: bool = False) -> None:
        self.values = torch.tensor(as_array(values), device="cpu")
        self.copies = copies
        number = self.values.numel()
        if self.values.dim() != 1 or number == 0:
            raise ValueError(
                f"log_weights has shape {tuple(self.values.shape)}; accepted: (num_samples,), at "
                "least one"
            )
        bad = int((self.values.isnan() | (self.values == math.inf)).sum())
        if bad:
            raise ValueError(
                f"log_weights has {bad} of {number} entries that are NaN or plus infinity; "
                "accepted: numbers, or minus infinity for a weight of zero (an infinite energy)"
            )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"LogWeights({len(self)} samples, {100 * self.ess:.1f} % effective)"

    @property
    def mean_log(self) -> Estimate:
        """Mean of ln w, for independent samples a lower bound of ln of the mean in expectation."""
        return sample_mean(self.values)

    @property
    def log_mean(self) -> Estimate:
        """ln of the mean weight, minus infinity if all are zero.

        Biased by about half its squared standard error, that of the delta method, Var(w) /
        (n mean(w)^2) = (1 / ess - 1) / (n - 1); NaN of a single sample. It knows nothing of a tail
        that the samples do not show: with a k-hat above a third take :attr:`log_mean_with_tail`.
        """
        number, error = len(self), math.nan
        if self.ess > 0 and number > 1:
            error = math.sqrt(max(0.0, 1.0 / self.ess - 1.0) / (number - 1))
        return Estimate(float(self.values.logsumexp(0)) - math.log(number), error)

    @property
    def log_mean_with_tail(self) -> Estimate:
        """ln of the mean weight, with an error that takes in a heavy tail as fitted.

        Of a k-hat above 0.7 not to be trusted even so. Infinite above 1, where that tail has no
        mean: the samples bound ln of the mean from below.
        """
        value, error = self.log_mean
        if self.pareto_k > HEAVY_PARETO_K:
            squares, number = float(tail_of_squares((self.values - value).exp())[0]), len(self)
            wide = math.sqrt(max(0.0, squares - number) / (number * (number - 1)))
            error = math.inf if self.pareto_k > 1.0 else max(error, wide)
        return Estimate(value, error)

    @cached_property
    def ess(self) -> float:
        """Kish's effective sample size as a fraction of the samples, between 0 and 1."""
        return float(kish_fractions(self.values))

    @cached_property
    def pareto_k(self) -> float:
        """Pareto k-hat, the shape of a generalised Pareto tail fitted to the weights (PSIS).

        The weights have finite moments up to order 1 / k: above 0.5 their variance is infinite,
        above 0.7 neither a mean of so many weights nor its error bar can be trusted. Infinity if a
        handful outweighs all others; NaN where there is no tail to fit: of fewer than 30 weights,
        of copies, of equal ones, and if all are zero.
        """
        number, largest = len(self), self.values.max()
        if self.copies or number < MIN_TAIL_WEIGHTS or not bool(largest.isfinite()):
            return math.nan
        relative = (self.values - largest).clamp(min=LOG_NEGLIGIBLE)
        if float(relative.min()) > -MIN_LOG_RANGE:
            return math.nan
        top = relative.topk(_tail_size(number) + 1).values
        above = top[top > top[-1]].exp() - top[-1].exp()
        k = float(_pareto_tail(above)[0]) if len(above) > MIN_ABOVE else math.inf
        return math.inf if math.isnan(k) else k

    @cached_property
    def smoothed(self) -> LogWeights:
        """The same, the largest weights replaced by quantiles of the tail fitted to them (PSIS).

        None becomes larger than the largest. As they are where k-hat is NaN or infinite.
        """
        if not math.isfinite(self.pareto_k):
            return self
        largest = float(self.values.max())
        top, where = (self.values - largest).topk(_tail_size(len(self)) + 1)
        lowest, size = top[-1].exp(), int((top > top[-1]).sum())  # without ties
        k, scale = _pareto_tail(top[:size].exp() - lowest)
        part = (torch.arange(size, dtype=top.dtype) + 0.5) / size
        quantiles = (lowest + scale * (part**-k - 1) / k).clamp(max=1.0)
        return LogWeights(self.values.index_copy(0, where[:size], quantiles.log() + largest))

    @property
    def is_trustworthy(self) -> bool:
        """At least ten effective samples, and a k-hat of at most 0.7."""
        return can_be_trusted(self.ess * len(self), self.pareto_k)

    def warn_if_poor(
        self, of: str = "importance", remedy: str = "train longer or draw more samples"
    ) -> None:
        """Warn the caller's caller if the weights are not trustworthy."""
        if self.is_trustworthy:
            return
        heavy = self.pareto_k > MAX_PARETO_K
        tail = f" (Pareto k-hat {self.pareto_k:.2f})" if heavy else ""
        warnings.warn(
            f"the {of} estimate rests on {self.ess * len(self):.1f} effective samples of "
            f"{len(self)}{tail}: neither it nor its error bar can be trusted; {remedy}"
            f"{see('warning-importance-weights')}",
            stacklevel=3,
        )


def can_be_trusted(effective_samples: float, pareto_k: float) -> bool:
    """True if a mean of importance weights and its error bar rest on enough samples."""
    return effective_samples >= MIN_EFFECTIVE_SAMPLES and not pareto_k > MAX_PARETO_K


def may_be_undefined(samples: int, number: int) -> bool:
    """True if so few of the samples have no energy that their weights can be taken as zero."""
    return samples <= max(1, MAX_UNDEFINED * number)


def kish_fractions(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / (n sum w^2) over the last dimension, a fraction.

    Float64, between 0 and 1; 0 if all weights are zero.
    """
    total = log_weights.logsumexp(-1).double()
    squares = (2.0 * log_weights).logsumexp(-1).double()
    fraction = (2.0 * total - squares - math.log(log_weights.shape[-1])).clamp(max=0.0).exp()
    return torch.where(total == -math.inf, 0.0, fraction)


def tail_of_squares(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squares of n residuals ``(n, ...)``, with their tail, and its Pareto k-hat.

    Where k-hat is above a third, the largest squares are replaced by the mean squares of the
    generalised Pareto distribution fitted to them, if these are larger. NaN as k-hat of fewer than
    30 residuals, and of equal ones.
    """
    number, sums = len(residuals), residuals.square().sum(0)
    if number < MIN_TAIL_WEIGHTS:
        return sums, torch.full_like(sums, math.nan)
    size = _tail_size(number)
    top = residuals.abs().topk(size + 1, 0).values
    k, scale = _pareto_tail(top[:-1] - top[-1])
    upper = k + (1 + k) / math.sqrt(size)
    part = torch.logspace(-math.log10(TAIL_BEYOND * size), 0, 1000, dtype=sums.dtype)
    part = part.view(-1, *(1,) * sums.dim())
    quantiles = top[-1] + scale * (part**-upper - 1) / upper
    tail = size * torch.trapezoid(quantiles.square(), part, dim=0)
    missing = (tail - top[:-1].square().sum(0)).clamp(min=0.0)
    return torch.where(k > HEAVY_PARETO_K, sums + missing, sums), k


def _tail_size(number: int) -> int:
    """Samples that count as the tail (Vehtari et al.)."""
    return math.ceil(min(number / 5, 3 * math.sqrt(number)))


def _pareto_tail(above: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k and scale of a generalised Pareto distribution of ``(n, ...)``, largest first.

    References:
        Zhang, Stephens, Technometrics 51, 316 (2009), with the prior of Vehtari et al.
    """
    size = len(above)
    grid = torch.arange(1, 31 + int(math.sqrt(size)), dtype=above.dtype) - 0.5
    quarter = above[size - int(size / 4 + 0.5)]
    rates = [1 / above[0] + (1 - (len(grid) / one).sqrt()) / (3 * quarter) for one in grid]
    shapes = torch.stack([torch.log1p(-rate * above).mean(0) for rate in rates])
    rate = torch.stack(rates)
    likely = (size * ((-rate / shapes).log() - shapes - 1)).softmax(0)
    rate = (likely * rate).sum(0)
    fitted = torch.log1p(-rate * above).mean(0)
    return (size * fitted + 5) / (size + 10), -fitted / rate
