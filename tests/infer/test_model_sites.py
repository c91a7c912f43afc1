# SPDX-License-Identifier: Apache-2.0
"""What no chain and no guide can take of a model: refused by name, with a remedy that works."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg import HMC, VectorizedMCMC, fit
from pyro_neuralrg.free_energy import anneal, estimate
from pyro_neuralrg.infer import PDD, AutoHierarchicalFlow
from pyro_neuralrg.mcmc import ModelTarget


def sampler(model: Any, *args: Any) -> Any:
    return ModelTarget(model).setup(*args)


def guide(model: Any) -> Any:
    return AutoHierarchicalFlow(model, init_scale=0.5)


def normal(name: str, loc: Any = 0.0, scale: Any = 1.0) -> Tensor:
    return pyro.sample(name, dist.Normal(loc, scale))


def normals(name: str, *sides: int) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.zeros(sides), 1.0).to_event(len(sides)))


def share(name: str) -> Tensor:
    return pyro.sample(name, dist.Uniform(0.0, 1.0))


def positive() -> Tensor:
    return pyro.sample("x", dist.LogNormal(0.0, 0.5))


def observe(loc: Tensor) -> None:
    pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))


def grid(*sides: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).reshape(-1, len(sides))


# What is refused ----------------------------------------------------------------------------------


def in_plate(draw: Callable[[], Any]) -> None:
    with pyro.plate("p", 3):
        draw()


def with_nan(mask: Any) -> None:
    y, fn = torch.tensor([0.3, math.nan, math.nan, 0.1]), dist.Normal(normal("x"), 1.0).expand([4])
    pyro.sample("y", (fn if mask is None else fn.mask(mask)).to_event(1), obs=y)


def angles(number: int, skewness: float) -> dist.SineSkewed:
    mean = torch.zeros(number)
    return dist.SineSkewed(dist.VonMises(mean, 1.0 + mean).to_event(1), mean + skewness)


SOME = torch.tensor([True, False, True, True])
COMES_AND_GOES = "come and go.*{}.*accepted: the same latent sites"
DEPENDS = r"support of latent site 'v' depends.*pyro.sample\('v_sh"
POINT = r"'d' is a Delta.*accepted: pyro.deterministic\('d'"
ANGLE = r"'a', a \w+, is an angle .*'a_shift', dist.Uniform\(-pi"

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "in a branch": (
        lambda: observe(normal("t", 3.0) if normal("s") > 0 else torch.tensor(0.0)),
        COMES_AND_GOES.format("'t'"),
    ),
    "in a loop": (
        lambda: [normal(f"step_{i}") for i in range(int(3 * share("rate")))],
        COMES_AND_GOES.format("'step_"),
    ),
    "of another length": (
        lambda: normals("x", 1 + int(3 * share("rate"))),
        COMES_AND_GOES.format("'x'"),
    ),
    "uniform": (lambda: pyro.sample("v", dist.Uniform(0.0, positive())), DEPENDS),
    "Pareto": (lambda: in_plate(lambda: pyro.sample("v", dist.Pareto(positive(), 3.0))), DEPENDS),
    "points": (lambda: in_plate(lambda: pyro.sample("d", dist.Delta(normal("x")))), POINT),
    "point of an event": (
        lambda: pyro.sample("d", dist.Delta(2.0 * normals("x", 3), event_dim=1).mask(False)),
        POINT,
    ),
    "angles": (
        lambda: in_plate(lambda: pyro.sample("a", dist.VonMises(torch.tensor(3.0), 1.0))),
        ANGLE,
    ),
    "skewed angle": (lambda: pyro.sample("a", angles(1, 0.5)), ANGLE),
    "NaN": (partial(with_nan, None), "observed site 'y' has 2 NaN of 4; accepted"),
    "NaN beside a mask": (partial(with_nan, SOME), "'y' has 1 NaN of 4; accepted"),
}


@pytest.mark.parametrize("use", [sampler, guide])
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(use: Any, name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        use(model)


@pytest.mark.parametrize("fn", [dist.Poisson(3.0), dist.ProjectedNormal(torch.ones(3))])
def test_supports_that_numbers_do_not_reach(fn: Any) -> None:
    with pytest.raises(ValueError, match=r"latent site 'k', a \w+, has a support that no map"):
        sampler(lambda: (normal("x"), pyro.sample("k", fn)))


def test_a_site_that_no_prior_draw_has_shown_is_noticed_by_the_sampler() -> None:
    with pytest.warns(UserWarning, match="cannot be vectorised"):
        target = sampler(lambda: normal("t") if normal("s") > 3.5 else None)
    with pytest.raises(ValueError, match=r"come and go, \['t'\]"):
        target.energy(torch.tensor([[4.0]]))


# Remedies that the messages name ------------------------------------------------------------------


def test_a_site_that_is_always_drawn() -> None:
    target = sampler(lambda: observe(torch.where(normal("s") > 0, normal("t", 3.0), 0.0)))
    side = torch.linspace(-8.0, 12.0, 401)
    at = grid(side, side)
    weights = (-target.energy(at)).softmax(0)
    # N(1 | 3, 2) above, N(1 | 0, 1) below, times root 2 pi
    above, below = math.exp(-1.0) / math.sqrt(2.0), math.exp(-0.5)
    expected = pytest.approx(above / (above + below), rel=0.03)
    assert float(weights[at[:, 0] > 0.02].sum()) == expected


def test_a_uniform_site_below_another_by_its_share() -> None:
    """The mean of v is half that of x, by quadrature."""
    target = sampler(lambda: pyro.deterministic("v", positive() * share("v_share")))
    at = grid(torch.linspace(-4.0, 4.0, 201), torch.linspace(-20.0, 20.0, 401))
    mean = float((-target.energy(at)).softmax(0) @ target.computed(at)["v"])
    assert mean == pytest.approx(0.5 * math.exp(0.125), abs=1e-5)


def test_supports_of_arguments_and_parameters_are_taken() -> None:
    def model(low: Tensor) -> None:
        high = pyro.param("high", torch.tensor(3.0))
        pyro.sample("v", dist.Uniform(low, low + high))

    target = sampler(model, torch.tensor(-1.0))
    u = torch.linspace(-30.0, 30.0, 2001)
    weights = (-target.energy(u[:, None])).exp() * (u[1] - u[0])
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(weights @ target.physical(u[:, None])["v"]) == pytest.approx(0.5, abs=1e-6)


def test_arrays_that_a_model_changes_stay_as_they_are() -> None:
    def model(y: np.ndarray) -> None:
        y *= 2.0
        pyro.sample("y", dist.Normal(normal("x"), 1.0), obs=torch.as_tensor(y[0]))

    y = np.ones(1)
    energies = [float(sampler(model, y).energy(torch.zeros(1, 1))) for _ in range(2)]
    assert energies == pytest.approx([2.0 + math.log(2.0 * math.pi)] * 2)
    assert y[0] == 1.0


def test_a_deterministic_site_in_place_of_a_point() -> None:
    """The precision of x is the identity and one for all pairs: variances of 2/3."""
    target = sampler(lambda: observe(pyro.deterministic("d", normals("x", 2).sum(-1))))
    precision = target.energy_and_grad(torch.cat([torch.eye(2), torch.zeros(1, 2)]))[1]
    variances = torch.linalg.inv(precision[:2] - precision[2]).diagonal()
    torch.testing.assert_close(variances, torch.full((2,), 2 / 3))


def shifted_angles(y: Tensor) -> None:
    with pyro.plate("p", len(y)):
        d = pyro.sample("a_shift", dist.Uniform(-math.pi, math.pi).mask(False))
        pyro.factor("a_density", dist.VonMises(0.0, 1.0).log_prob(d))
        pyro.sample("y", dist.VonMises(3.0 + d, 2.0), obs=y)


ANGLES = torch.tensor([2.8, -2.9, 3.0], dtype=torch.float64)


def test_angles_on_an_interval_have_the_exact_evidence() -> None:
    """By quadrature, angle by angle, as the data are independent given their angles."""
    u, total = torch.linspace(-40.0, 40.0, 4001), 0.0
    for y in ANGLES.split(1):
        energies = sampler(shifted_angles, y).energy(u[:, None])
        total -= float((-energies).logsumexp(0) + (u[1] - u[0]).log())
    assert total == pytest.approx(3.98761, abs=1e-4)


# NaN under a mask ---------------------------------------------------------------------------------


Y = torch.tensor([0.4, math.nan, 1.2], dtype=torch.float64)
EXACT_MEAN = torch.tensor([0.32, 0.0, 0.96], dtype=torch.float64)
PRECISION = torch.tensor([5.0, 1.0, 5.0], dtype=torch.float64)


def masked() -> None:
    pyro.sample("y", dist.Normal(normals("f", 3), 0.5).mask(~Y.isnan()).to_event(1), obs=Y)


def masked_by_a_handler() -> None:
    f = normals("f", 3)
    with pyro.plate("p", 3), poutine.mask(mask=~Y.isnan()):
        pyro.sample("y", dist.Normal(f, 0.5), obs=Y)


def masked_rows() -> None:
    """A row is hidden where one of its entries is NaN."""
    f, rows = normals("f", 3), torch.stack([Y, Y.nan_to_num(7.0)], -1)
    with pyro.plate("p", 3), poutine.mask(mask=~Y.isnan()):
        y = dist.MultivariateNormal(f[..., None].expand(3, 2), 0.5 * torch.eye(2))
        pyro.sample("y", y, obs=rows)


class Bell(dist.TorchDistribution):
    """A normal of width 0.5 whose user wrote its density and no support."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -2.0 * (value - self.loc).square()


