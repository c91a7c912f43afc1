# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The checks of a run: each yields what it finds, in words, with the number and the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.diagnostics.modes import critical_dip, dip, split_of_chains
from pyro_neuralrg.statistics.convergence import LARGEST_RHAT, FieldSummary, bfmi
from pyro_neuralrg.statistics.draws import MIN_DRAWS

__all__ = ["CHECKS", "Facts", "Finding", "Thresholds", "short", "worst_of"]

#: Variables that a message names, at most.
MOST_NAMES = 4
#: Of fewer independent draws the number of humps is not judged.
LEAST_FOR_HUMPS = 100

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """What counts as a finding.

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
            ``ess_per_chain``, ``mcse``, ``separate_modes``, ``two_humps``, ``divergences``,
            ``bfmi``, ``pareto_k`` or ``single_chain``.
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
    """What the checks look at: arrays ``(chains, draws, ...)``."""

    draws: dict[str, Array]
    figures: dict[str, FieldSummary]
    stats: dict[str, Array]
    pareto_k: float
    at: Thresholds


# The checks ---------------------------------------------------------------------------------------


def _length(facts: Facts) -> Iterator[Finding]:
    if not facts.draws:
        return
    chains, length = next(iter(facts.draws.values())).shape[:2]
    if length < MIN_DRAWS:
        message = f"too short: {length} draws per chain, of which nothing can be told"
        yield Finding("too_short", "problem", message, length, MIN_DRAWS)
    elif chains == 1:
        message = "a single chain: no R-hat, and no other chain to show a mode that it missed"
        yield Finding("single_chain", "note", message, 1, 2)


def _not_finite(facts: Facts) -> Iterator[Finding]:
    counts = {name: int((~np.isfinite(values)).sum()) for name, values in facts.draws.items()}
    bad = sorted((-count, name) for name, count in counts.items() if count)
    if bad:
        listed = _listing([f"{name} ({-count} numbers)" for count, name in bad])
        message = f"not finite: {listed}; not looked at any further"
        yield Finding("not_finite", "problem", message, float(-bad[0][0]), 0.0)


def _frozen(facts: Facts) -> Iterator[Finding]:
    """Chains in which nothing ever changes; variables that are constants say nothing."""
    still = [
        np.ptp(flat, axis=1).max(axis=-1) == 0
        for name in facts.figures
        for flat in [facts.draws[name].reshape(*facts.draws[name].shape[:2], -1)]
        if np.ptp(flat) > 0
    ]
    if still and (number := int(np.all(still, axis=0).sum())):
        message = f"chains that never move: {number} of {len(still[0])}; every proposal was refused"
        yield Finding("frozen_chains", "problem", message, number, 0.0)


def _rhat(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.rhat
    bad = worst_of(facts.figures, lambda found: found.figures["rhat"], limit)
    if bad:
        message = f"not converged: R-hat > {limit:g} for {_described(bad, facts)}"
        yield Finding("rhat", "problem", message, bad[0][0], limit)


def _effective(facts: Facts) -> Iterator[Finding]:
    if not facts.figures:
        return

    def fewest(found: FieldSummary) -> Array:  # the sign turns fewest into largest
        return -np.fmin(found.figures["ess_bulk"], found.figures["ess_tail"])

    chains = next(iter(facts.draws.values())).shape[0]
    limit, per_chain = facts.at.ess, facts.at.ess_per_chain
    bad = worst_of(facts.figures, fewest, -limit)
    if bad:
        message = f"too few effective samples: below {limit:g} for {_described(bad, facts)}"
        yield Finding("ess", "problem", message, -bad[0][0], limit)
        return
    few = worst_of(facts.figures, fewest, -per_chain * chains)
    if few:
        each = -few[0][0] / chains
        message = (
            f"few effective samples of each chain: {short(each)} for {few[0][1]}, below "
            f"{per_chain:g}; R-hat judges single chains by few"
        )
        yield Finding("ess_per_chain", "note", message, each, per_chain)


def _error(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.relative_mcse
    bad = worst_of(facts.figures, lambda found: found.relative_mcse, limit)
    if bad:
        message = (
            f"large errors of means: above {limit:g} standard deviations for "
            f"{_described(bad, facts)}"
        )
        yield Finding("mcse", "problem", message, bad[0][0], limit)


def _modes(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.mode_gap
    splits = [
        (split_of_chains(facts.draws[name]), name)
        for name, found in facts.figures.items()
        if not found.shape and len(facts.draws[name]) > 1
    ]
    bad = sorted((s for s in splits if s[0].gap > limit), key=lambda s: -s[0].gap)
    if bad:
        listed = _listing(
            [
                f"{name} ({s.low} near {short(s.low_median)}, {s.high} near "
                f"{short(s.high_median)}, {short(s.gap)} sd of a chain apart)"
                for s, name in bad
            ]
        )
        message = f"chains stay in different modes of {listed}"
        yield Finding("separate_modes", "problem", message, bad[0][0].gap, limit)


def _humps(facts: Facts) -> Iterator[Finding]:
    name = "energy" if facts.figures.get("energy") and facts.draws["energy"].ndim == 2 else "lp"
    found = facts.figures.get(name)
    if found is None or found.shape:
        return
    values = facts.draws[name]
    effective = float(found.figures["ess_bulk"][0])
    if not effective >= LEAST_FOR_HUMPS:
        return
    every = max(1, math.ceil(values.size / effective))  # draws that are nearly independent
    independent = values[:, ::every].reshape(-1)
    value, limit = dip(independent), critical_dip(independent.size)
    if independent.size >= LEAST_FOR_HUMPS and value > limit:
        message = (
            f"two humps of {name}: dip {short(value)} of {independent.size} draws, above "
            f"{short(limit)}; if they are two phases, check that every chain crosses often"
        )
        yield Finding("two_humps", "note", message, value, limit)


def _divergences(facts: Facts) -> Iterator[Finding]:
    diverging = facts.stats.get("diverging")
    if diverging is None or not diverging.any():
        return
    number, fraction = int(diverging.sum()), float(diverging.mean())
    limit = facts.at.divergent_fraction
    message = (
        f"divergences: {number} of {diverging.size} draws ({short(100 * fraction)} %), in "
        f"{int(diverging.any(axis=1).sum())} of {len(diverging)} chains; regions of high curvature "
        "may be missed"
    )
    yield Finding(
        "divergences", "problem" if fraction > limit else "note", message, fraction, limit
    )


def _energy_changes(facts: Facts) -> Iterator[Finding]:
    energy, lp = facts.stats.get("energy"), facts.stats.get("lp")
    if energy is None or energy.shape[1] < MIN_DRAWS or not np.isfinite(energy).all():
        return
    if lp is not None and np.allclose(energy, -lp):
        return  # a kernel without momenta
    found, limit = bfmi(energy), facts.at.bfmi
    low = np.flatnonzero(found < limit)
    if low.size:
        message = (
            f"low BFMI: below {limit:g} in {low.size} of {len(found)} chains (least "
            f"{short(float(np.nanmin(found)))}, median {short(float(np.nanmedian(found)))}); "
            "momenta do not carry the chains through the energies of the target"
        )
        yield Finding("bfmi", "problem", message, float(np.nanmin(found)), limit)


def _weights(facts: Facts) -> Iterator[Finding]:
    limit = facts.at.pareto_k
    if facts.pareto_k > limit:
        message = (
            f"heavy tail of the importance weights: k-hat {short(facts.pareto_k)} > {limit:g}; "
            "neither their means nor the error bars of these can be trusted"
        )
        yield Finding("pareto_k", "problem", message, facts.pareto_k, limit)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _length,
    _not_finite,
    _frozen,
    _rhat,
    _modes,
    _effective,
    _error,
    _divergences,
    _energy_changes,
    _humps,
    _weights,
)


# Words --------------------------------------------------------------------------------------------


class _Worst(NamedTuple):
    """The largest value over the sites of a variable."""

    value: float
    name: str
    site: tuple[int, ...]
    median: float


def worst_of(
    figures: Mapping[str, FieldSummary],
    of: Callable[[FieldSummary], Array],
    above: float = -math.inf,
) -> list[_Worst]:
    """Variables with values above the threshold, the largest first; NaNs are left out."""
    rows = []
    for name, found in figures.items():
        values = of(found)
        known = values[~np.isnan(values)]
        if known.size and known.max() > above:
            rows.append(
                _Worst(float(known.max()), name, found.where(values), float(np.median(known)))
            )
    return sorted(rows, key=lambda row: -row.value)


def _described(rows: Sequence[_Worst], facts: Facts) -> str:
    """Each variable with its number; of fields the worst site and the median over sites."""
    words = []
    for row in rows:
        number = short(abs(row.value))
        if row.site:
            found = facts.figures[row.name]
            seen = f", {found.coverage} looked at" if found.coverage else ""
            median = short(abs(row.median))
            number = f"worst {number} at {list(row.site)}, median over sites {median}{seen}"
        words.append(f"{row.name} ({number})")
    return _listing(words)


def _listing(words: Sequence[str]) -> str:
    more = len(words) - MOST_NAMES
    return ", ".join(words[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def short(value: float) -> str:
    """Four digits, but no exponents of large counts."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
