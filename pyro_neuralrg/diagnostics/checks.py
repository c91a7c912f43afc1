# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of a run: each yields its findings in words, with the number and the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.statistics.draws import MIN_DRAWS
from pyro_neuralrg.statistics.summary import LARGEST_RHAT, FieldSummary, bfmi

#: Variables that a message names, at most.
MAX_NAMES = 4


@dataclass(frozen=True)
class Thresholds:
    """Limits beyond which :func:`diagnose` has a finding.

    Attributes:
        rhat: largest R-hat (Vehtari et al. 2021).
        ess: fewest effective samples of all chains together, bulk and tail (likewise).
        ess_per_chain: fewest per chain, for a note.
        relative_mcse: largest standard error of a mean in units of the standard deviation.
        divergent_fraction: fraction of divergent draws above which they are a problem; below it
            any is a note.
        bfmi: least fraction of missing information of a chain (Betancourt 2016).
        mode_gap: widest gap between medians of chains, in standard deviations within a chain.
        pareto_k: largest shape of the tail of importance weights (Vehtari et al. 2024).
    """

    rhat: float = LARGEST_RHAT
    ess: float = 400.0
    ess_per_chain: float = 100.0
    relative_mcse: float = 0.1
    divergent_fraction: float = 0.001
    bfmi: float = 0.3
    mode_gap: float = 3.0
    pareto_k: float = 0.7


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        name: ``too_short``, ``not_finite``, ``frozen_chains``, ``rhat``, ``ess``,
            ``ess_per_chain``, ``mcse``, ``separate_modes``, ``divergences``, ``bfmi``,
            ``pareto_k`` or ``single_chain``.
        severity: a ``problem`` makes the verdict bad, a ``note`` does not.
        message: in words, with variables and numbers.
        value: the number that led to it.
        threshold: what it was compared with.
    """

    name: str
    severity: Literal["problem", "note"]
    message: str
    value: float
    threshold: float


class Facts(NamedTuple):
    """Input of the checks: arrays ``(chains, draws, ...)`` and figures by variable."""

    draws: dict[str, NDArray[np.float64]]
    figures: dict[str, FieldSummary]
    stats: dict[str, NDArray[np.float64]]
    pareto_k: float
    at: Thresholds


# The checks ---------------------------------------------------------------------------------------


def _check_length(facts: Facts) -> Iterator[Finding]:
    chains, length = next((x.shape[:2] for x in facts.draws.values()), (0, MIN_DRAWS))
    if length < MIN_DRAWS:
        message = f"too short: {length} draws per chain, of which nothing can be told"
        yield Finding("too_short", "problem", message, length, MIN_DRAWS)
    elif chains == 1:
        message = "a single chain: no R-hat, and no other chain to show a mode that it missed"
        yield Finding("single_chain", "note", message, 1, 2)


def _check_finite(facts: Facts) -> Iterator[Finding]:
    counts = {name: int((~np.isfinite(values)).sum()) for name, values in facts.draws.items()}
    bad = sorted((-count, name) for name, count in counts.items() if count)
    if bad:
        listed = _listing([f"{name} ({-count} numbers)" for count, name in bad])
        message = f"not finite: {listed}; not looked at any further"
        yield Finding("not_finite", "problem", message, -bad[0][0], 0.0)


def _check_frozen_chains(facts: Facts) -> Iterator[Finding]:
    """Chains in which nothing ever changes; variables that are constants say nothing."""
    series = [facts.draws[name].reshape(*facts.draws[name].shape[:2], -1) for name in facts.figures]
    still = [np.ptp(x, axis=1).max(axis=-1) == 0 for x in series if np.ptp(x) > 0]
    if still and (number := int(np.all(still, axis=0).sum())):
        message = f"chains that never move: {number} of {len(still[0])}; every proposal was refused"
        yield Finding("frozen_chains", "problem", message, number, 0.0)


def _check_rhat(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.rhat
    bad = worst_of(facts.figures, lambda found: found.figures["rhat"], limit)
    if bad:
        message = f"not converged: R-hat > {limit:g} for {_described(bad, facts)}"
        yield Finding("rhat", "problem", message, bad[0].value, limit)


def _check_modes(facts: Facts) -> Iterator[Finding]:
    splits = [
        (*split_of_chains(facts.draws[name]), name)
        for name, found in facts.figures.items()
        if not found.shape and len(facts.draws[name]) > 1
    ]
    limit = facts.at.mode_gap
    bad = sorted((split for split in splits if split[0] > limit), key=lambda split: -split[0])
    if bad:
        words = [
            f"{name} ({len(low)} near {four_digits(np.median(low))}, {len(high)} near "
            f"{four_digits(np.median(high))}, {four_digits(gap)} sd of a chain apart)"
            for gap, low, high, name in bad
        ]
        message = f"chains stay in different modes of {_listing(words)}"
        yield Finding("separate_modes", "problem", message, bad[0][0], limit)


def _check_effective_samples(facts: Facts) -> Iterator[Finding]:
    def fewest(found: FieldSummary) -> NDArray[np.float64]:  # the sign turns fewest into largest
        return -np.fmin(found.figures["ess_bulk"], found.figures["ess_tail"])

    limit, per_chain = facts.at.ess, facts.at.ess_per_chain
    chains = next((len(x) for x in facts.draws.values()), 0)
    if bad := worst_of(facts.figures, fewest, -limit):
        message = f"too few effective samples: below {limit:g} for {_described(bad, facts)}"
        yield Finding("ess", "problem", message, -bad[0].value, limit)
    elif few := worst_of(facts.figures, fewest, -per_chain * chains):
        each = -few[0].value / chains
        message = (
            f"few effective samples of each chain: {four_digits(each)} for {few[0].name}, below "
            f"{per_chain:g}; R-hat judges single chains by few"
        )
        yield Finding("ess_per_chain", "note", message, each, per_chain)


def _check_errors(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.relative_mcse
    bad = worst_of(facts.figures, lambda found: found.relative_mcse, limit)
    if bad:
        which = _described(bad, facts)
        message = f"large errors of means: above {limit:g} standard deviations for {which}"
        yield Finding("mcse", "problem", message, bad[0].value, limit)


def _check_divergences(facts: Facts) -> Iterator[Finding]:
    diverging = facts.stats.get("diverging", np.zeros((1, 1)))
    number, fraction, limit = diverging.sum(), diverging.mean(), facts.at.divergent_fraction
    if number:
        message = (
            f"divergences: {number:.0f} of {diverging.size} draws "
            f"({four_digits(100 * fraction)} %), in {diverging.any(axis=1).sum()} of "
            f"{len(diverging)} chains; regions of high curvature may be missed"
        )
        severity: Literal["problem", "note"] = "problem" if fraction > limit else "note"
        yield Finding("divergences", severity, message, float(fraction), limit)


def _check_energy_changes(facts: Facts) -> Iterator[Finding]:
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
            f"{four_digits(least)}, median {four_digits(np.nanmedian(found))}); momenta do not "
            "carry the chains through the energies of the target"
        )
        yield Finding("bfmi", "problem", message, least, limit)


def _check_weights(facts: Facts) -> Iterator[Finding]:
    k, limit = facts.pareto_k, facts.at.pareto_k
    if k > limit:
        message = (
            f"heavy tail of the importance weights: k-hat {four_digits(k)} > {limit:g}; neither "
            "their means nor the error bars of these can be trusted"
        )
        yield Finding("pareto_k", "problem", message, k, limit)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _check_length,
    _check_finite,
    _check_frozen_chains,
    _check_rhat,
    _check_modes,
    _check_effective_samples,
    _check_errors,
    _check_divergences,
    _check_energy_changes,
    _check_weights,
)


def split_of_chains(
    values: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The widest gap between the medians of chains, and the medians on either side of it.

    The gap is in standard deviations within a chain; NaN where no chain varies. Chains of the same
    distribution with ten or more effective draws each have gaps well below three. Chains that visit
    both of two modes in equal shares have a standard deviation of half their distance or more, so
    their gap is two at most. Medians, since a single far draw moves the mean of a chain with heavy
    tails.
    """
    medians = np.sort(np.median(values, axis=1))
    within = float(np.median(values.std(axis=1)))
    gaps = np.diff(medians)
    cut = int(np.argmax(gaps)) + 1
    gap = float(gaps[cut - 1]) / within if within > 0 else math.nan
    return gap, medians[:cut], medians[cut:]


