# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""AutoHierarchicalFlow: Pyro's contract over a registry of models, exactness, bad input."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import conditional_affine_coupling
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import PDD, IndependenceMetropolis, VectorizedMCMC, fit
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide import start
from pyro_neuralrg.mcmc import ChEESHMC
from pyro_neuralrg.mcmc.model_target import ModelTarget
from pyro_neuralrg.transforms import HierarchicalFlow, Neighbour, RealNVP
from tests.infer import autoguide_models as models
from tests.infer.autoguide_models import CASES, Case
from tests.infer.second_pass import loss_and_path_gradients

pytestmark = pytest.mark.filterwarnings("ignore:the guide begins at")  # of subsampled data

SMALL: Any = {"bijector": Neighbour(layers=2, hidden=(4,))}


def make(case: Case, **options: Any) -> AutoHierarchicalFlow:
    """A guide of a given width; ``init_scale=None`` looks for the posterior, which takes longer."""
    options = {"init_scale": 0.4, **SMALL, **options}
    return AutoHierarchicalFlow(case.model, prototype_args=case.args, **options)


def shaken(guide: AutoHierarchicalFlow, amount: float = 0.2) -> AutoHierarchicalFlow:
    """With parameters that are not those of the start."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    guide.clear_cache()
    return guide


def train(guide: Any, case: Case, steps: int = 2, **options: Any) -> SVI:
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(**options))
    for _ in range(steps):
        assert math.isfinite(svi.step(*case.args))
    return svi


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# Pyro's contract ----------------------------------------------------------------------------------


def test_finds_the_fields_and_trains_every_parameter(case: Case) -> None:
    guide = make(case)
    assert guide.fields == case.fields
    assert guide.shape == case.lattice
    assert guide.get_posterior().event_shape == (case.dim,)
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    train(guide, case, 3, num_particles=4, vectorize_particles=True)
    names = {name.replace("transform.", "", 1) for name in before}
    assert {name.split("$$$")[1] for name in pyro.get_param_store()} == names
    trained = dict(guide.named_parameters())
    assert not [n for n, old in before.items() if old.numel() and torch.equal(trained[n], old)]


@pytest.mark.parametrize("path", [False, True])
def test_vectorised_particles_are_single_ones(case: Case, path: bool) -> None:
    """Log-weights of vectorised draws and of single runs agree within standard errors."""
    guide, weights = make(case), []
    for number in (100, 10):
        elbo = PDD(number, vectorize_particles=number > 10, path_gradient=path)
        elbo.loss_and_grads(case.model, guide, *case.args)
        assert elbo.log_weights is not None
        weights.append(elbo.log_weights)
    many, few = weights
    assert many.shape == (100,)
    assert many.isfinite().all()
    if case.model is not models.subsampled:  # vectorised particles share their part of the data
        error = math.sqrt(float(many.var() / 100 + few.var() / 10))
        assert abs(float(many.mean() - few.mean())) < 5 * error + 1e-9


@pytest.mark.parametrize("vectorize", [False, True])
def test_pdd_is_the_elbo(case: Case, vectorize: bool) -> None:
    """Draws that come with ln q have the loss and the gradients of Pyro's own."""
    guide = shaken(make(case))
    options: Any = {"num_particles": 3, "vectorize_particles": vectorize}
    losses, gradients = [], []
    for kind in (PDD, Trace_ELBO):
        elbo = kind(**options, max_plate_nesting=2)
        guide.zero_grad()
        pyro.set_rng_seed(3)
        losses.append(elbo.loss_and_grads(case.model, guide, *case.args))
        gradients.append([p.grad for p in guide.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(case: Case, parallel: bool) -> None:
    guide = make(case)
    if parallel and case.model is models.subsampled:
        pytest.skip("Pyro leaves no room for plates that are the model's alone")
    draws = Predictive(case.model, guide=guide, num_samples=3, parallel=parallel)(*case.args)
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        shape, value = site["value"].shape, draws[name]
        assert value.reshape(3, *shape).shape[1:] == shape  # Pyro leaves room for plates
        assert site["fn"].support.check(value).all()
        assert (value[0] != value[1]).any()
    assert draws["y"].shape[0] == 3


def test_medians_and_quantiles() -> None:
    """Those of the posterior, of the sites' shapes, in the order of the levels."""
    guide = shaken(make(CASES["constrained"]), 0.1)
    nodes = guide.prototype_trace.iter_stochastic_nodes()
    shapes = {name: site["value"].shape for name, site in nodes}
    assert {name: value.shape for name, value in guide.median().items()} == shapes
    with torch.no_grad():
        u = guide.get_posterior().sample((20_000,))
        found = guide.quantiles([0.25, 0.5])
    assert (found["rate"][0] < found["rate"][1]).all()
    rate = torch.quantile(u[:, 3:].exp(), 0.25, dim=0).reshape(2, 2)
    share = torch.quantile(u[:, 2].sigmoid(), 0.5)
    torch.testing.assert_close(found["rate"][0], rate, rtol=0.15, atol=0.0)
    torch.testing.assert_close(found["share"][1], share, rtol=0.1, atol=0.0)


def test_starts_where_it_is_told() -> None:
    values = {"x": models.ramp(2, 4) + 3.0, "width": torch.tensor(2.0), "mean": torch.tensor(-1.0)}
    guide = AutoHierarchicalFlow(
        models.field_and_globals, init_loc_fn=init_to_value(values=values), init_scale=0.01
    )
    for name, value in guide.median().items():
        torch.testing.assert_close(value, values[name], atol=0.03, rtol=0.03)
    spread = guide.get_posterior().sample((2000,)).std(0)
    assert bool((spread > 0.005).all())
    assert bool((spread < 0.02).all())


def test_it_begins_near_the_posterior(case: Case) -> None:
    """Nearer than at the median of the prior."""
    case = quiet_subsampling(case)
    elbo = PDD(400, vectorize_particles=True, max_plate_nesting=2)
    found = elbo.loss(case.model, make(case, init_scale=None), *case.args)
    pyro.clear_param_store()
    given = elbo.loss(case.model, make(case, init_scale=0.1), *case.args)
    assert found < given


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_large_fields_begin_with_widths_of_sites_and_modes(
    boundary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elbo = PDD(2000, vectorize_particles=True)
    case = CASES["one field"]
    dense = elbo.loss(case.model, make(case, init_scale=None, boundary=boundary))
    monkeypatch.setattr(start, "MAX_DENSE", 8)
    pyro.clear_param_store()
    guide = make(case, init_scale=None, boundary=boundary)
    flow = guide.get_transform()
    assert flow.frame.factor.shape == (16,)
    assert flow.field_flow.frame.spectra[0].log_scale.any()
    wide = elbo.loss(case.model, guide)
    assert dense - 0.1 < wide < dense + 1.0


@pytest.mark.parametrize("init_scale", [0.3, None])
def test_save_and_load_before_the_first_step(case: Case, init_scale: float | None) -> None:
    """Also into a guide whose frame is widths, or a matrix, where that of the file is not."""
    if init_scale is None and case.dim != 16:
        pytest.skip("one model is enough")
    guide = shaken(make(case))
    stream = io.BytesIO()
    torch.save(guide.state_dict(), stream)
    stream.seek(0)
    other = make(case, init_scale=init_scale)
    other.load_state_dict(torch.load(stream, weights_only=True))
    u = torch.randn(3, case.dim)
    torch.testing.assert_close(
        other.get_posterior().log_prob(u), guide.get_posterior().log_prob(u), rtol=0, atol=0
    )


def test_copies_after_training(case: Case) -> None:
    guide = make(case)
    train(guide, case, 1)
    u = torch.randn(3, case.dim)
    expected = guide.get_posterior().log_prob(u).detach()
    for clone in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(clone.get_posterior().log_prob(u), expected)
        train(clone, case, 1)  # its own parameters, although the original's have the names
        assert (clone.get_posterior().log_prob(u) != expected).any()
        torch.testing.assert_close(guide.get_posterior().log_prob(u), expected)


def test_dtype_and_device_follow_the_module() -> None:
    guide = make(CASES["plates, odd sides"]).float()
    assert guide()["x"].dtype == torch.float32
    field = make(CASES["one field"]).float().prototype_trace.nodes["x"]
    assert field["fn"].base_dist.loc.dtype == torch.float32
    site = guide.prototype_trace.nodes["x"]
    assert site["value"].dtype == site["fn"].low.dtype == torch.float32
    assert guide.double()()["x"].dtype == torch.float64
    guide.to("meta")
    with pyro.validation_enabled(False):
        assert guide.get_base_dist().sample().device.type == "meta"
    assert guide.prototype_trace.nodes["x"]["fn"].low.device.type == "meta"


@pytest.mark.gpu
def test_on_an_accelerator() -> None:
    guide = make(CASES["plates, odd sides"]).to("cuda")
    assert guide()["x"].device.type == "cuda"
    assert guide.median()["x"].device.type == "cuda"


def test_the_dtype_is_the_models() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2, 2, dtype=torch.float32), 1.0).to_event(2))

    guide = AutoHierarchicalFlow(model, **SMALL)
    assert {p.dtype for p in guide.parameters()} == {torch.float32}
    assert guide()["x"].dtype == torch.float32


