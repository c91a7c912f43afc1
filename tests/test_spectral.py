# SPDX-License-Identifier: Apache-2.0
"""Operators that are diagonal in the lattice's modes, against dense matrices."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from pyro_neuralrg.spectral import (
    MODES,
    apply_spectrum,
    laplacian_spectrum,
    neighbour_spectrum,
    quadratic_form,
)
from tests.potentials.enumeration import bond_matrix

SHAPES = [(1,), (2,), (5,), (8,), (201,), (4, 6), (3, 5), (1, 4), (7, 2), (2, 3, 4), (2, 1, 3)]
BOUNDARIES = ["periodic", "open"]
COUPLINGS = (0.3, -0.7, 0.5)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbour_spectrum_diagonalises_the_matrix_of_bonds(
    shape: tuple[int, ...], boundary: str
) -> None:
    sites = math.prod(shape)
    couplings = COUPLINGS[: len(shape)]
    spectrum = neighbour_spectrum(shape, couplings, boundary)
    dense = apply_spectrum(torch.eye(sites).reshape(sites, *shape), spectrum, boundary)
    expected = bond_matrix(shape, couplings, boundary)
    torch.testing.assert_close(dense.reshape(sites, sites), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("shape", [*SHAPES, (203,)])
def test_laplacian_is_the_sum_of_squared_differences(shape: tuple[int, ...]) -> None:
    """Of the bonds within the lattice, and with those across the edges of a ring."""
    x = torch.randn(3, *shape)
    free, ring = torch.zeros(3), torch.zeros(3)
    for axis in range(1, x.dim()):
        free += x.diff(dim=axis).square().flatten(1).sum(1)
        ring += (x - x.roll(1, axis)).square().flatten(1).sum(1)
    for boundary, expected in (("free", free), ("periodic", ring)):
        form = quadratic_form(x, laplacian_spectrum(shape, boundary), boundary)
        torch.testing.assert_close(form, expected)


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quadratic_form_and_inverse_of_the_operator(shape: tuple[int, ...], boundary: str) -> None:
    spectrum = 1 + laplacian_spectrum(shape, boundary)
    x = torch.randn(2, 3, *shape, requires_grad=True)
    form = quadratic_form(x, spectrum, boundary)
    applied = apply_spectrum(x, spectrum, boundary)
    torch.testing.assert_close(form, (x * applied).flatten(2).sum(-1))
    (gradient,) = torch.autograd.grad(form.sum(), x)
    torch.testing.assert_close(gradient, 2 * applied)
    torch.testing.assert_close(apply_spectrum(applied, 1 / spectrum, boundary), x)
    torch.testing.assert_close(apply_spectrum(x[1, 2], spectrum, boundary), applied[1, 2])
    torch.testing.assert_close(quadratic_form(x[1, 2], spectrum, boundary), form[1, 2])
    assert apply_spectrum(x[:0], spectrum, boundary).shape == (0, 3, *shape)
    assert quadratic_form(x[:0], spectrum, boundary).shape == (0, 3)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)],
)
def test_computes_in_the_precision_of_x(
    dtype: torch.dtype, tolerance: float, boundary: str
) -> None:
    spectrum = 4 + neighbour_spectrum((4, 5), (1.0, -1.0), boundary)
    x = torch.randn(3, 4, 5)
    for function in (apply_spectrum, quadratic_form):
        result = function(x.to(dtype), spectrum, boundary)
        assert result.dtype == dtype
        expected = function(x, spectrum, boundary)
        assert float((result - expected).abs().max() / expected.abs().max()) < tolerance


def test_spectrum_of_a_periodic_lattice_is_exactly_even() -> None:
    spectrum = neighbour_spectrum((7, 6), (0.3, 0.4))
    assert torch.equal(spectrum, spectrum.flip(0, 1).roll((1, 1), (0, 1)))


@pytest.mark.parametrize("function", [apply_spectrum, quadratic_form])
def test_wrong_arguments_are_named(function: Any) -> None:
    for shape in ((3,), (3, 4), ()):
        with pytest.raises(ValueError, match=r"x has shape .*accepted.*\(4, 3\)"):
            function(torch.zeros(shape), torch.ones(4, 3))
    with pytest.raises(ValueError, match="boundary is 'twisted'"):
        function(torch.zeros(4, 3), torch.ones(4, 3), "twisted")


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_spectrum_for_each_field(boundary: str) -> None:
    x = torch.randn(3, 2, 4, 3)
    spectra = torch.stack([neighbour_spectrum((4, 3), (c, 1.0), boundary) for c in (0.5, 2.0)])
    for function in (apply_spectrum, quadratic_form):
        together = function(x, spectra, boundary, dims=2)
        one_by_one = [function(x[:, i], spectra[i], boundary) for i in range(2)]
        torch.testing.assert_close(together, torch.stack(one_by_one, 1))
    with pytest.raises(ValueError, match=r"x has shape \(4, 4\); accepted: .*\(4, 3\)"):
        apply_spectrum(torch.zeros(4, 4), spectra, boundary, dims=2)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(5,), (4,), (3, 4)])
def test_derivatives_of_all_kinds(shape: tuple[int, ...], boundary: str) -> None:
    spectrum = laplacian_spectrum(shape, boundary) + 1.0
    x = torch.randn(2, *shape, requires_grad=True)
    for function in (apply_spectrum, quadratic_form):
        of_x = functools.partial(function, spectrum=spectrum, boundary=boundary)
        assert torch.autograd.gradcheck(of_x, (x,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(of_x, (x,))
    twice = 2 * apply_spectrum(x, spectrum, boundary)
    energy = functools.partial(quadratic_form, spectrum=spectrum, boundary=boundary)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(x), twice)
    outside = torch.autograd.grad(torch.func.vmap(energy)(x).sum(), x)[0]
    torch.testing.assert_close(outside, twice)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
def test_spectra_that_differ_from_field_to_field() -> None:
    """One field under several spectra, and derivatives with respect to these."""
    spectra = neighbour_spectrum((5,), (1.0,)) + torch.tensor([3.0, 4.0, 5.0])[:, None]
    for shape in ((5,), (1, 5), (2, 1, 5)):
        x = torch.randn(shape, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: quadratic_form(x, spectra, dims=1), (x,))
        assert torch.autograd.gradcheck(lambda x: apply_spectrum(x, spectra, dims=1), (x,))
    x, spectrum = torch.randn(2, 5), spectra[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(spectrum, torch.ones(5))
        tangent = torch.autograd.forward_ad.unpack_dual(quadratic_form(x, dual)).tangent
    torch.testing.assert_close(tangent, x.square().sum(-1))
