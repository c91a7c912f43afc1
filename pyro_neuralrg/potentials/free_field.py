# SPDX-License-Identifier: Apache-2.0
"""The free field: a Gaussian target of which everything is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_integers, check_number
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials.base import LatticePotential, generator_of
from pyro_neuralrg.spectral import apply_spectrum, laplacian_spectrum


class FreeField(LatticePotential):
    r"""The free field, energy :math:`\frac12\sum_x |\nabla\phi|^2 + \frac{m^2}{2}\sum_x\phi^2`.

    With lattice differences along every bond; the covariance has the eigenvalues
    :math:`1/(m^2 + \sum_a 4\sin^2(k_a / 2))`. The open lattice is held at zero outside: both edges
    of an axis have a bond to a site with :math:`\phi = 0`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        mass: m, in units of the inverse lattice spacing: > 0 on a periodic lattice (there the mean
            would be free), >= 0 on an open one.
        boundary: "periodic" or "open".

    Example:
        >>> target = FreeField((8, 8), mass=0.5)
        >>> x = target.sample_reference(10)
        >>> target.energy(x).shape
        torch.Size([10])
    """

    spectrum: Tensor
    _shown = ("mass",)

    def __init__(self, shape: Iterable[int], mass: float = 1.0, boundary: str = "periodic") -> None:
        sides, boundary = check_shape(shape), check_boundary(boundary)
        self.mass = check_number("mass", mass)
        if self.mass < 0 or (self.mass == 0 and boundary == "periodic"):
            raise ValueError(
                f"mass is {self.mass}; accepted: a number > 0, or >= 0 with boundary='open'"
            )
        precision = self.mass**2 + laplacian_spectrum(sides, boundary)
        super().__init__(sides, boundary, even=True, spectrum=1 / precision)
        self._register("precision", precision)

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        total = self.mass**2 * x.square().sum(self._axes)
        for axis in self._axes:
            if self.boundary == "periodic":
                difference = x.roll(-1, axis) - x
            else:
                edge = torch.zeros_like(x.narrow(axis, 0, 1))
                difference = torch.cat([edge, x], axis) - torch.cat([x, edge], axis)
            total = total + difference.square().sum(self._axes)
        return total / 2

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.check_field(x)
        gradient = apply_spectrum(x, self._constant("precision", x), self.boundary)
        return (x * gradient).sum(self._axes) / 2, gradient

    def log_partition(self) -> float:
        return gaussian_log_partition(self.spectrum)

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw independent fields, exactly; see :meth:`LatticePotential.sample_reference`."""
        x = gaussian_fields(self.spectrum, self.boundary, n, generator_of(seed))
        return x.to(self.device)

    def correlations(self, site: Sequence[int] | None = None) -> Tensor:
        """Exact covariance of one site's field with that of every site, shape ``shape``, float64.

        ``site`` is a position, one integer >= 0 per axis; default: the origin.
        """
        accepted = f"a position on the lattice {self.shape}, one integer per axis"
        position = check_integers("site", [0] * len(self.shape) if site is None else site, accepted)
        inside = [0 <= at < side for at, side in zip(position, self.shape, strict=False)]
        if len(position) != len(self.shape) or not all(inside):
            raise ValueError(f"site is {site!r}; accepted: {accepted}")
        delta = torch.zeros(self.shape, dtype=torch.float64)
        delta[position] = 1.0
        return apply_spectrum(delta, self.spectrum, self.boundary)


def gaussian_log_partition(spectrum: Tensor) -> float:
    r"""ln Z of a Gaussian, :math:`\frac N2\ln 2\pi + \frac12\ln\det\text{Cov}` (nats)."""
    return 0.5 * (spectrum.numel() * math.log(2 * math.pi) + float(spectrum.log().sum()))


def gaussian_fields(spectrum: Tensor, boundary: str, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` centred Gaussian fields whose covariance has the eigenvalues ``spectrum``."""
    noise = torch.randn(check_integer("n", n, 1), *spectrum.shape, generator=generator)
    return apply_spectrum(noise, spectrum.sqrt(), boundary)
