# SPDX-License-Identifier: Apache-2.0
"""Named transforms: a new bijector, circuit or option adds one line here and gets every law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.spectral import neighbour_spectrum
from pyro_neuralrg.transforms import (
    CovarianceLayer,
    FourierLayer,
    HierarchicalFlow,
    LatticeTransform,
    LayerFactory,
    LearnedSpectrum,
    Neighbour,
    RealNVP,
    VectorFourierLayer,
    conditional_hierarchical_flow,
    hierarchical_flow,
    neighbour_coupling,
    realnvp_block,
)

NEIGHBOUR = Neighbour(layers=3, hidden=(5,))
REALNVP = RealNVP(layers=3, hidden=(5, 4))
CONTEXT_DIM, FEATURES = 2, 3
# The heights of steps answer ten times as much to their parameters as anything else.
TANH_SPREAD = 0.1


@dataclass(frozen=True)
class Entry:
    """One transform under the laws.

    Attributes:
        shape: its event shape.
        make: constructor, in torch's default dtype.
        odd: it commutes with x -> -x.
        ours: built of our own parts, so that vmap works.
        starts_near_identity: as our own bijectors do when nothing colours the noise.
        is_flow: a HierarchicalFlow.
        spread: how far the laws move the parameters from their start.
    """

    shape: tuple[int, ...]
    make: Callable[..., LatticeTransform]
    odd: bool = False
    ours: bool = True
    starts_near_identity: bool = True
    is_flow: bool = False
    spread: float = 0.25


def flow(shape: tuple[int, ...], circuit: str = "mera", **options: Any) -> Entry:
    """A hierarchical flow of small networks."""
    options = {"bijector": NEIGHBOUR, **options}
    near = not {"spectrum", "covariance", "wavelet"} & set(options)
    if "spectrum" in options:
        boundary = options["spectrum"]
        options |= {"spectrum": free_spectrum(shape, boundary), "boundary": boundary}
    return Entry(
        shape,
        partial(HierarchicalFlow.build, shape, circuit, **options),
        odd=options.get("odd", False),
        starts_near_identity=near,
        is_flow=True,
        spread=0.25 if isinstance(options["bijector"], RealNVP) else TANH_SPREAD,
    )


def vector(lattice: tuple[int, ...], components: int, **options: Any) -> Entry:
    """A hierarchical flow of a vector field."""
    options = {"bijector": NEIGHBOUR, **options}
    near = not {"spectrum", "covariance", "wavelet"} & set(options)
    return Entry(
        (*lattice, components),
        partial(HierarchicalFlow.build, lattice, components=components, **options),
        odd=options.get("odd", False),
        starts_near_identity=near,
        is_flow=True,
        spread=0.25 if isinstance(options["bijector"], RealNVP) else TANH_SPREAD,
    )


def stiff(lattice: tuple[int, ...], components: int) -> Tensor:
    """Matrices of the modes of a vector field, complex ones, whose components differ."""
    kernel = 0.3 * waves(*lattice, components, components).double()
    roots = torch.fft.fftn(kernel, dim=tuple(range(len(lattice))))
    return roots @ roots.mH + torch.eye(components)


def foreign(shape: tuple[int, ...], bijector: Any, **options: Any) -> Entry:
    """A hierarchical flow of blocks from elsewhere."""
    make = partial(HierarchicalFlow.build, shape, bijector=bijector, **options)
    return Entry(shape, make, ours=False, starts_near_identity=False, is_flow=True)


def free_spectrum(shape: tuple[int, ...], boundary: str = "periodic") -> Tensor:
    """Eigenvalues of (1 - Laplacian / 2)^-1, which differ from mode to mode."""
    return 1 / (1 + len(shape) - neighbour_spectrum(shape, (0.5,) * len(shape), boundary))


def waves(*shape: int) -> Tensor:
    """Features of sites that differ from site to site, without a random number."""
    return torch.arange(1.0, 1.0 + math.prod(shape)).sin().reshape(shape)


def covariance(sites: int) -> Tensor:
    """Of a field whose sites are all unlike."""
    roots = torch.eye(sites, dtype=torch.float64) + 0.3 * waves(sites, sites).double()
    return roots @ roots.T


def two_couplings(size: int) -> nn.Module:
    """A block of several of Pyro's transforms, one of them without parameters."""
    return pyro_transforms.ComposeTransformModule(
        [
            pyro_transforms.affine_coupling(size, hidden_dims=[5]),
            pyro_transforms.Permute(torch.arange(size - 1, -1, -1)),
            pyro_transforms.affine_coupling(size, hidden_dims=[5]),
        ]
    )


