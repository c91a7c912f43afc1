# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Finite symmetry groups of lattice fields as data: spin flip, translations, point group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_type


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