def test_within_a_list_of_guides() -> None:
    model = models.field_and_globals
    guide = AutoGuideList(model)
    guide.append(AutoHierarchicalFlow(poutine.block(model, expose=["x"]), "x", **SMALL))
    guide.append(AutoNormal(poutine.block(model, hide=["x"])))
    train(guide, Case(model, (), None, 0))
    assert set(guide()) == {"x", "width", "mean"}
    assert any("transform$$$" in name for name in pyro.get_param_store())


def test_fit_trains_it() -> None:
    guide = make(CASES["field and globals"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(models.field_and_globals, guide, steps=20, batch=16, lr=0.03, progress=False)
    assert result.flow is guide
    loss = torch.as_tensor(result.history.free_energy)
    assert float(loss[-5:].mean()) < float(loss[:5].mean())


def test_parameters_of_the_module_alone() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = make(CASES["field and globals"])
        elbo = Trace_ELBO()(models.field_and_globals, guide)
        elbo().backward()  # SVI does not work in this mode
        assert all(parameter.grad is not None for parameter in guide.parameters())
    assert not pyro.get_param_store().keys()


def test_other_values_in_the_store_are_told_and_not_taken() -> None:
    train(make(CASES["one field"]), CASES["one field"])
    guide = make(CASES["one field"])
    before = guide.state_dict()["transform.field_flow.frame.loc"].clone()
    with pytest.warns(UserWarning, match="parameter store holds other values"):
        guide()
    train(guide, CASES["one field"])
    assert (guide.state_dict()["transform.field_flow.frame.loc"] != before).all()


# Exactness ----------------------------------------------------------------------------------------


def test_density_against_the_whole_jacobian(case: Case) -> None:
    guide = shaken(make(case))
    flow, z = guide.get_transform(), torch.randn(case.dim)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.forward_and_ladj(z)[0], z)
    expected = torch.linalg.slogdet(jacobian)
    u, ladj = flow.forward_and_ladj(z)
    torch.testing.assert_close(ladj, expected.logabsdet)
    batch, ladjs = flow.forward_and_ladj(torch.stack([torch.zeros_like(z), z])[:, None])
    torch.testing.assert_close((batch[1, 0], ladjs[1, 0]), (u, ladj))
    back, same = flow.inverse_and_ladj(u)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(same, ladj)
    log_q = guide.get_posterior().log_prob(u.detach().clone())
    normal = dist.Normal(0.0, 1.0).log_prob(z).sum()
    torch.testing.assert_close(log_q, normal - expected.logabsdet)


def split(guide: AutoHierarchicalFlow, u: Tensor) -> dict[str, Tensor]:
    """The unconstrained values of the sites, by name."""
    return {site["name"]: value for site, value in guide._unpack_latent(u)}


def potential(model: Any, args: tuple[Any, ...]) -> Any:
    with poutine.block():
        return initialize_model(model, args, initial_params={})[1]


def quiet_subsampling(case: Case) -> Case:
    """All the data in place of a random part."""
    if case.model is not models.subsampled:
        return case
    return case._replace(model=poutine.condition(case.model, {}), args=(models.ramp(2),))


def test_neural_transport_has_the_density(case: Case) -> None:
    """Potential energy in z = potential energy in x - ladj, in float64."""
    case = quiet_subsampling(case)
    guide = shaken(make(case))
    latent = NeuTraReparam(guide).reparam(case.model)
    name = f"{next(iter(guide._unconstrained_shapes))}_shared_latent"
    z = torch.randn(case.dim)
    u, ladj = guide.get_transform().forward_and_ladj(z)
    found = potential(latent, case.args)({name: z})
    expected = potential(case.model, case.args)(split(guide, u)) - ladj
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_elbo_is_of_one_density(case: Case) -> None:
    """The loss of a draw = ln q(u) + potential energy: constraints counted once."""
    case = quiet_subsampling(case)
    guide = shaken(make(case))
    pyro.set_rng_seed(7)
    loss = Trace_ELBO().loss(case.model, guide, *case.args)
    pyro.set_rng_seed(7)
    u = guide.get_posterior().sample()
    log_q = guide.get_posterior().log_prob(u)
    expected = log_q + potential(case.model, case.args)(split(guide, u))
    torch.testing.assert_close(torch.tensor(loss), expected.detach())


def test_odd_flows_are_symmetric_about_the_start() -> None:
    model = models.field_and_globals
    guide = shaken(AutoHierarchicalFlow(model, odd=True, **SMALL))
    flow = guide.get_transform()
    assert flow.field_flow is not None
    place = flow.frame.mean[2:]  # after the globals
    u = torch.randn(5, 10)
    mirrored = u.clone()
    mirrored[:, 1:9] = 2 * place - u[:, 1:9]
    q = guide.get_posterior()
    torch.testing.assert_close(q.log_prob(mirrored), q.log_prob(u))


def test_the_field_depends_on_the_globals() -> None:
    flow = shaken(make(CASES["field and globals"])).get_transform()
    z = torch.randn(10)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.forward_and_ladj(z)[0], z)
    others, field = [0, 9], list(range(1, 9))
    assert (jacobian[field][:, others] != 0).all()
    assert (jacobian[others][:, field] == 0).all()


