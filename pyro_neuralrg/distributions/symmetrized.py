# SPDX-License-Identifier: Apache-2.0
"""Finite symmetry groups of lattice fields as data, and a flow's density averaged over one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type
from pyro_neuralrg.bases import FieldDistribution
from pyro_neuralrg.distributions.flow import FlowDistribution, check_flow, event_shape
from pyro_neuralrg.transforms.base import state_of


@dataclass(frozen=True)
class LatticeSymmetry:
    """One group element g, acting as ``g x = sign * roll(flip(permute(x, axes), flips), shift)``.

    Attributes:
        sign: +1, or -1 for the spin flip.
        shift: sites by which each axis is rolled.
        axes: axis ``k`` of ``g x`` is axis ``axes[k]`` of ``x``; only axes of equal sides may be
            exchanged.
        flips: True for each axis that is reversed.

    Example:
        >>> mirror = LatticeSymmetry(shift=(0, 0), axes=(0, 1), flips=(False, True))
        >>> mirror(torch.tensor([[1.0, 2.0]]))
        tensor([[2., 1.]])
    """

    shift: tuple[int, ...]
    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    sign: int = 1

    def __post_init__(self) -> None:
        axes = tuple(range(len(self.shift)))
        if self.sign not in (1, -1) or len(self.flips) != len(axes) or {*self.axes} != {*axes}:
            raise ValueError(
                f"sign is {self.sign!r}, axes is {self.axes}, flips is {self.flips}; accepted: 1 "
                f"or -1, a permutation of {axes}, and {len(axes)} booleans"
            )

    @staticmethod
    def identity(dims: int) -> LatticeSymmetry:
        """The identity in ``dims`` dimensions."""
        return LatticeSymmetry((0,) * dims, tuple(range(dims)), (False,) * dims)

    @property
    def moves_sites(self) -> bool:
        """False for the identity and the spin flip, which leave every site in its place."""
        return any(self.shift) or any(self.flips) or self.axes != tuple(range(len(self.axes)))

    def __call__(self, x: Tensor) -> Tensor:
        """Act on a field of shape ``batch_shape + shape``."""
        dims = len(self.shift)
        if self.moves_sites:
            lead = x.dim() - dims
            x = x.permute(*range(lead), *(lead + axis for axis in self.axes))
            x = x.flip([lead + axis for axis in range(dims) if self.flips[axis]])
            x = x.roll(self.shift, tuple(range(lead, lead + dims)))
        return x if self.sign == 1 else -x


def source_table(elements: Sequence[LatticeSymmetry], shape: Sequence[int]) -> Tensor:
    """Flat site indices p with ``(g x)[i] = sign * x[p[i]]``, one row for each element g."""
    sides, rows = tuple(shape), []
    sites = torch.arange(math.prod(sides)).reshape(sides)
    for element in elements:
        if tuple(sides[axis] for axis in element.axes) != sides:
            raise ValueError(
                f"axes is {element.axes}; accepted: permutations of equal sides of {sides}"
            )
        rows.append((element.sign * element(sites)).flatten())
    return torch.stack(rows)


def distinct(
    elements: Sequence[LatticeSymmetry], shape: Sequence[int]
) -> tuple[LatticeSymmetry, ...]:
    """Drop elements that act like an earlier one (a side of 2 is reversed by a shift of 1, say)."""
    seen: dict[int, LatticeSymmetry] = {}
    signs = torch.tensor([element.sign for element in elements])
    actions = _numbers(signs, source_table(elements, shape).T[_frame(shape)])
    for action, element in zip(actions.tolist(), elements, strict=True):
        seen.setdefault(action, element)
    return tuple(seen.values())


def _frame(shape: Sequence[int]) -> Tensor:
    """The origin and its next site along each axis: where they come from fixes an isometry."""
    steps = zip(torch.empty(tuple(shape)).stride(), shape, strict=True)
    return torch.tensor([0, *(step for step, side in steps if side > 1)])


def _numbers(signs: Tensor, images: Tensor) -> Tensor:
    """One number for each isometry, from its sign and the sites that the frame comes from."""
    number = images[0]
    for sites in images[1:]:
        number = number * 2**20 + sites
    return signs * (1 + number)


def symmetry_group(
    shape: Sequence[int],
    *,
    spin_flips: bool = True,
    translation_step: int | None = None,
    point_symmetries: bool = False,
) -> tuple[LatticeSymmetry, ...]:
    """The product of the chosen groups, the identity first.

    Args:
        shape: lattice shape.
        spin_flips: include x -> -x.
        translation_step: include translations by multiples of this many sites, a divisor of every
            side above 1; None leaves them out.
        point_symmetries: include reflections of every axis and exchanges of equal sides.

    Example:
        >>> len(symmetry_group((4, 4))), len(symmetry_group((4, 4), point_symmetries=True))
        (2, 16)
        >>> len(symmetry_group((4, 4), spin_flips=False, translation_step=2))
        4
    """
    one = LatticeSymmetry.identity(len(shape))
    shifts, axes, flips = [one.shift], [one.axes], [one.flips]
    if translation_step is not None:
        if translation_step < 1 or any(side > 1 and side % translation_step for side in shape):
            raise ValueError(
                f"translation_step is {translation_step}; accepted: a divisor of every side of "
                f"{tuple(shape)}"
            )
        shifts = list(itertools.product(*(range(0, side, translation_step) for side in shape)))
    if point_symmetries:
        sides = tuple(shape)
        exchanges = itertools.permutations(one.axes)
        axes = [order for order in exchanges if tuple(sides[k] for k in order) == sides]
        flips = list(itertools.product((False, True), repeat=len(sides)))
    signs = (1, -1) if spin_flips else (1,)
    chosen = itertools.product(shifts, axes, flips, signs)
    return distinct([LatticeSymmetry(*parts) for parts in chosen], shape)


def check_group(elements: Sequence[LatticeSymmetry], shape: Sequence[int]) -> None:
    """Check that elements are a group: a finite set that is closed under composition is one."""
    accepted = f"a group of LatticeSymmetry(...) for shape {tuple(shape)}"
    check_type("elements", elements, Sequence, accepted)
    for element in elements:
        check_type("an element", element, LatticeSymmetry, accepted)
    if not elements or any(len(element.shift) != len(shape) for element in elements):
        raise ValueError(f"elements is {elements}; accepted: {accepted}")
    signs = torch.tensor([element.sign for element in elements])
    table, frame = source_table(elements, shape).T, _frame(shape)
    known = _numbers(signs, table[frame])
    if len(known.unique()) < len(known):
        raise ValueError("elements repeats an element; accepted: every group element once")
    for at, second in enumerate(elements):
        products = _numbers(signs[at] * signs, table[table[frame, at]])
        outside = (~torch.isin(products, known)).nonzero()
        if len(outside):
            raise ValueError(
                f"elements is not closed under composition: {elements[int(outside[0])]} followed "
                f"by {second} is not among them; accepted: a group"
            )


class _Draw(NamedTuple):
    """The last sample, and what its density needs: x = g x0 for some g."""

    x: Tensor
    x0: Tensor
    log_q0: Tensor
    state: tuple[Any, ...]


class SymmetrizedFlow(FieldDistribution):
    r"""The mixture of a flow's density q0 over a finite group G that acts on the field.

    .. math:: q(x) = \frac{1}{|G|} \sum_{g \in G} q_0(g^{-1} x), \qquad q(gx) = q(x)

    A sample is ``x = g flow(z)`` with g uniform in G: reparameterised gradients are unbiased. With
    its density it costs one forward and ``|G| - 1`` inverse passes, as ``log_prob`` of a fresh
    sample goes through its z.

    Args:
        flow: a TransformModule on lattice fields.
        elements: of a group on this lattice, such as a
            :func:`~pyro_neuralrg.distributions.symmetry_group`; default: the spin flip Z2.
        shape: event shape, only for a flow that has no ``shape`` attribute.
        orbit_chunk: group elements evaluated in one inverse pass, which bounds the memory.

    Example:
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> q = SymmetrizedFlow(hierarchical_flow((4, 4)))
        >>> x, log_q = q.rsample_and_log_prob((5,))
        >>> torch.allclose(q.log_prob(-x), log_q, atol=1e-4)
        True
    """

    def __init__(
        self,
        flow: Any,
        elements: Sequence[LatticeSymmetry] | None = None,
        *,
        shape: Sequence[int] | None = None,
        orbit_chunk: int = 8,
        validate_args: bool | None = None,
    ) -> None:
        check_flow(flow)
        lattice = event_shape(flow, shape)
        if elements is None:
            elements = symmetry_group(lattice)
        else:
            check_group(elements, lattice)
        self.flow = flow
        self.elements = tuple(elements)
        vector = getattr(getattr(flow, "circuit", None), "components", 0)
        if vector and any(element.moves_sites for element in self.elements):
            raise ValueError(
                f"flow is of a vector field, {vector} components a site, and elements move sites; "
                "accepted: of a scalar field, or the sign alone"
            )
        self.orbit_chunk = check_integer("orbit_chunk", orbit_chunk, 1)
        if getattr(flow, "odd", False):  # q0(-x) = q0(x): g and -g count the same
            elements = tuple(replace(g, sign=1) for g in elements)
        self._orbit = distinct((LatticeSymmetry.identity(len(lattice)), *elements), lattice)
        self._signs = torch.tensor([element.sign for element in self.elements])
        moves = any(element.moves_sites for element in self.elements)
        self._sources = source_table(self.elements, lattice) if moves else None
        self._draw: _Draw | None = None
        super().__init__(torch.Size(), torch.Size(lattice), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.flow!r}, <{len(self.elements)} elements>)"

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw differentiable fields of shape ``sample_shape + batch_shape + shape``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        x0, log_q0 = self._flow_density().rsample_and_log_prob(shape)
        x = self._act(x0)
        state = state_of(self.flow, x, x0)
        self._draw = None if state is None else _Draw(x, x0, log_q0, state)
        return x

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw fields and return them with ln q, at the cost of ``|G|`` passes in all."""
        x = self.rsample(sample_shape)
        return x, self.log_prob(x)

    def log_prob(self, value: Tensor) -> Tensor:
        """ln q(value) in nats, of the batch shape of ``value`` with that of the distribution."""
        if self._validate_args and value.numel():
            self._validate_sample(value)
        draw = self._recall(value)
        if draw is None:
            terms = self._log_orbit(value, self._orbit)
        else:
            terms = [draw.log_q0.unsqueeze(0), *self._log_orbit(draw.x0, self._orbit[1:])]
        log_q = terms[0] if len(terms) == 1 else torch.cat(terms)
        log_q = log_q.logsumexp(0) - math.log(len(self._orbit))
        return log_q.expand(broadcast_shape(log_q.shape, self.batch_shape))

    def clear_cache(self) -> None:
        """Forget the last sample."""
        self._draw = None

    def _log_orbit(self, x: Tensor, elements: Sequence[LatticeSymmetry]) -> list[Tensor]:
        """ln q0(g x) for all g, in pieces of shape ``(elements of the piece,) + batch_shape``."""
        q0 = self._flow_density()
        chunks = range(0, len(elements), self.orbit_chunk)
        pieces = (elements[start : start + self.orbit_chunk] for start in chunks)
        return [q0.log_prob(torch.stack([g(x) for g in piece])) for piece in pieces]

    def _flow_density(self) -> FlowDistribution:
        """q0, in the flow's present dtype and on its device."""
        return FlowDistribution(self.flow, self.event_shape, validate_args=False)

    def _act(self, x: Tensor) -> Tensor:
        """Apply an independent, uniformly drawn group element to every field of the batch."""
        if len(self.elements) == 1:
            return x
        dims = len(self.event_shape)
        batch = x.shape[: x.dim() - dims]
        chosen = torch.randint(len(self.elements), batch, device=x.device)
        signs = self._signs.to(x.device, x.dtype)[chosen]
        if self._sources is not None:
            x = x.flatten(-dims).gather(-1, self._sources.to(x.device)[chosen]).reshape(x.shape)
        return x * signs.reshape(batch + (1,) * dims)

    def _recall(self, value: Tensor) -> _Draw | None:
        """The last draw, if ``value`` is it and nothing has changed since, once."""
        if self._draw is None or self._draw.x is not value:
            return None
        draw, self._draw = self._draw, None
        return draw if draw.state == state_of(self.flow, draw.x, draw.x0) else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_draw": None}
