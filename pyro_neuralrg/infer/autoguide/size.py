# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Size of the flow of a guide's fields, and its response to a step of an optimiser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import Neighbour
from pyro_neuralrg.transforms.bijectors import as_bijector

MAX_RESPONSE = 0.2
"""Response of two couplings of eight units: a step of Adam at 1e-2 then moves draws of twenty
models by at most 0.05 standard deviations, and ln|det| by at most 1.6 nats for some sixty
unknowns."""

SUMMED_RESPONSE = 4.0
"""Response times the weights behind one output, added up over all couplings that move a site."""


def flow_options(lattice: tuple[int, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Options of :func:`~pyro_neuralrg.transforms.hierarchical_flow` for a guide's fields.

    Args:
        lattice: of their flow.
        given: the user's, which replace the defaults. Couplings that see their neighbours get a
            ``response`` that makes steps small, unless they have one of their own.
    """
    options = {
        "circuit": "tree",
        "depth": 1,
        "bijector": Neighbour(layers=2, hidden=(8,), num_tanh=0),
        "boundary": "open",
        "features": 8,
        **given,
    }
    bijector = as_bijector(options["bijector"])
    if isinstance(bijector, Neighbour) and bijector.response == 1:
        kept = {name: options[name] for name in ("block", "depth") if name in options}
        circuit = make_circuit(options["circuit"], lattice, **kept)
        passes = 0.5 * bijector.layers * len(circuit.layers)
        weights = 1 + bijector.hidden[-1]
        response = min(MAX_RESPONSE, SUMMED_RESPONSE / (passes * weights))
        options["bijector"] = replace(bijector, response=response)
    return options
