# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters named all at once leave the traces that one statement for each leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyro_neuralrg.infer.pyro_internals import name_parameters

NAMES = ("a", "b", "c")


class Renamed(Messenger):
    """Does something else to each parameter."""

    def _pyro_param(self, msg: Any) -> None:
        msg["infer"] = {"seen": msg["name"]}


class Deaf(Messenger):
    """Has nothing to do with parameters."""

    def _pyro_sample(self, msg: Any) -> None:
        raise AssertionError("no sample statement is made here")


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "plate": lambda: pyro.plate("p", 3),
    "subsample": lambda: pyro.plate("p", 6, subsample_size=2),
    "scale": lambda: poutine.scale(scale=2.0),
    "mask": lambda: poutine.mask(mask=torch.tensor(False)),
    "other messenger": Deaf,
    "block": lambda: poutine.block(hide=["b"]),
    "lift": lambda: poutine.lift(prior=dist.Normal(0.0, 1.0)),
    "own messenger": Renamed,
    "substitute": lambda: poutine.substitute(data={"b": torch.ones(2)}),
}


def run(name_all: Callable[[], None], surroundings: Callable[[], Any]) -> list[Any]:
    """The nodes of an outer and of an inner trace."""
    pyro.set_rng_seed(0)
    with poutine.trace(param_only=True) as outer, surroundings(), poutine.trace() as inner:
        name_all()
    return [outer.trace.nodes, inner.trace.nodes]


@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_traces_are_those_of_single_statements(kind: str) -> None:
    named = [(name, torch.nn.Parameter(torch.randn(2))) for name in NAMES]

    def by_statements() -> None:
        for name, value in named:
            pyro.param(name, value)

    def at_once() -> None:
        name_parameters(named, pyro.get_param_store().get_param)

    expected = run(by_statements, SURROUNDINGS[kind])
    for _ in range(2):  # with the parameters in the store, and without
        found = run(at_once, SURROUNDINGS[kind])
        for ours, theirs in zip(found, expected, strict=True):
            assert list(ours) == list(theirs)
            for name in theirs:
                assert same(ours[name], theirs[name]), name
        pyro.clear_param_store()


def same(ours: Any, theirs: Any) -> bool:
    """Whether two sites are equal but for the counters of plates and what is drawn for them."""
    if ours.keys() != theirs.keys() or ours["type"] != theirs["type"]:
        return False
    fixed = ("name", "is_observed", "scale", "done", "stop", "infer")
    frames = [
        [(frame.name, frame.size, frame.full_size) for frame in site["cond_indep_stack"]]
        for site in (ours, theirs)
    ]
    return (
        all(ours[key] == theirs[key] for key in fixed)
        and frames[0] == frames[1]
        and torch.equal(ours["value"], theirs["value"])
        and hasattr(ours["value"], "unconstrained") == hasattr(theirs["value"], "unconstrained")
    )


def test_no_parameters() -> None:
    name_parameters([], pyro.get_param_store().get_param)
    assert list(pyro.get_param_store()) == []
