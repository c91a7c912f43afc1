# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The runner: what it keeps, what it adapts, what it leaves alone, what it refuses."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import (
    HMC,
    Cycle,
    FlowReparam,
    FreeField,
    IndependenceMetropolis,
    IsingDual,
    VectorizedMCMC,
    hierarchical_flow,
)
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.mcmc import Adaptation, ModelTarget, results, run_state
from pyro_neuralrg.mcmc import runner as runner_module
from pyro_neuralrg.mcmc.kernel import ChainState
from pyro_neuralrg.mcmc.run_state import started
from pyro_neuralrg.runtime.interrupts import deferred_interrupts
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.transforms import Neighbour
from tests.mcmc.registry import KERNELS, TARGETS, ToyFlow, kinked


def run(kernel: Any, num_samples: int = 20, **options: Any) -> VectorizedMCMC:
    settings = {"warmup_steps": 5, "num_chains": 6, "seed": 0, "progress": False} | options
    if "adaptation" in settings:
        steps = settings.pop("warmup_steps")
        settings["warmup_steps"] = replace(settings.pop("adaptation"), steps=steps)
    mcmc = VectorizedMCMC(kernel, num_samples, **settings)
    mcmc.run()
    return mcmc


def standard_errors(values: Tensor, expected: float) -> float:
    """Of the mean over independent chains; values of shape (chains, draws)."""
    means = values.mean(1)
    return abs(float((means.mean() - expected) / (means.std() / math.sqrt(len(means)))))


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
    assert set(mcmc.sample_stats) == {
        "lp",
        "energy",
        "acceptance_rate",
        "step_size",
        "n_steps",
        "diverging",
        "acceptance_rate_hmc",
        "acceptance_rate_jump",
    }


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

    run(HMC(energy, shape=(2, 3), flow=flow))
    assert seen
    assert not any(flag for flags in seen for flag in flags)
    assert all(parameter.requires_grad for parameter in flow.parameters())
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_step_size_reaches_the_target_acceptance() -> None:
    for goal in (0.6, 0.9):
        mcmc = run(
            HMC(TARGETS["free field"]().energy, shape=(2, 3), step_size=7.0, num_steps=3),
            100,
            warmup_steps=200,
            num_chains=64,
            adaptation=Adaptation(target_acceptance=goal),
        )
        rates = mcmc.sample_stats["acceptance_rate"]
        assert float(rates.mean()) == pytest.approx(goal, abs=0.04)
        assert len(mcmc.sample_stats["step_size"].unique()) == 1


def test_mass_adapts_to_the_widths() -> None:
    scale = torch.tensor([0.1, 1.0, 10.0])
    kernel = HMC(lambda x: 0.5 * (x / scale).square().sum(-1), shape=(3,), num_steps=5)
    adapted = run(
        kernel, 10, warmup_steps=400, num_chains=64, adaptation=Adaptation(mass="diagonal")
    ).kernel
    assert adapted.inverse_mass is not None
    ratio = adapted.inverse_mass / scale.square()
    assert float(ratio.max() / ratio.min()) < 2.0


def test_without_adaptation_nothing_changes() -> None:
    kernel = HMC(TARGETS["free field"]().energy, shape=(2, 3), step_size=0.123)
    for mcmc in (
        run(kernel, warmup_steps=0),
        run(kernel, adaptation=Adaptation(step_size=False)),
    ):
        assert isinstance(mcmc.kernel, HMC)
        assert mcmc.kernel.step_size == 0.123
        assert float(mcmc.sample_stats["step_size"].min()) == 0.123


def test_physical_starts_of_a_latent_run() -> None:
    flow = ToyFlow((2, 3))
    x = torch.randn(6, 2, 3)
    kernel = HMC(FreeField((2, 3), 0.8), step_size=1e-9, num_steps=1, flow=flow)
    mcmc = run(
        kernel, 1, warmup_steps=0, initial_params={"x": x}, adaptation=Adaptation(step_size=False)
    )
    torch.testing.assert_close(mcmc.get_samples()["x"], x, atol=1e-6, rtol=0)


def normal_model(data: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(mean, scale), obs=data)


