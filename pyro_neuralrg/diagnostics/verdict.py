# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A short verdict on a run in words, with the numbers that led to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.diagnostics.checks import (
    CHECKS,
    Facts,
    Finding,
    Thresholds,
    four_digits,
    worst_of,
)
from pyro_neuralrg.diagnostics.tree import check_names, group_of
from pyro_neuralrg.statistics.draws import MIN_DRAWS
from pyro_neuralrg.statistics.summary import FieldSummary, summarise_field


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The verdict of :func:`diagnose`; it prints as text.

    Attributes:
        chains: of the posterior, 0 if there is none.
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
        """Whether there is no problem."""
        return not any(finding.severity == "problem" for finding in self.findings)

    def __repr__(self) -> str:
        problems = sum(finding.severity == "problem" for finding in self.findings)
        verdict = {0: "no problem found", 1: "1 problem"}.get(problems, f"{problems} problems")
        of = f"{self.chains} chains x {self.draws} draws: " if self.chains else ""
        lines = [of + verdict]
        lines += [f"- {finding.severity}: {finding.message}" for finding in self.findings]
        return "\n".join([*lines, *self._figures()])

    def _figures(self) -> list[str]:
        """One line with the worst of each figure."""
        parts = []
        for words, of in (
            ("R-hat", lambda found: found.figures["rhat"]),
            ("bulk ESS", lambda found: -found.figures["ess_bulk"]),
            ("tail ESS", lambda found: -found.figures["ess_tail"]),
            ("error of a mean in sd", lambda found: found.relative_mcse),
        ):
            worst = worst_of(self.figures, of)
            if worst:
                parts.append(f"{words} {four_digits(abs(worst[0].value))} ({worst[0].name})")
        covered = {name: found.coverage for name, found in self.figures.items() if found.coverage}
        some = ", ".join(f"of {name} {coverage}" for name, coverage in covered.items())
        looked = f"; {some} looked at" if some else ""
        return ["worst figures: " + ", ".join(parts) + looked] if parts else []


def diagnose(
    idata: Any,
    *,
    var_names: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    max_sites: int | None = None,
) -> Diagnosis:
    """Say in words whether a run can be trusted, and what speaks against it.

    Of fields, the worst site and the median over sites are told, never each site; of large ones a
    random choice of sites is looked at (:func:`~pyro_neuralrg.statistics.summarise_field`), and the
    text says so. A run without a problem has not been shown to be right: chains that all missed the
    same mode agree with each other.

    How often exact, independent draws are accused: R-hat of one variable exceeds 1.01 by chance in
    10 % of runs of four chains of 100 draws, 3 % at 150, 0.2 % at 250, and never in 400 runs of
    500. More chains do not help, more effective draws of each do: 26 % at 64 chains of 16 draws,
    never in 200 runs of 50. Gaps between chains stay below 1.5 for seven draws each, and the
    threshold is three.

    Args:
        idata: ArviZ's InferenceData or DataTree, of :func:`to_arviz`, :func:`make_tree`,
            :func:`weights_to_arviz` or another library; groups ``posterior``, ``sample_stats`` and
            ``importance`` are looked at.
        var_names: variables of the posterior to look at; None takes all, and ``lp``.
        thresholds: what counts as a finding.
        max_sites: sites of a field to look at, at most.

    Returns:
        A :class:`Diagnosis`.

    Raises:
        ValueError: if there is neither a posterior nor importance weights, or ``var_names`` has
            others than those of the posterior.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, "Rank-normalization, folding, and
        localization: an improved R-hat", Bayesian Analysis 16 (2021). Betancourt, "Diagnosing
        suboptimal cotangent disintegrations in Hamiltonian Monte Carlo", arXiv:1604.00695 (2016).

    Example:
        >>> import numpy as np
        >>> from pyro_neuralrg.diagnostics import make_tree
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> diagnose(make_tree({"posterior": {"m": draws}})).ok
        True
        >>> stuck = draws * 0.1 + np.array([[-1.0], [-1.0], [1.0], [1.0]])
        >>> for finding in diagnose(make_tree({"posterior": {"m": stuck}})).findings[:2]:
        ...     print(finding.name, finding.value > finding.threshold)
        rhat True
        separate_modes True
    """
    posterior, importance = group_of(idata, "posterior"), group_of(idata, "importance")
    if posterior is None and importance is None:
        raise ValueError("idata has neither posterior nor importance; accepted: one of them")
    draws = _variables(posterior, var_names)
    stats = _variables(group_of(idata, "sample_stats"), None)
    if var_names is None and "lp" in stats and "lp" not in draws:
        draws["lp"] = stats["lp"]
    finite = {name: bool(np.isfinite(values).all()) for name, values in draws.items()}
    chains, length = next(iter(draws.values())).shape[:2] if draws else (0, 0)
    figures = {
        name: summarise_field(values, max_sites)
        for name, values in draws.items()
        if finite[name] and length >= MIN_DRAWS
    }
    k = math.nan if importance is None else float(importance.attrs.get("pareto_k", math.nan))
    facts = Facts(draws, figures, stats, k, Thresholds() if thresholds is None else thresholds)
    findings = [finding for check in CHECKS for finding in check(facts)]
    findings.sort(key=lambda finding: finding.severity != "problem")
    return Diagnosis(chains, length, figures, tuple(findings))


def _variables(group: Any, var_names: Sequence[str] | None) -> dict[str, NDArray[np.float64]]:
    """Arrays of a group with chains and draws first."""
    if group is None:
        return {}
    known = [name for name in group.data_vars if {"chain", "draw"} <= set(group[name].dims)]
    check_names("var_names", var_names, known)
    return {
        str(name): np.asarray(group[name].transpose("chain", "draw", ...), dtype=np.float64)
        for name in (known if var_names is None else var_names)
        if group[name].size
    }
