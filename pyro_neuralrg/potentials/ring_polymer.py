# SPDX-License-Identifier: Apache-2.0
"""Quantum particles as ring polymers: the path integral on beads, with exact references."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number, check_type, check_values, copied
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.potentials.base import ORIGIN, TWO_PHASES, LatticePotential, check_energy
from pyro_neuralrg.potentials.exact.path_integral import PathIntegral, Ring
from pyro_neuralrg.statistics.draws import FloatArray
from pyro_neuralrg.transforms import HierarchicalFlow

MAX_DIMENSIONS = 3
HERMITE_NODES = {1: 64, 2: 24, 3: 16}
"""Nodes along each axis by which a Gaussian mean of the potential is computed."""
STEEPEST = 10.0
"""Exponent up to which a Morse potential rises as such: to 5e8 times its depth."""
CURVATURES = (1e-8, 1e8)
"""Between which the curvature of the best Gaussian is looked for, in units of energy a square."""


class _Well:
    """A potential of positive numbers."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value, "a finite number > 0", above=0)


@dataclass(frozen=True)
class DoubleWell(_Well):
    """U(x) = curvature (x^2 - minimum^2)^2 / (8 minimum^2), with that curvature in each well.

    The barrier is curvature minimum^2 / 8 high.
    """

    minimum: float = 2.0
    curvature: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.curvature * (x.square() - self.minimum**2).square() / (8 * self.minimum**2)


@dataclass(frozen=True)
class Morse(_Well):
    """U(x) = depth (1 - exp(-x / width))^2 of a stretched bond, zero at its length x = 0.

    O-H in water: a depth of 0.1855 Hartree and a width of 0.8247 bohr (1 / 1.21), with the reduced
    mass 1728 electron masses. A wall stands at x = ``wall`` widths, where the energy of a bond that
    breaks begins to rise: without it no partition function exists.
    """

    depth: float = 0.1855
    width: float = 0.8247
    wall: float = 6.0

    def __call__(self, x: Tensor) -> Tensor:
        squeeze = -x / self.width
        near = squeeze.clamp(max=STEEPEST)
        grown = near.exp() * (1.0 + squeeze - near)  # linear beyond, where no density is left
        bond = self.depth * (1.0 - grown).square()
        return bond + self.depth * (-squeeze - self.wall).clamp(min=0.0).square()


@dataclass(frozen=True)
class QuarticWell(_Well):
    """U(x) = strength x^4."""

    strength: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.strength * x.square().square()


@dataclass(frozen=True)
class Central:
    """A potential of the distance from the origin, of vectors ``(..., dimensions)``."""

    of_distance: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.of_distance((x.square().sum(-1) + ORIGIN).sqrt())


