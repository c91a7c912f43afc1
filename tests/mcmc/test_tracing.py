# SPDX-License-Identifier: Apache-2.0
"""Traced gradients: the same numbers, and the function itself wherever a trace would not do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow
from pyro_neuralrg.mcmc import as_target
from pyro_neuralrg.mcmc.target import energy_and_gradient
from pyro_neuralrg.mcmc.tracing import Traced


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traced, "PATIENCE", 3)


def test_a_model_is_not_run_any_more_and_its_numbers_stay() -> None:
    calls = []

    def model() -> None:
        calls.append(None)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        rate = pyro.sample("rate", dist.Beta(2.0, 3.0))
        x = pyro.sample("x", dist.Normal(0.0, scale).expand([5]).to_event(1))
        pyro.sample("y", dist.Poisson((x * rate).exp()).to_event(1), obs=torch.arange(5.0))

    target, plain = as_target(model).setup(), as_target(model).setup()
    plain._traced = None  # type: ignore[attr-defined]
    for index in range(12):
        positions = torch.randn(4, target.dim)
        expected, before = plain.energy_and_grad(positions), len(calls)
        found = target.energy_and_grad(positions)
        assert (len(calls) > before) == (index < 3 + Traced.TRIALS)
        assert all(map(torch.equal, found, expected))
        assert not found[0].requires_grad
    for rows in (1, 2):
        positions = torch.randn(rows, target.dim)
        found = target.energy_and_grad(positions)
        assert all(map(torch.equal, found, plain.energy_and_grad(positions)))


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoHierarchicalFlow])
def test_behind_a_guide_the_model_alone_is_traced(kind: Any) -> None:
    """The chain rule's gradient is that of the whole, before and after the model's trace."""
    calls = []

    def model() -> None:
        calls.append(None)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        x = pyro.sample(
            "x", dist.Normal(0.0, scale[..., None]).expand([*scale.shape, 4]).to_event(1)
        )
        pyro.sample("y", dist.Poisson(x.exp()).to_event(1), obs=torch.arange(4.0))

    guide = kind(model)
    guide()
    target = as_target(NeuTraReparam(guide).reparam(model)).setup()
    for index in range(12):
        positions = torch.randn(5, target.dim)
        energy, gradient = energy_and_gradient(target._evaluate, positions)
        before = len(calls)
        found = target.energy_and_grad(positions)
        assert (len(calls) > before) == (index < 3 + Traced.TRIALS)
        torch.testing.assert_close(found[0], energy)
        torch.testing.assert_close(found[1], gradient)
        before = len(calls)
        torch.testing.assert_close(target.energy(positions), energy)
        assert (len(calls) > before) == (index < 3 + Traced.TRIALS)


def branching(x: Tensor) -> Tensor:
    return x.square().sum(-1) * (2.0 if bool(x.sum() > 0) else 1.0)


def remembering(calls: list[Any], x: Tensor) -> Tensor:
    calls.append(None)
    return x.square().sum(-1) * len(calls)


def by_numbers(x: Tensor) -> Tensor:
    """A constant to the trace, which sees no operation."""
    return x.square().sum(-1) * torch.tensor(x.detach().tolist()).sum()


@pytest.mark.parametrize("kind", ["branching", "remembering", "numbers"])
def test_what_cannot_be_traced_is_computed_as_before(kind: str) -> None:
    energy = {"branching": branching, "numbers": by_numbers}.get(kind) or partial(remembering, [])
    expected: Any = energy if kind != "remembering" else partial(remembering, [])
    traced = Traced(partial(energy_and_gradient, energy))
    for index in range(12):
        positions = torch.randn(4, 3)
        if kind == "remembering" and index == 3:
            expected(positions)  # the call that was traced
        found = traced(positions)
        assert all(map(torch.equal, found, energy_and_gradient(expected, positions)))
    assert traced._graph is None
