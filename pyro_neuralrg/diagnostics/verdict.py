# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A verdict on a run in words: each check yields findings, with the number that led to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyro.infer import MCMC

from pyro_neuralrg.arguments import check_number, check_type
from pyro_neuralrg.diagnostics.convert import to_arviz
from pyro_neuralrg.diagnostics.tree import check_names, group_of
from pyro_neuralrg.mcmc import VectorizedMCMC
from pyro_neuralrg.statistics.draws import MIN_DRAWS, share_at_an_end
from pyro_neuralrg.statistics.summary import LARGEST_RHAT, FieldSummary, bfmi, summarise_field

MAX_NAMES = 4  # variables that a message names, at most

Severity = Literal["problem", "note"]


@dataclass(frozen=True)
class Thresholds:
    """Limits beyond which :func:`diagnose` has a finding; infinity is accepted.

    Attributes:
        rhat: largest R-hat (Vehtari et al. 2021).
        ess: fewest effective samples of all chains together, bulk and tail (likewise).
        ess_per_chain: fewest per chain, for a note.
        relative_mcse: largest standard error of a mean in units of the standard deviation.
        divergent_fraction: fraction of divergent draws above which they are a problem; below it
            any is a note.
        bfmi: least fraction of missing information of a chain (Betancourt 2016).
        mode_gap: widest gap between medians of chains, in standard deviations within a chain.
        at_end: fraction of draws that are rounded to the end of an interval; a note where they
            differ unconstrained, else a problem.
        pareto_k: largest shape of the tail of importance weights (Vehtari et al. 2024).
    """

    rhat: float = LARGEST_RHAT
    ess: float = 400.0
    ess_per_chain: float = 100.0
    relative_mcse: float = 0.1
    divergent_fraction: float = 0.001
    bfmi: float = 0.3
    mode_gap: float = 3.0
    at_end: float = 0.001
    pareto_k: float = 0.7

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit != math.inf:
                check_number(name, limit, "a number >= 0, or infinity", least=0)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        name: ``too_short``, ``not_finite``, ``frozen_chains``, ``rhat``, ``ess``,
            ``ess_per_chain``, ``mcse``, ``separate_modes``, ``divergences``, ``bfmi``,
            ``interval_end``, ``pareto_k`` or ``single_chain``.
        severity: a ``problem`` makes the verdict bad, a ``note`` does not.
        message: in words, with variables and numbers.
        value: the number that led to it.
        threshold: what it was compared with.
    """

    name: str
    severity: Severity
    message: str
    value: float
    threshold: float


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The verdict of :func:`diagnose`; it prints as text.

    Attributes:
        chains: of the posterior, 0 without one.
        draws: of each chain.
        figures: of each variable that was looked at.
        findings: problems first.
    """

    chains: int
    draws: int
    figures: Mapping[str, FieldSummary]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return not any(finding.severity == "problem" for finding in self.findings)

    def __repr__(self) -> str:
        problems = sum(finding.severity == "problem" for finding in self.findings)
        verdict = {0: "no problem found", 1: "1 problem"}.get(problems, f"{problems} problems")
        of = f"{self.chains} chains x {self.draws} draws: " if self.chains else ""
        lines = [of + verdict]
        lines += [f"- {finding.severity}: {finding.message}" for finding in self.findings]
        return "\n".join([*lines, *_worst_figures(self.figures)])


