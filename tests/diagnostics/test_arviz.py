# SPDX-License-Identifier: Apache-2.0
"""What ArviZ makes of a Pyro model's run: scores, comparisons, predictions, figures and files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_neuralrg import HMC, FlowReparam, VectorizedMCMC, sample, to_arviz
from pyro_neuralrg.distributions import GaussianMarkovField
from pyro_neuralrg.infer import AutoHierarchicalFlow
from tests.mcmc.registry import ToyFlow

IS_FIRST = az.__version__.startswith("0.")
NOISE, WIDTH = 0.7, 2.0


def run(model: Any, *args: Any, draws: int = 20, chains: int = 4, **kwargs: Any) -> VectorizedMCMC:
    mcmc = VectorizedMCMC(
        HMC(model, num_steps=4), draws, 40, num_chains=chains, seed=0, progress=False
    )
    mcmc.run(*args, **kwargs)
    return mcmc


def level(data: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> None:
    """Normal data around a level: all in closed form."""
    mean = pyro.sample("mean", dist.Normal(0.0, WIDTH))
    noise = dist.Normal(mean, NOISE).expand(data.shape)
    noise = noise if mask is None else noise.mask(mask)
    with poutine.scale(scale=scale):
        pyro.sample("y", noise.to_event(data.dim()), obs=data)


def exact_elpd(data: Tensor) -> float:
    """Sum of ln p(y_i | all others) of :func:`level`: the others' conjugate posterior, by hand."""
    y = data.flatten().double()
    precision = 1 / WIDTH**2 + (len(y) - 1) / NOISE**2
    mean = (y.sum() - y) / NOISE**2 / precision
    return float(dist.Normal(mean, (1 / precision + NOISE**2) ** 0.5).log_prob(y).sum())


def elpd(idata: Any) -> tuple[float, int]:
    loo = az.loo(idata)
    return float(loo.elpd_loo if IS_FIRST else loo.elpd), int(loo.n_data_points)


def drawn(shape: tuple[int, ...]) -> Tensor:
    return 1.0 + NOISE * torch.randn(shape, dtype=torch.float64)


def test_each_cell_of_an_event_is_a_datum() -> None:
    data = drawn((20, 20))
    idata = to_arviz(run(level, data, chains=200), log_likelihood=True)
    found = idata.log_likelihood["y"]
    assert found.dims == ("chain", "draw", "y_dim_0", "y_dim_1")
    assert found.dims[2:] == idata.observed_data["y"].dims
    mean = torch.as_tensor(idata.posterior["mean"].values)[..., None, None]
    np.testing.assert_allclose(found, dist.Normal(mean, NOISE).log_prob(data))
    score, number = elpd(idata)
    assert number == 400
    assert score == pytest.approx(exact_elpd(data), abs=0.1)


def in_distribution(data: Tensor, mask: Tensor) -> None:
    level(data, mask)


def in_plates(data: Tensor, mask: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, WIDTH))
    rows, columns = pyro.plate("row", data.shape[0], dim=-2), pyro.plate("col", data.shape[1])
    with rows, columns, poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(mean, NOISE), obs=data)


def by_obs_mask(data: Tensor, mask: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, WIDTH))
    rows, columns = pyro.plate("row", data.shape[0], dim=-2), pyro.plate("col", data.shape[1])
    with rows, columns:
        pyro.sample("y", dist.Normal(mean, NOISE), obs=data, obs_mask=mask)


