# SPDX-License-Identifier: Apache-2.0
"""The lattice phi^4 theory, from the free field (lam = 0) to the Ising model (lam to infinity).

With components the O(N) model, whose limit are unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.bases import NORMAL
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.potentials.base import TWO_PHASES, LatticePotential, generator_of
from pyro_neuralrg.potentials.cluster import sample_with_clusters
from pyro_neuralrg.potentials.free_field import gaussian_fields, gaussian_log_partition
from pyro_neuralrg.spectral import neighbour_spectrum, quadratic_form

CORRELATED_PART = 0.25
"""Part of the longest side: with a longer correlation length there may be two phases."""

BISECTIONS = 100
"""More than a double has digits."""


class Quartic(NamedTuple):
    """Parameters of the convention of mass and coupling.

    Attributes:
        m2: mass squared, in units of the inverse lattice spacing; negative in the broken phase.
        g: coupling, with g / 24 before the fourth power.
        field_scale: the field of this convention in units of that of the hopping convention.
    """

    m2: float
    g: float
    field_scale: float


class Phi4(LatticePotential):
    r"""The phi^4 theory in the hopping convention.

    .. math::
        S = \sum_x \Big[ -2\kappa\sum_\mu \phi_x\phi_{x+\mu} + (1 - 2\lambda)\phi_x^2 +
        \lambda\phi_x^4 \Big]

    With :math:`\lambda = 0` it is Gaussian, with :math:`\lambda\to\infty` the Ising model at
    :math:`J / T = 2\kappa`. Bonds are those of :class:`IsingDual`: a periodic side of 2 has two
    between its sites, a side of 1 has none, and the open lattice ends without any. A field of N
    components has the O(N) model's action, :math:`\phi^2` being the square of the vector.

    Other conventions are the same theory in another unit of the field, in which :math:`\ln Z` is
    :math:`N \ln` ``field_scale`` larger; :meth:`from_mass` and :attr:`quartic` convert:

    * :math:`\tfrac12\sum_\mu(\phi_{x+\mu} - \phi_x)^2 + \tfrac{m^2}{2}\phi^2 + \tfrac{g}{24}\phi^4`
      (textbooks; Schaich and Loinaz with :math:`g = 6\lambda`);
    * :math:`\sum_\mu(\phi_{x+\mu} - \phi_x)^2 + m^2\phi^2 + \lambda\phi^4` (Albergo et al., de Haan
      et al.): the same m^2, :math:`g = 6\lambda`, and a field smaller by :math:`\sqrt 2`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        kappa: hopping parameter, of either sign.
        lam: quartic coupling, >= 0; for 0 only a kappa for which the Gaussian can be normalised.
        boundary: "periodic" or "open".
        components: N of the O(N) model; 0 for a scalar field.

    Attributes:
        spectrum: covariance of the Gaussian that is closest to the theory (the least KL(q || pi)
            among those centred at zero, the Hartree approximation): the theory itself for lam = 0.
        base: two modes if the correlation length of that Gaussian is more than a quarter of the
            longest side, else normals, and of several components always these.

    References:
        I. Montvay and G. Muenster, Quantum Fields on a Lattice (1994), for the hopping convention.
        M. S. Albergo, G. Kanwar and P. E. Shanahan, Phys. Rev. D 100, 034515 (2019).
        P. de Haan, C. Rainone, M. C. N. Cheng and R. Bondesan, arXiv:2110.02673 (2021).
        D. Schaich and W. Loinaz, Phys. Rev. D 79, 056008 (2009).

    Example:
        >>> target = Phi4((8, 8), kappa=0.25, lam=0.022)
        >>> target.energy(torch.ones(8, 8))  # 64 (-4 kappa + 1 - lam)
        tensor(-1.4080)
    """

    spectrum: Tensor
    _shown = ("kappa", "lam")

    def __init__(
        self,
        shape: Iterable[int],
        kappa: float,
        lam: float,
        boundary: str = "periodic",
        components: int = 0,
    ) -> None:
        sides = check_shape(shape)
        self.kappa = check_number("kappa", kappa)
        self.lam = check_number("lam", lam, "a finite number >= 0", least=0)
        bonds = (1.0,) * len(sides)
        neighbours = neighbour_spectrum(sides, bonds, check_boundary(boundary))
        quadratic = 1 - 2 * self.lam - self.kappa * neighbours
        if self.lam == 0 and float(quadratic.min()) <= 0:
            raise ValueError(
                f"kappa is {self.kappa} with lam = 0, where no Z exists; accepted: a kappa with "
                f"1 - kappa * k > 0 for k = {float(neighbours.min()):.6g} and "
                f"{float(neighbours.max()):.6g}"
            )
        number = check_integer("components", components, 0)
        # (phi^2)^2 is felt 4 (N + 2) lam <phi_a^2> strong by each of N components
        variances = _hartree(2 * quadratic, self.lam * (max(1, number) + 2) / 3)
        spectrum = variances[..., None, None] * torch.eye(number).double() if number else variances
        super().__init__(sides, boundary, even=True, spectrum=spectrum, components=number)
        length = math.sqrt(2 * max(self.kappa, 0.0) * float(variances.max()))
        may_break = self.lam > 0 and length > CORRELATED_PART * max(sides) and number <= 1
        self.base = TWO_PHASES if may_break else NORMAL
        self._register("quadratic", quadratic)

    @classmethod
    def from_mass(
        cls,
        shape: Iterable[int],
        m2: float,
        g: float,
        boundary: str = "periodic",
        components: int = 0,
    ) -> Phi4:
        r"""The theory of mass squared ``m2`` and coupling ``g``, in the field of the hopping form.

        The open lattice is held at zero outside, as that of :class:`FreeField`. With d axes that
        have bonds, kappa solves :math:`\kappa (2 d + m^2) + g\kappa^2 / 3 = 1`, :math:`\lambda =
        g\kappa^2 / 6`, and the field is smaller by :math:`\sqrt{2\kappa}`. ``g`` is >= 0, and with
        ``g = 0`` only m2 > -2 d is accepted. For Albergo et al. take ``g = 6 * lam``.

        Example:
            >>> target = Phi4.from_mass((6, 6), m2=-4.0, g=6 * 6.975)  # Albergo et al., E1
            >>> f"{target.kappa:.4f} {target.lam:.4f}"
            '0.2677 0.5000'
        """
        m2 = check_number("m2", m2)
        g = check_number("g", g, "a finite number >= 0", least=0)
        bonded = _bonded_axes(check_shape(shape), check_boundary(boundary))
        linear = 2 * bonded + m2
        root = math.sqrt(linear**2 + 4 * g / 3)
        if linear > 0:
            kappa = 2 / (linear + root)  # without cancellation
        elif g > 0:
            kappa = 3 * (root - linear) / (2 * g)
        else:
            raise ValueError(f"m2 is {m2} with g = 0; accepted: a number > {-2 * bonded}, or g > 0")
        return cls(shape, kappa, g * kappa**2 / 6, boundary, components)

    @property
    def quartic(self) -> Quartic:
        r"""The same theory in terms of mass and coupling, for kappa > 0, see :meth:`from_mass`.

        :math:`m^2 = (1 - 2\lambda) / \kappa - 2 d` and :math:`g = 6\lambda / \kappa^2`.
        """
        kappa = check_number("kappa", self.kappa, "a number > 0", above=0)
        m2 = (1 - 2 * self.lam) / kappa - 2 * _bonded_axes(self.shape, self.boundary)
        return Quartic(m2, 6 * self.lam / kappa**2, math.sqrt(2 * kappa))

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        quadratic = self._constant("quadratic", x)
        if not self.components:
            gaussian = quadratic_form(x, quadratic, self.boundary)
            return gaussian + self.lam * x.square().square().sum(self._axes)
        gaussian = quadratic_form(x.movedim(-1, 0), quadratic, self.boundary).sum(0)
        squares = x.square().sum(-1).flatten(-len(self.lattice))
        return gaussian + self.lam * squares.square().sum(-1)

    def log_partition(self) -> float:
        """Exact ln Z for lam = 0 in nats; a NotImplementedError for lam > 0."""
        if self.lam > 0:
            raise NotImplementedError(
                "log_partition: no exact ln Z is known for lam > 0; estimate it with a flow "
                "(pyro_neuralrg.estimate or anneal)"
            )
        if not self.components:
            return gaussian_log_partition(self.spectrum)
        return self.components * gaussian_log_partition(self.spectrum[..., 0, 0])

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw independent fields for lam = 0, else by cluster Monte Carlo and HMC; of scalars."""
        if self.components:
            return super().sample_reference(n, seed)
        n, generator = check_integer("n", n, 1), generator_of(seed)
        if self.lam == 0:
            return gaussian_fields(self.spectrum, self.boundary, n, generator).to(self.device)
        energy_and_gradient = self.to("cpu").energy_and_gradient
        x = sample_with_clusters(
            energy_and_gradient, self.shape, 2 * self.kappa, self.boundary, n, generator
        )
        return x.to(self.device, torch.get_default_dtype())

    def heated(self, factor: float) -> Phi4:
        """The same measure of a site at ``kappa / factor``, as 2 kappa is J / T of Ising spins."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        kappa = self.kappa / factor
        hot = Phi4(self.lattice, kappa, self.lam, self.boundary, self.components)
        return hot.to(self.device)


def _bonded_axes(shape: tuple[int, ...], boundary: str) -> int:
    """Axes along which there are bonds, in the convention of :class:`FreeField` those to zero."""
    return len(shape) if boundary == "open" else sum(side > 1 for side in shape)


def _hartree(precision: Tensor, lam: float) -> Tensor:
    r"""Covariance eigenvalues of the best centred Gaussian.

    With :math:`v = \langle\phi^2\rangle` the mean of the eigenvalues, :math:`\lambda\phi^4` acts as
    :math:`6\lambda v\phi^2`: precisions rise by :math:`12\lambda v`. The mean of the eigenvalues
    falls as v grows, so that bisection finds the one v.
    """
    if lam == 0:
        return 1 / precision
    lowest = float(precision.min())
    excess = precision - lowest  # so that the smallest new precision t keeps its digits

    def too_low(t: float) -> bool:
        return float((1 / (excess + t)).mean()) > (t - lowest) / (12 * lam)

    low = high = max(lowest, 0.0)
    while high == low or too_low(high):
        high += max(1.0, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return 1 / (excess + high)