def diagnose(
    idata: Any,
    *,
    var_names: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    max_sites: int | None = None,
) -> Diagnosis:
    """Say in words whether a run can be trusted, and what speaks against it.

    Of fields, the worst site and the median over sites are told; of large ones a random choice of
    sites is looked at, and the text says so. Sites that are constant, but for rounding, and those
    of a field that are NaN in every draw (masked) are counted, and left out. A run without a
    problem has not been shown to be right: chains that all missed the same mode agree.

    R-hat of exact, independent draws exceeds 1.01 by chance in 10 % of runs of four chains of 100
    draws, 3 % at 150, 0.2 % at 250, and never in 400 runs of 500; in 26 % of runs of 64 chains of
    16 draws, never in 200 of 50.

    Args:
        idata: a run :class:`VectorizedMCMC` or Pyro's ``MCMC``; or ArviZ's InferenceData or
            DataTree, also of another library, whose groups ``posterior``,
            ``unconstrained_posterior``, ``sample_stats`` and ``importance`` are looked at.
        var_names: variables of the posterior to look at; None takes all, and ``lp``.
        thresholds: what counts as a finding.
        max_sites: sites of a field to look at, at most.

    Raises:
        ValueError: also if there is neither a posterior nor importance weights.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, Bayesian Analysis 16 (2021), R-hat and ESS;
        Betancourt, arXiv:1604.00695 (2016), BFMI.

    Example:
        >>> import numpy as np
        >>> from pyro_neuralrg.diagnostics import make_tree
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> stuck = draws * 0.1 + np.array([[-1.0], [-1.0], [1.0], [1.0]])
        >>> for finding in diagnose(make_tree({"posterior": {"m": stuck}})).findings[:2]:
        ...     print(finding.name, finding.value > finding.threshold)
        rhat True
        separate_modes True
    """
    limits = Thresholds() if thresholds is None else thresholds
    check_type("thresholds", limits, Thresholds, "Thresholds")
    if isinstance(idata, VectorizedMCMC | MCMC):
        idata = to_arviz(idata)
    posterior, importance = group_of(idata, "posterior"), group_of(idata, "importance")
    if posterior is None and importance is None:
        raise ValueError(
            f"idata, a {type(idata).__name__}, has neither posterior nor importance; accepted: a "
            "run VectorizedMCMC or MCMC, or ArviZ's container with one of these groups"
        )
    draws, stats = _variables(posterior, var_names), _variables(group_of(idata, "sample_stats"))
    if var_names is None and "lp" in stats:
        draws.setdefault("lp", stats["lp"])
    chains, length = next(iter(draws.values())).shape[:2] if draws else (0, 0)
    masked = {name: np.isnan(values).all(axis=(0, 1)) for name, values in draws.items()}
    masked = {name: sites for name, sites in masked.items() if sites.any() and not sites.all()}
    whole = {name: np.where(masked.get(name, False), 0.0, x) for name, x in draws.items()}
    figures = {
        name: summarise_field(values, max_sites)
        for name, values in draws.items()
        if np.isfinite(whole[name]).all() and length >= MIN_DRAWS
    }
    k = math.nan if importance is None else float(importance.attrs.get("pareto_k", math.nan))
    unconstrained = _variables(group_of(idata, "unconstrained_posterior"))
    facts = _Facts(whole, figures, stats, k, limits, unconstrained)
    findings = [finding for check in CHECKS for finding in check(facts)]
    findings.sort(key=lambda finding: finding.severity != "problem")
    return Diagnosis(chains, length, figures, tuple(findings))


def _variables(group: Any, names: Sequence[str] | None = None) -> dict[str, NDArray[np.float64]]:
    """Arrays of a group with chains and draws first."""
    if group is None:
        return {}
    known = [name for name in group.data_vars if {"chain", "draw"} <= set(group[name].dims)]
    check_names("var_names", names, known)
    return {
        str(name): np.asarray(group[name].transpose("chain", "draw", ...), dtype=np.float64)
        for name in (known if names is None else names)
        if group[name].size
    }


# The checks ---------------------------------------------------------------------------------------


class _Facts(NamedTuple):
    """Input of the checks: arrays ``(chains, draws, ...)`` and figures by variable.

    Where a field is masked its draws are zero, its figures NaN.
    """

    draws: dict[str, NDArray[np.float64]]
    figures: dict[str, FieldSummary]
    stats: dict[str, NDArray[np.float64]]
    pareto_k: float
    at: Thresholds
    unconstrained: dict[str, NDArray[np.float64]]


