# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Families beside that of temperatures: the Ising model in fields, phi^4 of any coupling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import check_number, check_numbers
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.potentials.base import TWO_PHASES
from pyro_neuralrg.potentials.dual import logcosh
from pyro_neuralrg.potentials.family import PotentialFamily, parameter_values
from pyro_neuralrg.potentials.ising import IsingDual
from pyro_neuralrg.potentials.phi4 import Phi4
from pyro_neuralrg.spectral import neighbour_spectrum, quadratic_form


class _Range(NamedTuple):
    """Values of a parameter, to which contexts from -1 (the lowest) to +1 are linear."""

    name: str
    low: float
    high: float

    @staticmethod
    def of(name: str, given: Any) -> _Range:
        """A checked range."""
        accepted = "(lowest, highest), both finite, the first smaller"
        low, high = check_numbers(name, given, accepted, 2)
        if not low < high:
            raise ValueError(f"{name} is {given!r}; accepted: {accepted}")
        return _Range(name, low, high)

    def contexts(self, values: Any) -> Tensor:
        """Contexts ``(n, 1)`` in torch's default dtype of values ``(n,)`` in the range."""
        given = parameter_values(self.name, values)
        context = (2 * given - self.low - self.high) / (self.high - self.low)
        if not bool((context.abs() <= 1 + 1e-9).all()):
            raise ValueError(
                f"{self.name} is {values}; accepted: from {self.low} to {self.high}, the range of "
                "the family"
            )
        return context.unsqueeze(-1).to(torch.get_default_dtype())

    def value(self, context: Tensor) -> Tensor:
        """The parameter at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        return (self.low + self.high + (self.high - self.low) * context[..., 0]) / 2


def _is_range(given: Any) -> bool:
    """True of a sequence, an array or a tensor of one dimension or more, False of a number."""
    sequence = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return sequence and getattr(given, "ndim", 1) > 0


class IsingFieldFamily(PotentialFamily):
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

    def __init__(
        self,
        shape: Iterable[int],
        fields: tuple[float, float],
        temperature: float | None = None,
        couplings: Sequence[float] | None = None,
        boundary: str = "periodic",
    ) -> None:
        self._range = _Range.of("fields", fields)
        none = IsingDual(shape, temperature, couplings, None, boundary)
        self.fields = self._range[1:]
        self.temperature, self.couplings = none.temperature, none.couplings
        self._precision = 1 / none.spectrum
        base = TWO_PHASES if self._range.low <= 0 <= self._range.high else NORMAL
        super().__init__(none.shape, 1, boundary, spectrum=none.spectrum, base=base)

    def contexts(self, fields: Any) -> Tensor:
        """Contexts of fields ``(n,)`` in the range, ``(n, 1)`` in torch's default dtype."""
        return self._range.contexts(fields)

    def field(self, context: Tensor) -> Tensor:
        """The field h at contexts ``(..., 1)``, of shape ``(...)``, differentiable."""
        return self._range.value(context)

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """-ln pi(x) in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        dims = len(self.shape)
        gaussian = quadratic_form(x, self._precision.to(x.device), self.boundary) / 2
        reduced = self.field(context) / self.temperature
        reduced = reduced.reshape(reduced.shape + (1,) * dims)
        return gaussian - logcosh(x + reduced).sum(tuple(range(-dims, 0)))

    def at(self, context: Tensor) -> IsingDual:
        """The potential at one context, of shape ``(1,)``."""
        return self.at_field(float(self.field(context.double())))

    def at_field(self, field: float) -> IsingDual:
        """The potential in one field."""
        return IsingDual(self.shape, self.temperature, self.couplings, field, self.boundary)

    def heated(self, factor: float) -> IsingFieldFamily:
        """The family at ``factor`` times the temperature, in the same fields."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        return IsingFieldFamily(self.shape, self.fields, hot, self.couplings, self.boundary)

    def __repr__(self) -> str:
        return (
            f"IsingFieldFamily({self.shape}, fields={self.fields}, temperature="
            f"{self.temperature:.9g}, couplings={self.couplings}, boundary={self.boundary!r})"
        )


class Phi4Family(PotentialFamily):
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

    def __init__(
        self,
        shape: Iterable[int],
        kappa: ArrayLike | Tensor,
        lam: ArrayLike | Tensor,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        ranges = {"kappa": kappa, "lam": lam}
        names = [name for name, given in ranges.items() if _is_range(given)]
        if len(names) != 1:
            raise ValueError(
                f"kappa is {kappa!r} and lam is {lam!r}; accepted: a range (lowest, highest) for "
                "one of them, a number for the other"
            )
        self._range = _Range.of(names[0], ranges[names[0]])
        self.kappa: Any = self._range[1:] if names == ["kappa"] else kappa
        self.lam: Any = self._range[1:] if names == ["lam"] else lam
        self._given = sides, boundary
        low, high = (self._at_value(value) for value in self._range[1:])
        if names == ["kappa"]:
            self.lam = low.lam
        else:
            self.kappa = low.kappa
        self._neighbours = neighbour_spectrum(sides, (1.0,) * len(sides), boundary)
        base = TWO_PHASES if TWO_PHASES in (low.base, high.base) else NORMAL
        gaussian: Any = {
            "spectrum": (low.spectrum + high.spectrum) / 2,
            "spectrum_slopes": ((high.spectrum - low.spectrum) / 2).unsqueeze(0),
        }
        super().__init__(sides, 1, boundary, even=True, base=base, **gaussian)

    def contexts(self, values: Any) -> Tensor:
        """Contexts ``(n, 1)`` in torch's default dtype of values ``(n,)`` of the parameter."""
        return self._range.contexts(values)

    def couplings(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Kappa and lambda at contexts ``(..., 1)``, each of shape ``(...)``, differentiable."""
        value = self._range.value(context)
        both = [
            value if name == self._range.name else torch.full_like(value, given)
            for name, given in (("kappa", self.kappa), ("lam", self.lam))
        ]
        return both[0], both[1]

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        """The action in nats; contexts ``(..., 1)`` broadcast with the batch of fields."""
        self._check(x, context)
        axes = tuple(range(-len(self.shape), 0))
        kappa, lam = self.couplings(context)
        bonds = quadratic_form(x, self._neighbours.to(x.device), self.boundary)
        squares = x.square()
        fourth = squares.square().sum(axes)
        return -kappa * bonds + (1 - 2 * lam) * squares.sum(axes) + lam * fourth

    def at(self, context: Tensor) -> Phi4:
        """The potential at one context, of shape ``(1,)``."""
        return self._at_value(float(self._range.value(context.double())))

    def _at_value(self, value: float) -> Phi4:
        given: Any = {"kappa": self.kappa, "lam": self.lam, self._range.name: value}
        return Phi4(self._given[0], **given, boundary=self._given[1])

    def heated(self, factor: float) -> Phi4Family:
        """The family with all kappa divided by ``factor``, as :meth:`Phi4.heated`."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        if self._range.name == "lam":
            hot = self.kappa / factor
        else:
            hot = tuple(kappa / factor for kappa in self.kappa)
        return Phi4Family(self.shape, hot, self.lam, self.boundary)

    def __repr__(self) -> str:
        return (
            f"Phi4Family({self.shape}, kappa={self.kappa}, lam={self.lam}, "
            f"boundary={self.boundary!r})"
        )
