# SPDX-License-Identifier: Apache-2.0
"""Lattice operators: sums over a periodic lattice of products of neighbouring field values."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_neuralrg.arguments import (
    check_choice,
    check_integer,
    check_integers,
    check_type,
    check_values,
)
from pyro_neuralrg.lattice import MAX_DIM, check_shape

PARITIES = ("even", "odd")
SITES_IN_CACHE = 2**17
"""Sites of the fields whose products are formed together; with more they leave the cache."""

Pattern = tuple[tuple[int, ...], ...]
"""Positions of the factors of one product."""


@dataclass(frozen=True)
class Operator:
    r"""The sum over sites x and over images P of a pattern of a product of field values.

    .. math:: S(\phi) = \sum_x \sum_P \prod_{r \in P} \phi_{x + r}

    Images are the pattern under reflections and exchanges of the axes, each once but for
    translations, so that every term of the lattice is in the sum once (twice where the way round
    a periodic side is as long in both directions).

    Args:
        name: in words, such as "nearest".
        sites: positions r of the factors, integers, one for each of the first axes; the others are
            zero. A position that stands twice is a square.

    Example:
        >>> nearest = Operator("nearest", ((0,), (1,)))
        >>> nearest(torch.ones(5, 8, 8), (8, 8))[0]  # two bonds of each site
        tensor(128., dtype=torch.float64)
    """

    name: str
    sites: Pattern

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a word")
        accepted = f"positions, each of one to {MAX_DIM} integers, as many for all"
        check_type("sites", self.sites, Sequence, accepted)
        for site in self.sites:
            check_integers("sites", site, accepted)
        object.__setattr__(self, "sites", tuple(map(tuple, self.sites)))
        lengths = {len(site) for site in self.sites}
        if len(lengths) != 1 or not lengths <= set(range(1, MAX_DIM + 1)):
            raise ValueError(f"sites is {self.sites}; accepted: {accepted}")

    @property
    def degree(self) -> int:
        """Number of factors."""
        return len(self.sites)

    @property
    def parity(self) -> str:
        """The sign under reflection of the field, "even" or "odd"."""
        return PARITIES[self.degree % 2]

    @property
    def has_powers(self) -> bool:
        """True if a position stands twice, which says nothing new of spins."""
        return len(set(self.sites)) < self.degree

    @property
    def dimension(self) -> int:
        """The number of axes that the pattern needs."""
        return len(self.sites[0])

    @property
    def extent(self) -> int:
        """The largest distance along an axis."""
        return max(max(axis) - min(axis) for axis in zip(*self.sites, strict=True))

    def fits(self, shape: Iterable[int]) -> bool:
        """True if the lattice has the axes, and every side has more sites than the pattern."""
        sides = check_shape(shape)
        return self.dimension <= len(sides) and self.extent < min(sides)

    def images(self, dimension: int) -> tuple[Pattern, ...]:
        """The pattern under the symmetries of a lattice of so many axes, from the origin on.

        Example:
            >>> Operator("nearest", ((0,), (1,))).images(2)
            (((0, 0), (0, 1)), ((0, 0), (1, 0)))
        """
        dimension = check_integer("dimension", dimension, self.dimension, MAX_DIM)
        return _images(self.sites, dimension)

    def __call__(self, fields: Tensor, shape: Iterable[int]) -> Tensor:
        """The sum of each field; see :func:`operator_sums`."""
        return operator_sums(fields, shape, (self,))[..., 0]


OPERATORS = (
    Operator("nearest", ((0,), (1,))),
    Operator("square", ((0,), (0,))),
    Operator("diagonal", ((0, 0), (1, 1))),
    Operator("fourth_power", ((0,), (0,), (0,), (0,))),
    Operator("plaquette", ((0, 0), (0, 1), (1, 0), (1, 1))),
    Operator("two_apart", ((0,), (2,))),
    Operator("nearest_squares", ((0,), (0,), (1,), (1,))),
    Operator("knight", ((0, 0), (1, 2))),
    Operator("diamond", ((0, 1), (1, 0), (1, 2), (2, 1))),
    Operator("two_diagonals", ((0, 0), (2, 2))),
    Operator("tee", ((0, 0), (0, 1), (0, 2), (1, 1))),
    Operator("zigzag", ((0, 0), (0, 1), (1, 1), (1, 2))),
    Operator("ell", ((0, 0), (0, 1), (0, 2), (1, 2))),
    Operator("space_diagonal", ((0, 0, 0), (1, 1, 1))),
    Operator("row_of_four", ((0,), (1,), (2,), (3,))),
    Operator("field", ((0,),)),
    Operator("cube", ((0,), (0,), (0,))),
    Operator("corner", ((0, 0), (0, 1), (1, 0))),
    Operator("row_of_three", ((0,), (1,), (2,))),
    Operator("square_neighbour", ((0,), (0,), (1,))),
    Operator("hook", ((0, 0), (0, 1), (1, 2))),
    Operator("fan", ((0, 0), (0, 2), (1, 1))),
    Operator("cross", ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))),
    Operator("two_and_one", ((0,), (1,), (3,))),
)
"""The operators that are known by name, shortest and simplest first, even ones before odd ones."""


def lattice_operators(
    shape: Iterable[int], parity: str | None = None, *, spins: bool = False
) -> tuple[Operator, ...]:
    """The known operators that fit a lattice, the most important first.

    Patterns are at most half as wide as the lattice: of wider ones some are the same, round it.

    Args:
        shape: lattice shape, one to three sides.
        parity: "even" or "odd"; None for both, even ones first.
        spins: leave out those with powers, which say nothing new of spins of +1 and -1.

    Example:
        >>> [operator.name for operator in lattice_operators((2, 2), "odd", spins=True)]
        ['field', 'corner']
    """
    sides = check_shape(shape)
    accepted = PARITIES if parity is None else (check_choice("parity", parity, PARITIES),)
    check_type("spins", spins, bool, "True or False")
    return tuple(
        operator
        for operator in OPERATORS
        if operator.fits(sides)
        and 2 * operator.extent <= min(sides)
        and operator.parity in accepted
        and not (spins and operator.has_powers)
    )


def operator_sums(
    fields: Tensor, shape: Iterable[int], operators: Sequence[Operator] | None = None
) -> Tensor:
    """The sums of operators over a periodic lattice, of each field; differentiable.

    O(N) for each image of each operator.

    Args:
        fields: any batch shape + ``shape``, of a floating dtype.
        shape: lattice shape, one to three sides.
        operators: default: those of :func:`lattice_operators`.

    Returns:
        Float64, batch shape + ``(operators,)``; extensive, not divided by the number of sites.

    Example:
        >>> spins = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
        >>> operator_sums(spins, (4,), lattice_operators((4,), spins=True)[:2])
        tensor([[0., 0.]], dtype=torch.float64)
    """
    sides = check_shape(shape)
    batch = check_values("fields", fields, sides).shape[: fields.dim() - len(sides)]
    chosen = check_operators(lattice_operators(sides) if operators is None else operators, sides)
    images = [operator.images(len(sides)) for operator in chosen]
    at_once = max(1, SITES_IN_CACHE // math.prod(sides))
    sums = [_sums(part, images) for part in fields.reshape(-1, *sides).split(at_once)]
    return torch.cat(sums).reshape(*batch, len(chosen))


def check_operators(operators: Sequence[Operator], shape: tuple[int, ...]) -> tuple[Operator, ...]:
    """Return operators, at least one, if all fit the lattice, else raise."""
    accepted = f"a sequence of Operator, at least one, that fit the lattice {shape}"
    check_type("operators", operators, Sequence, accepted)
    for operator in operators:
        check_type("operators", operator, Operator, accepted)
    if not operators or not all(operator.fits(shape) for operator in operators):
        wrong = [operator.name for operator in operators if not operator.fits(shape)]
        raise ValueError(f"operators is {wrong}; accepted: {accepted}")
    return tuple(operators)


@functools.lru_cache(maxsize=128)
def _images(sites: Pattern, dimension: int) -> tuple[Pattern, ...]:
    """All patterns that the symmetries of the lattice make of one, from the origin on."""
    padded = [(*site, *(0,) * (dimension - len(site))) for site in sites]
    found = set()
    for axes in itertools.permutations(range(dimension)):
        for signs in itertools.product((1, -1), repeat=dimension):
            moved = [
                [sign * site[axis] for axis, sign in zip(axes, signs, strict=True)]
                for site in padded
            ]
            least = [min(column) for column in zip(*moved, strict=True)]
            pattern = [tuple(r - at for r, at in zip(site, least, strict=True)) for site in moved]
            found.add(tuple(sorted(pattern)))
    return tuple(sorted(found))


def _sums(fields: Tensor, images: Sequence[Sequence[Pattern]]) -> Tensor:
    """The sums of a few fields, ``(fields, operators)``; images are added up before the sites."""
    dim = tuple(range(1, fields.dim()))
    sites = {site for patterns in images for pattern in patterns for site in pattern}
    moved = {site: fields.roll([-r for r in site], dim) for site in sites}
    columns = []
    for patterns in images:
        total = torch.zeros_like(fields)
        for pattern in patterns:
            product = moved[pattern[0]]
            for site in pattern[1:]:
                product = product * moved[site]
            total = total + product
        columns.append(total.flatten(1).sum(1, dtype=torch.float64))
    return torch.stack(columns, -1)
