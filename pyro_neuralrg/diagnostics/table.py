# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A table of a run that stays readable when its variables are fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyro_neuralrg.diagnostics.tree import group_of
from pyro_neuralrg.series.convergence import FieldSummary, Figures, summarise_field

__all__ = ["summary"]

#: A variable of more entries than this is shown by its worst entry and the median.
MOST_LINES = 12
#: ArviZ's names, in its order.
COLUMNS = {
    "mean": "mean",
    "sd": "sd",
    "mcse": "mcse_mean",
    "ess_bulk": "ess_bulk",
    "ess_tail": "ess_tail",
    "rhat": "r_hat",
}


def summary(
    idata: Any,
    *,
    var_names: Sequence[str] | None = None,
    group: str = "posterior",
    max_sites: int | None = None,
) -> Any:
    """Return mean, sd, standard error, effective sample sizes and R-hat of each variable.

    Scalars and observables have one line, variables of at most twelve entries one line per entry;
    a larger field has two: ``x[worst]``, the worst over sites of each figure by itself, and
    ``x[median]``. Of a large field a random choice of sites is looked at; the column ``sites``
    then says how many of how many.

    Args:
        idata: ArviZ's InferenceData or DataTree.
        var_names: variables to show; None takes all.
        group: of the container.
        max_sites: sites of a field to look at, at most.

    Returns:
        A pandas DataFrame with ArviZ's column names and one row per line.

    Raises:
        ValueError: if there is no such group or variable.

    Example:
        >>> import numpy as np
        >>> from pyro_neuralrg.diagnostics import make_tree
        >>> rng = np.random.default_rng(0)
        >>> draws = {"m": rng.normal(size=(4, 100)), "x": rng.normal(size=(4, 100, 4, 4))}
        >>> table = summary(make_tree({"posterior": draws}))
        >>> list(table.index), list(table.columns)[-2:]
        (['m', 'x[worst]', 'x[median]'], ['ess_tail', 'r_hat'])
    """
    import pandas as pd  # type: ignore[import-untyped]  # a dependency of ArviZ, slow to import

    dataset = group_of(idata, group)
    if dataset is None:
        raise ValueError(f"group is {group!r}; accepted: a group of idata")
    names = list(dataset.data_vars) if var_names is None else list(var_names)
    unknown = [name for name in names if name not in dataset.data_vars]
    if unknown:
        raise ValueError(f"var_names has {unknown}; accepted: {list(dataset.data_vars)}")
    lines: dict[str, dict[str, Any]] = {}
    for name in names:
        variable = dataset[name].transpose("chain", "draw", ...)
        found = summarise_field(variable.values, max_sites)
        for label, figures in _lines(name, variable, found):
            row = {title: getattr(figures, key) for key, title in COLUMNS.items()}
            lines[label] = {**row, "sites": found.coverage}
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table if any(table.get("sites", [])) else table.drop(columns="sites", errors="ignore")


def _lines(name: str, variable: Any, found: FieldSummary) -> Iterator[tuple[str, Figures]]:
    total = math.prod(found.shape)
    if total > MOST_LINES or found.coverage:
        yield f"{name}[worst]", found.worst()
        yield f"{name}[median]", found.median()
        return
    for place, flat in enumerate(found.sites):
        index = np.unravel_index(flat, found.shape)
        labels = [
            str(variable[dim].values[i]) if dim in variable.coords else str(i)
            for dim, i in zip(variable.dims[2:], index, strict=True)
        ]
        figures = Figures(**{key: float(found.figures[key][place]) for key in Figures._fields})
        yield f"{name}[{', '.join(labels)}]" if labels else name, figures
