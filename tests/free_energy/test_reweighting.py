# SPDX-License-Identifier: Apache-2.0
"""Observables of a Gaussian from samples of a wider one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_neuralrg.free_energy import bounds, expectations, reweight
from pyro_neuralrg.statistics import LogWeights, with_error
from tests.free_energy.gaussian import EXACT as EXACT_FREE_ENERGY
from tests.free_energy.gaussian import SITES, check_coverage, proposal

MEAN = 0.3  # of every site of the target
EXACT = torch.tensor([MEAN, 1.0 + MEAN**2])  # of x and x^2


def energy(x: Tensor) -> Tensor:
    return 0.5 * (x - MEAN).square().sum(-1)


def weighted(number: int) -> tuple[Tensor, Tensor]:
    """Values x_0, x_0^2 and log-weights of samples of the proposal."""
    x = proposal().sample((number,))
    values = torch.stack([x[:, 0], x[:, 0].square()], -1)
    return values, -energy(x) - proposal().log_prob(x)


def test_means_of_the_target() -> None:
    values, weights = weighted(40_000)
    found = reweight(values, weights + 1000.0)  # a constant does not matter
    assert found.value.shape == (2,)
    assert bool(((found.value - EXACT).abs() < 4 * found.standard_error).all())
    assert bool((found.standard_error < 0.02).all())
    assert found.pareto_k < 0.7
    # the proposal's own mean of x^2 is far off
    assert abs(float(values[:, 1].mean() - EXACT[1])) > 10 * float(found.standard_error[1])
    single = reweight(values[:, 1], weights)
    assert single.value.shape == ()
    assert float(single.value) == pytest.approx(float(found.value[1]))


def test_error_by_hand() -> None:
    """Two weights, 3 and 1, of 0 and 1: mean 1/4, residuals -3/4 and 3/4, times 2, over 16."""
    values, weights = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0]).log()
    found = reweight(values, weights)
    without = torch.tensor([math.nan, math.inf]), torch.full((2,), -math.inf)  # any weight
    more = reweight(torch.cat([values, without[0]]), torch.cat([weights, without[1]]))
    assert more.value == found.value
    assert float(found.value) == pytest.approx(0.25)
    assert float(found.standard_error) == pytest.approx(math.sqrt(2 * (2 * 0.75**2)) / 4)
    assert found.ess == pytest.approx(16 / 10 / 2)
    assert math.isnan(found.pareto_k)
    assert math.isnan(float(reweight(values[:1], weights[:1]).standard_error))
    values = torch.randn(100, 3, 2)  # equal weights
    found = reweight(values, LogWeights(torch.zeros(100)))
    torch.testing.assert_close(found.value, values.mean(0))
    torch.testing.assert_close(found.standard_error, values.std(0) / 10)


def test_groups_of_copies() -> None:
    """Every sample four times in a row tells no more than once."""
    values, weights = weighted(500)
    once = reweight(values, weights)
    copies = values.repeat_interleave(4, 0), weights.repeat_interleave(4)
    grouped = reweight(*copies, groups=500)
    assert math.isnan(grouped.pareto_k)
    assert not math.isnan(once.pareto_k)
    torch.testing.assert_close(grouped.value, once.value)
    torch.testing.assert_close(grouped.standard_error, once.standard_error)
    assert bool((reweight(*copies).standard_error < 0.6 * once.standard_error).all())


BAD: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    ([1.0], torch.zeros(1), {}, TypeError, "values is a list; accepted"),
    (torch.zeros(1), [0.0], {}, TypeError, "log_weights is a list; accepted"),
    (torch.zeros(2), torch.zeros(3), {}, ValueError, r"values has shape \(2,\); accepted: \(3,\)"),
    (torch.zeros(2), torch.zeros(2, 1), {}, ValueError, r"log_weights has shape \(2, 1\)"),
    (torch.zeros(1), torch.tensor([-math.inf]), {}, ValueError, r"log_weights are all -inf \(1"),
    (torch.tensor([0, math.nan]), torch.zeros(2), {}, ValueError, "values of 1 of 2 samples"),
    (torch.zeros(4), torch.zeros(4), {"groups": 3}, ValueError, "groups is 3; accepted"),
]


@pytest.mark.parametrize(("values", "weights", "options", "error", "match"), BAD)
def test_bad_arguments(
    values: Any, weights: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        reweight(values, weights, **options)


def test_expectations_from_a_flow() -> None:
    sizes: list[int] = []

    def square(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.square().mean(-1)

    observables = {"square": square, "field": lambda x: x}
    found = expectations(energy, proposal(), observables, 5000, batch_size=2000)
    assert sizes == [2000, 2000, 1000]
    means = found.observables
    assert list(means) == ["square", "field"]
    assert means["field"].value.shape == (SITES,)
    for name, exact in (("square", EXACT[1]), ("field", EXACT[0])):
        error = (means[name].value - exact).abs()
        assert bool((error < 5 * means[name].standard_error).all())
    assert found.free_energy.num_samples == 5000
    error = found.free_energy.importance - EXACT_FREE_ENERGY
    assert abs(error) < 4 * found.free_energy.importance_se
    assert means["field"].ess == pytest.approx(found.free_energy.ess)


BAD_OBSERVABLES: list[tuple[Any, type[Exception], str]] = [
    ([energy], TypeError, "observables is a list; accepted: functions of fields by"),
    ({"m": 1.0}, TypeError, r"observables\['m'\] is a float"),
    ({"m": lambda x: float(x.mean())}, TypeError, r"\['m'\] of fields is a float; accepted: a ten"),
    ({"m": lambda x: x.mean()}, ValueError, r"\['m'\] returned shape \(\) for 10 fields"),
]


@pytest.mark.parametrize(("observables", "error", "match"), BAD_OBSERVABLES)
def test_bad_observables(observables: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        expectations(energy, proposal(), observables, 10)


@pytest.mark.slow
def test_error_bars_cover() -> None:
    runs = [reweight(*weighted(2000)) for _ in range(200)]
    pulls = torch.stack([(run.value - EXACT) / run.standard_error for run in runs], -1)
    for of_one in pulls:
        check_coverage(of_one)


def test_functions_of_a_user_may_work_in_place() -> None:
    """<|x|> = sqrt(2 / pi), and the free energy, whatever the functions before have done."""
    functions = {"a": lambda x: x.abs_().mean(-1), "b": lambda x: x.lt_(0).mean(-1)}
    found = expectations(lambda x: 0.5 * x.square_().sum(-1), proposal(1.1), functions, 4000)
    for name, exact in {"a": math.sqrt(2 / math.pi), "b": 0.5}.items():
        value, error, *_ = found.observables[name]
        assert abs(float(value) - exact) < 4 * float(error)
    energy = found.free_energy
    assert abs(energy.importance - EXACT_FREE_ENERGY) < 4 * energy.importance_se


def narrow(sd: float, sites: int, number: int) -> tuple[Tensor, Tensor]:
    """Draws of normals narrower than the target's, and their log-weights."""
    x = sd * torch.randn(number, sites)
    return x, (0.5 / sd**2 - 0.5) * x.square().sum(-1)


