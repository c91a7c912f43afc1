# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Every function refuses what it cannot draw, and names the argument."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from pyro_neuralrg import plotting

NEEDED: dict[str, dict[str, Any]] = {
    "ranks": {"label": "m"},
    "trace": {"label": "m"},
}
"""What some need beside what they draw."""

FUNCTIONS = [
    name
    for name in plotting.__all__
    if inspect.isfunction(getattr(plotting, name)) and name != "new_figure"
]
WRONG = [None, math.nan, "x", object(), 3, {}, [], {"a": None}, {"a": "x"}, {"a": {}}, ["x"]]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_drawn_is_named(name: str) -> None:
    function = getattr(plotting, name)
    first = next(iter(inspect.signature(function).parameters))
    for wrong in WRONG:
        with pytest.raises((TypeError, ValueError), match=rf"^{first}\b.*accepted: "):
            function(wrong, **NEEDED.get(name, {}))
