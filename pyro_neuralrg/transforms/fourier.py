# SPDX-License-Identifier: Apache-2.0
"""Gaussian layers: the free field, from which the renormalization group starts; a learned one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_finite, check_integer, check_values
from pyro_neuralrg.lattice import MAX_DIM, check_boundary, check_shape
from pyro_neuralrg.spectral import apply_matrices, apply_spectrum, at_minus_k, check_spectrum
from pyro_neuralrg.transforms.base import LatticeTransform, Pushed

ASYMMETRY = 1e-5
"""Differences of C_ij and C_ji that are rounding, as in float32, relative to the largest entry."""


class _ModeScaling(LatticeTransform):
    """Every mode of the lattice times a factor of its own; subclasses define ``_factors``."""

    boundary: str

    def _factors(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Factors of the modes, or of the inverse, and the logarithms of the former.

        Of the lattice's shape, or one for each field of the batch, which stands first.
        """
        raise NotImplementedError

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        factors, logarithms = self._factors(h, context, inverse)
        dims = len(self.event_shape)
        fields = apply_spectrum(h.movedim(-1, 0), factors.to(h.dtype), self.boundary, dims)
        ladj = logarithms.flatten(-dims).sum(-1).to(h.dtype).expand(h.shape[-1])
        return fields.movedim(0, -1), ladj


def _slope_term(context: Tensor | None, slopes: Tensor) -> Tensor:
    """Sum of the slopes times the entries of a context, one for each field."""
    if context is None:
        raise ValueError("context is None; accepted for a spectrum with slopes: a tensor")
    return torch.tensordot(context, slopes, ([0], [0]))


