# SPDX-License-Identifier: Apache-2.0
"""Flip one sign, of a log-determinant, a score or a head: the law that should notice does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from pyro_neuralrg.transforms import (
    CovarianceLayer,
    FourierLayer,
    bijectors,
    coupling_sequence,
    elementwise,
    fourier,
    hierarchical,
    networks,
)
from tests.transforms import test_compiled, test_laws


def ladj(name: str, way: str = "forward_and_ladj") -> None:
    test_laws.test_ladj_is_that_of_the_full_jacobian(name, way)


def inverse_ladj(name: str) -> None:
    ladj(name, "inverse_and_ladj")


EAGER = coupling_sequence.EAGER
score = test_laws.test_score_is_the_gradient_of_the_density
reference = test_compiled.test_results_are_those_of_the_reference
context = test_compiled.test_score_of_the_context

MUTANTS: dict[str, tuple[Any, str, int, Callable[[str], None], str]] = {
    # whose function, which of its results, the law and its entry
    "tanh maps": (elementwise.AffineTanh, "forward", 1, ladj, "mera-two-sites"),
    "inverse tanh maps": (elementwise.AffineTanh, "inverse", 1, inverse_ladj, "mera-two-sites"),
    "lines": (elementwise.Affine, "forward", 1, ladj, "realnvp-block-2"),
    "inverse lines": (elementwise.Affine, "inverse", 1, inverse_ladj, "realnvp-block-2"),
    "compiled couplings": (coupling_sequence, "apply_couplings", 1, ladj, "mera-two-sites"),
    "modes": (fourier._ModeScaling, "_pass", 1, ladj, "learned-spectrum-1d"),
    "any covariance": (CovarianceLayer, "_pass", 1, ladj, "covariance-2d"),
    "blocks of others": (bijectors._Foreign, "_pass", 1, ladj, "elementwise-block"),
    "each block": (bijectors._Blockwise, "_pass", 1, ladj, "realnvp-per-block-odd-side"),
    "compiled score": (coupling_sequence, "apply_couplings", 2, score, "mera-two-sites"),
    "score of plain couplings": (EAGER, "couple_with_score", 3, score, "mera-1d"),
    "score of what is seen": (EAGER, "couple_with_score", 2, score, "mera-1d"),
    "score of modes": (FourierLayer, "push_score", 2, score, "fourier-2d"),
    "score of any covariance": (CovarianceLayer, "push_score", 2, score, "covariance-2d"),
    "score of a context": (coupling_sequence.CouplingSequence, "push_score", 3, context, "context"),
    "place": (networks, "_heads", 0, reference, "line"),
    "form": (networks, "_heads", 1, reference, "line"),
}
PLAIN = {name for name, mutant in MUTANTS.items() if mutant[0] is EAGER}
PLAIN |= {name for name, mutant in MUTANTS.items() if "tanh" in name or "lines" in name}


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_notices(mutant: str, flips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, index, law, name = MUTANTS[mutant]
    function = getattr(owner, attribute)
    calls = 0

    def flipped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        found = list(function(*arguments, **options))
        found[index] = -found[index] if flips else found[index]
        return tuple(found)

    if owner is EAGER:
        operations = owner._replace(**{attribute: flipped})
        monkeypatch.setattr(hierarchical, "EAGER", operations)
    else:
        monkeypatch.setattr(owner, attribute, flipped)
    noticed = pytest.raises(AssertionError) if flips else contextlib.nullcontext()
    with test_compiled.plain_torch() if mutant in PLAIN else contextlib.nullcontext(), noticed:
        law(name)
    assert calls
