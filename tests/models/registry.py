# SPDX-License-Identifier: Apache-2.0
"""Field models as a Pyro user writes them: maps, series, counts; the data come from a known truth.

Every entry builds a model without arguments from a seed. All of them work with vectorised
particles, and all densities are normalised but where said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

Model = Callable[[], None]


class FieldModel(NamedTuple):
    """An entry of the registry.

    Attributes:
        build: from a seed of the data to a model.
        fields: names of the fields.
        lattice: their shape.
        number: of unknowns in all.
    """

    build: Callable[[int], Model]
    fields: tuple[str, ...]
    lattice: tuple[int, ...]
    number: int


# Parts of models ----------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of a seed, the same ones for every default dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(torch.zeros(()))


def poisson(seed: int, rate: Tensor) -> Tensor:
    """Counts of a seed, likewise."""
    counts = torch.poisson(rate.float(), generator=torch.Generator().manual_seed(seed))
    return counts.to(rate)


def distances(*shape: int) -> Tensor:
    """Euclidean distances of all pairs of sites, in lattice spacings, ``(sites, sites)``."""
    axes = torch.meshgrid(*(torch.arange(float(side)) for side in shape), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], -1)
    return torch.cdist(places, places)


def exponential(distance: Tensor, length: Tensor | float) -> Tensor:
    """Correlations exp(-d / length), with a little on the diagonal; of a batch of lengths."""
    length = torch.as_tensor(length)[..., None, None]
    return torch.exp(-distance / length) + 1e-4 * torch.eye(len(distance))


def correlated(seed: int, length: float, *shape: int) -> Tensor:
    """A field of the seed with exponential correlations and unit variance."""
    factor = torch.linalg.cholesky(exponential(distances(*shape), length))
    return (factor @ normal(seed, math.prod(shape))).reshape(shape)


def whole(scalar: Tensor, sides: int) -> Tensor:
    """A global with room for a field's sides."""
    return scalar[(...,) + (None,) * sides]


def gaussian_field(name: str, shape: tuple[int, ...], scale: Tensor, factor: Tensor) -> Tensor:
    """A centred field of covariance scale^2 factor factor^T."""
    sites = factor.shape[-1]
    flat = dist.MultivariateNormal(torch.zeros(sites), scale_tril=whole(scale, 2) * factor)
    to_shape = dist.transforms.ReshapeTransform((sites,), shape)
    return pyro.sample(name, dist.TransformedDistribution(flat, [to_shape]))


def differences(x: Tensor, scale: Tensor, sides: int) -> Tensor:
    """ln density of first differences along all sides, N(0, scale^2) each, not normalised."""
    total = torch.zeros(())
    for axis in range(-sides, 0):
        step = x.narrow(axis, 1, x.shape[axis] - 1) - x.narrow(axis, 0, x.shape[axis] - 1)
        total = total - 0.5 * (step / whole(scale, sides)).square().flatten(-sides).sum(-1)
    rank = math.prod(x.shape[-sides:]) - 1
    return total - rank * scale.log()


def slow_series(seed: int, steps: int, phi: float, first: float, width: float) -> Tensor:
    """Numbers that return to zero by a factor phi a step, of a seed."""
    white = normal(seed, steps)
    values = [first * white[0]]
    for t in range(1, steps):
        values.append(phi * values[-1] + width * white[t])
    return torch.stack(values)


def returning(x: Tensor, phi: Tensor, width: Tensor) -> Tensor:
    """ln density of a stationary series that returns by a factor phi a step."""
    step = x[..., 1:] - phi[..., None] * x[..., :-1]
    first = dist.Normal(0.0, width / (1 - phi.square()).clamp(min=1e-6).sqrt())
    inner = dist.Normal(torch.zeros(step.shape[-1]), width[..., None]).to_event(1)
    return first.log_prob(x[..., 0]) + inner.log_prob(step)


# The models ---------------------------------------------------------------------------------------


def smoothing(noise: float, centred: bool) -> Callable[[int], Model]:
    """A Gaussian map with unknown noise and scale, strong or weak data, centred or not."""

    def build(seed: int) -> Model:
        factor = torch.linalg.cholesky(exponential(distances(6, 8), 3.0))
        y = correlated(seed, 3.0, 6, 8) + noise * normal(seed + 1, 6, 8)

        def model() -> None:
            sigma = pyro.sample("sigma", dist.LogNormal(math.log(noise), 0.5))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            if centred:
                f = gaussian_field("f", (6, 8), scale, factor)
            else:
                white = pyro.sample("f", dist.Normal(torch.zeros(6, 8), 1.0).to_event(2))
                f = (white.flatten(-2) @ factor.T * scale[..., None]).unflatten(-1, (6, 8))
            pyro.sample("y", dist.Normal(f, whole(sigma, 2)).to_event(2), obs=y)

        return model

    return build