def _check_draws(facts: _Facts) -> Iterator[Finding]:
    chains, length = next((x.shape[:2] for x in facts.draws.values()), (0, MIN_DRAWS))
    if length < MIN_DRAWS:
        message = f"too short: {length} draws per chain, of which nothing can be told"
        yield Finding("too_short", "problem", message, length, MIN_DRAWS)
    elif chains == 1:
        message = "a single chain: no R-hat, and no other chain to show a mode that it missed"
        yield Finding("single_chain", "note", message, 1, 2)
    counts = {name: int((~np.isfinite(values)).sum()) for name, values in facts.draws.items()}
    if bad := sorted((-count, name) for name, count in counts.items() if count):
        listed = _listing([f"{name} ({-count} numbers)" for count, name in bad])
        message = f"not finite: {listed}; not looked at any further"
        yield Finding("not_finite", "problem", message, -bad[0][0], 0.0)


def _check_frozen_chains(facts: _Facts) -> Iterator[Finding]:
    """Chains in which nothing ever changes; variables that are constants say nothing."""
    series = [facts.draws[name].reshape(*facts.draws[name].shape[:2], -1) for name in facts.figures]
    still = [np.ptp(x, axis=1).max(axis=-1) == 0 for x in series if np.ptp(x) > 0]
    if still and (number := int(np.all(still, axis=0).sum())):
        message = f"chains that never move: {number} of {len(still[0])}; every proposal was refused"
        yield Finding("frozen_chains", "problem", message, number, 0.0)


def _check_rhat(facts: _Facts) -> Iterator[Finding]:
    limit = facts.at.rhat
    if bad := _worst_of(facts.figures, lambda found: found.figures["rhat"], limit):
        message = f"not converged: R-hat > {limit:g} for {_listing(bad)}"
        yield Finding("rhat", "problem", message, bad[0].value, limit)


def _check_modes(facts: _Facts) -> Iterator[Finding]:
    splits = [
        (*split_of_chains(facts.draws[name]), name)
        for name, found in facts.figures.items()
        if not found.shape and len(facts.draws[name]) > 1 and not found.constant.all()
    ]
    limit = facts.at.mode_gap
    if bad := sorted((split for split in splits if split[0] > limit), key=lambda row: -row[0]):
        words = [
            f"{name} ({len(low)} near {_four_digits(np.median(low))}, {len(high)} near "
            f"{_four_digits(np.median(high))}, {_four_digits(gap)} sd of a chain apart)"
            for gap, low, high, name in bad
        ]
        message = f"chains stay in different modes of {_listing(words)}"
        yield Finding("separate_modes", "problem", message, bad[0][0], limit)


def _check_effective_samples(facts: _Facts) -> Iterator[Finding]:
    def fewest(found: FieldSummary) -> NDArray[np.float64]:  # the sign turns fewest into largest
        return -np.fmin(found.figures["ess_bulk"], found.figures["ess_tail"])

    limit, per_chain = facts.at.ess, facts.at.ess_per_chain
    chains = next((len(x) for x in facts.draws.values()), 0)
    if bad := _worst_of(facts.figures, fewest, -limit):
        message = f"too few effective samples: below {limit:g} for {_listing(bad)}"
        yield Finding("ess", "problem", message, -bad[0].value, limit)
    elif few := _worst_of(facts.figures, fewest, -per_chain * chains):
        each = -few[0].value / chains
        message = (
            f"few effective samples of each chain: {_four_digits(each)} for {few[0].name}, below "
            f"{per_chain:g}; R-hat judges single chains by few"
        )
        yield Finding("ess_per_chain", "note", message, each, per_chain)


