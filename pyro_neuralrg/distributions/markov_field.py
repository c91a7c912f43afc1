# SPDX-License-Identifier: Apache-2.0
"""Gaussian fields on a lattice as Pyro distributions, priors of series, maps and cubes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.arguments import check_choice, check_integer, check_number, check_tensor
from pyro_neuralrg.bases import FieldDistribution
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.spectral import apply_spectrum, laplacian_spectrum, quadratic_form

EDGES = {"open": "free", "periodic": "periodic", "zero": "open"}
"""What :mod:`pyro_neuralrg.spectral` calls the boundaries of these fields."""

NUMBER_OR_TENSOR = "a finite number, or a floating tensor"


class StationaryField(FieldDistribution):
    r"""A centred Gaussian field with the precision :math:`A / s^2`, A diagonal in the modes.

    The base of the priors below; another one defines :meth:`eigenvalues`, and hands its parameters
    over, ``scale`` (s) among them. Their batch dimensions broadcast and are the distribution's, the
    lattice is its event. Densities and draws cost O(N log N). Add a mean outside: ``mean + field``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"scale": constraints.positive}
    null_modes = 0
    scale: Tensor

    def __init__(
        self,
        shape: Iterable[int],
        boundary: str,
        validate_args: bool | None,
        **parameters: Tensor | float,
    ) -> None:
        self.boundary = check_choice("boundary", boundary, EDGES)
        tensors = _alike(parameters)
        self.__dict__.update(tensors)
        batch = torch.broadcast_shapes(*(value.shape for value in tensors.values()))
        super().__init__(batch, torch.Size(check_shape(shape)), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Zeros."""
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each site."""
        variances = self._powers(-1.0)
        for dim in range(-self.event_dim, 0):
            variances = _diagonal(variances.movedim(dim, -1), self.boundary).movedim(-1, dim)
        variances = variances * self._per_field(self.scale) ** 2
        return variances.expand(self.batch_shape + self.event_shape)

    def eigenvalues(self) -> Tensor:
        """Those of A, shape ``batch + lattice`` or the lattice's, in the order of spectra."""
        raise NotImplementedError

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        torch.broadcast_to(self.scale.new_empty(self.batch_shape), batch_shape)  # or it raises
        return super().expand(batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, of the batch shape of ``value`` with that of the distribution."""
        if self._validate_args:
            self._validate_sample(value)
        eigenvalues = self.eigenvalues().to(value.device)
        form = quadratic_form(value, eigenvalues, EDGES[self.boundary], self.event_dim)
        log_det = eigenvalues.flatten(-self.event_dim)[..., self.null_modes :].log().sum(-1)
        rank = math.prod(self.event_shape) - self.null_modes
        log_prob = 0.5 * (log_det - form / self.scale**2) - rank * (
            self.scale.log() + 0.5 * math.log(2 * math.pi)
        )
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[: -self.event_dim])
        return log_prob.expand(batch)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw fields, differentiable in the parameters: ``sample + batch + lattice``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        scale = self.scale
        return self.from_normal(torch.randn(shape, dtype=scale.dtype, device=scale.device))

    def from_normal(self, noise: Tensor) -> Tensor:
        """The field of standard normals ``noise``, for a model that is not centred.

        Where data say little, ``prior.from_normal(pyro.sample("z", ...))`` of a ``dist.Normal`` on
        the lattice depends less on the hyper-parameters than ``pyro.sample("x", prior)``.
        """
        roots = self._powers(-0.5)
        x = apply_spectrum(noise, roots, EDGES[self.boundary], self.event_dim)
        return x * self._per_field(self.scale)

    def _powers(self, power: float) -> Tensor:
        """Of the eigenvalues, without those of the null space: 0 there."""
        powers = (power * self._proper_log_eigenvalues()).exp()
        return torch.nn.functional.pad(powers, (self.null_modes, 0)).unflatten(-1, self.event_shape)

    def _proper_log_eigenvalues(self) -> Tensor:
        """Of the modes that are not in the null space, ``batch + (modes,)``."""
        return self.eigenvalues().flatten(-self.event_dim)[..., self.null_modes :].log()

    def _per_field(self, parameter: Tensor) -> Tensor:
        """With dimensions of the lattice behind those of the batch."""
        return parameter.reshape(parameter.shape + (1,) * self.event_dim)


class GaussianMarkovField(StationaryField):
    r"""Gaussian Markov random field of squared differences: a random walk, a smooth map.

    .. math:: x \sim N(0, Q^{-1}), \quad Q = (m^2 + D^T D)^p / s^2

    with the differences D between neighbours. With p = 1 the energy is :math:`\frac{1}{2 s^2}
    (\sum_{i \sim j} (x_i - x_j)^2 + m^2 \sum_i x_i^2)`: in one dimension a random walk with steps
    of standard deviation s, which a mass pulls back to zero over about 1 / m sites.

    Without a mass it is *intrinsic* (but for a zero boundary): a random walk of free start, the
    ICAR prior of disease maps. Q does not see the mean of the field, along which ``log_prob`` is
    flat, and improper; the N - 1 other directions are normalised, by the pseudo-determinant of Q,
    so that an unknown scale is inferred as it should be. Draws sum to zero, and ``variance`` is
    theirs. The posterior is proper once data see the mean. Beside an intercept subtract
    the mean, and hold it by a ``pyro.factor``, as nothing else does then.

    Args:
        shape: lattice shape, one to three sides >= 1.
        scale: s > 0, a number or a tensor of any batch shape.
        mass: m > 0, in units of the inverse lattice spacing, likewise; or the number 0.
        order: p, an integer >= 1; with 2 the field is as smooth as second differences make it.
        boundary: "open" has only bonds within the lattice; "periodic" goes round, with two bonds
            between the sites of a side of 2; "zero" is held at zero outside, as an open
            ``FreeField`` is, and proper without a mass.

    Raises:
        TypeError, ValueError: naming the argument; values of tensors are validated as Pyro's are.

    References:
        Rue, Held, Gaussian Markov Random Fields (2005); Besag, York, Mollie (1991).

    Example:
        >>> walk = GaussianMarkovField((100,), scale=torch.tensor([0.1, 1.0]))
        >>> walk.batch_shape, walk.event_shape, walk.rsample((5,)).shape
        (torch.Size([2]), torch.Size([100]), torch.Size([5, 2, 100]))
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> intrinsic = GaussianMarkovField((3,))
        >>> torch.allclose(intrinsic.log_prob(x + 7.0), intrinsic.log_prob(x))
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "scale": constraints.positive,
        "mass": constraints.nonnegative,
    }
    mass: Tensor

    def __init__(
        self,
        shape: Iterable[int],
        scale: Tensor | float = 1.0,
        mass: Tensor | float = 0.0,
        *,
        order: int = 1,
        boundary: str = "open",
        validate_args: bool | None = None,
    ) -> None:
        self.order = check_integer("order", order, 1)
        is_massless = isinstance(mass, Real) and mass == 0
        self.null_modes = int(is_massless and boundary != "zero")
        super().__init__(shape, boundary, validate_args, scale=scale, mass=mass)
        may_be_flat = not is_massless and boundary != "zero"
        if self._validate_args and may_be_flat and bool((self.mass == 0).any()):
            raise ValueError(
                "mass has entries of 0; accepted: a tensor of positive numbers, or mass=0 (a "
                "number) for an intrinsic field"
            )

    def eigenvalues(self) -> Tensor:
        laplacian = laplacian_spectrum(self.event_shape, EDGES[self.boundary]).to(self.mass)
        return (self._per_field(self.mass) ** 2 + laplacian) ** self.order


class MaternField(StationaryField):
    r"""Gaussian field of a Matern covariance, by its spectrum.

    .. math:: \lambda(k) \propto \sum_{n \in \{-1, 0, 1\}^d} (2 \nu / l^2 + |k + 2\pi n|^2)^{-\nu -
        d / 2}

    with the waves n that sites cannot tell from k, normalised to a mean variance of :math:`s^2`.
    On a periodic lattice the covariance is that of Matern, summed over all turns, but for waves
    beyond :math:`3 \pi`: correlations are right within 1e-3 for a smoothness of 1.5 and a length of
    2 sites or more, within 0.04 for 0.5. An open lattice mirrors the field at its edges,
    where the variance is up to twice as large (in corners four times): where that matters make the
    lattice longer by a length or two on each side, and use a part of the field.
    A smooth field much longer than the lattice is nearly a polynomial, whose density single
    precision does not hold: there use float64, or :meth:`from_normal`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        scale: s > 0, standard deviation of the field, a number or a tensor of any batch shape.
        length: l > 0, in lattice spacings, likewise.
        smoothness: nu > 0, likewise; 0.5 is the exponential covariance, whose one-dimensional
            series is a :class:`GaussianMarkovField` with a mass.
        boundary: "open", "periodic", or "zero".

    Raises:
        TypeError, ValueError: as for :class:`GaussianMarkovField`.

    References:
        Rasmussen, Williams, Gaussian Processes for Machine Learning (2006), Eq. 4.15.

    Example:
        >>> field = MaternField((8, 8), scale=2.0, length=torch.tensor(3.0))
        >>> x = field.rsample((10,))
        >>> x.shape, field.log_prob(x).shape, round(float(field.variance.mean()), 3)
        (torch.Size([10, 8, 8]), torch.Size([10]), 4.0)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "scale": constraints.positive,
        "length": constraints.positive,
        "smoothness": constraints.positive,
    }
    length: Tensor
    smoothness: Tensor

    def __init__(
        self,
        shape: Iterable[int],
        scale: Tensor | float = 1.0,
        length: Tensor | float = 1.0,
        smoothness: Tensor | float = 1.5,
        *,
        boundary: str = "open",
        validate_args: bool | None = None,
    ) -> None:
        own = {"length": length, "smoothness": smoothness}
        super().__init__(shape, boundary, validate_args, scale=scale, **own)

    def eigenvalues(self) -> Tensor:
        """See :class:`StationaryField`: those of the precision for a mean variance of one."""
        return self._proper_log_eigenvalues().exp().unflatten(-1, self.event_shape)

    def _proper_log_eigenvalues(self) -> Tensor:
        """Of all modes; the eigenvalues of the smoothest fields overflow."""
        batch = torch.broadcast_shapes(self.length.shape, self.smoothness.shape)
        length, smoothness = (  # with one more dimension, of the waves
            parameter.expand(batch).reshape(*batch, *(1,) * (self.event_dim + 1))
            for parameter in (self.length, self.smoothness)
        )
        squares = torch.from_numpy(_squared_waves(self.event_shape, self.boundary)).to(length)
        log_density = torch.log1p(squares * length**2 / (2 * smoothness))
        exponent = -(smoothness + self.event_dim / 2)
        spectrum = (exponent * log_density).logsumexp(-self.event_dim - 1)
        total = spectrum.logsumexp(tuple(range(-self.event_dim, 0)), keepdim=True)
        logs = total - math.log(math.prod(self.event_shape)) - spectrum
        return logs.flatten(-self.event_dim)


@functools.lru_cache(maxsize=16)
def _squared_waves(shape: tuple[int, ...], boundary: str) -> Any:
    """Squares of the wave numbers that sites cannot tell apart, ``(3^d,) + shape``, float64."""
    waves = {  # of each side, in units of pi; those of the periodic one are exactly even
        "open": lambda m, side: m / side,
        "periodic": lambda m, side: 2 * np.minimum(m, side - m) / side,
        "zero": lambda m, side: (m + 1) / (side + 1),
    }[boundary]
    sides = [waves(np.arange(side), side) for side in shape]
    every = [[math.pi**2 * (k + 2 * n) ** 2 for n in (-1, 0, 1)] for k in sides]
    return np.stack([functools.reduce(np.add.outer, axes) for axes in itertools.product(*every)])


def _alike(parameters: dict[str, Tensor | float]) -> dict[str, Tensor]:
    """Tensors of their widest dtype, and numbers like them, or of torch's default dtype."""
    known = [check_tensor(x, value) for x, value in parameters.items() if isinstance(value, Tensor)]
    known = known or [torch.zeros(())]
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in known))
    found = {}
    for name, value in parameters.items():
        if not isinstance(value, Tensor):
            value = known[0].new_tensor(check_number(name, value, NUMBER_OR_TENSOR), dtype=dtype)
        found[name] = value.to(dtype)
    return found


def _diagonal(eigenvalues: Tensor, boundary: str) -> Tensor:
    """The diagonal, along the last axis, of what has these eigenvalues.

    The sum of eigenvalues times squares of modes, which are one plus or minus a wave.
    """
    mean, side = eigenvalues.mean(-1, keepdim=True), eigenvalues.shape[-1]
    if boundary == "periodic":
        return mean.expand(eigenvalues.shape)
    if boundary == "zero":
        waves = torch.fft.ifft(torch.nn.functional.pad(eigenvalues, (1, 0)), dim=-1).real
        return waves[..., :1] - waves[..., 1:]
    k = torch.arange(side, dtype=eigenvalues.dtype, device=eigenvalues.device)
    phases = torch.polar((k > 0).to(k), math.pi / side * k)
    return mean + torch.fft.ifft(eigenvalues * phases, dim=-1).real
