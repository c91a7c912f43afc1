# SPDX-License-Identifier: Apache-2.0
"""Gaussians bent along the globals: derivatives, the marginal, the field given globals, the map."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import PDD, AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide import curved
from pyro_neuralrg.infer.autoguide.curved import CurvedGaussian, curved_gaussian
from pyro_neuralrg.infer.autoguide.gaussians import Density
from pyro_neuralrg.infer.autoguide.transform import FieldFrame
from tests.models.answers import load_answers
from tests.models.registry import REGISTRY

DOUBLE = torch.float64


def noisy_field(scale: float = 3.0) -> tuple[Density, Tensor]:
    """A white field of 3 x 4 sites seen through noise of unknown ln width v, N(v; 0, 1)."""
    y = scale * torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)

    def energy(u: Tensor) -> Tensor:
        v, f = u[:, :1], u[:, 1:]
        fit = 0.5 * ((y - f) / v.exp()).square().sum(1) + 12 * v[:, 0]
        return fit + 0.5 * f.square().sum(1) + 0.5 * v[:, 0].square()

    return Density(energy, DOUBLE), y


def exact_marginal(y: Tensor) -> tuple[float, Tensor]:
    """Mode of p(v | y), whose field is integrated out, and -ln p on a grid."""
    v = torch.linspace(-3.0, 3.0, 60001, dtype=DOUBLE)
    variance = 1 + (2 * v).exp()
    energy = 0.5 * (y.square().sum() / variance + 12 * variance.log()) + 0.5 * v.square()
    return float(v[energy.argmin()]), energy


def test_globals_have_the_exact_marginal_and_the_field_its_widths() -> None:
    """Of a field that is Gaussian given the globals Laplace's approximation is exact."""
    density, y = noisy_field()
    modes = torch.zeros(1, 3, 4, dtype=DOUBLE)
    start = CurvedGaussian(
        torch.zeros(13, dtype=DOUBLE),
        torch.eye(13, dtype=DOUBLE),
        torch.zeros(12, 1, dtype=DOUBLE),
        modes,
        modes[None],
        "open",
    )
    looks = list(curved._bent(density, start))
    for of_mode, relative in looks:  # to the first look, where the globals stood as they were given
        torch.testing.assert_close(of_mode.log_modes - relative.log_modes, looks[0][0].log_modes)
        change = of_mode.mean - relative.mean
        torch.testing.assert_close(change[1:], looks[0][0].mean[1:])
    mode, energy = exact_marginal(y)
    place, width = float(of_mode.mean[0]), float(of_mode.factor[0, 0])
    assert place == pytest.approx(mode, abs=0.1)
    # one width away on both sides the energy rises by a half on average
    rises = [energy[int((place + sign * width + 3) * 10_000)] - energy.min() for sign in (1, -1)]
    assert float(sum(rises)) == pytest.approx(1.0, abs=0.1)
    for c in (-1.0, 0.0, 1.0):  # sd of the field given v, the mean given v
        v = place + c * width
        sd = (1 + math.exp(-2 * v)) ** -0.5
        found = (of_mode.log_modes + c * of_mode.slopes[0]).exp()
        assert torch.allclose(found, torch.full_like(found, sd), rtol=0.03)
        field = of_mode.mean[1:] + c * of_mode.factor[1:, 0] + c * c * of_mode.curve[:, 0]
        assert torch.allclose(field, y / (1 + math.exp(2 * v)), atol=0.02)


def test_bent_only_where_that_is_nearer() -> None:
    density, _ = noisy_field()
    modes = torch.zeros(1, 3, 4, dtype=DOUBLE)
    start = torch.zeros(13, dtype=DOUBLE), 0.5 * torch.eye(13, dtype=DOUBLE)
    assert curved_gaussian(density, *start, modes, "open") is not None
    gaussian = Density(lambda u: 2.0 * u.square().sum(1), DOUBLE)
    assert curved_gaussian(gaussian, *start, modes, "open") is None
    failing = Density(lambda u: torch.linalg.cholesky(u[:, :1, None] - 2.0).sum((1, 2)), DOUBLE)
    assert curved_gaussian(failing, *start, modes, "open") is None
    many = torch.zeros(21, dtype=DOUBLE), torch.eye(21, dtype=DOUBLE)
    assert curved_gaussian(density, *many, modes, "open") is None  # nine globals


