# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Groups of arrays as ArviZ holds them: one code path for ArviZ 0.x and 1.x, plain numpy in."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pyro_neuralrg.statistics import arviz_module

# first dimensions of the groups that have no chains and draws
FIRST_DIMS = {"observed_data": (), "constant_data": (), "importance": ("sample",)}


def make_tree(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    group_attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return ArviZ's container: an InferenceData (ArviZ 0.x) or an xarray DataTree (ArviZ 1.x).

    Args:
        groups: by group name, arrays ``(chains, draws) + shape`` by variable name; of
            ``importance`` ``(samples,) + shape``, of ``observed_data`` and ``constant_data`` any
            shape.
        dims: names of the dimensions of ``shape``, by variable name or by ``group/name``.
        coords: values along named dimensions; 0, 1, ... if not given.
        attrs: of every group.
        group_attrs: of single groups, beside those.

    Raises:
        ValueError: if an array has other dimensions than these.

    Example:
        >>> import numpy as np
        >>> tree = make_tree({"posterior": {"x": np.zeros((2, 5, 3))}}, dims={"x": ["site"]})
        >>> tree.posterior["x"].dims
        ('chain', 'draw', 'site')
    """
    import xarray  # a dependency of ArviZ, slow to import

    dims, coords, group_attrs = dims or {}, coords or {}, group_attrs or {}
    common = {"created_at": datetime.now(timezone.utc).isoformat(), **(attrs or {})}
    datasets = {}
    for group, variables in groups.items():
        arrays = {}
        sizes: dict[str, int] = {}
        for name, values in variables.items():
            given = dims.get(f"{group}/{name}", dims.get(name))
            names = _dim_names(group, name, values.shape, given)
            arrays[name] = (names, values)
            sizes.update(zip(names, values.shape, strict=True))
        datasets[group] = xarray.Dataset(
            arrays,
            {dim: list(coords.get(dim, range(size))) for dim, size in sizes.items()},
            {**common, **group_attrs.get(group, {})},
        )
    az = arviz_module()
    if int(az.__version__.split(".")[0]) >= 1:
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
    group: Any = getattr(tree, name, None)
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def save_tree(tree: Any, path: str | Path) -> None:
    """Write what :func:`make_tree` returned to a netCDF file, through h5netcdf."""
    tree.to_netcdf(str(path), engine="h5netcdf")


def check_names(argument: str, given: Iterable[str] | None, known: Collection[str]) -> None:
    """Raise a ValueError if the argument has names of variables or dimensions that are unknown."""
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise ValueError(f"{argument} has {unknown}; accepted: {list(known)}")


def _dim_names(
    group: str, name: str, shape: tuple[int, ...], given: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of all dimensions of a variable."""
    first = FIRST_DIMS.get(group, ("chain", "draw"))
    others = shape[len(first) :]
    names = [f"{name}_dim_{axis}" for axis in range(len(others))] if given is None else given
    if len(shape) < len(first) or len(names) != len(others):
        raise ValueError(
            f"{group}[{name!r}] has shape {shape}, and dims[{name!r}] is {list(names)}; accepted: "
            f"{len(others)} names, after the dimensions {first}"
        )
    return (*first, *names)