def test_a_flow_of_ones_own_for_the_globals() -> None:
    options = {"count_bins": 4}
    guide = make(
        CASES["constrained"],
        globals_flow=lambda dim: dist.transforms.spline_autoregressive(dim, **options),
    )
    guide = shaken(guide, 0.1)
    flow, z = guide.get_transform(), torch.randn(7)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.forward_and_ladj(z)[0], z)
    u, ladj = flow.forward_and_ladj(z)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(flow.inverse_and_ladj(u)[0], z)
    train(guide, CASES["constrained"])


def exact_posterior() -> tuple[Tensor, Tensor, float]:
    """Mean and covariance of the field of ``one_field``, and the ln evidence."""
    blur = torch.zeros(16, 16)
    for i, e in enumerate(torch.eye(16)):
        x = e.reshape(4, 4)
        blur[:, i] = (x + 0.5 * x.roll(1, -1)).reshape(-1)
    y = models.ramp(4, 4).reshape(-1)
    covariance = torch.linalg.inv(torch.eye(16) + blur.T @ blur / 0.49)
    evidence = dist.MultivariateNormal(torch.zeros(16), blur @ blur.T + 0.49 * torch.eye(16))
    return covariance @ blur.T @ y / 0.49, covariance, float(evidence.log_prob(y))


