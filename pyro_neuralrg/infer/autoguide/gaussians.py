# SPDX-License-Identifier: Apache-2.0
r"""The Gaussian nearest to a density: two families of them, and the fixed point.

A Gaussian has standard normal latents z and draws ``mean + moved(z)``. A natural-gradient step is
made of moments of the gradients g = grad ln pi at draws and at their mirror images: of ``even``,
half of their sum, and ``odd``, half of their difference. By Stein's lemma
:math:`E[g z^T] = E[\nabla^2 \ln \pi]\, C`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_neuralrg.spectral import apply_spectrum, quadratic_form

STEP_DRAWS = 128
"""Draws of each step, and as many mirrored ones; more where there are more unknowns."""

MIN_ROOT_PRECISION = 0.1
"""Root of a precision, relative to that before, below which the safe step is taken."""

STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.003)
"""Parts of the full step that are tried."""

TRIAL_DRAWS = 16
"""Draws, and as many mirrored ones, that compare these."""

MAX_STEPS, SETTLING_STEPS = 60, 12
"""Steps until the bound stops rising, and steps that are averaged then."""

MIN_GAIN = 0.03
"""Nats; a step that gains less is the last of its kind."""

LARGE_DIM = 512
"""Unknowns from which on matrices have the dtype of the model, and fewer steps are tried."""

MAX_NUMBERS, MAX_POINTS = 2**20, 512
"""Numbers, latents and data, and points at which the model is evaluated together at most."""

MODEL_ERRORS = (ArithmeticError, RuntimeError, ValueError)
"""Raised by models far out, such as by a matrix that is singular."""


@dataclass(frozen=True)
class Density:
    """An unnormalised density by its energy -ln pi, of points ``(n, dim)`` to shape ``(n,)``.

    Each takes so many ``numbers`` to evaluate; ``subsampled`` says which data are held fixed.
    """

    energy_of: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    numbers: int = 1
    subsampled: str = ""

    def energy(self, points: Tensor) -> Tensor:
        """Energies without a graph."""
        with torch.no_grad():
            return self.energy_of(points)

    def gradient(self, points: Tensor) -> Tensor:
        """Gradients of the energies, shape ``(n, dim)``."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy_of(leaf).sum(), leaf)
        return gradient


class Moments(NamedTuple):
    """C^T E[g], and the mean negative Hessian in z less the identity, or its parts for widths."""

    gradient: Tensor
    excess: tuple[Tensor, ...]


@dataclass(frozen=True)
class MatrixGaussian:
    """N(mean, factor factor^T) with an upper triangular factor."""

    mean: Tensor
    factor: Tensor

    @property
    def log_det(self) -> float:
        """ln |det C|."""
        return float(self.factor.diagonal().log().sum())

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
        return MatrixGaussian(self.mean + self.factor @ move, factor)

    def narrower(self) -> MatrixGaussian:
        """The Gaussian of half the width."""
        return replace(self, factor=0.5 * self.factor)


def _slope(gradient: Tensor, z: Tensor) -> Tensor:
    """E[g z^T] by regression, exact where g is linear in z."""
    number, dim = z.shape
    if number < dim:  # some are not usable
        return gradient.T @ z / number
    if number == dim >= STEP_DRAWS:  # one set, whose vectors are orthogonal
        return gradient.T @ (z / z.square().sum(-1, keepdim=True))
    return torch.linalg.solve(z.T @ z, z.T @ gradient).T


@dataclass(frozen=True)
class LatticeGaussian:
    r"""Independent globals, and fields :math:`s \odot F^{-1} e^b F z`: widths of sites and modes.

    ``mean`` and ``widths`` s have globals first, then fields as the fastest index of the sites;
    ``log_modes`` b the lattice's shape for each field.
    """

    mean: Tensor
    widths: Tensor
    log_modes: Tensor
    boundary: str

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
            of_modes = 0.5 * (of_modes + of_modes.flip(axes).roll((1,) * len(axes), axes))
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


# The fixed point ----------------------------------------------------------------------------------

Gaussian = TypeVar("Gaussian", MatrixGaussian, LatticeGaussian)


