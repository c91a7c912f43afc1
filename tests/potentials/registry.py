# SPDX-License-Identifier: Apache-2.0
"""Every potential, by name: one line gives it every law of test_laws.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_neuralrg.potentials import (
    Central,
    Clock,
    DoubleWell,
    DualSpins,
    FreeField,
    IsingDual,
    LatticePotential,
    LennardJonesCrystal,
    Morse,
    Phi4,
    QuarticWell,
    RingPolymer,
    Rotor,
    VectorSpinDual,
)


@dataclass(frozen=True)
class Case:
    """A potential under test.

    Attributes:
        build: makes it.
        symmetries: names in ``SYMMETRIES`` under which its energy does not change.
        exact: it knows its ln Z.
        samples: it draws reference samples.
        magnetic: its observables are those of any field.
    """

    build: Callable[[], LatticePotential]
    symmetries: tuple[str, ...] = ()
    exact: bool = True
    samples: bool = True
    magnetic: bool = True


SYMMETRIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "even": lambda x, dim: -x,
    "translation": lambda x, dim: x.roll(tuple(range(1, dim + 1)), tuple(range(-dim, 0))),
    "reflection": lambda x, dim: x.flip(-dim),
    "exchange of axes": lambda x, dim: x.transpose(-1, -2),
}

TORUS = ("even", "translation", "reflection")
OPEN = ("even", "reflection")


def quartic(x: Tensor) -> Tensor:
    """A user's energy: a double well with gradient terms."""
    differences = (x.roll(1, -1) - x).square() + (x.roll(1, -2) - x).square()
    return (differences / 2 + (x.square() - 1).square()).sum((-1, -2))


def magnet(x: Tensor) -> Tensor:
    """A user's energy of a vector field, without a preferred direction."""
    bonds = sum((x.roll(1, axis) - x).square().sum((-1, -2, -3)) for axis in (-2, -3))
    return bonds / 2 + (x.square().sum(-1) - 1).square().sum((-1, -2))


def saddle(x: Tensor) -> Tensor:
    """A potential of two coordinates that no symmetry solves."""
    u, v = x.unbind(-1)
    return (u.square() - 1).square() + 0.5 * (v - u.square()).square() + 0.1 * v


def all_coupled() -> DualSpins:
    """Spins without a lattice, in a field, some pairs without a coupling."""
    matrix = torch.sin(torch.arange(49.0, dtype=torch.float64) ** 2).reshape(7, 7).triu(1)
    matrix[0, 3:] = 0
    field = torch.linspace(-0.3, 0.6, 7)
    return DualSpins((matrix + matrix.T).to_sparse(), field, temperature=1.3)


