# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""After a few steps a training can say how long it takes."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.infer import TrainingStep
from pyro_neuralrg.infer.forecast import Forecast


def told(steps: int, seconds: float, first: int = 0) -> list[str]:
    """Of a training whose first step took a minute, and each of the others so many seconds."""
    texts: list[str] = []
    forecast = Forecast(steps, 256, torch.device("cpu"), texts.append)
    for number in range(20):
        at = 60.0 + seconds * number
        forecast(TrainingStep(first + number, 0.0, 0.0, 1.0, 1.0, 0.1, at))
    return texts


def test_it_says_so_once() -> None:
    (text,) = told(1006, 0.5)
    assert text.startswith("training takes about 8 min more, 500 ms for each step of 256 samples; ")
    assert text.endswith("B of memory so far")


@pytest.mark.parametrize(("steps", "words"), [(136, "65 s"), (36006, "5.0 h")])
def test_in_other_units(steps: int, words: str) -> None:
    assert f"about {words} more" in told(steps, 0.5)[0]


def test_what_is_over_soon_is_not_spoken_of() -> None:
    assert told(100, 0.5) == []
    assert told(1006, 0.5, first=900) == []