def nearest_gaussian(target: Density, first: Gaussian) -> Gaussian | None:
    r"""The Gaussian q with the least KL(q || pi), by natural gradients of the target's density.

    At the optimum :math:`E_q[\nabla \ln \pi] = 0` and :math:`C^T E_q[-\nabla^2 \ln \pi]\, C = 1`
    for q = N(m, C C^T). The z of a step are orthogonal and come with their mirror images: of a
    Gaussian target one full step finds it. Shorter steps are those of Lin et al., whose covariance
    stays positive. None if no step is better than the first.

    References:
        Opper, Archambeau, "The variational Gaussian approximation revisited", Neural Computation 21
        (2009), Eq. 8-9.
        Lin, Schmidt, Khan, "Handling the positive-definite constraint in the Bayesian learning
        rule", ICML (2020).
    """
    generator = torch.Generator().manual_seed(0)
    trials = _trials(TRIAL_DRAWS, first, generator)
    present, settled = first, 0
    for _ in range(MAX_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:  # too wide: it reaches where the density has no finite gradients
            present = present.narrower()
            continue
        bound = _bound(target, present, trials)
        present, of_found = _best_step(target, present, bound, moments, trials)
        settled = settled + 1 if of_found < bound + MIN_GAIN else 0
        if settled == 2:
            break
    for step in range(SETTLING_STEPS):
        moments = _moments(target, present, generator)
        if moments is None:
            break
        present = present.stepped(moments, 1 / (step + 2))
    fresh = _trials(4 * TRIAL_DRAWS, first, generator)
    return present if _bound(target, present, fresh) > _bound(target, first, fresh) else None


def _best_step(
    target: Density, present: Gaussian, bound: float, moments: Moments, trials: Tensor
) -> tuple[Gaussian, float]:
    """The step that gains most; beyond LARGE_DIM unknowns the first that the next does not beat."""
    best, of_best = present, bound
    for step in STEPS:
        candidate = present.stepped(moments, step)
        of_candidate = _bound(target, candidate, trials)
        if of_candidate > of_best:
            best, of_best = candidate, of_candidate
        elif best is not present and len(present.mean) > LARGE_DIM:
            break
    return best, of_best


def _moments(target: Density, q: Gaussian, generator: torch.Generator) -> Moments | None:
    """Moments of gradients at draws and their mirror images; None where there are too few."""
    z = q.latents(generator)
    moved = q.moved(z)
    up, down = (_scores(target, q.mean + sign * moved) for sign in (1, -1))
    usable = (up + down).isfinite().all(-1)
    if 2 * int(usable.sum()) < len(z):
        return None
    return q.moments(z[usable], 0.5 * (up + down)[usable], 0.5 * (up - down)[usable])


def _scores(target: Density, points: Tensor) -> Tensor:
    """Gradients of ln pi; NaN where the model raises an error."""
    found = []
    for part in split_points(target, points):
        try:
            found.append(-target.gradient(part).to(points.dtype))
        except MODEL_ERRORS:
            found.append(torch.full_like(part, math.nan, dtype=points.dtype))
    return torch.cat(found)


def _trials(number: int, q: Gaussian, generator: torch.Generator) -> Tensor:
    """Standard normal vectors and their mirror images."""
    z = torch.randn(number, len(q.mean), generator=generator, dtype=q.mean.dtype)
    return torch.cat([z, -z])


def _bound(target: Density, q: Gaussian, z: Tensor) -> float:
    """E_q[ln pi] + entropy, up to a constant, by the latents z; -inf where the model raises."""
    try:
        parts = [target.energy(part).double() for part in split_points(target, q.mean + q.moved(z))]
    except MODEL_ERRORS:
        return -math.inf
    value = q.log_det - float(torch.cat(parts).mean())
    return value if math.isfinite(value) else -math.inf


def split_points(target: Density, points: Tensor) -> tuple[Tensor, ...]:
    """Points in parts that fit into memory, also where a model makes matrices of them."""
    number = min(MAX_POINTS, MAX_NUMBERS // max(target.numbers, points.shape[-1]))
    return points.to(target.dtype).split(max(1, number))
