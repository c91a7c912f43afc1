# SPDX-License-Identifier: Apache-2.0
"""AutoHierarchicalFlow: Pyro's contract over a registry of models, exactness, bad input."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_neuralrg import PDD
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.infer.autoguide import start
from tests.infer import autoguide_models as models
from tests.infer.autoguide_models import CASES, SMALL, Case, make, normals, shaken, train

pytestmark = pytest.mark.filterwarnings("ignore:the guide begins at")  # of subsampled data


# Pyro's contract ----------------------------------------------------------------------------------


def test_finds_the_fields_and_trains_every_parameter(case: Case) -> None:
    guide = make(case)
    assert guide.fields == case.fields
    assert guide.shape == case.lattice
    assert guide.get_posterior().event_shape == (case.dim,)
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    train(guide, case, 3, num_particles=4, vectorize_particles=True)
    names = {name.replace("transform.", "", 1) for name in guide.state_dict()}  # and the frame
    assert {name.split("$$$")[1] for name in pyro.get_param_store()} == names
    trained = dict(guide.named_parameters())
    assert not [n for n, old in before.items() if old.numel() and torch.equal(trained[n], old)]


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
    torch.testing.assert_close(*gradients)


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
    """As of draws of the posterior, in the sites' shapes and the order of the levels."""
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


@pytest.mark.parametrize(
    ("name", "init_scale"), [*((name, 0.3) for name in CASES), ("one field", None)]
)
def test_save_and_load_before_the_first_step(name: str, init_scale: float | None) -> None:
    """Also into a guide whose frame is widths, or a matrix, where that of the file is not."""
    case = CASES[name]
    guide, other = shaken(make(case)), make(case, init_scale=init_scale)
    stream = io.BytesIO()
    torch.save(guide.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    u = torch.randn(3, case.dim)
    expected = guide.get_posterior().log_prob(u)
    torch.testing.assert_close(other.get_posterior().log_prob(u), expected, rtol=0, atol=0)


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
    site = guide.prototype_trace.nodes["x"]
    assert site["value"].dtype == site["fn"].low.dtype == torch.float32
    assert guide.double()()["x"].dtype == torch.float64
    guide.to("meta")
    assert guide.get_base_dist().sample().device.type == "meta"
    assert guide.prototype_trace.nodes["x"]["fn"].low.device.type == "meta"
    field = make(CASES["one field"]).float().prototype_trace.nodes["x"]
    assert field["fn"].base_dist.loc.dtype == torch.float32


@pytest.mark.gpu
def test_on_an_accelerator() -> None:
    guide = make(CASES["plates, odd sides"]).to("cuda")
    assert guide()["x"].device.type == "cuda"
    assert guide.median()["x"].device.type == "cuda"


def test_the_dtype_is_the_models() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2, 2).float(), 1.0).to_event(2))

    guide = AutoHierarchicalFlow(model, **SMALL)
    assert {p.dtype for p in guide.parameters()} == {guide()["x"].dtype} == {torch.float32}


def test_within_a_list_of_guides() -> None:
    model = models.field_and_globals
    guide = AutoGuideList(model)
    guide.append(AutoHierarchicalFlow(poutine.block(model, expose=["x"]), "x", **SMALL))
    guide.append(AutoNormal(poutine.block(model, hide=["x"])))
    train(guide, Case(model, (), None, 0))
    assert set(guide()) == {"x", "width", "mean"}
    assert any("transform$$$" in name for name in pyro.get_param_store())


def test_parameters_of_the_module_alone() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = make(CASES["field and globals"])
        elbo = Trace_ELBO()(models.field_and_globals, guide)
        elbo().backward()  # SVI does not work in this mode
        assert all(parameter.grad is not None for parameter in guide.parameters())
    assert not pyro.get_param_store().keys()


# When parameters exist ----------------------------------------------------------------------------


def test_models_with_arguments_wait_for_them() -> None:
    guide = AutoHierarchicalFlow(models.subsampled, **SMALL)
    assert not list(guide.parameters())
    load = partial(guide.load_state_dict, {})
    for early in (load, guide.get_posterior, guide.get_base_dist, guide.median):
        with pytest.raises(ValueError, match=r"guide\.initialize"):
            early()
    data = models.ramp(6)
    assert repr(guide) == "AutoHierarchicalFlow(its model has not been seen)"
    assert guide.initialize(data) is guide
    assert repr(guide) == "AutoHierarchicalFlow('x' of 2 x 2, 0 globals)"
    assert list(guide.parameters())
    other = copy.deepcopy(AutoHierarchicalFlow(models.subsampled, **SMALL))
    other(data)
    assert other.shape == (2, 2)
    by_name = AutoHierarchicalFlow(models.subsampled, prototype_kwargs={"data": data}, **SMALL)
    assert by_name.shape == (2, 2)


