# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from pyro_neuralrg.distributions.symmetrized import (
    LatticeSymmetry,
    check_group,
    distinct,
    source_table,
    symmetry_group,
)

SHAPES = [(5,), (2,), (4, 4), (3, 5), (2, 4), (1, 6), (1, 1), (2, 2, 2), (3, 3, 2)]


def composed(
    second: LatticeSymmetry, first: LatticeSymmetry, shape: tuple[int, ...]
) -> LatticeSymmetry:
    """The element that acts as the first and then the second."""
    own = list(zip(shape, second.shift, second.axes, second.flips, strict=True))
    shift = tuple((s + (-1 if f else 1) * first.shift[a]) % side for side, s, a, f in own)
    axes = tuple(first.axes[axis] for axis in second.axes)
    flips = tuple(flip != first.flips[axis] for _, _, axis, flip in own)
    return LatticeSymmetry(shift, axes, flips, second.sign * first.sign)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_where_sites_come_from(shape: tuple[int, ...]) -> None:
    """The table is what rolling, flipping and permuting does to the numbers of the sites."""
    group = symmetry_group(shape, translation_step=1, point_symmetries=True)
    sites = torch.arange(torch.Size(shape).numel()).reshape(shape)
    for element, found in zip(group, source_table(group, shape), strict=True):
        assert torch.equal(found, (element.sign * element(sites)).flatten())


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 4), (2, 3)], ids=str)
def test_groups_are_told_from_other_sets(shape: tuple[int, ...]) -> None:
    """By brute force: every product of two members, for random sets and their products."""
    everything = symmetry_group(shape, translation_step=1, point_symmetries=True)
    sites = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape)
    verdicts = set()
    for _ in range(40):
        size = int(torch.randint(1, 4, ()))
        chosen = [everything[int(at)] for at in torch.randperm(len(everything))[:size]]
        chosen = list(dict.fromkeys((everything[0], *chosen)))
        products = [composed(g, h, shape) for g in chosen for h in chosen]
        for some in (chosen, distinct(products, shape)):
            members = {tuple(g(sites).flatten().tolist()) for g in some}
            pairs = itertools.product(some, some)
            closed = {tuple(g(h(sites)).flatten().tolist()) for g, h in pairs} == members
            verdicts.add(closed)
            if closed:
                check_group(some, shape)
            else:
                with pytest.raises(ValueError, match="not closed under composition"):
                    check_group(some, shape)
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 4), 2 * 16 * 8),
        ((3, 5), 2 * 15 * 4),
        ((5,), 2 * 5 * 2),
        ((2, 2), 2 * 4 * 2),
        ((1, 1), 2),
        ((2, 2, 2), 2 * 8 * 6),
        ((8, 8), 1024),
    ],
    ids=str,
)
def test_full_group(shape: tuple[int, ...], size: int) -> None:
    """Order of the full group; a reflection of a side of 2 is a translation and counts once."""
    group = symmetry_group(shape, translation_step=1, point_symmetries=True)
    assert len(group) == size
    check_group(group, shape)
    if size > 2:
        with pytest.raises(ValueError, match="not closed"):
            check_group(group[:-1], shape)


def test_quarter_turn_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    turn = LatticeSymmetry(shift=(0, 0), axes=(1, 0), flips=(False, True))
    torch.testing.assert_close(turn(x), torch.tensor([[3.0, 1.0], [4.0, 2.0]]))
    flip = LatticeSymmetry(shift=(1, 0), axes=(0, 1), flips=(False, False), sign=-1)
    torch.testing.assert_close(flip(x), torch.tensor([[-3.0, -4.0], [-1.0, -2.0]]))


def test_not_a_group() -> None:
    shape = (4, 4)
    one = LatticeSymmetry.identity(2)
    with pytest.raises(ValueError, match="repeats"):
        check_group((one, one), shape)
    with pytest.raises(ValueError, match="permutations of equal sides"):
        check_group((one, LatticeSymmetry((0, 0), (1, 0), (False, False))), (2, 4))
    # Z2 twisted with a translation is a group although -1 is not in it.
    twisted = LatticeSymmetry((2, 0), (0, 1), (False, False), sign=-1)
    check_group((one, twisted), shape)
    coarse = symmetry_group((4, 6), spin_flips=False, translation_step=2, point_symmetries=True)
    assert len(coarse) == 6 * 4
    check_group(coarse, (4, 6))
    with pytest.raises(ValueError, match="translation_step is 3; accepted: a divisor"):
        symmetry_group((4, 6), translation_step=3)
    for wrong in ({"sign": 2}, {"axes": (0, 0)}, {"flips": (True,)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; accepted: 1 or -1, a pe"):
            dataclasses.replace(one, **wrong)  # type: ignore[arg-type]
