# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian fields on a lattice as Pyro distributions, priors of series, maps and cubes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.arguments import check_integer, check_number, check_tensor
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.spectral import apply_spectrum, laplacian_spectrum, quadratic_form

EDGES = {"periodic": "periodic", "open": "free"}
"""What :mod:`pyro_neuralrg.spectral` calls a lattice whose edges have no bond to the outside."""


class StationaryField(TorchDistribution):
    r"""A centred Gaussian field with the precision :math:`A / s^2`, A diagonal in the modes.

    The base of the priors below; another one defines :meth:`eigenvalues`. The parameters' batch
    dimensions broadcast and are those of the distribution, the lattice is its event. Densities and
    draws cost O(N log N). Add a mean outside: ``mean + field``.
    """

    scale: Tensor
    has_rsample = True
    null_modes = 0

    def __init__(
        self,
        shape: Iterable[int],
        boundary: str,
        validate_args: bool | None,
        **parameters: Tensor | float,
    ) -> None:
        sides = check_shape(shape)
        self.boundary = check_boundary(boundary)
        for name, value in parameters.items():
            is_tensor = isinstance(value, Tensor)
            setattr(self, name, check_tensor(name, value) if is_tensor else _number(name, value))
        batch = torch.broadcast_shapes(*(getattr(self, name).shape for name in parameters))
        super().__init__(batch, torch.Size(sides), validate_args=validate_args)

    def eigenvalues(self) -> Tensor:
        """Those of A, shape ``batch + lattice`` or the lattice's, as spectra are ordered."""
        raise NotImplementedError

    @property
    def support(self) -> Any:
        """All real fields."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution in a batch."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        torch.broadcast_to(self.scale.new_empty(self.batch_shape), batch_shape)  # or it raises
        new._batch_shape = torch.Size(batch_shape)
        return new

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
        roots = self._variances().sqrt()
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=roots.dtype, device=roots.device)
        x = apply_spectrum(noise, roots, EDGES[self.boundary], self.event_dim)
        return x * self._per_field(self.scale)

    @property
    def mean(self) -> Tensor:
        """Zeros."""
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each site."""
        variances = self._variances()
        for dim in range(-self.event_dim, 0):
            variances = _diagonal(variances.movedim(dim, -1), self.boundary).movedim(-1, dim)
        variances = variances * self._per_field(self.scale) ** 2
        return variances.expand(self.batch_shape + self.event_shape)

    def _variances(self) -> Tensor:
        """Variances of the modes for a scale of one, without those of the null space."""
        eigenvalues = self.eigenvalues()
        flat = eigenvalues.flatten(-self.event_dim)[..., self.null_modes :].reciprocal()
        flat = torch.nn.functional.pad(flat, (self.null_modes, 0))
        return flat.reshape(eigenvalues.shape)

    def _per_field(self, parameter: Tensor) -> Tensor:
        """With dimensions of the lattice behind those of the batch."""
        return parameter.reshape(parameter.shape + (1,) * self.event_dim)


