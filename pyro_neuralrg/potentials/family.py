# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Targets for every value of a parameter, evaluated in one batch, for conditional flows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import (
    check_array,
    check_integer,
    check_number,
    check_numbers,
    check_values,
)
from pyro_neuralrg.bases import NORMAL, StandardNormal
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials.base import (
    TWO_PHASES,
    LatticePotential,
    check_separate,
    pyro_program,
    trial_pair,
)
from pyro_neuralrg.potentials.dual import LOWEST_EIGENVALUE, logcosh
from pyro_neuralrg.potentials.ising import IsingDual
from pyro_neuralrg.potentials.ising_model import check_couplings
from pyro_neuralrg.spectral import neighbour_spectrum, quadratic_form
from pyro_neuralrg.transforms import ConditionalHierarchicalFlow, conditional_hierarchical_flow


class PotentialFamily(ABC):
    r"""Unnormalised densities :math:`\pi(x; c)` of lattice fields, one for each context c.

    The context is a vector with entries in [-1, 1], to which the family gives a meaning such as a
    temperature; flows learn such values best. To write another one, call ``super().__init__`` and
    define

    * ``energy(x, context)``: x of shape ``batch + shape``, context of shape ``batch +
      (context_dim,)``, to nats of shape ``batch``, in the dtype and on the device of x;
    * ``at(context)``: the one potential, for checks and exact values;
    * ``heated(factor)``, for cooling in training: the family at ``factor`` times all temperatures,
      whose contexts correspond; by default the same family, uncooled.

    Args:
        shape: lattice shape, one to three sides >= 1.
        context_dim: length of the context vector.
        boundary: "periodic" or "open".
        even: energy(x, c) == energy(-x, c).
        spectrum: eigenvalues of the covariance of a Gaussian part, or None.
        spectrum_slopes: their derivatives in the entries of the context, shape ``(context_dim,) +
            shape``; None for the same spectrum everywhere.
        base: as of :class:`~pyro_neuralrg.potentials.LatticePotential`.
    """

    def __init__(
        self,
        shape: Iterable[int],
        context_dim: int,
        boundary: str = "periodic",
        *,
        even: bool = False,
        spectrum: Tensor | None = None,
        spectrum_slopes: Tensor | None = None,
        base: StandardNormal = NORMAL,
    ) -> None:
        self.shape = check_shape(shape)
        self.context_dim = check_integer("context_dim", context_dim, 1)
        self.boundary = check_boundary(boundary)
        self.even = even
        self.spectrum = spectrum
        self.spectrum_slopes = spectrum_slopes
        self.base = base

    @abstractmethod
    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """-ln pi(x; c) in nats."""

    @abstractmethod
    def at(self, context: Tensor) -> LatticePotential:
        """The potential at one context, of shape ``(context_dim,)``."""

    def heated(self, factor: float) -> PotentialFamily:
        """The family at ``factor`` times all temperatures: here itself."""
        check_number("factor", factor, "a finite number > 0", above=0)
        return self

    def sample_contexts(self, n: int, like: Tensor) -> Tensor:
        """Draw ``n`` contexts spread evenly, shape ``(n, context_dim)``: a Latin hypercube.

        Each entry has one value in each of n equal parts of [-1, 1]. Dtype and device are those of
        ``like``.
        """
        shape = (check_integer("n", n, 1), self.context_dim)
        jitter = torch.rand(shape, dtype=like.dtype, device=like.device)
        order = torch.rand(shape, device=like.device).argsort(0)
        return 2 * (order + jitter) / n - 1

    def model(self, context: Tensor) -> Tensor:
        """A Pyro program of a field "x" with log-density ``-energy(x, context)``, in plates."""
        zero = context.new_zeros(())
        return pyro_program(lambda x: self.energy(x, context), self.shape, zero, self._whose_energy)

    def try_alone(self, like: Tensor) -> None:
        """See that the energy of a field is that of it alone, and leaves it as it is."""
        pair = trial_pair(self.shape, like)
        contexts = like.new_tensor([0.5, -0.5]).unsqueeze(-1).expand(2, self.context_dim)
        check_separate(self.energy, pair, self._whose_energy, False, contexts)

    @property
    def _whose_energy(self) -> str:
        """What messages call the energy."""
        return f"energy of {type(self).__name__}"

    def flow(self, **options: Any) -> ConditionalHierarchicalFlow:
        """Build a flow that knows shape, boundary, symmetry, phases and the Gaussian part.

        ``options`` of :func:`~pyro_neuralrg.transforms.conditional_hierarchical_flow` take
        precedence.
        """
        known = {"boundary": self.boundary, "odd": self.even, "base": self.base}
        if options.get("covariance") is None:  # which stands in place of the family's own
            known |= {"spectrum": self.spectrum, "spectrum_slopes": self.spectrum_slopes}
        return conditional_hierarchical_flow(self.shape, self.context_dim, **{**known, **options})

    def _check(self, x: Tensor, context: Tensor) -> None:
        """Raise if the fields or the contexts do not fit."""
        check_values("x", x, self.shape)
        check_values("context", context, (self.context_dim,), f"(..., {self.context_dim})")


