# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Groups of arrays as ArviZ holds them: one code path for ArviZ 0.x and 1.x, plain numpy in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pyro_neuralrg.statistics import arviz_module, quiet

__all__ = ["group_of", "make_tree", "save_tree"]


#: Groups that have no draws, in ArviZ's scheme, and our own group of independent weighted draws.
WITHOUT_CHAINS = ("observed_data", "constant_data", "importance")


def make_tree(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    group_attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return ArviZ's container: an InferenceData (ArviZ 0.x) or an xarray DataTree (ArviZ 1.x).

    Args:
        groups: by group name, arrays ``(chains, draws) + shape`` by variable name; of the groups
            ``observed_data``, ``constant_data`` and ``importance``, arrays of any shape.
        dims: names of the dimensions after chain and draw (of the groups without chains, of all
            dimensions), by variable name, or by ``group/name`` for one group alone.
        coords: values along named dimensions; 0, 1, ... if not given.
        attrs: of every group.
        group_attrs: of single groups, beside those.

    Raises:
        ValueError: if an array has no chain and draw dimensions, or more or fewer names than
            dimensions.

    Example:
        >>> import numpy as np
        >>> tree = make_tree({"posterior": {"x": np.zeros((2, 5, 3))}}, dims={"x": ["site"]})
        >>> tree.posterior["x"].dims
        ('chain', 'draw', 'site')
    """
    known = {} if dims is None else {name: list(value) for name, value in dims.items()}
    datasets = {}
    for group, variables in groups.items():
        used = {
            name: known.get(f"{group}/{name}", known.get(name, []))
            for name in variables
            if name in known or f"{group}/{name}" in known
        }
        _check(group, variables, used)
        present = {dim for names in used.values() for dim in names}
        chosen = {} if coords is None else {k: list(v) for k, v in coords.items() if k in present}
        own = {} if group_attrs is None else dict(group_attrs.get(group, {}))
        datasets[group] = _dataset(group, variables, used, chosen, {**(attrs or {}), **own})
    az = arviz_module()
    if _is_tree(az):
        import xarray  # a dependency of ArviZ

        return xarray.DataTree.from_dict(datasets)
    with warnings.catch_warnings():  # 0.x complains about groups it does not know
        warnings.simplefilter("ignore", UserWarning)
        return az.InferenceData(**datasets)


def group_of(tree: Any, name: str) -> Any:
    """One group of ArviZ's container as an xarray Dataset, or None if there is no such group.

    Example:
        >>> import numpy as np
        >>> tree = make_tree({"posterior": {"x": np.zeros((2, 5))}})
        >>> list(group_of(tree, "posterior")), group_of(tree, "prior")
        (['x'], None)
    """
    group = getattr(tree, name, None)
    if group is None:
        return None
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def save_tree(tree: Any, path: str | Path) -> None:
    """Write what :func:`make_tree` returned to a netCDF file, through h5netcdf."""
    tree.to_netcdf(str(path), engine="h5netcdf")


def _is_tree(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) >= 1


def _check(
    group: str, variables: Mapping[str, NDArray[Any]], dims: Mapping[str, Sequence[str]]
) -> None:
    first = 0 if group in WITHOUT_CHAINS else 2
    for name, value in variables.items():
        if value.ndim < first:
            raise ValueError(
                f"{group}[{name!r}] has shape {value.shape}; accepted: (chains, draws, ...)"
            )
        if name in dims and len(dims[name]) != value.ndim - first:
            raise ValueError(
                f"dims[{name!r}] is {list(dims[name])}; accepted: {value.ndim - first} names, for "
                f"the shape {value.shape[first:]} of {group}[{name!r}]"
            )


def _dataset(
    group: str,
    variables: Mapping[str, NDArray[Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
) -> Any:
    az = arviz_module()
    options: dict[str, Any] = {}
    if group in WITHOUT_CHAINS:  # the dimensions of draws have another name in 0.x and in 1.x
        options["sample_dims" if _is_tree(az) else "default_dims"] = []
    with quiet():
        return az.dict_to_dataset(
            dict(variables),
            dims={name: list(names) for name, names in dims.items()},
            coords=dict(coords),
            attrs=dict(attrs),
            **options,
        )
