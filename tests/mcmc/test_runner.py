# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The runner: what it keeps, what it adapts, what it leaves alone, what it refuses."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, Cycle, FreeField, IndependenceMetropolis, IsingDual, VectorizedMCMC
from pyro_neuralrg.mcmc import Adaptation, RandomWalkMetropolis, results
from pyro_neuralrg.mcmc import runner as runner_module
from pyro_neuralrg.runtime import memory
from pyro_neuralrg.runtime.console import deferred_interrupts
from tests.mcmc.registry import KERNELS, TARGETS, ToyFlow, normal, run, standard_errors


@pytest.mark.parametrize("name", KERNELS)
def test_one_seed_one_result(name: str) -> None:
    kernel = KERNELS[name](TARGETS["free field"]())
    state = torch.random.get_rng_state()
    one, again, other = (run(kernel, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.positions, again.positions)
    assert not torch.equal(one.positions, other.positions)


def test_shapes_and_groups() -> None:
    flow = ToyFlow((2, 3))
    mcmc = run(Cycle(HMC(FreeField((2, 3), 0.8), flow=flow), IndependenceMetropolis(flow)), 7)
    grouped, flat = mcmc.get_samples(group_by_chain=True), mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in grouped.items()} == {
        "x": (6, 7, 2, 3),
        "x_latent": (6, 7, 2, 3),
    }
    for name, value in flat.items():
        assert torch.equal(value, grouped[name].flatten(0, 1))
    torch.testing.assert_close(flow(grouped["x_latent"]), grouped["x"])
    assert {tuple(value.shape) for value in mcmc.sample_stats.values()} == {(6, 7)}
    names = ["lp", "energy", "acceptance_rate", "step_size", "n_steps", "diverging"]
    assert set(mcmc.sample_stats) == {*names, "acceptance_rate_hmc", "acceptance_rate_jump"}


def test_lp_is_the_density_of_the_position() -> None:
    flow, potential = ToyFlow((2, 3)), FreeField((2, 3), 0.8)
    for mcmc, ladj_of in (
        (run(HMC(potential)), lambda z: torch.zeros(())),
        (run(HMC(potential, flow=flow)), lambda z: flow.log_abs_det_jacobian(z, flow(z))),
    ):
        samples = mcmc.get_samples(group_by_chain=True)
        expected = -potential.energy(samples["x"])
        if "x_latent" in samples:
            expected = expected + ladj_of(samples["x_latent"])
        torch.testing.assert_close(mcmc.sample_stats["lp"], expected.detach())


def test_flow_is_frozen_meanwhile_and_thawed_after() -> None:
    potential, flow = FreeField((2, 3), 0.8), ToyFlow((2, 3))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    seen = []

    def energy(x: Tensor) -> Tensor:
        seen.append([parameter.requires_grad for parameter in flow.parameters()])
        return potential.energy(x)

    kernel = HMC(energy, shape=(2, 3), flow=flow)
    seen.clear()  # of the trial when it was made
    run(kernel)
    assert seen
    assert not any(flag for flags in seen for flag in flags)
    assert all(parameter.requires_grad for parameter in flow.parameters())
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_step_size_reaches_the_target_acceptance() -> None:
    for goal in (0.6, 0.9):
        mcmc = run(
            HMC(
                TARGETS["free field"]().energy, shape=(2, 3), step_size=7.0, num_steps=3, jitter=0.0
            ),
            100,
            warmup_steps=Adaptation(target_acceptance=goal, steps=200),
            num_chains=64,
        )
        rates = mcmc.sample_stats["acceptance_rate"]
        assert float(rates.mean()) == pytest.approx(goal, abs=0.04)
        assert len(mcmc.sample_stats["step_size"].unique()) == 1


def test_mass_adapts_to_the_widths() -> None:
    scale = torch.tensor([0.1, 1.0, 10.0])
    kernel = HMC(lambda x: 0.5 * (x / scale).square().sum(-1), shape=(3,), num_steps=5)
    warmup = Adaptation(mass="diagonal", steps=400)
    adapted = run(kernel, 10, warmup_steps=warmup, num_chains=64).kernel
    assert adapted.inverse_mass is not None
    ratio = adapted.inverse_mass / scale.square()
    assert float(ratio.max() / ratio.min()) < 2.0