class RingPolymer(LatticePotential):
    r"""A quantum particle at inverse temperature beta, as a ring of P beads (hbar = 1).

    .. math::
        S = \sum_k \Big[\frac{m P}{2 \beta} |x_{k+1} - x_k|^2 + \frac{\beta}{P} U(x_k)\Big]

    The integral of :math:`e^{-S}` is Z of :meth:`log_partition`; times :math:`(m P / 2 \pi
    \beta)^{P d / 2}` it is the quantum partition function of Trotter number P, whose logarithm is
    :meth:`log_quantum_partition`. Fields have the shape ``(beads,)``, in more than one dimension
    ``(beads, dimensions)``.

    Args:
        beads: P >= 1.
        potential: U, of positions ``(...)`` in one dimension, else of vectors ``(..., dimensions)``
            to energies ``(...)``: :class:`DoubleWell`, :class:`Morse`, :class:`QuarticWell`,
            :class:`Central` of one of these, or any differentiable function in torch.
        beta: inverse temperature, > 0.
        mass: > 0.
        dimensions: 1 to 3.
        even: U(x) == U(-x); None: tried at some points.
        twisted: close the ring by x_P = -x_0, where U is even: Z is then the trace of T^P times the
            parity, even levels less odd ones, which tells how far they are apart: see
            :meth:`splitting`.

    Attributes:
        spectrum: covariance of the closest centred Gaussian (Feynman and Kleinert), the free ring's
            modes with the mean curvature of U in it. None of a twisted ring, which is not periodic:
            its flows have a covariance matrix, and do not grow.
        base: two modes of the centroid, where an even U has a barrier above 1 / beta between two
            wells; else normals.

    References:
        M. Parrinello, A. Rahman, J. Chem. Phys. 80, 860 (1984); R. P. Feynman, H. Kleinert, Phys.
        Rev. A 34, 5080 (1986); D. M. Ceperley, Rev. Mod. Phys. 67, 279 (1995).

    Example:
        >>> target = RingPolymer(16, DoubleWell(), beta=8.0)
        >>> target.shape, [round(float(e), 4) for e in target.levels(2)]
        ((16,), [0.3474, 0.5179])
    """

    _shown: tuple[str, ...] = ("beta", "mass", "potential")

    def __init__(
        self,
        beads: int,
        potential: Callable[[Tensor], Tensor],
        *,
        beta: float,
        mass: float = 1.0,
        dimensions: int = 1,
        even: bool | None = None,
        twisted: bool = False,
    ) -> None:
        beads = check_integer("beads", beads, 1)
        check_type("potential", potential, Callable, "a function of positions")
        self.potential = potential
        self.beta = check_number("beta", beta, "a finite number > 0", above=0)
        self.mass = check_number("mass", mass, "a finite number > 0", above=0)
        self.dimensions = check_integer("dimensions", dimensions, 1, MAX_DIMENSIONS)
        self.ring = Ring(beads, self.mass * beads / self.beta, self.beta / beads)
        if not bool(self._energies(_gaussian_nodes(self.dimensions)[0]).isfinite().all()):
            raise ValueError("potential has energies that are not finite; accepted: numbers")
        if even is None:
            even = self._seems_even()
        check_type("even", even, bool, "True, False or None")
        check_type("twisted", twisted, bool, "True or False")
        self.twisted = twisted
        if twisted and not (even and self._seems_even()):
            raise ValueError("twisted is True; accepted: False, where U(x) != U(-x) or even=False")
        components = 0 if self.dimensions == 1 else self.dimensions
        self._modes = modes = self._best_modes(beads)
        spectrum = modes[:, None, None] * torch.eye(components).to(modes) if components else modes
        known: Any = {"even": even, "components": components}
        if twisted:
            super().__init__((beads,), "open", **known)
            self._shown = (*self._shown, "twisted")
        else:
            super().__init__((beads,), spectrum=spectrum, **known)
        self.base = TWO_PHASES if self._has_barrier() else NORMAL

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        return self.springs(x) + self.ring.step * self._energies_of_beads(x).sum(-1)

    def springs(self, x: Tensor) -> Tensor:
        """The part of S that is the free particle's, of batch shape."""
        axis = -1 if self.dimensions == 1 else -2
        before = x.roll(1, axis)
        if self.twisted:
            before = torch.cat(
                [-before.narrow(axis, 0, 1), before.narrow(axis, 1, self.ring.beads - 1)], axis
            )
        squares = (x - before).square()
        return 0.5 * self.ring.stiffness * squares.sum(self._axes)

    def flow(self, **options: Any) -> HierarchicalFlow:
        """Build a flow as any target's, a twisted ring's with the covariance of its Gaussian."""
        if self.twisted and options.get("spectrum") is None:
            options = {"covariance": self._covariance(), **options}
        return super().flow(**options)

    def log_partition(self) -> float:
        """Exact ln Z in nats, of one dimension or a :class:`Central` potential.

        A NotImplementedError for other potentials; a ValueError if the potential does not confine,
        or if levels lie so close that a twisted ring's Z is lost to rounding.
        """
        return self.exact.log_trace

    def log_quantum_partition(self, log_partition: float | None = None) -> float:
        """ln of the quantum partition function from ln Z, or the exact one: -beta F."""
        log_z = self.log_partition() if log_partition is None else log_partition
        beads, stiffness = self.ring.beads, self.ring.stiffness
        return log_z + 0.5 * beads * self.dimensions * math.log(stiffness / (2 * math.pi))

    def internal_energy(self) -> float:
        """Exact energy -d ln Z_quantum / d beta at this number of beads."""
        x = torch.from_numpy(self.exact.x)
        if self.dimensions > 1:  # coordinates on the first axis
            x = torch.nn.functional.pad(x.unsqueeze(-1), (0, self.dimensions - 1))
        return self.exact.mean(self._virial(x).numpy())

    def mean_square(self) -> float:
        """Exact ``<|x|^2>`` of a bead."""
        return self.exact.mean(self.exact.x**2)

    def correlation_function(self) -> FloatArray:
        """Exact <x_0 x_k> for k = 0 ... P - 1, imaginary times k beta / P; in one dimension."""
        if self.dimensions > 1:
            raise NotImplementedError("correlation_function: exact in one dimension only")
        return self.exact.correlations()

    def levels(self, number: int) -> FloatArray:
        """The lowest energies of the particle at this number of beads, ascending."""
        return self.exact.levels(check_integer("number", number, 1))

    def splitting(self, log_partition: float | None = None) -> float:
        r"""E1 - E0 of a double well from ln Z of this twisted ring, or the exact one.

        :math:`Z_\mathrm{twisted} / Z = \tanh(\beta (E_1 - E_0) / 2)` of two levels. Others add
        to it: 0.2 % for ``DoubleWell()`` at beta = 8, but 6 % for ``DoubleWell(3.6)``, whose
        splitting is 140 times smaller; :meth:`levels` has the exact ones. Z is the exact one of the
        ring that is not twisted.

        Raises:
            ValueError: if the ring is not twisted, or its Z is not below that of the other.
            NotImplementedError: in more than one dimension, where E1 has several states.
        """
        if not self.twisted:
            raise ValueError("splitting: accepted is a ring with twisted=True")
        if self.dimensions > 1:
            raise NotImplementedError("splitting: of one dimension only; see levels()")
        log_z = self.log_partition() if log_partition is None else log_partition
        log_ratio = log_z - self._with(twisted=False).log_partition()
        if not log_ratio < 0.0:
            raise ValueError(
                f"log_partition is {log_z}, {log_ratio:.3g} above ln Z of the ring that is not "
                "twisted; accepted: numbers below that"
            )
        return 2.0 / self.beta * math.atanh(math.exp(log_ratio))

    @functools.cached_property
    def exact(self) -> PathIntegral:
        """The transfer matrix."""
        if self.dimensions == 1:
            potential = self._at_points(self.potential)
            return PathIntegral(potential, self.ring, twisted=self.twisted)
        if not isinstance(self.potential, Central):
            raise NotImplementedError(
                f"log_partition: no exact ln Z is known in {self.dimensions} dimensions but for a "
                "Central potential"
            )
        of_distance = self._at_points(self.potential.of_distance)
        return PathIntegral(of_distance, self.ring, self.dimensions, self.twisted)

    def virial_energy(self, x: Tensor) -> Tensor:
        r"""Mean over the beads of :math:`U + x \cdot \nabla U / 2`, of batch shape.

        Its mean is :meth:`internal_energy`, at any number of beads (Herman, Bruskin and Berne, J.
        Chem. Phys. 76, 5150, 1982).
        """
        return self._virial(check_values("x", x, self.shape)).mean(-1)

    def correlations(self, x: Tensor) -> Tensor:
        """x_0 . x_k of a ring, averaged over its beads, ``batch + (beads,)``."""
        own = check_values("x", x, self.shape)
        own = own.unsqueeze(-1) if self.dimensions == 1 else own
        if self.twisted:
            own = torch.cat([own, -own], -2)  # twice around it is periodic
        number = own.shape[-2]
        waves = torch.fft.rfft(own, dim=-2).abs().square().sum(-1)
        return torch.fft.irfft(waves, n=number)[..., : self.ring.beads] / number

    def observables(self) -> dict[str, Observable]:
        """Those of fields, and the energy and the mean square of a bead."""
        own = {"quantum_energy": self.virial_energy, "mean_square": self._mean_square_of}
        return super().observables() | own

    def heated(self, factor: float) -> RingPolymer:
        """The same particle at ``factor`` > 0 times its temperature."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        return self._with(beta=self.beta / factor).to(self.device)

    def _with(self, **changes: Any) -> RingPolymer:
        """A ring of other arguments."""
        names = ("beta", "mass", "dimensions", "even", "twisted")
        known = {name: getattr(self, name) for name in names} | changes
        return RingPolymer(self.ring.beads, self.potential, **known)

    def _energies_of_beads(self, x: Tensor) -> Tensor:
        """U of each bead, ``batch + (beads,)``."""
        position = () if self.dimensions == 1 else (self.dimensions,)
        found = check_energy(self.potential(copied(x)), x, position, "potential")
        return found.reshape(x.shape[: x.dim() - len(position)])

    def _virial(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energies = self._energies_of_beads(leaf)
            (slope,) = torch.autograd.grad(energies.sum(), leaf, materialize_grads=True)
        work = x * slope if self.dimensions == 1 else (x * slope).sum(-1)
        return energies.detach() + 0.5 * work.detach()

    def _mean_square_of(self, x: Tensor) -> Tensor:
        square = check_values("x", x, self.shape).square().flatten(-len(self.shape)).sum(-1)
        return square / self.ring.beads

    @staticmethod
    def _at_points(function: Callable[[Tensor], Tensor]) -> Any:
        """A function of tensors for arrays."""
        return lambda x: function(torch.from_numpy(x)).detach().numpy()

    # The best Gaussian

    def _best_modes(self, beads: int) -> Tensor:
        """Variances of the modes of the free ring with the curvature that the Gaussian sees."""
        k = math.pi * (torch.arange(beads, dtype=torch.float64) + 0.5 * self.twisted) / beads
        springs = self.ring.stiffness * 4 * k.sin().square()
        nodes, weights = _gaussian_nodes(self.dimensions)

        def variances(curvature: float) -> Tensor:
            return 1.0 / (springs + self.ring.step * curvature)

        def is_low(curvature: float) -> bool:
            """By Stein's identity, E[div grad U] = E[x . grad U] / v."""
            v = float(variances(curvature).mean())
            work = 2 * (self._virial(math.sqrt(v) * nodes) - self._energies(math.sqrt(v) * nodes))
            return not float(weights @ work) / (v * self.dimensions) <= curvature

        low, high = map(math.log, CURVATURES)
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if is_low(math.exp(middle)) else (low, middle)
        return variances(math.exp(high))

    def _covariance(self) -> Tensor:
        """Of the best Gaussian of a twisted ring, whose waves change sign on their way around."""
        beads = self.ring.beads
        places = torch.arange(beads, dtype=torch.float64)
        waves = math.pi * (2 * places + 1) / beads
        lags = places[:, None] - places
        matrix = ((waves * lags[..., None]).cos() * self._modes).mean(-1)
        return torch.kron(matrix, torch.eye(self.dimensions).to(matrix))

    def _energies(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._energies_of_beads(x)

    def _seems_even(self) -> bool:
        nodes, _ = _gaussian_nodes(self.dimensions)
        up, down = (self._energies(sign * nodes) for sign in (1.0, -1.0))
        return torch.allclose(up, down, rtol=1e-9, atol=1e-12)

    def _has_barrier(self) -> bool:
        """True between two wells of an even potential in one dimension."""
        if not self.even or self.dimensions > 1 or self.twisted:
            return False
        reach = 3.0 * math.sqrt(float(self._modes.mean()))
        energies = self._energies(torch.linspace(0.0, reach, 200, dtype=torch.float64))
        return float(energies[0] - energies.min()) * self.beta > 1.0


@functools.lru_cache(maxsize=3)
def _gaussian_nodes(dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(n,)`` or ``(n, dimensions)`` and weights of means over standard normals."""
    x, w = np.polynomial.hermite_e.hermegauss(HERMITE_NODES[dimensions])
    nodes, weights = torch.from_numpy(x), torch.from_numpy(w / w.sum())
    if dimensions == 1:
        return nodes, weights
    grid = torch.cartesian_prod(*[nodes] * dimensions)
    return grid, torch.cartesian_prod(*[weights] * dimensions).prod(-1)
