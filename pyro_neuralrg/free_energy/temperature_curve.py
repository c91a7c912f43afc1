# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Free energy, energy and specific heat over a range of temperatures, from one flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy.importance import batch_sizes
from pyro_neuralrg.free_energy.reweighting import reweight
from pyro_neuralrg.observables import specific_heat
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
        variational_energy: :math:`-\partial\ln Z / \partial\beta / N` of that bound, as the flow
            changes with beta; the derivative of the gap is not in its error.
        variational_specific_heat: :math:`\beta^2 \partial^2\ln Z / \partial\beta^2 / N` likewise.
        log_partition: by importance weights.
        energy: mean of H by importance weights, averaged over the spins given x.
        specific_heat: variance of H by importance weights.
        ess: effective sample size of the weights, as a fraction.
        pareto_k: of the weights; above 0.7 neither these means nor their errors can be trusted.
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
        """The arrays by name."""
        return vars(self).copy()


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
    sizes = batch_sizes(check_integer("num_samples", num_samples, 2), batch_size)
    check_type("family", family, IsingDualFamily, "an IsingDualFamily")
    accepted = "a conditional flow, such as family.flow() or fit(family).flow"
    check_type("flow", flow, ConditionalTransformModule, accepted)
    rows = []
    for temperature, context in zip(temperatures, family.contexts(temperatures), strict=True):
        samples = torch.cat([_samples(family, flow, context, size) for size in sizes], -1)
        weights = LogWeights(samples[0])
        weights.warn_if_poor()
        rows.append(_row(family.at_temperature(float(temperature)), samples, weights))
    columns = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    return Thermodynamics(*columns)


def _samples(family: IsingDualFamily, flow: Any, context: Tensor, n: int) -> Tensor:
    """Figures of n samples, float64 without a graph, shape ``(5, n)``.

    An estimate of ln Z of the spins, its first two derivatives in beta, H / N and its square.
    """
    c = context.to(next(flow.parameters())).expand(n, 1).clone().requires_grad_()
    q = FlowDistribution(flow.condition(c), family.shape)
    x, log_q = q.rsample_and_log_prob((n,))
    log_weight = -family.energy(x, c) - log_q - family.dual_log_partition(family.beta(c))
    (first,) = torch.autograd.grad(log_weight.sum(), c, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), c)
    # contexts are linear in beta
    per_beta = 2 / (1 / family.temperatures[0] - 1 / family.temperatures[1])
    member = family.at(context)
    mean, variance = member.spin_moments(x.detach().double())
    figures = (
        log_weight.detach(),
        first[:, 0].detach().double() * per_beta,
        second[:, 0].double() * per_beta**2,
        member.spins.energy_per_site(mean),
        member.spins.squared_energy_per_site(mean, variance),
    )
    return torch.stack([figure.double().cpu() for figure in figures])


def _row(target: IsingDual, samples: Tensor, weights: LogWeights) -> list[float]:
    """Everything at one temperature, in the order of :class:`Thermodynamics`."""
    sites, beta, spins = math.prod(target.shape), 1 / target.temperature, target.spins
    _, first, second, energies, squares = samples
    energy = reweight(energies, weights)
    exact = spins.log_partition, spins.internal_energy, spins.specific_heat
    return [
        target.temperature,
        *weights.mean_log,
        *sample_mean(-first / sites),
        *sample_mean(beta**2 * second / sites),
        *weights.log_mean,
        float(energy.value),
        float(energy.standard_error),
        *specific_heat(energy, reweight(squares, weights), target.shape, target.temperature),
        weights.ess,
        weights.pareto_k,
        *map(_or_nan, exact),
    ]


def _or_nan(exact: Callable[[], float]) -> float:
    """The exact figure, NaN where it is not known."""
    try:
        return exact()
    except NotImplementedError:
        return math.nan
