# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights of independent samples of a flow, as a group of ArviZ's container."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pyro_neuralrg.diagnostics.tree import make_tree
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.draws import as_array

__all__ = ["importance_group", "weights_to_arviz"]


class Group(NamedTuple):
    """Arrays, dimensions and attributes of a group."""

    variables: dict[str, NDArray[Any]]
    dims: dict[str, list[str]]
    attrs: dict[str, float]


def weights_to_arviz(
    log_weights: Any,
    observables: Mapping[str, Any] | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return importance weights as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        log_weights: ``ln pi(x) - ln q(x)`` of samples x ~ q, numpy array or torch tensor of shape
            ``(num_samples,)``, nats; minus infinity is a weight of zero.
        observables: by name, values ``(num_samples,) + shape`` of the same samples.
        dims: names of the dimensions after ``sample``, by observable.
        coords: values along named dimensions.

    Returns:
        A container with the group ``importance``: ``log_weight``, ``log_weight_normalised`` (their
        exponentials sum to one) and the observables, with the dimension ``sample`` first; and its
        attributes ``pareto_k`` (see :class:`pyro_neuralrg.statistics.LogWeights`), ``ess`` (Kish,
        in samples), ``ess_fraction`` and ``log_partition`` (ln of the mean weight, nats).

    Raises:
        ValueError: if shapes do not fit, a log-weight is NaN or plus infinity, all weights are
            zero, or an observable has a name that is taken.

    Example:
        >>> import numpy as np
        >>> tree = weights_to_arviz(np.zeros(100), {"x": np.arange(100.0)})
        >>> dict(tree.importance.sizes), tree.importance.attrs["ess"]
        ({'sample': 100}, 100.0)
    """
    group = importance_group(log_weights, observables)
    given = {name: ["sample", *names] for name, names in (dims or {}).items()}
    return make_tree(
        {"importance": group.variables},
        dims={**group.dims, **given},
        coords=coords,
        attrs={"inference_library": "pyro_neuralrg"},
        group_attrs={"importance": group.attrs},
    )


def importance_group(log_weights: Any, observables: Mapping[str, Any] | None = None) -> Group:
    """The same as arrays, dimensions and attributes; see :func:`weights_to_arviz`."""
    weights = LogWeights(log_weights)
    log_mean = weights.log_mean.value
    if log_mean == -math.inf:
        raise ValueError(
            f"log_weights are {len(weights)} weights of zero; accepted: at least one above zero"
        )
    values = weights.values.numpy()
    normalised = values - log_mean - math.log(len(weights))
    variables = {"log_weight": values, "log_weight_normalised": normalised}
    for name, observable in (observables or {}).items():
        array = as_array(observable)
        if name in variables or array.shape[:1] != values.shape:
            raise ValueError(
                f"observables[{name!r}] has shape {array.shape}; accepted: {values.shape} first, "
                f"and a name other than {list(variables)}"
            )
        variables[name] = array
    dims = {
        name: ["sample", *(f"{name}_dim_{axis}" for axis in range(array.ndim - 1))]
        for name, array in variables.items()
    }
    attrs = {
        "pareto_k": weights.pareto_k,
        "ess": weights.ess * len(weights),
        "ess_fraction": weights.ess,
        "log_partition": log_mean,
    }
    return Group(variables, dims, attrs)
