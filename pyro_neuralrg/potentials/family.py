# SPDX-License-Identifier: Apache-2.0
"""Targets for every value of a parameter, evaluated in one batch, for conditional flows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
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
    describe,
    pyro_program,
    trial_pair,
)
from pyro_neuralrg.potentials.ising import LOWEST_EIGENVALUE, IsingDual, logcosh
from pyro_neuralrg.potentials.ising_model import check_couplings
from pyro_neuralrg.potentials.phi4 import Phi4
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

    _shown: tuple[str, ...] = ()

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
        self._axes = tuple(range(-len(self.shape), 0))
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

    def __repr__(self) -> str:
        return describe(self, self._shown)

    def _check(self, x: Tensor, context: Tensor) -> None:
        """Raise if the fields or the contexts do not fit."""
        check_values("x", x, self.shape)
        check_values("context", context, (self.context_dim,), f"(..., {self.context_dim})")


class OneParameterFamily(PotentialFamily):
    """A family of one parameter, in a range, to which or to whose inverse the context is linear."""

    _name: str
    _range: tuple[float, float]

    def _take_range(self, name: str, given: Any, above: float = -math.inf) -> tuple[float, float]:
        """Keep the checked range of the parameter of this name, and return it."""
        finite = "both finite and > 0" if above == 0 else "both finite"
        accepted = f"(lowest, highest), {finite}, the first smaller"
        low, high = check_numbers(name, given, accepted, 2, above=above)
        if not low < high:
            raise ValueError(f"{name} is {given!r}; accepted: {accepted}")
        self._name, self._range = name, (low, high)
        return self._range

    def _linear(self, value: Any) -> Any:
        """What contexts are linear to."""
        return value

    @property
    def _ends(self) -> tuple[float, float]:
        """Its values at the contexts -1 and +1."""
        low, high = sorted(map(self._linear, self._range))
        return low, high

    def contexts(self, values: Any) -> Tensor:
        """Contexts ``(n, 1)`` in torch's default dtype of values ``(n,)`` in the range."""
        checked = torch.from_numpy(check_array(self._name, values))
        given = (values.double() if isinstance(values, Tensor) else checked).reshape(-1)
        low, high = self._ends
        context = (2 * self._linear(given) - low - high) / (high - low)
        if not bool((context.abs() <= 1 + 1e-9).all()):
            raise ValueError(
                f"{self._name} is {values}; accepted: from {self._range[0]} to {self._range[1]}, "
                "the range of the family"
            )
        return context.unsqueeze(-1).to(torch.get_default_dtype())

    def _at(self, context: Tensor) -> Tensor:
        """What is linear, at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        low, high = self._ends
        return (low + high + (high - low) * context[..., 0]) / 2


class IsingDualFamily(OneParameterFamily):
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

    _shown = ("temperatures", "couplings")

    def __init__(
        self,
        shape: Iterable[int],
        temperatures: tuple[float, float],
        couplings: Sequence[float] | None = None,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        self.temperatures = self._take_range("temperatures", temperatures, above=0)
        self.couplings = check_couplings(couplings, sides)
        neighbours = neighbour_spectrum(sides, self.couplings, check_boundary(boundary))
        self._lowest = float(neighbours.min())
        self._excess = neighbours - self._lowest
        hot, cold = self._ends
        spectrum = LOWEST_EIGENVALUE + self._excess * (cold + hot) / 2
        slopes = (self._excess * (cold - hot) / 2).unsqueeze(0)
        gaussian: Any = {"spectrum": spectrum, "spectrum_slopes": slopes}
        super().__init__(sides, 1, boundary, even=True, base=TWO_PHASES, **gaussian)

    def _linear(self, value: Any) -> Any:
        return 1 / value

    def beta(self, context: Tensor) -> Tensor:
        """J / T at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        return self._at(context)

    def eigenvalues(self, beta: Tensor) -> Tensor:
        """Eigenvalues of K + alpha I, shape ``beta.shape + shape``."""
        excess = self._excess.to(beta)
        return LOWEST_EIGENVALUE + beta.reshape(beta.shape + (1,) * excess.dim()) * excess

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """-ln pi(x) in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        precision = self.eigenvalues(self.beta(context)).reciprocal()
        gaussian = quadratic_form(x, precision, self.boundary, len(self.shape)) / 2
        return gaussian - logcosh(x).sum(self._axes)

    def dual_log_partition(self, beta: Tensor) -> Tensor:
        r"""ln Z of the dual less that of the spins, shape of beta, differentiable.

        :math:`\frac12\ln\det(K + \alpha I) + \frac N2 [\ln\frac\pi2 + \alpha]`, where alpha depends
        on the temperature.
        """
        alpha = LOWEST_EIGENVALUE - beta * self._lowest
        per_site = beta.new_tensor(torch.pi / 2).log() + alpha
        return (self.eigenvalues(beta).log().sum(self._axes) + self._excess.numel() * per_site) / 2

    def at(self, context: Tensor) -> IsingDual:
        return self.at_temperature(1 / float(self.beta(context.double())))

    def at_temperature(self, temperature: float) -> IsingDual:
        """The potential at one temperature."""
        return IsingDual(self.shape, temperature, self.couplings, boundary=self.boundary)

    def heated(self, factor: float) -> IsingDualFamily:
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        low, high = self.temperatures
        hot = (factor * low, factor * high)
        return IsingDualFamily(self.shape, hot, self.couplings, self.boundary)


class IsingFieldFamily(OneParameterFamily):
    r"""The Ising model's dual in all uniform fields of a range, at one temperature.

    The context is linear in the field h: -1 at the lowest, +1 at the highest. Magnetisation and
    susceptibility are derivatives of ln Z in h / T, at N sites :math:`N \langle m\rangle` and
    :math:`N^2 (\langle m^2\rangle - \langle m\rangle^2)`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        fields: lowest and highest h, in units of J.
        temperature, couplings, boundary: those of
            :class:`~pyro_neuralrg.potentials.IsingModel`.

    Example:
        >>> family = IsingFieldFamily((8, 8), fields=(-0.5, 0.5), temperature=2.5)
        >>> family.energy(torch.ones(2, 8, 8), family.contexts([0.0, 0.5])).shape
        torch.Size([2])
    """

    _shown = ("fields", "temperature", "couplings")

    def __init__(
        self,
        shape: Iterable[int],
        fields: tuple[float, float],
        temperature: float | None = None,
        couplings: Sequence[float] | None = None,
        boundary: str = "periodic",
    ) -> None:
        self.fields = self._take_range("fields", fields)
        none = IsingDual(shape, temperature, couplings, None, boundary)
        self.temperature, self.couplings = none.temperature, none.couplings
        self._precision = 1 / none.spectrum
        base = TWO_PHASES if self.fields[0] <= 0 <= self.fields[1] else NORMAL
        super().__init__(none.shape, 1, boundary, spectrum=none.spectrum, base=base)

    def field(self, context: Tensor) -> Tensor:
        """The field h at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        return self._at(context)

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """-ln pi(x) in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        gaussian = quadratic_form(x, self._precision.to(x.device), self.boundary) / 2
        reduced = self.field(context) / self.temperature
        reduced = reduced.reshape(reduced.shape + (1,) * len(self.shape))
        return gaussian - logcosh(x + reduced).sum(self._axes)

    def at(self, context: Tensor) -> IsingDual:
        return self.at_field(float(self.field(context.double())))

    def at_field(self, field: float) -> IsingDual:
        """The potential in one field."""
        return IsingDual(self.shape, self.temperature, self.couplings, field, self.boundary)

    def heated(self, factor: float) -> IsingFieldFamily:
        """The family at ``factor`` times the temperature, in the same fields."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        return IsingFieldFamily(self.shape, self.fields, hot, self.couplings, self.boundary)