def steep(number: int) -> tuple[Tensor, Tensor]:
    """Draws of an exponential that falls faster than the target's."""
    x = torch.distributions.Exponential(1.6).sample((number, 1))
    return x, 0.6 * x[:, 0]


HEAVY = {
    "second moment in four dimensions": (lambda: narrow(0.75, 4, 20_000), torch.square, 1.0),
    "absolute value in one": (lambda: narrow(0.75, 1, 4000), torch.abs, math.sqrt(2 / math.pi)),
    "exponential": (lambda: steep(4000), torch.square, 2.0),
}


@pytest.mark.filterwarnings("ignore:the importance estimate")  # k-hats of a few runs
@pytest.mark.parametrize("name", HEAVY)
def test_error_bars_of_heavy_tails_cover(name: str) -> None:
    """By the samples alone 7 to 17 of 100 lie beyond two errors, and 1 to 4 beyond three."""
    draw, function, exact = HEAVY[name]
    beyond, runs = torch.zeros(2), 100
    for _ in range(runs):
        x, log_weights = draw()
        found = reweight(function(x).mean(-1), log_weights)
        score = abs(float(found.value) - exact) / float(found.standard_error)
        beyond += score > torch.tensor([2.0, 3.0])
    assert float(beyond[0]) <= 6
    assert float(beyond[1]) <= 3


