# SPDX-License-Identifier: Apache-2.0
"""Running couplings: the renormalised energy of every scale projected on local operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.analysis.operators import OPERATORS, Operator, check_operators, operator_sums
from pyro_neuralrg.analysis.renormalization import field_of_scale, target_energy
from pyro_neuralrg.analysis.scales import check_fields, check_scalar
from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.runtime.processes import seeded
from pyro_neuralrg.statistics import kish_fractions
from pyro_neuralrg.statistics.resampling import NUM_BLOCKS
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales

BASIS = OPERATORS[:5]
"""Nearest and next-nearest products, squares, fourth powers and plaquettes."""


@dataclass(frozen=True, repr=False)
class RunningCouplings:
    """Couplings of each scale, from 0, in rows; all float64.

    Attributes:
        operators: names, in the order of the columns.
        values: couplings of the field in units of its rms, nats, ``(scales, operators)``; NaN of
            operators that do not fit the lattice of the scale.
        standard_error: of them, same shape; jackknife.
        explained: share of the variance of the energy that the operators explain, ``(scales,)``.
        explained_error: of it, likewise.
        widths: rms of the field of each scale, ``(scales,)``.
        ess: mean Kish effective fraction of the fine draws behind an energy, ``(scales,)``.
    """

    operators: tuple[str, ...]
    values: Tensor
    standard_error: Tensor
    explained: Tensor
    explained_error: Tensor
    widths: Tensor
    ess: Tensor

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.1%}" for share in self.explained)
        return f"RunningCouplings({', '.join(self.operators)}; explained: {shares})"


def running_couplings(
    target: Any,
    flow: HierarchicalFlow,
    x: Tensor,
    *,
    operators: Sequence[Operator] | None = None,
    num_fine: int = 16,
    batch_size: int = 100,
    seed: int = 0,
) -> RunningCouplings:
    r"""Couplings :math:`K_a` of the renormalised energy of every scale (paper Eq. 6).

    .. math:: V_k(u) = -\ln \int e^{-E_k(u, z)}\, dz \approx \text{const} + \sum_a K_a S_a(u /
        \sigma_k)

    with :math:`E_k` the :func:`effective_energy` up to scale k as a function of the field u of that
    scale and the latents z of the finer ones, over which the target is integrated by importance
    weights of ``flow.conditional(u, k)``, and :math:`S_a` the sums of :func:`operator_sums`. The
    couplings are those of least squares over the given fields: a projection, of the law of these
    fields, where the operators do not explain all. The rms :math:`\sigma_k` is taken as known.

    Of M draws V is too large by about (1 / ess - 1) / (2 M), and its noise counts as not explained.
    The field of scale 0 is that under the Gaussian layer, if the flow has one.

    Args:
        target: a potential, or a batched energy function in nats.
        flow: a HierarchicalFlow of a periodic lattice.
        x: independent fields, ``(n,) + shape``, such as those of the target, in the flow's dtype;
            n at least four times the number of operators.
        operators: the basis, which fits the lattice; of each scale those that fit its own. None:
            those of nearest and next-nearest products, squares, fourth powers and plaquettes that
            fit.
        num_fine: M, draws of the finer latents for each field.
        batch_size: fields at a time, each with its draws.
        seed: of the draws.

    References:
        Swendsen, Monte Carlo calculation of renormalized coupling parameters, PRL 52, 1165 (1984).

    Example:
        >>> from pyro_neuralrg import FreeField, hierarchical_flow
        >>> target = FreeField((4, 4), mass=1.0)  # sum of 5/2 x^2 - x x'
        >>> found = running_couplings(
        ...     target, hierarchical_flow((4, 4)), target.sample_reference(100, seed=0)
        ... )
        >>> for name, value in zip(found.operators, found.values[0] / found.widths[0] ** 2):
        ...     print(f"{name} {value:.3f}")
        nearest -1.000
        square 2.500
        diagonal ...0.000
        fourth_power ...0.000
        plaquette ...0.000
    """
    num_fine = check_integer("num_fine", num_fine, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    check_scalar(flow)
    known = [one for one in BASIS if one.fits(flow.shape)]
    operators = check_operators(known if operators is None else operators, flow.shape)
    check_fields(flow, "x", x, least=4 * len(operators))
    if flow.circuit.boundary != "periodic":
        raise ValueError(f"flow is {flow!r}; accepted: one of a periodic lattice")
    with seeded(check_integer("seed", seed, 0)), torch.no_grad():
        rows = [
            _of_scale(target, flow, x, k, operators, num_fine, batch_size)
            for k in range(number_of_scales(flow.circuit) + 1)
        ]
    columns = (torch.stack(column) for column in zip(*rows, strict=True))
    return RunningCouplings(tuple(operator.name for operator in operators), *columns)


def _of_scale(
    target: Any,
    flow: HierarchicalFlow,
    x: Tensor,
    scale: int,
    operators: Sequence[Operator],
    num_fine: int,
    batch_size: int,
) -> tuple[Tensor, ...]:
    """A row of :class:`RunningCouplings`."""
    field = field_of_scale(flow, x, scale)
    shape = tuple(field.shape[1:])
    width = field.double().square().mean().sqrt()
    energies, fractions = [], []
    for part in field.split(batch_size):
        fine = flow.conditional(part, scale)
        draws = fine.sample((num_fine if scale else 1,))
        log_weights = -(target_energy(target, flow, draws) + fine.log_prob(draws)).double()
        energies.append(math.log(len(draws)) - log_weights.logsumexp(0))
        fractions.append(kish_fractions(log_weights.T))
    fitting = [operator.fits(shape) for operator in operators]
    chosen = [operator for operator, fits in zip(operators, fitting, strict=True) if fits]
    sums = field.new_zeros(len(field), 0, dtype=torch.float64)
    if chosen:
        sums = operator_sums(field / width.to(field), shape, chosen)
    found = least_squares(torch.cat(energies), sums)
    columns = torch.full((2, len(operators)), math.nan, dtype=torch.float64)
    columns[:, fitting] = found[:, :-1]
    return *columns, *found[:, -1], width.cpu(), torch.cat(fractions).mean().cpu()


def least_squares(values: Tensor, columns: Tensor) -> Tensor:
    """Coefficients of columns ``(n, p)`` and a constant, and the share of variance explained.

    Of independent rows, with jackknife errors over up to 32 blocks of them.

    Returns:
        Estimates and their errors, ``(2, p + 1)``, the share last.
    """
    values, columns = values.cpu(), columns.cpu()
    index = torch.arange(len(values)) * min(NUM_BLOCKS, len(values)) // len(values)
    blocks = int(index[-1]) + 1
    whole, *parts = (_fitted(values, columns, index != block) for block in (-1, *range(blocks)))
    spread = torch.stack(parts) - torch.stack(parts).mean(0)
    error = ((blocks - 1) / blocks * spread.square().sum(0)).sqrt()
    return torch.stack([whole, error])


def _fitted(values: Tensor, columns: Tensor, kept: Tensor) -> Tensor:
    """Coefficients, and the share of variance explained, of the rows that are kept."""
    y, s = (part[kept] - part[kept].mean(0) for part in (values, columns))
    scale = s.std(0)
    found = torch.linalg.lstsq(s / scale, y.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    share = 1 - (y - s / scale @ found).square().sum() / y.square().sum()
    return torch.cat([found / scale, share[None]])
