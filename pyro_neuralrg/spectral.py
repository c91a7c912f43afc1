# SPDX-License-Identifier: Apache-2.0
"""Operators that are diagonal in the modes of the lattice, in O(N log N).

On a periodic lattice the modes are plane waves, on an open one products of sines, ``sin(pi j k / (n
+ 1))`` with j, k = 1 .. n along each axis: zero outside. On a "free" one, whose edges have no bond
to the outside, they are products of cosines, ``cos(pi (j + 1/2) k / n)`` with j, k = 0 .. n - 1. A
*spectrum* is a tensor of the lattice's shape that holds one real eigenvalue per mode: in FFT order
and even under k -> -k ("periodic"), or in the order of k. Of a vector field it holds one Hermitian
matrix per mode, ``shape + (components, components)``, at -k the complex conjugate of that at k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from pyro_neuralrg.arguments import check_choice, check_tensor, check_values
from pyro_neuralrg.lattice import BOUNDARIES, check_boundary, check_shape
from pyro_neuralrg.runtime.threads import by_fields, remember_signature, takes_own_functions

MODES = (*BOUNDARIES, "free")
LONGEST_MATRIX = 200
"""Sides up to which a sine transform is a product with a matrix. 64 fields of 8 x 8, 64 x 64 and
200 x 200 take 2.3, 4.9 and 3.0 times as long by FFT (one thread)."""


def apply_spectrum(
    x: Tensor, spectrum: Tensor, boundary: str = "periodic", dims: int | None = None
) -> Tensor:
    r"""Apply the operator with the given eigenvalues, :math:`F^{-1} \lambda F x`.

    Args:
        x: fields, ``batch_shape + shape``, of a floating dtype, which the result has too.
        spectrum: eigenvalues :math:`\lambda`, of the lattice's shape; with ``dims``, batch
            dimensions may stand before it, which broadcast with those of x.
        boundary: "periodic", "open" or "free".
        dims: number of the lattice's dimensions; None: those of the spectrum.

    Example:
        >>> x = torch.eye(4)[0]  # its neighbours on a ring of four sites:
        >>> apply_spectrum(x, neighbour_spectrum((4,), (1.0,))).round().abs()
        tensor([0., 1., 0., 1.])
    """
    h, eigenvalues, dim = _prepared(x, spectrum, boundary, dims)
    if x.numel() == 0:  # torch.fft rejects empty tensors
        return x.clone()
    if boundary != "periodic":
        modes = _to_modes(h, dim, boundary) * eigenvalues
        return _to_modes(modes, dim, boundary, back=True).to(x.dtype)
    return _operator(h, eigenvalues, dim).to(x.dtype)


def quadratic_form(
    x: Tensor, spectrum: Tensor, boundary: str = "periodic", dims: int | None = None
) -> Tensor:
    r"""The form :math:`x^T A x` of the operator A with the given eigenvalues, of the batch shape.

    In one transform, by Parseval's theorem. Arguments are those of :func:`apply_spectrum`.
    """
    h, eigenvalues, dim = _prepared(x, spectrum, boundary, dims)
    if x.numel() == 0:
        return x.sum(dim)
    if boundary != "periodic":
        form = (_to_modes(h, dim, boundary).square() * eigenvalues).sum(dim)
    elif _is_constant(eigenvalues):
        form = _Form.apply(h, eigenvalues, dim)
    else:
        form = _form(h, eigenvalues, dim)
    return form.to(x.dtype)


def apply_matrices(x: Tensor, matrices: Tensor, boundary: str = "periodic") -> Tensor:
    r"""Apply the operator with a matrix for each mode to vector fields, :math:`F^{-1} A F x`.

    Args:
        x: fields, ``batch_shape + shape + (components,)``, of a floating dtype.
        matrices: ``shape + (components, components)``, complex; real on a lattice with edges.
        boundary: as of :func:`apply_spectrum`.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(4, 2, 2)
        >>> apply_matrices(torch.tensor([3.0, 5.0]).expand(4, 2), turn)[0]
        tensor([5., 3.])
    """
    check_choice("boundary", boundary, MODES)
    sides = matrices.shape[:-2]
    h, dim = computable(x), tuple(range(-1 - len(sides), -1))
    if x.numel() == 0:
        return x.clone()
    if boundary != "periodic":
        modes = (matrices.real.to(h) @ _to_modes(h, dim, boundary).unsqueeze(-1)).squeeze(-1)
        return _to_modes(modes, dim, boundary, back=True).to(x.dtype)
    waves = torch.fft.rfftn(h, dim=dim)
    half = matrices[..., : sides[-1] // 2 + 1, :, :].to(waves)
    waves = (half @ waves.unsqueeze(-1)).squeeze(-1)
    return torch.fft.irfftn(waves, s=sides, dim=dim).to(x.dtype)


def _prepared(
    x: Tensor, spectrum: Tensor, boundary: str, dims: int | None
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Field and spectrum in a precision that has transforms; the lattice's dimensions."""
    check_choice("boundary", boundary, MODES)
    count = spectrum.dim() if dims is None else dims
    sides = spectrum.shape[spectrum.dim() - count :]
    h = computable(check_values("x", x, tuple(sides)))
    return h, spectrum.to(dtype=h.dtype), tuple(range(-count, 0))


