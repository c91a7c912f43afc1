# SPDX-License-Identifier: Apache-2.0
"""Each finding is provoked by a case of its own and absent from a good run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_neuralrg import HMC, ChEESHMC, FreeField, IndependenceMetropolis, VectorizedMCMC, to_arviz
from pyro_neuralrg.diagnostics import Thresholds, diagnose, make_tree, summarise, weights_to_arviz
from tests.mcmc.registry import ToyFlow

Rng = np.random.Generator
Groups = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def rng(seed: int) -> Rng:
    return np.random.default_rng(seed)


def good(rng: Rng, chains: int = 4, draws: int = 800) -> Groups:
    """Independent draws of a field of 2 x 2, its Hamiltonian and its log-density."""
    x = rng.normal(size=(chains, draws, 2, 2))
    lp = -0.5 * (x**2).sum((-1, -2))
    kinetic = 0.5 * rng.chisquare(4, size=(chains, draws))
    return {
        "posterior": {"x": x, "m": x.mean((-1, -2))},
        "sample_stats": {"lp": lp, "energy": kinetic - lp, "diverging": np.zeros_like(lp) > 0},
    }


Change = Callable[[np.ndarray], np.ndarray]


def changed(group: str, names: Sequence[str], change: Change) -> Callable[[Rng], Groups]:
    """A good run but for these variables."""

    def case(rng: Rng) -> Groups:
        groups = good(rng)
        groups[group] |= {name: change(groups[group][name]) for name in names}
        return groups

    return case


def with_posterior(change: Change) -> Callable[[Rng], Groups]:
    return changed("posterior", ("x", "m"), change)


def put(where: Any, value: float) -> Change:
    def change(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out[where] = value
        return out

    return change


def shifted(x: np.ndarray) -> np.ndarray:
    """The first chain lies 0.4 standard deviations off: R-hat, but no mode of its own."""
    return np.concatenate([x[:1] + 0.4 * x.std(), x[1:]])


def walk(x: np.ndarray) -> np.ndarray:
    """Autoregressive: 1 % of the draws are effective."""
    r = 0.98
    out = [x[:, 0]]
    for t in range(1, x.shape[1]):
        out.append(r * out[-1] + math.sqrt(1 - r * r) * x[:, t])
    return np.stack(out, 1)


def apart(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:1] - 20 * x.std(), x[1:]])


def frozen(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.repeat(x[:1, :1], x.shape[1], axis=1), x[1:]])


def all_frozen(rng: Rng) -> Groups:
    groups = good(rng)
    return {group: {name: frozen(x) for name, x in groups[group].items()} for group in groups}


def two_phases(rng: Rng) -> np.ndarray:
    return 0.05 * rng.normal(size=(64, 100)) + np.repeat([-0.7, 0.7], [31, 33])[:, None]


def changing_scale(rng: Rng) -> np.ndarray:
    return rng.normal(size=(4, 500)) * np.exp(walk(rng.normal(size=(4, 500))))


CASES: dict[str, tuple[Callable[[Rng], Groups], str]] = {
    "too_short": (lambda rng: good(rng, draws=3), "problem"),
    "single_chain": (lambda rng: good(rng, chains=1), "note"),
    "not_finite": (with_posterior(put((0, 3), math.nan)), "problem"),
    "frozen_chains": (all_frozen, "problem"),
    "rhat": (with_posterior(shifted), "problem"),
    "separate_modes": (with_posterior(apart), "problem"),
    "ess": (with_posterior(walk), "problem"),
    "ess_per_chain": (lambda rng: good(rng, chains=16, draws=90), "note"),
    "mcse": (with_posterior(put(np.s_[:, 100:160], 1e6)), "problem"),
    "divergences": (changed("sample_stats", ["diverging"], np.logical_not), "problem"),
    "bfmi": (changed("sample_stats", ["energy"], lambda e: 0.3 * e.cumsum(1)), "problem"),
}


def names(verdict: Any) -> list[str]:
    return [finding.name for finding in verdict.findings]


@pytest.mark.parametrize("name", CASES)
def test_each_finding_is_provoked(name: str, rng: Rng) -> None:
    case, severity = CASES[name]
    verdict = diagnose(make_tree(case(rng)))
    found = {finding.name: finding for finding in verdict.findings}
    assert name in found
    finding = found[name]
    assert finding.severity == severity
    assert finding.message in str(verdict)
    low_is_bad = name in {"too_short", "single_chain", "ess", "ess_per_chain", "bfmi"}
    assert (finding.value < finding.threshold) == low_is_bad
    assert verdict.ok == (severity == "note")
    if name in {"single_chain", "divergences", "bfmi", "not_finite"}:
        assert names(verdict) == [name]


SAID: dict[str, tuple[Callable[[Rng], Groups], str]] = {
    "2 of 3200 draws (0.0625 %), in 1 of 4 chains": (
        changed("sample_stats", ["diverging"], put((0, slice(2)), True)),
        "divergences",
    ),
    "and 3 more": (
        lambda rng: {"posterior": {f"v{i}": apart(rng.normal(size=(4, 99))) for i in range(7)}},
        "rhat",
    ),
    # chains that stay magnetised, below the critical temperature
    "m (31 near -0.": (lambda rng: {"posterior": {"m": two_phases(rng)}}, "separate_modes"),
    # the middle is sampled well, the tails are not
    "below 400 for m": (lambda rng: {"posterior": {"m": changing_scale(rng)}}, "ess"),
}


@pytest.mark.parametrize("words", SAID)
def test_what_is_said(words: str, rng: Rng) -> None:
    groups, name = SAID[words]
    verdict = diagnose(make_tree(groups(rng)))
    assert words in next(found.message for found in verdict.findings if found.name == name)
    assert verdict.ok == (name == "divergences")


def test_what_is_not_said(rng: Rng) -> None:
    lp = rng.normal(size=(4, 800)).cumsum(1)
    without_momenta = {**good(rng), "sample_stats": {"lp": lp, "energy": -lp}}
    assert "bfmi" not in names(diagnose(make_tree(without_momenta)))
    lp_moves = with_posterior(frozen)(rng)
    assert "frozen_chains" not in names(diagnose(make_tree(lp_moves)))
    constant = {"posterior": {"size": np.full((4, 800), 16.0)}}
    assert diagnose(make_tree(constant)).findings == ()


def test_a_good_run_has_none(rng: Rng) -> None:
    verdict = diagnose(make_tree(good(rng)))
    assert verdict.findings == ()
    assert str(verdict).startswith("4 chains x 800 draws: no problem found\nworst figures: R-hat 1")
    assert set(verdict.figures) == {"x", "m", "lp"}


@pytest.mark.slow
@pytest.mark.parametrize(("chains", "draws"), [(4, 1000), (64, 110)])
def test_exact_runs_are_rarely_accused(chains: int, draws: int, rng: Rng) -> None:
    """200 runs with seven series each: the rates of the docstring give less than one."""
    accused = [names(diagnose(make_tree(good(rng, chains, draws)))) for _ in range(200)]
    problems = [found for found in accused if set(found) - {"ess_per_chain"}]
    assert len(problems) <= 3, problems


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "rate"), [(100, 0.104), (150, 0.03), (250, 0.002)])
def test_rate_of_false_alarms_of_rhat(draws: int, rate: float, rng: Rng) -> None:
    """The rates in the docstring of diagnose, of four chains."""
    runs = [make_tree({"posterior": {"m": rng.normal(size=(4, draws))}}) for _ in range(1000)]
    alarms = np.mean(["rhat" in names(diagnose(run)) for run in runs])
    assert abs(alarms - rate) < 4 * math.sqrt(2 * rate / 1000)  # of the difference of two counts


def test_fields_have_one_line_with_worst_and_median(rng: Rng) -> None:
    x = rng.normal(size=(4, 500, 6, 6))
    x[0, :, 2, 3] += 2.0
    verdict = diagnose(make_tree({"posterior": {"x": x}}), max_sites=36)
    text = next(f.message for f in verdict.findings if f.name == "rhat")
    assert text.startswith("not converged: R-hat > 1.01 for x (worst 1.")
    assert "at [2, 3], median over sites 1" in text
    assert "looked at" not in str(verdict)
    some = diagnose(make_tree({"posterior": {"x": shifted(x)}}), max_sites=5)
    assert str(some).endswith("; of x 5 of 36 sites looked at")
    assert "5 of 36 sites" in next(f.message for f in some.findings if f.name == "rhat")


def with_still_sites(rng: Rng, kind: str) -> np.ndarray:
    x = rng.normal(size=(4, 500, 3, 3))
    if kind == "tenth":
        x[..., 0, 0] = 0.1  # its mean rounds, to an sd of 1e-17
    elif kind == "masked":
        x[..., 1, 1] = x[..., 2, 0] = math.nan
    else:  # correlation matrices in single precision, whose diagonals round
        factor = dist.LKJCholesky(3, 1.0).sample((4, 500)).float()
        x = (factor @ factor.mT).numpy()
    return x


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tenth", "constant: x (1 of 9 sites)"),
        ("masked", "masked (NaN in every draw): x (2 of 9 sites)"),
        ("correlations", "constant: x (3 of 9 sites)"),
    ],
)
def test_still_sites_are_told_and_raise_no_alarm(kind: str, words: str, rng: Rng) -> None:
    x = with_still_sites(rng, kind)
    verdict = diagnose(make_tree({"posterior": {"x": x}}))
    assert verdict.findings == ()
    assert str(verdict).splitlines()[2:] == [words]
    figures = verdict.figures["x"]
    moving = ~(figures.constant | np.isnan(figures.figures["mean"]))
    alone = diagnose(make_tree({"posterior": {"x": x.reshape(4, 500, 9)[..., moving]}}))
    assert alone.figures["x"].worst() == pytest.approx(figures.worst(), nan_ok=True)


def test_constants_and_what_is_never_finite(rng: Rng) -> None:
    """A rounding of 1 is constant; chains that differ, and NaN throughout, are not fine."""
    still = 1 + 1.2e-7 * np.sign(rng.normal(size=(4, 500)).cumsum(1))
    groups = {"posterior": {"a": still.astype(np.float32), "b": np.full((4, 500), -2.0)}}
    verdict = diagnose(make_tree(groups))
    assert verdict.findings == ()
    assert str(verdict).endswith("constant: a, b")
    apart = {"posterior": {"a": np.arange(4.0)[:, None] * np.ones(500)}}
    assert "frozen_chains" in names(diagnose(make_tree(apart)))
    lost = {"posterior": {"a": np.full((4, 500, 2), math.nan), "b": rng.normal(size=(4, 500))}}
    assert names(diagnose(make_tree(lost))) == ["not_finite"]
    some = rng.normal(size=(4, 500, 2))
    some[..., 0] = math.nan
    some[1, 3, 1] = math.inf
    assert names(diagnose(make_tree({"posterior": {"a": some}}))) == ["not_finite"]


def rounded_beta(rng: Rng, low: float, high: float) -> np.ndarray:
    """Beta(0.1, 0.1) on an interval in single precision, never nearer to its end than eps."""
    eps = np.finfo(np.float32).eps
    u = rng.beta(0.1, 0.1, size=(8, 1000)).clip(1e-38, 1 - eps).astype(np.float32)
    return np.float32(low) + u * np.float32(high - low)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 0.0), (2.0, 5.0)])
def test_draws_at_an_end(low: float, high: float, rng: Rng) -> None:
    """The share is that of Beta(0.1, 0.1) within about eps of its upper end, told with the site."""
    x = rng.normal(size=(8, 1000, 3))
    x[..., 2] = rounded_beta(rng, low, high)
    (finding,) = diagnose(make_tree({"posterior": {"b": x}})).findings
    assert (finding.name, finding.severity) == ("interval_end", "problem")
    # near the end P(1 - u < e) = e^0.1 / (0.1 B(0.1, 0.1)); rounding adds up to an eps or two
    least, most = ((k * 2.0**-23) ** 0.1 / (0.1 * 19.7146394) for k in (1, 3))
    assert least - 0.02 < finding.value < most + 0.02
    assert "% of b[2] at " in finding.message
    fine = {"posterior": {"b": x.astype(np.float32)[..., :2]}}
    assert diagnose(make_tree(fine)).findings == ()


def test_ends_that_are_no_fault(rng: Rng) -> None:
    """Discrete values, values cut off, refused proposals, Beta(1, 1) and Beta(0.5, 0.5)."""
    normal = rng.normal(size=(8, 1000)).astype(np.float32)
    groups = {
        "signs": np.sign(normal),
        "counts": rng.poisson(2.0, size=(8, 1000)),
        "positive": np.maximum(normal, 0),
        "magnetisation": np.sign(rng.normal(size=(8, 1000, 64)) + 1.5).mean(-1),
        "flat": rng.uniform(size=(8, 1000)).astype(np.float32),
        "arc": rng.beta(0.5, 0.5, size=(8, 1000)).astype(np.float32),
        "kept": np.sort(normal)[:, ::-1].repeat(2, axis=1)[:, :1000],
    }
    assert "interval_end" not in names(diagnose(make_tree({"posterior": groups})))


def test_ends_are_a_problem_and_a_note(rng: Rng) -> None:
    """Of a site whose unconstrained draws are the same, and of one where they differ."""
    lost = rounded_beta(rng, 2.0, 5.0)[:, :400]
    short = np.where(rng.random(size=(8, 400)) < 0.5, 1.23456789, 0.3)
    groups = {"lost": lost, "short": short}
    free = {"unconstrained_posterior": {"short": rng.normal(size=short.shape)}}
    verdict = diagnose(make_tree({"posterior": groups, **free}))
    ends = {found.severity: found for found in verdict.findings if found.name == "interval_end"}
    assert "% of lost at 4.99999952;" in ends["problem"].message
    assert f"{100 * (short > 1).mean():.4g} % of short at 1.23456789" in ends["note"].message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_beta_beyond_its_precision(dtype: torch.dtype) -> None:
    """Its mean is 0.5; the draws at its end are a note, as they differ unconstrained."""
    torch.set_default_dtype(dtype)
    b = dist.Beta(torch.tensor(0.1), 0.1)
    mcmc = VectorizedMCMC(
        ChEESHMC(lambda: pyro.sample("b", b)), 400, 300, num_chains=32, seed=0, progress=False
    )
    mcmc.run()
    verdict = diagnose(mcmc, var_names=["b"])
    assert verdict.ok
    (end,) = (finding for finding in verdict.findings if finding.name == "interval_end")
    assert end.severity == "note"
    found = summarise(mcmc.get_samples(group_by_chain=True)["b"])
    assert abs(found.mean - 0.5) < 4 * found.mcse < 0.1


def test_problems_come_before_notes(rng: Rng) -> None:
    groups = good(rng, chains=1)
    groups["sample_stats"]["energy"] = rng.normal(size=(1, 800)).cumsum(1)
    verdict = diagnose(make_tree(groups))
    assert names(verdict) == ["bfmi", "single_chain"]
    assert "1 problem\n- problem: low BFMI" in str(verdict)


def test_importance_weights() -> None:
    uniform = torch.rand(5000)
    bad, fine = (weights_to_arviz(-k * uniform.log()) for k in (1.2, 0.3))
    assert names(diagnose(bad)) == ["pareto_k"]
    assert diagnose(fine).ok
    assert diagnose(bad, thresholds=Thresholds(pareto_k=2.0)).ok


def test_names_and_thresholds_are_obeyed(rng: Rng) -> None:
    tree = make_tree(changed("posterior", ["m"], shifted)(rng))
    chosen = diagnose(tree, var_names=["x"])
    assert set(chosen.figures) == {"x"}
    assert chosen.ok
    assert not diagnose(tree).ok
    assert diagnose(tree, thresholds=Thresholds(rhat=1.5, ess=1.0, relative_mcse=1.0)).ok


@pytest.mark.parametrize("sampler", ["hmc", "jump", "pyro"])
def test_runs(sampler: str) -> None:
    target, flow = FreeField((2, 2), 0.8), ToyFlow((2, 2))
    if sampler == "pyro":
        mcmc: Any = MCMC(NUTS(target.model, max_tree_depth=3), 300, 50, disable_progbar=True)
    else:
        hmc, jump = HMC(target, jitter=0.5), IndependenceMetropolis(flow, target)
        kernel = hmc if sampler == "hmc" else jump
        mcmc = VectorizedMCMC(kernel, 300, 100, num_chains=8, seed=0, progress=False)
    mcmc.run()
    verdict = diagnose(mcmc)
    assert str(verdict) == str(diagnose(to_arviz(mcmc)))
    chains = 1 if sampler == "pyro" else 8
    assert (verdict.chains, verdict.draws) == (chains, 300)
    assert set(verdict.figures) >= {"x", "lp", "magnetisation", "energy"}
    assert ("single_chain" in names(verdict)) == (chains == 1)
    assert set(names(verdict)) <= {"ess", "ess_per_chain", "rhat", "mcse", "single_chain"}


@pytest.mark.parametrize("chains", [2, 4, 64])
def test_chains_of_one_distribution_are_not_apart(chains: int, rng: Rng) -> None:
    """Nor are those that visit both of two modes."""
    draws = (rng.normal, rng.standard_cauchy, rng.exponential)
    groups = {f"{draw.__name__} {i}": draw(size=(chains, 12)) for draw in draws for i in range(20)}
    assert "separate_modes" not in names(diagnose(make_tree({"posterior": groups})))
    both = np.where(rng.uniform(size=(8, 200)) < 0.5, -1.0, 1.0) + 0.05 * rng.normal(size=(8, 200))
    assert "separate_modes" not in names(diagnose(make_tree({"posterior": {"m": both}})))


def test_bad_arguments(rng: Rng) -> None:
    with pytest.raises(ValueError, match=r"var_names has \['y'\]; accepted: \['x', 'm'\]"):
        diagnose(make_tree(good(rng)), var_names=["y"])
    with pytest.raises(ValueError, match=r"idata, a dict, has neither posterior .* run Vectorized"):
        diagnose({"x": rng.normal(size=(4, 500))})
    with pytest.raises(RuntimeError, match=r"there are no draws; call run\(\) first"):
        diagnose(VectorizedMCMC(HMC(FreeField((2, 2), 0.8)), 10))
    with pytest.raises(ValueError, match="neither posterior nor importance"):
        diagnose(make_tree({"prior": {"x": rng.normal(size=(1, 5))}}))
    assert Thresholds(rhat=math.inf).rhat == math.inf
    for name, limit in {"rhat": "high", "ess": -1.0, "pareto_k": math.nan}.items():
        with pytest.raises((TypeError, ValueError), match=f"{name} is .*; accepted: a number >= 0"):
            Thresholds(**{name: limit})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="thresholds is a dict; accepted: Thresholds"):
        diagnose(make_tree({"posterior": {}}), thresholds={"rhat": 1.1})  # type: ignore[arg-type]
