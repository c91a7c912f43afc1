# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import csv
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_neuralrg import AutoHierarchicalFlow, Record, hierarchical_flow
from pyro_neuralrg.distributions import SymmetrizedFlow
from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.train import TrainingStep, fit
from pyro_neuralrg.train.optimizer import (
    Cooling,
    JoinedAdam,
    Schedule,
    default_budget,
    learning_rate_factor,
    temperature_factor,
)
from tests.infer.conftest import GaussianTarget, ScaleFlow, state

PLAIN = Schedule(cooling=None)
QUICK: dict[str, Any] = {"steps": 30, "batch": 16, "lr": 0.05, "progress": False}


def test_reaches_the_exact_free_energy(target: Any) -> None:
    result = fit(target, steps=300, batch=32, lr=0.05, progress=False, seed=1)
    history = result.history
    assert result.stopped is None
    assert not result.interrupted
    assert result.steps == len(history) == 300
    # The family contains the target: the bound is tight and the weights are all equal.
    assert history.free_energy[-1] == pytest.approx(-target.log_partition(), abs=1e-2)
    assert history.ess[-1] > 0.98
    assert history.free_energy_se[-1] < 0.05
    assert (np.diff(history.seconds) >= 0).all()
    torch.testing.assert_close(result.flow.loc, torch.ones(2, 2), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["flow", "guide", "symmetrized", "guide of symmetrized"])
def test_every_kind_of_flow(target: Any, flow: Any, kind: str) -> None:
    given = {
        "flow": flow,
        "guide": FlowGuide(flow),
        "symmetrized": SymmetrizedFlow(flow),
        "guide of symmetrized": FlowGuide(SymmetrizedFlow(flow)),
    }[kind]
    before = state(flow)
    result = fit(target, given, schedule=PLAIN, **QUICK)
    assert result.flow is given
    assert (state(flow) != before).all()
    assert result.history.free_energy[-5:].mean() < result.history.free_energy[:5].mean()
    assert not pyro.get_param_store().keys()


def test_model_and_guide_with_their_own_parameters() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, pyro.param("prior", torch.tensor(2.0))))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(3.0))

    def guide() -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))

    result = fit(model, guide, **QUICK)
    store = pyro.get_param_store()
    assert store["loc"] != 0.0
    assert store["prior"] != 2.0
    assert set(result.history.temperature_factor) == {1.0}
    assert fit(model, guide, steps=2, progress=False).batch == default_budget(()).batch == 256


