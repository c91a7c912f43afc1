# SPDX-License-Identifier: Apache-2.0
"""Evidences by every method against exact ones, and the choice of the method."""

from __future__ import annotations

import importlib
import math
import warnings
from types import SimpleNamespace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, FreeField, evidence, sample
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.free_energy.bridge import Bridge
from pyro_neuralrg.sampling.evidence import (
    EVIDENCE_METHODS,
    MIN_DRAWS_OF_Q,
    _by_annealing,
    _by_importance,
    _given_draws,
    _number_of_chains,
    doubt_of,
    latent_target,
)
from pyro_neuralrg.statistics import LogWeights
from tests.benchmarks.evidence import beta_binomial, gamma_poisson, normal_gamma, radiata, walk
from tests.free_energy.solvable_model import DATA, at_the_mean, exact, exact_guide, model

QUIET: dict[str, Any] = {"progress": False}
OF_MODEL: dict[str, Any] = {"model_args": (DATA,), **QUIET}


def wide(kind: Any, scale: float = 0.9) -> Any:
    guide = kind(model, init_loc_fn=at_the_mean(), init_scale=scale)
    guide(DATA)
    return guide


def exact_draws(chains: int, number: int) -> dict[str, Tensor]:
    """Independent draws of the posterior of the solvable model."""
    _, mean, covariance = exact()
    draws = dist.MultivariateNormal(mean, covariance).sample((chains, number))
    field = draws[..., :6].view(chains, number, 3, 2)
    return {"field": field, "scale": draws[..., 6].exp(), "unknown": draws}


def check(found: Any, right: float) -> None:
    """Within 4 errors, and the bounds bound."""
    assert abs(found.value - right) < 4 * found.standard_error + 1e-6
    assert found.lower.value < right + 4 * found.lower.standard_error + 1e-6
    assert found.upper.value > right - 4 * found.upper.standard_error - 1e-6
    assert f"by {found.method}: {found.reason}" in repr(found)
    assert str(found).endswith(f"by {found.method}")


@pytest.mark.parametrize("method", EVIDENCE_METHODS)
@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal])
def test_every_method_of_a_model(kind: Any, method: str, seed: int) -> None:
    with warnings.catch_warnings():
        if method == "importance":
            warnings.simplefilter("ignore")
        found = evidence(model, wide(kind), 4000, method=method, seed=seed, **OF_MODEL)
    assert found.method == method
    assert 0 < found.standard_error < 0.15
    check(found, exact()[0])
    assert "as asked for" in found.reason or method == "importance"


@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal])
def test_given_draws_cover(kind: Any) -> None:
    """Bridges from a narrow guide to independent draws of the posterior scatter as they say."""
    guide, right = wide(kind, 0.4), exact()[0]
    scores = []
    for seed in range(12):
        draws = exact_draws(4, 250)
        found = evidence(model, guide, 1000, posterior=draws, seed=seed, **OF_MODEL)
        assert found.method == "bridge"
        assert found.upper.value > right
        scores.append((found.value - right) / found.standard_error)
    assert 0.5 < math.sqrt(sum(z * z for z in scores) / 12) < 1.6
    assert max(map(abs, scores)) < 4


