# SPDX-License-Identifier: Apache-2.0
"""Checks of a run: each looks at one thing, and returns a finding or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pyro_neuralrg.arguments import check_number, see
from pyro_neuralrg.statistics import FieldSummary, FloatArray, bfmi
from pyro_neuralrg.statistics.draws import MIN_DRAWS, share_at_an_end
from pyro_neuralrg.statistics.summary import LARGEST_RHAT

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
            ``interval_end``, ``pareto_k``, ``single_chain`` or ``biased``.
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


class Facts(NamedTuple):
    """Input of the checks: arrays ``(chains, draws, ...)`` and figures by variable."""

    draws: Mapping[str, FloatArray]  # zero where a field is masked
    figures: Mapping[str, FieldSummary]  # NaN there
    stats: Mapping[str, FloatArray]
    unconstrained: Mapping[str, FloatArray]
    pareto_k: float
    at: Thresholds
    biased: bool

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of chains and of draws, zero without draws."""
        chains, draws = next((x.shape[:2] for x in self.draws.values()), (0, 0))
        return chains, draws


def _check_length(facts: Facts) -> Finding | None:
    chains, length = facts.size
    if facts.draws and length < MIN_DRAWS:
        message = f"too short: {length} draws per chain, of which nothing can be told"
        return Finding("too_short", "problem", message, length, MIN_DRAWS)
    if chains == 1:
        message = "a single chain: no R-hat, and no other chain to show a mode that it missed"
        return Finding("single_chain", "note", message, 1, 2)
    return None


def _check_finite(facts: Facts) -> Finding | None:
    counts = {name: int((~np.isfinite(x)).sum()) for name, x in facts.draws.items()}
    rows = [Worst(n, name, f"{name} ({n} numbers)") for name, n in counts.items() if n]
    return _listed("not_finite", rows, 0.0, "not finite:", "; not looked at any further")


def _check_frozen_chains(facts: Facts) -> Finding | None:
    """Chains in which nothing ever changes; variables that are constants say nothing."""
    series = [facts.draws[name].reshape(*facts.size, -1) for name in facts.figures]
    still = [np.ptp(x, axis=1).max(axis=-1) == 0 for x in series if np.ptp(x) > 0]
    number = int(np.all(still, axis=0).sum()) if still else 0
    message = f"chains that never move: {number} of {facts.size[0]}; every proposal was refused"
    return Finding("frozen_chains", "problem", message, number, 0.0) if number else None


def _check_rhat(facts: Facts) -> Finding | None:
    limit = facts.at.rhat
    bad = worst_of(facts.figures, lambda found: found.figures["rhat"], limit)
    before = f"not converged: R-hat > {limit:g} for"
    return _listed("rhat", bad, limit, before, see("warning-rhat"))


def _check_modes(facts: Facts) -> Finding | None:
    limit, bad = facts.at.mode_gap, []
    for name, found in facts.figures.items():
        if found.shape or facts.size[0] == 1 or found.constant.all():
            continue
        gap, low, high = split_of_chains(facts.draws[name])
        if gap > limit:
            words = (
                f"{name} ({len(low)} near {four_digits(np.median(low))}, {len(high)} near "
                f"{four_digits(np.median(high))}, {four_digits(gap)} sd of a chain apart)"
            )
            bad.append(Worst(gap, name, words))
    return _listed("separate_modes", bad, limit, "chains stay in different modes of")


def _check_effective_samples(facts: Facts) -> Finding | None:
    def fewest(found: FieldSummary) -> FloatArray:  # the sign turns fewest into largest
        return -np.fmin(found.figures["ess_bulk"], found.figures["ess_tail"])

    limit, per_chain, chains = facts.at.ess, facts.at.ess_per_chain, facts.size[0]
    bad = worst_of(facts.figures, fewest, -limit)
    few = worst_of(facts.figures, fewest, -per_chain * chains)
    if bad or not few:
        return _listed("ess", bad, limit, f"too few effective samples: below {limit:g} for")
    each = -few[0].value / chains
    message = (
        f"few effective samples of each chain: {four_digits(each)} for {few[0].name}, below "
        f"{per_chain:g}; R-hat judges single chains by few"
    )
    return Finding("ess_per_chain", "note", message, each, per_chain)


def _check_errors(facts: Facts) -> Finding | None:
    limit = facts.at.relative_mcse
    bad = worst_of(facts.figures, lambda found: found.relative_mcse, limit)
    before = f"large errors of means: above {limit:g} standard deviations for"
    return _listed("mcse", bad, limit, before)


def _check_lost_ends(facts: Facts) -> Finding | None:
    """Draws that are one number with others close to it: unconstrained they are no more told."""
    rows: list[Worst] = []
    for name, found in facts.figures.items():
        values, free = facts.draws[name], facts.unconstrained.get(name, facts.draws[name])
        flat, free = (x.reshape(*facts.size, -1) for x in (values, free))
        for site in found.sites[~found.constant] if free.shape == flat.shape else ():
            share, end = share_at_an_end(flat[..., site])
            if share > facts.at.at_end and np.ptp(free[..., site][flat[..., site] == end]) <= 1.0:
                place = list(map(int, np.unravel_index(site, found.shape))) if found.shape else ""
                rows.append(Worst(share, name, _at_end(share, f"{name}{place}", end)))
    before = "draws at an end of their interval:"
    after = "; the dtype cannot tell what lies nearer to it: run in float64"
    return _listed("interval_end", rows, facts.at.at_end, before, after)