def _check_errors(facts: _Facts) -> Iterator[Finding]:
    limit = facts.at.relative_mcse
    if bad := _worst_of(facts.figures, lambda found: found.relative_mcse, limit):
        message = f"large errors of means: above {limit:g} standard deviations for {_listing(bad)}"
        yield Finding("mcse", "problem", message, bad[0].value, limit)


def _check_lost_ends(facts: _Facts) -> Iterator[Finding]:
    """Draws that are one number, with others close to it: unconstrained they are no more told."""
    limit, bad = facts.at.at_end, []
    for name, found in facts.figures.items():
        values = facts.draws[name]
        free = facts.unconstrained.get(name, values)
        flat, free = (x.reshape(*values.shape[:2], -1) for x in (values, free))
        for site in found.sites[~found.constant] if free.shape == flat.shape else ():
            share, end = share_at_an_end(flat[..., site])
            if share > limit and np.ptp(free[..., site][flat[..., site] == end]) <= 1.0:
                at = str(list(map(int, np.unravel_index(site, found.shape)))) if found.shape else ""
                words = f"{100 * share:.3g} % of the draws of {name}{at} are {end:.9g}"
                bad.append((share, words))
    if bad := sorted(bad, reverse=True):
        message = (
            f"draws at an end of their interval: {_listing([words for _, words in bad])}, exactly; "
            "the dtype cannot resolve this end, and what lies nearer to it is lost; run in float64"
        )
        yield Finding("interval_end", "problem", message, bad[0][0], limit)


def _check_divergences(facts: _Facts) -> Iterator[Finding]:
    diverging = facts.stats.get("diverging", np.zeros((1, 1)))
    number, fraction, limit = diverging.sum(), diverging.mean(), facts.at.divergent_fraction
    if number:
        message = (
            f"divergences: {number:.0f} of {diverging.size} draws "
            f"({_four_digits(100 * fraction)} %), in {diverging.any(axis=1).sum()} of "
            f"{len(diverging)} chains; regions of high curvature may be missed"
        )
        severity: Severity = "problem" if fraction > limit else "note"
        yield Finding("divergences", severity, message, float(fraction), limit)


def _check_energy_changes(facts: _Facts) -> Iterator[Finding]:
    energy, lp = facts.stats.get("energy"), facts.stats.get("lp")
    if energy is None or energy.shape[1] < MIN_DRAWS or not np.isfinite(energy).all():
        return
    if lp is not None and np.allclose(energy, -lp):
        return  # a kernel without momenta
    found, limit = bfmi(energy), facts.at.bfmi
    low, least = int((found < limit).sum()), float(np.nanmin(found, initial=np.inf))
    if low:
        message = (
            f"low BFMI: below {limit:g} in {low} of {len(found)} chains (least "
            f"{_four_digits(least)}, median {_four_digits(np.nanmedian(found))}); momenta do not "
            "carry the chains through the energies of the target"
        )
        yield Finding("bfmi", "problem", message, least, limit)


def _check_ends(facts: _Facts) -> Iterator[Finding]:
    """Draws that are one number on an interval, and far apart where they are unconstrained."""
    rows, limit = [], facts.at.at_end
    for name in sorted(facts.draws.keys() & facts.unconstrained.keys()):
        values, free = facts.draws[name], facts.unconstrained[name]
        for end in (values.min(), values.max()) if values.shape == free.shape else ():
            there = values == end
            if there.mean() > limit and np.ptp(free[there]) > 1.0:
                share, at = float(there.mean()), f"{name} at {end:g}"
                rows.append((share, f"{_four_digits(100 * share)} % of {at}"))
    if rows:
        message = (
            f"draws at the end of an interval: {_listing([words for _, words in rows])}; what is "
            "left to the end is rounded there, in functions of the draws and in a likelihood of it"
        )
        yield Finding("interval_end", "note", message, max(rows)[0], limit)


