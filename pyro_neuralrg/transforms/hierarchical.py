# SPDX-License-Identifier: Apache-2.0
"""The hierarchical flow: a circuit of block bijectors as one change of variables x = g(z)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_neuralrg.arguments import check_choice, check_integer, check_type, check_values
from pyro_neuralrg.bases import NORMAL, StandardNormal, base_from_config
from pyro_neuralrg.lattice import Circuit, Layer, make_circuit
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.spectral import check_spectrum
from pyro_neuralrg.transforms.base import LatticeTransform, Pushed
from pyro_neuralrg.transforms.bijectors import BlockLayout, as_bijector, bijector_config
from pyro_neuralrg.transforms.coupling import Couplings
from pyro_neuralrg.transforms.coupling_sequence import (
    EAGER,
    CouplingSequence,
    compile_operations,
)
from pyro_neuralrg.transforms.fine import FineGivenCoarse
from pyro_neuralrg.transforms.fourier import CovarianceLayer, FourierLayer, VectorFourierLayer
from pyro_neuralrg.transforms.scales import (
    UpToScale,
    blocks_of_layer,
    features_of_blocks,
    grow,
    sites_of_layers,
)
from pyro_neuralrg.transforms.wavelets import (
    BlockRotation,
    check_wavelet,
    rotations_of_layers,
)

WEIGHTS = ("scale", "block", "shared")


class HierarchicalFlow(LatticeTransform):
    r"""x = g(z) from draws z of the base to a lattice field x (paper Fig. 1); back: ``flow.inv``.

    Its density :math:`\ln q(x) = \ln p(z) - \ln|\det \partial x/\partial z|` (paper Eq. 1) is
    that of :class:`~pyro_neuralrg.distributions.FlowDistribution`:

    >>> flow = hierarchical_flow((4, 4))
    >>> z = torch.randn(10, 4, 4)
    >>> x, ladj = flow.forward_and_ladj(z)
    >>> log_q = flow.base.log_prob(z, event_dim=2) - ladj

    The variable kept by a block sits on its first site, so that scale k lives on the sublattice of
    spacing b^k. :func:`hierarchical_flow` builds the usual flows, :meth:`build` all of them.

    Args:
        circuit: arrangement of the layers.
        bijector, weights, odd, wavelet, spectrum, base: as in :func:`hierarchical_flow`.
        context_dim: as of :class:`~pyro_neuralrg.transforms.BlockLayout`.
        spectrum_slopes: derivatives of the spectrum with respect to the first entries of the
            context, shape ``(entries,) + shape``, or None; of scalar fields.
        site_features: numbers of order one that tell the sites apart (an external field, say),
            shape ``(channels,)`` and the lattice's, which the networks of "neighbour" see; or None.
            A buffer: ``load_state_dict`` brings others. In an odd flow they must be even under
            x -> -x (bonds are, a field is not), and are not taken beside a context.
        covariance: of the Gaussian part, ``(N, N)`` of the N numbers of a field, in place of a
            spectrum (see :class:`~pyro_neuralrg.transforms.fourier.CovarianceLayer`); or None.
    """

    site_features: Tensor | None

    def __init__(
        self,
        circuit: Circuit,
        bijector: Any = "neighbour",
        *,
        weights: str = "scale",
        odd: bool = False,
        wavelet: str | None = None,
        spectrum: Tensor | None = None,
        base: StandardNormal = NORMAL,
        context_dim: int = 0,
        spectrum_slopes: Tensor | None = None,
        site_features: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__(circuit.field_shape)
        check_type("base", base, StandardNormal, "StandardNormal() or TwoModes(separation)")
        check_type("odd", odd, bool, "True or False")
        if spectrum is not None:
            check_spectrum(spectrum, circuit.boundary, circuit.shape, circuit.components)
            if covariance is not None:
                raise ValueError("covariance is given beside a spectrum; accepted: one of them")
        of_none = spectrum is None or not context_dim or circuit.components
        if spectrum_slopes is not None and of_none:
            raise ValueError(
                "spectrum_slopes is given; accepted: only beside a spectrum, in a conditional flow "
                "of a scalar field"
            )
        self.circuit = circuit
        self.bijector = as_bijector(bijector)
        self.weights = check_choice("weights", weights, WEIGHTS)
        self.odd = odd
        self.wavelet = check_wavelet(wavelet, circuit)
        self.context_dim = check_integer("context_dim", context_dim, 0)
        self.filled_up = getattr(self.bijector, "fills_up_blocks", False) and weights != "block"
        """One transform acts on all blocks of a layer, thinner ones filled up with zeros."""
        known = self._keep_site_features(site_features)
        shared: dict[Any, nn.Module] = {}
        self.layers = nn.ModuleList(
            self._build_layer(layer, features, shared)
            for layer, features in zip(circuit.layers, known, strict=True)
        )
        self._sites = sites_of_layers(circuit, self.filled_up)
        self._rotations = rotations_of_layers(circuit, self.wavelet)
        self._operations = EAGER
        self._sequences: dict[int, CouplingSequence] = {}
        self._couplings(None)
        self.gaussian: FourierLayer | VectorFourierLayer | CovarianceLayer | None = None
        if covariance is not None:
            self.gaussian = CovarianceLayer(covariance, self.shape)
        elif spectrum is not None and circuit.components:
            self.gaussian = VectorFourierLayer(spectrum, circuit.boundary)
        elif spectrum is not None:
            self.gaussian = FourierLayer(spectrum, circuit.boundary, spectrum_slopes)
        self.base = base if circuit.is_complete else NORMAL

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the field, of the lattice and the components of a vector field."""
        return self.circuit.field_shape

    def __repr__(self) -> str:
        given = [f"{name}={value}" for name, value in self._given().items()]
        return f"HierarchicalFlow({self.circuit.shape}, {self.circuit.name!r}, {', '.join(given)})"

    def _repr_html_(self) -> str:
        rows = {"lattice": self.circuit.shape, "circuit": self.circuit.name, **self._given()}
        count = sum(parameter.numel() for parameter in self.parameters())
        return html_table("HierarchicalFlow", {**rows, "parameters": count})

    def _given(self) -> dict[str, str]:
        """The bijector, and the options that are not the defaults."""
        circuit = self.circuit
        usual = make_circuit(circuit.name, circuit.shape, block=circuit.block)
        defaults: dict[str, Any] = {"block": 2, "depth": usual.depth, "boundary": "periodic"}
        defaults |= {"components": 0, "weights": "scale", "odd": False, "wavelet": None}
        defaults |= {"base": NORMAL, "context_dim": 0}
        given = {"bijector": repr(self.bijector)}
        for name, default in defaults.items():
            own = getattr(circuit if hasattr(circuit, name) else self, name)
            given |= {} if own == default else {name: repr(own)}
        return given if self.gaussian is None else {**given, self.gaussian.given_as: "..."}

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return (self.renormalize if inverse else self.generate)(h, context)

    def generate(
        self, h: Tensor, context: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """z to x, batch-last; from the field that enters layer ``stop``, if given."""
        h, ladj = self._through_layers(h, context, stop, inverse=False)
        if self.gaussian is not None:
            h, more = self.gaussian.forward(h, context)
            ladj = ladj + more
        return h, ladj

    def renormalize(
        self, h: Tensor, context: Tensor | None = None, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """x to z, batch-last; to the field that enters layer ``stop``, if given."""
        ladj = h.new_zeros(h.shape[-1])
        if self.gaussian is not None:
            h, ladj = self.gaussian.inverse(h, context)
        h, more = self._through_layers(h, context, stop, inverse=True)
        return h, ladj + more

    def push_score(
        self, h: Tensor, score: Tensor, context: Tensor | None = None, want_context: bool = False
    ) -> Pushed:
        want_context = want_context and context is not None
        h, ladj, score, of_context = self._push_through_layers(h, score, context, want_context)
        if self.gaussian is not None:
            h, more, score, of_gaussian = self.gaussian.push_score(h, score, context, want_context)
            ladj, of_context = ladj + more, _add_scores(of_context, of_gaussian)
        if want_context and of_context is None and context is not None:
            of_context = torch.zeros_like(context)
        return h, ladj, score, of_context

    def up_to_scale(self, scale: int) -> LatticeTransform:
        """x as a function of u: the field of scale k on its sublattice, finer latents elsewhere.

        At k = 0 u is the field under the Gaussian layer, at k = the number of decimators it is z.

        Example:
            >>> flow = hierarchical_flow((4, 4))
            >>> flow.up_to_scale(1).inv(torch.zeros(3, 4, 4)).shape
            torch.Size([3, 4, 4])
        """
        return UpToScale(self, scale)

    def conditional(self, coarse: Tensor, scale: int) -> FineGivenCoarse:
        """The fields whose field of one scale is given: see :class:`FineGivenCoarse`.

        Example:
            >>> flow = hierarchical_flow((4, 4))
            >>> flow.conditional(torch.zeros(2, 2), scale=1).sample((5,)).shape
            torch.Size([5, 4, 4])
        """
        return FineGivenCoarse(self, coarse, scale)

    def _through_layers(
        self, h: Tensor, context: Tensor | None, stop: int | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """All layers before ``stop`` (all, if None): the coarsest first, or last if inverse."""
        sequence = self._couplings(stop)
        if sequence is not None:
            return sequence.run(h, context, inverse)
        n, transforms = h.shape[-1], self._transforms(stop)
        rows, ladj = h.flatten(0, -2), h.new_zeros(n)
        for transform, sites in transforms if inverse else reversed(transforms):
            block = rows[sites.flatten()].view(*sites.shape, n)
            block, more = (transform.inverse if inverse else transform.forward)(block, context)
            rows = rows.index_copy(0, sites.flatten(), block.flatten(0, -2))
            ladj = ladj + more
        return rows.view(h.shape), ladj

    def _push_through_layers(
        self, h: Tensor, score: Tensor, context: Tensor | None, want_context: bool
    ) -> Pushed:
        """All layers with the score, which is cut and joined as the field is."""
        sequence = self._couplings(None)
        if sequence is not None:
            return sequence.push_score(h, score, context, want_context)
        rows, scores = h.flatten(0, -2), score.flatten(0, -2)
        ladj, of_context = h.new_zeros(h.shape[-1]), None
        for transform, sites in reversed(self._transforms(None)):
            at, shape = sites.flatten(), (*sites.shape, h.shape[-1])
            given = rows[at].view(shape), scores[at].view(shape)
            block, more, of_block, of_layer = transform.push_score(*given, context, want_context)
            rows = rows.index_copy(0, at, block.flatten(0, -2))
            scores = scores.index_copy(0, at, of_block.flatten(0, -2))
            ladj, of_context = ladj + more, _add_scores(of_context, of_layer)
        return rows.view(h.shape), ladj, scores.view(h.shape), of_context

    def _transforms(self, stop: int | None) -> list[tuple[Any, Tensor]]:
        """The transforms of the layers before ``stop``, each with the sites that it acts on."""
        found: list[tuple[Any, Tensor]] = []
        parts = zip(self.layers, self._sites, self._rotations, strict=True)
        for transforms, of_layer, rotations in itertools.islice(parts, stop):
            own = zip(cast("nn.ModuleList", transforms), of_layer, strict=True)
            found += rotations  # couplings act on sums and differences
            found += [pair for pair in own if isinstance(pair[0], LatticeTransform)]
        return found

    def _couplings(self, stop: int | None) -> CouplingSequence | None:
        """The layers before ``stop`` as one sequence of couplings, if they are such."""
        stop = len(self.layers) if stop is None else stop
        transforms = self._transforms(stop)
        sequence = self._sequences.get(stop)
        present = tuple(transform for transform, _ in reversed(transforms))
        if sequence is None or not sequence.fits(present):
            if not present or not all(isinstance(t, Couplings | BlockRotation) for t in present):
                return None
            layers = [(one, sites.flatten(1)) for one, sites in reversed(transforms)]
            with torch.inference_mode(False):  # its tables outlive this call
                sequence = CouplingSequence(layers, math.prod(self.shape))
            self._sequences[stop] = sequence
        if sequence.index.device != next(self.parameters()).device:
            sequence.to(next(self.parameters()).device)
        sequence.operations = self._operations
        return sequence

    def compile(self, **options: Any) -> None:
        """Run the couplings through ``torch.compile`` on accelerators; copies are not compiled.

        On a CPU they are compiled anyway. Without a compiler all goes on, with a warning.
        """
        self._operations = compile_operations(**options)

    def grow(self, spectrum: Tensor | None = None) -> HierarchicalFlow:
        """A flow on a lattice with sides ``block`` times as long, that begins with these weights.

        Finest to finest, coarsest to coarsest; the new scale between begins as a copy of the next
        finer one (paper, note [53]). Train it without cooling, ``Schedule(cooling=None)``.

        Args:
            spectrum: for the Gaussian layer of the larger lattice, if this flow has one.

        Raises:
            ValueError: if each block has weights of its own, or the spectrum does not fit.

        Example:
            >>> hierarchical_flow((8, 8)).grow().shape
            (16, 16)
        """
        return grow(self, spectrum)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch's, whose error becomes one sentence with the sizes of both flows."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            given, own = map(_size_of_state, (state_dict, self.state_dict()))
            raise RuntimeError(
                f"state_dict has {given}, this flow {own}; accepted: those of a flow made as this "
                f"one, {self!r} (load(path) makes a saved flow anew)"
            ) from error

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._show_site_features()

    def _keep_site_features(self, features: Tensor | None) -> list[Tensor | None]:
        """For each layer the features of its blocks, or None."""
        self.register_buffer("site_features", None)
        if features is None:
            return [None] * len(self.circuit.layers)
        in_context = self.odd and self.context_dim
        if in_context or not getattr(self.bijector, "sees_sites", False):
            seen = "a context and odd=True" if in_context else f"bijector is {self.bijector!r}"
            raise ValueError(
                f"site_features is given and {seen}; accepted: a bijector that sees them, such as "
                "'neighbour', and in an odd flow no context"
            )
        lattice = self.circuit.shape
        accepted = f"finite floating numbers of shape (channels, {str(lattice)[1:]}"
        check_values("site_features", features, lattice, accepted)
        fits = features.dim() == 1 + len(lattice) and len(features) > 0
        if not fits or not bool(features.isfinite().all()):
            seen = "an entry inf or nan" if fits else f"shape {tuple(features.shape)}"
            raise ValueError(f"site_features has {seen}; accepted: {accepted}")
        self.site_features = features.detach()
        return list(features_of_blocks(self.site_features, self.circuit))

    def _show_site_features(self) -> None:
        """Let all layers see ``site_features`` as they are now."""
        if self.site_features is None:
            return
        known = features_of_blocks(self.site_features, self.circuit)
        for transforms, features in zip(self.layers, known, strict=True):
            for transform in cast("nn.ModuleList", transforms):
                if isinstance(transform, Couplings):
                    transform.see_features(features)

    def _build_layer(
        self, layer: Layer, features: Tensor | None, shared: dict[Any, nn.Module]
    ) -> nn.ModuleList:
        """The transforms of a layer; those that share weights take the parameters in shared."""
        modules: list[nn.Module] = []
        for block, count in blocks_of_layer(layer, self.filled_up):
            options = self.odd, self.circuit.boundary, self.weights == "block", self.context_dim
            layout = BlockLayout(block, count, *options, features, self.circuit.components)
            if layout.size == 1:
                modules.append(nn.Identity())
                continue
            transform: nn.Module = self.bijector.build(layout)
            if self.weights == "shared":
                source = shared.setdefault((layer.kind, block), transform)
                for mine, theirs in zip(transform.modules(), source.modules(), strict=True):
                    mine._parameters.update(theirs._parameters)
            modules.append(transform)
        return nn.ModuleList(modules)

    @property
    def config(self) -> dict[str, Any]:
        """Options for :meth:`from_config` as JSON data; tensors are in ``state_dict()``.

        A ValueError for blocks from a user's own factory.
        """
        circuit, given_as = self.circuit, getattr(self.gaussian, "given_as", None)
        of_circuit = ("block", "depth", "boundary", "components")
        return {
            "shape": list(circuit.shape),
            "circuit": circuit.name,
            **{name: getattr(circuit, name) for name in of_circuit},
            "bijector": bijector_config(self.bijector),
            **{name: getattr(self, name) for name in ("weights", "odd", "wavelet", "context_dim")},
            "base": self.base.config,
            **{name: given_as == name for name in ("spectrum", "covariance")},
            "spectrum_slopes": _length(getattr(self.gaussian, "slopes", None)),
            "site_features": _length(self.site_features),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HierarchicalFlow:
        """Build the flow that ``config`` names; load its weights with ``load_state_dict``."""
        options = dict(config)
        shape = options.pop("shape")
        options["base"] = base_from_config(options["base"])
        number = options.get("components", 0)  # files from before vector fields have none
        if options["spectrum"]:
            ones = torch.ones(tuple(shape))
            options["spectrum"] = ones[..., None, None] * torch.eye(number) if number else ones
        else:
            options["spectrum"] = None
        if options.pop("covariance", False):
            options["covariance"] = torch.eye(math.prod(shape) * max(1, number))
        for name in ("spectrum_slopes", "site_features"):
            number = options.get(name)
            options[name] = torch.zeros(number, *shape) if number else None
        return cls.build(shape, **options)

    @classmethod
    def build(
        cls,
        shape: Iterable[int],
        circuit: str = "mera",
        bijector: Any = "neighbour",
        *,
        block: int = 2,
        depth: int | None = None,
        boundary: str = "periodic",
        components: int = 0,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> HierarchicalFlow:
        """Build a flow as :func:`hierarchical_flow`, with a block side and all options of this."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype is {dtype!r}; accepted: a floating dtype such as torch.float64")
        layers = make_circuit(
            circuit, shape, block=block, depth=depth, boundary=boundary, components=components
        )
        flow = cls(layers, bijector, **options).to(dtype)
        flow._show_site_features()  # in its precision
        return flow


def _size_of_state(state: Mapping[str, Any]) -> str:
    """Layers and numbers of a ``state_dict``, in words."""
    layers = {name.split(".")[1] for name in state if name.startswith("layers.")}
    numbers = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    return f"{len(layers)} layers of {numbers} numbers in all"


def _length(tensor: Tensor | None) -> int:
    return 0 if tensor is None else len(tensor)


def _add_scores(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be None."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def hierarchical_flow(
    shape: Iterable[int],
    circuit: str = "mera",
    *,
    bijector: Any = "neighbour",
    depth: int | None = None,
    boundary: str = "periodic",
    weights: str = "scale",
    odd: bool = False,
    wavelet: str | None = None,
    spectrum: Tensor | None = None,
    base: StandardNormal = NORMAL,
    components: int = 0,
    dtype: torch.dtype | None = None,
) -> HierarchicalFlow:
    """Build a :class:`HierarchicalFlow`; ``target.flow()`` fills in what a target knows.

    Args:
        shape: lattice shape, one to three sides >= 1.
        circuit: "mera", "tree" or "brickwork"; see :func:`~pyro_neuralrg.lattice.make_circuit`.
        bijector: "neighbour" (couplings that see the neighbouring blocks), "realnvp" (the paper's
            block), a factory such as ``RealNVP(layers=4)``, or a callable ``size ->
            TransformModule``.
        depth: number of scales, or of layers of a brickwork; default: all.
        boundary: "periodic" or "open".
        weights: one set per "scale" (and layer), per "block", or "shared" by all scales (paper,
            note [53]).
        odd: g(-z) = -g(z), for targets with the symmetry x -> -x.
        wavelet: "haar": every decimator keeps the sum of its block over the root of the number of
            its sites, and what the bijectors do is a correction, so that the collective variables
            are block spins (paper Fig. 4a), of blocks longer than 2 by the orthonormal cosine
            transform; None: it keeps the block's first site. What it costs in
            accuracy is measured by ``tests/benchmarks/collective.py``.
        spectrum: eigenvalues of the Gaussian part's covariance (see
            :class:`~pyro_neuralrg.transforms.fourier.FourierLayer`), or None.
        base: density p(z) of the latents; for targets that may have two phases
            :class:`~pyro_neuralrg.bases.TwoModes` of the coarsest variable. Circuits that leave
            more than one coarsest variable have normals.
        components: of a vector field at each site, which couplings mix: fields then have the shape
            ``shape + (components,)``; 0 for a scalar field.
        dtype: of the parameters; torch's default dtype if None.

    Example:
        >>> flow = hierarchical_flow((8, 8), odd=True)
        >>> flow(torch.randn(3, 8, 8)).shape
        torch.Size([3, 8, 8])
    """
    return HierarchicalFlow.build(**locals())  # all of the arguments, and nothing else