# Words --------------------------------------------------------------------------------------------


class Worst(NamedTuple):
    """The largest value over the sites of a variable, its site, and the median."""

    value: float
    name: str
    site: tuple[int, ...]
    median: float


def worst_of(
    figures: Mapping[str, FieldSummary],
    of: Callable[[FieldSummary], NDArray[np.float64]],
    above: float = -math.inf,
) -> list[Worst]:
    """Variables with values above the threshold, the largest first; NaNs are left out."""
    rows = []
    for name, found in figures.items():
        values = of(found)
        known = values[~np.isnan(values)]
        if known.size and known.max() > above:
            site, median = found.where(values), float(np.median(known))
            rows.append(Worst(float(known.max()), name, site, median))
    return sorted(rows, key=lambda row: -row.value)


def _described(rows: Sequence[Worst], facts: Facts) -> str:
    """Each variable with its number; of fields the worst site and the median over sites."""
    words = []
    for row in rows:
        number, coverage = four_digits(abs(row.value)), facts.figures[row.name].coverage
        if row.site:
            median = four_digits(abs(row.median))
            number = f"worst {number} at {list(row.site)}, median over sites {median}"
            number += f", {coverage} looked at" if coverage else ""
        words.append(f"{row.name} ({number})")
    return _listing(words)


def _listing(words: Sequence[str]) -> str:
    more = len(words) - MAX_NAMES
    return ", ".join(words[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def four_digits(value: Any) -> str:
    """Four digits, but no exponents of large counts."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
