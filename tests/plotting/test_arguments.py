# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Every function refuses what it cannot draw, and names the argument."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import analysis, plotting
from pyro_neuralrg.transforms import hierarchical_flow
from tests.analysis.linear import orthogonal

NEEDED: dict[str, dict[str, Any]] = {"plot_ranks": {"label": "m"}, "plot_trace": {"label": "m"}}
"""What some need beside what they draw."""

FUNCTIONS = [name for name in plotting.__all__ if name.startswith("plot_")]
WRONG = [None, math.nan, "x", object(), 3, {}, [], {"a": None}, {"a": "x"}, {"a": {}}, ["x"]]


def right(name: str) -> Any:
    """What the function draws."""
    information = analysis.mutual_information(torch.randn(64, 4), shuffles=2)
    flow, curve = hierarchical_flow((4,), bijector=orthogonal), plotting.Series([1], [2.0], [0.1])
    return {
        "plot_configurations": {"a": np.ones((4, 2, 2))},
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
        with pytest.raises(TypeError, match=f"^{panel} is a .*accepted: "):
            function(right(name), **NEEDED.get(name, {}), **{panel: wrong})


NAN = np.full((4, 2, 2), np.nan)
REFUSED: dict[str, Callable[[], Any]] = {
    r"count is 0": lambda: plotting.plot_pyramid([np.ones((2, 4))], count=0),
    r"draws has shape \(2,\)": lambda: plotting.plot_ranks([0.5, 0.6], label="m"),
    r"draws has shape \(2, 0\)": lambda: plotting.plot_trace(np.empty((2, 0)), label="m"),
    r"draws\['a'\] has shape \(2,\)": lambda: plotting.plot_structure_factor({"a": [0.5, 0.6]}),
    r"exact is nan": lambda: plotting.plot_free_energy([2.0, 1.0], exact=math.nan),
    r"fields\['a'\] has shape \(2, 4\)": lambda: plotting.plot_configurations(
        {"a": np.zeros((2, 4))}, count=3
    ),
    r"fields\['a'\] .* not finite": lambda: plotting.plot_configurations({"a": NAN}),
    r"fields has shapes .* not finite": lambda: plotting.plot_pyramid([NAN]),
    r"fields has shapes \[\(0, 4\)\]": lambda: plotting.plot_pyramid([np.ones((0, 4))]),
    r"fields has shapes \[\(2, 4\), \(2,\)\]": lambda: plotting.plot_pyramid(
        [np.ones((2, 4)), np.ones(2)]
    ),
    r"x, values and standard_error have shapes": lambda: plotting.plot_estimates(
        {"a": plotting.Series([1, 2], [1.0], [0.1])}
    ),
    r"found\['a'\] has no distances": lambda: plotting.plot_information_by_distance(
        {"a": analysis.GroupedInformation(*torch.ones(3, 1))}
    ),
    r"found has shape \(1,\)": lambda: plotting.plot_information_by_scale(
        analysis.GroupedInformation(*torch.ones(3, 1))
    ),
    r"computed\['a'\] is a list": lambda: plotting.plot_effective_energy(
        {"a": [0.0, 1.0]}, computed={"a": [1.0]}
    ),
    r"computed has \['b'\]": lambda: plotting.plot_effective_energy(
        {"a": [0.0, 1.0]}, computed={"b": plotting.Series([1], [2.0], [0.1])}
    ),
    r"loss has shape \(1, 1\)": lambda: plotting.plot_free_energy([[1.0]]),
    r"standard_error has shape \(1,\)": lambda: plotting.plot_free_energy(
        [2.0, 1.0], standard_error=[0.1]
    ),
    r"values has an entry that is empty": lambda: plotting.plot_top_variable({"a": []}),
    r"values has .* not finite": lambda: plotting.plot_top_variable({"a": [math.nan]}),
    r"warmup has 3 chains": lambda: plotting.plot_trace(
        np.ones((2, 5)), label="m", warmup=np.zeros((3, 3))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_numbers_are_refused(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}.*accepted: "):
        REFUSED[message]()
