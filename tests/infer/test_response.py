# SPDX-License-Identifier: Apache-2.0
"""How far one step of Adam moves a guide: what makes trainings with plain SVI safe."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_neuralrg import PDD
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.transforms import LearnedSpectrum, Neighbour, hierarchical_flow
from tests.benchmarks.guides import make_svi, run_steps
from tests.benchmarks.harness import elbo_of
from tests.models.registry import REGISTRY

RATE = 1e-2
DRAWS = 256


class Response(NamedTuple):
    """Root mean squares over draws: of the unknown that moves most, in its widths, of ln|det|."""

    moved: float
    log_det: float


def response(model: Any, guide: AutoHierarchicalFlow) -> Response:
    """Response to Adam's first step: the signs of the loss's gradient, at a rate of 1e-2."""
    guide.zero_grad()
    PDD(64, vectorize_particles=True).loss_and_grads(model, guide)
    other = copy.deepcopy(guide)
    with torch.no_grad():
        for mine, theirs in zip(guide.parameters(), other.parameters(), strict=True):
            assert mine.grad is not None
            theirs -= RATE * mine.grad.sign()
        z = torch.randn(DRAWS, *guide.get_transform().event_shape)
        before, ladj = guide.get_transform().forward_and_ladj(z)
        after, ladj_after = other.get_transform().forward_and_ladj(z)
        moved = (after - before).square().mean(0).sqrt() / before.std(0)
    return Response(float(moved.max()), float((ladj_after - ladj).square().mean().sqrt()))


QUICK = ("smoothing, whitened", "positive field")
every_model = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in REGISTRY],
)


@every_model
def test_plain_svi_is_safe(name: str) -> None:
    """Small steps at the start and later, losses that only fall, and densities far out."""
    entry = REGISTRY[name]
    model = entry.build(0)
    guide = AutoHierarchicalFlow(model)
    assert guide.fields == entry.fields
    assert guide.shape == entry.lattice
    flow = guide.get_transform()
    assert flow.event_shape == (entry.number,)
    optimiser: Any = pyro.optim.Adam({"lr": RATE})  # type: ignore[attr-defined]
    svi = SVI(model, guide, optimiser, PDD(16, vectorize_particles=True))
    losses: list[float] = []
    for steps in (0, 40 if name in QUICK else 100):
        losses += [svi.step() for _ in range(steps)]
        found = response(model, guide)
        assert found.moved < 0.2
        assert found.log_det < 1 + 0.02 * entry.number
    assert all(map(math.isfinite, losses))
    assert statistics.mean(losses[-20:]) < statistics.mean(losses[:20]) + 1
    with torch.no_grad():
        far, ladj = flow.forward_and_ladj(6 * torch.randn(64, entry.number).sign())
    assert far.isfinite().all()
    assert ladj.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"features": 64},
        {"bijector": "neighbour"},
        pytest.param(
            {"bijector": Neighbour(layers=8, hidden=(24,)), "circuit": "mera", "depth": None},
            marks=pytest.mark.slow,
        ),
        {"boundary": "periodic", "odd": True},
    ],
    ids=str,
)
def test_whatever_the_couplings(options: dict[str, Any]) -> None:
    entry = REGISTRY["smoothing, weak"]
    model = entry.build(0)
    found = response(model, AutoHierarchicalFlow(model, init_scale=0.3, **options))
    assert found.moved < 0.2
    assert found.log_det < 1 + 0.02 * entry.number


@pytest.mark.slow
def test_plain_svi_keeps_a_good_start() -> None:
    """Its noise costs less than it gains; by parameters that act four times as much it does not."""
    model = REGISTRY["smoothing, weak"].build(0)
    guide = AutoHierarchicalFlow(model)
    before = elbo_of(model, guide, 20_000, 500)
    run_steps(make_svi(model, guide), 400)
    after = elbo_of(model, guide, 20_000, 500)
    assert after[0] > before[0] - 4 * math.hypot(before[1], after[1])


def test_a_narrow_start_has_farther_to_go() -> None:
    model = REGISTRY["smoothing, weak"].build(0)
    near = response(model, AutoHierarchicalFlow(model))
    pyro.clear_param_store()
    far = response(model, AutoHierarchicalFlow(model, init_scale=0.3))
    assert far.log_det > 2 * near.log_det  # by the widths of the sites
    places: list[float] = []
    for init_scale in (None, 0.3):
        guide = AutoHierarchicalFlow(model, init_scale=init_scale)
        flow: Any = guide.get_transform()
        frame, z = flow.field_flow.frame, torch.zeros(6, 8, 1)
        with torch.no_grad():
            frame.loc.fill_(1.0)
            places.append(float(frame.forward(z, torch.ones(flow.globals_dim, 1))[0].mean()))
    assert places[1] > 2 * places[0] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda share: hierarchical_flow((4, 4), bijector=Neighbour(2, (4,), response=share)),
        lambda share: LearnedSpectrum((4, 4), "open", response=share),
    ],
)
def test_flows_follow_their_parameters_less(make: Any) -> None:
    """A step of h with a response of 1/2 is one of 2 h with 1/4."""
    z, found = torch.randn(5, 4, 4), []
    for share, step in ((0.5, 0.1), (0.25, 0.2)):
        torch.manual_seed(0)
        flow = make(share)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += step * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        found.append(flow.forward_and_ladj(z))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0][0], z, atol=0.01)
