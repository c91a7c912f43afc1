# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Sites of a field drawn given the others, against a conditional normal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_neuralrg.infer import inpaint
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import FourierLayer, Neighbour, hierarchical_flow

KNOWN = torch.tensor([[True, False, True], [True, False, False]])


class GaussianFlow(FourierLayer):
    """A free field's exact flow."""

    shape = property(lambda self: self.event_shape)


def test_conditional_of_a_free_field() -> None:
    """Mean and covariance of the unknown sites given the known ones."""
    target = FreeField((2, 3), 0.6)
    flow = GaussianFlow(target.spectrum)
    root = flow(torch.eye(6).view(6, 2, 3)).view(6, 6)
    covariance = root.T @ root
    x, here = torch.randn(2, 3), KNOWN.flatten()
    gain = covariance[~here][:, here] @ torch.linalg.inv(covariance[here][:, here])
    mean = gain @ x.flatten()[here]
    rest = covariance[~here][:, ~here] - gain @ covariance[here][:, ~here]
    given = torch.where(KNOWN, x, torch.nan)  # what stands at unknown sites does not matter
    found = inpaint(flow, given, KNOWN, num_samples=40, num_chains=64, warmup_steps=60, seed=0)
    assert found.shape == (64, 40, 2, 3)
    assert torch.equal(found[..., KNOWN], x[KNOWN].expand(64, 40, -1))
    drawn = found[..., ~KNOWN]
    centred = drawn - mean
    products = (centred.unsqueeze(-1) * centred.unsqueeze(-2)).flatten(-2) - rest.flatten()
    for values in (centred, products):  # chains are independent of each other
        of_chains = values.mean(1)
        error = of_chains.std(0) / math.sqrt(len(of_chains))
        assert float((of_chains.mean(0).abs() / error).max()) < 4.5
        assert float(error.max()) < 0.1


def test_repeats_with_its_seed() -> None:
    flow = hierarchical_flow((2, 3), bijector=Neighbour(layers=2, hidden=(3,)))
    x = torch.randn(2, 3)
    options: dict[str, Any] = {"num_samples": 3, "num_chains": 4, "warmup_steps": 5}
    first, again = (inpaint(flow, x, KNOWN, seed=1, **options) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(inpaint(flow, x, KNOWN, seed=2, **options), first)
    assert not torch.equal(inpaint(flow, x, KNOWN, **options), inpaint(flow, x, KNOWN, **options))
    assert all(parameter.requires_grad for parameter in flow.parameters())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"x": torch.zeros(3, 2)}, ValueError, r"x has shape \(3, 2\); accepted: the flow's"),
        ({"x": [0.0]}, TypeError, "x is a list; accepted: a tensor"),
        ({"known": torch.ones(2, 3)}, TypeError, r"known has dtype torch\.float32; accepted"),
        ({"known": torch.ones(2, 3).bool()}, ValueError, "known is True everywhere; accepted"),
        ({"x": torch.full((2, 3), math.nan)}, ValueError, "x is not finite at known sites"),
        ({"num_chains": 0}, ValueError, "num_chains is 0; accepted"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"x": torch.zeros(2, 3), "known": KNOWN, **options}
    with pytest.raises(error, match=match):
        inpaint(hierarchical_flow((2, 3)), **given)
