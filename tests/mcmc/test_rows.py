# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of figures, in memory that there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_neuralrg import HMC, VectorizedMCMC
from pyro_neuralrg.mcmc.results import Rows
from pyro_neuralrg.runtime import memory


def test_rows_are_copies() -> None:
    rows, value = Rows(2), torch.ones(3)
    rows.add({"a": value})
    value.zero_()
    assert rows.columns()["a"].tolist() == [[1.0]] * 3


def test_more_memory_keeps_the_rows() -> None:
    rows = Rows(1)
    rows.add({"a": torch.ones(2)})
    rows.reserve(3)
    rows.reserve(1)
    rows.add({"a": 2 * torch.ones(2)})
    assert rows.columns()["a"].tolist() == [[1.0, 2.0]] * 2


def test_draws_that_cannot_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the energy is computed once, and again where more of them are asked for."""
    calls: list[int] = []

    def energy(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return 0.5 * x.square().sum(-1)

    options: dict[str, Any] = {"warmup_steps": 2, "num_chains": 4, "seed": 0, "progress": False}
    kernel = HMC(energy, shape=(5,))
    calls.clear()
    monkeypatch.setattr(memory, "available_memory", lambda _: 8.0 * 5 * 4 * 10)
    match = (
        "num_chains is 4 and num_samples is 11: that takes .* available here, or keep_draws=False"
    )
    with pytest.raises(memory.MemoryLimitError, match=match):
        VectorizedMCMC(kernel, 11, **options).run()
    assert not calls
    VectorizedMCMC(kernel, 11, keep_draws=False, **options).run()
    held = VectorizedMCMC(kernel, 10, **options)
    held.run()
    held.num_samples = 11
    with pytest.raises(memory.MemoryLimitError, match="num_samples is 11"):
        held.resume()
    assert held.get_samples()["x"].shape == (40, 5)