class Scale(TransformModule):
    """An elementwise transform: event_dim 0, a log-determinant for each entry."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(size))

    def _call(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.expand(x.shape)


def mix_last_axis(size: int, count: tuple[int, ...]) -> TransformModule:
    """A layer of fewer event dimensions than (size, *count), with a log-determinant of shape ()."""
    return pyro_transforms.matrix_exponential(count[-1], iterations=20)


def mix_sites(size: int, count: tuple[int, ...]) -> TransformModule:
    """A layer that mixes the sites of all blocks alike, event shape (size, rows, columns)."""
    return pyro_transforms.generalized_channel_permute(channels=size)


def wide_layer(size: int, count: tuple[int, ...]) -> TransformModule:
    """One of our own transforms as a user's layer."""
    return neighbour_coupling((size,) + (1,) * (len(count) - 1), count, layers=2, hidden=(4,))


conditional_coupling = partial(
    pyro_transforms.conditional_affine_coupling,
    context_dim=CONTEXT_DIM + FEATURES,
    hidden_dims=[5],
)
small_coupling = partial(pyro_transforms.affine_coupling, hidden_dims=[5])
small_spline = partial(pyro_transforms.spline_coupling, hidden_dims=[5], count_bins=3)
# of order 8, Pyro's default, the series has an error of its own
long_exponential = partial(pyro_transforms.matrix_exponential, iterations=20)


def couplings(block: tuple[int, ...], count: tuple[int, ...], **options: Any) -> Entry:
    make = partial(
        neighbour_coupling, block, count, **{"layers": 4, "hidden": (5,), "odd": True, **options}
    )
    odd = options.get("odd", True)
    return Entry((math.prod(block), *count), make, odd=odd, spread=TANH_SPREAD)


def paper_block(size: int, **options: Any) -> Entry:
    make = partial(realnvp_block, size, **{"layers": 4, "hidden": (5, 4), **options})
    return Entry((size,), make, odd=options.get("odd", False))


def conditioned_flow(shape: tuple[int, ...], **options: Any) -> LatticeTransform:
    """A conditional flow at one context, which the laws then take for an ordinary one."""
    flow = conditional_hierarchical_flow(shape, CONTEXT_DIM, features=FEATURES, **options)
    return flow.condition(torch.tensor([0.7, -1.3]))


def conditioned(shape: tuple[int, ...], bijector: Any, **options: Any) -> Entry:
    own = not callable(bijector)
    make = partial(conditioned_flow, shape, bijector=bijector, **options)
    odd = options.get("odd", False)
    near = own and "wavelet" not in options
    return Entry(shape, make, odd, own, starts_near_identity=near, spread=TANH_SPREAD)


def follows_spectrum(shape: tuple[int, ...], boundary: str) -> Entry:
    """A conditional flow whose Gaussian layer depends on the context."""
    spectrum = free_spectrum(shape, boundary)
    slopes = torch.stack([0.3 * spectrum, -0.2 * spectrum.square() / spectrum.max()])

    def make() -> LatticeTransform:
        given = {"spectrum": spectrum, "spectrum_slopes": slopes, "boundary": boundary}
        return conditioned_flow(shape, bijector=NEIGHBOUR, odd=True, base=TwoModes(2.0), **given)

    return Entry(shape, make, odd=True, starts_near_identity=False, spread=TANH_SPREAD)


def fourier(shape: tuple[int, ...], boundary: str) -> Entry:
    def make() -> LatticeTransform:
        return FourierLayer(free_spectrum(shape, boundary).to(torch.get_default_dtype()), boundary)

    return Entry(shape, make, odd=True, starts_near_identity=False)


def vector_fourier(spectrum: Tensor, boundary: str) -> Entry:
    def make() -> LatticeTransform:
        dtype = torch.get_default_dtype()
        dtype = dtype.to_complex() if spectrum.is_complex() else dtype
        return VectorFourierLayer(spectrum.to(dtype), boundary)

    return Entry((*spectrum.shape[:-1],), make, odd=True, starts_near_identity=False)


def all_unlike() -> LatticeTransform:
    return CovarianceLayer(covariance(6).to(torch.get_default_dtype()), (2, 3))