def gp_length(seed: int) -> Model:
    """A Gaussian process in one dimension with unknown length, scale and noise."""
    distance = distances(32)
    y = correlated(seed, 5.0, 32) + 0.3 * normal(seed + 1, 32)

    def model() -> None:
        length = pyro.sample("length", dist.LogNormal(1.5, 0.7))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        factor = torch.linalg.cholesky(exponential(distance, length))
        f = gaussian_field("f", (32,), scale, factor)
        pyro.sample("y", dist.Normal(f, whole(sigma, 1)).to_event(1), obs=y)

    return model


def cox(exposure: float) -> Callable[[int], Model]:
    """A log-Gaussian Cox process with unknown level, variance and length, whitened."""

    def build(seed: int) -> Model:
        distance = distances(8, 8)
        counts = poisson(seed + 1, exposure * torch.exp(correlated(seed, 3.0, 8, 8)))

        def model() -> None:
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(-0.5, 0.5))
            length = pyro.sample("length", dist.LogNormal(1.0, 0.5))
            white = pyro.sample("f", dist.Normal(torch.zeros(8, 8), 1.0).to_event(2))
            factor = torch.linalg.cholesky(exponential(distance, length))
            f = (factor @ white.flatten(-2)[..., None])[..., 0] * scale[..., None]
            rate = exposure * torch.exp(level[..., None] + f).unflatten(-1, (8, 8))
            pyro.sample("y", dist.Poisson(rate).to_event(2), obs=counts)

        return model

    return build


def icar(seed: int) -> Model:
    """A disease map: counts with offsets and a covariate, first differences of unknown width."""
    covariate = normal(seed + 2, 7, 9)
    expected = 5.0 * torch.exp(0.5 * normal(seed + 3, 7, 9))
    truth = 0.6 * correlated(seed, 4.0, 7, 9)
    counts = poisson(seed + 1, expected * torch.exp(0.3 * covariate + truth))

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        width = pyro.sample("width", dist.LogNormal(-1.0, 0.7))
        f = pyro.sample("f", dist.Normal(torch.zeros(7, 9), 10.0).to_event(2))
        pyro.factor("smooth", differences(f, width, 2))
        rate = expected * torch.exp(whole(beta, 2) * covariate + f)
        pyro.sample("y", dist.Poisson(rate).to_event(2), obs=counts)

    return model


def bym2(seed: int) -> Model:
    """A BYM2 map: a structured and an unstructured field, mixed, with an intercept and offsets."""
    expected = 10.0 * torch.exp(0.5 * normal(seed + 3, 6, 6))
    truth = 0.5 * correlated(seed, 4.0, 6, 6) + 0.3 * normal(seed + 2, 6, 6)
    counts = poisson(seed + 1, expected * torch.exp(truth))

    def model() -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        share = pyro.sample("share", dist.Beta(1.5, 1.5))
        white = dist.Normal(torch.zeros(6, 6), 1.0).to_event(2)
        structured = pyro.sample("structured", white)
        pyro.factor("smooth", differences(structured, torch.ones_like(sigma), 2))
        unstructured = pyro.sample("unstructured", white)
        mixed = whole(share.sqrt(), 2) * structured + whole((1 - share).sqrt(), 2) * unstructured
        rate = expected * torch.exp(whole(intercept, 2) + whole(sigma, 2) * mixed)
        pyro.sample("y", dist.Poisson(rate).to_event(2), obs=counts)

    return model


def probit(seed: int) -> Model:
    """Classes of a map: a Gaussian field behind a probit, with unknown scale."""
    factor = torch.linalg.cholesky(exponential(distances(8, 8), 3.0))
    y = (1.5 * correlated(seed, 3.0, 8, 8) + normal(seed + 1, 8, 8) > 0).float()

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        f = gaussian_field("f", (8, 8), scale, factor)
        probability = (0.5 * torch.special.erfc(-f / math.sqrt(2))).clamp(1e-6, 1 - 1e-6)
        pyro.sample("y", dist.Bernoulli(probability).to_event(2), obs=y)

    return model


