# SPDX-License-Identifier: Apache-2.0
"""Groups of arrays as ArviZ holds them: one code path for ArviZ 0.x and 1.x, plain numpy in."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.statistics import FloatArray, arviz_module
from pyro_neuralrg.statistics.draws import as_array

# first dimensions of the groups that have no chains and draws
FIRST_DIMS = {"observed_data": (), "constant_data": (), "importance": ("sample",)}


def make_tree(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    group_attrs: Mapping[str, Mapping[str, Any]] | None = None,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return ArviZ's container: an InferenceData (ArviZ 0.x) or an xarray DataTree (ArviZ 1.x).

    Args:
        groups: by group name, arrays ``(chains, draws) + shape`` by variable name; of
            ``importance`` ``(samples,) + shape``, of ``observed_data`` and ``constant_data`` any
            shape.
        dims: names of the dimensions of ``shape``, by variable name or by ``group/name``.
        coords: values along named dimensions, numbers, strings or times; 0, 1, ... if not given.
        attrs: of every group.
        group_attrs: of single groups, beside those.
        labels: by dimension, further coordinates along it by their names.

    Raises:
        ValueError: if an array has other dimensions than these, or coordinates are of mixed types,
            which no file takes.

    Warns:
        UserWarning: if names are changed, by underscores: of a variable that is called like a
            dimension, of a dimension that is called ``chain`` or ``draw``, and of what netCDF files
            do not take, such as ``x/y``.

    Example:
        >>> import numpy as np
        >>> tree = make_tree({"posterior": {"x": np.zeros((2, 5, 3))}}, dims={"x": ["site"]})
        >>> tree.posterior["x"].dims
        ('chain', 'draw', 'site')
    """
    import xarray  # a dependency of ArviZ, slow to import

    dims, coords, group_attrs = dims or {}, coords or {}, group_attrs or {}
    common = {"created_at": datetime.now(timezone.utc).isoformat(), **(attrs or {})}
    given = {
        (group, name): dim_names(group, name, values.shape, dims)
        for group, variables in groups.items()
        for name, values in variables.items()
    }
    named = {key: _distinct(names) for key, names in given.items()}
    called = _variable_names(named)
    renamed = zip(chain(*given.values()), chain(*named.values()), strict=True)
    _tell_changes(chain(called.items(), renamed))
    datasets = {}
    for group, variables in groups.items():
        arrays, along = {}, {}
        for name, values in variables.items():
            arrays[called[name]] = (named[group, name], values)
            sizes = zip(given[group, name], named[group, name], values.shape, strict=True)
            for dim, new, size in sizes:
                along[new] = coordinate(dim, coords.get(dim, range(size)), size)
                along |= {x: (new, label) for x, label in (labels or {}).get(dim, {}).items()}
        datasets[group] = xarray.Dataset(arrays, along, {**common, **group_attrs.get(group, {})})
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


def variables_of(
    tree: Any, group: str, names: Sequence[str] | None = None
) -> dict[str, FloatArray]:
    """Arrays ``(chains, draws, ...)`` of one group of ArviZ's container; none without the group."""
    found = group_of(tree, group)
    if found is None:
        return {}
    known = [name for name in found.data_vars if {"chain", "draw"} <= set(found[name].dims)]
    check_names("var_names", names, known)
    return {
        str(name): as_array(found[name].transpose("chain", "draw", ...).to_numpy())
        for name in (known if names is None else names)
        if found[name].size
    }


def save_tree(tree: Any, path: str | Path) -> None:
    """Write what :func:`make_tree` returned to a netCDF file, through h5netcdf."""
    tree.to_netcdf(str(path), engine="h5netcdf")


def check_names(argument: str, given: Iterable[str] | None, known: Collection[str]) -> None:
    """Raise a ValueError if the argument has names of variables or dimensions that are unknown."""
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise ValueError(f"{argument} has {unknown}; accepted: {list(known)}")


def dim_names(
    group: str, name: str, shape: tuple[int, ...], dims: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Names of all dimensions of a variable, as they are given."""
    given = dims.get(f"{group}/{name}", dims.get(name))
    first = FIRST_DIMS.get(group, ("chain", "draw"))
    others = shape[len(first) :]
    names = [f"{name}_dim_{axis}" for axis in range(len(others))] if given is None else given
    if len(shape) < len(first) or len(names) != len(others):
        raise ValueError(
            f"{group}[{name!r}] has shape {shape}, and dims[{name!r}] is {list(names)}; accepted: "
            f"{len(others)} names, after the dimensions {first}"
        )
    return (*first, *names)


def coordinate(dim: str, values: Any, size: int) -> Any:
    """Values along a dimension as files take them, shape ``(size,)``."""
    import xarray

    try:
        given = list(values)
        found: Any = xarray.Variable((dim,), given)
        fits = found.shape == (size,) and found.dtype.kind != "O"
    except (TypeError, ValueError):  # nothing to iterate over, or rows
        fits = False
    if not fits or len({isinstance(value, str) for value in given}) > 1:
        raise ValueError(
            f"coords[{dim!r}] is {values!r}; accepted: {size} numbers, {size} strings, or as many "
            "datetimes"
        )
    return found.to_numpy()


def free_name(name: str, taken: Collection[str]) -> str:
    """The name as a file can hold it, with underscores until it is none of the taken ones."""
    name = name.replace("/", "_").replace("\0", "_")
    name = f"{name}_" if name in ("", ".") else name
    while name in taken:
        name += "_"
    return name


def _distinct(dims: Sequence[str]) -> list[str]:
    """Names of the dimensions of one variable as files hold them, no two alike."""
    names: list[str] = []
    for name in dims:
        names.append(free_name(name, names))
    return names


def _variable_names(named: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, str]:
    """The name of each variable in all groups, which no dimension of a group of its has."""
    dims: dict[str, set[str]] = {}
    for (group, _), names in named.items():
        dims.setdefault(group, set()).update(names)
    variables = dict.fromkeys(name for _, name in named)
    called: dict[str, str] = {}
    for name in variables:
        taken = set().union(*(dims[group] for group, other in named if other == name))
        called[name] = free_name(name, taken | (variables.keys() - {name}) | set(called.values()))
    return called


def _tell_changes(pairs: Iterable[tuple[str, str]]) -> None:
    """Warn of names that are not those given."""
    changed = [f"{old!r} is {new!r}" for old, new in dict.fromkeys(pairs) if old != new]
    if changed:
        warn_user(
            f"names of variables or dimensions were changed: {', '.join(changed)}; a variable "
            "cannot be called like a dimension, nor two dimensions alike, and files take no '/' in "
            "a name"
        )
