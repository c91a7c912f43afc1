# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights of independent samples of a flow, as a group of ArviZ's container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_neuralrg.diagnostics.tree import make_tree
from pyro_neuralrg.statistics import pareto_k

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
        attributes ``pareto_k`` (see :func:`pyro_neuralrg.statistics.pareto_k`), ``ess`` (Kish, in
        samples), ``ess_fraction`` and ``log_partition`` (ln of the mean weight, nats).

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
    weights = _array(log_weights)
    shape = pareto_k(weights)  # checks that they are numbers, one per sample
    largest = weights.max(initial=-np.inf)
    if not np.isfinite(largest):
        raise ValueError(
            f"log_weights are {weights.size} weights of zero; accepted: at least one above zero"
        )
    relative = np.exp(weights - largest)
    total = relative.sum()
    ess = float(total**2 / np.square(relative).sum())
    log_sum = float(largest + np.log(total))
    variables = {"log_weight": weights, "log_weight_normalised": weights - log_sum}
    for name, values in (observables or {}).items():
        array = _array(values)
        if name in variables or array.shape[:1] != weights.shape:
            raise ValueError(
                f"observables[{name!r}] has shape {array.shape}; accepted: {weights.shape} first, "
                f"and a name other than {list(variables)}"
            )
        variables[name] = array
    dims = {
        name: ["sample", *(f"{name}_dim_{axis}" for axis in range(array.ndim - 1))]
        for name, array in variables.items()
    }
    attrs = {
        "pareto_k": shape,
        "ess": ess,
        "ess_fraction": ess / weights.size,
        "log_partition": log_sum - float(np.log(weights.size)),
    }
    return Group(variables, dims, attrs)


def _array(values: Any) -> NDArray[Any]:
    detached = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(detached, dtype=np.float64)