def outliers(seed: int) -> Model:
    """A map with Student-t noise of unknown width: one cell in ten is far off."""
    factor = torch.linalg.cholesky(exponential(distances(7, 7), 3.0))
    far = (normal(seed + 2, 7, 7) > 1.3).float() * 4.0 * normal(seed + 3, 7, 7)
    y = correlated(seed, 3.0, 7, 7) + 0.2 * normal(seed + 1, 7, 7) + far

    def model() -> None:
        sigma = pyro.sample("sigma", dist.LogNormal(-1.5, 0.7))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        f = gaussian_field("f", (7, 7), scale, factor)
        pyro.sample("y", dist.StudentT(3.0, f, whole(sigma, 2)).to_event(2), obs=y)

    return model


def deblurring(seed: int) -> Model:
    """Counts of a blurred positive picture, with first differences of its logarithm."""
    kernel = torch.exp(-distances(8, 8).square() / 3.0)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    truth = 20.0 * torch.exp(correlated(seed, 3.0, 8, 8))
    counts = poisson(seed + 1, (kernel @ truth.flatten()).reshape(8, 8))

    def model() -> None:
        width = pyro.sample("width", dist.LogNormal(-0.5, 0.5))
        picture = dist.LogNormal(3.0 * torch.ones(8, 8), 2.0).to_event(2)
        x = pyro.sample("x", picture)
        pyro.factor("smooth", differences(x.log(), width, 2))
        rate = (x.flatten(-2) @ kernel.T).unflatten(-1, (8, 8))
        pyro.sample("y", dist.Poisson(rate).to_event(2), obs=counts)

    return model


def missing(seed: int) -> Model:
    """A map of which two cells in three were not seen."""
    factor = torch.linalg.cholesky(exponential(distances(9, 7), 4.0))
    y = correlated(seed, 4.0, 9, 7) + 0.1 * normal(seed + 1, 9, 7)
    seen = normal(seed + 2, 9, 7) > 0.4

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        f = gaussian_field("f", (9, 7), scale, factor)
        data = dist.Normal(f + whole(mean, 2), 0.1).mask(seen).to_event(2)
        pyro.sample("y", data, obs=y)

    return model