@pytest.mark.parametrize("hidden", [0.0, float("nan")])
@pytest.mark.parametrize("model", [in_distribution, in_plates, by_obs_mask])
def test_cells_under_a_mask_are_no_data(model: Any, hidden: float) -> None:
    data, name = drawn((4, 5)), "y_observed" if model is by_obs_mask else "y"
    mask = torch.arange(20).reshape(4, 5) % 5 < 3
    given = torch.where(mask, data, hidden)
    mcmc = run(model, given, mask, chains=200)
    idata = to_arviz(
        mcmc,
        dims={name: ["row", "col"]},
        coords={"row": list("abcd")},
        log_likelihood=True,
        posterior_predictive=True,
    )
    score, number = elpd(idata)
    assert number == 12
    assert score == pytest.approx(exact_elpd(data[mask]), abs=0.15)
    for group in ("observed_data", "posterior_predictive", "log_likelihood"):
        seen = idata[group][name]
        assert seen.dims[-1] == f"{name}_seen"
        rows = ["abcd"[row] for row in mask.nonzero()[:, 0].tolist()]
        assert list(seen[f"{name}_row"].values) == rows
        assert list(seen[f"{name}_col"].values) == mask.nonzero()[:, 1].tolist()
    np.testing.assert_array_equal(idata.observed_data[name], data[mask])
    assert list(idata.constant_data.data_vars) == ["mask"]
    whole = idata.predictions[name]
    assert whole.dims == ("chain", "draw", "row", "col")
    seen = whole.values[:, :, mask.numpy()]
    np.testing.assert_array_equal(seen, idata.posterior_predictive[name])
    assert np.isfinite(whole).all()
    assert float(whole[:, :, 0, 4].std()) == pytest.approx(NOISE, rel=0.3)


@pytest.mark.parametrize("how", [False, torch.zeros(3, dtype=torch.bool)])
def test_a_site_that_is_hidden_has_no_data(how: Any) -> None:
    mcmc = run(level, drawn((3,)), how)
    assert "observed_data" not in groups_of(to_arviz(mcmc))
    with pytest.raises(ValueError, match=r"log_likelihood is True .* observed sites \[\]"):
        to_arviz(mcmc, log_likelihood=True)


def test_a_joint_density_is_one_datum() -> None:
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    data, mask = drawn((3, 2)), torch.tensor([True, False, True])

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        joint = dist.MultivariateNormal(mean, covariance)
        pyro.sample("y", joint.expand([3]).to_event(1), obs=data)
        with pyro.plate("pair", 3):
            pyro.sample("w", joint.mask(mask), obs=data)

    idata = to_arviz(run(model), log_likelihood=True)
    y, w = idata.log_likelihood["y"], idata.log_likelihood["w"]
    assert (y.dims[2:], w.dims[2:]) == (("y_dim_0",), ("w_seen",))
    assert idata.observed_data["w"].dims == ("w_seen", "w_dim_1")
    mean = torch.as_tensor(idata.posterior["mean"].values)[:, :, None]
    expected = dist.MultivariateNormal(mean, covariance).log_prob(data)
    np.testing.assert_allclose(y, expected)
    np.testing.assert_allclose(w, expected[..., mask])
    assert list(w["w_pair"].values) == [0, 2]


def test_a_scaled_likelihood_is_that_of_each_datum_once() -> None:
    data = drawn((6,))
    mcmc = run(level, data, scale=3.0)
    with pytest.warns(UserWarning, match=r"sites \['y'\] are scaled"):
        idata = to_arviz(mcmc, log_likelihood=True)
    mean = torch.as_tensor(idata.posterior["mean"].values)[..., None]
    np.testing.assert_allclose(idata.log_likelihood["y"], dist.Normal(mean, NOISE).log_prob(data))


def test_one_value_of_many_cells_is_as_many_data() -> None:
    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", 3):
            pyro.sample("y", dist.Poisson(mean.exp()), obs=torch.tensor(2.0))

    idata = to_arviz(run(model), log_likelihood=True)
    assert idata.observed_data["y"].dims == ("cell",)
    np.testing.assert_array_equal(idata.observed_data["y"], [2, 2, 2])
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "cell")


def field(data: Tensor, exposure: Tensor | None = None) -> None:
    """A map of counts with a function of its sites."""
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.3))
    with pyro.plate("north", 2, dim=-2), pyro.plate("east", 3, dim=-1):
        f = pyro.sample("f", dist.Normal(0.0, scale))
        rate = pyro.deterministic("rate", f.exp())
        pyro.sample("y", dist.Poisson(rate if exposure is None else exposure * rate), obs=data)


COUNTS = torch.tensor([[1.0, 0.0, 2.0], [4.0, 1.0, 0.0]])
EXPOSURE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])


def of_ours() -> Any:
    return run(field, COUNTS, exposure=EXPOSURE)


