# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Free energy, energy and specific heat over a range of temperatures, from one flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type
from pyro_neuralrg.bases import base_of
from pyro_neuralrg.free_energy.reweighting import reweight
from pyro_neuralrg.potentials.family import IsingDualFamily
from pyro_neuralrg.potentials.ising import IsingDual
from pyro_neuralrg.statistics import FloatArray as Array
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.resampling import sample_mean


@dataclass(frozen=True, repr=False)
class Thermodynamics:
    r"""Quantities of the Ising spins over temperatures, arrays of equal length.

    ln Z in nats of the whole lattice, energies <H> per site in units of J, specific heats per site
    in units of k_B; ``_se`` are standard errors, ``exact_`` NaN where no exact method is in reach.

    Attributes:
        temperature: T in units of J / k_B.
        variational_log_partition: a lower bound of ln Z in expectation.
        variational_log_partition_se: its error.
        variational_energy: :math:`-\partial\ln Z / \partial\beta / N` of that bound, as the flow
            changes with beta.
        variational_energy_se: its error; the derivative of the gap is not in it.
        variational_specific_heat: :math:`\beta^2 \partial^2\ln Z / \partial\beta^2 / N` of it.
        variational_specific_heat_se: its error, likewise.
        log_partition: by importance weights.
        log_partition_se: its error.
        energy: mean of H by importance weights, averaged over the spins given x.
        energy_se: its error.
        specific_heat: variance of H by importance weights.
        specific_heat_se: its error.
        ess: effective sample size of the weights, as a fraction.
        pareto_k: of the weights; above 0.7 neither these means nor their errors can be trusted.
        exact_log_partition: exact ln Z.
        exact_energy: exact energy.
        exact_specific_heat: exact specific heat.
    """

    temperature: Array
    variational_log_partition: Array
    variational_log_partition_se: Array
    variational_energy: Array
    variational_energy_se: Array
    variational_specific_heat: Array
    variational_specific_heat_se: Array
    log_partition: Array
    log_partition_se: Array
    energy: Array
    energy_se: Array
    specific_heat: Array
    specific_heat_se: Array
    ess: Array
    pareto_k: Array
    exact_log_partition: Array
    exact_energy: Array
    exact_specific_heat: Array

    @property
    def gap(self) -> Array:
        """KL(q || pi / Z) at each temperature in nats, where the exact ln Z is known."""
        return self.exact_log_partition - self.variational_log_partition

    def __repr__(self) -> str:
        return (
            f"Thermodynamics({len(self)} temperatures from {self.temperature.min():g} to "
            f"{self.temperature.max():g}, ESS >= {100 * self.ess.min():.1f} %)"
        )

    def __len__(self) -> int:
        return len(self.temperature)

    def as_dict(self) -> dict[str, Array]:
        """The arrays by name, for a table or a figure."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def thermodynamics(
    family: IsingDualFamily,
    flow: Any,
    temperatures: Sequence[float],
    num_samples: int = 4000,
    *,
    batch_size: int = 500,
) -> Thermodynamics:
    r"""Free energy, energy and specific heat of the Ising model from one conditional flow.

    Twice, from the same samples: by derivatives of the variational estimate,

    .. math:: \ln Z_\text{Ising}(\beta) \ge -E_z[\ln q(x) + S(x; \beta)] -
        \tfrac12\ln\det(K + \alpha I) - \tfrac N2 [\ln\tfrac\pi2 + \alpha]

    with x = g(z; beta), where K, alpha and the flow depend on beta; and by importance weights.

    Args:
        family: the targets.
        flow: a conditional flow trained on them, such as ``fit(family).flow``.
        temperatures: T in units of J / k_B, within the family's range.
        num_samples: samples of the flow at each temperature, at least 2.
        batch_size: samples in memory at a time, with a graph for two derivatives.

    Raises:
        TypeError, ValueError: naming the argument; a temperature out of range for one.

    Warns:
        UserWarning: if an importance estimate cannot be trusted.

    Example:
        >>> from pyro_neuralrg.distributions import StandardNormal
        >>> family = IsingDualFamily((1,), temperatures=(2.0, 3.0))  # one spin: Z = 2
        >>> flow = family.flow(base=StandardNormal())
        >>> found = thermodynamics(family, flow, [2.5], num_samples=500)
        >>> len(found), round(float(found.log_partition[0]), 1)
        (1, 0.7)
    """
    check_integer("num_samples", num_samples, 2)
    check_integer("batch_size", batch_size, 1)
    check_type("family", family, IsingDualFamily, "an IsingDualFamily")
    contexts = family.contexts(temperatures)
    rows = []
    for temperature, context in zip(temperatures, contexts, strict=True):
        parts = [
            _samples(family, flow, context, min(batch_size, num_samples - start))
            for start in range(0, num_samples, batch_size)
        ]
        merged = _Samples(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        rows.append(_row(family.at_temperature(float(temperature)), merged))
    columns = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    return Thermodynamics(*columns)


class _Samples(NamedTuple):
    """Figures of each sample, float64 without a graph, shape ``(n,)`` each.

    Attributes:
        log_weight: its estimate of ln Z of the spins, ln pi - ln q less what the dual adds.
        first: derivative of that in beta.
        second: second derivative.
        energy: H / N, averaged over the spins.
        square: (H / N)^2, likewise.
    """

    log_weight: Tensor
    first: Tensor
    second: Tensor
    energy: Tensor
    square: Tensor


def _samples(family: IsingDualFamily, flow: Any, context: Tensor, n: int) -> _Samples:
    like = next(flow.parameters())
    base, event_dim = base_of(flow), len(family.shape)
    z = base.sample((n, *family.shape), event_dim, dtype=like.dtype, device=like.device)
    c = context.to(like).expand(n, 1).clone().requires_grad_()
    x, ladj = flow.condition(c).forward_and_ladj(z)
    log_q = base.log_prob(z, event_dim) - ladj
    beta = family.beta(c)
    log_weight = -family.energy(x, c) - log_q - family.dual_log_partition(beta)
    (first,) = torch.autograd.grad(log_weight.sum(), c, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), c)
    # contexts are linear in beta
    per_beta = 2 / (1 / family.temperatures[0] - 1 / family.temperatures[1])
    member = family.at(context)
    mean, variance = member.spin_moments(x.detach().double())
    return _Samples(
        log_weight.detach().double().cpu(),
        (first[:, 0].detach().double() * per_beta).cpu(),
        (second[:, 0].double() * per_beta**2).cpu(),
        member.spins.energy_per_site(mean).cpu(),
        member.spins.squared_energy_per_site(mean, variance).cpu(),
    )


def _row(target: IsingDual, samples: _Samples) -> list[float]:
    """Everything at one temperature, in the order of :class:`Thermodynamics`."""
    sites, beta = math.prod(target.shape), 1 / target.temperature
    weights = LogWeights(samples.log_weight)
    weights.warn_if_poor()
    first, second = sample_mean(samples.first), sample_mean(samples.second)
    energy = reweight(samples.energy, samples.log_weight)
    mean = energy.estimate
    # the variance of H, with its error by the delta method
    variance = reweight(samples.square - 2 * mean * samples.energy, samples.log_weight)
    heat = sites * beta**2
    spins = target.spins
    return [
        target.temperature,
        *weights.mean_log,
        -first.value / sites,
        first.standard_error / sites,
        beta**2 * second.value / sites,
        beta**2 * second.standard_error / sites,
        *weights.log_mean,
        float(mean),
        float(energy.standard_error),
        heat * float(variance.estimate + mean.square()),
        heat * float(variance.standard_error),
        weights.ess,
        weights.pareto_k,
        _or_nan(spins.log_partition),
        _or_nan(spins.internal_energy),
        _or_nan(spins.specific_heat),
    ]


def _or_nan(exact: Callable[[], float]) -> float:
    """The exact figure, NaN where it is not known."""
    try:
        return exact()
    except NotImplementedError:
        return math.nan