def test_seed_decides_everything_and_leaks_nothing(target: Any) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = fit(target, seed=3, **QUICK)
    torch.testing.assert_close(torch.rand(3), expected)
    second = fit(target, seed=3, **QUICK)
    np.testing.assert_array_equal(first.history.free_energy, second.history.free_energy)
    other = fit(target, seed=4, **QUICK)
    assert (first.history.free_energy != other.history.free_energy).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [False, False, True, True]),
        ({"schedule": PLAIN}, [True] * 4),
        ({"path_gradient": True}, [True] * 4),
        ({"path_gradient": False}, [False] * 4),
    ],
)
def test_path_gradients_once_the_target_has_cooled(
    options: dict[str, Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = PDD.differentiable_loss

    def watched(self: PDD, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_grad_enabled():  # not where a loss is only measured
            seen.append(self.path_gradient)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(PDD, "differentiable_loss", watched)
    options = {"schedule": Schedule(cooling=Cooling(1.5, 0.5)), **options}
    fit(IsingDual((2, 2)), steps=4, batch=4, seed=0, progress=False, **options)
    assert seen == expected


def test_path_gradients_of_the_guide() -> None:
    """Where it is near the posterior they are taken without being asked for, as if they were."""

    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        pyro.sample("y", dist.Poisson(x.exp()).to_event(2), obs=torch.ones(2, 3))

    found, start = {}, AutoHierarchicalFlow(program)
    for path in (None, True, False):
        pyro.clear_param_store()
        guide = copy.deepcopy(start)
        fit(program, guide, steps=5, batch=8, seed=0, progress=False, path_gradient=path)
        found[path] = torch.cat([p.detach().flatten() for p in guide.parameters()])
    assert torch.equal(found[None], found[True])
    assert not torch.equal(found[None], found[False])


def test_a_table_that_grows(target: Any, tmp_path: Path) -> None:
    """As often as checkpoints, and at the end, also one that comes early; with every digit."""
    path, seen = tmp_path / "history.csv", []

    def look(record: TrainingStep) -> bool:
        seen.append(len(path.read_text().splitlines()) - 1 if path.exists() else 0)
        return record.step == 24

    record = Record(tmp_path, every_steps=10, history=True)
    result = fit(target, record=record, callback=look, **QUICK)
    assert seen == [0] * 10 + [10] * 10 + [20] * 5
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(TrainingStep._fields)
    assert repr(result.history).startswith("History(25 steps, free_energy ")
    for name, column in result.history.as_dict().items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], column)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"batch": 1}, ValueError, "batch is 1"),
        ({"lr": -1.0}, ValueError, "lr is -1.0"),
        ({"seed": -1}, ValueError, "seed is -1; accepted: an integer from 0"),
        ({"lr": "a"}, TypeError, "lr is 'a'; accepted"),
        ({"seed": 1.5}, TypeError, "seed is 1.5; accepted"),
        ({"path_gradient": "yes"}, TypeError, "path_gradient is a str; accepted: True, False or"),
        ({"schedule": 3}, TypeError, "schedule is an int; accepted: a Schedule"),
        ({"record": "folder"}, TypeError, "record is a str; accepted: a Record"),
        ({"model_args": 3}, TypeError, "model_args is an int; accepted: a tuple"),
        ({"model_args": (3,)}, ValueError, "model_args .* accepted: with a Pyro model"),
        ({"callback": 3}, TypeError, "callback is an int; accepted: a function"),
        ({"target": 3}, TypeError, "target is an int; accepted: a LatticePotential"),
        ({"flow": "mera"}, TypeError, "flow is a str; accepted"),
        ({"flow": ScaleFlow((2, 2)).inv}, TypeError, r"\.inv holds no parameters"),
        ({"flow": ScaleFlow((2, 2)).requires_grad_(False)}, ValueError, "no parameters to train"),
        ({"flow": hierarchical_flow((4, 4))}, ValueError, r"flow has shape \(4, 4\), the target"),
        ({"target": GaussianTarget().model, "flow": None}, ValueError, "flow is None, and target"),
    ],
)
def test_bad_options(
    target: Any, flow: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(**{"target": target, "flow": flow, **QUICK, **options})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Schedule, "warmup", -1),
        (Schedule, "clip", 0.0),
        (Schedule, "average", 2.0),
        (Cooling, "start", 0.0),
        (Cooling, "fraction", 1.1),
        (Schedule, "cooling", (1.3, 0.1)),
    ],
)
def test_bad_schedules(kind: Any, name: str, value: Any) -> None:
    error = TypeError if isinstance(value, tuple) else ValueError
    with pytest.raises(error, match=f"{name} is .*; accepted"):
        kind(**{name: value})


def test_arguments_of_a_model_and_its_guide(flow: Any) -> None:
    def model(data: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=data)

    def guide(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2, 2))
        pyro.sample("x", dist.Normal(loc + 0.1 * data, 0.7).to_event(2))

    data = torch.full((2, 2), 4.0)
    options = {**QUICK, "steps": 200, "seed": 0, "model_args": (data,)}
    fit(model, guide, **options)
    torch.testing.assert_close(pyro.param("loc").detach() + 0.1 * data, data / 2, atol=0.1, rtol=0)
    fit(model, flow, **options)
    torch.testing.assert_close(flow.loc.detach(), data / 2, atol=0.1, rtol=0)
    assert fit(model, SymmetrizedFlow(flow), **{**options, "steps": 1}).steps == 1