def of_pyro() -> Any:
    mcmc = MCMC(NUTS(field, max_tree_depth=5), 100, 50, disable_progbar=True)
    mcmc.run(COUNTS, exposure=EXPOSURE)
    return mcmc


def of_guide() -> Any:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.3))
        f = pyro.sample("f", dist.Normal(torch.zeros(2, 3), scale).to_event(2))
        rate = pyro.deterministic("rate", f.exp())
        pyro.sample("y", dist.Poisson(EXPOSURE * rate).to_event(2), obs=COUNTS)

    guide = AutoHierarchicalFlow(model)
    guide()
    return sample(model, guide, 80, method="independence", num_chains=4, seed=0, progress=False)


def of_flow() -> Any:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.3))
        f = pyro.sample("f", dist.Normal(torch.zeros(2, 3), scale).to_event(2))
        rate = pyro.deterministic("rate", f.exp())
        pyro.sample("y", dist.Poisson(EXPOSURE * rate).to_event(2), obs=COUNTS)

    return run(poutine.reparam(model, {"f": FlowReparam(ToyFlow((2, 3)))}))


SAMPLERS = pytest.mark.parametrize("sampler", [of_ours, of_pyro, of_guide, of_flow])
PREDICTED = {"log_likelihood": True, "prior": 500, "posterior_predictive": True}


def groups_of(idata: Any) -> set[str]:
    return set(idata.groups()) if IS_FIRST else set(idata.children)


@SAMPLERS
def test_prior_and_predictions_without_handwork(sampler: Any) -> None:
    mcmc = sampler()
    before = torch.random.get_rng_state()
    idata = to_arviz(mcmc, {}, **PREDICTED)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {"scale", "f", "rate"} == set(idata.prior.data_vars) <= set(idata.posterior.data_vars)
    assert idata.prior["f"].shape == (1, 500, 2, 3)
    log_scale = np.log(idata.prior["scale"].values)
    assert abs(log_scale.mean() + 1.0) < 4 * 0.3 / 500**0.5
    f = idata.prior["f"].values / idata.prior["scale"].values[..., None, None]
    assert f.std() == pytest.approx(1.0, abs=4 / 3000**0.5)
    np.testing.assert_allclose(idata.prior["rate"], np.exp(idata.prior["f"]), rtol=1e-6)
    for group, first in (("prior", "prior"), ("posterior", "posterior")):
        rate = idata[first]["rate"].values * EXPOSURE.numpy()
        data = idata[f"{group}_predictive"]["y"].values
        assert data.shape == rate.shape
        residual = (data - rate) / np.sqrt(rate)
        assert abs(residual.mean()) < 5 / residual.size**0.5
        assert residual.std() == pytest.approx(1.0, abs=0.12)
    again = to_arviz(mcmc, {}, **PREDICTED)
    other = to_arviz(mcmc, {}, **PREDICTED, seed=1)
    for group in ("prior", "prior_predictive", "posterior_predictive"):
        assert idata[group].equals(again[group])
        assert not idata[group].equals(other[group])


@pytest.fixture(scope="module")
def idata() -> Any:
    coords = {"north": ["low", "high"]}
    return to_arviz(of_ours(), coords=coords, **PREDICTED)


@pytest.fixture(autouse=True)
def quiet_figures() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(arviz|matplotlib)")
        yield
    plt.close("all")


def test_groups_share_the_names_of_plates(idata: Any) -> None:
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert idata[group]["y"].dims[-2:] == ("north", "east")
        assert list(idata[group]["north"].values) == ["low", "high"]
    assert idata.posterior["rate"].dims == ("chain", "draw", "north", "east")
    np.testing.assert_array_equal(idata.constant_data["exposure"], EXPOSURE)


def test_scores_and_comparison(idata: Any) -> None:
    def plain(data: Tensor) -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Poisson(rate).expand(data.shape).to_event(2), obs=data)

    assert elpd(idata)[1] == 6
    other = to_arviz(run(plain, COUNTS), log_likelihood=True)
    table = az.compare({"field": idata, "plain": other})
    assert set(table.index) == {"field", "plain"}
    assert np.isfinite(table["elpd_loo" if IS_FIRST else "elpd"]).all()
    if IS_FIRST:
        assert np.isfinite(az.waic(idata).elpd_waic)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning:arviz")
