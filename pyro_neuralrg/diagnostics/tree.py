# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Groups of arrays as ArviZ holds them, and ArviZ's diagnostics of one series.

One code path for ArviZ 0.x and 1.x. Plain numpy in, ArviZ out; ArviZ, slow to import, is imported
at the first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Summary", "make_tree", "save_tree", "summarise"]


#: ArviZ splits chains and needs two draws of each half.
MIN_DRAWS = 4

#: How the complaint begins in ArviZ 0.x and in 1.x.
MORE_CHAINS_THAN_DRAWS = ("More chains", "Found chain dimension to be longer than draw dimension")


class Summary(NamedTuple):
    """What is said of the mean of one series.

    Attributes:
        mean: over chains and draws.
        mcse: Monte Carlo standard error of the mean.
        rhat: rank-normalised split R-hat; NaN for a single chain or a constant series.
        ess_bulk: bulk effective sample size, of all chains together.
    """

    mean: float
    mcse: float
    rhat: float
    ess_bulk: float


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
    az = _arviz()
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
        with _quiet():
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


def summarise(values: Any) -> Summary:
    """Mean, standard error, R-hat and effective sample size of one series.

    Args:
        values: numpy array or torch tensor of shape ``(chains, draws)``.

    Returns:
        A :class:`Summary`; all but the mean are NaN of fewer than four draws.

    Raises:
        ValueError: if ``values`` has another number of dimensions.

    Example:
        >>> import numpy as np
        >>> result = summarise(np.random.default_rng(0).normal(size=(4, 500)))
        >>> abs(result.mean) < 4 * result.mcse and result.rhat < 1.01 and result.ess_bulk > 1500
        True
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    series = np.asarray(detached, dtype=np.float64)
    if series.ndim != 2:
        raise ValueError(f"values has shape {series.shape}; accepted: (chains, draws)")
    az = _arviz()
    chains, draws = series.shape
    nan = float("nan")
    mcse, rhat, ess = nan, nan, nan
    with _quiet():
        if draws >= MIN_DRAWS:
            # ArviZ 0.23 returns some of its figures as arrays of one number
            mcse = np.asarray(az.mcse(series, method="mean")).item()
            ess = np.asarray(az.ess(series, method="bulk")).item()
        if draws >= MIN_DRAWS and chains > 1:
            rhat = np.asarray(az.rhat(series)).item()
    return Summary(float(series.mean()), mcse, rhat, ess)


def _arviz() -> Any:
    with warnings.catch_warnings():  # ArviZ 0.23 announces its 1.0 at import
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

        return arviz


def _is_tree(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) >= 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without complaints about what is meant.

    Numpy's about constant series (NaNs in the result tell as much), and ArviZ's about more chains
    than draws: the dimensions of a batch of chains are in their places.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for text in MORE_CHAINS_THAN_DRAWS:
            warnings.filterwarnings("ignore", text, UserWarning)
        yield
