# SPDX-License-Identifier: Apache-2.0
"""Estimators by their definitions and on Gaussians; all pairs: bias, error bars, groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from pyro_neuralrg.analysis import (
    Bins,
    Neighbours,
    by_distance,
    by_scale,
    gaussian_mutual_information,
    mutual_information,
    variables_of_scale,
)
from pyro_neuralrg.transforms import hierarchical_flow
from pyro_neuralrg.transforms.scales import blocks_of_scale
from tests.analysis.linear import any_matrix, jacobian, linear_flow, orthogonal


def gaussian_ranks(correlation: float, size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size)
    y = correlation * x + math.sqrt(1 - correlation**2) * rng.normal(size=size)
    return [values.argsort().argsort() for values in (x, y)]


@pytest.mark.parametrize("k", [1, 6])
def test_neighbours_count_as_kraskov_et_al_do(k: int, seed: int) -> None:
    ready = [Neighbours(k).prepare(ranks) for ranks in gaussian_ranks(0.7, 60, seed)]
    x, y = (values for values, _ in ready)
    distance_x, distance_y = (np.abs(v[:, None] - v) for v in (x, y))
    joint = np.maximum(distance_x, distance_y)
    np.fill_diagonal(joint, np.inf)
    radius = np.sort(joint, axis=1)[:, k - 1 : k]
    counts = [(distance < radius).sum(1) - 1 for distance in (distance_x, distance_y)]
    expected = digamma(k) + digamma(60) - digamma(counts[0] + 1) - digamma(counts[1] + 1)
    np.testing.assert_allclose(Neighbours(k).contributions(*ready), expected)


def test_bins_are_those_of_the_frequencies_and_bound_from_below(seed: int) -> None:
    estimator = Bins(4)
    first, second = (estimator.prepare(ranks) for ranks in gaussian_ranks(0.8, 200, seed))
    assert np.bincount(first).tolist() == [50] * 4
    p = np.array([np.mean(first + 4 * second == cell) for cell in range(16)])
    exact = (p * np.log(np.maximum(p, 1e-300) / 0.25**2)).sum()
    assert estimator.contributions(first, second).mean() == pytest.approx(exact)
    ranks = gaussian_ranks(0.6, 200_000, seed)
    few, many = (b.contributions(*map(b.prepare, ranks)).mean() for b in (Bins(4), Bins(16)))
    exact = -0.5 * math.log(1 - 0.36)
    assert few < 0.93 * exact < many < exact


def correlated_pairs(pairs: int, size: int, correlation: float) -> torch.Tensor:
    """Variables 2i and 2i + 1 are correlated, all else is independent."""
    x = torch.randn(size, pairs)
    y = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(size, pairs)
    return torch.stack([x, y], -1).flatten(1)


def test_gaussians_by_neighbours() -> None:
    covariance = torch.tensor([[1.0, 0.5, 0.0], [0.5, 2.0, -0.9], [0.0, -0.9, 1.0]])
    normal = torch.distributions.MultivariateNormal(torch.zeros(3), covariance)
    found = mutual_information(normal.sample((2000,)), shuffles=200)
    correlation = covariance / (covariance.diagonal().outer(covariance.diagonal())).sqrt()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        exact = -0.5 * math.log(1 - float(correlation[i, j]) ** 2)
        error = math.hypot(found.standard_error[i, j], found.bias.standard_error)
        assert abs(float(found.values[i, j]) - exact) < 4 * error + 0.02 * exact
        assert 0.005 < error < 0.04
    torch.testing.assert_close(found.values, found.values.T, equal_nan=True, rtol=0.0, atol=0.0)
    assert found.values.diagonal().isnan().all()


@pytest.mark.parametrize("estimator", [Neighbours(3), Bins(4)])
def test_independent_variables_have_none_and_error_bars_cover(estimator) -> None:
    x = correlated_pairs(15, 400, 0.6)
    found = mutual_information(x, estimator=estimator, shuffles=400)
    i, j = torch.triu_indices(30, 30, 1)
    apart = (i // 2) != (j // 2)
    error = (found.standard_error[i, j].square() + found.bias.standard_error**2).sqrt()
    values = found.values[i, j][apart]
    mean_error = math.hypot(float(values.std()) / math.sqrt(len(values)), found.bias.standard_error)
    assert abs(values.mean()) < 4 * mean_error
    pulls = values / error[apart]
    # within two errors 95 % of them; the error is itself known to 13 %
    assert 0.85 < (pulls.abs() < 2).double().mean() <= 1.0
    assert 0.6 < pulls.std() < 1.3


def test_error_bars_cover_where_variables_depend() -> None:
    x = correlated_pairs(60, 500, 0.6)
    estimator = Neighbours(3)
    found = mutual_information(x[:, :8], estimator=estimator, shuffles=400)
    ready = [estimator.prepare(ranks) for ranks in x.argsort(0).argsort(0).T.numpy()]
    values = [estimator.contributions(ready[2 * k], ready[2 * k + 1]).mean() for k in range(60)]
    scatter = float(np.std(values, ddof=1))
    assert float(found.values[0, 1]) == pytest.approx(values[0] - found.bias.value)
    # the scatter of 60 is known to 9 %, the mean of four errors to 7 %; theirs errs upwards
    error = float(torch.stack([found.standard_error[2 * k, 2 * k + 1] for k in range(4)]).mean())
    assert 0.65 * scatter < error < 1.6 * scatter


def test_total_is_the_sum_of_pairs_with_the_error_of_samples_they_share() -> None:
    x = correlated_pairs(4, 1000, 0.5)
    found = mutual_information(x, estimator=Bins(4), shuffles=200)
    i, j = torch.triu_indices(8, 8, 1)
    assert found.total().value == pytest.approx(float(found.values[i, j].sum()))
    exact = -0.5 * 4 * math.log(1 - 0.25)
    assert abs(found.total().value - exact) < 5 * found.total().standard_error + 0.15 * exact
    copies = torch.cat([x[:, :2]] * 3, 1) + 1e-9 * torch.randn(1000, 6)  # the same information
    thrice = mutual_information(copies, estimator=Bins(4), shuffles=200)
    ones = torch.full((6, 6), -1)
    ones[[0, 2, 4], [1, 3, 5]] = 0
    together = thrice.grouped(ones)
    single = math.hypot(float(thrice.standard_error[0, 1]), thrice.bias.standard_error)
    assert float(together.standard_error[0]) == pytest.approx(single, rel=0.01)  # not / sqrt(3)


def test_errors_of_groups_hold_noise_and_bias() -> None:
    found = mutual_information(torch.randn(400, 4), estimator=Neighbours(3), shuffles=20)
    assert found.noise > 1.05
    scatter = found.noise * float(found.parts.sum(1).std()) / math.sqrt(len(found.parts))
    exact = math.hypot(scatter, 6 * found.bias.standard_error)  # all 6 pairs share the bias
    assert found.total().standard_error == pytest.approx(exact)


def test_shuffling_finds_the_bias() -> None:
    found = mutual_information(torch.randn(640, 4), estimator=Bins(8), shuffles=300)
    assert found.bias.value == pytest.approx(49 / 1280, abs=4 * found.bias.standard_error)
    assert 0 < found.bias.standard_error < 0.001


def test_equal_values_are_ordered_at_random() -> None:
    """Ordered alike, variables with few values would seem to know of each other."""
    found = mutual_information(torch.randint(0, 2, (2000, 3)), shuffles=100)
    assert found.values.nan_to_num(0).abs().max() < 0.1


def test_same_seed_same_figures_whatever_the_units() -> None:
    x = torch.randn(100, 2, 2)
    first, second = (mutual_information(x, shuffles=10, seed=3) for _ in range(2))
    assert torch.equal(first.parts, second.parts)
    assert first.bias != mutual_information(x, shuffles=10, seed=4).bias
    for mapped in (x.numpy().astype(np.float32), x.exp(), 1e6 * x**3):
        assert torch.equal(mutual_information(mapped, shuffles=10, seed=3).parts, first.parts)


def test_by_distance() -> None:
    noise = torch.randn(1000, 6)
    ring = noise + noise.roll(1, 1)  # correlation 1/2 of neighbours
    found = mutual_information(ring, estimator=Bins(6), shuffles=200)
    groups = by_distance(found, (6,))
    assert (groups.positions.tolist(), groups.pairs.tolist()) == ([1.0, 2.0, 3.0], [6, 6, 3])
    neighbours = torch.stack([found.values[i, (i + 1) % 6] for i in range(6)])
    torch.testing.assert_close(groups.values[0], neighbours.mean())
    exact = -0.5 * math.log(1 - 0.25)
    assert abs(float(groups.values[0]) - exact) < 4 * float(groups.standard_error[0]) + 0.1 * exact
    assert (groups.values[1:].abs() < 4 * groups.standard_error[1:]).all()
    opened = by_distance(found, (2, 3), "open")
    torch.testing.assert_close(opened.positions, torch.tensor([1.0, 2.0, 4.0, 5.0]).sqrt())
    assert opened.pairs.tolist() == [7, 4, 2, 2]
    assert by_distance(found, (2, 3)).pairs.tolist() == [9, 6]


def test_by_scale() -> None:
    x = torch.randn(500, 4)
    x[:, 0] = x[:, 2] + 0.1 * x[:, 0]
    found = mutual_information(x, estimator=Bins(4), shuffles=50)
    groups = by_scale(found, hierarchical_flow((4,)))  # scales 2, 0, 1, 0
    torch.testing.assert_close(groups.values, groups.values.T, equal_nan=True)
    torch.testing.assert_close(groups.values[1, 2], found.values[0, 2])
    torch.testing.assert_close(groups.values[0, 0], found.values[1, 3])
    torch.testing.assert_close(groups.values[0, 1], (found.values[1, 2] + found.values[2, 3]) / 2)
    assert groups.pairs.tolist() == [[1, 2, 2], [2, 0, 1], [2, 1, 0]]


@pytest.mark.parametrize(("estimator", "least"), [(Neighbours(200), 201), (Bins(16), 256)])
def test_too_few_samples_for_an_estimator(estimator, least: int) -> None:
    with pytest.raises(ValueError, match=f"at least {least} samples"):
        mutual_information(torch.randn(150, 2), estimator=estimator)


def test_gaussian_groups() -> None:
    """Two variables, and the chain rule."""
    root = torch.randn(6, 6)
    c = root @ root.T + 0.1 * torch.eye(6)
    pair = torch.tensor([[4.0, 1.2], [1.2, 1.0]])
    assert gaussian_mutual_information(pair, [0], [1]) == pytest.approx(-0.5 * math.log(1 - 0.36))
    # I(A : BC) = I(A : B) + I(AB : C) - I(B : C)
    parts = (([0], [1]), ([0, 1], [2]), ([1], [2]))
    first, second, third = (gaussian_mutual_information(c, *groups) for groups in parts)
    assert gaussian_mutual_information(c, [0], [1, 2]) == pytest.approx(first + second - third)


@pytest.mark.parametrize("block", [orthogonal, any_matrix])
def test_a_tree_hands_mutual_information_on_to_the_kept_variables(block) -> None:
    """Eq. 2: I(A : B) = I(R_A z_A : R_B z_B) = I(R_A : R_B), at every scale of a tree."""
    flow = linear_flow((4, 8), block)
    if block is orthogonal:  # else the field is white noise
        for parameter in flow.buffers():
            parameter.mul_(torch.linspace(0.5, 2.0, parameter.shape[-1]))
    matrix = jacobian(flow)
    field = matrix @ matrix.T
    owner = blocks_of_scale(flow.circuit, 2).flatten()
    a, b = (owner == 0).nonzero().flatten(), (owner == 1).nonzero().flatten()
    exact = gaussian_mutual_information(field, a, b)
    assert exact > 0.01
    for scale in (1, 2):
        to_u = torch.linalg.inv(jacobian(flow.up_to_scale(scale)))
        after = to_u @ field @ to_u.T
        assert gaussian_mutual_information(after, a, b) == pytest.approx(exact)
        kept = variables_of_scale(flow, scale)
        r_a, r_b = kept[torch.isin(kept, a)], kept[torch.isin(kept, b)]
        assert len(r_a) == len(r_b) == 4 ** (2 - scale)
        assert gaussian_mutual_information(after, r_a, r_b) == pytest.approx(exact)