ENTRIES: dict[str, Entry] = {
    # circuits, dimensions, shapes
    "defaults": Entry((4, 4), lambda: hierarchical_flow((4, 4)), is_flow=True, spread=0.03),
    "mera-1d": flow((8,)),
    "mera-2d": flow((4, 4)),
    "mera-3d": flow((2, 4, 2)),
    "mera-1d-prime": flow((7,)),
    "mera-2d-odd-sides": flow((3, 5)),
    "mera-two-sites": flow((2,)),
    "mera-1d-open": flow((6,), boundary="open"),
    "mera-2d-open": flow((4, 3), boundary="open"),
    "tree-1d-odd-side": flow((5,), "tree"),
    "tree-3d-open": flow((2, 3, 2), "tree", boundary="open"),
    "brickwork-2d": flow((4, 4), "brickwork", depth=3),
    "brickwork-3d-open": flow((2, 3, 2), "brickwork", boundary="open"),
    "brickwork-two-sites": flow((2,), "brickwork", depth=1),
    "side-1": flow((1,)),
    "side-1-column": flow((5, 1), boundary="open"),
    "side-1-3d": flow((1, 3, 1), "tree"),
    "block-side-3-rest": flow((4, 5), block=3),
    "block-side-4-brickwork": flow((8,), "brickwork", block=4),
    "block-wider-than-lattice": flow((3,), block=5),
    "depth-0": flow((3, 2), depth=0),
    # options
    "odd": flow((4, 4), odd=True),
    "odd-with-spectrum": flow((4, 4), odd=True, spectrum="periodic"),
    "odd-two-sites": flow((2,), odd=True),
    "two-modes": flow((4, 4), base=TwoModes(3.0)),
    "two-modes-odd-with-spectrum": flow((3, 4), odd=True, base=TwoModes(2.0), spectrum="periodic"),
    "two-modes-one-site": flow((1,), base=TwoModes(3.0)),
    "two-modes-ignored": flow((4, 4), depth=1, base=TwoModes(3.0)),
    "shared-weights": flow((8,), weights="shared"),
    "haar-1d": flow((8,), wavelet="haar"),
    "haar-two-sites": flow((2,), wavelet="haar"),
    "haar-odd-sides-open": flow((3, 5), wavelet="haar", boundary="open"),
    "haar-block-side-3": flow((3, 4), block=3, wavelet="haar"),
    "haar-3d": flow((2, 4, 2), "tree", wavelet="haar"),
    "haar-odd-with-spectrum": flow((4, 4), odd=True, wavelet="haar", spectrum="periodic"),
    "haar-per-block": flow((4, 3), bijector=REALNVP, weights="block", wavelet="haar"),
    # vector fields
    "vector-1d": vector((4,), 3),
    "vector-2d": vector((3, 2), 2, odd=True),
    "vector-one-component": vector((4, 2), 1),
    "vector-open": vector((5,), 2, boundary="open", wavelet="haar"),
    "vector-one-site": vector((1,), 3),
    "vector-shared": vector((8,), 2, weights="shared"),
    "vector-haar": vector((2, 3), 2, wavelet="haar"),
    "vector-spectrum": vector((4, 2), 2, spectrum=stiff((4, 2), 2)),
    "vector-spectrum-odd-side": vector((3,), 3, odd=True, spectrum=stiff((3,), 3)),
    "vector-covariance": vector((3,), 2, covariance=covariance(6)),
    "vector-two-modes": vector((4,), 2, base=TwoModes(3.0)),
    "vector-site-features": vector((3,), 2, site_features=waves(2, 3)),
    "vector-realnvp": vector((3, 2), 2, bijector=REALNVP),
    "vector-realnvp-per-block": vector((4,), 2, bijector=REALNVP, weights="block"),
    "vector-pyro-affine-coupling": Entry(
        (4, 2),
        partial(HierarchicalFlow.build, (4,), bijector=small_coupling, components=2),
        ours=False,
        starts_near_identity=False,
        is_flow=True,
    ),
    # site by site
    "site-features": flow((4, 4), site_features=waves(2, 4, 4)),
    "site-features-open-odd-sides": flow((3, 5), site_features=waves(1, 3, 5), boundary="open"),
    "site-features-shared": flow((2, 5), site_features=waves(1, 2, 5), weights="shared"),
    "site-features-open-1d": flow((3,), site_features=waves(1, 3), boundary="open"),
    "site-features-3d": flow((2, 3, 2), site_features=waves(1, 2, 3, 2), spectrum="periodic"),
    "site-features-odd": flow((4, 4), site_features=waves(2, 4, 4), odd=True),
    "site-features-odd-open": flow((3, 5), site_features=waves(1, 3, 5), boundary="open", odd=True),
    "covariance": flow((2, 3), odd=True, covariance=covariance(6)),
    # the paper's block
    "realnvp": flow((4, 4), bijector=REALNVP),
    "realnvp-defaults": flow((2, 2), bijector="realnvp"),
    "realnvp-odd": flow((4, 4), bijector=REALNVP, odd=True),
    "realnvp-per-block": flow((4, 4), bijector=REALNVP, weights="block"),
    "realnvp-per-block-odd-side": flow((5,), bijector=REALNVP, weights="block", odd=True),
    "realnvp-tanh": flow((4,), bijector=RealNVP(layers=2, hidden=(4,), activation="tanh")),
    "realnvp-relu": flow((4,), bijector=RealNVP(layers=2, hidden=(9,), activation="relu")),
    "realnvp-silu-odd": flow((4,), bijector=RealNVP(2, (4,), "silu"), odd=True),
    "realnvp-softplus": flow((4,), bijector=RealNVP(layers=2, hidden=(4,), activation="softplus")),
    "realnvp-linear": flow((4,), bijector=RealNVP(layers=2, hidden=())),
    # blocks and layers from elsewhere
    "pyro-affine-coupling": foreign((4, 4), small_coupling),
    "pyro-affine-coupling-per-block": foreign((4, 2), small_coupling, weights="block"),
    "pyro-affine-coupling-shared": foreign((4, 4), small_coupling, weights="shared"),
    "pyro-affine-coupling-haar": foreign((3, 4), small_coupling, wavelet="haar"),
    "pyro-composed": foreign((2, 4), two_couplings),
    "pyro-householder": foreign((4, 4), pyro_transforms.Householder),
    "pyro-matrix-exponential": foreign((4, 4), long_exponential),
    "pyro-spline-coupling": foreign((4, 4), small_spline),
    "elementwise-block": foreign((3, 3), Scale),
    "layer-factory": foreign((4, 4), LayerFactory(wide_layer)),
    "layer-factory-channels": foreign((4, 4), LayerFactory(mix_sites)),
    "layer-factory-last-axis": foreign((4, 6), LayerFactory(mix_last_axis)),
    # under a context
    "conditioned": conditioned((4, 4), NEIGHBOUR),
    "conditioned-odd": conditioned((4, 2), NEIGHBOUR, odd=True),
    "conditioned-haar": conditioned((4, 2), NEIGHBOUR, wavelet="haar"),
    "conditioned-two-sites": conditioned((2,), NEIGHBOUR),
    "conditioned-realnvp": conditioned((4, 4), REALNVP),
    "conditioned-realnvp-odd-per-block": conditioned((4,), REALNVP, odd=True, weights="block"),
    "conditioned-shared": conditioned((4, 4), NEIGHBOUR, weights="shared"),
    "conditioned-spectrum": follows_spectrum((4, 4), "periodic"),
    "conditioned-spectrum-open-1d": follows_spectrum((4,), "open"),
    "conditioned-pyro-coupling": conditioned((2, 4), conditional_coupling),
    # single parts
    "covariance-2d": Entry((2, 3), all_unlike, odd=True, starts_near_identity=False),
    "fourier-2d": fourier((4, 3), "periodic"),
    "fourier-3d": fourier((2, 3, 4), "periodic"),
    "vector-fourier-2d": vector_fourier(stiff((4, 3), 2), "periodic"),
    "vector-fourier-open": vector_fourier(stiff((2, 3), 2).real, "open"),
    "fourier-open-3d": fourier((2, 1, 3), "open"),
    "learned-spectrum-1d": Entry((5,), partial(LearnedSpectrum, (5,), "periodic"), odd=True),
    "learned-spectrum-2d": Entry((4, 3), partial(LearnedSpectrum, (4, 3), "periodic"), odd=True),
    "learned-spectrum-open-2d": Entry((3, 4), partial(LearnedSpectrum, (3, 4), "open"), odd=True),
    "neighbour-coupling-1d": couplings((2,), (4,), odd=False),
    "neighbour-coupling-2d": couplings((2, 2), (3, 2)),
    "neighbour-coupling-2d-one-block": couplings((2, 2), (1, 1), odd=False),
    "neighbour-coupling-3d": couplings((1, 2, 2), (2, 1, 2), odd=False),
    "neighbour-coupling-open": couplings((3,), (3,), boundary="open"),
    "neighbour-coupling-affine": couplings((2, 2), (3, 3), num_tanh=0),
    "neighbour-coupling-slow": couplings((2, 2), (3, 3), response=0.1, max_log_scale=0.5),
    "realnvp-block-2": paper_block(2),
    "realnvp-block-3-odd": paper_block(3, odd=True),
    "realnvp-block-4": paper_block(4),
    "realnvp-block-8-odd": paper_block(8, odd=True),
}


def perturb(module: Any, spread: float) -> Any:
    """The module with all of its parameters moved."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module


def perturbed(name: str) -> LatticeTransform:
    """The named transform away from its start, where a wrong log-determinant could hide."""
    return perturb(ENTRIES[name].make(), ENTRIES[name].spread)


def latents(name: str, *batch: int) -> Tensor:
    """Standard normals of the named transform's event shape."""
    return torch.randn(*batch, *ENTRIES[name].shape)
