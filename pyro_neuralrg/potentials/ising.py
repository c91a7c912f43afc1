# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The continuous dual of the Ising model (paper Eq. 7), whose free energy is known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.bases import NORMAL, TwoModes
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials import cluster, exact
from pyro_neuralrg.potentials.base import LatticePotential, generator_of
from pyro_neuralrg.potentials.cluster import MonteCarlo, swendsen_wang
from pyro_neuralrg.potentials.exact.api import check_couplings, check_site_field
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum, quadratic_form
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.bijectors import as_bijector

__all__ = ["CRITICAL_TEMPERATURE", "IsingDual"]

CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))
"""Of the infinite square lattice with J = 1, in J / k_B (L. Onsager, 1944)."""

LOWEST_EIGENVALUE = 0.1
"""Of K + alpha I (paper, reference [70])."""

SEPARATION = 3.0
"""At Tc and below, two modes of the coarsest variable take the fold between two phases out of a
flow; far above, where there is but one, they cost 0.01 nats (8 x 8, T = 2.9)."""


class IsingDual(LatticePotential):
    r"""The continuous field dual to the Ising model (paper Eq. 7).

    .. math::
        \pi(x) = \exp\left(-\tfrac12 x^T (K + \alpha I)^{-1} x\right) \prod_i \cosh(x_i + h_i / T)

    with :math:`K_{ij} = J_a / T` for each bond of nearest neighbours along axis a. Spins and field
    are jointly :math:`\exp(-\frac12 x^T (K + \alpha I)^{-1} x + s^T (x + h / T)) / 2^N`: the spins
    alone are Ising spins, the field given spins is :math:`N((K + \alpha) s, K + \alpha)`, the spins
    given the field are independent.

    Args:
        shape: lattice shape, one to three sides >= 1.
        temperature: T in units of J / k_B, > 0; default: the critical one of the square lattice.
        couplings: J of each axis, of either sign; default: 1 each. A periodic side of 2 counts both
            bonds of a pair, a side of 1 has none.
        field: external field h in units of J, one number or one per site (shape ``shape``).
        boundary: "periodic" or "open".

    Attributes:
        temperature: T.
        couplings: J of each axis.
        field: h of each site, float64 of shape ``shape``; None if there is none, or it is zero.
        alpha: makes the lowest eigenvalue of K + alpha I equal to 0.1.
        spectrum: eigenvalues of K + alpha I.

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.

    References:
        S.-H. Li and L. Wang, Neural Network Renormalization Group, Phys. Rev. Lett. 121, 260601
        (2018).

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
        temperature: float = CRITICAL_TEMPERATURE,
        couplings: Sequence[float] | None = None,
        field: ArrayLike | Tensor | None = None,
        boundary: str = "periodic",
    ) -> None:
        sides = check_shape(shape)
        self.temperature = check_number("temperature", temperature, "a finite number > 0", above=0)
        self.couplings = check_couplings(couplings, sides)
        self.field = check_site_field(field, sides)
        neighbours = neighbour_spectrum(sides, self._bonds, check_boundary(boundary))
        self.alpha = LOWEST_EIGENVALUE - float(neighbours.min())
        super().__init__(sides, boundary, even=self.field is None, spectrum=neighbours + self.alpha)
        self.base = TwoModes(SEPARATION) if self.even else NORMAL
        self._register("precision", 1 / self.spectrum)
        if self.field is not None:
            self._register("reduced_field", self.field / self.temperature)

    @property
    def _bonds(self) -> tuple[float, ...]:
        """K = J / T of the bonds of each axis."""
        return tuple(coupling / self.temperature for coupling in self.couplings)

    def energy(self, x: Tensor) -> Tensor:
        r"""-ln pi(x) in nats, O(N log N).

        :math:`\frac12 x^T (K + \alpha I)^{-1} x - \sum_i \ln\cosh(x_i + h_i / T)`.

        Args:
            x: fields, shape ``batch + shape``, of any floating dtype.

        Returns:
            A tensor of the batch shape, in x's dtype.

        Raises:
            TypeError: if x is no tensor of a floating dtype.
            ValueError: if x has another shape or is on another device.
        """
        self.check_field(x)
        gaussian = quadratic_form(x, self._constant("precision", x), self.boundary) / 2
        return gaussian - logcosh(self._shifted(x)).sum(tuple(range(-len(self.shape), 0)))

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The energy and :math:`(K + \alpha I)^{-1} x - \tanh(x + h / T)`, in two transforms.

        See :meth:`LatticePotential.energy_and_gradient`.
        """
        self.check_field(x)
        lattice = tuple(range(-len(self.shape), 0))
        gradient = apply_spectrum(x, self._constant("precision", x), self.boundary)
        quadratic = (x * gradient).sum(lattice) / 2
        shifted = self._shifted(x)
        size = shifted.abs()
        decay = (-2 * size).exp()  # of which both ln cosh and tanh are made, as tanh is slow
        size = size + decay.log1p() - math.log(2)
        tanh = ((1 - decay) / (1 + decay)).copysign(shifted)
        return quadratic - size.sum(lattice), gradient - tanh

    def _shifted(self, x: Tensor) -> Tensor:
        """The field seen by the spins, x + h / T."""
        return x if self.field is None else x + self._constant("reduced_field", x)

    def flow(self, **options: Any) -> HierarchicalFlow:
        """As :meth:`LatticePotential.flow`; its networks see a field that differs between sites.

        The ``site_features`` are h / T of each site, for flows whose bijector can see them.

        Args:
            **options: of :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.build`; they take
                precedence.
        """
        sees = getattr(as_bijector(options.get("bijector", "neighbour")), "sees_sites", False)
        if self.field is None or not sees or options.get("odd", False):
            return super().flow(**options)
        if bool((self.field == self.field.flatten()[0]).all()):
            return super().flow(**options)
        reduced = (self.field / self.temperature).unsqueeze(0)
        return super().flow(**{"site_features": reduced, **options})

    def spin_probability(self, x: Tensor) -> Tensor:
        r"""Probability of spin up given fields: :math:`1 / (1 + e^{-2 (x_i + h_i / T)})`.

        Its mean over fields is that of the spins, P(s_i = 1), with less noise than spins drawn.

        Args:
            x: fields, shape ``batch + shape``.

        Returns:
            A tensor of x's shape and dtype.

        Raises:
            TypeError, ValueError: as :meth:`energy`.

        Example:
            >>> IsingDual((2,), temperature=2.0, field=(0.0, 2.0)).spin_probability(torch.zeros(2))
            tensor([0.5000, 0.8808])
        """
        self.check_field(x)
        return torch.sigmoid(2 * self._shifted(x))

    def sample_spins(self, x: Tensor, seed: int | None = None) -> Tensor:
        r"""Draw spins given fields.

        :math:`\pi(s_i = \pm1 | x) = 1 / (1 + e^{\mp 2 (x_i + h_i / T)})`, independently.

        Args:
            x: fields, shape ``batch + shape``.
            seed: of the random numbers; None continues torch's own.

        Returns:
            Spins of +1 and -1, in x's shape and dtype.

        Raises:
            TypeError, ValueError: as :meth:`energy`.
        """
        self.check_field(x)
        uniform = torch.rand(x.shape, generator=generator_of(seed), dtype=torch.float64)
        up = uniform.to(x.device) < self.spin_probability(x.detach().double())
        return torch.where(up, x.new_ones(()), x.new_full((), -1.0))

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw fields independently of any flow: Swendsen-Wang spins, then the field given spins.

        Args:
            n: number of fields.
            seed: of the random numbers; None continues torch's own.

        Returns:
            Fields of shape ``(n,) + shape``, in torch's default dtype. They come from as many
            independent chains as fit 65536 sites; those of one chain are 15 sweeps apart.
        """
        generator = generator_of(seed)
        spins = swendsen_wang(
            self.shape,
            self._bonds,
            check_integer("n", n, 1),
            boundary=self.boundary,
            field=self._cluster_field(),
            seed=_numpy_seed(generator),
        )
        s = torch.from_numpy(spins).to(torch.get_default_dtype())
        noise = torch.randn(s.shape, generator=generator)
        mean = apply_spectrum(s, self.spectrum, self.boundary)
        return (mean + apply_spectrum(noise, self.spectrum.sqrt(), self.boundary)).to(self.device)

    def log_partition(self) -> float:
        r"""Exact ln Z of the dual (nats).

        :math:`\ln Z = \ln Z_\text{Ising} + \frac12\ln\det(K + \alpha I) + \frac N2 [\ln\frac\pi2 +
        \alpha]`.

        Raises:
            NotImplementedError: where no exact ln Z of the spins is in reach.
        """
        sites = self.spectrum.numel()
        ising = exact.log_partition(
            self.shape, self.temperature, self.couplings, self.boundary, self._exact_field()
        )
        gaussian = 0.5 * float(self.spectrum.log().sum())
        return float(ising) + gaussian + 0.5 * sites * (math.log(math.pi / 2) + self.alpha)

    def exact_internal_energy(self) -> float:
        """Exact <H> of the spins per site, in units of J.

        Raises:
            NotImplementedError: where no exact method is in reach.
        """
        return float(
            exact.internal_energy(
                self.shape, self.temperature, self.couplings, self.boundary, self._exact_field()
            )
        )

    def exact_specific_heat(self) -> float:
        """Exact d<H>/dT of the spins per site, in units of k_B.

        Raises:
            NotImplementedError: where no exact method is in reach.
        """
        return float(
            exact.specific_heat(
                self.shape, self.temperature, self.couplings, self.boundary, self._exact_field()
            )
        )

    def exact_correlations(self) -> NDArray[np.float64]:
        """Exact <s_0 s_r> of the spins for every displacement r (periodic, no field).

        Returns:
            A float64 array of shape ``shape``.

        Raises:
            NotImplementedError: where no exact method is in reach.
        """
        self._need_no_field("exact_correlations")
        return exact.correlations(self.shape, self.temperature, self.couplings, self.boundary)

    def exact_structure_factor(self) -> float:
        """Exact uniform structure factor of the spins, E[(sum_i s_i)^2] / N^2.

        Raises:
            NotImplementedError: where no exact method is in reach; then
                :meth:`reference_structure_factor` is.
        """
        return float(
            exact.structure_factor(
                self.shape, self.temperature, self.couplings, self.boundary, self._exact_field()
            )
        )

    def reference_structure_factor(self, n: int, seed: int | None = None) -> MonteCarlo:
        """Uniform structure factor of the spins by cluster Monte Carlo, with its standard error.

        Independent of any flow, and of any lattice size: what to compare with where
        :meth:`exact_structure_factor` does not reach. The error comes from the scatter of
        independent chains, see :func:`pyro_neuralrg.potentials.cluster.structure_factor`.

        Args:
            n: number of spin configurations, at least 2.
            seed: of the random numbers; None continues torch's own.

        Returns:
            The named tuple ``(mean, standard_error)``.

        Example:
            >>> mean, error = IsingDual((6, 6, 6), temperature=4.5).reference_structure_factor(320)
            >>> error < 0.1 * mean
            True
        """
        return cluster.structure_factor(
            self.shape,
            self._bonds,
            check_integer("n", n, 2),
            boundary=self.boundary,
            field=self._cluster_field(),
            seed=_numpy_seed(generator_of(seed)),
        )

    def exact_field_correlations(self) -> NDArray[np.float64]:
        r"""Exact <x_0 x_r> of the field for every displacement r (periodic, no field).

        :math:`\langle x x^T\rangle = K' + K' \langle s s^T\rangle K'` with K' = K + alpha I.

        Returns:
            A float64 array of shape ``shape``.

        Raises:
            NotImplementedError: where no exact method is in reach.
        """
        spins = torch.fft.fftn(torch.from_numpy(np.asarray(self.exact_correlations()))).real
        eigenvalues = self.spectrum + self.spectrum.square() * spins
        return torch.fft.ifftn(eigenvalues).real.numpy()

    def _exact_field(self) -> NDArray[np.float64] | None:
        return None if self.field is None else self.field.numpy()

    def _cluster_field(self) -> NDArray[np.float64] | None:
        """h / T of each site."""
        return None if self.field is None else (self.field / self.temperature).numpy()

    def _need_no_field(self, what: str) -> None:
        if self.field is not None:
            raise NotImplementedError(
                f"{what}: no exact method for spins in an external field; "
                "sample_reference() has no such limit"
            )

    def heated(self, factor: float) -> IsingDual:
        """The same couplings and external field at ``factor`` times the temperature.

        Raises:
            ValueError: if the factor is not a positive number.
        """
        hot = IsingDual(
            self.shape,
            self.temperature * check_number("factor", factor, "a finite number > 0", above=0),
            self.couplings,
            self.field,
            self.boundary,
        )
        return hot.to(self.device)

    def __repr__(self) -> str:
        field = "" if self.field is None else ", field=..."
        return (
            f"IsingDual({self.shape}, temperature={self.temperature:.9g}, "
            f"couplings={self.couplings}{field}, boundary={self.boundary!r})"
        )


def _numpy_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def logcosh(x: Tensor) -> Tensor:
    """Ln cosh x without overflow, exactly even, with all its derivatives.

    Example:
        >>> logcosh(torch.tensor([0.0, -100.0]))
        tensor([ 0.0000, 99.3069])
    """
    return torch.logaddexp(x, -x) - math.log(2)