def test_without_adaptation_nothing_changes() -> None:
    kernel = HMC(TARGETS["free field"]().energy, shape=(2, 3), step_size=0.123)
    for warmup in (0, Adaptation(step_size=False, steps=5)):
        mcmc = run(kernel, warmup_steps=warmup)
        assert isinstance(mcmc.kernel, HMC)
        assert mcmc.kernel.step_size == 0.123
        assert float(mcmc.sample_stats["step_size"].min()) == 0.123


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


def test_numpy_integers_are_integers() -> None:
    options = {"warmup_steps": np.int64(2), "num_chains": np.int32(3), "seed": np.int64(1)}
    assert run(HMC(normal, shape=(2,)), np.int64(4), **options).positions.shape == (3, 4, 2)


def test_a_second_run_is_the_first_one_again() -> None:
    mcmc = run(HMC(normal, shape=(2,), num_steps=2), warmup_steps=30)
    first = mcmc.positions
    mcmc.run()
    assert torch.equal(mcmc.positions, first)


def test_a_second_run_that_dies_in_warm_up_leaves_no_draws_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    mcmc = run(HMC(normal, shape=(2,), num_steps=2), warmup_steps=3)
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


def test_chains_in_batches_are_the_same_chains() -> None:
    """Also jumps, latent energies and observables; only the memory is another."""
    sizes: list[int] = []

    def size(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1).sum(1)

    for name in ("hmc", "latent cycle", "random walk"):
        kernel = KERNELS[name](TARGETS["free field"]())
        all_at_once = run(kernel)
        sizes.clear()
        in_batches = kernel.on(kernel.target.in_batches(4))
        batched = run(in_batches, observables={"size": size})
        assert set(sizes) == {4, 2}
        torch.testing.assert_close(all_at_once.positions, batched.positions)
        torch.testing.assert_close(
            batched.observables["size"], batched.get_samples(group_by_chain=True)["x"].sum((-1, -2))
        )
    model = HMC(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), step_size=0.5, num_steps=1)
    mcmc = run(model.on(model.target.in_batches(4)), 1, warmup_steps=0)
    assert mcmc.kernel.target.chain_batch_size == 4


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


@pytest.mark.parametrize(
    ("observable", "message"),
    [
        (lambda x: x.mean(), r"returned \(\) for 6 chains"),
        (lambda x: 1.0, r"returned float for 6 chains"),
    ],
)
def test_bad_observables(observable: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"observables\['o'\] {message}"):
        run(HMC(normal, shape=(2,)), observables={"o": observable})


def test_warm_up_statistics() -> None:
    mcmc = run(HMC(normal, shape=(2,)), warmup_steps=25)
    assert {tuple(value.shape) for value in mcmc.warmup_stats.values()} == {(6, 25)}
    assert set(mcmc.warmup_stats) == set(mcmc.sample_stats)
    assert len(mcmc.warmup_stats["step_size"].unique()) > 10
    assert mcmc.adapted == {
        "hmc": {
            "step_size": float(mcmc.sample_stats["step_size"][0, 0]),
            "inverse_mass": None,
            "trajectory_length": None,
        }
    }


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
    apart = torch.arange(6.0).reshape(6, 1).expand(6, 2).clone()
    run(HMC(lambda x: 100 * x.sin().square().sum(-1), shape=(2,), step_size=0.01),
        initial_params={"x": 3.14159 * apart}, progress=True,
        observables={"first": lambda x: x[:, 0]})  # fmt: skip
    shown = capsys.readouterr().err
    assert "acceptance" in shown
    last = float(shown.rsplit("R-hat=", 1)[1].split(",")[0].split("]")[0])
    assert last > 2


def test_the_summary_has_one_line_per_scalar_and_two_per_field() -> None:
    kernel = HMC(FreeField((4, 4), 0.8), num_steps=3)
    mcmc = run(kernel, 30, observables={"mean": lambda x: x.mean((-1, -2))})
    table = mcmc.summary()
    assert list(table.index) == ["x[worst]", "x[median]", "mean", "lp"]
    for name, values in (("mean", mcmc.observables["mean"]), ("lp", mcmc.sample_stats["lp"])):
        close = pytest.approx(float(values.mean()), abs=0.06 * table.loc[name, "mcse_mean"])
        assert table.loc[name, "mean"] == close
    with pytest.raises(RuntimeError, match="call run"):
        VectorizedMCMC(kernel, 3).summary()
    with pd.option_context("display.width", 80, "display.max_columns", 0):
        shown = str(table)
    assert "..." not in shown
    assert all(title in shown.splitlines()[0] for title in table.columns)


