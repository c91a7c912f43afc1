# SPDX-License-Identifier: Apache-2.0
"""Series of draws as NumPy arrays, checked by one rule, and ArviZ, whichever is installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""A NumPy array of double precision."""

MIN_DRAWS = 4
"""ArviZ splits chains and needs two draws of each half; a window of lags needs as many."""

FEW_ROUNDINGS = 8
"""Numbers that differ by at most so many units in the last place of the largest are taken for equal
but for rounding."""

MORE_CHAINS_THAN_DRAWS = "More chains|Found chain dimension to be longer than draw dimension"
"""Beginning of the complaint in ArviZ 0.x or in 1.x."""


def as_array(values: Any) -> FloatArray:
    """A NumPy array or torch tensor as a float64 array."""
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(detached, dtype=np.float64)


def as_draws(values: Any, name: str = "values") -> FloatArray:
    """The same; a ValueError if it is not of shape ``(chains, draws)``."""
    series = as_array(values)
    if series.ndim != 2:
        raise ValueError(f"{name} has shape {series.shape}; accepted: (chains, draws)")
    return series


def as_finite_draws(values: Any, name: str = "values") -> FloatArray:
    """The same; a ValueError if there is no draw, or one that is infinite or NaN."""
    series = as_draws(values, name)
    if series.size == 0:
        raise ValueError(f"{name} has shape {series.shape}; accepted: at least one draw")
    bad = series.size - int(np.isfinite(series).sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; accepted: finite numbers")
    return series


def rounding_of(values: FloatArray) -> float:
    """The largest difference that a few roundings make, in the precision that the values have."""
    single = np.array_equal(values.astype(np.float32), values)
    precision = np.finfo(np.float32 if single else np.float64).eps
    return FEW_ROUNDINGS * float(precision) * float(np.abs(values).max())


def is_constant(values: FloatArray) -> bool:
    """True if finite values are all equal, but for rounding."""
    span = np.ptp(values)
    return bool(span == 0) or bool(
        span < 1e-5 * np.abs(values).max() and span <= rounding_of(values)
    )


def share_at_an_end(series: FloatArray) -> tuple[float, float]:
    """The share of the draws ``(chains, draws)`` at their least or largest number, and that number.

    0 where draws do not pile up in front of the end, that is where no other lies within a few
    roundings (discrete values, values cut off), and where the end was visited but once.
    """
    share, found = 0.0, float(series.flat[0])
    for end in (series.min(), series.max()):
        at = series == end
        arrivals = at[:, 0].sum() + (at[:, 1:] & ~at[:, :-1]).sum()
        if arrivals > 1 and not at.all() and at.mean() > share:
            nearest = np.abs(series[~at] - end).min()
            if nearest <= rounding_of(series):
                share, found = float(at.mean()), float(end)
    return share, found


def arviz_module() -> Any:
    """Import ArviZ, which is slow to import, without its announcements."""
    with warnings.catch_warnings():  # ArviZ 0.23 announces its 1.0 at import
        warnings.simplefilter("ignore", FutureWarning)
        import arviz

        return arviz


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore NumPy's warnings of constant series and ArviZ's of more chains than draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.filterwarnings("ignore", MORE_CHAINS_THAN_DRAWS, UserWarning)
        yield
