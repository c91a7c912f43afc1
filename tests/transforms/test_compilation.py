# SPDX-License-Identifier: Apache-2.0
"""Couplings run through torch.compile give the same, and go on as they are where it fails."""

from __future__ import annotations

import copy
import itertools
import pickle
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    Neighbour,
    coupling_sequence,
    hierarchical_flow,
    networks,
)
from pyro_neuralrg.transforms.coupling_sequence import EAGER
from tests.transforms.registry import perturbed


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator."""
    monkeypatch.setattr(coupling_sequence, "is_compiled", lambda *_: False)


def train_shortly(compiled: bool = False) -> Tensor:
    """The losses of a few steps."""
    torch.manual_seed(0)
    target = IsingDual((4, 4))
    flow = target.flow(bijector=Neighbour(layers=2, hidden=(4,)))
    if compiled:
        flow.compile()
    result = fit(target, flow, steps=4, batch=8, seed=1, progress=False)
    return torch.as_tensor(result.history.free_energy)


def samples(transform: Any, z: Tensor) -> list[Tensor]:
    """Both kinds of samples and their gradients."""
    parameters = list(transform.parameters())
    x, ladj = transform.forward_and_ladj(z)
    again = transform.forward_with_score(z)
    losses = x.sin().sum() + ladj.sum(), (again[0] * again[2]).sum()
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    return [x, ladj, *again, *(g for part in gradients for g in part if g is not None)]


FLOWS = ["site-features-open-1d", "odd-two-sites", "realnvp-tanh", "conditioned-two-sites"]


@pytest.mark.filterwarnings("ignore")  # the compiler's own, none of them about our code
@pytest.mark.filterwarnings("error:torch.compile fails here")
@pytest.mark.parametrize("name", FLOWS)
def test_compiled_operations_give_the_same(name: str) -> None:
    """By the tracing of torch.compile alone, which takes less time than a compiler."""
    transform = perturbed(name)
    z = torch.randn(3, *transform.event_shape)
    expected = samples(transform, z)
    flow = next(part for part in transform.modules() if isinstance(part, HierarchicalFlow))
    flow.compile(backend="eager")
    found = samples(transform, z)
    assert flow._couplings(None).operations != EAGER
    torch.testing.assert_close(found, expected)


def test_copies_are_not_compiled() -> None:
    flow, z = perturbed("mera-two-sites"), torch.randn(3, 2)
    expected = flow.forward_and_ladj(z)
    flow.compile(backend="none")
    flow._couplings(None)
    for one in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(one.forward_and_ladj(z), expected)
        assert one._couplings(None).operations == EAGER


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("error:torch.compile fails here")
def test_with_the_compiler() -> None:
    torch.testing.assert_close(train_shortly(compiled=True), train_shortly())


@pytest.mark.parametrize("where", ["compile", "first", "later"])
def test_without_a_compiler_warns_once_and_works(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(function: Any, **_: Any) -> Any:
        calls = itertools.count(1)
        if where == "compile":
            raise RuntimeError("no C++ compiler")

        def call(*arguments: Any) -> Any:
            if where == "first" or next(calls) > 3:
                raise RuntimeError("no C++ compiler\nand much more")
            return function(*arguments)

        return call

    expected = train_shortly()
    monkeypatch.setattr(torch, "compile", failing)
    with pytest.warns(UserWarning, match=r"fails here \(no C\+\+ compiler\)") as warned:
        found = train_shortly(compiled=True)
    assert len(warned) == 1
    torch.testing.assert_close(found, expected)


def test_errors_of_the_flow_are_not_taken_for_those_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    flow = hierarchical_flow((4,), bijector=Neighbour(layers=1, hidden=(4,)))

    def broken(*_: Any) -> Any:
        raise ValueError("mine")

    monkeypatch.setattr(networks, "evaluate", broken)
    flow.compile()
    with pytest.raises(ValueError, match="mine"):
        flow(torch.randn(4))
    assert not recwarn.list
