# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Names at their old places: the same objects, with a warning on use."""

import importlib
from typing import Any

import pytest

import pyro_neuralrg
from pyro_neuralrg import free_energy, mcmc, train


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        *[
            ("pyro_neuralrg.infer", name, free_energy)
            for name in ("estimate", "anneal", "bounds", "expectations", "thermodynamics")
        ],
        ("pyro_neuralrg.infer", "fit", train),
        ("pyro_neuralrg.infer", "save", pyro_neuralrg),
        *[("pyro_neuralrg.infer.mcmc", name, mcmc) for name in mcmc.__all__],
    ],
)
def test_is_forwarded(old: str, name: str, new: Any) -> None:
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=rf"{old}\.{name} is now {new.__name__}\.{name}"):
        assert getattr(module, name) is getattr(new, name)


@pytest.mark.parametrize("old", ["pyro_neuralrg.infer", "pyro_neuralrg.infer.mcmc"])
def test_unknown_names(old: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = importlib.import_module(old).nothing