class FourierLayer(_ModeScaling):
    r"""Colour white noise with a given spectrum: :math:`x = F^{-1} \sqrt{\lambda} F z`, O(N log N).

    With the spectrum of a free field the layer alone is that field's exact sampler. It has no
    parameters: the spectrum is a buffer. With ``slopes`` each field of a batch has a spectrum of
    its own, linear in the first entries of its context c: :math:`\lambda(c) = \lambda + \sum_i c_i
    \lambda_i'`, positive for all :math:`|c_i| \le 1`.

    Args:
        spectrum: eigenvalues of the covariance, positive, of the lattice's shape: in FFT order and
            even under k -> -k for a periodic lattice, in the order of the sine transform's modes
            (k = 1 .. n) for an open one.
        boundary: "periodic" or "open".
        slopes: derivatives of the spectrum with respect to the context, shape ``(entries,) +
            shape``, or None; with them a context is needed.

    Example:
        >>> layer = FourierLayer(torch.full((4, 4), 4.0))
        >>> bool(torch.allclose(layer(torch.ones(4, 4)), torch.full((4, 4), 2.0)))
        True
    """

    given_as = "spectrum"
    scale: Tensor
    slopes: Tensor | None

    def __init__(
        self, spectrum: Tensor, boundary: str = "periodic", slopes: Tensor | None = None
    ) -> None:
        check_spectrum(spectrum, check_boundary(boundary))
        if slopes is not None:
            _check_slopes(slopes, spectrum, boundary)
        super().__init__(tuple(spectrum.shape))
        self.boundary = boundary
        self.register_buffer("scale", spectrum.detach().sqrt().clone())
        self.register_buffer("slopes", None if slopes is None else slopes.detach().clone())

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        if self.slopes is not None:
            return super().push_score(h, score, context, want_context)
        x, ladj = self.forward(h)
        with torch.no_grad():
            return x, ladj, self.inverse(score)[0], None

    def _factors(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        scale = self.scale
        if self.slopes is not None:
            first = None if context is None else context[: len(self.slopes)]
            moved = _slope_term(first, self.slopes.to(h.dtype))
            scale = (scale.to(h.dtype).square() + moved).sqrt()
        return scale.reciprocal() if inverse else scale, scale.log()


class _Root(LatticeTransform):
    """The symmetric root of a covariance, without parameters: root and inverse are buffers."""

    root: Tensor
    inverse_root: Tensor
    log_scale: Tensor

    def _keep_roots(self, values: Tensor, vectors: Tensor, dtype: torch.dtype) -> None:
        """Those of eigenvalues and eigenvectors; of complex ones real and imaginary part."""
        for name, power in (("root", 0.5), ("inverse_root", -0.5)):
            matrices = (vectors * values.unsqueeze(-2) ** power) @ vectors.mH
            parts = torch.view_as_real(matrices) if matrices.is_complex() else matrices
            self.register_buffer(name, parts.to(dtype))
        self.register_buffer("log_scale", 0.5 * values.log().sum().to(dtype))

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        x, ladj = self.forward(h)
        with torch.no_grad():
            return x, ladj, self.inverse(score)[0], None


class VectorFourierLayer(_Root):
    r"""The same of a vector field, :math:`x = F^{-1} S^{1/2} F z` with a matrix S for each mode.

    The roots are Hermitian, so that the map is real and symmetric. O(N log N), without parameters.

    Args:
        spectrum: covariance of the components of each mode, ``shape + (components, components)``:
            real and symmetric, or Hermitian with the complex conjugate at -k; positive.
        boundary: "periodic" or "open", where the matrices are real.

    Example:
        >>> layer = VectorFourierLayer(4.0 * torch.eye(2).expand(3, 2, 2))
        >>> bool(torch.allclose(layer(torch.ones(3, 2)), torch.full((3, 2), 2.0)))
        True
    """

    given_as = "spectrum"

    def __init__(self, spectrum: Tensor, boundary: str = "periodic") -> None:
        if spectrum.dim() < 3:
            raise ValueError(
                f"spectrum has shape {tuple(spectrum.shape)}; accepted: the lattice shape + "
                "(components, components)"
            )
        components = spectrum.shape[-1]
        check_spectrum(spectrum, check_boundary(boundary), components=components)
        super().__init__((*spectrum.shape[:-2], components))
        self.boundary = boundary
        values, vectors = torch.linalg.eigh(spectrum.detach().to(torch.complex128))
        self._keep_roots(values, vectors, spectrum.real.dtype)

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        parts = self.inverse_root if inverse else self.root
        fields = apply_matrices(h.movedim(-1, 0), torch.view_as_complex(parts), self.boundary)
        return fields.movedim(0, -1), self.log_scale.to(h.dtype).expand(h.shape[-1])


class CovarianceLayer(_Root):
    r"""Colour white noise with any covariance: :math:`x = C^{1/2} z`, O(N^2).

    The root is symmetric, so that each z stays near its own site; of a translation-invariant C the
    layer is a :class:`FourierLayer`. Without parameters.

    Args:
        covariance: C, symmetric and positive, ``(N, N)`` of the entries row by row; the roots are
            found in float64.
        shape: of the field, N entries.

    Example:
        >>> layer = CovarianceLayer(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), (2,))
        >>> bool(torch.allclose(layer(torch.ones(2)), torch.full((2,), 3.0).sqrt()))
        True
    """

    given_as = "covariance"

    def __init__(self, covariance: Tensor, shape: Iterable[int]) -> None:
        super().__init__(check_shape(shape, most=MAX_DIM + 1))
        size = math.prod(self.event_shape)
        accepted = f"a symmetric, positive floating tensor of shape ({size}, {size})"
        exact = check_values("covariance", covariance, (size, size), accepted).double()
        check_finite("covariance", exact, exact.dim() == 2, accepted)
        rounding = ASYMMETRY * float(exact.abs().max())
        if not torch.allclose(exact, exact.T, rtol=0.0, atol=rounding):
            raise ValueError(f"covariance is not symmetric; accepted: {accepted}")
        values, vectors = torch.linalg.eigh((exact + exact.T).detach() / 2)
        if float(values[0]) <= 0:
            raise ValueError(
                f"covariance has an eigenvalue {float(values[0]):.6g}; accepted: {accepted}"
            )
        self._keep_roots(values, vectors, covariance.dtype)

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = (self.inverse_root if inverse else self.root).to(h.dtype)
        ladj = self.log_scale.to(h.dtype).expand(h.shape[-1])
        return (matrix @ h.flatten(0, -2)).view(h.shape), ladj


class LearnedSpectrum(_ModeScaling):
    r"""Scale every mode of the lattice by a factor of its own: :math:`x = F^{-1} e^{s(c)} F z`.

    One factor for each mode (for each pair k, -k on a periodic lattice), with a context
    :math:`s(c) = s_0 + \sum_i c_i s_i`; the identity at the start. O(N log N). The posterior of a
    smooth field, whose data tell of some of its scales only, is learned soonest so.

    Args:
        shape: lattice shape.
        boundary: "periodic" (plane waves) or "open" (products of sines).
        context_dim: length of the context; 0 for none.
        response: factor of all the logarithms.
        dtype, device: of the parameters; torch's defaults if None.

    Example:
        >>> layer = LearnedSpectrum((4, 4))
        >>> bool(torch.allclose(layer(torch.ones(4, 4)), torch.ones(4, 4)))
        True
    """

    def __init__(
        self,
        shape: Iterable[int],
        boundary: str = "periodic",
        context_dim: int = 0,
        *,
        response: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        sides = check_shape(shape)
        context_dim = check_integer("context_dim", context_dim, 0)
        super().__init__(sides)
        self.response = response
        self.boundary = check_boundary(boundary)
        self.log_scale = nn.Parameter(torch.zeros(sides, dtype=dtype, device=device))
        slopes = torch.zeros(context_dim, *sides, dtype=dtype, device=device)
        self.slopes = nn.Parameter(slopes) if context_dim else None

    def _factors(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        log_scale = self.response * self._even(self.log_scale)
        if self.slopes is not None:
            log_scale = log_scale + _slope_term(context, self.response * self._even(self.slopes))
        return (-log_scale if inverse else log_scale).exp(), log_scale

    def _even(self, values: Tensor) -> Tensor:
        """Their part that is even under k -> -k; of sines all of it."""
        if self.boundary == "open":
            return values
        return 0.5 * (values + at_minus_k(values, len(self.event_shape)))


def _check_slopes(slopes: Tensor, spectrum: Tensor, boundary: str) -> None:
    accepted = f"a floating tensor of shape (entries, {', '.join(map(str, spectrum.shape))})"
    check_values("slopes", slopes, tuple(spectrum.shape), accepted)
    if slopes.dim() != spectrum.dim() + 1:
        raise ValueError(f"slopes has shape {tuple(slopes.shape)}; accepted: {accepted}")
    check_spectrum(spectrum - slopes.abs().sum(0), boundary)
    for slope in slopes:  # each even by itself
        check_spectrum(spectrum + slope, boundary)