class GaussianMarkovField(StationaryField):
    r"""Gaussian Markov random field of squared differences, a random walk or a smooth map.

    .. math:: x \sim N(0, Q^{-1}), \quad Q = (m^2 + D^T D)^p / s^2

    with the differences D between neighbours. With p = 1 the energy is :math:`\frac{1}{2 s^2}
    (\sum_{i \sim j} (x_i - x_j)^2 + m^2 \sum_i x_i^2)`: in one dimension a random walk with steps
    of standard deviation s, which a mass pulls back to zero over about 1 / m sites.

    Without a mass it is *intrinsic* (a random walk of free start; the ICAR prior of disease maps):
    Q has no say in the mean of the field, so that ``log_prob`` is improper, flat in that direction.
    It is normalised on the N - 1 others, by the pseudo-determinant of Q, so that an unknown scale
    is inferred as it should be. Draws sum to zero, and ``variance`` is theirs. The posterior is
    proper once data see the mean. An intercept beside such a field is not told apart from its mean:
    subtract the latter, ``x - x.mean((-2, -1), keepdim=True)``, and give it a normal prior.

    Args:
        shape: lattice shape, one to three sides >= 1.
        scale: s > 0, a number or a tensor of any batch shape.
        mass: m > 0, in units of the inverse lattice spacing, likewise; or the number 0.
        order: p, an integer >= 1; with 2 the field is as smooth as second differences make it.
        boundary: "open" has only bonds within the lattice, "periodic" goes round (with two bonds
            between the sites of a side of 2). (``FreeField`` holds an open field at zero outside.)

    Raises:
        TypeError, ValueError: naming the argument; of tensors of hyper-parameters if validation is
            on, as for Pyro's distributions.

    References:
        Rue, Held, Gaussian Markov Random Fields (2005); Lindgren, Rue, Lindstroem, Journal of the
        Royal Statistical Society B 73, 423 (2011).

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
        self.null_modes = int(not isinstance(mass, Tensor) and _number("mass", mass).item() == 0)
        super().__init__(shape, boundary, validate_args, scale=scale, mass=mass)
        if self._validate_args and not self.null_modes and bool((self.mass == 0).any()):
            raise ValueError(
                "mass has entries of 0; accepted: a tensor of positive numbers, or mass=0 (a "
                "number) for an intrinsic field"
            )

    def eigenvalues(self) -> Tensor:
        """See :class:`StationaryField`."""
        laplacian = laplacian_spectrum(self.event_shape, EDGES[self.boundary]).to(self.mass)
        return (self._per_field(self.mass) ** 2 + laplacian) ** self.order


class MaternField(StationaryField):
    r"""Gaussian field of a Matern covariance, by its spectrum.

    .. math:: \lambda(k) \propto \sum_{n \in \{-1, 0, 1\}^d} (2 \nu / l^2 + |k + 2\pi n|^2)^{-\nu -
        d / 2}

    with the waves n that sites cannot tell from k, normalised to a mean variance of :math:`s^2`.
    It is proper. On a periodic lattice the covariance is that of Matern, summed over all turns, but
    for waves beyond :math:`3 \pi`: correlations are right within 1e-3 for a smoothness of 1.5 and a
    length of 2 sites or more, within 0.03 for 0.5. An open lattice mirrors the field at its edges,
    where the variance is up to twice as large (in corners four times): where that matters make the
    lattice longer by a length or two on each side, and use a part of the field.

    Args:
        shape: lattice shape, one to three sides >= 1.
        scale: s > 0, standard deviation of the field, a number or a tensor of any batch shape.
        length: l > 0, in lattice spacings, likewise.
        smoothness: nu > 0, likewise; 0.5 is the exponential covariance, whose one-dimensional
            series is a :class:`GaussianMarkovField` with a mass.
        boundary: "open" or "periodic".

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
        parameters = {"scale": scale, "length": length, "smoothness": smoothness}
        super().__init__(shape, boundary, validate_args, **parameters)

    def eigenvalues(self) -> Tensor:
        """See :class:`StationaryField`: those of the precision for a mean variance of one."""
        batch = torch.broadcast_shapes(self.length.shape, self.smoothness.shape)
        length, smoothness = (  # with one more dimension, of the waves
            parameter.expand(batch).reshape(*batch, *(1,) * (self.event_dim + 1))
            for parameter in (self.length, self.smoothness)
        )
        squares = torch.from_numpy(_squared_waves(self.event_shape, self.boundary)).to(length)
        # in units of its value at k = 0, which keeps it within the range of float32
        density = 1 + squares * length**2 / (2 * smoothness)
        spectrum = (density ** -(smoothness + self.event_dim / 2)).sum(-self.event_dim - 1)
        return spectrum.mean(tuple(range(-self.event_dim, 0)), keepdim=True) / spectrum


@functools.lru_cache(maxsize=16)
def _squared_waves(shape: tuple[int, ...], boundary: str) -> Any:
    """Squares of the wave numbers that sites cannot tell apart, ``(3^d,) + shape``, float64."""
    sides = [(np.arange(side), side) for side in shape]
    if boundary == "periodic":  # exactly even
        waves = [2 * math.pi * np.minimum(m, side - m) / side for m, side in sides]
    else:
        waves = [math.pi * m / side for m, side in sides]
    every = [[(k + 2 * math.pi * n) ** 2 for n in (-1, 0, 1)] for k in waves]
    return np.stack([functools.reduce(np.add.outer, axes) for axes in itertools.product(*every)])


def _number(name: str, value: Any) -> Tensor:
    """A hyper-parameter that is no tensor, in torch's default dtype."""
    return torch.tensor(check_number(name, value))


def _diagonal(eigenvalues: Tensor, boundary: str) -> Tensor:
    r"""The diagonal along the last axis of what has these eigenvalues: the mean if it is periodic.

    Else :math:`\frac{1}{n} (\sum_k \lambda_k + \sum_{k \ge 1} \lambda_k \cos(2 \pi (j + 1/2) k /
    n))`, by the squares of the modes.
    """
    mean = eigenvalues.mean(-1, keepdim=True)
    if boundary == "periodic":
        return mean.expand(eigenvalues.shape)
    side = eigenvalues.shape[-1]
    k = torch.arange(side, dtype=eigenvalues.dtype, device=eigenvalues.device)
    phases = torch.polar((k > 0).to(k), math.pi / side * k)
    return mean + torch.fft.ifft(eigenvalues * phases, dim=-1).real