def _check_weights(facts: _Facts) -> Iterator[Finding]:
    k, limit = facts.pareto_k, facts.at.pareto_k
    if k > limit:
        message = (
            f"heavy tail of the importance weights: k-hat {_four_digits(k)} > {limit:g}; neither "
            "their means nor the error bars of these can be trusted"
        )
        yield Finding("pareto_k", "problem", message, k, limit)


CHECKS: tuple[Callable[[_Facts], Iterator[Finding]], ...] = (
    _check_draws,
    _check_frozen_chains,
    _check_rhat,
    _check_modes,
    _check_effective_samples,
    _check_errors,
    _check_lost_ends,
    _check_divergences,
    _check_energy_changes,
    _check_ends,
    _check_weights,
)


def split_of_chains(
    values: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The widest gap between the medians of chains, and the medians on either side of it.

    The gap is in standard deviations within a chain, NaN where no chain varies. Chains of the same
    distribution with ten or more effective draws each have gaps well below three; chains that visit
    both of two modes in equal shares, two at most. A far draw moves a mean, not a median.
    """
    medians = np.sort(np.median(values, axis=1))
    within = float(np.median(values.std(axis=1)))
    gaps = np.diff(medians)
    cut = int(np.argmax(gaps)) + 1
    gap = float(gaps[cut - 1]) / within if within > 0 else math.nan
    return gap, medians[:cut], medians[cut:]


# Words --------------------------------------------------------------------------------------------


class _Worst(NamedTuple):
    """The largest value over the sites of a variable, also in words."""

    value: float
    name: str
    words: str


def _worst_of(
    figures: Mapping[str, FieldSummary],
    of: Callable[[FieldSummary], NDArray[np.float64]],
    above: float = -math.inf,
) -> list[_Worst]:
    """Variables with values above the threshold, the largest first; NaNs are left out."""
    rows = []
    for name, found in figures.items():
        values = of(found)
        known = values[~np.isnan(values)]
        if known.size and known.max() > above:
            words = _four_digits(abs(known.max()))
            if site := found.where(values):
                median = _four_digits(abs(np.median(known)))
                words = f"worst {words} at {list(site)}, median over sites {median}"
                words += f", {found.coverage} looked at" if found.coverage else ""
            rows.append(_Worst(float(known.max()), name, f"{name} ({words})"))
    return sorted(rows, key=lambda row: -row.value)


def _worst_figures(figures: Mapping[str, FieldSummary]) -> list[str]:
    """One line with the worst of each figure, and of sites without them."""
    parts = []
    for words, of in (
        ("R-hat", lambda found: found.figures["rhat"]),
        ("bulk ESS", lambda found: -found.figures["ess_bulk"]),
        ("tail ESS", lambda found: -found.figures["ess_tail"]),
        ("error of a mean in sd", lambda found: found.relative_mcse),
    ):
        if worst := _worst_of(figures, of):
            parts.append(f"{words} {_four_digits(abs(worst[0].value))} ({worst[0].name})")
    some = [f"of {name} {found.coverage}" for name, found in figures.items() if found.coverage]
    looked = f"; {', '.join(some)} looked at" if some else ""
    lines = ["worst figures: " + ", ".join(parts) + looked] if parts else []
    for word, which in (
        ("constant", lambda found: found.constant),
        ("masked (NaN in every draw)", lambda found: np.isnan(found.figures["mean"])),
    ):
        counts = {name: int(which(found).sum()) for name, found in figures.items()}
        told = [
            f"{name} ({count} of {len(figures[name].sites)} sites)" if figures[name].shape else name
            for name, count in counts.items()
            if count
        ]
        lines += [f"{word}: {_listing(told)}"] if told else []
    return lines


def _listing(rows: Sequence[_Worst | str]) -> str:
    words = [row if isinstance(row, str) else row.words for row in rows[:MAX_NAMES]]
    more = len(rows) - MAX_NAMES
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _four_digits(value: Any) -> str:
    """Four digits, but no exponents of large counts."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