@pytest.mark.slow
def test_training_imports_no_compiler() -> None:
    """torch has it for its own optimisers and for ``torch.broadcast_shapes``: a second."""
    program = (
        "import sys, pyro_neuralrg as nrg; target = nrg.IsingDual((2, 2)); "
        "nrg.fit(target, target.flow(), steps=2, batch=4, progress=False); "
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_schedules() -> None:
    rates = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(rates[99], rel=1e-3)
    assert rates[-1] < 0.02
    assert all(0 < rate <= 1 for rate in rates)
    whole = learning_rate_factor(300, 1000, warmup=0)
    assert learning_rate_factor(300, 1000, warmup=10, begun=300) == pytest.approx(whole / 10)
    assert temperature_factor(0, 10, Cooling(1.5, 0.0)) == 1.0
    assert default_budget((16, 16)).steps > default_budget((8, 8)).steps
    assert default_budget((32, 32)).learning_rate == pytest.approx(4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_and_adam_against_torch(dtype: torch.dtype) -> None:
    """To the bit the steps, and the state, of torch.optim.Adam with the joined vector."""
    ours = [torch.randn(n, n, dtype=dtype, requires_grad=True) for n in (3, 20)]
    theirs = torch.cat([p.detach().flatten() for p in ours]).requires_grad_()
    joined, adam = JoinedAdam(ours, 0.1, clip=0.5), torch.optim.Adam([theirs], lr=0.1)
    for step in range(30):
        joined.learning_rate = adam.param_groups[0]["lr"] = 0.1 / (step + 1)
        gradient = joined.gradient(torch.stack([(p**4).sum() for p in ours]).sum())
        (theirs**4).sum().backward()
        norm = float(gradient.norm())
        torch.testing.assert_close(gradient, theirs.grad)
        theirs.grad = gradient * min(1.0, 0.5 / norm)
        joined.step(gradient, norm)
        adam.step()
        adam.zero_grad()
        assert torch.equal(joined.vector(), theirs)
        if step == 20:  # a state of torch's own, as in checkpoints of older versions
            joined.reset()
            joined.load_state_dict(adam.state_dict())
    state, wanted = joined.state_dict()["state"][0], adam.state_dict()["state"][0]
    assert all(torch.equal(state[name].double(), wanted[name].double()) for name in wanted)
    with pytest.raises(ValueError, match="parameters are missing"):
        JoinedAdam([], 0.1)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("x", (4, 2), r"flow has shape \(2, 2\), site 'x' of the model \(4, 2\); accepted"),
        ("x", (4,), r"flow has shape \(2, 2\), site 'x' of the model \(4,\); accepted"),
        ("y", (2, 2), "flow draws the site 'x', the model has 'y'; accepted: FlowGuide"),
    ],
)
def test_models_of_another_site(name: str, shape: tuple[int, ...], said: str, flow: Any) -> None:
    def model() -> None:
        pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    with pytest.raises(ValueError, match=said):
        fit(model, flow, **QUICK)


def test_parameters_that_come_later_are_not_passed_over(target: Any) -> None:
    """They would not be trained, in silence."""
    calls = []

    def guide() -> None:
        calls.append(1)
        loc = pyro.param("loc", torch.zeros(2, 2))
        if len(calls) > 2:
            loc = loc + pyro.param("late", torch.zeros(2, 2))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(2))

    with pytest.raises(ValueError, match="made 1 parameters after training began; accepted"):
        fit(target, guide, **QUICK)


def test_ctrl_c_after_the_last_step_keeps_the_average(
    target: Any, flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign, states = JoinedAdam.assign, []

    def pressed(self: JoinedAdam, vector: torch.Tensor) -> None:
        signal.raise_signal(signal.SIGINT)
        assign(self, vector)

    monkeypatch.setattr(JoinedAdam, "assign", pressed)
    options = {**QUICK, "callback": lambda _: states.append(state(flow))}
    result = fit(target, flow, schedule=Schedule(average=0.2), **options)
    assert result.interrupted
    torch.testing.assert_close(state(flow), torch.stack(states[-6:]).mean(0))


def test_a_finished_training_that_is_resumed_has_its_table(target: Any, tmp_path: Path) -> None:
    fit(target, record=Record(tmp_path), **QUICK)
    path, again = tmp_path / "history.csv", Record(tmp_path, resume=True, history=True)
    path.mkdir()
    with pytest.warns(UserWarning, match=r"history\.csv cannot be written"):
        fit(target, record=again, **QUICK)
    path.rmdir()
    fit(target, record=again, **QUICK)
    assert len(path.read_text().splitlines()) == 1 + 30