def masked_of_a_user() -> None:
    pyro.sample("y", Bell(normals("f", 3)).mask(~Y.isnan()).to_event(1), obs=Y)


@pytest.mark.parametrize("model", [masked, masked_by_a_handler, masked_rows, masked_of_a_user])
def test_nan_under_a_mask_is_no_datum(model: Any) -> None:
    """The posterior is Gaussian: its mean is where the gradient vanishes."""
    at = torch.stack([EXACT_MEAN, torch.ones(3)])
    energy, gradient = sampler(model).energy_and_grad(at)
    assert bool(energy.isfinite().all())
    torch.testing.assert_close(gradient, PRECISION * (at - EXACT_MEAN), atol=1e-12, rtol=0)


@pytest.mark.parametrize("vectorised", [False, True])
def test_losses_of_data_with_nan_under_a_mask(vectorised: bool) -> None:
    loc = torch.zeros(3, requires_grad=True)

    def drawn() -> None:
        pyro.sample("f", dist.Normal(loc, 1e-9).to_event(1))

    PDD(4, vectorize_particles=vectorised, max_plate_nesting=0).loss_and_grads(masked, drawn)
    assert loc.grad is not None
    torch.testing.assert_close(loc.grad, -PRECISION * EXACT_MEAN, atol=1e-6, rtol=0)


