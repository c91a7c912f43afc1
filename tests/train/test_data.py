# SPDX-License-Identifier: Apache-2.0
"""Maximum likelihood: what it converges to, from above, and how it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_neuralrg.distributions.flow import FlowDistribution
from pyro_neuralrg.free_energy import bounds
from pyro_neuralrg.infer import PDD
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.train import cross_entropy, fit_data
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.transforms import Neighbour, hierarchical_flow
from tests.infer.conftest import state

QUICK: dict[str, Any] = {"steps": 20, "batch": 16, "lr": 0.01, "seed": 0, "progress": False}


def test_finds_the_normal_of_its_data(flow: Any) -> None:
    """Mean and width per site are those of the data, the loss their entropy."""
    data = 1.0 + 0.5 * torch.randn(400, 2, 2)
    fit_data(flow, data, steps=400, batch=400, lr=0.05, seed=0, progress=False)
    mean, variance = data.mean(0), data.var(0, unbiased=False)
    torch.testing.assert_close(flow.loc.detach(), mean, atol=1e-2, rtol=0)
    torch.testing.assert_close(flow.log_scale.detach(), 0.5 * variance.log(), atol=1e-2, rtol=0)
    expected = float((0.5 * (2 * math.pi * math.e * variance).log()).sum())
    value, error = cross_entropy(flow, data)
    assert value == pytest.approx(expected, abs=1e-3)
    assert value >= expected
    assert error == pytest.approx(math.sqrt(2.0) / 20, rel=0.3)  # ln q varies by 4 / 2


def test_an_observed_site_of_svi_is_the_same_loss() -> None:
    """The loss and the gradient of all data, whole or in batches, as the training here has them."""
    flow, data = hierarchical_flow((2, 2)), 2.0 * torch.randn(40, 2, 2)
    parameters = [p for p in flow.parameters() if p.requires_grad]

    def model(data: Tensor, batch: int) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(data), subsample_size=batch) as chosen:
            pyro.sample("x", FlowDistribution(flow), obs=data[chosen])

    def guide(data: Tensor, batch: int) -> None:
        pass

    expected, _ = cross_entropy(flow, data)
    mean = -FlowDistribution(flow).log_prob(data).mean()
    gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
    for loss in (Trace_ELBO(), PDD(), PDD(path_gradient=True)):
        flow.zero_grad()
        assert loss.loss_and_grads(model, guide, data, 40) / 40 == pytest.approx(expected)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                torch.testing.assert_close(parameter.grad / 40, gradient)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), PDD())
    for _ in range(20):
        svi.step(data, 8)
    assert cross_entropy(flow, data)[0] < expected


def test_learns_a_target_from_its_samples() -> None:
    """Held-out loss above the entropy, by KL(pi || q) as the lower bound of -ln Z has it."""
    target = IsingDual((2, 2), 3.0)
    data = target.sample_reference(6000, seed=1)
    train, test = data[:3000], data[3000:]
    torch.manual_seed(0)
    flow = target.flow(bijector=Neighbour(layers=2, hidden=(4,)))
    before, _ = cross_entropy(flow, test)
    fit_data(flow, train, steps=150, batch=200, lr=0.02, seed=0, progress=False)
    after, _ = cross_entropy(flow, test)
    found = bounds(target, flow, 100, reference=test)
    gap = -target.log_partition() - found.lower
    energy = target.energy(test)
    assert after - float(energy.mean()) - target.log_partition() == pytest.approx(gap)
    assert gap > -4.5 * found.lower_se
    assert gap < 0.25
    assert gap < 0.2 * (before - after + gap)


def test_the_best_step_is_kept(flow: Any) -> None:
    """Held-out data of another mean: the flow meets it on its way, and leaves it again."""
    data, other = torch.full((64, 2, 2), 3.0), 1.0 + 0.7 * torch.randn(200, 2, 2)
    data = data + 0.7 * torch.randn_like(data)
    options = {**QUICK, "steps": 100, "lr": 0.1, "progress": True}
    result = fit_data(flow, data, held_out=other, check_every=5, **options)
    assert result.checked.tolist() == list(range(5, 101, 5))
    assert result.best == result.checked[result.held_out.argmin()] < 100
    assert cross_entropy(flow, other)[0] == pytest.approx(result.held_out.min())
    assert result.held_out[-1] > result.held_out.min() + 0.5
    assert len(result.loss) == 100
    assert f"held out {result.held_out.min():.6g}" in repr(result)
    assert repr(replace(result, stopped="enough")).endswith("stopped: enough)")


def test_repeats_with_its_seed_and_leaves_the_global_state(flow: Any) -> None:
    data, state = torch.randn(40, 2, 2), torch.get_rng_state()
    start = {name: value.clone() for name, value in flow.state_dict().items()}
    first = fit_data(flow, data, **QUICK).loss
    flow.load_state_dict(start)
    assert fit_data(flow, data, **QUICK).loss.tolist() == first.tolist()
    assert torch.equal(torch.get_rng_state(), state)


def test_prepare_makes_fields_anew_of_every_datum(flow: Any) -> None:
    """Once an epoch."""
    images, seen, made = torch.arange(120).reshape(30, 2, 2), [], []

    def prepare(some: Tensor) -> Tensor:
        seen.append(some)
        made.append(some / 120 + torch.rand(some.shape))
        return made[-1]

    fit_data(flow, images, prepare=prepare, **{**QUICK, "batch": 10, "steps": 6})
    for epoch in (seen[-6:-3], seen[-3:]):
        assert torch.equal(torch.cat(epoch).flatten().sort().values, torch.arange(120))
    assert not torch.equal(made[-1] - seen[-1] / 120, made[-2] - seen[-2] / 120)
    with pytest.raises(ValueError, match=r"data are torch.int64 fields of shape \(2, 2\)"):
        fit_data(flow, images, **QUICK)


def test_stops_at_what_is_not_finite(flow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parameters of the last finite loss, those before the last step."""
    step, states = JoinedAdam.step, []

    def watched(self: JoinedAdam, *arguments: Any) -> None:
        states.append(self.vector())
        step(self, *arguments)

    monkeypatch.setattr(JoinedAdam, "step", watched)
    data = torch.randn(40, 2, 2)
    data[7] = math.inf
    with pytest.warns(UserWarning, match="training stopped: the loss at step .* is inf") as caught:
        result = fit_data(flow, data, **{**QUICK, "batch": 4, "seed": 3})
    assert caught[0].filename == __file__
    assert 0 < len(result.loss) < 10
    assert torch.equal(states[-1], state(flow))
    with pytest.raises(ValueError, match="data give a loss of inf at the first step"):
        fit_data(flow, data[7:8], **QUICK)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"steps": 0}, ValueError, "steps is 0; accepted"),
        ({"lr": -1.0}, ValueError, r"lr is -1\.0; accepted"),
        ({"data": np.zeros((3, 2, 2))}, TypeError, "data is a ndarray; accepted: a tensor"),
        ({"data": torch.zeros(0, 2, 2)}, ValueError, r"data has shape \(0, 2, 2\); accepted"),
        ({"data": torch.zeros(3, 2, 3)}, ValueError, r"fields of shape \(2, 3\); accepted"),
        ({"held_out": torch.zeros(3, 4)}, ValueError, r"fields of shape \(4,\); accepted"),
    ],
)
def test_bad_arguments(flow: Any, options: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        fit_data(flow, **{"data": torch.zeros(8, 2, 2), **QUICK, **options})


def test_prepare_may_work_in_place(flow: Any) -> None:
    data = torch.full((20, *flow.shape), 3.0)
    first = cross_entropy(flow, data, lambda y: y.sub_(2.0))
    assert bool((data == 3.0).all())
    assert cross_entropy(flow, data, lambda y: y.sub_(2.0)) == first
    assert first == cross_entropy(flow, data - 2.0)
    fit_data(flow, data, prepare=lambda y: y.sub_(2.0), **QUICK)
    assert bool((data == 3.0).all())