class Phi4Family(OneParameterFamily):
    """The phi^4 theory for a range of kappa at one lambda, or a range of lambda at one kappa.

    The context is linear in the parameter that has a range: -1 at its lowest value, +1 at the
    highest. The spectrum of the Gaussian layer of its flows runs linearly from that of one end to
    that of the other (see :class:`Phi4`).

    Args:
        shape: lattice shape, one to three sides >= 1.
        kappa: hopping parameter, or its lowest and highest value.
        lam: quartic coupling >= 0, or its lowest and highest value; one of the two is a range.
        boundary: "periodic" or "open".

    Example:
        >>> family = Phi4Family((8, 8), kappa=(0.2, 0.3), lam=0.5)
        >>> family.at(family.contexts([0.25])[0])
        Phi4((8, 8), kappa=0.25, lam=0.5, boundary='periodic')
    """

    _shown = ("kappa", "lam")

    def __init__(
        self,
        shape: Iterable[int],
        kappa: ArrayLike | Tensor,
        lam: ArrayLike | Tensor,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        given: dict[str, Any] = {"kappa": kappa, "lam": lam}
        of_lists = {name: int(isinstance(value, Iterable)) for name, value in given.items()}
        ranges = [x for x in given if getattr(given[x], "ndim", of_lists[x]) > 0]
        if len(ranges) != 1:
            raise ValueError(
                f"kappa is {kappa!r} and lam is {lam!r}; accepted: a range (lowest, highest) for "
                "one of them, a number for the other"
            )
        (name,) = ranges
        limits = self._take_range(name, given[name])
        low, high = (Phi4(sides, **{**given, name: v}, boundary=boundary) for v in limits)
        self.kappa: Any = limits if name == "kappa" else low.kappa
        self.lam: Any = limits if name == "lam" else low.lam
        self._neighbours = neighbour_spectrum(sides, (1.0,) * len(sides), boundary)
        base = TWO_PHASES if TWO_PHASES in (low.base, high.base) else NORMAL
        gaussian: Any = {
            "spectrum": (low.spectrum + high.spectrum) / 2,
            "spectrum_slopes": ((high.spectrum - low.spectrum) / 2).unsqueeze(0),
        }
        super().__init__(sides, 1, boundary, even=True, base=base, **gaussian)

    def couplings(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Kappa and lambda at contexts ``(..., 1)``, each of shape ``(...)``, differentiable."""
        value = self._at(context)
        both = [
            value if name == self._name else torch.full_like(value, given)
            for name, given in (("kappa", self.kappa), ("lam", self.lam))
        ]
        return both[0], both[1]

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """The action in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        kappa, lam = self.couplings(context)
        bonds = quadratic_form(x, self._neighbours.to(x.device), self.boundary)
        squares = x.square()
        fourth = squares.square().sum(self._axes)
        return -kappa * bonds + (1 - 2 * lam) * squares.sum(self._axes) + lam * fourth

    def at(self, context: Tensor) -> Phi4:
        kappa, lam = map(float, self.couplings(context.double()))
        return Phi4(self.shape, kappa, lam, self.boundary)

    def heated(self, factor: float) -> Phi4Family:
        """The family with all kappa divided by ``factor``, as :meth:`Phi4.heated`."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        hot = np.divide(self.kappa, factor).tolist()
        return Phi4Family(self.shape, hot, self.lam, self.boundary)
