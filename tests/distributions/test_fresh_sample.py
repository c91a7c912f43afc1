# SPDX-License-Identifier: Apache-2.0
"""ln q of a fresh sample is free once, and never that of a flow that has changed since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from torch import Tensor

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.transforms import LatticeTransform, hierarchical_flow
from tests.distributions.test_symmetrized import Affine
from tests.transforms.test_cache import evaluations

Make = Callable[..., Any]

DISTRIBUTIONS: dict[str, Callable[[Any], Any]] = {
    "plain": FlowDistribution,
    "symmetrized": SymmetrizedFlow,
}


FLOWS: dict[str, Callable[[Make], Any]] = {
    "own": lambda jittered: jittered((2, 2)),
    "foreign": lambda jittered: Affine([0.3, -0.2, 0.9], [0.5, 1.0, 2.0]),
}


def pyros_own(flow: Any) -> Any:
    """Pyro's own distribution of a flow."""
    base = dist.Normal(0.0, 1.0).expand(flow.shape).to_event(len(flow.shape))
    return dist.TransformedDistribution(base, [flow])


either = pytest.mark.parametrize("kind", DISTRIBUTIONS)
any_flow = pytest.mark.parametrize("source", FLOWS)


def is_honest(q: Any, x: Tensor) -> None:
    """ln q(x) is that of the same values in a tensor that nobody has seen."""
    fresh = x.detach().clone()
    torch.testing.assert_close(q.log_prob(x), q.log_prob(fresh), rtol=1e-9, atol=1e-9)


def write_to_data(flow: Any) -> None:
    """With no mark but the values."""
    for parameter in flow.parameters():
        parameter.data.add_(0.1)


def replace_data(flow: Any) -> None:
    """The old is freed, so that the next of its size would lie there."""
    for parameter in flow.parameters():
        for _ in range(2):
            parameter.data = parameter.data + 0.05


def assign(flow: Any) -> None:
    flow.load_state_dict({k: v + 0.1 for k, v in flow.state_dict().items()}, assign=True)


def convert(flow: Any) -> None:
    """The same parameters, rounded."""
    flow.to(torch.float32).to(torch.float64)


def stepped(optimiser: Callable[..., Any], **options: Any) -> Callable[[Any], None]:
    """A training step."""
    return lambda flow: optimiser(flow.parameters(), **options).step()


CHANGES: dict[str, Callable[[Any], None]] = {
    "Adam by foreach": stepped(torch.optim.Adam, lr=0.1, foreach=True),
    "ClippedAdam": stepped(ClippedAdam, lr=0.1),
    "AdagradRMSProp": stepped(AdagradRMSProp, eta=0.1),
    "DCTAdam": stepped(DCTAdam, lr=0.1),
    "SGD": stepped(torch.optim.SGD, lr=0.1),
    **{change.__name__: change for change in (write_to_data, replace_data, assign, convert)},
}


@any_flow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scored", [False, True])
@either
def test_after_a_change(jittered: Make, kind: str, change: str, source: str, scored: bool) -> None:
    """Whether the density was in the loss or not, with gradients and without."""
    flow = FLOWS[source](jittered)
    q = DISTRIBUTIONS[kind](flow)
    x = q.rsample((3,))
    log_q = q.log_prob(x) if scored else torch.zeros(3)
    (log_q + x.square().flatten(1).sum(1)).mean().backward()
    CHANGES[change](flow)
    is_honest(q, x)
    if scored and change != "convert":
        assert (q.log_prob(x) - log_q).abs().min() > 1e-4
    with torch.no_grad():
        x = q.rsample((3,))
        if scored:
            q.log_prob(x)
        CHANGES[change](flow)
        is_honest(q, x)


@pytest.mark.parametrize("kind", [*DISTRIBUTIONS, "of Pyro"])
def test_a_sample_and_one_density_cost_one_pass(
    jittered: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = jittered((2, 2), odd=True)  # so that Z2 needs no further element
    q = {**DISTRIBUTIONS, "of Pyro": pyros_own}[kind](flow)
    passes = evaluations(flow, monkeypatch)
    step = torch.optim.SGD(flow.parameters(), lr=0.01)
    for count in range(1, 4):
        x = q.rsample((3,))
        q.log_prob(x).mean().backward()  # with gradients left over from the last step
        step.step()
        assert passes == ["forward"] * count
    q.log_prob(x)
    assert passes[3:] == ["inverse"]
    is_honest(q, x)


@pytest.mark.parametrize("vectorize", [False, True])
@either
def test_training_by_pdd_costs_one_pass_a_draw(
    jittered: Make, kind: str, vectorize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = jittered((2, 2), odd=True)

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0).expand((2, 2)).to_event(2))

    guide = FlowGuide(flow if kind == "plain" else SymmetrizedFlow(flow))
    loss = PDD(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), loss=loss)
    loss.loss(model, guide)  # looks at the model once
    passes, q = evaluations(flow, monkeypatch), guide.distribution()
    x = q.rsample((3,))
    for _ in range(2):
        svi.step()
    assert passes == ["forward"] * (3 if vectorize else 7)
    is_honest(q, x)


@any_flow
@either
def test_gradient_with_respect_to_a_drawn_field(jittered: Make, kind: str, source: str) -> None:
    """Refused for the very tensor, whose density does not go through it; right for a copy."""
    q = DISTRIBUTIONS[kind](FLOWS[source](jittered))
    if kind == "symmetrized" or source == "own":
        x = q.rsample((3,))
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(q.log_prob(x).sum(), x)
    for x in (q.rsample((3,)), q.sample((3,)).requires_grad_()):
        value = x if x.is_leaf else x.clone()
        (found,) = torch.autograd.grad(q.log_prob(value).sum(), x)
        leaf = x.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(q.log_prob(leaf).sum(), leaf)
        torch.testing.assert_close(found, expected)


@either
def test_no_field_at_all(jittered: Make, kind: str) -> None:
    q = DISTRIBUTIONS[kind](jittered((2, 2)))
    x = q.rsample((0,))
    assert x.shape == (0, 2, 2)
    assert q.log_prob(x).shape == (0,)
    assert q.log_prob(torch.zeros(3, 0, 2, 2)).shape == (3, 0)
    assert q.expand((0,)).rsample((5,)).shape == (5, 0, 2, 2)
    assert q.expand((3, 1)).log_prob(torch.zeros(0, 2, 2)).shape == (3, 0)
    with pytest.raises(ValueError, match=r"x has shape \(.*0, 2, 3\); accepted"):
        q.log_prob(torch.zeros(0, 2, 3))


@either
def test_batch_shape_of_one_field_under_many(jittered: Make, kind: str) -> None:
    q = DISTRIBUTIONS[kind](jittered((4, 4)))
    x = torch.randn(4, 4)
    torch.testing.assert_close(q.expand((2,)).log_prob(x), q.log_prob(x).expand(2))
    assert q.expand((2, 1)).log_prob(torch.randn(3, 4, 4)).shape == (2, 3)


def test_the_flow_remembers_nothing_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    flow: LatticeTransform = hierarchical_flow((2, 2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    z = torch.randn(3, 2, 2)
    assert flow.inv(flow(z)) is not z
