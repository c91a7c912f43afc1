# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The continuous dual of the Ising model (paper Eq. 7), whose free energy is known exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.potentials.base import TWO_PHASES
from pyro_neuralrg.potentials.dual import LOWEST_EIGENVALUE, SpinDual
from pyro_neuralrg.potentials.ising_model import IsingModel
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum, quadratic_form


class IsingDual(SpinDual):
    r"""The continuous field dual to the Ising model (paper Eq. 7).

    .. math::
        \pi(x) = \exp\left(-\tfrac12 x^T (K + \alpha I)^{-1} x\right) \prod_i \cosh(x_i + h_i / T)

    with :math:`K_{ij} = J_a / T` for each bond of nearest neighbours along axis a. Spins and field
    are jointly :math:`\exp(-\frac12 x^T (K + \alpha I)^{-1} x + s^T (x + h / T)) / 2^N`: the spins
    alone are Ising spins, the field given spins is :math:`N((K + \alpha) s, K + \alpha)`, the spins
    given the field are independent.

    Args:
        shape, temperature, couplings, field, boundary: those of :class:`IsingModel`.

    Attributes:
        spins: the :class:`IsingModel` it is dual to, with bonds and exact quantities.
        temperature, couplings, field: those of the spins.
        alpha: makes the lowest eigenvalue of K + alpha I equal to 0.1.
        spectrum: eigenvalues of K + alpha I.

    References:
        S.-H. Li and L. Wang, Phys. Rev. Lett. 121, 260601 (2018).

    Example:
        >>> target = IsingDual((8, 8))
        >>> f"{target.log_partition():.6f}"
        '148.655016'
        >>> target.energy(torch.zeros(5, 8, 8))
        tensor([0., 0., 0., 0., 0.])
    """

    spectrum: Tensor

    def __init__(
        self,
        shape: Iterable[int],
        temperature: float | None = None,
        couplings: Sequence[float] | None = None,
        field: ArrayLike | Tensor | None = None,
        boundary: str = "periodic",
    ) -> None:
        self.spins = spins = IsingModel(shape, temperature, couplings, field, boundary)
        self.temperature = spins.temperature
        self.couplings = spins.couplings
        self.field = spins.field
        bonds = tuple(coupling / self.temperature for coupling in self.couplings)
        neighbours = neighbour_spectrum(spins.shape, bonds, boundary)
        self.alpha = LOWEST_EIGENVALUE - float(neighbours.min())
        even = self.field is None
        super().__init__(spins.shape, boundary, even=even, spectrum=neighbours + self.alpha)
        self.base = TWO_PHASES if even else NORMAL
        self._register("precision", 1 / self.spectrum)
        self._register_field(spins.reduced_field)

    def _times_precision(self, x: Tensor) -> Tensor:
        return apply_spectrum(x, self._constant("precision", x), self.boundary)

    def _quadratic_form(self, x: Tensor) -> Tensor:
        return quadratic_form(x, self._constant("precision", x), self.boundary)

    def _times_power(self, x: Tensor, power: float) -> Tensor:
        return apply_spectrum(x, self.spectrum**power, self.boundary)

    def _log_determinant(self) -> float:
        return float(self.spectrum.log().sum())

    def correlations(self) -> Tensor:
        r"""Exact <x_0 x_r> of the field for every displacement r, float64 of shape ``shape``.

        :math:`\langle x x^T\rangle = K' + K' \langle s s^T\rangle K'` with K' = K + alpha I, where
        ``spins.correlations()`` are known (periodic, no field h).
        """
        spins = torch.fft.fftn(self.spins.correlations()).real
        return torch.fft.ifftn(self.spectrum + self.spectrum.square() * spins).real

    def heated(self, factor: float) -> IsingDual:
        """The same couplings and external field at ``factor`` times the temperature."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        potential = IsingDual(self.shape, hot, self.couplings, self.field, self.boundary)
        return potential.to(self.device)

    def __repr__(self) -> str:
        return repr(self.spins).replace("IsingModel", "IsingDual", 1)
