# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical flow: a circuit of block bijectors as one change of variables x = g(z)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.bases import NORMAL, StandardNormal, base_from_config
from pyro_neuralrg.lattice import Circuit, make_circuit
from pyro_neuralrg.transforms.base import LatticeTransform
from pyro_neuralrg.transforms.bijectors import Bijector, as_bijector, bijector_config
from pyro_neuralrg.transforms.building import build_layer, sites_of_layers
from pyro_neuralrg.transforms.coupling import Couplings
from pyro_neuralrg.transforms.coupling_sequence import CouplingSequence
from pyro_neuralrg.transforms.fourier import FourierLayer
from pyro_neuralrg.transforms.growth import grow
from pyro_neuralrg.transforms.scales import UpToScale
from pyro_neuralrg.transforms.sites import (
    check_site_features,
    features_of_blocks,
    show_site_features,
    with_site_features,
)

__all__ = ["WEIGHTS", "HierarchicalFlow", "hierarchical_flow"]

WEIGHTS = ("scale", "block", "shared")


class HierarchicalFlow(LatticeTransform):
    r"""x = g(z) from draws z of the base to a lattice field x (paper Fig. 1); back: ``flow.inv``.

    With p the density of the base, and exactly (paper Eq. 1),

    .. math:: \ln q(x) = \ln p(z) - \ln|\det \partial x/\partial z|

    as :class:`~pyro_neuralrg.distributions.FlowDistribution` computes it; ``FlowDistribution(flow)
    .rsample()`` draws of q, which ``flow(torch.randn(...))`` are only if the base is normal.

    >>> flow = hierarchical_flow((4, 4))
    >>> z = torch.randn(10, 4, 4)
    >>> x, ladj = flow.forward_and_ladj(z)
    >>> log_q = flow.base.log_prob(z, event_dim=2) - ladj

    Latents have the shape of the field: the variable kept by a block sits on the block's first
    site, so that scale k lives on the sublattice of spacing b^k. Build one with
    :func:`hierarchical_flow`.

    Args:
        circuit: the arrangement of the layers.
        bijector: factory of what acts on the blocks.
        weights: "scale", "block" or "shared".
        odd: g(-z) = -g(z), so that q(x) = q(-x) exactly.
        spectrum: eigenvalues for a fixed Gaussian layer next to the field, or None.
        base: density of z, :class:`~pyro_neuralrg.bases.StandardNormal` or
            :class:`~pyro_neuralrg.bases.TwoModes`. Circuits that leave more than one coarsest
            variable have normals.
        context_dim: features of a context that the networks take besides; 0 for none. See
            :class:`~pyro_neuralrg.transforms.conditional.ConditionalHierarchicalFlow`.
        spectrum_slopes: how the spectrum depends on the context, or None, see
            :class:`~pyro_neuralrg.transforms.fourier.FourierLayer`.
        site_features: what the networks are to know of each site, shape ``(channels,) + shape``, or
            None.
    """

    site_features: Tensor | None

    def __init__(
        self,
        circuit: Circuit,
        bijector: Bijector,
        *,
        weights: str = "scale",
        odd: bool = False,
        spectrum: Tensor | None = None,
        base: StandardNormal = NORMAL,
        context_dim: int = 0,
        spectrum_slopes: Tensor | None = None,
        site_features: Tensor | None = None,
    ) -> None:
        super().__init__(circuit.shape)
        if isinstance(spectrum, Tensor) and tuple(spectrum.shape) != circuit.shape:
            raise ValueError(
                f"spectrum has shape {tuple(spectrum.shape)}; "
                f"accepted: the lattice shape {circuit.shape}"
            )
        self.circuit = circuit
        self.bijector = bijector
        self.weights = weights
        self.odd = odd
        self.context_dim = context_dim
        known = self._keep_site_features(site_features)
        shared: dict[Any, nn.Module] = {}
        self.layers = nn.ModuleList(
            build_layer(self, layer, features, shared)
            for layer, features in zip(circuit.layers, known, strict=True)
        )
        self._sites = sites_of_layers(self)
        self._sequences: dict[int, CouplingSequence] = {}
        self._couplings(None)
        if spectrum_slopes is not None and (spectrum is None or not context_dim):
            raise ValueError(
                "spectrum_slopes is given; accepted: only beside a spectrum, in a conditional flow"
            )
        self.gaussian = (
            None if spectrum is None else FourierLayer(spectrum, circuit.boundary, spectrum_slopes)
        )
        self.base = base if circuit.is_complete else NORMAL

    @property
    def shape(self) -> tuple[int, ...]:
        """The lattice shape, which is the event shape of x and of z."""
        return self.circuit.shape

    # The flow

    def generate(
        self, h: Tensor, context: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """z to x, batch-last; from the field that enters layer ``stop``, if given."""
        h, ladj = self._generate_layers(h, context, stop)
        if self.gaussian is not None:
            h, more = self.gaussian.generate(h, context)
            ladj = ladj + more
        return h, ladj

    def renormalize(
        self, h: Tensor, context: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """x to z, batch-last; to the field that enters layer ``stop``, if given."""
        ladj = h.new_zeros(h.shape[-1])
        if self.gaussian is not None:
            h, ladj = self.gaussian.renormalize(h, context)
        h, more = self._renormalize_layers(h, context, stop)
        return h, ladj + more

    def generate_with_score(
        self,
        h: Tensor,
        score: Tensor,
        context: Tensor | None = None,
        want_context: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z to x with the score of q, batch-last."""
        want_context = want_context and context is not None
        h, ladj, score, of_context = self._generate_layers_with_score(
            h, score, context, want_context
        )
        if self.gaussian is not None:
            h, more, score, of_gaussian = self.gaussian.generate_with_score(
                h, score, context, want_context
            )
            ladj, of_context = ladj + more, _add_scores(of_context, of_gaussian)
        if want_context and of_context is None and context is not None:
            of_context = torch.zeros_like(context)
        return h, ladj, score, of_context

    def up_to_scale(self, scale: int) -> LatticeTransform:
        """x as a function of u: the field of scale k on its sublattice, finer latents elsewhere.

        Scales run from 0, where u is the field under the Gaussian layer, to the number of
        decimators, where u is z. See
        :class:`~pyro_neuralrg.transforms.scales.UpToScale`.

        Raises:
            TypeError, ValueError: if ``scale`` is no such integer.

        Example:
            >>> flow = hierarchical_flow((4, 4))
            >>> flow.up_to_scale(1).inv(torch.zeros(3, 4, 4)).shape
            torch.Size([3, 4, 4])
        """
        return UpToScale(self, scale)

    def _generate_layers(
        self, h: Tensor, context: Tensor | None, stop: int | None
    ) -> tuple[Tensor, Tensor]:
        """All layers before ``stop`` (all, if None), the coarsest first."""
        rows, n = h.flatten(0, -2), h.shape[-1]
        sequence = self._couplings(stop)
        if sequence is not None:
            rows, ladj = sequence.generate(rows, context)
            return rows.view(h.shape), ladj
        ladj = h.new_zeros(n)
        for transform, sites in reversed(self._transforms(stop)):
            block = rows[sites.flatten()].view(*sites.shape, n)
            block, more = transform.generate(block, context)
            rows = rows.index_copy(0, sites.flatten(), block.flatten(0, -2))
            ladj = ladj + more
        return rows.view(h.shape), ladj

    def _generate_layers_with_score(
        self, h: Tensor, score: Tensor, context: Tensor | None, want_context: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """All layers with the score, which is cut and joined as the field is."""
        rows, scores, n = h.flatten(0, -2), score.flatten(0, -2), h.shape[-1]
        sequence = self._couplings(None)
        if sequence is not None:
            rows, ladj, scores, of_context = sequence.generate_with_score(
                rows, scores, context, want_context
            )
            return rows.view(h.shape), ladj, scores.view(h.shape), of_context
        ladj, of_context = h.new_zeros(n), None
        for transform, sites in reversed(self._transforms(None)):
            at, shape = sites.flatten(), (*sites.shape, n)
            block, more, of_block, of_layer = transform.generate_with_score(
                rows[at].view(shape), scores[at].view(shape), context, want_context
            )
            rows = rows.index_copy(0, at, block.flatten(0, -2))
            scores = scores.index_copy(0, at, of_block.flatten(0, -2))
            ladj, of_context = ladj + more, _add_scores(of_context, of_layer)
        return rows.view(h.shape), ladj, scores.view(h.shape), of_context

    def _renormalize_layers(
        self, h: Tensor, context: Tensor | None, stop: int | None
    ) -> tuple[Tensor, Tensor]:
        """Undo :meth:`_generate_layers`: the finest layer first."""
        rows, n = h.flatten(0, -2), h.shape[-1]
        sequence = self._couplings(stop)
        if sequence is not None:
            rows, ladj = sequence.renormalize(rows, context)
            return rows.view(h.shape), ladj
        ladj = h.new_zeros(n)
        for transform, sites in self._transforms(stop):
            block = rows[sites.flatten()].view(*sites.shape, n)
            block, more = transform.renormalize(block, context)
            rows = rows.index_copy(0, sites.flatten(), block.flatten(0, -2))
            ladj = ladj + more
        return rows.view(h.shape), ladj

    def _transforms(self, stop: int | None) -> list[tuple[Any, Tensor]]:
        """The transforms of the layers before ``stop``, each with the sites that it acts on."""
        pairs = zip(list(self.layers)[:stop], self._sites[:stop], strict=True)
        return [
            (transform, sites)
            for transforms, of_layer in pairs
            for transform, sites in zip(cast("nn.ModuleList", transforms), of_layer, strict=True)
            if isinstance(transform, LatticeTransform)
        ]

    def _couplings(self, stop: int | None) -> CouplingSequence | None:
        """The layers before ``stop`` as one sequence of couplings, if they are such."""
        stop = len(self.layers) if stop is None else stop
        transforms = self._transforms(stop)
        sequence = self._sequences.get(stop)
        present = tuple(transform for transform, _ in reversed(transforms))
        if sequence is None or sequence.layers != present:
            if not present or not all(isinstance(one, Couplings) for one in present):
                return None
            layers = [(one, sites.flatten(1)) for one, sites in reversed(transforms)]
            with torch.inference_mode(False):  # its tables outlive this call
                sequence = CouplingSequence(layers, math.prod(self.shape))
            self._sequences[stop] = sequence
        if sequence.index.device != next(self.parameters()).device:
            sequence.to(next(self.parameters()).device)
        return sequence

    # Construction

    def grow(self, spectrum: Tensor | None = None) -> HierarchicalFlow:
        """A flow on a lattice with sides ``block`` times as long, that begins with these weights.

        Scales are carried over, finest to finest, coarsest to coarsest, and the new one between
        begins as a copy of the next finer one (see
        :func:`~pyro_neuralrg.transforms.growth.copy_scales`); at a critical point all scales are
        alike (paper, note [53]). Train it further without cooling,
        ``fit(..., schedule=Schedule(cooling=None))``.

        Args:
            spectrum: for the fixed Gaussian layer of the larger lattice, needed if this flow has
                one.

        Raises:
            ValueError: if each block has weights of its own, or the spectrum is missing or has
                another shape.

        Example:
            >>> flow = hierarchical_flow((8, 8))
            >>> flow.grow().shape
            (16, 16)
        """
        return grow(self, spectrum)

    def with_site_features(self, site_features: Tensor) -> HierarchicalFlow:
        """A copy whose networks, with these very weights, see other features of the sites.

        What has been learned of one sample of an inhomogeneous lattice is a start for another.

        Args:
            site_features: of the shape of those that the flow has.

        Raises:
            ValueError: if it has none, or they have another shape or are not finite.
            TypeError: if they are no floating tensor.

        Example:
            >>> flow = hierarchical_flow((4, 4), site_features=torch.randn(1, 4, 4))
            >>> flow.with_site_features(torch.zeros(1, 4, 4))(torch.randn(2, 4, 4)).shape
            torch.Size([2, 4, 4])
        """
        return with_site_features(self, site_features)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        show_site_features(self)

    def _keep_site_features(self, features: Tensor | None) -> list[Tensor | None]:
        """For each layer the features of its blocks, or None."""
        self.register_buffer("site_features", None)
        if features is None:
            return [None] * len(self.circuit.layers)
        if self.odd:
            raise ValueError("site_features are given and odd is True; accepted: odd=False")
        if not getattr(self.bijector, "sees_sites", False):
            raise ValueError(
                f"site_features are given, and the bijector is {self.bijector!r}; accepted: one "
                "that sees them, such as 'neighbour'"
            )
        self.site_features = check_site_features(features, self.shape)
        return list(features_of_blocks(self.site_features, self.circuit))

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs to build this flow again, as JSON data.

        Tensors, and with them the dtype, are in ``state_dict()``.

        Raises:
            ValueError: if the blocks come from a factory that is not ours.
        """
        return {
            "shape": list(self.shape),
            "circuit": self.circuit.name,
            "block": self.circuit.block,
            "depth": self.circuit.depth,
            "boundary": self.circuit.boundary,
            "bijector": bijector_config(self.bijector),
            "weights": self.weights,
            "odd": self.odd,
            "base": self.base.config,
            "context_dim": self.context_dim,
            "spectrum": self.gaussian is not None,
            **self._rare_config(),
        }

    def _rare_config(self) -> dict[str, Any]:
        """Only where there are such, so that other flows are named as they always were."""
        slopes = None if self.gaussian is None else self.gaussian.slopes
        rare = {"spectrum_slopes": slopes, "site_features": self.site_features}
        return {name: len(tensor) for name, tensor in rare.items() if tensor is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HierarchicalFlow:
        """Build the flow that ``config`` names; load its weights with ``load_state_dict``."""
        options = dict(config)
        shape = options.pop("shape")
        options["base"] = base_from_config(options["base"])
        if options.pop("spectrum"):
            options["spectrum"] = torch.ones(tuple(shape), dtype=torch.get_default_dtype())
        for name in ("spectrum_slopes", "site_features"):
            if options.get(name) is not None:
                options[name] = torch.zeros(options[name], *shape)
        return hierarchical_flow(shape, **options)


def _add_scores(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be none."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def hierarchical_flow(
    shape: Iterable[int],
    circuit: str = "mera",
    *,
    bijector: Any = "neighbour",
    block: int = 2,
    depth: int | None = None,
    boundary: str = "periodic",
    weights: str = "scale",
    odd: bool = False,
    spectrum: Tensor | None = None,
    base: StandardNormal = NORMAL,
    context_dim: int = 0,
    spectrum_slopes: Tensor | None = None,
    site_features: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> HierarchicalFlow:
    """Build a :class:`HierarchicalFlow`.

    What it may know of its target is ``odd``, ``spectrum``, ``base`` and ``site_features``;
    ``target.flow()`` fills them in.

    Args:
        shape: lattice shape, one to three sides >= 1.
        circuit: "mera", "tree" or "brickwork"; see :func:`~pyro_neuralrg.lattice.make_circuit`.
        bijector: "neighbour" (couplings that see the neighbouring blocks), "realnvp" (the paper's
            block), "linear" (a matrix), a factory of :mod:`~pyro_neuralrg.transforms.bijectors`
            such as ``RealNVP(layers=4)``, or a callable ``size -> TransformModule``.
        block: block side b.
        depth: number of scales, or of layers of a brickwork; default: all.
        boundary: "periodic" or "open".
        weights: one set per "scale" (and layer), per "block", or "shared" by all scales (paper,
            note [53]).
        odd: g(-z) = -g(z), for targets with the symmetry x -> -x.
        spectrum: eigenvalues of the Gaussian part's covariance (see
            :class:`~pyro_neuralrg.transforms.fourier.FourierLayer`), or None.
        base: density p(z) of the latents; for targets that may have two phases
            :class:`~pyro_neuralrg.bases.TwoModes` of the coarsest variable. Circuits that leave
            more than one coarsest variable have normals.
        context_dim: features of a context that the networks can take, for
            :func:`~pyro_neuralrg.transforms.conditional_hierarchical_flow`; 0 for none.
        spectrum_slopes: derivatives of the spectrum with respect to the first entries of the
            context, shape ``(entries,) + shape``; None: the same spectrum for every context.
        site_features: numbers of order one that tell the sites of an inhomogeneous lattice apart
            (an external field, say), shape ``(channels,) + shape``; the networks of "neighbour"
            see those of their neighbourhood, on coarse scales sums over blocks. Without, all blocks
            of a layer are treated alike. None for none.
        dtype: of the parameters; torch's default dtype if None.

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.

    Example:
        >>> flow = hierarchical_flow((8, 8), odd=True)
        >>> flow(torch.randn(3, 8, 8)).shape
        torch.Size([3, 8, 8])
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; accepted: {', '.join(WEIGHTS)}")
    context_dim = check_integer("context_dim", context_dim, 0)
    if not isinstance(base, StandardNormal):
        raise TypeError(
            f"base is {base!r}; accepted: StandardNormal() or TwoModes(separation), of "
            "pyro_neuralrg.distributions"
        )
    if not isinstance(odd, bool):
        raise TypeError(f"odd is {odd!r}; accepted: True or False")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}; accepted: a floating dtype such as torch.float64")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    arrangement = make_circuit(circuit, shape, block=block, depth=depth, boundary=boundary)
    if site_features is not None:
        site_features = check_site_features(site_features, arrangement.shape).to(dtype)
    flow = HierarchicalFlow(
        arrangement,
        as_bijector(bijector),
        weights=weights,
        odd=odd,
        spectrum=spectrum,
        base=base,
        context_dim=context_dim,
        spectrum_slopes=spectrum_slopes,
        site_features=site_features,
    )
    return flow.to(dtype)