def test_a_default_of_none_awaits_data() -> None:
    def model(data: Tensor | None = None) -> None:
        x = normals("x", 2, 2)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=data)

    guide = AutoHierarchicalFlow(model, **SMALL)
    assert guide.shape is None
    assert set(guide(torch.zeros(2, 2))) == {"x"}


def test_a_model_that_changed_is_noticed() -> None:
    def model(side: int) -> None:
        normals("x", side, side)

    guide = AutoHierarchicalFlow(model, prototype_args=(2,), **SMALL)
    state = torch.random.get_rng_state()
    guide.initialize(2)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="come and go"):
        guide.initialize(3)


# Bad input ----------------------------------------------------------------------------------------


def discrete() -> None:
    normals("x", 2, 2)
    pyro.sample("kind", dist.Bernoulli(0.5))


def coming_and_going() -> None:
    x = normals("x", 2, 2)
    if float(x.detach().sum()) > 0:
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def two_lattices() -> None:
    normals("x", 2, 2)
    normals("w", 3, 2)


def subsampled_latent() -> None:
    with pyro.plate("sites", 6, subsample_size=2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def one_by_one() -> None:
    for i in pyro.plate("sites", 2):
        pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (discrete, {}, r"discrete.*'kind'.*latent sites seen: 'x' \(2, 2\), 'kind' \(\)"),
    (coming_and_going, {}, r"come and go.*extra"),
    (two_lattices, {}, r"different shapes.*'x': \(2, 2\).*'w': \(3, 2\).*one lattice"),
    (two_lattices, {"fields": ["x", "w"]}, "different shapes.*one lattice.*globals"),
    (lambda: normals("x", 2, 2, 2, 2), {"field": "x"}, "accepted: one to 3 sides"),
    (lambda: None, {}, "accepted: continuous latent sites.*latent sites seen: none"),
    (subsampled_latent, {}, r"'x' stands in plate 'sites'.*2 of 6"),
    (one_by_one, {}, "sequential"),
    (models.one_field, {"field": "z"}, r"field is 'z'.*latent sites seen: 'x' \(4, 4\)"),
    (models.one_field, {"field": "y"}, "field is 'y'.*observed"),
    (models.field_and_globals, {"field": "width"}, "field is 'width'.*no sites on a lattice"),
    (models.constrained, {"field": "weights"}, "field is 'weights'.*no sites on a lattice"),
    (models.one_field, {"field": "x", "fields": ["x"]}, "both given"),
    (models.one_field, {"init_scale": 0.0}, "init_scale is 0.0"),
    (models.one_field, {"circuit": "ring"}, "circuit is 'ring'"),
    (models.one_field, {"circuits": "mera"}, "unknown options.*circuits"),
    (models.one_field, {"context_dim": 2}, "unknown options"),
    (models.one_field, {"field": ["x"]}, "field is"),
    (models.one_field, {"fields": "x"}, "fields is 'x'"),
    (models.one_field, {"init_loc_fn": 3}, "init_loc_fn is an int; accepted: a function"),
    (models.one_field, {"globals_flow": 3}, "globals_flow is an int; accepted: a function"),
]


@pytest.mark.parametrize(("model", "options", "message"), BAD)
def test_bad_models_and_names(model: Any, options: dict[str, Any], message: str) -> None:
    is_type = re.search("unknown|field is$|'x'$|is an int", message)
    with pytest.raises(TypeError if is_type else ValueError, match=f"(?s){message}"):
        AutoHierarchicalFlow(model, **options)


def test_a_failed_look_leaves_no_half_guide() -> None:
    """And errors of the model come out as they are."""
    calls: Iterator[int] = iter(range(1000))

    def model(data: Tensor) -> None:
        call = next(calls)
        if call == 0:
            pyro.sample("kind", dist.Bernoulli(0.5))
        if call == 1:
            raise RuntimeError("my own")
        normals("x", 2, 2)

    guide = AutoHierarchicalFlow(model, **SMALL)
    for error, words in ((ValueError, "discrete"), (RuntimeError, "my own")):
        with pytest.raises(error, match=words):
            guide(models.ramp(2))
    assert guide(models.ramp(2))["x"].shape == (2, 2)