def test_figures(idata: Any) -> None:
    """ArviZ's density of counts divides by a width of zero where most are equal."""
    pair = {"var_names": ["scale", "f"], "coords": {"north": "low"}}
    if IS_FIRST:
        az.plot_ppc(idata, num_pp_samples=10)
        az.plot_ppc(idata, group="prior", num_pp_samples=10)
        az.plot_pair(idata, divergences=True, **pair)
    else:
        az.plot_ppc_dist(idata, num_samples=10)
        az.plot_ppc_dist(idata, group="prior_predictive", num_samples=10)
        az.plot_pair(idata, visuals={"divergence": True}, **pair)
    az.plot_energy(idata)
    az.plot_forest(idata, var_names=["scale", "f"])


def test_masked_data_in_figures(tmp_path: Path) -> None:
    data = torch.where(torch.arange(20).reshape(4, 5) % 5 < 3, drawn((4, 5)), float("nan"))
    found = to_arviz(run(level, data, ~data.isnan()), **PREDICTED)
    az.plot_ppc(found) if IS_FIRST else az.plot_ppc_dist(found)
    read = through_file(found, tmp_path)
    assert list(read.log_likelihood["y_dim_1"].values) == [0, 1, 2] * 4


def through_file(idata: Any, folder: Path) -> Any:
    idata.to_netcdf(str(folder / "run.nc"))
    return az.from_netcdf(str(folder / "run.nc"))


@pytest.mark.parametrize("sampler", [of_ours, of_pyro])
def test_the_file_holds_all_groups(sampler: Any, tmp_path: Path) -> None:
    idata = to_arviz(sampler(), **PREDICTED)
    read = through_file(idata, tmp_path)
    assert groups_of(read) == groups_of(idata)
    for group in groups_of(idata):
        one, other = idata[group], read[group]
        assert set(one.data_vars) == set(other.data_vars)
        for name in one.data_vars:
            assert one[name].dims == other[name].dims
            np.testing.assert_array_equal(one[name], other[name])
    assert elpd(read) == elpd(idata)


def improper() -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))


def flat() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("model", [improper, flat])
def test_no_draws_of_an_improper_prior(model: Any) -> None:
    with pytest.raises(ValueError, match="prior is 5, and there are no draws of site 'x'"):
        to_arviz(run(model, draws=5), prior=5)


def test_draws_of_the_prior_leave_factors_out_and_say_so() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("push", x)

    with pytest.warns(UserWarning, match=r"factors \['push'\]"):
        idata = to_arviz(run(model), prior=400)
    assert abs(float(idata.prior["x"].mean())) < 0.2
    assert "prior_predictive" not in groups_of(idata)


def test_draws_of_the_prior_of_an_intrinsic_field_say_so() -> None:
    def model() -> None:
        x = pyro.sample("x", GaussianMarkovField((4,)))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(4))

    with pytest.warns(UserWarning, match=r"\['x'\] says nothing of their mean"):
        idata = to_arviz(run(model), prior=10)
    assert float(abs(idata.prior["x"].sum("x_dim_0")).max()) < 1e-5


def test_constants_that_torch_does_not_take_as_they_are() -> None:
    """Arrays that are reversed, or that cannot be written to."""
    still = np.arange(3.0)
    still.flags.writeable = False

    def model(reverse: Any, still: Any) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    mcmc = VectorizedMCMC(HMC(model), 2, num_chains=2, progress=False)
    mcmc.run(np.arange(3.0)[::-1], still)
    found = to_arviz(mcmc).constant_data
    np.testing.assert_array_equal(found["reverse"], [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(found["still"], still)


def test_a_number_of_draws_of_the_prior_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="prior is -1; accepted: an integer >= 0"):
        to_arviz(run(improper, draws=5), prior=-1)


def test_constants_of_a_module() -> None:
    class Model(pyro.nn.PyroModule):
        def forward(self, times: Tensor, data: Tensor) -> None:
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * times, 1.0).to_event(1), obs=data)

    idata = to_arviz(run(Model(), torch.arange(3.0), torch.ones(3)))
    assert list(idata.constant_data.data_vars) == ["times"]
