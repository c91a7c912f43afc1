# SPDX-License-Identifier: Apache-2.0
"""Block spins, and sums of operators of the fields of all scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.analysis.operators import Operator, operator_sums
from pyro_neuralrg.analysis.renormalization import pyramid
from pyro_neuralrg.analysis.scales import block_sums, check_scalar
from pyro_neuralrg.arguments import check_choice, check_integer, check_values
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales

RULES = ("majority", "average", "decimation")
LEAST_SIDE = 4
"""Side of the coarsest lattice by default: on fewer sites most operators do not fit."""
SITES_AT_A_TIME = 2**22
SQUARE = Operator("square", ((0,), (0,)))


def block_spins(
    fields: Tensor,
    shape: Iterable[int],
    rule: str = "majority",
    *,
    seed: int | torch.Generator | None = None,
) -> Tensor:
    """The fields of blocks of two sites along every axis: half as many sites on each side.

    Args:
        fields: any batch shape + ``shape``; for the majority rule of +1 and -1.
        shape: lattice shape, sides even.
        rule: "majority", ties broken at random; "average", the mean of a block; or "decimation",
            its first site.
        seed: of the ties, a number or a generator; None: torch's own random numbers continue.

    Example:
        >>> block_spins(torch.tensor([[1.0, 1.0, -1.0, -1.0]]), (4,))
        tensor([[ 1., -1.]])
    """
    sides = check_shape(shape)
    check_values("fields", fields, sides)
    check_choice("rule", rule, RULES)
    generator = generator_of(seed)
    if any(side % 2 for side in sides):
        raise ValueError(f"shape is {sides}; accepted: even sides")
    first = fields.dim() - len(sides)
    if rule == "decimation":
        first_sites: Any = (Ellipsis, *[slice(None, None, 2)] * len(sides))
        return fields[first_sites]
    halves = [part for side in sides for part in (side // 2, 2)]
    within = tuple(range(first + 1, first + 2 * len(sides), 2))
    means = fields.reshape(*fields.shape[:first], *halves).mean(within)
    if rule == "average":
        return means
    if not are_spins(fields):
        raise ValueError("fields has other entries; accepted for the majority rule: +1 and -1")
    ties = torch.where(torch.rand(means.shape, generator=generator) < 0.5, -1.0, 1.0).to(means)
    return torch.where(means == 0, ties, means).sign()


def blocked_shapes(sides: tuple[int, ...], blocking: Any, levels: Any) -> list[tuple[int, ...]]:
    """The lattices of all scales, if sides can be divided so often."""
    factor, most = 2, max(sides).bit_length()
    if isinstance(blocking, HierarchicalFlow):
        check_scalar(blocking, "blocking")
        factor, most = blocking.circuit.block, number_of_scales(blocking.circuit)
        if blocking.shape != sides:
            raise ValueError(f"shape is {sides}; accepted: {blocking.shape}, the flow's")
        if blocking.circuit.boundary != "periodic" or not most:
            raise ValueError(
                f"blocking is {blocking!r}; accepted: a flow of a periodic lattice with decimators"
            )
    elif not isinstance(blocking, str) or blocking not in RULES:
        accepted = f"{', '.join(RULES)} or a HierarchicalFlow"
        raise ValueError(f"blocking is {blocking!r}; accepted: {accepted}")
    possible = [k for k in range(1, most + 1) if not any(side % factor**k for side in sides)]
    if not possible:
        raise ValueError(f"shape is {sides}; accepted: sides that can be divided by {factor}")
    if levels is None:
        wide = [k for k in possible if min(sides) >= LEAST_SIDE * factor**k]
        levels = max(wide, default=1)
    levels = check_integer("levels", levels, 1, max(possible))
    return [tuple(side // factor**k for side in sides) for k in range(levels + 1)]


def sums_by_scale(
    fields: Tensor,
    blocking: str | HierarchicalFlow,
    shapes: Sequence[tuple[int, ...]],
    operators: Sequence[Operator],
    signs: bool,
    seed: int,
) -> Tensor:
    """Sums of operators and the mean square, ``(scales, fields, operators + 1)``."""
    generator = generator_of(seed)
    parts, overlaps = [], torch.zeros(len(shapes), dtype=torch.float64)
    for part in fields.split(max(1, SITES_AT_A_TIME // math.prod(shapes[0]))):
        if isinstance(blocking, HierarchicalFlow):
            scales = list(pyramid(blocking, part)[: len(shapes)])
            for k, coarse in enumerate(scales):  # with the sums of its blocks
                products = coarse * block_sums(blocking, part, k)
                overlaps[k] += products.sum(dtype=torch.float64).cpu()
        else:
            scales = [part]
            for side in shapes[:-1]:
                scales.append(block_spins(scales[-1], side, blocking, seed=generator))
        seen = (h.sign() if signs else h for h in scales)
        pairs = zip(seen, shapes, strict=True)
        measured = [operator_sums(h, shape, (*operators, SQUARE)) for h, shape in pairs]
        parts.append(torch.stack(measured).cpu())
    sums = torch.cat(parts, 1)
    sums[:, :, -1] /= torch.tensor([math.prod(shape) for shape in shapes])[:, None]
    flipped = [operator.parity == "odd" for operator in operators] + [False]
    sums[:, :, flipped] *= torch.where(overlaps < 0, -1.0, 1.0)[:, None, None]
    return sums


def are_spins(fields: Tensor) -> bool:
    """True if all entries are +1 or -1."""
    return bool((fields.abs() == 1).all())