def test_model_posterior_is_that_of_a_grid() -> None:
    """Constrained sites, arguments and data: against numerical integration."""
    data = torch.tensor([0.3, 1.1, -0.4, 2.0, 0.9])
    mean, log_scale = torch.linspace(-4, 4, 401), torch.linspace(-2.5, 2.5, 401)
    m, s = torch.meshgrid(mean, log_scale.exp(), indexing="ij")
    log_p = dist.Normal(0.0, 2.0).log_prob(m) + dist.Normal(0.0, 0.5).log_prob(s.log())
    log_p = log_p + dist.Normal(m[..., None], s[..., None]).log_prob(data).sum(-1)
    weights = log_p.flatten().softmax(0).reshape(m.shape)
    mcmc = VectorizedMCMC(
        HMC(normal_model, num_steps=5), 200, 200, num_chains=64, seed=1, progress=False
    )
    mcmc.run(data)
    samples = mcmc.get_samples(group_by_chain=True)
    assert standard_errors(samples["mean"], float((weights * m).sum())) < 4
    assert standard_errors(samples["scale"], float((weights * s).sum())) < 4


@pytest.mark.parametrize("space", ["physical", "latent"])
def test_ising_structure_factor(space: str) -> None:
    """4 x 4 at 3 J / k_B, in both spaces, against the exact value."""
    target = IsingDual((4, 4), 3.0)
    kernel: Any = HMC(target, num_steps=12)
    if space == "latent":
        flow = target.flow()
        kernel = Cycle(HMC(target, num_steps=3, flow=flow), IndependenceMetropolis(flow))
    mcmc = run(kernel, 50, warmup_steps=40, num_chains=64)
    spins = mcmc.get_samples(group_by_chain=True)["x"].tanh().flatten(2)
    values = spins.mean(-1).square() - spins.square().mean(-1) / 16 + 1 / 16
    assert standard_errors(values, target.spins.structure_factor()) < 4


def test_model_of_a_potential_is_the_potential() -> None:
    """The reparameterised model, the plain target and vmap of the model: one energy."""
    target, flow = IsingDual((2, 3), 2.0), ToyFlow((2, 3))
    latent = poutine.reparam(target.model, {"x": FlowReparam(flow)})
    direct, by_model = HMC(target, flow=flow).target, ModelTarget(latent).setup()
    recognised = HMC(latent).target
    assert type(recognised) is type(direct)
    z = torch.randn(5, 6)
    for one, two, three in zip(
        direct.energy_and_grad(z),
        by_model.energy_and_grad(z),
        recognised.energy_and_grad(z),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_a_model_that_vmap_cannot_take_is_run_chain_by_chain() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x.detach()) > 100:  # depends on a value
            pyro.factor("never", x)

    with pytest.warns(UserWarning, match="cannot be vectorised") as warned:
        mcmc = run(HMC(model, num_steps=3), 100, warmup_steps=50)
    assert standard_errors(mcmc.get_samples(group_by_chain=True)["x"], 0.0) < 5
    assert [entry.filename for entry in warned] == [__file__]


