# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_neuralrg.distributions import SymmetrizedFlow
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.free_energy.importance import from_log_weights, log_weights
from pyro_neuralrg.infer import FlowGuide

SITES = 4
WIDTH = 1.25  # of q over that of the target: weights of finite variance, ESS well below 1
EXACT = -0.5 * SITES * math.log(2.0 * math.pi)


def energy(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def proposal(width: float = WIDTH) -> Any:
    return Independent(Normal(torch.zeros(SITES), width), 1)


# KL(q || p) and E[w^2] / E[w]^2 of the two Gaussians, in closed form.
KL = SITES * (0.5 * (WIDTH**2 - 1.0) - math.log(WIDTH))
ESS = (math.sqrt(2.0 * WIDTH**2 - 1.0) / WIDTH**2) ** SITES


def test_both_estimates_against_exact_values() -> None:
    found = estimate(energy, proposal(), num_samples=40_000, batch_size=7000)
    assert found.num_samples == 40_000
    assert abs(found.variational - (EXACT + KL)) < 5 * found.variational_se
    assert abs(found.importance - EXACT) < 5 * found.importance_se
    assert abs(found.ess - ESS) < 0.02
    # Var(ln w) = SITES (WIDTH^2 - 1)^2 / 2 and Var(w) / E[w]^2 = 1/ESS - 1.
    assert found.variational_se == pytest.approx(
        (WIDTH**2 - 1) * (SITES / 2 / 40_000) ** 0.5, rel=0.05
    )
    assert found.importance_se == pytest.approx(((1 / ESS - 1) / 40_000) ** 0.5, rel=0.05)


def test_exact_proposal_has_no_error() -> None:
    found = estimate(energy, proposal(1.0), num_samples=50)
    assert found.variational == pytest.approx(EXACT)
    assert found.importance == pytest.approx(EXACT)
    assert found.variational_se < 1e-12
    assert found.importance_se < 1e-6
    assert found.ess == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["flow", "guide", "symmetrized", "distribution"])
def test_every_kind_of_q(target: Any, flow: Any, kind: str) -> None:
    flow.set_exact(target)
    q = {
        "flow": flow,
        "guide": FlowGuide(flow),
        "symmetrized": SymmetrizedFlow(flow),
        "distribution": FlowGuide(flow).distribution(),
    }[kind]
    found = estimate(target, q, num_samples=2000, batch_size=600)
    tolerance = 1e-9 if kind != "symmetrized" else 5 * found.importance_se
    assert abs(found.importance + target.log_partition()) < max(tolerance, 1e-9)


def test_batches_do_not_change_the_samples(target: Any, flow: Any) -> None:
    torch.manual_seed(0)
    whole = log_weights(target, flow, 12, 12)
    torch.manual_seed(0)
    parts = log_weights(target, flow, 12, 12)
    torch.testing.assert_close(whole, parts)
    assert log_weights(target, flow, 13, 5).shape == (13,)


def test_float32_flow_accumulates_in_float64(target: Any, flow: Any) -> None:
    weights = log_weights(target, flow.float(), 10)
    assert weights.dtype == torch.float64
    assert not weights.requires_grad


def test_importance_by_hand() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0])
    found = from_log_weights(weights.log() + 1000.0)  # beyond the range of exp
    assert found.importance == pytest.approx(-1000.0 - math.log(8.0 / 3.0))
    assert found.ess == pytest.approx(64.0 / 30.0 / 3.0)
    relative = weights.std() / weights.mean() / math.sqrt(3.0)
    assert found.importance_se == pytest.approx(relative.item())
    assert found.variational_se == pytest.approx((weights.log().std() / math.sqrt(3.0)).item())
    single = from_log_weights(torch.zeros(1))
    assert single.importance == 0.0
    assert math.isnan(single.importance_se)


def test_warns_of_few_effective_samples() -> None:
    with pytest.warns(UserWarning, match="rests on .* effective samples of 50"):
        estimate(lambda x: 50.0 * energy(x), proposal(4.0), num_samples=50)


def test_warns_once_of_a_heavy_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights u^-0.9 have enough effective samples, and an infinite variance."""
    tail = -0.9 * torch.rand(2000).log()
    monkeypatch.setattr("pyro_neuralrg.free_energy.importance.log_weights", lambda *_: tail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = estimate(energy, proposal(), num_samples=2000)
    assert found.ess * found.num_samples > 10
    assert found.pareto_k > 0.7
    (warning,) = caught
    assert "effective samples of 2000 (Pareto k-hat " in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(("number", "warns"), [(9, True), (11, False)])
def test_ten_effective_samples_are_enough(
    number: int, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal weights: every sample counts."""
    monkeypatch.setattr(
        "pyro_neuralrg.free_energy.importance.log_weights", lambda *_: torch.zeros(number)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate(energy, proposal(), num_samples=number)
    assert bool(caught) == warns


def test_weights_of_zero() -> None:
    """Fields of infinite energy: the importance estimate leaves them out, the bound does not."""
    some = from_log_weights(torch.tensor([0.0, 0.0, -math.inf, -math.inf]))
    assert some.variational == math.inf
    assert some.importance == pytest.approx(math.log(2.0))
    assert some.ess == pytest.approx(0.5)
    assert some.importance_se == pytest.approx(math.sqrt(1.0 / 3.0))
    none = from_log_weights(torch.full((4,), -math.inf))
    assert (none.variational, none.importance, none.ess) == (math.inf, math.inf, 0.0)
    assert math.isnan(none.pareto_k)
    assert math.isnan(none.importance_se)
    assert math.isnan(none.variational_se)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.tensor([0.0, math.inf]), "1 of 2 log-weights are infinite; accepted"),
        (torch.full((3,), math.inf), "3 of 3 log-weights are infinite; accepted"),
        (torch.tensor([math.nan, 0.0]), "1 of 2 log-weights are NaN; accepted"),
        (torch.zeros(0), "weights is empty; accepted"),
    ],
)
def test_bad_log_weights(weights: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        from_log_weights(weights)


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_sizes(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} is {value}; accepted"):
        estimate(energy, proposal(), **{name: value})


def test_bad_energies(target: Any) -> None:
    with pytest.raises(ValueError, match="10 of 10 log-weights are NaN"):
        estimate(lambda x: energy(x) * math.nan, proposal(), num_samples=10)
    with pytest.raises(ValueError, match=r"energy has shape \(10, 4\) for 10 fields"):
        estimate(lambda x: x, proposal(), num_samples=10)
    with pytest.raises(TypeError, match="target is a str"):
        estimate("ising", proposal(), num_samples=10)
    with pytest.raises(TypeError, match="flow is a str"):
        estimate(energy, "flow", num_samples=10)


@pytest.mark.slow
def test_error_bars_cover() -> None:
    """Over 200 seeds the exact value lies within 1 and 2 standard errors as often as it should."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = [estimate(energy, proposal(), num_samples=2000, batch_size=2000) for _ in range(200)]
    for pulls in (
        torch.tensor([(r.variational - EXACT - KL) / r.variational_se for r in runs]),
        torch.tensor([(r.importance - EXACT) / r.importance_se for r in runs]),
    ):
        # Binomial(200, p) within four of its own standard errors.
        for width, rate in ((1.0, 0.6827), (2.0, 0.9545)):
            covered = (pulls.abs() < width).double().mean().item()
            assert abs(covered - rate) < 4 * (rate * (1 - rate) / 200) ** 0.5
        assert abs(pulls.mean().item()) < 4 / 200**0.5