@pytest.mark.slow
def test_learns_a_gaussian_field_exactly() -> None:
    mean, covariance, log_evidence = exact_posterior()
    guide = AutoHierarchicalFlow(models.one_field, init_scale=0.5, **SMALL)
    fit(models.one_field, guide, steps=600, batch=64, lr=0.02, progress=False)
    elbo = PDD(num_particles=4000, vectorize_particles=True)
    bound = -elbo.loss(models.one_field, guide)
    assert elbo.log_weights is not None
    error = float(elbo.log_weights.std()) / math.sqrt(4000)
    assert bound < log_evidence + 4 * error
    assert bound > log_evidence - 0.1
    with torch.no_grad():
        x = guide.get_posterior().sample((4000,))
    sd = covariance.diagonal().sqrt()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x.std(0) / sd, torch.ones(16), rtol=0, atol=0.1)


def test_the_elbo_bounds_the_evidence_from_the_start() -> None:
    _, _, log_evidence = exact_posterior()
    guide = AutoHierarchicalFlow(models.one_field, init_scale=0.6, **SMALL)
    elbo = PDD(num_particles=2000, vectorize_particles=True)
    bound = -elbo.loss(models.one_field, guide)
    assert elbo.log_weights is not None
    assert bound < log_evidence
    # importance sampling with the guide is exact in expectation, whatever its parameters
    found = torch.logsumexp(elbo.log_weights, 0) - math.log(2000)
    weights = (elbo.log_weights - elbo.log_weights.max()).exp()
    ess = float(weights.sum() ** 2 / weights.square().sum())
    assert abs(float(found) - log_evidence) < 5 / math.sqrt(ess)


