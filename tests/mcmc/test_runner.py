# SPDX-License-Identifier: Apache-2.0
"""The runner: what it keeps, what it adapts, what it leaves alone, what it refuses."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, Cycle, FreeField, IndependenceMetropolis, IsingDual, VectorizedMCMC
from pyro_neuralrg.mcmc import Adaptation, Mixture, as_target, results
from pyro_neuralrg.mcmc import metropolis as metropolis_module
from pyro_neuralrg.mcmc import runner as runner_module
from pyro_neuralrg.runtime import memory
from pyro_neuralrg.runtime.console import deferred_interrupts
from tests.mcmc.registry import KERNELS, TARGETS, ToyFlow, normal, run, standard_errors


@pytest.mark.parametrize("name", KERNELS)
def test_one_seed_one_result(name: str) -> None:
    kernel = KERNELS[name](TARGETS["free field"]())
    state = torch.random.get_rng_state()
    one, again, other = (run(kernel, 6, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.positions, again.positions)
    assert not torch.equal(one.positions, other.positions)


def test_shapes_and_groups() -> None:
    flow = ToyFlow((2, 3))
    mcmc = run(Cycle(HMC(FreeField((2, 3), 0.8), flow=flow), IndependenceMetropolis(flow)), 7)
    grouped, flat = mcmc.get_samples(group_by_chain=True), mcmc.get_samples()
    assert set(grouped) == set(flat) == {"x", "x_latent"}
    for name, value in flat.items():
        assert grouped[name].shape == (6, 7, 2, 3)
        assert torch.equal(value, grouped[name].flatten(0, 1))
    torch.testing.assert_close(flow(grouped["x_latent"]), grouped["x"])
    assert {tuple(value.shape) for value in mcmc.sample_stats.values()} == {(6, 7)}
    names = ["lp", "energy", "acceptance_rate", "step_size", "n_steps", "diverging"]
    assert set(mcmc.sample_stats) == {*names, "acceptance_rate_hmc", "acceptance_rate_jump"}


@pytest.mark.parametrize("latent", [False, True])
def test_lp_is_the_density_of_the_position(latent: bool) -> None:
    flow, potential = ToyFlow((2, 3)), FreeField((2, 3), 0.8)
    mcmc = run(HMC(potential, flow=flow if latent else None))
    samples = mcmc.get_samples(group_by_chain=True)
    expected = -potential.energy(samples["x"])
    if latent:
        z = samples["x_latent"]
        expected = expected + flow.log_abs_det_jacobian(z, flow(z))
    torch.testing.assert_close(mcmc.sample_stats["lp"], expected.detach())


def test_flow_is_frozen_meanwhile_and_thawed_after() -> None:
    potential, flow = FreeField((2, 3), 0.8), ToyFlow((2, 3))
    before, seen = {name: value.clone() for name, value in flow.state_dict().items()}, []

    def energy(x: Tensor) -> Tensor:
        seen.extend(parameter.requires_grad for parameter in flow.parameters())
        return potential.energy(x)

    kernel = HMC(energy, shape=(2, 3), flow=flow)
    seen.clear()  # of the trial
    run(kernel)
    assert seen
    assert not any(seen)
    assert all(parameter.requires_grad for parameter in flow.parameters())
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize("goal", [0.6, 0.9])
def test_step_size_reaches_the_target_acceptance(goal: float) -> None:
    kernel = HMC(FreeField((2, 3), 0.8), step_size=7.0, num_steps=3, jitter=0.0)
    warmup = Adaptation(target_acceptance=goal, steps=200)
    stats = run(kernel, 100, warmup_steps=warmup, num_chains=64).sample_stats
    assert float(stats["acceptance_rate"].mean()) == pytest.approx(goal, abs=0.04)
    assert len(stats["step_size"].unique()) == 1


def test_mass_adapts_to_the_widths() -> None:
    scale = torch.tensor([0.1, 1.0, 10.0])
    kernel = HMC(lambda x: 0.5 * (x / scale).square().sum(-1), shape=(3,), num_steps=5)
    warmup = Adaptation(mass="diagonal", steps=400)
    adapted = run(kernel, 10, warmup_steps=warmup, num_chains=64).kernel
    assert adapted.inverse_mass is not None
    ratio = adapted.inverse_mass / scale.square()
    assert float(ratio.max() / ratio.min()) < 2.0


@pytest.mark.parametrize("warmup", [0, Adaptation(step_size=False, steps=5)])
def test_without_adaptation_nothing_changes(warmup: Any) -> None:
    mcmc = run(HMC(normal, shape=(2,), step_size=0.123), warmup_steps=warmup)
    assert mcmc.kernel.step_size == float(mcmc.sample_stats["step_size"].min()) == 0.123


def test_ising_structure_factor() -> None:
    """4 x 4 at 3 J / k_B, in latent space, against the exact value."""
    target = IsingDual((4, 4), 3.0)
    flow = target.flow()
    kernel = Cycle(HMC(target, num_steps=3, flow=flow), IndependenceMetropolis(flow))
    mcmc = run(kernel, 50, warmup_steps=40, num_chains=64)
    spins = mcmc.get_samples(group_by_chain=True)["x"].tanh().flatten(2)
    values = spins.mean(-1).square() - spins.square().mean(-1) / 16 + 1 / 16
    assert standard_errors(values, target.spins.structure_factor()) < 4


@pytest.mark.parametrize("draws", [1, 3, 50])
def test_diagnostics_in_the_form_of_pyros(draws: int) -> None:
    """Of which few draws tell nothing about convergence."""
    found = run(KERNELS["latent hmc"](TARGETS["free field"]()), draws).diagnostics()
    for site in ("x", "x_latent"):
        for figure in ("n_eff", "r_hat"):
            assert found[site][figure].shape == (2, 3)
            assert bool(found[site][figure].isnan().all()) == (draws < 4)
    names = {f"chain {chain}" for chain in range(6)}
    assert set(found["acceptance rate"]) == set(found["divergences"]) == names
    assert found["divergences"]["chain 0"] == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, r"num_samples is 0; accepted: an integer >= 1"),
        ({"num_samples": 2.5}, TypeError, r"num_samples is 2.5; accepted"),
        ({"num_samples": True}, TypeError, r"num_samples is True; accepted"),
        ({"num_chains": -1}, ValueError, r"num_chains is -1; accepted"),
        ({"warmup_steps": -1}, ValueError, r"warmup_steps is -1; accepted"),
        ({"warmup_steps": "dense"}, TypeError, r"warmup_steps is 'dense'; accepted"),
        ({"seed": -1}, ValueError, r"seed is -1; accepted: an integer from 0"),
        ({"seed": 2**65}, ValueError, rf"seed is {2**65}; accepted"),
        ({"initial_params": {"x": torch.zeros(5, 2)}}, ValueError, r"\(5, 2\); accepted: \(6, 2\)"),
        ({"initial_params": {"y": torch.zeros(6, 2)}}, ValueError, r"\['y'\]; accepted: \['x'\]"),
        ({"initial_params": {"x": torch.full((6, 2), math.nan)}}, ValueError, r"of 6 of 6 chains"),
        ({"record": "run.pt"}, TypeError, r"record is a str; accepted: a Record, or None"),
        ({"progress": 1}, TypeError, r"progress is an int; accepted: True or False"),
        ({"keep_draws": "no"}, TypeError, r"keep_draws is a str; accepted: True or False"),
        ({"observables": [normal]}, TypeError, r"observables is a list; accepted"),
        ({"observables": {"a": 3}}, TypeError, r"observables\['a'\] is an int; accepted"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(HMC(normal, shape=(2,)), **({"num_samples": 2} | options))


def test_a_second_run_is_the_first_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies in its warm-up leaves no draws of the first."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    mcmc = run(HMC(normal, shape=(2,), num_steps=2), warmup_steps=3)
    first = mcmc.positions
    mcmc.run()
    assert torch.equal(mcmc.positions, first)
    monkeypatch.setattr(runner_module.Warmup, "update", die)
    with pytest.raises(KeyboardInterrupt):
        mcmc.run()
    assert mcmc.gradient_evaluations.total == 0
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        mcmc.get_samples()


def test_ctrl_c_after_the_last_draw_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def pressed_within(*held: Any) -> Iterator[list[int]]:
        with deferred_interrupts(*held) as pressed:
            if not held:  # the one after the last draw
                signal.raise_signal(signal.SIGINT)
            yield pressed

    monkeypatch.setattr(runner_module, "deferred_interrupts", pressed_within)
    mcmc = run(HMC(normal, shape=(2,)), 4)
    assert mcmc.interrupted
    assert mcmc.positions.shape == (6, 4, 2)


@pytest.mark.parametrize("name", ["hmc", "latent cycle", "random walk", "jump"])
def test_chains_in_batches_are_the_same_chains(name: str) -> None:
    """Also jumps, latent energies and observables; only the memory is another."""
    sizes: list[int] = []

    def size(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1).sum(1)

    kernel = KERNELS[name](TARGETS["free field"]())
    all_at_once = run(kernel, observables={"size": size})
    if name == "jump":  # draws that are made at once are looked at together
        assert all(number % 6 == 0 for number in sizes)
    else:
        assert set(sizes) == {6}
    sizes.clear()
    batched = run(kernel.on(kernel.target.in_batches(4)), observables={"size": size})
    assert set(sizes) == ({4} if name == "jump" else {4, 2})
    torch.testing.assert_close(all_at_once.positions, batched.positions)
    torch.testing.assert_close(batched.observables["size"], all_at_once.observables["size"])


def test_observables_without_draws() -> None:
    kernel = KERNELS["latent hmc"](TARGETS["free field"]())
    mean = {"mean": lambda x: x.mean((-1, -2)), "rows": lambda x: x.mean(-1)}
    kept, streamed = run(kernel, observables=mean), run(kernel, observables=mean, keep_draws=False)
    x = kept.get_samples(group_by_chain=True)["x"]
    torch.testing.assert_close(kept.observables["mean"], x.mean((-1, -2)))
    torch.testing.assert_close(kept.observables["rows"], x.mean(-1))
    assert torch.equal(streamed.observables["mean"], kept.observables["mean"])
    assert streamed.get_samples() == {}
    assert set(streamed.diagnostics()) == {"divergences", "acceptance rate"}
    with pytest.raises(RuntimeError, match="keep_draws is False"):
        _ = streamed.positions


@pytest.mark.parametrize(("value", "seen"), [(torch.zeros(()), r"\(\)"), (1.0, "float")])
def test_bad_observables(value: Any, seen: str) -> None:
    with pytest.raises(ValueError, match=rf"observables\['o'\] returned {seen} for 6 fields"):
        run(HMC(normal, shape=(2,)), observables={"o": lambda x: value})


def test_warm_up_statistics() -> None:
    mcmc = run(HMC(normal, shape=(2,)), warmup_steps=25)
    assert {tuple(value.shape) for value in mcmc.warmup_stats.values()} == {(6, 25)}
    assert set(mcmc.warmup_stats) == set(mcmc.sample_stats)
    assert len(mcmc.warmup_stats["step_size"].unique()) > 10
    step_size = float(mcmc.sample_stats["step_size"][0, 0])
    adapted = {"step_size": step_size, "inverse_mass": None, "trajectory_length": None}
    assert mcmc.adapted == {"hmc": adapted}


def test_a_mixture_moves_by_one_member_at_a_time() -> None:
    stats = run(KERNELS["mixture"](TARGETS["free field"]()), 200).sample_stats
    hmc, jump = (~stats[f"acceptance_rate_{name}"][0].isnan() for name in ("hmc", "jump"))
    assert bool((hmc ^ jump).all())
    assert abs(int(hmc.sum()) - 140) < 4 * math.sqrt(200 * 0.3 * 0.7)
    assert bool((stats["n_steps"][0][jump] == 0).all())


def test_the_bar_shows_the_worst_rhat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "RHAT_SECONDS", 0.0)
    kernel = HMC(lambda x: 100 * x.sin().square().sum(-1), shape=(2,), step_size=0.01)
    start = {"x": 3.14159 * torch.arange(6.0).reshape(6, 1).expand(6, 2)}
    first = {"first": lambda x: x[:, 0]}
    run(kernel, initial_params=start, progress=True, observables=first)
    shown = capsys.readouterr().err
    assert "acceptance" in shown
    assert float(shown.rsplit("R-hat=", 1)[1].split(",")[0].split("]")[0]) > 2


def test_the_summary_has_one_line_per_scalar_and_two_per_field() -> None:
    """Latents come last, no column is left out, constants are told."""
    target = FreeField((4, 4), 0.8)
    observables = {
        "mean": lambda x: x.mean((-1, -2)),
        "half": lambda x: x[:, 0] * torch.tensor([0.0, 1.0, 1.0, 1.0]),
    }
    mcmc = run(HMC(target, num_steps=3, flow=ToyFlow((4, 4))), 30, observables=observables)
    table = mcmc.summary()
    fields = [f"{name}[{row}]" for name in ("x", "x_latent") for row in ("worst", "median")]
    half = [f"half[{site}]" for site in range(4)]
    assert list(table.index) == [*fields[:2], "mean", *half, "lp", *fields[2:]]
    for name, values in (("mean", mcmc.observables["mean"]), ("lp", mcmc.sample_stats["lp"])):
        close = pytest.approx(float(values.mean()), abs=0.06 * table.loc[name, "mcse_mean"])
        assert table.loc[name, "mean"] == close
    assert list(table.index[table["note"] == "constant"]) == ["half[0]"]
    with pd.option_context("display.width", 80, "display.max_columns", 0):
        shown = str(table)
    assert "..." not in shown
    assert all(title in shown.splitlines()[0] for title in table.columns)
    with pytest.raises(RuntimeError, match="call run"):
        VectorizedMCMC(HMC(target), 3).summary()


def of_two_sites() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("b", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["hmc", "latent cycle", "model"])
def test_observables_may_work_in_place(name: str, keep: bool) -> None:
    """Neither draws nor other observables nor the chains see it."""

    def first(seen: Any) -> Tensor:
        return (seen if isinstance(seen, Tensor) else seen["a"]).flatten(1)

    one = {"size": lambda x: first(x).abs().sum(-1), "sign": lambda x: first(x).sign().sum(-1)}
    two = {"size": lambda x: first(x).abs_().sum(-1), "sign": lambda x: first(x).sign_().sum(-1)}
    kernel = HMC(of_two_sites) if name == "model" else KERNELS[name](TARGETS["free field"]())
    clean, changed = (run(kernel, observables=of, keep_draws=keep) for of in (one, two))
    for figure in one:
        assert torch.equal(clean.observables[figure], changed.observables[figure])
    assert torch.equal(clean.sample_stats["lp"], changed.sample_stats["lp"])
    for site, draws in clean.get_samples().items():
        assert torch.equal(draws, changed.get_samples()[site])


def test_some_of_the_draws_as_in_pyro() -> None:
    mcmc = run(HMC(FreeField((2, 3), 0.8)), 7)
    some, every = mcmc.get_samples(num_samples=50)["x"], mcmc.get_samples()["x"]
    assert some.shape == (50, 2, 3)
    known = (some.unsqueeze(1) == every).flatten(2).all(-1)
    assert bool(known.any(1).all())
    assert int(known.any(0).sum()) > 15
    some, every = (mcmc.get_samples(n, group_by_chain=True)["x"] for n in (3, None))
    assert some.shape == (6, 3, 2, 3)
    assert bool((some.unsqueeze(2) == every.unsqueeze(1)).flatten(3).all(-1).any(2).all())
    for bad in (0, True):
        with pytest.raises((ValueError, TypeError), match=f"num_samples is {bad}; accepted"):
            mcmc.get_samples(bad)


def test_draws_that_cannot_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the energy is computed once, and again where more of them are asked for."""
    calls: list[int] = []

    def energy(x: Tensor) -> Tensor:
        calls.append(1)
        return normal(x)

    options: dict[str, Any] = {"warmup_steps": 2, "num_chains": 4}
    kernel = HMC(energy, shape=(5,))
    calls.clear()
    monkeypatch.setattr(memory, "available_memory", lambda _: 8.0 * 5 * 4 * 10)
    match = "num_chains is 4 and num_samples is 11: .* available here, or keep_draws=False"
    with pytest.raises(memory.MemoryLimitError, match=match):
        run(kernel, 11, **options)
    assert not calls
    run(kernel, 11, keep_draws=False, **options)
    held = run(kernel, 10, **options)
    held.num_samples = 11
    with pytest.raises(memory.MemoryLimitError, match="num_samples is 11"):
        held.resume()
    assert held.get_samples()["x"].shape == (40, 5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jump", {"forward": 1, "energy": 1}),
        ("latent jump", {"forward": 1, "energy": 1}),
        ("latent cycle", {"forward": 5, "gradient": 4, "energy": 1}),
        ("cycle", {"forward": 2, "gradient": 5, "energy": 2, "inverse": 1}),
    ],
)
def test_a_step_makes_the_passes_that_it_needs(
    name: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local moves in physical space take chains to where the flow's density is not known."""
    monkeypatch.setattr(metropolis_module, "PROPOSALS_AT_ONCE", 1)
    passes: Counter[str] = Counter()

    def energy(x: Tensor) -> Tensor:
        passes["gradient" if x.requires_grad else "energy"] += 1
        return normal(x)

    for called, method in (("forward", "_call"), ("inverse", "_inverse")):
        plain = getattr(ToyFlow, method)

        def counting(self: ToyFlow, value: Tensor, called: Any = called, plain: Any = plain) -> Any:
            passes[called] += 1
            return plain(self, value)

        monkeypatch.setattr(ToyFlow, method, counting)
    flow = ToyFlow((4,))
    target = as_target(energy, shape=(4,), flow=flow if "latent" in name else None)
    jump, local = IndependenceMetropolis(flow, target), HMC(target, num_steps=3, jitter=0.0)
    jumps = [jump] if "latent" in name else [jump, jump]
    found = []
    for draws in (5, 15):
        passes.clear()
        run(jump if "jump" in name else Cycle(local, *jumps), draws, warmup_steps=0)
        found.append(passes.copy())
    assert found[1] - found[0] == {key: 10 * number for key, number in expected.items()}


@pytest.mark.parametrize("kind", [Cycle, Mixture])
@pytest.mark.parametrize("flows", [1, 2])
def test_what_is_kept_of_the_density_is_that_of_the_position(kind: Any, flows: int) -> None:
    target, (one, other) = as_target(normal, shape=(4,)), (ToyFlow((4,)), ToyFlow((4,)))
    jumps = [IndependenceMetropolis(flow, target) for flow in (one, other if flows == 2 else one)]
    kernel = kind(HMC(target, step_size=0.3, num_steps=2), *jumps)
    state, generator, known = kernel.init(torch.randn(6, 4)), torch.Generator().manual_seed(0), 0
    for _ in range(20):
        state, _ = kernel.step(state, generator)
        if state.log_q is not None:
            known += 1
            torch.testing.assert_close(state.log_q, jumps[-1]._log_q(state.position))
    assert (known > 0) == (flows == 1)


@pytest.mark.parametrize("name", ["jump", "three jumps"])
def test_jumps_whose_proposals_are_evaluated_at_once(name: str) -> None:
    """The draws do not depend on where the run ends, and cost what they cost one by one."""
    target = TARGETS["free field"]()
    kernel = KERNELS[name](target)
    assert kernel.steps_at_once(1000) == 1
    seen = {"sum": lambda x: x.flatten(1).sum(1)}
    short, long = (run(kernel, number, observables=seen) for number in (4, 7))
    assert kernel.steps_at_once(short.num_chains) > 7
    assert torch.equal(short.positions, long.positions[:, :4])
    torch.testing.assert_close(
        long.observables["sum"], long.get_samples(group_by_chain=True)["x"].flatten(2).sum(2)
    )
    assert long.gradient_evaluations.draws == 7 * kernel.num_jumps * long.num_chains
    generator = torch.Generator().manual_seed(0)
    state = kernel.init(kernel.target.initial(6, generator, "prior"))
    before = state.position
    for after, info in kernel.steps(state, generator, 20):
        assert torch.equal((after.position != before).any(-1), info.accepted)
        torch.testing.assert_close(after.energy, kernel.target.energy(after.position))
        before = after.position
