# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A table of draws that stays readable when some of them are fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyro_neuralrg.statistics.convergence import FieldSummary, summarise_field
from pyro_neuralrg.statistics.summary import Summary

MAX_LINES = 12
"""A variable of more entries is shown by its worst entry and the median."""

COLUMNS = {
    "mean": "mean",
    "sd": "sd",
    "mcse": "mcse_mean",
    "ess_bulk": "ess_bulk",
    "ess_tail": "ess_tail",
    "rhat": "r_hat",
}
"""ArviZ's names, in its order."""


def summary_table(
    draws: Mapping[str, Any],
    max_sites: int | None = None,
) -> Any:
    """Mean, sd, standard error, effective sample sizes and R-hat of each variable.

    Scalars have one line, variables of at most twelve entries one line per entry; a larger field
    has two: ``x[worst]``, the worst over sites of each figure by itself, and ``x[median]``. Of a
    large field a random choice of sites is evaluated; the column ``sites`` then says how many.

    Args:
        draws: by name, arrays or tensors of shape ``(chains, draws) + shape``.
        max_sites: sites of a field to evaluate, at most.

    Returns:
        A pandas DataFrame with ArviZ's column names and one row per line.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draws = {"m": rng.normal(size=(4, 100)), "x": rng.normal(size=(4, 100, 4, 4))}
        >>> list(summary_table(draws).index)
        ['m', 'x[worst]', 'x[median]']
    """
    import pandas as pd  # type: ignore[import-untyped]  # a dependency of ArviZ, slow to import

    lines: dict[str, dict[str, Any]] = {}
    for name, values in draws.items():
        found = summarise_field(values, max_sites)
        for label, figures in _lines(name, found):
            row = {title: getattr(figures, key) for key, title in COLUMNS.items()}
            lines[label] = {**row, "sites": found.coverage}
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table if any(table.get("sites", [])) else table.drop(columns="sites", errors="ignore")


def _lines(name: str, found: FieldSummary) -> Iterator[tuple[str, Summary]]:
    if math.prod(found.shape) > MAX_LINES or found.coverage:
        yield f"{name}[worst]", found.worst()
        yield f"{name}[median]", found.median()
        return
    for place, flat in enumerate(found.sites):
        words = map(str, np.unravel_index(flat, found.shape))
        figures = Summary(**{key: float(found.figures[key][place]) for key in Summary._fields})
        yield f"{name}[{', '.join(words)}]" if found.shape else name, figures
