# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Groups of arrays as ArviZ holds them: one code path for ArviZ 0.x and 1.x, plain numpy in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pyro_neuralrg.series import arviz_module, quiet

__all__ = ["make_tree", "save_tree"]


def make_tree(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Return ArviZ's container: an InferenceData (ArviZ 0.x) or an xarray DataTree (ArviZ 1.x).

    Args:
        groups: by group name, arrays ``(chains, draws) + shape`` by variable name.
        dims: names of the dimensions after chain and draw, by variable name.
        coords: values along named dimensions; 0, 1, ... if not given.
        attrs: of every group.

    Raises:
        ValueError: if an array has no chain and draw dimensions.

    Example:
        >>> import numpy as np
        >>> tree = make_tree({"posterior": {"x": np.zeros((2, 5, 3))}}, dims={"x": ["site"]})
        >>> tree.posterior["x"].dims
        ('chain', 'draw', 'site')
    """
    az = arviz_module()
    for group, variables in groups.items():
        for name, value in variables.items():
            if value.ndim < 2:
                raise ValueError(
                    f"{group}[{name!r}] has shape {value.shape}; accepted: (chains, draws, ...)"
                )
    known = {} if dims is None else {name: list(value) for name, value in dims.items()}
    datasets = {}
    for group, variables in groups.items():
        used = {name: known[name] for name in variables if name in known}
        present = {dim for names in used.values() for dim in names}
        chosen = {} if coords is None else {k: list(v) for k, v in coords.items() if k in present}
        with quiet():
            datasets[group] = az.dict_to_dataset(
                dict(variables), dims=used, coords=chosen, attrs=dict(attrs or {})
            )
    if _is_tree(az):
        import xarray  # a dependency of ArviZ

        return xarray.DataTree.from_dict(datasets)
    with warnings.catch_warnings():  # 0.x complains about groups it does not know
        warnings.simplefilter("ignore", UserWarning)
        return az.InferenceData(**datasets)


def save_tree(tree: Any, path: str | Path) -> None:
    """Write what :func:`make_tree` returned to a netCDF file, through h5netcdf."""
    tree.to_netcdf(str(path), engine="h5netcdf")


def _is_tree(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) >= 1