def negative_binomial(seed: int) -> Model:
    """Counts with dispersion, a Gaussian field of unknown scale and a level."""
    factor = torch.linalg.cholesky(exponential(distances(8, 6), 3.0))
    mean = torch.exp(1.5 + 0.8 * correlated(seed, 3.0, 8, 6))
    noise = torch.exp(0.4 * normal(seed + 2, 8, 6))
    counts = poisson(seed + 1, mean * noise)

    def model() -> None:
        level = pyro.sample("level", dist.Normal(1.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        size = pyro.sample("size", dist.LogNormal(1.5, 0.7))
        f = gaussian_field("f", (8, 6), scale, factor)
        logits = whole(level, 2) + f - whole(size.log(), 2)
        y = dist.NegativeBinomial(whole(size, 2), logits=logits).to_event(2)
        pyro.sample("y", y, obs=counts)

    return model


def ar1(seed: int) -> Model:
    """A series that returns slowly, with unknown return, innovation and noise."""
    y = slow_series(seed, 40, 0.97, 2.0, 0.5) + 0.3 * normal(seed + 1, 40)

    def model() -> None:
        phi = pyro.sample("phi", dist.Beta(10.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(-0.7, 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        f = pyro.sample("f", dist.Normal(torch.zeros(40), 20.0).to_event(1))
        pyro.factor("series", returning(f, phi, tau))
        pyro.sample("y", dist.Normal(f, sigma[..., None]).to_event(1), obs=y)

    return model


def random_walk(seed: int) -> Model:
    """A level that wanders, seen through noise, both of unknown width."""
    y = 0.3 * normal(seed, 48).cumsum(0) + 0.5 * normal(seed + 1, 48)

    def model() -> None:
        tau = pyro.sample("tau", dist.LogNormal(-1.0, 0.7))
        sigma = pyro.sample("sigma", dist.LogNormal(-0.7, 0.5))
        f = pyro.sample("f", dist.Normal(torch.zeros(48), 10.0).to_event(1))
        pyro.factor("walk", differences(f, tau, 1))
        pyro.sample("y", dist.Normal(f, sigma[..., None]).to_event(1), obs=y)

    return model


def volatility(seed: int) -> Model:
    """Stochastic volatility: returns whose log-variance is a slow series."""
    truth = slow_series(seed, 64, 0.95, 0.6, 0.25)
    returns = torch.exp(-0.5 + 0.5 * truth) * normal(seed + 1, 64)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(-1.0, 1.0))
        phi = pyro.sample("phi", dist.Beta(20.0, 1.5))
        tau = pyro.sample("tau", dist.LogNormal(-1.5, 0.5))
        h = pyro.sample("h", dist.Normal(torch.zeros(64), 5.0).to_event(1))
        pyro.factor("series", returning(h, phi, tau))
        width = torch.exp(0.5 * (mean[..., None] + h))
        pyro.sample("y", dist.Normal(0.0, width).to_event(1), obs=returns)

    return model


def space_time(seed: int) -> Model:
    """A separable field in space and time with unknown scale and noise."""
    space = torch.linalg.cholesky(exponential(distances(6), 3.0))
    time = torch.linalg.cholesky(exponential(distances(10), 5.0))
    y = time @ normal(seed, 10, 6) @ space.T + 0.4 * normal(seed + 1, 10, 6)

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        white = pyro.sample("f", dist.Normal(torch.zeros(10, 6), 1.0).to_event(2))
        f = whole(scale, 2) * (time @ white @ space.T)
        pyro.sample("y", dist.Normal(f, whole(sigma, 2)).to_event(2), obs=y)

    return model


def positive(seed: int) -> Model:
    """A field of Gamma variables seen through counts, in plates."""
    counts = poisson(seed + 1, torch.exp(correlated(seed, 3.0, 6, 7)))

    def model() -> None:
        shape = pyro.sample("shape", dist.LogNormal(0.5, 0.5))
        with pyro.plate("row", 6, dim=-2), pyro.plate("column", 7, dim=-1):
            x = pyro.sample("x", dist.Gamma(shape, shape))
            pyro.sample("y", dist.Poisson(x), obs=counts)

    return model


def two_fields(seed: int) -> Model:
    """A mean and a log-width of a noisy map, both smooth."""
    factor = torch.linalg.cholesky(exponential(distances(6, 6), 3.0))
    width = torch.exp(-1.0 + 0.5 * correlated(seed + 2, 3.0, 6, 6))
    y = correlated(seed, 3.0, 6, 6) + width * normal(seed + 1, 6, 6)

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        loc = gaussian_field("loc", (6, 6), scale, factor)
        log_width = gaussian_field("log_width", (6, 6), 0.5 * torch.ones_like(scale), factor)
        pyro.sample("y", dist.Normal(loc, torch.exp(log_width - 1.0)).to_event(2), obs=y)

    return model


def cube(seed: int) -> Model:
    """Counts in a cube of 4 x 4 x 4 cells with a Gaussian field of unknown scale."""
    factor = torch.linalg.cholesky(exponential(distances(4, 4, 4), 2.0))
    counts = poisson(seed + 1, 3.0 * torch.exp(0.7 * correlated(seed, 2.0, 4, 4, 4)))

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        f = gaussian_field("f", (4, 4, 4), scale, factor)
        pyro.sample("y", dist.Poisson(3.0 * torch.exp(f)).to_event(3), obs=counts)

    return model


REGISTRY: dict[str, FieldModel] = {
    "smoothing, weak": FieldModel(smoothing(1.0, True), ("f",), (6, 8), 50),
    "smoothing, strong": FieldModel(smoothing(0.1, True), ("f",), (6, 8), 50),
    "smoothing, whitened": FieldModel(smoothing(0.3, False), ("f",), (6, 8), 50),
    "GP, unknown length": FieldModel(gp_length, ("f",), (32,), 35),
    "Cox process, few points": FieldModel(cox(1.0), ("f",), (8, 8), 67),
    "Cox process, many points": FieldModel(cox(30.0), ("f",), (8, 8), 67),
    "ICAR map": FieldModel(icar, ("f",), (7, 9), 65),
    "BYM2 map": FieldModel(bym2, ("structured", "unstructured"), (6, 6), 75),
    "probit": FieldModel(probit, ("f",), (8, 8), 65),
    "outliers": FieldModel(outliers, ("f",), (7, 7), 51),
    "deblurring": FieldModel(deblurring, ("x",), (8, 8), 65),
    "missing cells": FieldModel(missing, ("f",), (9, 7), 65),
    "negative binomial": FieldModel(negative_binomial, ("f",), (8, 6), 51),
    "AR(1)": FieldModel(ar1, ("f",), (40,), 43),
    "random walk": FieldModel(random_walk, ("f",), (48,), 50),
    "stochastic volatility": FieldModel(volatility, ("h",), (64,), 67),
    "space-time": FieldModel(space_time, ("f",), (10, 6), 62),
    "positive field": FieldModel(positive, ("x",), (6, 7), 43),
    "two fields": FieldModel(two_fields, ("loc", "log_width"), (6, 6), 73),
    "cube": FieldModel(cube, ("f",), (4, 4, 4), 65),
}