def test_interrupt_keeps_what_there_is() -> None:
    calls = 0

    def energy(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return 0.5 * x.square().sum(-1)

    mcmc = run(
        HMC(energy, shape=(2,), num_steps=1),
        100,
        warmup_steps=0,
        adaptation=Adaptation(step_size=False),
    )
    assert mcmc.interrupted
    assert mcmc.get_samples(group_by_chain=True)["x"].shape[:2] == (6, 38)
    assert mcmc.sample_stats["lp"].shape == (6, 38)


def test_diagnostics_in_the_form_of_pyros() -> None:
    mcmc = run(KERNELS["hmc"](TARGETS["free field"]()), 50)
    found = mcmc.diagnostics()
    assert set(found["x"]) == {"n_eff", "r_hat"}
    assert set(found["divergences"]) == set(found["acceptance rate"])
    assert found["divergences"]["chain 0"] == []


def energy_of_one(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, r"num_samples is 0; accepted: an integer >= 1"),
        ({"seed": 2**65}, rf"seed is {2**65}; accepted: an integer from 0"),
        ({"num_chains": -1}, r"num_chains is -1; accepted"),
        ({"warmup_steps": -1}, r"warmup_steps is -1; accepted"),
        ({"seed": -1}, r"seed is -1; accepted"),
        ({"initial_params": {"x": torch.zeros(5, 2)}}, r"shape \(5, 2\); accepted: \(6, 2\)"),
        ({"initial_params": {"y": torch.zeros(6, 2)}}, r"sites \['y'\]; accepted: \['x'\]"),
        ({"initial_params": {"x": torch.full((6, 2), math.nan)}}, r"of 6 of 6 chains"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(HMC(energy_of_one, shape=(2,)), **({"num_samples": 2} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 2.5}, r"num_samples is 2.5; accepted"),
        ({"num_samples": "a"}, r"num_samples is 'a'; accepted"),
        ({"num_samples": None}, r"num_samples is None; accepted"),
        ({"num_samples": math.nan}, r"num_samples is nan; accepted"),
        ({"num_samples": True}, r"num_samples is True; accepted"),
        ({"warmup_steps": "dense"}, r"warmup_steps is 'dense'; accepted"),
        ({"record": "run.pt"}, r"record is a str; accepted: a Record, or None"),
        ({"observables": [energy_of_one]}, r"observables is a list; accepted"),
        ({"observables": {"a": 3}}, r"observables\['a'\] is a int; accepted"),
    ],
)
def test_arguments_of_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(HMC(energy_of_one, shape=(2,)), **({"num_samples": 2} | options))


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: 0.5 * x.square().sum(), r"energy returned \(\) for 6 chains"),
        (lambda x: 0.5 * x.square(), r"energy returned \(6, 2\) for 6 chains"),
        (lambda x: 1.0, r"energy returned float for 6 chains"),
        (lambda x: x.detach().sum(-1), r"not depend on the field differentiably; accepted"),
    ],
)
def test_bad_energies(energy: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(HMC(energy, shape=(2,)))


def test_bad_targets() -> None:
    with pytest.raises(TypeError, match=r"kernel is a int"):
        VectorizedMCMC(3, 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target is a int"):
        HMC(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"flow has shape \(4, 4\), the field \(2, 3\)"):
        HMC(FreeField((2, 3), 1.0), flow=hierarchical_flow((4, 4)))
    with pytest.raises(ValueError, match=r"no continuous latent site"):
        run(HMC(lambda: pyro.sample("x", dist.Bernoulli(0.5))))
    with pytest.raises(TypeError, match=r"do not fit the model \(x.*; accepted: .*give its.*shape"):
        run(HMC(energy_of_one))
    with pytest.raises(RuntimeError, match="call run"):
        VectorizedMCMC(HMC(energy_of_one, shape=(2,)), 10).get_samples()
    with pytest.raises(TypeError, match="takes none"):
        VectorizedMCMC(HMC(energy_of_one, shape=(2,)), 10, progress=False).run(3)


def test_nothing_is_warned_of_in_a_plain_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = run(KERNELS["hmc"](TARGETS["free field"]())).kernel.init(torch.zeros(1, 6))
    assert isinstance(state, ChainState)


def test_numpy_integers_are_integers() -> None:
    options = {"warmup_steps": np.int64(2), "num_chains": np.int32(3), "seed": np.int64(1)}
    assert run(HMC(energy_of_one, shape=(2,)), np.int64(4), **options).positions.shape == (3, 4, 2)


def test_a_second_run_is_the_first_one_again() -> None:
    mcmc = run(HMC(energy_of_one, shape=(2,), num_steps=2), warmup_steps=30)
    first = mcmc.positions
    mcmc.run()
    assert torch.equal(mcmc.positions, first)


def test_a_second_run_that_dies_in_warm_up_leaves_no_draws_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    mcmc = run(HMC(energy_of_one, shape=(2,), num_steps=2), warmup_steps=3)
    monkeypatch.setattr(runner_module.Warmup, "update", die)
    with pytest.raises(KeyboardInterrupt):
        mcmc.run()
    assert mcmc.gradient_evaluations.total == 0
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        mcmc.get_samples()


@pytest.mark.parametrize("name", ["cycle", "latent cycle", "hmc"])
def test_the_hamiltonian_of_a_draw_is_not_below_its_energy(name: str) -> None:
    stats = run(KERNELS[name](TARGETS["free field"]()), 30).sample_stats
    assert (stats["energy"] >= -stats["lp"]).all()


@pytest.mark.parametrize("draws", [1, 3])
def test_few_draws_tell_nothing_of_convergence(draws: int) -> None:
    found = run(KERNELS["latent hmc"](TARGETS["free field"]()), draws).diagnostics()
    for site in ("x", "x_latent"):
        assert found[site]["n_eff"].shape == found[site]["r_hat"].shape == (2, 3)
        assert found[site]["n_eff"].isnan().all()
        assert found[site]["r_hat"].isnan().all()
    assert set(found["acceptance rate"]) == {f"chain {chain}" for chain in range(6)}


def test_ctrl_c_after_the_last_draw_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def pressed_within(*held: Any) -> Iterator[list[int]]:
        with deferred_interrupts(*held) as pressed:
            if not held:  # the one after the last draw
                signal.raise_signal(signal.SIGINT)
            yield pressed

    monkeypatch.setattr(runner_module, "deferred_interrupts", pressed_within)
    mcmc = run(HMC(energy_of_one, shape=(2,)), 4)
    assert mcmc.interrupted
    assert mcmc.positions.shape == (6, 4, 2)


@pytest.mark.parametrize("broken", ["energy", "gradient"])
def test_bad_starts_are_drawn_anew_and_good_ones_kept(broken: str) -> None:
    def infinite(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, math.inf, energy_of_one(x))

    energy = infinite if broken == "energy" else kinked
    kernel = HMC(energy, shape=(2,), step_size=1e-9, num_steps=1)
    generator = torch.Generator().manual_seed(3)
    first = kernel.target.initial(40, torch.Generator().manual_seed(3))
    good = first[:, 0] <= 0
    said = f"^{int((~good).sum())} of 40 chains started where the energy or its gradient is not"
    with pytest.warns(UserWarning, match=said) as warned:
        state = started(kernel, None, 40, generator, Processes())
    assert len(warned) == 1
    assert 5 < int(good.sum()) < 35
    assert (state.position[:, 0] <= 0).all()
    assert state.gradient is not None
    assert torch.isfinite(state.gradient).all()
    assert torch.equal(state.position[good], first[good])


def test_starts_that_never_become_finite_are_named() -> None:
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum(-1) + math.inf

    with pytest.raises(ValueError, match="of 6 of 6 chains is not finite"):
        run(HMC(energy, shape=(2,)))
    assert len(calls) == 1 + run_state.MAX_RESTARTS


def test_physical_starts_of_a_reparameterised_model() -> None:
    """The field itself, beside a site of the model that stays as Pyro has it."""
    flow = ToyFlow((2, 2))

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        pyro.sample("f", dist.Normal(torch.zeros(2, 2), scale).to_event(2))

    kernel = HMC(poutine.reparam(model, {"f": FlowReparam(flow)}), step_size=1e-9, num_steps=1)
    options = {"warmup_steps": 0, "adaptation": Adaptation(step_size=False)}
    x, log_scale = torch.randn(6, 2, 2), torch.randn(6)
    for start in ({"f": x}, {"f_latent": flow.inv(x).detach()}):
        mcmc = run(kernel, 1, initial_params=start | {"scale": log_scale}, **options)
        samples = mcmc.get_samples()
        torch.testing.assert_close(samples["f"], x, atol=1e-6, rtol=0)
        torch.testing.assert_close(samples["scale"], log_scale.exp(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"initial_params\['f'\] has shape \(5, 2, 2\)"):
        run(kernel, 1, initial_params={"f": x[:5], "scale": log_scale}, **options)
    with pytest.raises(ValueError, match=r"or the fields \['f'\] for the latent ones"):
        run(kernel, 1, initial_params={"f": x}, **options)


def test_batches_of_chains_are_those_of_a_model_too() -> None:
    kernel = HMC(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), step_size=0.5, num_steps=1)
    mcmc = run(kernel.on(kernel.target.in_batches(4)), 1, warmup_steps=0)
    assert mcmc.kernel.target.chain_batch_size == 4


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


def test_observables_of_models_without_a_single_field() -> None:
    data = torch.tensor([0.3, 1.1])
    seen = {"ratio": lambda sites: sites["mean"] / sites["scale"]}
    mcmc = VectorizedMCMC(
        HMC(normal_model, num_steps=2), 4, 3, 5, seed=0, progress=False, observables=seen
    )
    mcmc.run(data)
    samples = mcmc.get_samples(group_by_chain=True)
    torch.testing.assert_close(mcmc.observables["ratio"], samples["mean"] / samples["scale"])


@pytest.mark.parametrize(
    ("observable", "message"),
    [
        (lambda x: x.mean(), r"returned \(\) for 6 chains"),
        (lambda x: 1.0, r"returned float for 6 chains"),
    ],
)
def test_bad_observables(observable: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"observables\['o'\] {message}"):
        run(HMC(energy_of_one, shape=(2,)), observables={"o": observable})


def test_warm_up_statistics() -> None:
    mcmc = run(HMC(energy_of_one, shape=(2,)), warmup_steps=25)
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


def test_named_starts() -> None:
    """Of the prior in physical space, or of the flow; each where it is known."""
    flow, field = ToyFlow((2, 3)), FreeField((2, 3), 0.8)
    still = {"warmup_steps": 0, "adaptation": Adaptation(step_size=False)}

    def starts(kernel: Any, start: str) -> Tensor:
        return run(kernel, 1, num_chains=2000, initial_params=start, **still).get_samples()["x"]

    latent = HMC(field, step_size=1e-9, num_steps=1, flow=flow)
    physical = HMC(field, step_size=1e-9, num_steps=1)
    for kernel in (latent, physical):
        x = starts(kernel, "prior")
        assert standard_errors(x.flatten(1).square(), 1.0) < 4
    x = starts(latent, "flow")
    z = flow.inv(x).detach()
    assert standard_errors(z.flatten(1).square(), 1.0) < 4
    assert standard_errors(x.flatten(1).square(), 1.0) > 8
    with pytest.raises(ValueError, match=r"initial_params is 'flow'.*physical space; accepted"):
        starts(physical, "flow")
    with pytest.raises(ValueError, match=r"initial_params is 'nowhere'; accepted: 'prior', 'flow'"):
        starts(physical, "nowhere")
    with pytest.raises(ValueError, match=r"accepted for this model: 'prior'"):
        run(HMC(lambda: pyro.sample("m", dist.Normal(0.0, 1.0))), initial_params="flow")


def test_prior_starts_behind_flows() -> None:
    """Of one site by FlowReparam, of all by a guide: the draws of the model as it is written."""

    def model() -> None:
        width = pyro.sample("width", dist.LogNormal(1.0, 0.2))
        x = pyro.sample(
            "x", dist.Normal(5.0 * torch.ones(2, 3), width[..., None, None]).to_event(2)
        )
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=torch.zeros(2, 3))

    one = poutine.reparam(model, config={"x": FlowReparam(ToyFlow((2, 3)))})
    bijector = Neighbour(layers=2, hidden=(4,))
    every = NeuTraReparam(AutoHierarchicalFlow(model, bijector=bijector)).reparam(model)
    for latent in (one, every):
        target = ModelTarget(latent).setup()
        starts = target.initial(500, torch.Generator().manual_seed(0), "prior")
        assert starts.shape == (500, 7)
        values = target.physical(starts)
        width = values["width"].reshape(-1, 1)
        assert standard_errors(width.log(), 1.0) < 4
        assert standard_errors(((width.log() - 1.0) / 0.2).square(), 1.0) < 4
        residual = (values["x"].flatten(1) - 5.0) / width
        assert standard_errors(residual, 0.0) < 4
        assert standard_errors(residual.square(), 1.0) < 4


def test_prior_starts_that_are_not_to_be_had() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    inner = poutine.reparam(model, config={"x": FlowReparam(ToyFlow((2,)))})
    target = ModelTarget(lambda: inner()).setup()
    with pytest.raises(ValueError, match=r"site 'x' has none.*accepted for this model: None"):
        target.initial(2, torch.Generator(), "prior")


def test_models_that_no_chain_can_sample() -> None:
    """Each with the site and what to do, before any sampling."""

    def subsampled() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=2):
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(2))

    def mixture() -> None:
        with pyro.plate("parts", 3):
            kind = pyro.sample("kind", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2.0 * kind, 1.0))

    with pytest.raises(ValueError, match=r"subsampled plates 'data' \(2 of 6\); accepted: plates"):
        run(HMC(subsampled))
    with pytest.raises(ValueError, match=r"site 'x' of shape \(3,\) depends on .*\['kind'\]"):
        run(HMC(mixture))


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
    assert list(table.index) == ["lp", "mean", "x[worst]", "x[median]"]
    assert table.loc["mean", "mean"] == pytest.approx(float(mcmc.observables["mean"].mean()))
    assert table.loc["lp", "mean"] == pytest.approx(float(mcmc.sample_stats["lp"].mean()))
    with pytest.raises(RuntimeError, match="call run"):
        VectorizedMCMC(kernel, 3).summary()


def test_prior_starts_of_a_model_come_from_the_seed() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    target = ModelTarget(model).setup()
    before = torch.random.get_rng_state()
    one, two, other = (target.initial(3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