def computable(values: Tensor) -> Tensor:
    """The same in a precision that has Fourier transforms: float32 for what is shorter."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


# On a periodic lattice


def _operator(h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]) -> Tensor:
    """A h."""
    if _is_constant(eigenvalues):
        applied: Tensor = _Symmetric.apply(h, eigenvalues, dim)
        return applied
    return _apply(h, eigenvalues, dim)


def _apply(h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]) -> Tensor:
    """A h by two real transforms."""
    waves = torch.fft.rfftn(h, dim=dim) * _half(eigenvalues)
    return torch.fft.irfftn(waves, s=eigenvalues.shape[dim[0] :], dim=dim)


def _form(h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]) -> Tensor:
    """h^T A h by one real transform, whose modes stand for two but k = 0 and n / 2 (side n)."""
    waves = torch.view_as_real(torch.fft.rfftn(h, dim=dim, norm="ortho"))
    side = eigenvalues.shape[-1]
    count = h.new_full((side // 2 + 1,), 2.0)
    count[0] = 1.0
    if side % 2 == 0:
        count[-1] = 1.0
    weights = (_half(eigenvalues) * count).unsqueeze(-1)
    return (waves.square() * weights).sum((*(d - 1 for d in dim), -1))


def _half(spectrum: Tensor) -> Tensor:
    """The part of a spectrum that belongs to the modes of a real FFT."""
    return spectrum[..., : spectrum.shape[-1] // 2 + 1]


def _is_constant(eigenvalues: Tensor) -> bool:
    """True if only the derivative with respect to the field can be asked for."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(eigenvalues)
    return not eigenvalues.requires_grad and not wrapped and takes_own_functions()


def _in_parts(
    function: Callable[..., Tensor], h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]
) -> Tensor:
    """Call a function of each field, on threads where there are many fields and one spectrum."""
    if eigenvalues.dim() > len(dim) or h.dim() == len(dim):
        return function(h, eigenvalues, dim)
    return by_fields(lambda part: function(part, eigenvalues, dim), h)


