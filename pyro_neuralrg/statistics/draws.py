# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Series of draws as NumPy arrays, checked by one rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_DRAWS = 4
"""ArviZ splits chains and needs two draws of each half; a window of lags needs as many."""


def as_array(values: Any) -> NDArray[np.float64]:
    """A NumPy array or torch tensor as a float64 array."""
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(detached, dtype=np.float64)


def as_draws(values: Any, name: str = "values") -> NDArray[np.float64]:
    """A NumPy array or torch tensor as a float64 array of shape ``(chains, draws)``.

    Raises:
        ValueError: if ``values`` has another number of dimensions.

    Example:
        >>> as_draws([[0, 1, 2]])
        array([[0., 1., 2.]])
    """
    series = as_array(values)
    if series.ndim != 2:
        raise ValueError(f"{name} has shape {series.shape}; accepted: (chains, draws)")
    return series


def as_finite_draws(values: Any, name: str = "values") -> NDArray[np.float64]:
    """The same for at least one draw, none infinite or NaN.

    Raises:
        ValueError: if ``values`` has another number of dimensions, or such entries.

    Example:
        >>> as_finite_draws([[0, float("nan")]])
        Traceback (most recent call last):
        ValueError: values has 1 entries that are not finite; accepted: finite numbers
    """
    series = as_draws(values, name)
    if series.size == 0:
        raise ValueError(f"{name} has shape {series.shape}; accepted: at least one draw")
    bad = series.size - int(np.isfinite(series).sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; accepted: finite numbers")
    return series
