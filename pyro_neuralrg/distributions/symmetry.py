# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Finite symmetry groups of lattice fields as data: spin flip, translations, point group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LatticeSymmetry",
    "check_group",
    "point_group",
    "product_group",
    "spin_flip",
    "symmetry_group",
    "translations",
]

Action = tuple[int, ...]


@dataclass(frozen=True)
class LatticeSymmetry:
    """One group element g, acting as ``g x = sign * roll(flip(permute(x, axes), flips), shift)``.

    Attributes:
        sign: +1, or -1 for the spin flip.
        shift: sites by which each axis is rolled.
        axes: axis ``k`` of ``g x`` is axis ``axes[k]`` of ``x``; only axes of equal sides may be
            exchanged.
        flips: whether each axis is reversed.

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
        dims = len(self.shift)
        if self.sign not in (1, -1):
            raise ValueError(f"sign is {self.sign!r}; accepted: 1 or -1")
        if sorted(self.axes) != list(range(dims)):
            raise ValueError(
                f"axes is {self.axes}; accepted: a permutation of {tuple(range(dims))}"
            )
        if len(self.flips) != dims:
            raise ValueError(f"flips is {self.flips}; accepted: {dims} booleans, one per axis")

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
            if self.axes != tuple(range(dims)):
                x = x.permute(*range(lead), *(lead + axis for axis in self.axes))
            flipped = [lead + axis for axis in range(dims) if self.flips[axis]]
            if flipped:
                x = x.flip(flipped)
            if any(self.shift):
                x = x.roll(self.shift, tuple(range(lead, lead + dims)))
        return x if self.sign == 1 else -x

    def compose(self, first: LatticeSymmetry, shape: Sequence[int]) -> LatticeSymmetry:
        """The element ``self o first``: x -> self(first(x)), on a lattice of ``shape``."""
        axes, flips, shift = [], [], []
        for axis, own_shift in enumerate(self.shift):
            middle = self.axes[axis]
            direction = -1 if self.flips[axis] else 1
            first_direction = -1 if first.flips[middle] else 1
            both = direction * first_direction
            flip = both == -1
            # The source site along this axis is both * (i - shift) - flip; self and first in turn
            # give the same as
            offset = (
                first_direction * (self.flips[axis] + first.shift[middle]) + first.flips[middle]
            )
            shift.append((own_shift + both * (offset - flip)) % shape[axis])
            axes.append(first.axes[middle])
            flips.append(flip)
        return LatticeSymmetry(tuple(shift), tuple(axes), tuple(flips), self.sign * first.sign)


def sources(element: LatticeSymmetry, shape: Sequence[int]) -> Tensor:
    """Flat site indices p with ``(g x)[i] = sign * x[p[i]]``, of shape ``(sites,)``."""
    return source_table([element], shape)[0]


def source_table(elements: Sequence[LatticeSymmetry], shape: Sequence[int]) -> Tensor:
    """The :func:`sources` of every element, of shape ``(elements, sites)``."""
    axes = torch.tensor([element.axes for element in elements])
    shifts = torch.tensor([element.shift for element in elements])
    flips = torch.tensor([element.flips for element in elements])
    sides, strides = torch.tensor(tuple(shape)), torch.tensor(_strides(shape))
    exchanged = (sides[axes] != sides).any(1).nonzero()
    if len(exchanged):
        raise ValueError(
            f"axes is {elements[int(exchanged[0])].axes}; "
            f"accepted: permutations of equal sides of {tuple(shape)}"
        )
    table = torch.zeros(len(elements), 1, dtype=torch.long)
    for axis, side in enumerate(shape):
        at = (torch.arange(side) - shifts[:, axis, None]) % side
        at = torch.where(flips[:, axis, None], side - 1 - at, at)
        along = at * strides[axes[:, axis], None]
        table = (table[:, :, None] + along[:, None, :]).flatten(1)
    return table


def _strides(shape: Sequence[int]) -> list[int]:
    """By how much the flat index grows along each axis."""
    return [int(torch.Size(shape[axis + 1 :]).numel()) for axis in range(len(shape))]


def _frame(shape: Sequence[int]) -> Tensor:
    """The origin and its next site along each axis: where they come from fixes an isometry."""
    steps = [s for s, side in zip(_strides(shape), shape, strict=True) if side > 1]
    return torch.tensor([0, *steps])


def _actions(elements: Sequence[LatticeSymmetry], table: Tensor, frame: Tensor) -> list[Action]:
    """For each element what it does, as data that are equal for elements that act alike."""
    signs = [element.sign for element in elements]
    return [(s, *row) for s, row in zip(signs, table[:, frame].tolist(), strict=True)]


def distinct(
    elements: Sequence[LatticeSymmetry], shape: Sequence[int]
) -> tuple[LatticeSymmetry, ...]:
    """Drop elements that act like an earlier one (a side of 2 is reversed by a shift of 1, say)."""
    seen: dict[Action, LatticeSymmetry] = {}
    actions = _actions(elements, source_table(elements, shape), _frame(shape))
    for action, element in zip(actions, elements, strict=True):
        seen.setdefault(action, element)
    return tuple(seen.values())


def spin_flip(shape: Sequence[int]) -> tuple[LatticeSymmetry, ...]:
    """Z2: the identity and x -> -x."""
    one = LatticeSymmetry.identity(len(shape))
    return one, LatticeSymmetry(one.shift, one.axes, one.flips, sign=-1)


def translations(shape: Sequence[int], step: int = 1) -> tuple[LatticeSymmetry, ...]:
    """Translations by multiples of ``step``, which must divide every side above 1."""
    for side in shape:
        if step < 1 or (side > 1 and side % step):
            raise ValueError(f"step is {step}; accepted: a divisor of every side of {tuple(shape)}")
    one = LatticeSymmetry.identity(len(shape))
    shifts = itertools.product(*(range(0, side, step) for side in shape))
    return tuple(LatticeSymmetry(shift, one.axes, one.flips) for shift in shifts)


def point_group(shape: Sequence[int]) -> tuple[LatticeSymmetry, ...]:
    """Reflections of every axis and exchanges of equal sides: 8 on a square, 48 on a cube."""
    dims = len(shape)
    permutations = [
        axes
        for axes in itertools.permutations(range(dims))
        if all(shape[axis] == shape[k] for k, axis in enumerate(axes))
    ]
    elements = [
        LatticeSymmetry((0,) * dims, axes, flips)
        for axes in permutations
        for flips in itertools.product((False, True), repeat=dims)
    ]
    return distinct(elements, shape)


def product_group(
    shape: Sequence[int],
    left: Sequence[LatticeSymmetry],
    right: Sequence[LatticeSymmetry],
) -> tuple[LatticeSymmetry, ...]:
    """The distinct products g o h: a group if one of the two normalises the other, as ours do."""
    return distinct([g.compose(h, shape) for g in left for h in right], shape)


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
        translation_step: include translations by multiples of this many sites (1: all of them);
            None: none.
        point_symmetries: include reflections and exchanges of equal sides.

    Example:
        >>> len(symmetry_group((4, 4))), len(symmetry_group((4, 4), point_symmetries=True))
        (2, 16)
        >>> len(symmetry_group((4, 4), spin_flips=False, translation_step=2))
        4
    """
    group: tuple[LatticeSymmetry, ...] = (LatticeSymmetry.identity(len(shape)),)
    if translation_step is not None:
        group = product_group(shape, group, translations(shape, translation_step))
    if point_symmetries:
        group = product_group(shape, group, point_group(shape))
    if spin_flips:
        group = product_group(shape, group, spin_flip(shape))
    return group