def test_latents_come_last_in_the_summary_and_constants_are_told() -> None:
    flow = ToyFlow((2, 3))
    still = {
        "still": lambda x: torch.full((len(x),), 0.3),
        "half": lambda x: x.flatten(1).clamp(min=0) * MASK,
    }
    table = run(HMC(FreeField((2, 3), 0.8), flow=flow), observables=still).summary()
    first = [name.split("[")[0] for name in table.index]
    assert list(dict.fromkeys(first)) == ["x", "still", "half", "lp", "x_latent"]
    told = table.index[table["note"] == "constant"]
    assert list(told) == ["still", "half[1]", "half[4]"]
    assert table.loc[told, ["ess_bulk", "ess_tail", "r_hat"]].isna().all(axis=None)
    assert not table.loc[["x[0, 0]", "lp"], "ess_bulk"].isna().any()
    field = {"big": lambda x: x.flatten(1).repeat(1, 3) * MASK.repeat(3)}
    table = run(HMC(FreeField((2, 3), 0.8)), observables=field).summary()
    assert table.loc["big[worst]", "note"] == "6 constant"
    assert table.loc["big[worst]", "r_hat"] < 3


MASK = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("keep", [True, False])
def test_observables_may_work_in_place(keep: bool) -> None:
    """Neither draws nor other observables nor the chains see it."""
    one = {"size": lambda x: x.abs().sum((-1, -2)), "sign": lambda x: x.sign().sum((-1, -2))}
    two = {"size": lambda x: x.abs_().sum((-1, -2)), "sign": lambda x: x.sign_().sum((-1, -2))}
    for kernel in (HMC(FreeField((2, 3), 0.8)), KERNELS["latent cycle"](TARGETS["free field"]())):
        clean, changed = (run(kernel, observables=of, keep_draws=keep) for of in (one, two))
        for name in one:
            assert torch.equal(clean.observables[name], changed.observables[name])
        assert torch.equal(clean.sample_stats["lp"], changed.sample_stats["lp"])
        assert not keep or torch.equal(clean.positions, changed.positions)


def test_observables_of_several_sites_and_energies_may_work_in_place() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    mcmc = run(HMC(model), observables={"a": lambda sites: sites["a"].zero_().sum(-1)})
    assert float(mcmc.get_samples()["a"].abs().min()) > 0
    walks = [
        run(RandomWalkMetropolis(energy, shape=(2,))).positions
        for energy in (normal, lambda x: 0.5 * x.square_().sum(-1))
    ]
    assert torch.equal(*walks)


def test_some_of_the_draws_as_in_pyro() -> None:
    mcmc = run(HMC(FreeField((2, 3), 0.8)), 7)
    all_of_them = mcmc.get_samples()["x"]
    some = mcmc.get_samples(num_samples=50)["x"]
    assert some.shape == (50, 2, 3)
    known = (some.unsqueeze(1) == all_of_them).flatten(2).all(-1)
    assert bool(known.any(1).all())
    assert int(known.any(0).sum()) > 15
    grouped = mcmc.get_samples(num_samples=3, group_by_chain=True)["x"]
    assert grouped.shape == (6, 3, 2, 3)
    own = mcmc.get_samples(group_by_chain=True)["x"]
    assert bool((grouped.unsqueeze(2) == own.unsqueeze(1)).flatten(3).all(-1).any(2).all())
    for bad in (0, True):
        with pytest.raises((ValueError, TypeError), match=f"num_samples is {bad}; accepted"):
            mcmc.get_samples(bad)


def test_draws_that_cannot_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the energy is computed once, and again where more of them are asked for."""
    calls: list[int] = []

    def energy(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return 0.5 * x.square().sum(-1)

    options: dict[str, Any] = {"warmup_steps": 2, "num_chains": 4, "seed": 0, "progress": False}
    kernel = HMC(energy, shape=(5,))
    calls.clear()
    monkeypatch.setattr(memory, "available_memory", lambda _: 8.0 * 5 * 4 * 10)
    match = (
        "num_chains is 4 and num_samples is 11: that takes .* available here, or keep_draws=False"
    )
    with pytest.raises(memory.MemoryLimitError, match=match):
        VectorizedMCMC(kernel, 11, **options).run()
    assert not calls
    VectorizedMCMC(kernel, 11, keep_draws=False, **options).run()
    held = VectorizedMCMC(kernel, 10, **options)
    held.run()
    held.num_samples = 11
    with pytest.raises(memory.MemoryLimitError, match="num_samples is 11"):
        held.resume()
    assert held.get_samples()["x"].shape == (40, 5)
