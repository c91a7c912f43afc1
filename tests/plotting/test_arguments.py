# SPDX-License-Identifier: Apache-2.0
"""Every function refuses what it cannot draw, and names the argument."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import analysis, plotting
from pyro_neuralrg.free_energy import Thermodynamics, scaling_collapse
from pyro_neuralrg.transforms import hierarchical_flow
from tests.analysis.linear import orthogonal

LINE = {side: ([1.0, 2.0, 3.0], [-1.0 * side, 0.0, 1.0 * side], [0.1] * 3) for side in (2, 4)}
NEEDED: dict[str, dict[str, Any]] = {
    "plot_collapse": {"found": scaling_collapse(LINE, degree=1)},
    "plot_ranks": {"label": "m"},
    "plot_trace": {"label": "m"},
}
"""What some need beside what they draw."""

COUPLINGS = analysis.RunningCouplings(
    ("nearest", "fourth_power"), *torch.ones(2, 3, 2), *torch.ones(4, 3)
)
FUNCTIONS = [name for name in plotting.__all__ if name.startswith("plot_")]
WRONG = [None, math.nan, "x", object(), 3, {}, [], {"a": None}, {"a": "x"}, {"a": {}}, ["x"]]


def right(name: str) -> Any:
    """What the function draws."""
    information = analysis.mutual_information(torch.randn(64, 4), shuffles=2)
    flow, curve = hierarchical_flow((4,), bijector=orthogonal), plotting.Series([1], [2.0], [0.1])
    return {
        "plot_collapse": LINE,
        "plot_configurations": {"a": np.ones((4, 2, 2))},
        "plot_coupling_flow": {"a": COUPLINGS},
        "plot_effective_energy": {"a": [0.0, 1.0]},
        "plot_estimates": {"a": curve},
        "plot_free_energy": [2.0, 1.0],
        "plot_information_by_distance": {"a": analysis.by_distance(information, (4,))},
        "plot_information_by_scale": analysis.by_scale(information, flow),
        "plot_information_matrix": information,
        "plot_pyramid": [np.ones((2, 4))],
        "plot_ranks": np.ones((4, 9)),
        "plot_responses": {"a": analysis.responses(flow, torch.randn(3, 4), [0])},
        "plot_structure_factor": {"a": np.ones((4, 9))},
        "plot_thermodynamics": Thermodynamics(*np.ones((len(fields(Thermodynamics)), 3))),
        "plot_top_variable": {"a": [0.0, 1.0]},
        "plot_trace": np.ones((4, 9)),
    }[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_drawn_or_drawn_on_is_named(name: str) -> None:
    function = getattr(plotting, name)
    parameters = list(inspect.signature(function).parameters)
    for wrong in WRONG:
        with pytest.raises((TypeError, ValueError), match=rf"^{parameters[0]}\b.*accepted: "):
            function(wrong, **NEEDED.get(name, {}))
    panel = next(name for name in parameters if name in ("ax", "figure"))
    for wrong in (3, "ax", [], plotting.new_figure(1, 1).subplots(1, 2)):
        with pytest.raises(TypeError, match=f"^{panel} is an? .*accepted: "):
            function(right(name), **NEEDED.get(name, {}), **{panel: wrong})


NAN = np.full((4, 2, 2), np.nan)
ONE = analysis.GroupedInformation(*torch.ones(3, 1))
SHORT, CURVE = plotting.Series([1, 2], [1.0], [0.1]), plotting.Series([1], [2.0], [0.1])
PAIR = {"a": [0.0, 1.0]}
REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("collapse", LINE, {"found": 3}, "found is an int"),
    ("collapse", LINE, {"critical": math.nan}, "critical is nan"),
    ("configurations", {"a": np.zeros((2, 4))}, {"count": 3}, r"fields\['a'\] has shape \(2, 4\)"),
    ("configurations", {"a": NAN}, {}, r"fields\['a'\] .* not finite"),
    ("coupling_flow", {"a": COUPLINGS}, {"first": "knight"}, "first is 'knight'"),
    ("coupling_flow", {"a": COUPLINGS}, {"second": 1}, "second is 1"),
    ("coupling_flow", {"a": COUPLINGS}, {"finest": -1}, "finest is -1"),
    ("effective_energy", PAIR, {"computed": {"a": [1.0]}}, r"computed\['a'\] is a list"),
    ("effective_energy", PAIR, {"computed": {"b": CURVE}}, r"computed has \['b'\]"),
    ("estimates", {"a": SHORT}, {}, "x, values and standard_error have shapes"),
    ("free_energy", [2.0, 1.0], {"exact": math.nan}, "exact is nan"),
    ("free_energy", [2.0, 1.0], {"standard_error": [0.1]}, r"standard_error has shape \(1,\)"),
    ("free_energy", [[1.0]], {}, r"loss has shape \(1, 1\)"),
    ("information_by_distance", {"a": ONE}, {}, r"found\['a'\] has no distances"),
    ("information_by_scale", ONE, {}, r"found has shape \(1,\)"),
    ("pyramid", [NAN], {}, "fields has shapes .* not finite"),
    ("pyramid", [np.ones((0, 4))], {}, r"fields has shapes \[\(0, 4\)\]"),
    ("pyramid", [np.ones((2, 4)), np.ones(2)], {}, r"fields has shapes \[\(2, 4\), \(2,\)\]"),
    ("pyramid", [np.ones((2, 4))], {"count": 0}, "count is 0"),
    ("ranks", [0.5, 0.6], {}, r"draws has shape \(2,\)"),
    ("structure_factor", {"a": [0.5, 0.6]}, {}, r"draws\['a'\] has shape \(2,\)"),
    ("top_variable", {"a": []}, {}, "values has an entry that is empty"),
    ("top_variable", {"a": [math.nan]}, {}, "values has .* not finite"),
    ("trace", np.empty((2, 0)), {}, r"draws has shape \(2, 0\)"),
    ("trace", np.ones((2, 5)), {"warmup": np.zeros((3, 3))}, "warmup has 3 chains"),
]


@pytest.mark.parametrize(("name", "given", "options", "message"), REFUSED)
def test_bad_numbers_are_refused(name: str, given: Any, options: Any, message: str) -> None:
    name = f"plot_{name}"
    with pytest.raises((TypeError, ValueError), match=f"^{message}.*accepted: "):
        getattr(plotting, name)(given, **NEEDED.get(name, {}) | options)