def check_group(elements: Sequence[LatticeSymmetry], shape: Sequence[int]) -> None:
    """Check the group axioms on a lattice of ``shape``; cost |G| (N + ln |G|).

    A finite set with the identity, all of whose members are products of some of them, is a group if
    products with those generators stay within it.

    Raises:
        TypeError: if ``elements`` is not a sequence of LatticeSymmetry.
        ValueError: if ``elements`` is empty, repeats an element, lacks the identity, or is not
            closed under composition (a finite set that is closed holds its inverses).
    """
    _check_elements(elements, shape)
    table, frame = source_table(elements, shape), _frame(shape)
    index = {action: at for at, action in enumerate(_actions(elements, table, frame))}
    if len(index) < len(elements):
        raise ValueError("elements repeats an element; accepted: every group element once")
    identity = index.get((1, *frame.tolist()))
    if identity is None:
        raise ValueError("elements lacks the identity; accepted: a group")
    generators: list[list[int]] = []
    reached = {identity}
    for at, element in enumerate(elements):
        if at not in reached:  # then it doubles, at least, what is reached
            # first h, then g: (g h x)[i] = x[p_h[p_g[i]]]
            images = _actions(elements, table, table[at, frame])
            products = [(element.sign * sign, *image) for sign, *image in images]
            generators.append(_find(products, index, elements, element))
            reached = _reachable(reached, generators)


def _check_elements(elements: Sequence[LatticeSymmetry], shape: Sequence[int]) -> None:
    for element in elements:
        if not isinstance(element, LatticeSymmetry):
            raise TypeError(f"elements has {element!r}; accepted: elements LatticeSymmetry(...)")
        if len(element.shift) != len(shape):
            raise ValueError(f"elements has {element}; accepted: elements for shape {tuple(shape)}")
    if not elements:
        raise ValueError("elements is empty; accepted: a finite group, at least the identity")


def _find(
    products: list[Action],
    index: dict[Action, int],
    elements: Sequence[LatticeSymmetry],
    second: LatticeSymmetry,
) -> list[int]:
    """Where in ``elements`` each product with ``second`` is."""
    for first, product in zip(elements, products, strict=True):
        if product not in index:
            raise ValueError(
                "elements is not closed under composition and inverse: "
                f"{first} followed by {second} is not among them; "
                "accepted: a group"
            )
    return [index[product] for product in products]


def _reachable(reached: set[int], generators: list[list[int]]) -> set[int]:
    """All that products with the generators lead to from ``reached``."""
    found, new = set(reached), set(reached)
    while new:
        new = {products[at] for products in generators for at in new} - found
        found |= new
    return found
