# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian layer: the free field, from which the renormalization group starts."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.spectral import apply_spectrum
from pyro_neuralrg.transforms.base import LatticeTransform

__all__ = ["FourierLayer"]


class FourierLayer(LatticeTransform):
    r"""Colour white noise with a given spectrum: :math:`x = F^{-1} \sqrt{\lambda} F z`, O(N log N).

    With the spectrum of a free field the layer alone is that field's exact sampler. It has no
    parameters: the spectrum is a buffer.

    Args:
        spectrum: eigenvalues of the covariance, positive, of the lattice's shape: in FFT order and
            even under k -> -k for a periodic lattice, in the order of the sine transform's modes
            (k = 1 .. n) for an open one.
        boundary: "periodic" or "open".

    Raises:
        TypeError: if the spectrum is not a floating tensor.
        ValueError: if it is not positive and finite or, on a periodic lattice, not even.

    Example:
        >>> layer = FourierLayer(torch.full((4, 4), 4.0))
        >>> bool(torch.allclose(layer(torch.ones(4, 4)), torch.full((4, 4), 2.0)))
        True
    """

    scale: Tensor

    def __init__(self, spectrum: Tensor, boundary: str = "periodic") -> None:
        check_boundary(boundary)
        _check_spectrum(spectrum, boundary)
        super().__init__(tuple(spectrum.shape))
        self.boundary = boundary
        self.register_buffer("scale", spectrum.detach().sqrt().clone())

    def generate(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to x."""
        return self._apply_scale(h, self.scale), self._ladj(h)

    def renormalize(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to z."""
        return self._apply_scale(h, self.scale.reciprocal()), self._ladj(h)

    def _apply_scale(self, h: Tensor, scale: Tensor) -> Tensor:
        if h.shape[-1] == 0:  # torch's FFT refuses empty tensors
            return h
        return apply_spectrum(h.movedim(-1, 0), scale.to(h.dtype), self.boundary).movedim(0, -1)

    def _ladj(self, h: Tensor) -> Tensor:
        return self.scale.log().sum().to(h.dtype).expand(h.shape[-1])


def _check_spectrum(spectrum: Tensor, boundary: str) -> None:
    if not isinstance(spectrum, Tensor) or not spectrum.is_floating_point():
        seen = spectrum.dtype if isinstance(spectrum, Tensor) else type(spectrum).__name__
        raise TypeError(f"spectrum is {seen}; accepted: a floating tensor")
    check_shape(spectrum.shape)
    usable = torch.isfinite(spectrum) & (spectrum > 0)
    if not bool(usable.all()):
        worst = float(spectrum[~usable][0])
        raise ValueError(f"spectrum has an entry {worst}; accepted: positive, finite eigenvalues")
    axes = tuple(range(spectrum.dim()))
    mirrored = spectrum.flip(axes).roll((1,) * len(axes), axes)  # k -> -k
    if boundary == "periodic" and not torch.allclose(spectrum, mirrored, atol=0.0):
        raise ValueError(
            "spectrum is not even under k -> -k; accepted: for a periodic lattice, the "
            "eigenvalues of a real symmetric translation-invariant matrix"
        )
