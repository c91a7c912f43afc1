# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A guide without its couplings: the Gaussian it begins as, places, widths and skewness."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_neuralrg.transforms import LearnedSpectrum
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.elementwise import SinhArcsinh

MAX_DENSE_GLOBALS = 100
"""Globals up to which each depends on all before it, and every site and mode of the fields on each:
matrices of N x N and of sites x N entries."""

MAX_MULTIPLIED_GLOBALS = 8
"""Globals up to which their products move the fields as well."""

FAN_IN = 5.0
"""Inputs of a linear map from which on its entries act in proportion to 1 / inputs."""

WIDTH_RESPONSE = 0.5
"""Factor between a parameter and the logarithm of a width: a step of Adam at a rate of 1e-2 changes
ln|det| by half a percent of the sites through their widths."""


class GaussianFrame(LatticeTransform):
    r"""The fixed affine map :math:`u = m + C v`, where a guide begins; a vector C is diagonal."""

    mean: Tensor
    factor: Tensor
    log_det: Tensor

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__((len(mean),))
        if factor.dim() == 1:
            log_det = factor.double().log().sum()
        else:
            log_det = torch.linalg.slogdet(factor.double()).logabsdet
        self.register_buffer("mean", mean.clone())
        self.register_buffer("factor", factor.clone())
        self.register_buffer("log_det", log_det.to(mean))
        self._inverse_of: Any = None  # C, its version and its inverse

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """A guide may have begun with a matrix, and another of the same model with widths."""
        state, prefix = args[:2]
        factor = state.get(f"{prefix}factor")
        of_any_kind = isinstance(factor, Tensor) and set(factor.shape) == set(self.event_shape)
        if of_any_kind and factor.dim() != self.factor.dim():
            self.factor = self.factor.new_empty(factor.shape)
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to u, batch-last."""
        moved = self.factor @ h if self.factor.dim() == 2 else self.factor[:, None] * h
        return self.mean[:, None] + moved, self.log_det.expand(h.shape[-1])

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u to v, batch-last."""
        moved = h - self.mean[:, None]
        v = self._inverse() @ moved if self.factor.dim() == 2 else moved / self.factor[:, None]
        return v, self.log_det.expand(h.shape[-1])

    def _inverse(self) -> Tensor:  # type: ignore[override]
        """C^-1, computed in float64 and remembered."""
        known, version = self._inverse_of, self.factor._version
        if known is None or known[0] is not self.factor or known[1] != version:
            with torch.no_grad(), torch.inference_mode(False):
                inverse = torch.linalg.inv(self.factor.double()).to(self.factor)
            known = self._inverse_of = self.factor, version, inverse
        return known[2]


class Bend(nn.Module):
    """A :class:`SinhArcsinh` for each variable, the identity at the start."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.skew = nn.Parameter(torch.zeros_like(like))
        self.log_tail = nn.Parameter(torch.zeros_like(like))

    def forward(self) -> SinhArcsinh:
        """The maps, for batch-last variables."""
        return SinhArcsinh(self.skew.unsqueeze(-1), WIDTH_RESPONSE * self.log_tail.unsqueeze(-1))


def with_products(context: Tensor) -> Tensor:
    """A context ``(dim, batch)`` and its products, if short: ``c_i c_j`` and ``c_i^2 - 1``."""
    dim = len(context)
    if not _products(dim):
        return context
    first, second = torch.triu_indices(dim, dim, device=context.device)
    same = (first == second).to(context).unsqueeze(-1)
    return torch.cat([context, context[first] * context[second] - same])


def _products(dim: int) -> int:
    return dim * (dim + 1) // 2 if dim <= MAX_MULTIPLIED_GLOBALS else 0


class FieldFrame(LatticeTransform):
    r"""A place and a width for every site, a width for every mode of the lattice.

    .. math:: w = m + A c + e^{r s} \odot F^{-1} e^{r b(c)} F\, f(v)

    for a context c. Each site has a map f_i that skews it and weighs its tails
    (:class:`~pyro_neuralrg.transforms.elementwise.SinhArcsinh`), the modes of each field have
    widths whose logarithms b are linear in c (:class:`~pyro_neuralrg.transforms.LearnedSpectrum`).
    The identity at the start. Several fields (``channels``) are the fastest index of the sites.
    With ``odd`` w and its negative have the same density: there is no m, no A and no f.
    """

    def __init__(
        self, like: Tensor, channels: int, context_dim: int, *, odd: bool, boundary: str
    ) -> None:
        shape = tuple(like.shape)
        super().__init__(shape)
        self.loc = None if odd else nn.Parameter(torch.zeros_like(like))
        self.log_scale = nn.Parameter(torch.zeros_like(like))
        self.bend = None if odd else Bend(like)
        if context_dim > MAX_DENSE_GLOBALS:  # a number for each site and global would be too many
            context_dim = 0
        moves = like.new_zeros(*shape, context_dim + _products(context_dim))
        self.shift = nn.Parameter(moves) if context_dim and not odd else None
        self.lattice = (*shape[:-1], shape[-1] // channels)
        if self.lattice[-1] == 1 and channels > 1:  # the fields are an axis of their own
            self.lattice = self.lattice[:-1]
        self.spectra = nn.ModuleList(
            LearnedSpectrum(self.lattice, boundary, context_dim, response=WIDTH_RESPONSE).to(like)
            for _ in range(channels)
        )

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v to w, batch-last."""
        v, bent = (h, None) if self.bend is None else self.bend().forward(h)
        w, ladj = self._by_field("forward", v, context)
        if bent is not None:
            ladj = ladj + bent.flatten(0, -2).sum(0)
        log_scale = WIDTH_RESPONSE * self.log_scale
        w = log_scale.exp().unsqueeze(-1) * w
        return w if self.loc is None else self._place(context) + w, ladj + log_scale.sum()

    def inverse(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """w to v, batch-last."""
        log_scale = WIDTH_RESPONSE * self.log_scale
        w = h if self.loc is None else h - self._place(context)
        v, ladj = self._by_field("inverse", w * (-log_scale).exp().unsqueeze(-1), context)
        if self.bend is not None:
            v, bent = self.bend().inverse(v)
            ladj = ladj + bent.flatten(0, -2).sum(0)
        return v, ladj + log_scale.sum()

    def _place(self, context: Tensor | None) -> Tensor:
        """m + A c, batch-last."""
        assert self.loc is not None
        place = self.loc.unsqueeze(-1)
        if self.shift is None or context is None:
            return place
        terms = with_products(context)
        return place + min(1.0, FAN_IN / len(terms)) * (self.shift @ terms)

    @torch.no_grad()
    def widen(self, log_modes: Tensor) -> None:
        """Take these logarithms of the widths of the modes of each field."""
        for spectrum, values in zip(self.spectra, log_modes, strict=True):
            assert isinstance(spectrum, LearnedSpectrum)
            spectrum.log_scale.copy_(values.reshape(spectrum.log_scale.shape) / WIDTH_RESPONSE)

    def _by_field(
        self, direction: Literal["forward", "inverse"], h: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale the modes of each field."""
        fields = h.reshape(*self.lattice, len(self.spectra), h.shape[-1]).unbind(-2)
        results = [
            getattr(spectrum, direction)(field, context)
            for spectrum, field in zip(self.spectra, fields, strict=True)
        ]
        scaled, ladjs = zip(*results, strict=True)
        return torch.stack(scaled, -2).reshape(h.shape), sum(ladjs[1:], ladjs[0])