def parameter_values(name: str, values: Any) -> Tensor:
    """Values of the parameter of a family, ``(n,)`` in float64, on the device of a tensor."""
    checked = torch.from_numpy(check_array(name, values))
    return (values.double() if isinstance(values, Tensor) else checked).reshape(-1)


class IsingDualFamily(PotentialFamily):
    r"""The Ising model's dual at all temperatures of a range.

    The context is linear in the inverse temperature: -1 at the highest temperature, +1 at the
    lowest. So are then the eigenvalues of :math:`K + \alpha I`, and the Gaussian layer of its flows
    follows them exactly.

    Args:
        shape: lattice shape, one to three sides >= 1.
        temperatures: lowest and highest T, in units of J / k_B.
        couplings: J of each axis; default: 1 each.
        boundary: "periodic" or "open".

    Example:
        >>> family = IsingDualFamily((8, 8), temperatures=(2.0, 2.7))
        >>> context = family.contexts([2.0, 2.7])
        >>> family.energy(torch.ones(2, 8, 8), context).shape
        torch.Size([2])
    """

    def __init__(
        self,
        shape: Iterable[int],
        temperatures: tuple[float, float],
        couplings: Sequence[float] | None = None,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        accepted = "(lowest, highest), both finite and > 0, the first smaller"
        low, high = check_numbers("temperatures", temperatures, accepted, 2, above=0)
        if not low < high:
            raise ValueError(f"temperatures is {temperatures!r}; accepted: {accepted}")
        self.temperatures = low, high
        self.couplings = check_couplings(couplings, sides)
        neighbours = neighbour_spectrum(sides, self.couplings, check_boundary(boundary))
        self._lowest = float(neighbours.min())
        self._excess = neighbours - self._lowest
        cold, hot = self._betas
        spectrum = LOWEST_EIGENVALUE + self._excess * (cold + hot) / 2
        slopes = (self._excess * (cold - hot) / 2).unsqueeze(0)
        gaussian: Any = {"spectrum": spectrum, "spectrum_slopes": slopes}
        super().__init__(sides, 1, boundary, even=True, base=TWO_PHASES, **gaussian)

    @property
    def _betas(self) -> tuple[float, float]:
        """Inverse temperatures, cold and hot."""
        return 1 / self.temperatures[0], 1 / self.temperatures[1]

    def contexts(self, temperatures: Any) -> Tensor:
        """Contexts of temperatures ``(n,)`` in the range, ``(n, 1)`` in torch's default dtype."""
        values = parameter_values("temperatures", temperatures)
        cold, hot = self._betas
        context = (2 / values - cold - hot) / (cold - hot)
        if not bool((context.abs() <= 1 + 1e-9).all()):
            raise ValueError(
                f"temperatures is {temperatures}; accepted: from {self.temperatures[0]} to "
                f"{self.temperatures[1]}, the range of the family"
            )
        return context.unsqueeze(-1).to(torch.get_default_dtype())

    def beta(self, context: Tensor) -> Tensor:
        """J / T at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        cold, hot = self._betas
        return (cold + hot + (cold - hot) * context[..., 0]) / 2

    def eigenvalues(self, beta: Tensor) -> Tensor:
        """Eigenvalues of K + alpha I, shape ``beta.shape + shape``."""
        excess = self._excess.to(beta)
        return LOWEST_EIGENVALUE + beta.reshape(beta.shape + (1,) * excess.dim()) * excess

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """-ln pi(x) in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        precision = self.eigenvalues(self.beta(context)).reciprocal()
        dims = len(self.shape)
        gaussian = quadratic_form(x, precision, self.boundary, dims) / 2
        return gaussian - logcosh(x).sum(tuple(range(-dims, 0)))

    def dual_log_partition(self, beta: Tensor) -> Tensor:
        r"""ln Z of the dual less that of the spins, shape of beta, differentiable.

        :math:`\frac12\ln\det(K + \alpha I) + \frac N2 [\ln\frac\pi2 + \alpha]`, where alpha depends
        on the temperature.
        """
        dims = tuple(range(-len(self.shape), 0))
        alpha = LOWEST_EIGENVALUE - beta * self._lowest
        per_site = beta.new_tensor(torch.pi / 2).log() + alpha
        return (self.eigenvalues(beta).log().sum(dims) + self._excess.numel() * per_site) / 2

    def at(self, context: Tensor) -> IsingDual:
        """The potential at one context, of shape ``(1,)``."""
        return self.at_temperature(1 / float(self.beta(context.double())))

    def at_temperature(self, temperature: float) -> IsingDual:
        """The potential at one temperature."""
        return IsingDual(self.shape, temperature, self.couplings, boundary=self.boundary)

    def heated(self, factor: float) -> IsingDualFamily:
        """The family at ``factor`` times all temperatures."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        low, high = self.temperatures
        hot = (factor * low, factor * high)
        return IsingDualFamily(self.shape, hot, self.couplings, self.boundary)

    def __repr__(self) -> str:
        return (
            f"IsingDualFamily({self.shape}, temperatures={self.temperatures}, "
            f"couplings={self.couplings}, boundary={self.boundary!r})"
        )
