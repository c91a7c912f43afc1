# SPDX-License-Identifier: Apache-2.0
r"""A Gaussian bent along a few globals: their marginal density, and the field given them.

The Gaussian nearest to a posterior with unknown scales is a poor one: the widths of the field go
with the globals, which a covariance cannot say, so that the globals come out too narrow. With the
field integrated out by Laplace's approximation the globals v have the energy

.. math:: \Phi(v) = E(v, w^*(v)) + \tfrac12 \ln\det H(v)

with the mode w* of the field given v and its Hessian H there. Differences of :math:`\Phi`, w* and
ln H between points one standard deviation away, to either side of each global and along each pair,
give the globals' Gaussian and how the field's place and widths follow them.

References:
    Tierney, Kadane, JASA 81, 82 (1986); Rue, Martino, Chopin, JRSS B 71, 319 (2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.infer.autoguide.gaussians import MODEL_ERRORS, Density, split_points
from pyro_neuralrg.spectral import apply_spectrum, quadratic_form

MAX_GLOBALS, MAX_GRADIENTS = 8, 40_000
"""Globals, and gradients of the model that may be spent: each Hessian takes two for every entry of
the fields. Of one global and 832 entries, three and 191, eight and 33."""

DIFFERENCE = 0.1
"""Standard deviations from a point to those whose gradients are subtracted."""

ROUNDS = 4
"""Looks at the globals, of which the best is kept."""

LONGEST_STEP, PRECISION_FACTORS, LEAST_CURVATURE = 1.5, (0.1, 10.0), 0.1
"""Standard deviations by which a look moves the globals, factors of their precision, and the least
precision of a field, all in units of the Gaussian before."""

COMPARED_DRAWS, LEAST_GAIN = 512, 0.3
"""Draws of the bounds that are compared, and the gain, in nats, below which nothing is bent: of
twenty field models six gained less, and two of these lost effective draws."""


@dataclass(frozen=True)
class CurvedGaussian:
    r"""Globals and fields :math:`u = m + C (c, w)` of normal latents (c, z).

    .. math:: w = \sum_{i \le j} q_{ij} c_i c_j + F^{-1} e^{b + \sum_i c_i s_i} F z

    ``mean`` and ``factor`` are m and C, block triangular with globals first; ``curve`` is q, of
    shape ``(entries, products)`` in the order of ``torch.triu_indices``; ``log_modes`` b and
    ``slopes`` s have the shapes ``(channels,) + lattice`` and ``(globals, channels) + lattice``.
    """

    mean: Tensor
    factor: Tensor
    curve: Tensor
    log_modes: Tensor
    slopes: Tensor
    boundary: str

    def draws(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points of latents ``(n, dim)``, and ln |det du/dz| of each."""
        c, rest = z.split([len(self.slopes), self.log_modes.numel()], -1)
        channels, *lattice = self.log_modes.shape
        fields = rest.reshape(-1, *lattice, channels).movedim(-1, 1)
        widths = self.log_modes + torch.tensordot(c, self.slopes, 1)
        smooth = apply_spectrum(fields, widths.exp(), self.boundary, len(lattice))
        first, second = torch.triu_indices(c.shape[-1], c.shape[-1])
        w = (c[:, first] * c[:, second]) @ self.curve.T + smooth.movedim(1, -1).flatten(1)
        log_det = torch.linalg.slogdet(self.factor).logabsdet + widths.flatten(1).sum(1)
        return self.mean + torch.cat([c, w], 1) @ self.factor.T, log_det


class _Field(NamedTuple):
    """The field given globals: Phi, the mode, the Hessian there, in units of the first frame."""

    energy: Tensor
    mode: Tensor
    hessian: Tensor