@pytest.mark.parametrize("components", [1, 30])
def test_errors_of_light_tails_are_those_of_the_samples(components: int) -> None:
    x, log_weights = narrow(1.2, 2, 2000)
    values = x[:, :1] * torch.linspace(0.5, 1.0, components)
    found = reweight(values, log_weights)
    w = log_weights.exp()[:, None]
    plain = ((w * (values - found.value)).square().sum(0) * (2000 / 1999)).sqrt() / w.sum()
    torch.testing.assert_close(found.standard_error, plain)
    assert found.values_pareto_k < 1 / 3


def test_weights_that_cannot_be_trusted_are_told_once() -> None:
    x, log_weights = narrow(0.3, 1, 2000)
    for weights in (log_weights, LogWeights(log_weights)):
        with pytest.warns(UserWarning, match=r"k-hat .* or use sample\(target, q\)") as said:
            assert reweight(x, weights).pareto_k > 0.7
        assert [Path(warning.filename).name for warning in said] == [Path(__file__).name]
    reweight(x, log_weights, groups=100)  # which may be copies
    q = Independent(Normal(torch.zeros(1), 0.3), 1)
    with pytest.warns(UserWarning, match=r"k-hat .* or use sample\(target, q\)") as said:
        expectations(lambda x: 0.5 * x.square().sum(-1), q, {"a": energy, "b": energy})
    assert len(said) == 1


def test_a_constant_beside_a_heavy_value() -> None:
    x, log_weights = narrow(0.75, 4, 5000)
    both = reweight(torch.stack([torch.ones(5000), x.square().mean(-1)], -1), log_weights)
    one = reweight(x.square().mean(-1), log_weights)
    assert both.standard_error[0] < 1e-9
    torch.testing.assert_close(both.standard_error[1], one.standard_error)
    assert both.values_pareto_k == pytest.approx(one.values_pareto_k)


def test_a_heavy_observable_of_good_weights_is_named() -> None:
    """E exp(0.45 x^2) = sqrt(10) of a normal; its second moment is infinite."""
    q = Independent(Normal(torch.zeros(1), 1.05), 1)
    functions = {"heavy": lambda x: (0.45 * x[:, 0].square()).exp(), "light": lambda x: x[:, 0]}
    with pytest.warns(UserWarning, match=r"weights times 'heavy' have a heavy tail \(Par") as said:
        found = expectations(lambda x: 0.5 * x.square().sum(-1), q, functions, 4000)
    assert [entry.filename for entry in said] == [__file__]
    assert found.observables["light"].values_pareto_k < 0.5


def test_results_print_in_one_line() -> None:
    found = expectations(energy, proposal(), {"square": lambda x: x.square().mean(-1)})
    value, free = found.observables["square"], found.free_energy
    limits = bounds(energy, proposal(), 100, reference=torch.randn(100, SITES))
    mean = with_error(float(value.value), float(value.standard_error))
    importance = with_error(free.importance, free.importance_se)
    assert repr(value).startswith(f"Reweighted({mean}, ")
    assert repr(free).startswith(f"FreeEnergyEstimate(-ln Z = {importance}, at most ")
    assert repr(limits).endswith(f"<= -ln Z <= {with_error(limits.upper, limits.upper_se)})")
    assert all(len(repr(one)) < 120 for one in (value, free, limits))