class _Symmetric(torch.autograd.Function):
    """A h, whose gradient, A times that of the output, costs a third of autograd's own."""

    generate_vmap_rule = True

    @staticmethod
    @remember_signature
    def forward(h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]) -> Tensor:
        return _in_parts(_apply, h, eigenvalues, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, eigenvalues, ctx.dim = inputs
        ctx.save_for_backward(eigenvalues)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (eigenvalues,) = ctx.saved_tensors
        return _operator(gradients[0], eigenvalues, ctx.dim), None, None


class _Form(torch.autograd.Function):
    """h^T A h, whose gradient is 2 A h."""

    generate_vmap_rule = True

    @staticmethod
    @remember_signature
    def forward(h: Tensor, eigenvalues: Tensor, dim: tuple[int, ...]) -> Tensor:
        return _in_parts(_form, h, eigenvalues, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, eigenvalues, ctx.dim = inputs
        ctx.save_for_backward(h, eigenvalues)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        h, eigenvalues = ctx.saved_tensors
        scale = 2 * gradients[0].reshape(*gradients[0].shape, *[1] * len(ctx.dim))
        return (scale * _operator(h, eigenvalues, ctx.dim)).sum_to_size(h.shape), None, None


def check_spectrum(
    spectrum: Any, boundary: str, shape: tuple[int, ...] | None = None, components: int = 0
) -> None:
    """Raise unless these are eigenvalues of a covariance, of the lattice's shape if it is given.

    Of a vector field its matrices.
    """
    if components:
        _check_matrices(spectrum, boundary, shape, components)
        return
    sides = check_shape(check_tensor("spectrum", spectrum).shape)
    if shape not in (None, sides):
        raise ValueError(f"spectrum has shape {sides}; accepted: the lattice shape {shape}")
    usable = torch.isfinite(spectrum) & (spectrum > 0)
    if not bool(usable.all()):
        worst = float(spectrum[~usable][0])
        raise ValueError(f"spectrum has an entry {worst}; accepted: positive, finite eigenvalues")
    mirrored = at_minus_k(spectrum, spectrum.dim())
    if boundary == "periodic" and not torch.allclose(spectrum, mirrored, atol=0.0):
        raise ValueError(
            "spectrum is not even under k -> -k; accepted: for a periodic lattice, the "
            "eigenvalues of a real symmetric translation-invariant matrix"
        )


def _check_matrices(
    spectrum: Any, boundary: str, shape: tuple[int, ...] | None, components: int
) -> None:
    """Raise unless these are the matrices of the covariance of a vector field."""
    if not (isinstance(spectrum, Tensor) and spectrum.is_complex()):
        check_tensor("spectrum", spectrum)
    sides, own = tuple(spectrum.shape[:-2]), tuple(spectrum.shape[-2:])
    if own != (components, components) or shape not in (None, sides):
        lattice = "the lattice shape" if shape is None else str(shape)
        raise ValueError(
            f"spectrum has shape {tuple(spectrum.shape)}; accepted: {lattice} + ({components}, "
            f"{components}), a matrix for each mode"
        )
    check_shape(sides)
    if not bool(spectrum.isfinite().all()):
        raise ValueError("spectrum has an entry inf or nan; accepted: finite matrices")
    conjugate = at_minus_k(spectrum.movedim((-2, -1), (0, 1)), len(sides)).movedim((0, 1), (-2, -1))
    if boundary != "periodic":
        conjugate = spectrum  # of real modes
    for other, what in ((spectrum.mT, "not Hermitian"), (conjugate, "no conjugate at -k")):
        if not torch.allclose(spectrum, other.conj(), rtol=1e-5, atol=1e-12):
            raise ValueError(
                f"spectrum has {what} matrices; accepted: for each mode the covariance of a real "
                "field, complex only on a periodic lattice"
            )
    least = float(torch.linalg.eigvalsh(spectrum).min())
    if least <= 0:
        raise ValueError(f"spectrum has an eigenvalue {least:.6g}; accepted: positive matrices")


def at_minus_k(values: Tensor, dims: int) -> Tensor:
    """The values at -k."""
    axes = tuple(range(-dims, 0))
    return values.flip(axes).roll((1,) * dims, axes)


def neighbour_spectrum(
    shape: Sequence[int], couplings: Sequence[float], boundary: str = "periodic"
) -> Tensor:
    r"""Eigenvalues of the matrix of nearest neighbours, with ``couplings[axis]`` for each bond.

    :math:`\sum_a 2 c_a \cos k_a` with :math:`k = 2 \pi m / n` (periodic) or :math:`k = \pi m / (n +
    1)` (open). A periodic side of 2 has two bonds between its sites, a side of 1 has none.

    Example:
        >>> neighbour_spectrum((2, 1), (0.5, 7.0))[:, 0]
        tensor([ 1., -1.], dtype=torch.float64)
    """
    check_boundary(boundary)
    bonds = zip(check_shape(shape), couplings, strict=True)
    return sum_over_axes(
        2 * (coupling if side > 1 else 0.0) * momenta(side, boundary).cos()
        for side, coupling in bonds
    )


def laplacian_spectrum(shape: Sequence[int], boundary: str = "periodic") -> Tensor:
    r"""Eigenvalues :math:`\sum_a 4\sin^2(k_a / 2)` of the sum of squared differences, float64.

    Unlike 2 - 2 cos k without cancellation. A periodic side of 2 has two bonds between its sites.

    Example:
        >>> laplacian_spectrum((2,), "free")  # x_0^2 - 2 x_0 x_1 + x_1^2
        tensor([0.0000, 2.0000], dtype=torch.float64)
    """
    return sum_over_axes(4 * (momenta(side, boundary) / 2).sin() ** 2 for side in shape)


def momenta(side: int, boundary: str) -> Tensor:
    """k of each mode along an axis, float64; on a periodic one min(k, 2 pi - k), exactly even."""
    if boundary == "open":
        return math.pi * torch.arange(1, side + 1, dtype=torch.float64) / (side + 1)
    m = torch.arange(side, dtype=torch.float64)
    if boundary == "free":
        return math.pi * m / side
    return 2 * math.pi * torch.minimum(m, side - m) / side


def sum_over_axes(parts: Iterable[Tensor]) -> Tensor:
    """The sum of one function of each axis, on the whole lattice."""
    return torch.stack(torch.meshgrid(*parts, indexing="ij")).sum(0)


# On a lattice with edges


def _to_modes(x: Tensor, dims: Sequence[int], boundary: str, back: bool = False) -> Tensor:
    r"""Orthonormal sine ("open") or cosine ("free") transform along each of ``dims``, or back.

    :math:`y_k = \sqrt{2/(n+1)} \sum_j x_j \sin(\pi jk/(n+1))` (DST-I, its own inverse) or
    :math:`y_k = c_k \sum_j x_j \cos(\pi (j + 1/2) k / n)` (DCT-II, :math:`c_k = \sqrt{2/n}`,
    :math:`c_0 = \sqrt{1/n}`): of short sides by a matrix, of long ones by FFT.
    """
    by_fft = _long_sines if boundary == "open" else _long_cosines
    for dim in dims:
        side = x.shape[dim]
        values = x.movedim(dim, -1)
        if side <= LONGEST_MATRIX:
            matrix = torch.from_numpy(mode_matrix(side, boundary)).to(x)
            matrix = matrix.T if back else matrix
            values = (values.reshape(-1, side) @ matrix).reshape(values.shape)  # one product
        else:
            values = by_fft(values, back)
        x = values.movedim(-1, dim)
    return x


@functools.lru_cache(maxsize=8)
def mode_matrix(side: int, boundary: str) -> Any:
    """The matrix of the transform, one mode a column, in float64."""
    transform, kind = (fft.dst, 1) if boundary == "open" else (fft.dct, 2)
    return transform(np.eye(side), type=kind, norm="ortho")


def _long_sines(x: Tensor, back: bool) -> Tensor:
    """The imaginary part of the FFT of x padded with zeros to 2 (n + 1) entries."""
    side = x.shape[-1]
    padded = torch.nn.functional.pad(x, (1, 0))
    waves = torch.fft.rfft(padded, n=2 * (side + 1), dim=-1).imag[..., 1 : side + 1]
    return waves * -math.sqrt(2 / (side + 1))


def _long_cosines(x: Tensor, back: bool) -> Tensor:
    """Half a site to the side, by phases, of the FFT of 2 n entries."""
    side = x.shape[-1]
    k = torch.arange(side, dtype=x.dtype, device=x.device)
    norm = torch.full_like(k, math.sqrt(2 / side))
    norm[0] = math.sqrt(1 / side)
    phases = torch.polar(norm, math.pi / (2 * side) * (k if back else -k))
    if back:
        return 2 * side * torch.fft.ifft(x * phases, n=2 * side, dim=-1)[..., :side].real
    return (torch.fft.fft(x, n=2 * side, dim=-1)[..., :side] * phases).real
