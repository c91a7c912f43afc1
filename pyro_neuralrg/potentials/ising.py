# SPDX-License-Identifier: Apache-2.0
"""The continuous dual of spins (paper Eq. 7); of the Ising model its free energy is known."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_neuralrg.arguments import check_number, check_values
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.potentials.base import TWO_PHASES, LatticePotential, generator_of
from pyro_neuralrg.potentials.ising_model import IsingModel, SpinSystem
from pyro_neuralrg.spectral import apply_spectrum, computable, neighbour_spectrum, quadratic_form
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.bijectors import as_bijector

LOWEST_EIGENVALUE = 0.1
"""Lowest eigenvalue of K + alpha I (paper, reference [70])."""


class SpinDual(LatticePotential):
    r"""The continuous field dual to spins, as :class:`~pyro_neuralrg.potentials.IsingDual`.

    Subclasses define how :math:`K + \alpha I` acts, with couplings K over T.
    """

    spins: SpinSystem
    alpha: float
    _eigenvalues: Tensor

    def __init__(self, spins: SpinSystem, spectrum: Tensor | None = None) -> None:
        self.spins, self.temperature = spins, spins.temperature
        self.couplings, self.field = spins.couplings, spins.field
        even = self.field is None
        super().__init__(spins.shape, spins.boundary, even=even, spectrum=spectrum)
        self.base = TWO_PHASES if even else NORMAL
        if spins.reduced_field is not None:
            self._register("reduced_field", spins.reduced_field)

    @abstractmethod
    def _times_precision(self, x: Tensor) -> Tensor:
        """(K + alpha I)^-1 x."""

    @abstractmethod
    def _times_power(self, x: Tensor, power: float) -> Tensor:
        """(K + alpha I)^power x on the CPU."""

    def _quadratic_form(self, x: Tensor) -> Tensor:
        """x^T (K + alpha I)^-1 x, of the batch shape."""
        h = computable(x)
        return (h * self._times_precision(h)).sum(self._axes).to(x.dtype)

    def _bond_features(self) -> list[Tensor]:
        """Numbers that tell the bonds of the sites apart, each of the shape; here none."""
        return []

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        gaussian = self._quadratic_form(x) / 2
        return gaussian - logcosh(self._shifted(x)).sum(self._axes)

    @torch.no_grad()
    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The energy and :math:`(K + \alpha I)^{-1} x - \tanh(x + h)`, by one product."""
        self.check_field(x)
        gradient = self._times_precision(x)
        quadratic = (x * gradient).sum(self._axes) / 2
        shifted = self._shifted(x)
        size = shifted.abs()
        decay = (-2 * size).exp()  # of which both ln cosh and tanh are made, as tanh is slow
        size = size + decay.log1p() - math.log(2)
        tanh = ((1 - decay) / (1 + decay)).copysign(shifted)
        return quadratic - size.sum(self._axes), gradient - tanh

    def _shifted(self, x: Tensor) -> Tensor:
        """The field seen by the spins, x + h / T."""
        if "reduced_field" not in self._constants:
            return x
        return x + self._constant("reduced_field", x).to(x.device)

    def flow(self, **options: Any) -> HierarchicalFlow:
        """As :meth:`LatticePotential.flow`; its networks see what differs between sites.

        The ``site_features``, for flows whose bijector can see them, are h / T of each site (not of
        an odd flow, since it is odd itself) and the bonds to its neighbours; an odd flow with a
        context has none, as it takes none.
        """
        sees = getattr(as_bijector(options.get("bijector", "neighbour")), "sees_sites", False)
        odd = options.get("odd", self.even)
        sees = sees and not (odd and options.get("context_dim"))
        h = None if odd else self.spins.reduced_field
        given = ([] if h is None else [h]) + self._bond_features()
        known = [channel for channel in given if channel.unique().numel() > 1]
        if sees and known:
            options = {"site_features": torch.stack(known), **options}
        return super().flow(**options)

    def spin_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of each spin given fields: t = tanh(x + h / T) and 1 - t^2.

        Both of the shape ``batch + shape`` and dtype of x. With them the functions of
        :mod:`pyro_neuralrg.observables` average over the spins exactly.

        Example:
            >>> IsingDual((2,), temperature=2.0, field=(0.0, 2.0)).spin_moments(torch.zeros(2))[0]
            tensor([0.0000, 0.7616])
        """
        mean = self._shifted(check_values("x", x, self.shape)).tanh()
        return mean, 1 - mean.square()

    def spin_probability(self, x: Tensor) -> Tensor:
        r"""Probability of spin up given fields: :math:`1 / (1 + e^{-2 (x_i + h_i / T)})`.

        Of the shape ``batch + shape`` and dtype of x.
        """
        return torch.sigmoid(2 * self._shifted(check_values("x", x, self.shape)))

    def observables(self) -> dict[str, Observable]:
        """Observables of the spins as functions of the field, averaged over the spins given it.

        Exactly (Rao-Blackwell): the same expectation as of sampled spins, less scatter; by the
        names of the observables of the spins.

        Example:
            >>> functions = IsingDual((4, 4)).observables()
            >>> functions["structure_factor"](torch.zeros(3, 4, 4))
            tensor([0.0625, 0.0625, 0.0625])
        """
        functions = self.spins.observables()
        return {name: functools.partial(self._averaged, f) for name, f in functions.items()}

    def _averaged(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return function(*self.spin_moments(x))

    def sample_spins(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Draw spins of +1 and -1 given fields, in the shape ``batch + shape`` and dtype of x.

        Without a ``seed`` torch's own random numbers continue.
        """
        probability = self.spin_probability(check_values("x", x, self.shape).detach().double())
        uniform = torch.rand(x.shape, generator=generator_of(seed), dtype=torch.float64)
        up = uniform.to(x.device) < probability
        return torch.where(up, x.new_ones(()), x.new_full((), -1.0))

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw spins as ``spins.sample`` does, then the field given spins."""
        generator = generator_of(seed)
        mean = self._times_power(self.spins.sample(n, generator), 1.0)
        noise = torch.randn(mean.shape, generator=generator)
        return (mean + self._times_power(noise, 0.5)).to(self.device)

    def log_partition(self) -> float:
        r"""Exact ln Z of the dual (nats).

        :math:`\ln Z = \ln Z_\text{spins} + \frac12\ln\det(K + \alpha I) + \frac N2 [\ln\frac\pi2 +
        \alpha]`.
        A NotImplementedError says where that of the spins is out of reach.
        """
        sites = math.prod(self.shape)
        gaussian = 0.5 * float(self._eigenvalues.log().sum())
        constant = 0.5 * sites * (math.log(math.pi / 2) + self.alpha)
        return self.spins.log_partition() + gaussian + constant

    def heated(self, factor: float) -> SpinDual:
        """The same couplings and external field at ``factor`` times the temperature."""
        hot = self.temperature * check_number("factor", factor, "a finite number > 0", above=0)
        names = ("shape", "couplings", "field", "boundary")
        options: Any = {name: getattr(self, name) for name in names}
        # a class derived from ours may take other arguments
        kind: Any = next(kind for kind in type(self).__mro__ if kind in SpinDual.__subclasses__())
        return kind(**options, temperature=hot).to(self.device)

    def __repr__(self) -> str:
        return repr(self.spins).replace(type(self.spins).__name__, type(self).__name__, 1)


def logcosh(x: Tensor) -> Tensor:
    """Ln cosh x without overflow, exactly even, with all its derivatives.

    Example:
        >>> logcosh(torch.tensor([0.0, -100.0]))
        tensor([ 0.0000, 99.3069])
    """
    return torch.logaddexp(x, -x) - math.log(2)


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
    spins: IsingModel

    def __init__(
        self,
        shape: Iterable[int],
        temperature: float | None = None,
        couplings: Sequence[float] | None = None,
        field: ArrayLike | Tensor | None = None,
        boundary: str = "periodic",
    ) -> None:
        spins = IsingModel(shape, temperature, couplings, field, boundary)
        bonds = tuple(coupling / spins.temperature for coupling in spins.couplings)
        neighbours = neighbour_spectrum(spins.shape, bonds, boundary)
        self.alpha = LOWEST_EIGENVALUE - float(neighbours.min())
        self._eigenvalues = neighbours + self.alpha
        super().__init__(spins, self._eigenvalues)
        self._register("precision", 1 / self.spectrum)

    def _times_precision(self, x: Tensor) -> Tensor:
        return apply_spectrum(x, self._constant("precision", x), self.boundary)

    def _quadratic_form(self, x: Tensor) -> Tensor:
        return quadratic_form(x, self._constant("precision", x), self.boundary)

    def _times_power(self, x: Tensor, power: float) -> Tensor:
        return apply_spectrum(x, self.spectrum**power, self.boundary)

    def correlations(self) -> Tensor:
        r"""Exact <x_0 x_r> of the field for every displacement r, float64 of shape ``shape``.

        :math:`\langle x x^T\rangle = K' + K' \langle s s^T\rangle K'` with K' = K + alpha I, where
        ``spins.correlations()`` are known (periodic, no field h).
        """
        spins = torch.fft.fftn(self.spins.correlations()).real
        return torch.fft.ifftn(self.spectrum + self.spectrum.square() * spins).real