def curved_gaussian(
    density: Density, mean: Tensor, factor: Tensor, modes: Tensor, boundary: str
) -> CurvedGaussian | None:
    """The Gaussian N(mean, factor factor^T), bent; None where that is no nearer to the density.

    ``factor`` is block triangular, globals first, and like ``mean`` in float64; ``modes`` are zeros
    of shape ``(channels,) + lattice``, the channels being the fastest index of the sites.
    """
    number = len(mean) - modes.numel()
    gradients = ROUNDS * (1 + number + number**2) * 2 * (2 * modes.numel() + 1)
    if not 0 < number <= MAX_GLOBALS or not modes.numel() or gradients > MAX_GRADIENTS:
        return None
    curve = mean.new_zeros(modes.numel(), number * (number + 1) // 2)
    slopes = modes.new_zeros(number, *modes.shape)
    first = CurvedGaussian(mean, factor, curve, modes, slopes, boundary)
    best, of_best = None, _bound_of(density, first) + LEAST_GAIN
    try:
        for bent in _bent(density, first):
            for q in (*bent, *(replace(one, curve=curve) for one in bent)):
                bound = _bound_of(density, q)
                best, of_best = (q, bound) if bound > of_best else (best, of_best)
    except MODEL_ERRORS:  # where the model has no energy, or the field no Hessian
        pass
    return best


def _bound_of(density: Density, q: CurvedGaussian) -> float:
    """E_q[ln pi] + entropy, up to a constant, by the same latents for every q.

    -inf where the model raises or has no energy.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(COMPARED_DRAWS // 2, len(q.mean), generator=generator, dtype=q.mean.dtype)
    points, log_det = q.draws(torch.cat([half, -half]))
    try:
        parts = [density.energy(part).double() for part in split_points(density, points)]
    except MODEL_ERRORS:
        return -math.inf
    value = float((log_det - torch.cat(parts)).mean())
    return value if math.isfinite(value) else -math.inf


def _bent(
    density: Density, first: CurvedGaussian
) -> Iterator[tuple[CurvedGaussian, CurvedGaussian]]:
    """What looks at the globals find, each from where the one before puts them.

    Places and widths of the field are those of its mode, and those of the first Gaussian with the
    mode's changes since: a mode is not the mean where the field is skewed.
    """
    number = len(first.slopes)
    one = torch.eye(number, dtype=torch.float64)
    offsets = [*one, *(one[i] + one[j] for i, j in combinations(range(number), 2))]
    rows, columns = torch.triu_indices(number, number)
    place, width, mode = 0.0 * one[0], one, first.mean.new_zeros(first.log_modes.numel())
    origin: tuple[Tensor, Tensor] | None = None
    for _ in range(ROUNDS):
        centre = _field_given(density, first, place, mode)
        mode, moves = centre.mode, [width @ offset for offset in offsets]
        up, down = (
            [_field_given(density, first, place + sign * move, mode) for move in moves]
            for sign in (1, -1)
        )
        tied, bends = _derivatives(number, centre, up, down, lambda field: field.mode)
        widths, wider, narrower = (
            torch.stack([-0.5 * _mode_precisions(field.hessian, first).log() for field in fields])
            for fields in ([centre], up[:number], down[:number])
        )
        change = torch.block_diag(width, torch.eye(len(mode), dtype=torch.float64))
        change[number:, :number] = tied.T
        origin = origin or (mode, widths[0])
        of_mode = replace(
            first,
            mean=first.mean + first.factor @ torch.cat([place, mode]),
            factor=first.factor @ change,
            curve=(torch.where(rows == columns, 0.5, 1.0)[:, None] * bends[rows, columns]).T,
            log_modes=widths[0],
            slopes=0.5 * (wider - narrower),
        )
        mean = first.mean + first.factor @ torch.cat([place, mode - origin[0]])
        yield of_mode, replace(of_mode, mean=mean, log_modes=widths[0] - origin[1])
        slope, curvature = _derivatives(number, centre, up, down, lambda field: field.energy)
        values, vectors = torch.linalg.eigh(curvature)
        values = values.clamp(*PRECISION_FACTORS)
        step = (vectors / values) @ vectors.T @ slope
        step *= min(1.0, LONGEST_STEP / max(float(step.norm()), LONGEST_STEP))
        place, width = place - width @ step, width @ (vectors / values.sqrt())


def _derivatives(
    number: int,
    centre: _Field,
    up: list[_Field],
    down: list[_Field],
    value_of: Callable[[_Field], Tensor],
) -> tuple[Tensor, Tensor]:
    """First and second derivatives by the globals, ``(globals, ...)``, ``(globals, globals, ...)``.

    By differences of the values at a centre and at points on both sides of it, first along each
    global and then along each pair.
    """
    here = value_of(centre)
    plus, minus = (torch.stack([value_of(field) for field in side]) for side in (up, down))
    second = here.new_zeros(number, number, *here.shape)
    bends = plus + minus - 2 * here
    for i in range(number):
        second[i, i] = bends[i]
    for bend, (i, j) in zip(bends[number:], combinations(range(number), 2), strict=True):
        second[i, j] = second[j, i] = 0.5 * (bend - bends[i] - bends[j])
    return 0.5 * (plus - minus)[:number], second


def _field_given(density: Density, frame: CurvedGaussian, place: Tensor, start: Tensor) -> _Field:
    """The field given globals, by a Newton step from a start near its mode."""
    hessian, slope = _hessian(density, frame, place, start)
    mode = start - torch.linalg.solve(hessian, slope)
    hessian, slope = _hessian(density, frame, place, mode)
    # what is left of the way to the mode, whose Hessian is much the same
    rest = torch.linalg.solve(hessian, slope)
    point = (frame.mean + frame.factor @ torch.cat([place, mode]))[None].to(density.dtype)
    energy = density.energy(point).double()[0] - 0.5 * slope @ rest
    return _Field(energy + 0.5 * torch.logdet(hessian), mode - rest, hessian)


def _hessian(
    density: Density, frame: CurvedGaussian, place: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    """Second derivatives of the energy by the fields in the frame's units, and the first ones.

    No curvature is below a tenth of what the first Gaussian has.
    """
    moves = DIFFERENCE * torch.eye(len(w), dtype=w.dtype)
    fields = torch.cat([w + moves, w - moves, w[None]])
    points = torch.cat([place.expand(len(fields), -1), fields], 1) @ frame.factor.T + frame.mean
    parts = [density.gradient(part).double() for part in split_points(density, points)]
    slopes = (torch.cat(parts) @ frame.factor)[:, len(place) :]
    up, down, here = slopes.split([len(w), len(w), 1])
    hessian = (up - down) / (2 * DIFFERENCE)
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    return (vectors * values.clamp(min=LEAST_CURVATURE)) @ vectors.T, here[0]


def _mode_precisions(hessian: Tensor, frame: CurvedGaussian) -> Tensor:
    """The diagonal of the Hessian in the modes of each field, ``(channels,) + lattice``."""
    channels, *lattice = frame.log_modes.shape
    sites = math.prod(lattice)
    blocks = hessian.view(sites, channels, sites, channels)
    found: list[Tensor] = []
    for channel in range(channels):
        values, vectors = torch.linalg.eigh(blocks[:, channel, :, channel])
        modes = torch.ones(lattice, dtype=torch.float64).requires_grad_()
        with torch.enable_grad():
            forms = quadratic_form(vectors.T.view(-1, *lattice), modes, frame.boundary)
            found += torch.autograd.grad((values * forms).sum(), modes)
    return torch.stack(found)