# Path gradients -----------------------------------------------------------------------------------

FLOWS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "blocks": {"bijector": RealNVP(layers=2, hidden=(4,))},
    "foreign": {"bijector": lambda size: conditional_affine_coupling(size, 11, hidden_dims=[4])},
    "spectrum": {**SMALL, "spectrum": torch.full((2, 3, 2), 2.0, dtype=torch.float64)},
    "odd": {**SMALL, "odd": True},
}


def log_q_at(flow: Any, u: Tensor) -> Tensor:
    z, ladj = flow.inverse_and_ladj(u)
    return -0.5 * z.square().sum(-1) - ladj


@pytest.mark.parametrize("kind", FLOWS)
def test_the_score_of_all_latents(kind: str) -> None:
    """Two fields and a global: also what the fields tell of the globals."""
    options = FLOWS[kind]
    flow = shaken(AutoHierarchicalFlow(wide_fields, **options)).get_transform()
    for again in (False, True):
        z = torch.randn(4, 15)
        with torch.no_grad() if again else contextlib.nullcontext():
            u, ladj, score = flow.forward_with_score(z)
        leaf = u.detach().requires_grad_()
        expected = torch.autograd.grad(log_q_at(flow, leaf).sum(), leaf)[0]
        torch.testing.assert_close(score, expected, rtol=1e-7, atol=1e-8)
        assert not ladj.requires_grad
        torch.testing.assert_close(ladj, flow.forward_and_ladj(z)[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, none of them about our code
@pytest.mark.filterwarnings("error:torch.compile fails here")
def test_the_score_through_compiled_couplings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    flow = shaken(make(CASES["field and globals"])).get_transform()
    z = torch.randn(4, 10)
    expected = flow.forward_with_score(z)
    for part in flow.modules():
        if isinstance(part, HierarchicalFlow):
            part.compile()
    found = flow.forward_with_score(z)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def wide_fields() -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    a = pyro.sample("a", dist.Normal(means.sum() * torch.ones(2, 3), 1.0).to_event(2))
    pyro.sample("b", dist.Normal(a, 1.0).to_event(2))


@pytest.mark.parametrize("vectorize", [False, True])
def test_path_gradients_are_those_of_a_second_pass(case: Case, vectorize: bool) -> None:
    guide = shaken(make(case))
    elbo = PDD(3, max_plate_nesting=2, vectorize_particles=vectorize, path_gradient=True)
    found = []
    for step in (elbo.loss_and_grads, functools.partial(loss_and_path_gradients, elbo)):
        guide.zero_grad()
        pyro.set_rng_seed(4)
        loss = step(case.model, guide, *case.args)
        found.append((loss, [p.grad for p in guide.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    pairs = list(zip(found[0][1], found[1][1], strict=True))
    assert any(mine is not None for mine, _ in pairs)
    for mine, theirs in pairs:
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


def test_path_gradients_vanish_at_the_optimum() -> None:
    """Where the posterior is the guide's density; those of the loss itself do not."""
    guide = shaken(AutoHierarchicalFlow(wide_fields, **SMALL), 0.1)
    target = copy.deepcopy(guide).get_transform().requires_grad_(False)

    def model() -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1).mask(False))
        a = pyro.sample("a", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2).mask(False))
        b = pyro.sample("b", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2).mask(False))
        pyro.factor("f", log_q_at(target, torch.cat([means, a.flatten(-2), b.flatten(-2)], -1)))

    sizes = []
    for path in (False, True):
        guide.zero_grad()
        elbo = PDD(4, max_plate_nesting=0, vectorize_particles=True, path_gradient=path)
        elbo.loss_and_grads(model, guide)
        sizes.append(max(float(p.grad.abs().max()) for p in guide.parameters() if p.numel()))
    assert sizes[0] > 1e-2
    assert sizes[1] < 1e-9


# Sampling in the latent space ---------------------------------------------------------------------


def test_chains_come_back_in_the_models_sites(case: Case) -> None:
    """One vmapped energy for all chains, and samples of the model's sites beside the latents."""
    case = quiet_subsampling(case)
    guide = shaken(make(case))
    neutra = NeuTraReparam(guide)
    latent = poutine.reparam(case.model, config=lambda _: neutra)
    target = ModelTarget(latent).setup(*case.args)
    assert target.is_transported
    z = torch.randn(2, 3, case.dim)
    physical = target.physical(z)
    u, ladj = guide.get_transform().forward_and_ladj(z)
    for i, j in ((0, 1), (1, 2)):
        for site, value in guide._unpack_latent(u[i, j]):
            constrained = torch.distributions.biject_to(site["fn"].support)(value)
            torch.testing.assert_close(physical[site["name"]][i, j], constrained)
    assert physical.keys() == guide._unconstrained_shapes.keys()
    one = z[1, 2].requires_grad_()
    u, ladj = guide.get_transform().forward_and_ladj(one)
    expected = potential(case.model, case.args)(split(guide, u)) - ladj
    (slope,) = torch.autograd.grad(expected, one)
    energy, gradient = target.energy_and_grad(z.detach().flatten(0, 1))
    torch.testing.assert_close(energy[5], expected.detach())
    torch.testing.assert_close(gradient[5], slope)
    torch.testing.assert_close(target.energy(z.detach().flatten(0, 1)), energy)
    assert target.lattices == dict.fromkeys(case.fields, case.lattice)


def test_chains_start_at_given_sites() -> None:
    guide = shaken(make(CASES["field and globals"]))
    target = ModelTarget(NeuTraReparam(guide).reparam(models.field_and_globals)).setup()
    start = {"x": torch.randn(3, 2, 4), "width": torch.randn(3), "mean": torch.randn(3)}
    found = target.physical(target.pack(start, 3))
    torch.testing.assert_close(found["x"], start["x"])
    torch.testing.assert_close(found["width"], start["width"].exp())
    z = torch.randn(3, 10)
    torch.testing.assert_close(target.pack({"width_shared_latent": z}, 3), z)


def test_kernels_run_in_the_latent_space() -> None:
    guide = make(CASES["field and globals"], init_scale=0.5)
    latent = NeuTraReparam(guide).reparam(models.field_and_globals)
    for kernel in (ChEESHMC(latent), IndependenceMetropolis(guide.get_transform(), latent)):
        mcmc = VectorizedMCMC(kernel, num_samples=4, warmup_steps=2, num_chains=3, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mcmc.run()
        samples = mcmc.get_samples(group_by_chain=True)
        assert samples["x"].shape == (3, 4, 2, 4)
        assert samples["width"].shape == (3, 4)
        assert samples["width_shared_latent"].shape == (3, 4, 10)
    assert all(parameter.requires_grad for parameter in guide.parameters())


# When parameters exist ----------------------------------------------------------------------------


def test_models_with_arguments_wait_for_them() -> None:
    guide = AutoHierarchicalFlow(models.subsampled, **SMALL)
    assert not list(guide.parameters())
    for early in (
        lambda: guide.load_state_dict({}),
        guide.get_posterior,
        guide.get_base_dist,
        guide.median,
    ):
        with pytest.raises(ValueError, match=r"guide\.initialize"):
            early()
    data = models.ramp(6)
    assert guide.initialize(data) is guide
    assert list(guide.parameters())
    other = copy.deepcopy(AutoHierarchicalFlow(models.subsampled, **SMALL))
    other(data)
    assert other.shape == (2, 2)
    by_name = AutoHierarchicalFlow(models.subsampled, prototype_kwargs={"data": data}, **SMALL)
    assert by_name.shape == (2, 2)


def test_a_default_of_none_awaits_data() -> None:
    def model(data: Tensor | None = None) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=data)

    guide = AutoHierarchicalFlow(model, **SMALL)
    assert guide.shape is None
    assert set(guide(torch.zeros(2, 2))) == {"x"}


def test_a_model_that_changed_is_noticed() -> None:
    def model(side: int) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(side, side), 1.0).to_event(2))

    guide = AutoHierarchicalFlow(model, prototype_args=(2,), **SMALL)
    with pytest.raises(ValueError, match="come and go"):
        guide.initialize(3)


