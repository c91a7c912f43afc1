# SPDX-License-Identifier: Apache-2.0
"""ArviZ's view of a run, ours or Pyro's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC as PyroHMC  # noqa: N811
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg import (
    HMC,
    Cycle,
    FlowReparam,
    FreeField,
    IndependenceMetropolis,
    IsingDual,
    VectorizedMCMC,
    to_arviz,
)
from pyro_neuralrg.diagnostics import save_tree
from pyro_neuralrg.observables import field_observables
from tests.mcmc.registry import ToyFlow

STATS = {"lp", "energy", "acceptance_rate", "step_size", "n_steps", "diverging"}


def run(kernel: Any, draws: int = 6, chains: int = 3) -> VectorizedMCMC:
    mcmc = VectorizedMCMC(kernel, draws, warmup_steps=3, num_chains=chains, seed=0, progress=False)
    mcmc.run()
    return mcmc


def run_pyro(kernel: Any, draws: int = 6, **options: Any) -> MCMC:
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=3, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((5,), ("site",)), ((2, 3), ("row", "col")), ((2, 1, 2), ("row", "col", "layer"))],
)
@pytest.mark.parametrize("latent", [False, True])
def test_dimensions(shape: tuple[int, ...], dims: tuple[str, ...], latent: bool) -> None:
    flow = ToyFlow(shape) if latent else None
    mcmc = run(HMC(FreeField(shape, 0.8), flow=flow))
    idata = to_arviz(mcmc)
    samples = mcmc.get_samples(group_by_chain=True)
    assert hasattr(idata, "unconstrained_posterior") == latent
    assert not hasattr(idata, "observed_data")
    found = {"x": idata.posterior["x"]}
    if latent:
        found["x_latent"] = idata.unconstrained_posterior["x_latent"]
    for name, values in found.items():
        assert values.dims == ("chain", "draw", *dims)
        np.testing.assert_array_equal(values, samples[name])


def test_sample_stats_of_a_cycle() -> None:
    flow = ToyFlow((2, 2))
    mcmc = run(Cycle(HMC(FreeField((2, 2), 0.8), flow=flow), IndependenceMetropolis(flow)))
    stats = to_arviz(mcmc).sample_stats
    assert set(stats.data_vars) == STATS | {"acceptance_rate_hmc", "acceptance_rate_jump"}
    for name, values in mcmc.sample_stats.items():
        assert stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(stats[name], values)
    assert stats["diverging"].dtype == bool
    assert stats.attrs["gradient_evaluations"] == mcmc.gradient_evaluations.draws
    assert stats.attrs["seed"] == 0


def test_default_observables_are_those_of_the_target() -> None:
    """With its temperature, couplings, field and boundary in them."""
    target = IsingDual((2, 3), 2.0, (1.0, 0.5), field=0.7, boundary="open")
    posterior = to_arviz(run(HMC(target))).posterior
    x = torch.from_numpy(np.asarray(posterior["x"]))
    for name, function in {"energy": target.energy, **target.observables()}.items():
        np.testing.assert_allclose(posterior[name], function(x))


def test_pyros_run_in_the_latent_space() -> None:
    """Eq. 6 by Pyro: the posterior is x, the latents are apart, lp is that of z."""
    target, flow = FreeField((2, 3), 0.8), ToyFlow((2, 3))
    mcmc = run_pyro(NUTS(poutine.reparam(target.model, {"x": FlowReparam(flow)})))
    idata = to_arviz(mcmc)
    z = mcmc.get_samples(group_by_chain=True)["x_latent"]
    assert idata.posterior["x"].dims == ("chain", "draw", "row", "col")
    np.testing.assert_array_equal(idata.unconstrained_posterior["x_latent"], z)
    x = flow(z).detach()
    np.testing.assert_allclose(idata.posterior["x"], x)
    expected = -target.energy(x) + flow.log_abs_det_jacobian(z, x).detach()
    np.testing.assert_allclose(idata.sample_stats["lp"], expected, rtol=1e-6)
    assert idata.sample_stats["diverging"].shape == (1, 6)
    assert {"energy", "magnetisation", "structure_factor"} < set(idata.posterior.data_vars)


@pytest.mark.parametrize("kind", [PyroHMC, NUTS])
@pytest.mark.parametrize("of", ["potential_fn", "model"])
def test_pyros_run_in_the_physical_space(of: str, kind: Any) -> None:
    """With the acceptance of each chain, and the step size that its draws share."""
    target = IsingDual((2, 3), 3.0)
    options = {} if of == "model" else {"initial_params": {"x": torch.zeros(2, 3)}}
    kernel = kind(**{of: getattr(target, of)})
    mcmc = run_pyro(kernel, **options)
    idata = to_arviz(mcmc)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    np.testing.assert_allclose(idata.posterior["x"], x)
    np.testing.assert_allclose(idata.sample_stats["lp"], -target.energy(x))
    assert "structure_factor" in idata.posterior
    assert not hasattr(idata, "unconstrained_posterior")
    attrs = idata.sample_stats.attrs
    assert np.asarray(attrs["acceptance_rate"]) == mcmc.diagnostics()["acceptance rate"]["chain 0"]
    assert attrs["step_size"] == kernel.step_size > 0
    assert attrs.get("n_steps") == (kernel.num_steps if kind is PyroHMC else None)


def test_of_a_bare_potential_of_pyros_only_draws_and_divergences_are_known() -> None:
    def energy(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return params["y"].square().sum()

    kernel = PyroHMC(potential_fn=energy, num_steps=2)
    mcmc = run_pyro(kernel, initial_params={"y": torch.zeros(2)})
    idata = to_arviz(mcmc)
    np.testing.assert_array_equal(idata.posterior["y"], mcmc.get_samples(group_by_chain=True)["y"])
    assert list(idata.sample_stats.data_vars) == ["diverging"]
    assert not idata.sample_stats["diverging"].any()
    kernel = PyroHMC(potential_fn=energy, step_size=1e4, num_steps=1, adapt_step_size=False)
    idata = to_arviz(run_pyro(kernel, initial_params={"y": torch.ones(2)}))
    assert idata.sample_stats["diverging"].all()


def test_a_model_with_a_constrained_site_beside_the_field() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        pyro.sample("f", dist.Normal(torch.zeros(2, 2), scale).to_event(2))

    latent = poutine.reparam(model, {"f": FlowReparam(ToyFlow((2, 2)))})
    for mcmc in (run(HMC(latent, num_steps=3)), run_pyro(NUTS(latent))):
        idata = to_arviz(mcmc, {})
        assert idata.posterior["f"].dims == ("chain", "draw", "row", "col")
        assert idata.posterior["scale"].dims == ("chain", "draw")
        assert float(idata.posterior["scale"].min()) > 0
        assert "f_latent" in idata.unconstrained_posterior
        scale = idata.unconstrained_posterior["scale"]
        np.testing.assert_allclose(np.exp(scale), idata.posterior["scale"])
        assert "f" not in idata.unconstrained_posterior


def test_latents_of_pyros_own_guides_are_apart() -> None:
    def model() -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    guide = AutoDiagonalNormal(model)
    guide()
    latent = NeuTraReparam(guide.requires_grad_(False)).reparam(model)
    for mcmc in (run(HMC(latent, num_steps=3)), run_pyro(NUTS(latent))):
        idata = to_arviz(mcmc)
        assert set(idata.posterior.data_vars) == {"scale", "x"}
        (z,) = idata.unconstrained_posterior.data_vars.values()
        assert z.shape[2:] == (4,)
        with pytest.raises(ValueError, match="exactly one lattice field"):
            to_arviz(mcmc, {"first": lambda x: x[..., 0]})


def test_sites_and_plates_called_like_dimensions(tmp_path: Path) -> None:
    def model() -> None:
        pyro.sample("draw", dist.Normal(0.0, 1.0))
        pyro.sample("x_dim_1", dist.Normal(0.0, 1.0))
        pyro.sample("a/b", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("chain", 2):
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    mcmc = run(HMC(model))
    with pytest.warns(UserWarning, match="'draw' is 'draw_'"):
        idata = to_arviz(mcmc)
    assert idata.posterior["theta"].dims == ("chain", "draw", "chain_")
    samples = mcmc.get_samples(group_by_chain=True)
    names = {"draw": "draw_", "x_dim_1": "x_dim_1_", "a/b": "a_b", "x": "x", "theta": "theta"}
    for name, seen in names.items():
        np.testing.assert_array_equal(idata.posterior[seen], samples[name])
    np.testing.assert_allclose(idata.unconstrained_posterior["a_b"], samples["a/b"].log())
    save_tree(idata, tmp_path / "run.nc")


def test_observables_that_were_streamed_are_not_computed_again() -> None:
    target, functions = FreeField((2, 2), 0.8), {"magnetisation": lambda x: 1 + 0 * x[..., 0, 0]}
    options: dict[str, Any] = {"observables": functions, "num_chains": 3, "progress": False}
    kept, streamed = (
        VectorizedMCMC(HMC(target), 6, 2, keep_draws=keep, **options) for keep in (True, False)
    )
    kept.run()
    posterior = to_arviz(kept).posterior
    assert set(posterior.data_vars) == {"x", "energy", *field_observables((2, 2))}
    np.testing.assert_array_equal(posterior["magnetisation"], np.ones((3, 6)))
    streamed.run()
    idata = to_arviz(streamed)
    assert set(idata.posterior.data_vars) == {"magnetisation"}
    assert set(idata.sample_stats.data_vars) >= STATS
    assert not hasattr(idata, "unconstrained_posterior")
    with pytest.raises(ValueError, match="exactly one lattice field; the run has 0"):
        to_arviz(streamed, {"corner": lambda x: x[..., 0, 0]})


def test_warmup_on_request() -> None:
    mcmc = run(HMC(FreeField((2, 2), 0.8)))
    assert not hasattr(to_arviz(mcmc), "warmup_sample_stats")
    warmup = to_arviz(mcmc, include_warmup=True).warmup_sample_stats
    assert warmup["diverging"].dims == ("chain", "draw")
    np.testing.assert_array_equal(warmup["lp"], mcmc.warmup_stats["lp"])


def test_coordinates_and_own_dimensions() -> None:
    mcmc = run(HMC(FreeField((2, 3), 0.8)))
    options = {"dims": {"x": ["depth", "col"]}, "coords": {"depth": ["a", "b"], "col": [0, 0.5, 1]}}
    x = to_arviz(mcmc, {}, **options).posterior["x"]
    assert x.dims == ("chain", "draw", "depth", "col")
    np.testing.assert_array_equal(x.sel(depth="b", col=0.5), x[:, :, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"rows": ["a", "b"]}}, r"coords has \['rows'\]"),
        ({"coords": {"row": [1, "a"]}}, r"coords\['row'\] is \[1, 'a'\]; accepted: 2 numbers, 2 "),
        ({"dims": {"y": ["row"]}}, r"dims has \['y'\]"),
        ({"dims": {"x": ["row"]}}, r"dims\['x'\] is \['row'\]; accepted: 2 names"),
        ({"log_likelihood": True}, r"log_likelihood is True .* sites \[\]"),
        ({"observables": {"x": lambda x: x[..., 0, 0]}}, r"observables has \['x'\]"),
        ({"observables": {"s": lambda x: x[0]}}, r"observables\['s'\] returned \(2, 2\)"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arviz(run(HMC(FreeField((2, 2), 0.8))), **{"observables": {}, **options})


def test_no_warmup_of_pyros_run_and_no_runs() -> None:
    with pytest.raises(ValueError, match="include_warmup is True for a run of which no warm-up"):
        to_arviz(run_pyro(NUTS(FreeField((2, 2), 0.8).model)), include_warmup=True)
    with pytest.raises(TypeError, match=r"accepted: a VectorizedMCMC or pyro\.infer\.MCMC"):
        to_arviz({"x": 1})
    for mcmc in (MCMC(NUTS(FreeField((2, 2), 0.8).model), 3), VectorizedMCMC(HMC(lambda: None), 3)):
        with pytest.raises(RuntimeError, match=r"there are no draws; call run\(\) first"):
            to_arviz(mcmc)


def test_importance_weights_beside_a_run() -> None:
    weights = torch.randn(200)
    idata = to_arviz(run(HMC(FreeField((2, 2), 0.8))), importance=weights)
    np.testing.assert_array_equal(idata.importance["log_weight"], weights)
    assert "pareto_k" in idata.importance.attrs
    assert "pareto_k" not in idata.posterior.attrs


def test_own_observables_which_may_work_in_place() -> None:
    mcmc = run(HMC(FreeField((2, 2), 1.0)), draws=20)
    own = {"a": lambda x: x.abs_().mean((-1, -2)), "b": lambda x: x.mean((-1, -2))}
    posterior = to_arviz(mcmc, own).posterior
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert bool((x < 0).any())
    assert set(posterior.data_vars) == {"x", "a", "b"}
    np.testing.assert_array_equal(posterior["a"].values, x.abs().mean((-1, -2)))
    np.testing.assert_array_equal(posterior["b"].values, x.mean((-1, -2)))
