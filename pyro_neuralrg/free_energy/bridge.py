# SPDX-License-Identifier: Apache-2.0
"""Bridge sampling: ln Z from draws of a density and draws of the target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_neuralrg.free_energy.tempered import log_mean_exp
from pyro_neuralrg.statistics import Estimate, LogWeights, summarise

HALVINGS, MARGIN = 80, 50.0
"""To the last digit of a float64; the root lies within so many nats of the log-weights."""


@dataclass(frozen=True, repr=False)
class Bridge(Estimate[float]):
    """ln Z by :func:`bridge`, in nats.

    Attributes:
        from_q: effective number of the draws of q that it rests on: Kish's, of the bridge function.
        from_target: the same of the draws of the target, their correlations taken in.
        rhat: R-hat of the bridge function over chains of the target, or halves of a single one.
    """

    from_q: float
    from_target: float
    rhat: float


def bridge(of_q: Tensor, of_target: Tensor) -> Bridge:
    r"""Estimate ln Z from log-weights ``ln pi - ln q`` at draws of q and at draws of the target.

    For any c, :math:`\ln Z = c + \ln E_q[\sigma(l - c)] - \ln E_{\pi/Z}[\sigma(c - l)]` with l the
    log-weight and :math:`\sigma` the logistic function. The error is least at :math:`c = \ln Z +
    \ln(n_q / n)`, with n effective draws of the target: the optimal bridge function. Both equations
    have one root, which Meng and Wong's iteration goes to and bisection finds. The terms are
    bounded; the error adds the relative ones of both means, that of the target from the effective
    sample size of its term along the chains.

    Args:
        of_q: at independent draws of q, ``(n,)``; minus infinity where pi is zero.
        of_target: at draws of the target, ``(chains, draws)``.

    References:
        Bennett, J. Comput. Phys. 22, 245 (1976); Meng and Wong, Statistica Sinica 6, 831 (1996);
        Fruehwirth-Schnatter, Econometrics Journal 7, 143 (2004), the error; Gronau et al., J. Math.
        Psychology 81, 80 (2017).

    Example:
        >>> q, p = torch.randn(4000), 0.5 * torch.randn(4, 1000)  # pi: exp(-2 x^2), of sd 1 / 2
        >>> log_w = lambda x: -2.0 * x**2 + 0.5 * x**2 + 0.5 * math.log(2 * math.pi)
        >>> found = bridge(log_w(q), log_w(p))
        >>> bool(abs(found.value - 0.5 * math.log(math.pi / 2)) < 4 * found.standard_error)
        True
    """
    of_q, of_target = of_q.double(), of_target.double()
    finite = torch.cat([of_q[of_q > -math.inf], of_target.flatten()])
    ratio = math.log(effective(of_target) / len(of_q))
    low, high = float(finite.min()) - MARGIN, float(finite.max()) + MARGIN
    for _ in range(HALVINGS):
        c = 0.5 * (low + high)
        left, right = logsigmoid(of_q - c), logsigmoid(c - of_target).flatten()
        if log_mean_exp(left) - log_mean_exp(right) > ratio:
            low = c
        else:
            high = c
    ours, theirs = LogWeights(logsigmoid(of_q - c)), logsigmoid(c - of_target)
    series = (theirs - theirs.max()).exp()
    found = summarise(series)
    halves = torch.stack(series[0, -2 * (series.shape[1] // 2) :].chunk(2))
    return Bridge(
        c + ours.log_mean.value - float(log_mean_exp(theirs.flatten())),
        math.hypot(ours.log_mean.standard_error, found.mcse / found.mean),
        from_q=ours.ess * len(of_q),
        from_target=LogWeights(theirs.flatten()).ess * effective(series),
        rhat=found.rhat if len(series) > 1 else summarise(halves).rhat,
    )


def effective(series: Tensor) -> float:
    """Independent draws with as large an error of the mean, at most as many as there are."""
    found = summarise(series)
    if not found.mcse > 0:  # a constant, or too few draws to tell
        return float(series.numel())
    return min(float(series.numel()), (found.sd / found.mcse) ** 2)