def test_the_check_of_the_structure_uses_up_no_random_numbers() -> None:
    guide = make(CASES["one field"])
    state = torch.random.get_rng_state()
    guide.initialize()
    assert torch.equal(state, torch.random.get_rng_state())


# Bad input ----------------------------------------------------------------------------------------


def discrete() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    pyro.sample("kind", dist.Bernoulli(0.5))


def coming_and_going() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    if float(x.detach().sum()) > 0:
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def two_lattices() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))


def four_dimensions() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(2, 2, 2, 2), 1.0).to_event(4))


def nothing() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def subsampled_latent() -> None:
    with pyro.plate("sites", 6, subsample_size=2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def one_by_one() -> None:
    for i in pyro.plate("sites", 2):
        pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (discrete, {}, r"discrete.*'kind'.*latent sites seen: 'x' \(2, 2\), 'kind' \(\)"),
        (coming_and_going, {}, r"come and go.*extra"),
        (two_lattices, {}, r"different shapes.*'x': \(2, 2\).*'w': \(3, 2\).*name those"),
        (two_lattices, {"fields": ["x", "w"]}, "different shapes.*one lattice; .*globals"),
        (four_dimensions, {"field": "x"}, r"shape \(2, 2, 2, 2\); accepted: one to 3 sides"),
        (nothing, {}, "accepted: continuous latent sites.*latent sites seen: none"),
        (subsampled_latent, {}, r"'x' stands in plate 'sites'.*2 of 6"),
        (one_by_one, {}, "sequential"),
        (models.one_field, {"field": "z"}, r"field is 'z'.*latent sites seen: 'x' \(4, 4\)"),
        (models.one_field, {"field": "y"}, "field is 'y'.*observed"),
        (models.field_and_globals, {"field": "width"}, "field is 'width'.*no sites on a lattice"),
        (models.constrained, {"field": "weights"}, "field is 'weights'.*no sites on a lattice"),
        (models.one_field, {"field": "x", "fields": ["x"]}, "both given"),
        (models.one_field, {"init_scale": 0.0}, "init_scale is 0.0"),
        (models.one_field, {"circuit": "ring"}, "circuit is 'ring'"),
    ],
)
def test_bad_models_and_names(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        AutoHierarchicalFlow(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"circuits": "mera"}, "unknown options.*circuits"),
        ({"context_dim": 2}, "unknown options"),
        ({"field": ["x"]}, "field is"),
        ({"fields": "x"}, "fields is 'x'"),
        ({"init_loc_fn": 3}, "init_loc_fn is 3; accepted: a function"),
        ({"globals_flow": 3}, "globals_flow is 3; accepted: a function"),
    ],
)
def test_bad_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AutoHierarchicalFlow(models.one_field, **options)


