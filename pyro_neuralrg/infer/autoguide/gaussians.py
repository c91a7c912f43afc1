# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
r"""Gaussians that take natural-gradient steps towards a density: with a matrix, or with widths.

Both have latents z, standard normal, and draws ``mean + moved(z)``. A step is made of moments of
the gradients g = grad ln pi at draws and at their mirror images: of ``even``, half of their sum,
and of ``odd``, half of their difference. By Stein's lemma
:math:`E[g z^T] = E[\nabla^2 \ln \pi]\, C`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_neuralrg.spectral import apply_spectrum, quadratic_form

STEP_DRAWS = 128
"""Draws of each step, and as many mirrored ones; more where there are more unknowns."""

MIN_ROOT_PRECISION = 0.1
"""Root of a precision, relative to that before, below which the safe step is taken."""


@dataclass(frozen=True)
class Moments:
    """Expectations that a step is made of.

    Attributes:
        gradient: C^T E[g], shape ``(dim,)``.
        excess: the mean negative Hessian in the coordinates z less the identity: a matrix, or the
            parts of it that widths can follow, one after the other.
    """

    gradient: Tensor
    excess: tuple[Tensor, ...]


@dataclass(frozen=True)
class MatrixGaussian:
    """N(mean, factor factor^T).

    Attributes:
        mean: shape ``(dim,)``.
        factor: shape ``(dim, dim)``.
        log_det: ln |det factor|.
    """

    mean: Tensor
    factor: Tensor
    log_det: float

    @classmethod
    def isotropic(cls, mean: Tensor, width: float) -> MatrixGaussian:
        """A Gaussian of one width."""
        factor = width * torch.eye(len(mean), dtype=mean.dtype)
        return cls(mean, factor, len(mean) * math.log(width))

    def moved(self, z: Tensor) -> Tensor:
        """C z of latents ``(n, dim)``."""
        return z @ self.factor.T

    def latents(self, generator: torch.Generator) -> Tensor:
        """Sets of orthogonal vectors of the lengths of normal ones."""
        dim, dtype = len(self.mean), self.mean.dtype
        sets = -(-STEP_DRAWS // dim)
        directions = torch.randn(sets, dim, dim, generator=generator, dtype=dtype)
        lengths = torch.randn(sets, dim, dim, generator=generator, dtype=dtype).norm(dim=-1)
        return (torch.linalg.qr(directions).Q * lengths[..., None]).flatten(0, 1)

    def moments(self, z: Tensor, even: Tensor, odd: Tensor) -> Moments:
        """Moments of gradients at draws of latents z, ``(n, dim)`` each."""
        curvature = -self.factor.T @ _slope(odd, z)
        identity = torch.eye(len(curvature), dtype=curvature.dtype)
        excess = 0.5 * (curvature + curvature.T) - identity
        return Moments(even.mean(0) @ self.factor, (excess,))

    def stepped(self, moments: Moments, step: float) -> MatrixGaussian:
        """A part s of the natural-gradient step: in z the precision is 1 + s G (+ s^2 G^2 / 2)."""
        (excess,) = moments.excess
        precision = torch.eye(len(excess), dtype=excess.dtype) + step * excess
        lower, failed = torch.linalg.cholesky_ex(precision)
        if failed or float(lower.diagonal().min()) < MIN_ROOT_PRECISION:
            lower = torch.linalg.cholesky(precision + 0.5 * step**2 * excess @ excess)
        move = step * torch.cholesky_solve(moments.gradient[:, None], lower)[:, 0]
        factor = torch.linalg.solve_triangular(lower, self.factor.T, upper=False).T
        log_det = self.log_det - float(lower.diagonal().log().sum())
        return MatrixGaussian(self.mean + self.factor @ move, factor, log_det)

    def narrower(self) -> MatrixGaussian:
        """The Gaussian of half the width."""
        log_det = self.log_det - len(self.mean) * math.log(2)
        return replace(self, factor=0.5 * self.factor, log_det=log_det)


def _slope(gradient: Tensor, z: Tensor) -> Tensor:
    """E[g z^T] by regression, exact where g is linear in z."""
    moments = gradient.T @ z
    if len(z) < z.shape[-1]:  # some are not usable
        return moments / len(z)
    return torch.linalg.solve(z.T @ z, moments.T).T


@dataclass(frozen=True)
class LatticeGaussian:
    r"""Independent globals, and fields :math:`s \odot F^{-1} e^b F z`: widths of sites and modes.

    Attributes:
        mean: shape ``(dim,)``, globals first; fields are the fastest index of the sites.
        widths: s, likewise.
        log_modes: b, of the lattice's shape, one for each field.
        boundary: of the lattice, "periodic" or "open".
    """

    mean: Tensor
    widths: Tensor
    log_modes: Tensor
    boundary: str

    @classmethod
    def isotropic(
        cls, mean: Tensor, width: float, lattice: tuple[int, ...], channels: int, boundary: str
    ) -> LatticeGaussian:
        """A Gaussian of one width."""
        log_modes = torch.zeros(channels, *lattice, dtype=mean.dtype)
        return cls(mean, torch.full_like(mean, width), log_modes, boundary)

    @property
    def log_det(self) -> float:
        """ln |det C|."""
        return float(self.widths.log().sum() + self.log_modes.sum())

    def moved(self, z: Tensor) -> Tensor:
        """See :class:`MatrixGaussian`."""
        return self.widths * self._in_modes(z)

    def latents(self, generator: torch.Generator) -> Tensor:
        """Normal vectors."""
        size = (STEP_DRAWS, len(self.mean))
        return torch.randn(size, generator=generator, dtype=self.mean.dtype)

    def moments(self, z: Tensor, even: Tensor, odd: Tensor) -> Moments:
        """See :class:`MatrixGaussian`; what widths of sites and of modes can follow."""
        smooth = self._in_modes(z)
        of_sites = -(self.widths * odd * smooth).mean(0) - 1
        flat = torch.zeros_like(self.log_modes).requires_grad_()
        with torch.enable_grad():
            # by polarisation, sum_k lambda_k a_k b_k is a difference of quadratic forms
            a, b = self._fields(self.widths * odd), self._fields(smooth)
            dims = self.log_modes.dim() - 1
            forms = [quadratic_form(a + sign * b, flat, self.boundary, dims) for sign in (1, -1)]
            products = 0.25 * (forms[0] - forms[1]).sum()
            (of_modes,) = torch.autograd.grad(products, flat)
        if self.boundary == "periodic":  # k and -k have one width
            axes = tuple(range(1, of_modes.dim()))
            mirrored = of_modes.flip(axes).roll((1,) * len(axes), axes)
            of_modes = 0.5 * (of_modes + mirrored)
        gradient = self._in_modes((even.mean(0) * self.widths)[None])[0]
        return Moments(gradient, (of_sites, -of_modes / len(z) - 1))

    def stepped(self, moments: Moments, step: float) -> LatticeGaussian:
        """See :class:`MatrixGaussian`; sites and modes take half of a common factor each."""
        of_sites, of_modes = (_precision(excess, step) for excess in moments.excess)
        halves = torch.full_like(self.widths, 0.5)
        halves[len(self.widths) - self.log_modes.numel() :] = 0.25
        return LatticeGaussian(
            self.mean + step * self.moved(moments.gradient[None])[0],
            self.widths * of_sites ** (-halves),
            self.log_modes - 0.25 * of_modes.log(),
            self.boundary,
        )

    def narrower(self) -> LatticeGaussian:
        """See :class:`MatrixGaussian`."""
        return replace(self, widths=0.5 * self.widths)

    def _fields(self, values: Tensor) -> Tensor:
        """The fields of vectors ``(n, dim)``, of shape ``(n, channels, *lattice)``."""
        channels, *lattice = self.log_modes.shape
        fields = values[:, values.shape[-1] - self.log_modes.numel() :]
        return fields.reshape(-1, *lattice, channels).movedim(-1, 1)

    def _in_modes(self, values: Tensor) -> Tensor:
        """F^-1 e^b F of the fields, globals as they are."""
        dims = self.log_modes.dim() - 1
        smooth = apply_spectrum(self._fields(values), self.log_modes.exp(), self.boundary, dims)
        others = values[:, : values.shape[-1] - self.log_modes.numel()]
        return torch.cat([others, smooth.movedim(1, -1).flatten(1)], 1)


def _precision(excess: Tensor, step: float) -> Tensor:
    """1 + s G, or 1 + s G + s^2 G^2 / 2 where that is not safely positive."""
    precision = 1 + step * excess
    safe = precision + 0.5 * (step * excess) ** 2
    return torch.where(precision > MIN_ROOT_PRECISION**2, precision, safe)
