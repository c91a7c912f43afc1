# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Draws as observables of pyerrors, for error propagation by the Gamma method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_neuralrg.diagnostics.convert import as_tree
from pyro_neuralrg.diagnostics.tree import variables_of
from pyro_neuralrg.statistics.draws import as_finite_draws

MIN_OBS_DRAWS = 5
"""pyerrors takes no shorter chains."""


def to_pyerrors(
    run: Any, var_names: Sequence[str] | None = None, *, ensemble: str = "run"
) -> dict[str, Any]:
    """Return the draws as ``pyerrors.Obs`` by name, each chain a replicum of one ensemble.

    Needs pyerrors: ``pip install "pyro-neuralrg[pyerrors]"``. Functions of these observables carry
    their errors and correlations::

        m2 = to_pyerrors(mcmc, ["structure_factor"])["structure_factor"]
        susceptibility = 64 / temperature * m2
        susceptibility.gamma_method()

    Args:
        run: :class:`VectorizedMCMC`, Pyro's ``MCMC``, or ArviZ's container with ``posterior``.
        var_names: variables of the posterior; None takes all.
        ensemble: name of the ensemble; its replica are ``run|r0``, ``run|r1``, ...

    Returns:
        An Obs for each scalar, an object array of them, of the shape of one draw, for each field.

    Raises:
        ImportError: without pyerrors.
        ValueError: also if a draw is not finite, or a chain has fewer than five.

    References:
        F. Joswig, S. Kuberski, J. T. Kuhlmann, J. Neuendorf, Comput. Phys. Commun. 288, 108750
        (2023).
    """
    try:
        import pyerrors
    except ImportError as error:
        needed = 'to_pyerrors needs pyerrors; pip install "pyro-neuralrg[pyerrors]"'
        raise ImportError(needed) from error
    found = {}
    for name, values in variables_of(as_tree(run), "posterior", var_names).items():
        chains, draws, *shape = values.shape
        series = as_finite_draws(values.reshape(chains, -1), name).reshape(chains, draws, -1)
        if draws < MIN_OBS_DRAWS:
            raise ValueError(f"{name} has {draws} draws a chain; accepted: at least five")
        replica = [f"{ensemble}|r{chain}" for chain in range(chains)]
        table = np.empty(series.shape[2], dtype=object)
        for site in range(len(table)):
            table[site] = pyerrors.Obs(list(series[..., site]), replica)
        found[name] = table.reshape(shape) if shape else table[0]
    if not found:
        raise ValueError(
            f"run, a {type(run).__name__}, has no draws; accepted: a run VectorizedMCMC or MCMC, "
            "or ArviZ's container with the group posterior"
        )
    return found