@pytest.mark.parametrize("y", [[3.0, math.nan, 5.0], [math.nan] * 3])
def test_counts_with_nan_under_a_mask(y: list[float]) -> None:
    """Also where none is whole, and where Pyro checks the support of data."""
    counts = torch.tensor(y)

    def model() -> None:
        with pyro.plate("p", 3), poutine.mask(mask=~counts.isnan()):
            pyro.sample("y", dist.Poisson(2.0), obs=counts)

    expected = -dist.Poisson(2.0).log_prob(counts[~counts.isnan()]).sum()
    found = PDD(4, vectorize_particles=True).loss(model, lambda: None)
    assert found == pytest.approx(float(expected))


def test_a_guide_of_data_with_nan_under_a_mask() -> None:
    guide = AutoHierarchicalFlow(masked)
    assert float((guide.median()["f"] - EXACT_MEAN).abs().max()) < 5 / math.sqrt(500)
    evidence = -dist.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor([0.4, 1.2])).sum()
    assert estimate(masked, guide, 100).importance == pytest.approx(float(evidence), abs=1e-6)


# Improper priors ----------------------------------------------------------------------------------


def improper(name: str, constraint: Any = constraints.real, *sides: int) -> Tensor:
    support = constraints.independent(constraint, len(sides)) if sides else constraint
    return pyro.sample(name, dist.ImproperUniform(support, (), sides))


def differences() -> None:
    """An intrinsic field of first differences: improper, but for its data."""
    f = improper("f", constraints.real, 3)
    pyro.factor("icar", -0.5 * (f[..., 1:] - f[..., :-1]).square().sum(-1))
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=torch.tensor([0.5, 1.0, -0.2]))


DATA = 1.0 + 0.5 * torch.randn(60, generator=torch.Generator().manual_seed(0))


def flat() -> None:
    """A flat mean, and 1 / scale."""
    mean, scale = improper("mean"), improper("scale", constraints.positive)
    pyro.factor("jeffreys", -scale.log())
    with pyro.plate("data", len(DATA)):
        pyro.sample("y", dist.Normal(mean, scale), obs=DATA)


def flat_in_a_plate() -> None:
    with pyro.plate("rows", 2):
        pyro.sample("y", dist.Normal(improper("f"), 1.0), obs=torch.tensor([1.0, -2.0]))


def evidence_of_flat() -> float:
    n, spread = len(DATA), float((DATA - DATA.mean()).square().sum())
    half = (n - 1) / 2
    return math.log(2 * math.sqrt(n)) + half * math.log(math.pi * spread) - math.lgamma(half)


IMPROPER: list[tuple[Callable[[], None], Callable[[], float], int]] = [
    (flat, evidence_of_flat, 2),
    (flat_in_a_plate, lambda: 0.0, 2),
]


@pytest.mark.filterwarnings("ignore:the importance estimate rests")  # on 98 % of its draws
@pytest.mark.parametrize(("model", "exact", "dim"), IMPROPER)
def test_evidences_of_improper_priors(model: Any, exact: Any, dim: int) -> None:
    guide = AutoHierarchicalFlow(model)
    fit(model, guide, steps=2, batch=8, lr=0.01, progress=False)
    found = estimate(model, guide, 4000)
    assert abs(found.importance - exact()) < 4 * found.importance_se + 1e-6
    run = anneal(model, num_particles=256, num_steps=5, seed=1, progress=False)
    assert abs(run.free_energy - exact()) < 4 * run.standard_error
    assert sampler(model).dim == dim


