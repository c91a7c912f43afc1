# SPDX-License-Identifier: Apache-2.0
"""Targets: models of Pyro, energies, where their chains start, what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import HMC, FlowReparam, FreeField, IsingDual, VectorizedMCMC, hierarchical_flow
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.mcmc import Adaptation, ModelTarget, RandomWalkMetropolis, Target
from pyro_neuralrg.mcmc.starts import MAX_RESTARTS
from pyro_neuralrg.train import fit
from pyro_neuralrg.transforms import Neighbour
from tests.mcmc.registry import ToyFlow, normal, run, standard_errors

STILL = Adaptation(step_size=False, steps=0)


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
    mcmc = VectorizedMCMC(HMC(normal_model, num_steps=5), 100, 100, seed=1, progress=False)
    mcmc.run(data)
    samples = mcmc.get_samples(group_by_chain=True)
    assert standard_errors(samples["mean"], float((weights * m).sum())) < 4
    assert standard_errors(samples["scale"], float((weights * s).sum())) < 4


def test_observables_of_models_without_a_single_field() -> None:
    seen = {"ratio": lambda sites: sites["mean"] / sites["scale"]}
    mcmc = run(HMC(lambda: normal_model(torch.tensor([0.3, 1.1]))), 4, observables=seen)
    samples = mcmc.get_samples(group_by_chain=True)
    torch.testing.assert_close(mcmc.observables["ratio"], samples["mean"] / samples["scale"])


def test_model_of_a_potential_is_the_potential() -> None:
    """The reparameterised model, the plain target and vmap of the model: one energy."""
    target, flow = IsingDual((2, 3), 2.0), ToyFlow((2, 3))
    latent = poutine.reparam(target.model, {"x": FlowReparam(flow)})
    direct, recognised = HMC(target, flow=flow).target, HMC(latent).target
    assert type(recognised) is type(direct)
    z = torch.randn(5, 6)
    for other in (ModelTarget(latent).setup(), recognised):
        torch.testing.assert_close(other.energy_and_grad(z), direct.energy_and_grad(z))


def test_a_model_that_vmap_cannot_take_is_run_chain_by_chain() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x.detach()) > 100:  # depends on a value
            pyro.factor("never", x)

    with pytest.warns(UserWarning, match="cannot be vectorised") as warned:
        mcmc = run(HMC(model, num_steps=3), 100, warmup_steps=50)
    assert standard_errors(mcmc.get_samples(group_by_chain=True)["x"], 0.0) < 5
    assert [entry.filename for entry in warned] == [run.__code__.co_filename]


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

    def branching() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        width = 1.0 if pyro.sample("kind", dist.Bernoulli(0.4)) else 2.0
        pyro.sample("y", dist.Normal(x, width), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match=r"discrete sites \['kind'\].*Boolean.*summed out by hand"):
        run(HMC(branching))
    with pytest.raises(ValueError, match=r"subsampled plates 'data' \(2 of 6\); accepted: plates"):
        run(HMC(subsampled))
    with pytest.raises(ValueError, match=r"site 'x' of shape \(3,\) depends on .*\['kind'\]"):
        run(HMC(mixture))


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
    with pytest.raises(TypeError, match=r"kernel is an int"):
        VectorizedMCMC(3, 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target is an int"):
        HMC(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"flow has shape \(4, 4\), the field \(2, 3\)"):
        HMC(FreeField((2, 3), 1.0), flow=hierarchical_flow((4, 4)))
    with pytest.raises(ValueError, match=r"no continuous latent site"):
        run(HMC(lambda: pyro.sample("x", dist.Bernoulli(0.5))))
    with pytest.raises(TypeError, match=r"do not fit the model \(x.*; accepted: .*give its.*shape"):
        run(HMC(normal))
    with pytest.raises(RuntimeError, match="call run"):
        VectorizedMCMC(HMC(normal, shape=(2,)), 10).get_samples()
    with pytest.raises(TypeError, match="takes none"):
        VectorizedMCMC(HMC(normal, shape=(2,)), 10, progress=False).run(3)


def test_bad_starts_are_drawn_anew_and_good_ones_kept() -> None:
    def infinite(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, math.inf, normal(x))

    kernel = HMC(infinite, shape=(2,), step_size=1e-9, num_steps=1)
    first = kernel.target.initial(40, torch.Generator().manual_seed(3))
    good = first[:, 0] <= 0
    said = f"^{int((~good).sum())} of 40 chains started where the energy is not finite"
    with pytest.warns(UserWarning, match=said) as warned:
        mcmc = run(kernel, 1, warmup_steps=STILL, num_chains=40, seed=3)
    assert [entry.filename for entry in warned] == [run.__code__.co_filename]
    assert 5 < int(good.sum()) < 35
    assert (mcmc.positions[..., 0] <= 0).all()
    torch.testing.assert_close(mcmc.positions[good, 0], first[good], atol=1e-6, rtol=0)


def test_starts_that_never_become_finite_are_named() -> None:
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum(-1) + math.inf

    kernel = HMC(energy, shape=(2,))
    calls.clear()  # of the trial on two fields
    with pytest.raises(ValueError, match="of 6 of 6 chains is not finite"):
        run(kernel)
    assert len(calls) == 1 + MAX_RESTARTS


def test_physical_starts_of_a_reparameterised_model() -> None:
    """The field itself, beside a site of the model that stays as Pyro has it."""
    flow = ToyFlow((2, 2))

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        pyro.sample("f", dist.Normal(torch.zeros(2, 2), scale).to_event(2))

    target = ModelTarget(poutine.reparam(model, {"f": FlowReparam(flow)})).setup()
    x, log_scale = torch.randn(6, 2, 2), torch.randn(6)
    for start in ({"f": x}, {"f_latent": flow.inv(x).detach()}):
        found = target.physical(target.pack(start | {"scale": log_scale}, 6))
        torch.testing.assert_close(found["f"], x)
        torch.testing.assert_close(found["scale"], log_scale.exp())
    with pytest.raises(ValueError, match=r"initial_params\['f'\] has shape \(5, 2, 2\)"):
        target.pack({"f": x[:5], "scale": log_scale}, 6)
    with pytest.raises(ValueError, match=r"or the fields \['f'\] for the latent ones"):
        target.pack({"f": x}, 6)


def test_named_starts() -> None:
    """Of the prior in physical space, or of the flow; each where it is known."""
    flow, field = ToyFlow((2, 3)), FreeField((2, 3), 0.8)
    latent, physical = HMC(field, flow=flow).target, HMC(field).target

    def starts(target: Target, start: str) -> Tensor:
        return target.physical(target.initial(2000, torch.Generator().manual_seed(0), start))["x"]

    for target in (latent, physical):
        assert standard_errors(starts(target, "prior").flatten(1).square(), 1.0) < 4
    x = starts(latent, "flow")
    assert standard_errors(flow.inv(x).detach().flatten(1).square(), 1.0) < 4
    assert standard_errors(x.flatten(1).square(), 1.0) > 8
    for kernel, start, message in (
        (HMC(field), "flow", r"initial_params is 'flow'.*physical space \{site: flow"),
        (HMC(field), "nowhere", "'nowhere'; accepted: 'prior', 'uniform'"),
        (HMC(normal_model_without_data), "flow", r"accepted for this model: 'prior'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(kernel, initial_params=start)


def normal_model_without_data() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def test_prior_starts_behind_flows() -> None:
    """Of one site by FlowReparam, of all by a guide: the draws of the model as it is written."""

    def model() -> None:
        width = pyro.sample("width", dist.LogNormal(1.0, 0.2))
        fn = dist.Normal(5.0 * torch.ones(2, 3), width[..., None, None]).to_event(2)
        pyro.sample("y", dist.Normal(pyro.sample("x", fn), 1.0).to_event(2), obs=torch.zeros(2, 3))

    one = poutine.reparam(model, config={"x": FlowReparam(ToyFlow((2, 3)))})
    guide = AutoHierarchicalFlow(model, bijector=Neighbour(layers=2, hidden=(4,)))
    for latent in (one, NeuTraReparam(guide).reparam(model)):
        target = ModelTarget(latent).setup()
        starts = target.initial(500, torch.Generator().manual_seed(0), "prior")
        assert starts.shape == (500, 7)
        values = target.physical(starts)
        width = values["width"].reshape(-1, 1)
        for residual in ((width.log() - 1.0) / 0.2, (values["x"].flatten(1) - 5.0) / width):
            assert standard_errors(residual, 0.0) < 4
            assert standard_errors(residual.square(), 1.0) < 4


def test_prior_starts_that_are_not_to_be_had() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    inner = poutine.reparam(model, config={"x": FlowReparam(ToyFlow((2,)))})
    target = ModelTarget(lambda: inner()).setup()
    with pytest.raises(ValueError, match=r"site 'x' has none.*accepted for this model: None"):
        target.initial(2, torch.Generator(), "prior")


@pytest.mark.parametrize("kind", [HMC, RandomWalkMetropolis])
@pytest.mark.parametrize("in_flow", [False, True])
def test_energies_may_work_in_place(kind: Any, in_flow: bool) -> None:
    def drawn(energy: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(0)
        flow = hierarchical_flow((2, 2)) if in_flow else None
        return run(kind(energy, shape=(2, 2), flow=flow)).get_samples()["x"]

    found = drawn(lambda x: x.square_().sum((-1, -2)))
    assert torch.equal(found, drawn(lambda x: x.square().sum((-1, -2))))
    assert bool((found < 0).any())


@pytest.mark.parametrize("in_list", [False, True])
def test_models_may_change_their_data(in_list: bool) -> None:
    """A model that centres its data in place leaves those of the caller as they are."""
    data = torch.tensor([1.0, 2.0, 6.0])

    def model(given: Any) -> None:
        y = given[0] if in_list else given
        y.sub_(1.0)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    argument: Any = [data] if in_list else data
    target = ModelTarget(model).setup(argument)
    energies = [target.energy(torch.zeros(2, 1)) for _ in range(3)]
    exact = 0.5 * (1 + 25) + 2 * math.log(2 * math.pi)
    for energy in energies:
        torch.testing.assert_close(energy, torch.full((2,), exact))
    assert data.tolist() == [1.0, 2.0, 6.0]
    start = init_to_value(values={"mean": torch.tensor(1.5)})
    guide = AutoDiagonalNormal(model, init_loc_fn=start, init_scale=0.6)
    guide(copy.deepcopy(argument))
    found = estimate(model, guide, 2000, 500, model_args=(argument,))
    fitted = AutoDiagonalNormal(model)
    fit(model, fitted, steps=3, batch=4, lr=0.01, model_args=(argument,), progress=False)
    assert data.tolist() == [1.0, 2.0, 6.0]
    covariance = torch.eye(3) + 1.0
    y = data - 1
    evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(y)
    assert abs(found.importance + float(evidence)) < 4 * found.importance_se
