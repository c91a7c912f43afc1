# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments of potentials and families: named, with what is accepted instead."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from pyro_neuralrg.potentials import (
    DualSpins,
    FreeField,
    IsingDual,
    IsingDualFamily,
    IsingFieldFamily,
    LatticePotential,
    Phi4,
    Phi4Family,
    SpinModel,
)

FAMILY = IsingDualFamily((4, 3), (2.0, 2.7))
FIELDS = IsingFieldFamily((4, 3), (0.0, 1.0))
ising = partial(IsingDual, (4, 4))
free = partial(FreeField, (4, 4))
LINE = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
bonds = partial(DualSpins.from_bonds, (2, 3))
from_energy = partial(LatticePotential.from_energy, (3, 4))


def gaussian(x: Tensor) -> Tensor:
    return x.square().sum((-1, -2)) / 2


WRONG_VALUES: list[tuple[Any, str]] = [
    (partial(IsingDual, ()), "shape is"),
    (partial(ising, 0.0), r"temperature is 0\.0; accepted: a finite number > 0"),
    (partial(ising, math.nan), "temperature is nan; accepted: .* number > 0"),
    (
        partial(IsingDual, (8,)),
        r"temperature is not given for the shape \(8,\).*accepted: a finite",
    ),
    (partial(IsingDual, (1, 6)), r"temperature is not given for the shape \(1, 6\).*accepted"),
    (partial(ising, 1e-310), "temperature is 1e-310; accepted: .* as is 1 / T"),
    (partial(ising, couplings=(1.0,)), r"couplings is \(1\.0,\); accepted: one finite J"),
    (partial(ising, couplings=(1.0, math.nan)), r"couplings is \(1\.0, nan\); accepted"),
    (partial(ising, field=torch.zeros(3, 4)), r"field has shape \(3, 4\).*accepted.*\(4, 4\)"),
    (partial(ising, field=math.nan), "field has entries that are not finite; accepted"),
    (partial(ising, boundary="twisted"), "boundary is 'twisted'; accepted: periodic, open"),
    (partial(SpinModel, torch.ones(2, 3)), r"couplings has shape \(2, 3\); accepted: a finite sym"),
    (partial(SpinModel, torch.zeros(0, 0)), r"couplings has shape \(0, 0\); accepted"),
    (partial(SpinModel, math.nan * LINE), "couplings has entries that are not finite; accepted"),
    (partial(SpinModel, LINE.triu()), "couplings has K_ij other than K_ji; accepted"),
    (partial(SpinModel, LINE + torch.eye(2)), "couplings has a diagonal; accepted: .* zero diag"),
    (partial(SpinModel, LINE, shape=(3,)), r"couplings has 2 sites; accepted: .* shape \(3,\)"),
    (partial(SpinModel, LINE, temperature=0.0), r"temperature is 0\.0; accepted"),
    (partial(SpinModel, LINE, [1.0, math.inf]), "field has entries that are not finite; accepted"),
    (partial(DualSpins, LINE, boundary="free"), "boundary is 'free'; accepted"),
    (partial(bonds, torch.ones(2, 3)), r"bonds has shape \(2, 3\) or nan; .* \(2, 2, 3\)"),
    (partial(bonds, torch.full((2, 2, 3), math.nan)), r"bonds has shape .* or nan; accepted"),
    (partial(DualSpins.spin_glass, (2, 3), positive=1.5), r"positive is 1\.5; accepted: a prob"),
    (partial(DualSpins.random_field, (2, 3), math.inf), "strength is inf; accepted"),
    *(
        (call, r"shape is \(256, 256\), 65536 sites; accepted: up to 4096 sites")
        for call in (
            partial(DualSpins.spin_glass, (256, 256)),
            partial(DualSpins.random_field, (256, 256), 1.0),
            partial(DualSpins.from_bonds, (256, 256), torch.ones(2, 256, 256)),
        )
    ),
    (partial(DualSpins(LINE).heated, 0.0), r"factor is 0\.0; accepted"),
    (partial(free, 0.0), r"mass is 0\.0; accepted: a number > 0, or >= 0 with boundary"),
    (partial(free, -1.0, "open"), r"mass is -1\.0; accepted"),
    (partial(free(1.0).correlations, (1,)), r"site is .*accepted"),
    (partial(free(1.0).correlations, (4, 0)), r"site is .*accepted"),
    (partial(Phi4, (4, 4), 0.2, -0.1), r"lam is -0\.1; accepted: a finite number >= 0"),
    (partial(Phi4, (4, 4), 0.25, 0.0), r"kappa is 0\.25 with lam = 0.*accepted"),
    (partial(Phi4, (4, 4), -0.26, 0.0), r"kappa is -0\.26 with lam = 0.*accepted"),
    (partial(Phi4.from_mass, (4, 4), -4.0, 0.0), r"m2 is -4\.0 with g = 0; accepted: .* > -4"),
    (partial(Phi4.from_mass, (4, 4), 0.0, -1.0), r"g is -1\.0; accepted"),
    (lambda: Phi4((4, 4), -0.2, 1.0).quartic, r"kappa is -0\.2; accepted"),
    (partial(IsingDualFamily, (4, 4), (2.7, 2.0)), r"temperatures is .*; accepted"),
    (partial(IsingDualFamily, (4, 4), (0.0, 1.0)), r"temperatures is .*; accepted"),
    (partial(IsingFieldFamily, (4, 4), (0.5, 0.5)), r"fields is \(0\.5, 0\.5\); accepted: \(low"),
    (partial(IsingFieldFamily, (4, 4), (0.0, math.inf)), r"fields is \(0\.0, inf\); accepted"),
    (partial(IsingFieldFamily, (8,), (0.0, 1.0)), "temperature is not given for the shape"),
    (partial(Phi4Family, (4, 4), 0.2, 0.5), r"kappa is 0\.2 and lam is 0\.5; accepted: a range"),
    (partial(Phi4Family, (4, 4), (0.2, 0.3), (0.5, 1)), "and lam is .*; accepted: a range .* one"),
    (partial(Phi4Family, (4, 4), (0.3, 0.2), 0.5), r"kappa is \(0\.3, 0\.2\); accepted: \(lowest"),
    (partial(Phi4Family, (4, 4), (0.2, 0.3), -0.5), r"lam is -0\.5; accepted"),
    (partial(Phi4Family, (4, 4), 0.2, (-0.1, 0.3)), r"lam is -0\.1; accepted"),
    (partial(FAMILY.contexts, [1.99]), r"temperatures is .*accepted: from 2\.0 to 2\.7"),
    (partial(FAMILY.contexts, [2.71]), r"temperatures is .*accepted: from 2\.0 to 2\.7"),
    (partial(FAMILY.heated, 0.0), r"factor is 0\.0; accepted"),
    (partial(FAMILY.energy, torch.zeros(3, 3), torch.zeros(1)), r"x has shape .*accepted: .*4, 3"),
    (partial(FAMILY.energy, torch.zeros(4, 3), torch.zeros(2)), r"context has shape .*\.\.\., 1"),
    (partial(from_energy, lambda x: x.square().sum()), r"fn returned shape \(\) for fields of"),
    (partial(from_energy, lambda x: x.square().sum((0, 1))), r"fn returned shape \(4,\).*accepted"),
    (partial(from_energy, lambda x: x.log().sum((-1, -2))), "fn returned NaN.*accepted"),
    (partial(from_energy, lambda x: gaussian(x - 1), even=True), "even is True but"),
    (partial(from_energy, gaussian, spectrum=torch.ones(2, 3, 4)), r"spectrum has shape .*\(3, 4"),
    (partial(from_energy, gaussian, spectrum=torch.zeros(3, 4)), r"an entry 0\.0; accepted"),
    (
        partial(from_energy, gaussian, spectrum=torch.full((3, 4), math.nan)),
        "an entry nan; accepted",
    ),
]

