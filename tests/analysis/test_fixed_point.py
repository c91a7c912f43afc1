# SPDX-License-Identifier: Apache-2.0
"""Distances between consecutive scales where layers and fields are known exactly."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.analysis import fixed_point, pyramid
from pyro_neuralrg.analysis.fixed_point import NormalScores
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow
from pyro_neuralrg.transforms.scales import step_of_scale
from tests.analysis.linear import haar, linear_flow
from tests.transforms.registry import perturb


def test_white_noise_is_a_fixed_point_of_block_sums() -> None:
    found = fixed_point(linear_flow((8, 8), haar), torch.randn(1000, 8, 8))
    assert found.scales == (0, 1)
    assert found.kept.value.max() < 3e-3  # of marginals that are not quite normal
    assert found.detail.value.max() < 3e-3
    for functions in (found.correlations, found.block_correlations):
        for scale, (value, error) in enumerate(functions):
            assert len(value) == 4 // 2**scale + 1
            assert (value[1:].abs() < 5 * error[1:]).all()
            assert abs(float(value[0]) - 1) < 0.05
    for one, other in zip(found.correlations, found.block_correlations, strict=True):
        torch.testing.assert_close(one.value, other.value)


def test_distances_of_block_sums_of_a_free_field() -> None:
    """One layer at all scales, but fields that grow: all follows from the widths of block sums."""
    target = FreeField((8, 8), mass=1.0)
    flow, x = linear_flow((8, 8), haar), target.sample_reference(3000)
    found = fixed_point(flow, x)
    width = [float(field.square().mean().sqrt()) for field in pyramid(flow, x)]
    growth = [width[k + 1] / width[k] for k in range(2)]
    unlike = (1 / growth[0] - 1 / growth[1]) ** 2
    kept = unlike * (growth[0] ** 2 + growth[1] ** 2) / 4
    rest = (width[0] - width[1]) ** 2 * (8 - growth[0] ** 2 - growth[1] ** 2) / 12
    for estimate, exact in ((found.kept, kept), (found.detail, rest)):
        assert float(estimate.value[0]) == pytest.approx(exact, rel=0.05, abs=1e-4)
        assert exact > 1e-3
    value, error = found.correlations[0]
    covariance = target.correlations()
    exact_values = (covariance[:, 0] / covariance[0, 0])[:5]
    assert ((value - exact_values).abs() < 5 * error + 0.01).all()


@pytest.mark.parametrize("weights", ["scale", "shared"])
def test_a_step_is_the_layers_of_its_scale(weights: str) -> None:
    """On the lattice of its own scale, and on another of as many layers."""
    flow = perturb(hierarchical_flow((8, 8), weights=weights), 0.02)
    x = torch.randn(3, 8, 8)
    fields = pyramid(flow, x)
    for scale in (0, 1):
        z = step_of_scale(flow, scale, tuple(fields[scale].shape[1:])).inv(fields[scale])
        torch.testing.assert_close(z[:, ::2, ::2], fields[scale + 1])
    first, second = (step_of_scale(flow, scale, (16, 16)) for scale in (0, 1))
    x = torch.randn(3, 16, 16)
    assert torch.equal(first.inv(x), second.inv(x)) == (weights == "shared")
    with pytest.raises(ValueError, match=r"layers of scale 2, \['decimator'\], do not act on"):
        step_of_scale(flow, 2, (8, 8))


def test_normal_scores_are_monotone_and_undone() -> None:
    x = torch.randn(400, 5, 5).exp()
    scores = NormalScores.of(x)
    y = scores.to_normal(x)
    torch.testing.assert_close(scores.from_normal(y), x)
    assert (y.flatten()[x.flatten().argsort()].diff() > 0).all()
    assert abs(float(y.mean())) < 0.01
    assert abs(float(y.std()) - 1) < 0.05
    wide = torch.tensor([-3.0, 100.0])
    torch.testing.assert_close(scores.from_normal(scores.to_normal(wide)), wide)


def test_flows_and_fields_that_are_refused() -> None:
    x = torch.randn(4, 8, 8)
    for options in (
        {"weights": "block", "bijector": "realnvp"},
        {"boundary": "open"},
        {"depth": 1},
    ):
        with pytest.raises(ValueError, match=r"flow is .*accepted: one of a periodic lattice"):
            fixed_point(hierarchical_flow((8, 8), **options), x)
    with pytest.raises(ValueError, match=r"x gives fields .*accepted: fields that differ"):
        fixed_point(hierarchical_flow((8, 8)), torch.ones_like(x))