def test_the_side_of_blocks_is_an_option() -> None:
    guide = AutoHierarchicalFlow(models.one_field, block=3, init_scale=0.3)
    assert any(
        getattr(module, "circuit", None) and module.circuit.block == 3 for module in guide.modules()
    )


def test_one_of_two_lattices() -> None:
    guide = AutoHierarchicalFlow(two_lattices, "w", **SMALL)
    assert guide.fields == ("w",)
    assert guide()["x"].shape == (2, 2)


def test_errors_of_the_model_come_out_as_they_are() -> None:
    def model() -> None:
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        AutoHierarchicalFlow(model)


def test_a_failed_look_leaves_no_half_guide() -> None:
    calls: Iterator[int] = iter(range(1000))

    def model(data: Tensor) -> None:
        if next(calls) == 0:
            pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))

    guide = AutoHierarchicalFlow(model, **SMALL)
    with pytest.raises(ValueError, match="discrete"):
        guide(models.ramp(2))
    assert guide(models.ramp(2))["x"].shape == (2, 2)


def test_an_improper_prior_needs_a_start_only() -> None:
    def model() -> None:
        support = dist.constraints.independent(dist.constraints.real, 2)
        x = pyro.sample("x", dist.ImproperUniform(support, (), (2, 2)))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=torch.ones(2, 2))

    origin = init_to_value(values={"x": torch.zeros(2, 2)})
    guide = AutoHierarchicalFlow(model, init_loc_fn=origin, **SMALL)
    train(guide, Case(model, ("x",), (2, 2), 4))
