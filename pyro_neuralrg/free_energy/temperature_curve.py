# SPDX-License-Identifier: Apache-2.0
"""Thermodynamics of Ising spins over a range of temperatures, from one flow or one for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from pyro_neuralrg.arguments import a_kind, check_array, check_integer, check_type
from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy.importance import WEIGHTS_REMEDY, as_distribution, batch_sizes
from pyro_neuralrg.free_energy.reweighting import weighted_mean
from pyro_neuralrg.observables import binder_cumulant, specific_heat, susceptibility
from pyro_neuralrg.potentials.family import IsingDualFamily
from pyro_neuralrg.potentials.ising import IsingDual
from pyro_neuralrg.statistics import FloatArray, LogWeights
from pyro_neuralrg.statistics.resampling import sample_mean

OBSERVABLES = (
    "internal_energy",
    "squared_internal_energy",
    "abs_magnetisation",
    "structure_factor",
    "fourth_moment",
)
"""What is measured of the spins given each field."""

MOST_CORRELATED = 1024
"""Sites up to which the exact susceptibility is computed: at 64 x 64 it would take minutes."""


@dataclass(frozen=True, repr=False)
class Thermodynamics:
    r"""Quantities of the Ising spins over temperatures, arrays of equal length.

    ln Z in nats of the whole lattice, energies <H> per site in units of J, specific heats per site
    in units of k_B, susceptibilities per site in units of 1 / J; ``_se`` are standard errors,
    ``exact_`` NaN where no exact method is in reach, and for the susceptibility above 1024 sites,
    where it takes minutes. Means by importance weights and their errors are those of the target
    itself, whatever the gap of the flow (but for a bias of order 1 / n, and
    as far as ``pareto_k`` allows). Those that are ``variational_`` are off by the derivatives of
    the gap, which are not in their errors: see ``gap_energy`` and ``gap_specific_heat``.

    Attributes:
        temperature: T in units of J / k_B.
        variational_log_partition: a lower bound of ln Z in expectation.
        variational_energy: :math:`-\partial\ln Z / \partial\beta / N` of that bound, as the flow
            changes with beta; of one flow for each temperature with that flow held fixed.
        variational_specific_heat: :math:`\beta^2 \partial^2\ln Z / \partial\beta^2 / N` likewise;
            NaN of one flow for each temperature.
        log_partition: by importance weights, as are all that follow.
        energy: mean of H, averaged over the spins given x.
        specific_heat: variance of H.
        abs_magnetisation: mean of \|m\|.
        susceptibility: :math:`N \langle m^2\rangle / T`.
        connected_susceptibility: :math:`N (\langle m^2\rangle - \langle|m|\rangle^2) / T`.
        binder: cumulant :math:`1 - \langle m^4\rangle / (3 \langle m^2\rangle^2)`.
        ess: effective sample size of the weights, as a fraction.
        pareto_k: of the weights; above 0.7 neither these means nor their errors can be trusted,
            and above 1 ``log_partition_se`` is infinite.
    """

    temperature: FloatArray
    variational_log_partition: FloatArray
    variational_log_partition_se: FloatArray
    variational_energy: FloatArray
    variational_energy_se: FloatArray
    variational_specific_heat: FloatArray
    variational_specific_heat_se: FloatArray
    log_partition: FloatArray
    log_partition_se: FloatArray
    energy: FloatArray
    energy_se: FloatArray
    specific_heat: FloatArray
    specific_heat_se: FloatArray
    abs_magnetisation: FloatArray
    abs_magnetisation_se: FloatArray
    susceptibility: FloatArray
    susceptibility_se: FloatArray
    connected_susceptibility: FloatArray
    connected_susceptibility_se: FloatArray
    binder: FloatArray
    binder_se: FloatArray
    ess: FloatArray
    pareto_k: FloatArray
    exact_log_partition: FloatArray
    exact_energy: FloatArray
    exact_specific_heat: FloatArray
    exact_susceptibility: FloatArray

    @property
    def gap(self) -> FloatArray:
        """KL(q || pi / Z) at each temperature in nats, where the exact ln Z is known."""
        return self.exact_log_partition - self.variational_log_partition

    @property
    def gap_energy(self) -> FloatArray:
        """What the variational energy is off by: the derivative of the gap in beta, per site."""
        return self.variational_energy - self.energy

    @property
    def gap_specific_heat(self) -> FloatArray:
        """What the variational specific heat is off by, as the weights have it."""
        return self.variational_specific_heat - self.specific_heat

    def __repr__(self) -> str:
        return (
            f"Thermodynamics({len(self)} temperatures from {self.temperature.min():g} to "
            f"{self.temperature.max():g}, ESS >= {100 * self.ess.min():.1f} %)"
        )

    def __len__(self) -> int:
        return len(self.temperature)

    def as_dict(self) -> dict[str, FloatArray]:
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
    r"""Free energy, energy, specific heat and susceptibility of the Ising model from its flows.

    The first three twice, from the same samples: by derivatives of the variational estimate,

    .. math:: \ln Z_\text{Ising}(\beta) \ge -E_z[\ln q(x) + S(x; \beta)] -
        \tfrac12\ln\det(K + \alpha I) - \tfrac N2 [\ln\tfrac\pi2 + \alpha]

    with x = g(z; beta), where K, alpha and the flow depend on beta; and by importance weights.
    :func:`~pyro_neuralrg.plotting.plot_thermodynamics` draws them.

    Args:
        family: the targets.
        flow: a conditional flow trained on them, such as ``fit(family).flow``, or a sequence of
            flows, one for each temperature, such as ``fit(family.at_temperature(T)).flow``.
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
    accepted = "a sequence of one temperature or more"
    values = check_array("temperatures", temperatures, accepted)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"temperatures has shape {values.shape}; accepted: {accepted}")
    contexts = family.contexts(temperatures)
    rows = []
    for temperature, context, one in zip(values, contexts, _flows(flow, len(values)), strict=True):
        samples = torch.cat([_samples(family, one, context, size) for size in sizes], -1)
        weights = LogWeights(samples[0])
        weights.warn_if_poor(remedy=WEIGHTS_REMEDY)
        rows.append(_row(family.at_temperature(float(temperature)), samples, weights))
    return Thermodynamics(
        **{name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
    )


def _flows(flow: Any, number: int) -> list[Any]:
    """The flow of each temperature: a conditional one as it is, any other as its distribution."""
    if isinstance(flow, ConditionalTransformModule):
        return [flow] * number
    accepted = (
        "a conditional flow, such as family.flow() or fit(family).flow, or a sequence of flows, "
        "one for each temperature"
    )
    check_type("flow", flow, list | tuple, accepted)
    if len(flow) != number:
        raise ValueError(
            f"flow has {len(flow)} flows for {number} temperatures; accepted: {accepted}"
        )
    flows = list(flow)
    for index, one in enumerate(flow):
        if not isinstance(one, ConditionalTransformModule):
            try:
                flows[index] = as_distribution(one)
            except TypeError:
                raise TypeError(f"flow[{index}] is {a_kind(one)}; accepted: {accepted}") from None
    return flows


def _samples(family: IsingDualFamily, flow: Any, context: Tensor, n: int) -> Tensor:
    """Figures of n samples, float64 without a graph, shape ``(8, n)``.

    An estimate of ln Z of the spins, its first two derivatives in beta, H / N and its square, the
    absolute value of m, its square and its fourth power.
    """
    moves = isinstance(flow, ConditionalTransformModule)
    if moves:
        c = _of_each(context.to(next(flow.parameters(), context)), n)
        q = FlowDistribution(flow.condition(c), family.shape)
        x, log_q = q.rsample_and_log_prob((n,))
    else:
        with torch.no_grad():
            x = flow.sample((n,))
            log_q = flow.log_prob(x)
        c = _of_each(context.to(x), n)
    log_weight = -family.energy(x, c) - log_q - family.dual_log_partition(family.beta(c))
    (first,) = torch.autograd.grad(log_weight.sum(), c, create_graph=True)
    # that of a flow that does not follow beta is not the bound's
    second = torch.autograd.grad(first.sum(), c)[0] if moves else torch.full_like(first, math.nan)
    # contexts are linear in beta
    per_beta = 2 / (1 / family.temperatures[0] - 1 / family.temperatures[1])
    member = family.at(context)
    moments = member.spin_moments(x.detach().double())
    observables = member.spins.observables()
    figures = (
        log_weight.detach(),
        first[:, 0].detach().double() * per_beta,
        second[:, 0].detach().double() * per_beta**2,
        *(observables[name](*moments) for name in OBSERVABLES),
    )
    return torch.stack([figure.double().cpu() for figure in figures])


def _of_each(context: Tensor, n: int) -> Tensor:
    """The context of each of n samples, to be differentiated in."""
    return context.expand(n, 1).clone().requires_grad_()


def _row(target: IsingDual, samples: Tensor, weights: LogWeights) -> dict[str, float]:
    """Everything at one temperature, by the names of :class:`Thermodynamics`."""
    sites, temperature, spins = math.prod(target.shape), target.temperature, target.spins
    _, first, second, *measured = samples
    energy, square, size, uniform, fourth = (weighted_mean(values, weights) for values in measured)
    means: dict[str, Any] = {
        "variational_log_partition": weights.mean_log,
        "variational_energy": sample_mean(-first / sites),
        "variational_specific_heat": sample_mean(second / sites / temperature**2),
        "log_partition": weights.log_mean_with_tail,
        "energy": energy,
        "specific_heat": specific_heat(energy, square, target.shape, temperature),
        "abs_magnetisation": size,
        "susceptibility": susceptibility(uniform, target.shape, temperature),
        "connected_susceptibility": susceptibility(uniform, target.shape, temperature, size),
        "binder": binder_cumulant(uniform, fourth),
    }
    row = {"temperature": temperature, "ess": weights.ess, "pareto_k": weights.pareto_k}
    for name, (value, error) in means.items():
        row |= {name: float(value), f"{name}_se": float(error)}
    exact = {
        "log_partition": spins.log_partition,
        "energy": spins.internal_energy,
        "specific_heat": spins.specific_heat,
        "susceptibility": lambda: spins.structure_factor() * sites / temperature,
    }
    if sites > MOST_CORRELATED:
        exact["susceptibility"] = lambda: math.nan
    for name, function in exact.items():
        try:
            row[f"exact_{name}"] = function()
        except NotImplementedError:
            row[f"exact_{name}"] = math.nan
    return row