POTENTIALS: dict[str, Case] = {
    "ising 2-d critical": Case(lambda: IsingDual((4, 4)), (*TORUS, "exchange of axes")),
    "ising 2-d hot, odd sides": Case(lambda: IsingDual((3, 5), 4.0), TORUS),
    "ising 2-d cold": Case(lambda: IsingDual((3, 4), 1.2), TORUS),
    "ising 2-d anisotropic": Case(lambda: IsingDual((4, 3), 2.0, (0.5, -1.2)), TORUS),
    "ising 2-d side 2": Case(lambda: IsingDual((2, 4), 3.0), TORUS),
    "ising 2-d side 1": Case(lambda: IsingDual((1, 6), 1.5), TORUS),
    "ising 2-d open": Case(lambda: IsingDual((4, 3), 1.8, boundary="open"), OPEN),
    "ising 2-d field": Case(
        lambda: IsingDual((3, 4), 2.5, field=0.3), ("translation", "reflection")
    ),
    "ising 2-d field per site, open": Case(
        lambda: IsingDual((3, 3), 2.0, (1.0, -0.4), torch.linspace(-1, 1, 9).reshape(3, 3), "open")
    ),
    "ising 1-d": Case(lambda: IsingDual((7,), 1.0), TORUS),
    "ising 1-d open": Case(lambda: IsingDual((6,), 0.8, (-1.0,), boundary="open"), OPEN),
    "ising 3-d": Case(lambda: IsingDual((2, 3, 2), 4.5), TORUS),
    "ising 3-d open": Case(lambda: IsingDual((2, 2, 3), 4.5, boundary="open"), OPEN),
    "spins, uniform": Case(
        lambda: DualSpins.from_bonds((4, 4), torch.ones(2, 4, 4), temperature=2.5),
        (*TORUS, "exchange of axes"),
    ),
    "spin glass": Case(lambda: DualSpins.spin_glass((4, 3), 1.5, seed=1), ("even",)),
    "spin glass, open, side 2": Case(
        lambda: DualSpins.spin_glass((2, 2, 3), 2.0, positive=0.8, seed=1, boundary="open"),
        ("even",),
    ),
    "random field": Case(lambda: DualSpins.random_field((3, 4), 0.8, 2.5, seed=2)),
    "spins, all coupled": Case(all_coupled),
    "heated spins": Case(lambda: DualSpins.spin_glass((2, 4), 1.0, seed=3).heated(1.5), ("even",)),
    "free field 1-d": Case(lambda: FreeField((6,), 0.5), TORUS),
    "free field 2-d": Case(lambda: FreeField((5, 5), 1.0), (*TORUS, "exchange of axes")),
    "free field 2-d side 2 and 1": Case(lambda: FreeField((2, 1), 0.7), TORUS),
    "free field 2-d open, massless": Case(lambda: FreeField((4, 3), 0.0, "open"), OPEN),
    "free field 2-d open, side 1": Case(lambda: FreeField((1, 4), 0.5, "open"), OPEN),
    "free field 1-d open, one site": Case(lambda: FreeField((1,), 0.5, "open"), OPEN),
    "free field 3-d": Case(lambda: FreeField((2, 3, 4), 0.3), TORUS),
    "phi4 2-d": Case(lambda: Phi4((4, 4), 0.25, 0.022), (*TORUS, "exchange of axes"), exact=False),
    "phi4 2-d broken, odd sides": Case(lambda: Phi4((3, 5), 0.4, 0.5), TORUS, exact=False),
    "phi4 2-d open, negative kappa": Case(
        lambda: Phi4((3, 4), -0.3, 1.0, "open"), OPEN, exact=False
    ),
    "phi4 1-d": Case(lambda: Phi4((5,), 0.3, 0.1), TORUS, exact=False),
    "phi4 3-d, sides 2 and 1": Case(lambda: Phi4((2, 3, 1), 0.15, 0.3), TORUS, exact=False),
    "phi4 of two components": Case(
        lambda: Phi4((3, 2), 0.3, 0.2, components=2), TORUS, exact=False, samples=False
    ),
    "phi4 of three components, open": Case(
        lambda: Phi4((4,), 0.3, 0.2, "open", components=3), OPEN, exact=False, samples=False
    ),
    "phi4 of two components, free": Case(
        lambda: Phi4((3,), 0.2, 0.0, components=2), TORUS, samples=False
    ),
    "phi4 free": Case(lambda: Phi4((4, 3), 0.2, 0.0), TORUS),
    "phi4 free, open": Case(lambda: Phi4((4,), -0.4, 0.0, "open"), OPEN),
    "user's energy": Case(
        lambda: LatticePotential.from_energy((4, 4), quartic, even=True),
        (*TORUS, "exchange of axes"),
        exact=False,
        samples=False,
    ),
    "heated user's energy": Case(
        lambda: LatticePotential.from_energy((4, 5), quartic, even=True).heated(1.5),
        TORUS,
        exact=False,
        samples=False,
    ),
    "user's vector energy": Case(
        lambda: LatticePotential.from_energy((3, 4), magnet, even=True, components=2),
        TORUS,
        exact=False,
        samples=False,
    ),
    "ring polymer, double well": Case(
        lambda: RingPolymer(6, DoubleWell(1.0, 3.0), beta=3.0), TORUS, samples=False
    ),
    "ring polymer, twisted": Case(
        lambda: RingPolymer(6, DoubleWell(1.0, 3.0), beta=3.0, twisted=True), OPEN, samples=False
    ),
    "ring polymer, Morse": Case(
        lambda: RingPolymer(5, Morse(2.0, 2.5), beta=1.5, mass=2.0), TORUS[1:], samples=False
    ),
    "ring polymer, one bead": Case(
        lambda: RingPolymer(1, QuarticWell(0.5), beta=1.0), TORUS, samples=False
    ),
    "ring polymer 3-d": Case(
        lambda: RingPolymer(4, Central(QuarticWell()), beta=1.0, dimensions=3), TORUS, samples=False
    ),
    "ring polymer 2-d, any": Case(
        lambda: RingPolymer(3, saddle, beta=1.0, dimensions=2), (), exact=False, samples=False
    ),
    "xy": Case(lambda: VectorSpinDual((2, 3), Rotor(2), 1.2), TORUS, magnetic=False),
    "heisenberg chain, open": Case(
        lambda: VectorSpinDual((4,), Rotor(3), 1.2, coupling=-1.0, boundary="open"),
        OPEN,
        magnetic=False,
    ),
    "heisenberg": Case(
        lambda: VectorSpinDual((3, 3), Rotor(3), 1.2),
        TORUS,
        exact=False,
        magnetic=False,
    ),
    "clock of four": Case(lambda: VectorSpinDual((2, 3), Clock(4), 1.0), TORUS, magnetic=False),
    "potts": Case(lambda: VectorSpinDual.potts((3, 3), 1.0), ("reflection",), magnetic=False),
    "crystal, triangular": Case(
        lambda: LennardJonesCrystal((3, 2), 1.0, 1.0).linearised(0.9),
        exact=False,
        samples=False,
        magnetic=False,
    ),
    "crystal, fcc, heated": Case(
        lambda: LennardJonesCrystal((1, 1, 2), 1.28, 2.0, cutoff=1.6).linearised(0.9).heated(1.5),
        exact=False,
        samples=False,
        magnetic=False,
    ),
    "heated ising": Case(lambda: IsingDual((4, 4), field=-0.2).heated(1.5), TORUS[1:]),
}