@pytest.mark.parametrize("start", [{"f": torch.zeros(32, 3)}, None])
def test_chains_of_an_improper_prior(start: Any) -> None:
    kernel = HMC(differences, num_steps=5)
    mcmc = VectorizedMCMC(kernel, 60, 60, 32, initial_params=start, seed=0, progress=False)
    mcmc.run()
    exact = torch.tensor([0.5514, 0.7571, -0.0086])
    f = mcmc.get_samples(group_by_chain=True)["f"]
    error = f.mean(1).std(0) / math.sqrt(32)
    assert bool(((f.mean((0, 1)) - exact).abs() < 4 * error).all())


def test_what_needs_draws_of_an_improper_prior_says_so() -> None:
    mcmc = VectorizedMCMC(HMC(differences), 2, 2, 4, "prior", progress=False)
    with pytest.raises(ValueError, match=r"'prior', and site 'f' has an improper one"):
        mcmc.run()


# Reparameterised within a plate -------------------------------------------------------------------


def schools(within: bool, kind: bool = False) -> Callable[[], None]:
    config = {"t": LocScaleReparam(0.0)}

    def inner(mu: Tensor) -> Tensor:
        return normal("t", mu, 2.0)

    def model() -> None:
        mu = normal("mu")
        if kind:
            pyro.sample("kind", dist.Bernoulli(0.5))
        with pyro.plate("p", 4):
            t = poutine.reparam(inner, config=config)(mu) if within else inner(mu)
            pyro.sample("y", dist.Normal(t, 1.0), obs=torch.arange(4.0))

    return model if within else poutine.reparam(model, config=config)


def test_a_reparameterisation_within_a_plate() -> None:
    """Chains need no initialisation, which is what meets the plate; guides do."""
    inner, outer = sampler(schools(True)), sampler(schools(False))
    assert inner.sites == outer.sites == {"mu": (), "t_decentered": (4,)}
    at = torch.randn(3, 5)
    torch.testing.assert_close(inner.energy_and_grad(at), outer.energy_and_grad(at))
    y = dist.MultivariateNormal(torch.zeros(4), 5.0 * torch.eye(4) + 1.0)
    exact = -float(y.log_prob(torch.arange(4.0)))
    found = estimate(schools(False), AutoHierarchicalFlow(schools(False)), 200)
    assert found.importance == pytest.approx(exact, abs=1e-5)
    message = r"'t_decentered' of shape \(4,\) .*within a plate; accepted: poutine.reparam around"
    for use, model in ((AutoHierarchicalFlow, schools(True)), (sampler, schools(True, kind=True))):
        with pytest.raises(ValueError, match=message):
            use(model)


# Arguments that one run uses up ------------------------------------------------------------------


def of_data(batches: Any) -> None:
    place = normal("place")
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(place, 1.0), obs=sum(batches))


def at_place(batches: Any) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("place", dist.Normal(loc, 1.0))


READERS: dict[str, Callable[[Any], Any]] = {
    "chains": lambda data: VectorizedMCMC(HMC(of_data), 5, 5, 4, progress=False).run(data),
    "guide": lambda data: AutoHierarchicalFlow(of_data, prototype_args=(data,)),
    "guide, later": lambda data: AutoHierarchicalFlow(of_data).initialize(data),
    "by name": lambda data: AutoHierarchicalFlow(of_data).initialize(batches=data),
    "fit": lambda data: fit(
        of_data, at_place, steps=2, batch=4, lr=0.01, model_args=(data,), progress=False
    ),
    "PDD": lambda data: PDD(4, vectorize_particles=True).loss(of_data, at_place, data),
    "estimate": lambda data: estimate(of_data, at_place, 100, model_args=(data,)),
}


@pytest.mark.parametrize("kind", [iter, lambda parts: (part for part in parts), enumerate])
@pytest.mark.parametrize("reader", READERS)
def test_iterators_are_refused_by_name_and_not_used_up(
    reader: str, kind: Callable[[Any], Any]
) -> None:
    data = kind([torch.ones(3), torch.zeros(3)])
    message = f"argument ('batches'|0) of the model is an? {type(data).__name__}, which one run"
    with pytest.raises(TypeError, match=message):
        READERS[reader](data)
    assert len(list(data)) == 2
    READERS[reader]([torch.ones(3), torch.zeros(3)])


def test_the_guide_looks_at_copies_of_arguments() -> None:
    def centred(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(normals("f", 3), 1.0).to_event(1), obs=y.sub_(y.mean()))

    y = torch.tensor([1.0, 2.0, 6.0])
    AutoHierarchicalFlow(centred, prototype_args=(y,))
    assert y.tolist() == [1.0, 2.0, 6.0]
