# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Couplings run through torch.compile give the same, and go on as they are where it fails."""

from __future__ import annotations

import contextlib
import functools
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.transforms import Neighbour, compilation, coupling_sequence, hierarchical_flow
from pyro_neuralrg.transforms.compilation import (
    active_operations,
    compiled_operations,
)
from tests.transforms.registry import perturbed


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator."""
    monkeypatch.setattr(coupling_sequence, "is_compiled", lambda *_: False)


FLOWS = ["site-features-open-odd-sides", "odd-with-spectrum", "realnvp", "conditioned"]


def everything(transform: Any, z: Tensor) -> list[Tensor]:
    """Both kinds of samples and their gradients."""
    parameters = list(transform.parameters())
    x, ladj = transform.forward_and_ladj(z)
    plain = torch.autograd.grad(x.sin().sum() + ladj.sum(), parameters)
    x_again, ladj_again, score = transform.forward_with_score(z)
    path = torch.autograd.grad((x_again * score).sum(), parameters, allow_unused=True)
    found = [x, ladj, x_again, ladj_again, score, *plain, *path]
    return [tensor.detach() for tensor in found if tensor is not None]


@pytest.mark.filterwarnings("ignore")  # the compiler's own, none of them about our code
@pytest.mark.filterwarnings("error:torch.compile fails here")
@pytest.mark.parametrize("name", FLOWS)
def test_compiled_operations_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tracing of torch.compile alone, which takes less time than a compiler."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    transform = perturbed(name)
    z = torch.randn(3, *transform.event_shape)
    expected = everything(transform, z)
    with compiled_operations():
        assert active_operations() is not compilation.EAGER
        found = everything(transform, z)
    assert active_operations() is compilation.EAGER
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("error:torch.compile fails here")
def test_with_the_compiler() -> None:
    target = IsingDual((4, 4))
    bijector = Neighbour(layers=2, hidden=(4,))
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        flow = target.flow(bijector=bijector)
        options = {"steps": 3, "batch": 8, "seed": 1, "progress": False}
        with compiled_operations() if compile else contextlib.nullcontext():
            histories.append(fit(target, flow, **options).history.free_energy)
    torch.testing.assert_close(*map(torch.as_tensor, histories))


@pytest.mark.parametrize("where", ["compile", "first", "later"])
def test_without_a_compiler_warns_once_and_works(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(function: Any, **_: Any) -> Any:
        calls = 0
        if where == "compile":
            raise RuntimeError("no C++ compiler")

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if where == "first" or calls > 3:
                raise RuntimeError("no C++ compiler\nand much more")
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", failing)
    target = IsingDual((4, 4))
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        flow = target.flow(bijector=Neighbour(layers=2, hidden=(4,)))
        options = {"steps": 4, "batch": 8, "seed": 1, "progress": False}
        if compile:
            said = r"fails here \(no C\+\+ compiler\)"
            with compiled_operations(), pytest.warns(UserWarning, match=said) as warned:
                found.append(fit(target, flow, **options).history.free_energy)
            assert len(warned) == 1
        else:
            found.append(fit(target, flow, **options).history.free_energy)
    torch.testing.assert_close(*map(torch.as_tensor, found))


def test_errors_of_the_flow_are_not_taken_for_those_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    flow = hierarchical_flow((4,), bijector=Neighbour(layers=1, hidden=(4,)))

    def broken(*_: Any) -> Any:
        raise ValueError("mine")

    monkeypatch.setattr(compilation, "evaluate", broken)
    with compiled_operations(), pytest.raises(ValueError, match="mine"):
        flow(torch.randn(4))
    assert not recwarn.list