def scale_first() -> None:
    """A model whose first site is constrained."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    field = pyro.sample("field", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    width = (scale * (0.5 + share))[..., None, None]
    pyro.sample("y", dist.Normal(field, width).to_event(2), obs=torch.ones(2, 2))


@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal, AutoMultivariateNormal])
def test_given_draws_are_the_positions_they_came_from(kind: Any) -> None:
    """Whatever the order of the sites: values of positions, given back, have their densities."""
    guide = kind(scale_first)
    guide()
    target = latent_target(scale_first, guide, None, None)
    positions = target.from_base(20, torch.Generator().manual_seed(1))
    values = {name: x.unflatten(0, (2, 10)) for name, x in target.physical(positions).items()}
    draws = _given_draws(target, values)
    torch.testing.assert_close(draws.positions.flatten(0, 1), positions)
    torch.testing.assert_close(draws.log_pi.flatten(), -target.energy(positions))


def test_the_posterior_itself_as_guide_is_exact() -> None:
    found = evidence(model, exact_guide(), MIN_DRAWS_OF_Q, **OF_MODEL)
    assert found.method == "importance"
    assert found.value == pytest.approx(exact()[0], abs=1e-9)
    found = evidence(model, exact_guide(), posterior=exact_draws(2, 100), **OF_MODEL)
    assert found.method == "bridge"
    assert found.value == pytest.approx(exact()[0], abs=1e-9)


def test_a_potential_in_the_latent_space_of_a_flow(seed: int) -> None:
    target = FreeField((2, 2), mass=0.7)
    flow = FreeField((2, 2), mass=0.6).flow(dtype=torch.float64)
    fields = target.sample_reference(2000, seed).view(4, 500, 2, 2)
    for draws in (None, {"x": fields}):
        found = evidence(target, flow, 4000, posterior=draws, seed=seed, **QUIET)
        check(found, target.log_partition())
    assert found.method == "bridge"


LONG = pytest.mark.slow
CONJUGATE = [
    normal_gamma,
    pytest.param(beta_binomial, marks=LONG),
    pytest.param(gamma_poisson, marks=LONG),
]


@pytest.mark.parametrize("made", CONJUGATE)
def test_conjugate_models(made: Any, seed: int) -> None:
    program, right = made()
    guide = AutoMultivariateNormal(program)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    check(evidence(program, guide, 4000, seed=seed, **QUIET), right)


def test_radiata_pine(seed: int) -> None:
    """Of parameters of 1e-5 and of 3000."""
    assert radiata(2)[1] == pytest.approx(-301.704602, abs=1e-6)
    program, value = radiata(1)
    assert value == pytest.approx(-310.128286, abs=1e-6)
    found = evidence(program, AutoHierarchicalFlow(program), 4000, seed=seed, **QUIET)
    check(found, value)
    assert found.standard_error < 0.01


@pytest.mark.slow
def test_a_random_walk_with_a_poor_guide(seed: int) -> None:
    """After 200 steps: importance sampling is off by many of its errors, and says so."""
    program, right = walk()
    guide = AutoDiagonalNormal(program)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    with pytest.warns(UserWarning, match="k-hat .* use evidence"):
        poor = estimate(program, guide, 2000)
    assert poor.importance + right > 2
    assert poor.importance_se == math.inf
    with pytest.warns(UserWarning, match="k-hat .*: neither .* method=None"):
        evidence(program, guide, 2000, method="importance", seed=seed, **QUIET)
    found = evidence(program, guide, 3000, seed=seed, **QUIET)
    check(found, right)
    assert found.method == "bridge"
    assert "normal fitted" in found.reason
    assert found.standard_error < 0.05


def of_sd(scale: float, number: int = 8000) -> LogWeights:
    return LogWeights(scale * torch.randn(number))


def test_what_casts_doubt_on_weights() -> None:
    """Log-weights that vary by more than a few thousandths are not believed, nor heavy tails."""
    assert doubt_of(of_sd(0.0)) is None
    assert doubt_of(of_sd(0.05)) is None
    assert "not near enough" in str(doubt_of(of_sd(0.5)))
    assert "heavy tail" in str(doubt_of(of_sd(4.0)))
    left = torch.where(torch.rand(8000) < 0.2, -30.0, 0.1 * torch.randn(8000))
    assert "not near enough" in str(doubt_of(LogWeights(left)))
    left[0] = -math.inf
    assert "the gap of the ELBO to their estimate is inf" in str(doubt_of(LogWeights(left)))


@pytest.mark.filterwarnings("ignore:a heavy tail")
def test_smoothed_weights_have_no_smaller_an_error() -> None:
    """Those of a heavy tail are cut at the largest."""
    apart = []
    for _ in range(20):
        weights = LogWeights(-0.6 * torch.rand(2000).log())
        errors = [w.log_mean_with_tail.standard_error for w in (weights, weights.smoothed)]
        assert _by_importance(weights, "a heavy tail").standard_error == max(errors)
        apart.append(errors[0] / errors[1])
    assert max(apart) > 1.05


def test_a_bridge_that_does_not_hold_falls_back(seed: int) -> None:
    """Chains that sit in different places are not believed."""
    draws = exact_draws(4, 250)
    draws["scale"][:2] *= 2.0
    found = evidence(model, wide(AutoDiagonalNormal), 2000, posterior=draws, seed=seed, **OF_MODEL)
    assert found.method == "annealing"
    assert "chains of the target disagree" in found.reason
    check(found, exact()[0])
    with pytest.warns(UserWarning, match="disagree .* method=None"):
        evidence(
            model, wide(AutoDiagonalNormal), 2000, posterior=draws, method="bridge", **OF_MODEL
        )


def missing(number: int) -> dict[str, Tensor]:
    return {"field": torch.zeros(2, number, 3, 2)}


def with_scale(number: int, scale: float = 1.0) -> dict[str, Tensor]:
    return missing(9) | {"scale": torch.full((2, number), scale)}


def with_fields(*shape: int, number: int = 9) -> dict[str, Tensor]:
    scale = torch.rand(2, number) + 0.5
    return {"field": torch.randn(2, number, *shape), "scale": scale}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_draws": 10}, ValueError, "num_draws is 10; accepted"),
    ({"method": "laplace"}, ValueError, "method is 'laplace'; accepted: importance, bridge, ann"),
    ({"posterior": torch.zeros(2)}, TypeError, "posterior is a Tensor; accepted: draws"),
    ({"posterior": {}}, ValueError, r"posterior has the shapes \{\}; accepted"),
    ({"posterior": missing(9)}, ValueError, "posterior has sites .*field.*; accepted"),
    ({"posterior": with_scale(8)}, ValueError, "posterior has the shapes .*acc"),
    ({"posterior": with_scale(9, -1.0)}, ValueError, "'scale'.*NaN or outside .* support"),
    ({"posterior": with_scale(9, math.nan)}, ValueError, "'scale'.*NaN or outside .* support"),
    (
        {"posterior": with_fields(2, 3)},
        ValueError,
        r"posterior\['field'\] has values of shape \(2, 3\); acc",
    ),
    ({"posterior": with_fields(3, 2, number=7)}, ValueError, "has 7 draws a chain; accepted: at"),
    (
        {"posterior": with_scale(9)},
        ValueError,
        r"\['field'\] is the same in all draws of a ch",
    ),
    (
        {"posterior": with_fields(3, 2), "method": "annealing"},
        ValueError,
        "posterior is given, and method is 'annealing', which has no use of it; accepted",
    ),
    ({"seed": -1}, ValueError, "seed is -1; accepted"),
    ({"q": AutoDiagonalNormal(model)}, ValueError, "q is an AutoD.* not seen its model; accepted"),
    ({"q": AutoLaplaceApproximation(model)}, ValueError, "q is an AutoL.* that is a point; acc"),
    ({"q": AutoNormal(model)}, TypeError, "q is an AutoNormal; accepted: .*AutoContinuous"),
]


@pytest.mark.parametrize("function", [evidence, sample])
@pytest.mark.parametrize("kind", [AutoHierarchicalFlow, AutoDiagonalNormal])
def test_a_guide_of_another_model_is_refused(function: Any, kind: Any) -> None:
    guide = kind(scale_first)
    guide()
    with pytest.raises(ValueError, match=r"model has the latent sites .* and the guide .*; acc"):
        function(model, guide, **OF_MODEL)


@pytest.mark.parametrize(("options", "kind", "match"), BAD)
def test_refuses(options: dict[str, Any], kind: type[Exception], match: str) -> None:
    options = dict(options)
    q = options.pop("q") if "q" in options else wide(AutoDiagonalNormal)
    with pytest.raises(kind, match=match):
        evidence(model, q, **OF_MODEL, **options)


def test_the_change_between_two_annealings_counts_as_error() -> None:
    coarse, fine = (
        SimpleNamespace(
            free_energy=value, standard_error=0.4, betas=(0.0, 1.0), sites={}, groups=16,
            log_weights=torch.zeros(16),
        )
        for value in (1.0, 1.3)
    )  # fmt: skip
    latent: Any = SimpleNamespace(sites={})
    found = _by_annealing(latent, of_sd(1.0), cast("Any", coarse), cast("Any", fine), "asked for")
    assert found.value == -1.3
    assert found.standard_error == pytest.approx(0.5)
    given = cast("Any", coarse), cast("Any", fine), "asked for"
    for draws, error in ((200.0, math.hypot(0.5, 1.2)), (9.0, 0.5)):  # too few say nothing
        other = Bridge(0.0, 0.1, draws, 500.0, 1.2)
        found = _by_annealing(latent, of_sd(1.0), *given, other)
        assert (found.value, found.standard_error) == (-1.3, pytest.approx(error))
    assert "nats farther from the bridge" not in found.reason


@pytest.mark.parametrize(
    ("effective", "num_draws", "size", "expected"),
    [
        (0.01, 10_000, 1, None),
        (0.5, 10_000, 1, 64),
        (0.5, 1_000, 1, 6),
        (0.5, 400, 1, 4),
        (0.5, 10_000, 3, 66),
    ],
)
def test_chains_are_short_where_q_covers_the_target(
    effective: float, num_draws: int, size: int, expected: int | None, monkeypatch: Any
) -> None:
    weights: Any = SimpleNamespace(ess=effective)
    world = SimpleNamespace(size=size, broadcast_from_first=lambda value: value())
    module = importlib.import_module("pyro_neuralrg.sampling.evidence")
    monkeypatch.setattr(module, "processes", lambda: world)
    assert _number_of_chains(weights, num_draws) == expected
