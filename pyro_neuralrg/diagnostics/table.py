# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A table of a run that stays readable when its variables are fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_neuralrg.diagnostics.tree import group_of
from pyro_neuralrg.statistics.table import summary_table

__all__ = ["summary"]


def summary(
    idata: Any,
    *,
    var_names: Sequence[str] | None = None,
    group: str = "posterior",
    max_sites: int | None = None,
) -> Any:
    """Return mean, sd, standard error, effective sample sizes and R-hat of each variable.

    One line per scalar or observable, two per field: see
    :func:`~pyro_neuralrg.statistics.summary_table`.

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
    dataset = group_of(idata, group)
    if dataset is None:
        raise ValueError(f"group is {group!r}; accepted: a group of idata")
    names = list(dataset.data_vars) if var_names is None else list(var_names)
    unknown = [name for name in names if name not in dataset.data_vars]
    if unknown:
        raise ValueError(f"var_names has {unknown}; accepted: {list(dataset.data_vars)}")
    variables = {name: dataset[name].transpose("chain", "draw", ...) for name in names}
    return summary_table(
        {name: variable.values for name, variable in variables.items()},
        {name: _labels(variable) for name, variable in variables.items()},
        max_sites,
    )


def _labels(variable: Any) -> list[Any]:
    """Coordinates along each dimension after chain and draw, or plain numbers."""
    sizes = zip(variable.dims[2:], variable.shape[2:], strict=True)
    return [variable[dim].values if dim in variable.coords else range(size) for dim, size in sizes]