def test_derivatives_of_a_quadratic_form_are_exact() -> None:
    number = 3
    matrix, line = torch.randn(number, number, dtype=DOUBLE), torch.randn(number, 2, dtype=DOUBLE)

    def field(c: Tensor) -> Any:
        value = c @ line + 0.5 * torch.stack([c @ matrix @ c, c @ matrix.T @ c * 3.0])
        return curved._Field(value, value, value)

    one = torch.eye(number, dtype=DOUBLE)
    offsets = [*one, *(one[i] + one[j] for i, j in combinations(range(number), 2))]
    up, down = [field(c) for c in offsets], [field(-c) for c in offsets]
    centre = field(torch.zeros(number, dtype=DOUBLE))
    first, second = curved._derivatives(number, centre, up, down, lambda found: found.mode)
    torch.testing.assert_close(first, line)
    whole = 0.5 * (matrix + matrix.T)
    torch.testing.assert_close(second, torch.stack([whole, 3.0 * whole], -1))


@pytest.mark.parametrize("boundary", ["open", "periodic"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_map_has_its_density_and_is_the_guides(channels: int, boundary: str) -> None:
    number, lattice = 2, (3, 4)
    sites = 12 * channels
    even = torch.randn(number + 1, channels, *lattice, dtype=DOUBLE) / 5
    if boundary == "periodic":
        even = 0.5 * (even + even.flip((-1, -2)).roll((1, 1), (-1, -2)))
    q = CurvedGaussian(
        torch.zeros(number + sites, dtype=DOUBLE),
        torch.eye(number + sites, dtype=DOUBLE),
        torch.randn(sites, 3, dtype=DOUBLE),
        even[0],
        even[1:],
        boundary,
    )
    z = torch.randn(4, number + sites, dtype=DOUBLE)
    points, log_det = q.draws(z)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: q.draws(x[None])[0][0]))(z)
    torch.testing.assert_close(torch.linalg.slogdet(jacobians).logabsdet, log_det)
    shape = (*lattice, channels) if channels > 1 else lattice
    like = torch.zeros(shape, dtype=DOUBLE)
    frame = FieldFrame(like, channels, number, odd=False, boundary=boundary)
    frame.begin(q.log_modes, q.slopes, q.curve)
    latents = z[:, number:].T.reshape(*shape, 4)
    w, ladj = frame.forward(latents, z[:, :number].T)
    torch.testing.assert_close(w.flatten(0, -2).T, points[:, number:])
    torch.testing.assert_close(ladj, log_det)


@pytest.mark.parametrize(
    ("name", "gap"), [("smoothing, strong", 1.0), ("random walk", 0.6), ("ICAR map", 0.4)]
)
def test_guides_begin_near_posteriors_with_unknown_scales(name: str, gap: float) -> None:
    """Where the nearest Gaussian leaves 2.7, 1.4 and 0.7 nats."""
    guide = AutoHierarchicalFlow(REGISTRY[name].build(0))
    guide()
    loss = PDD(400, vectorize_particles=True, max_plate_nesting=3)
    found = loss.loss(REGISTRY[name].build(0), guide) + load_answers()[name].log_evidence[0]
    assert -0.3 < found < gap


def test_what_a_guide_asks_for_is_kept() -> None:
    """A symmetric density, or a width that is given, is not bent."""
    model = REGISTRY["smoothing, strong"].build(0)
    bent = AutoHierarchicalFlow(model).get_transform().field_flow.frame
    assert float(bent.spectra[0].slopes.detach().abs().max()) > 0
    for options in ({"odd": True}, {"init_scale": 0.1}):
        frame = AutoHierarchicalFlow(model, **options).get_transform().field_flow.frame
        assert float(frame.spectra[0].slopes.detach().abs().max()) == 0