WRONG_TYPES: list[tuple[Any, str]] = [
    (partial(IsingDual, (4.0, 4)), "shape is"),
    (partial(ising, "hot"), "temperature is 'hot'; accepted"),
    (partial(ising, couplings=1.0), "couplings is a float; accepted: one finite J for"),
    (partial(ising, field=[[0.0, 1.0], [2.0]]), "field is .*accepted"),
    (partial(ising, field=1j), "field is .*accepted"),
    (partial(SpinModel, "couplings"), "couplings is a str; accepted: a finite symmetric matrix"),
    (
        partial(SpinModel, csr_matrix(LINE)),
        "couplings is a csr_.*, dense, or a sparse torch",
    ),
    (partial(bonds, 1j), "bonds is a complex; accepted: finite numbers of shape"),
    (partial(free, "heavy"), "mass is 'heavy'; accepted"),
    (partial(free(1.0).correlations, (0.5, 0)), r"site is .*accepted"),
    (partial(IsingDualFamily, (4, 4), 2.0), r"temperatures is .*; accepted"),
    (partial(IsingDualFamily, (4, 4), ("a", 1)), r"temperatures is .*; accepted"),
    (partial(IsingFieldFamily, (4, 4), 0.5), "fields is .*; accepted"),
    (partial(Phi4Family, (4, 4), ("a", 1), 0.5), "kappa is .*; accepted"),
    (partial(Phi4Family, (4, 4), [[0.2], [0.3, 0.4]], 0.5), "kappa is .*; accepted"),
    (partial(from_energy, lambda x: (x > 0).sum((-1, -2))), "the result of fn is torch.int64; acc"),
    (partial(FAMILY.contexts, ["a"]), "temperatures is a list; accepted: real numbers"),
    (partial(FIELDS.contexts, ["a"]), "fields is a list; accepted: real numbers"),
    (partial(from_energy, 3), "fn is an int; accepted: a function of fields"),
    (partial(from_energy, gaussian, spectrum=[1.0]), "spectrum is list; accepted"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *((call, ValueError, message) for call, message in WRONG_VALUES),
        *((call, TypeError, message) for call, message in WRONG_TYPES),
    ],
)
def test_wrong_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
