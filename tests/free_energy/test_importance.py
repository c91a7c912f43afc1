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
from pyro_neuralrg.free_energy.importance import log_weights
from pyro_neuralrg.infer import FlowGuide
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.transforms import hierarchical_flow

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
    if kind != "symmetrized":
        assert found.variational == pytest.approx(-target.log_partition(), abs=1e-9)
        assert found.importance == pytest.approx(-target.log_partition(), abs=1e-9)
        assert found.importance_se < 1e-6
    assert abs(found.importance + target.log_partition()) < 5 * found.importance_se + 1e-9


def test_weights_of_batches(target: Any, flow: Any) -> None:
    weights = log_weights(target, flow.float(), 13, 5)
    assert weights.shape == (13,)
    assert weights.dtype == torch.float64
    assert not weights.requires_grad


def test_warns_of_few_effective_samples() -> None:
    with pytest.warns(UserWarning, match="rests on .* effective samples of 50") as caught:
        found = estimate(lambda x: 50.0 * energy(x), proposal(4.0), num_samples=50)
    assert caught[0].filename == __file__
    assert not found.is_trustworthy


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_sizes(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} is {value}; accepted"):
        estimate(energy, proposal(), **{name: value})


def test_bad_energies(target: Any) -> None:
    with pytest.raises(ValueError, match="log_weights has 10 of 10 entries that are NaN"):
        estimate(lambda x: energy(x) * math.nan, proposal(), num_samples=10)
    with pytest.raises(ValueError, match=r"energy has shape \(10, 4\) for 10 fields"):
        estimate(lambda x: x, proposal(), num_samples=10)
    with pytest.raises(TypeError, match="target is a str"):
        estimate("ising", proposal(), num_samples=10)
    with pytest.raises(TypeError, match="q is a str"):
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


def test_a_flow_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"q has shape \(2, 2\), the target \(4, 4\)"):
        estimate(IsingDual((4, 4)), hierarchical_flow((2, 2)), num_samples=10)