def _check_rounded_ends(facts: Facts) -> Finding | None:
    """Draws that are one number on an interval, and far apart where they are unconstrained."""
    rows: list[Worst] = []
    for name in facts.draws.keys() & facts.unconstrained.keys():
        values, free = facts.draws[name], facts.unconstrained[name]
        for end in {values.min(), values.max()} if values.shape == free.shape else ():
            there = values == end
            share = float(there.mean())
            if share > facts.at.at_end and np.ptp(free[there]) > 1.0:
                rows.append(Worst(share, name, _at_end(share, name, end)))
    before = "draws at the end of an interval:"
    after = "; functions of the draws and a likelihood of them are rounded there"
    return _listed("interval_end", rows, facts.at.at_end, before, after, "note")


def _at_end(share: float, name: str, end: float) -> str:
    return f"{four_digits(100 * share)} % of {name} at {end:.9g}"


def _check_divergences(facts: Facts) -> Finding | None:
    diverging = facts.stats.get("diverging", np.zeros((1, 1)))
    number, fraction, limit = diverging.sum(), float(diverging.mean()), facts.at.divergent_fraction
    if not number:
        return None
    message = (
        f"divergences: {number:.0f} of {diverging.size} draws ({four_digits(100 * fraction)} %), "
        f"in {diverging.any(axis=1).sum()} of {len(diverging)} chains; regions of high curvature "
        "may be missed"
    )
    severity: Severity = "problem" if fraction > limit else "note"
    return Finding("divergences", severity, message, fraction, limit)


def _check_energy_changes(facts: Facts) -> Finding | None:
    energy, lp = facts.stats.get("energy"), facts.stats.get("lp")
    if energy is None or energy.shape[1] < MIN_DRAWS or not np.isfinite(energy).all():
        return None
    if lp is not None and np.allclose(energy, -lp):
        return None  # a kernel without momenta
    found, limit = bfmi(energy), facts.at.bfmi
    low, least = int((found < limit).sum()), float(np.nanmin(found, initial=np.inf))
    if not low:
        return None
    message = (
        f"low BFMI: below {limit:g} in {low} of {len(found)} chains (least {four_digits(least)}, "
        f"median {four_digits(np.nanmedian(found))}); momenta do not carry the chains through the "
        "energies of the target"
    )
    return Finding("bfmi", "problem", message, least, limit)


def _check_weights(facts: Facts) -> Finding | None:
    k, limit = facts.pareto_k, facts.at.pareto_k
    message = (
        f"heavy tail of the importance weights: k-hat {four_digits(k)} > {limit:g}; neither "
        "their means nor the error bars of these can be trusted"
    )
    return Finding("pareto_k", "problem", message, k, limit) if k > limit else None


def _check_bias(facts: Facts) -> Finding | None:
    message = (
        "biased: nothing was rejected, and draws are of another density than the target's, by what "
        "grows with the step size; no figure here shows it, a run of MAMS would"
    )
    return Finding("biased", "note", message, 1, 0) if facts.biased else None


CHECKS: tuple[Callable[[Facts], Finding | None], ...] = (
    _check_length,
    _check_finite,
    _check_frozen_chains,
    _check_rhat,
    _check_modes,
    _check_effective_samples,
    _check_errors,
    _check_divergences,
    _check_energy_changes,
    _check_lost_ends,
    _check_rounded_ends,
    _check_weights,
    _check_bias,
)


def split_of_chains(values: FloatArray) -> tuple[float, FloatArray, FloatArray]:
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


class Worst(NamedTuple):
    """The largest value over the sites of a variable, also in words."""

    value: float
    name: str
    words: str


def worst_of(
    figures: Mapping[str, FieldSummary],
    of: Callable[[FieldSummary], FloatArray],
    above: float = -math.inf,
) -> list[Worst]:
    """Variables with values above the threshold, the largest first; NaNs are left out."""
    rows = []
    for name, found in figures.items():
        values = of(found)
        known = values[~np.isnan(values)]
        if known.size and known.max() > above:
            words = four_digits(abs(known.max()))
            if site := found.where(values):
                median = four_digits(abs(np.median(known)))
                words = f"worst {words} at {list(site)}, median over sites {median}"
                words += f", {found.coverage} looked at" if found.coverage else ""
            rows.append(Worst(float(known.max()), name, f"{name} ({words})"))
    return sorted(rows, key=lambda row: -row.value)


def listing(rows: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(rows) - MAX_NAMES} more" if len(rows) > MAX_NAMES else ""
    return ", ".join(rows[:MAX_NAMES]) + more


def _listed(
    name: str,
    rows: Sequence[Worst],
    limit: float,
    before: str,
    after: str = "",
    severity: Severity = "problem",
) -> Finding | None:
    """The finding that lists these rows, the worst first; None without any."""
    if not rows:
        return None
    ordered = sorted(rows, reverse=True)
    message = f"{before} {listing([row.words for row in ordered])}{after}"
    return Finding(name, severity, message, abs(ordered[0].value), limit)


def four_digits(value: Any) -> str:
    """Four digits, but no exponents of large counts."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
