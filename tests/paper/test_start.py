# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The model and the flow that a figure starts from: checked, read, trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyro_neuralrg import IsingDual, hierarchical_flow, save
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.paper.start import (
    BLOCKS,
    Start,
    check_finished,
    exact_or_none,
    inverse,
    paper_flow,
)
from pyro_neuralrg.train import Cooling, default_budget


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "flow.pt"
    metadata = {"temperature": 2.5, "training_seconds": 12.0, "blocks": "paper", "steps": 7}
    save(path, hierarchical_flow((4, 4)), metadata=metadata)
    return path


BAD = {
    "shape": {"shape": (0, 4)},
    "one site": {"shape": (1,)},
    "temperature": {"shape": (4, 4), "temperature": -1.0},
    "seed": {"seed": -1},
    "blocks": {"blocks": "lego"},
    "steps": {"steps": 0},
    "batch": {"batch": 1},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    word = "shape" if case == "one site" else case
    with pytest.raises(ValueError, match=rf"{word} .*accepted"):
        Start(**BAD[case]).prepare()


def test_a_saved_flow_brings_its_shape_and_its_time(saved: Path) -> None:
    prepared = Start(saved=saved, temperature=2.5).prepare()
    assert prepared.flow.shape == prepared.target.shape == prepared.start.shape == (4, 4)
    assert prepared.saved["training_seconds"] == 12.0
    assert prepared.metadata(3.0, 2.0)["training_seconds"] == 15.0
    assert prepared.metadata(3.0, 2.0)["training_cpu_seconds"] is None  # not known of the first
    assert prepared.is_trained
    assert "saved flow (paper blocks, 7 steps)" in prepared.title


def test_the_title_of_a_training_that_goes_on_has_all_steps_and_fields(tmp_path: Path) -> None:
    first = Start(shape=(4, 4), steps=7, batch=16).prepare()
    assert first.title == first.training_title
    assert "default blocks, 7 steps of 16, seed 0" in first.title
    save(tmp_path / "flow.pt", first.flow, metadata=first.metadata(1.0, 1.0))
    again = Start(saved=tmp_path / "flow.pt", steps=5, batch=32).prepare()
    assert again.title.endswith("saved flow (default blocks, 7 steps of 16), seed 0")
    assert again.training_title.endswith("7 steps of 16), 5 steps of 32 more, seed 0")
    assert again.metadata(1.0, 1.0)["steps"] == 12
    assert again.metadata(1.0, 1.0)["batch"] is None  # of 12 steps there is no one number


def test_a_saved_flow_of_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4\), shape is \(8, 8\); accepted: equal"):
        Start(shape=(8, 8), saved=saved, temperature=2.5).prepare()


def test_a_saved_flow_of_another_temperature_warns(saved: Path) -> None:
    with pytest.warns(UserWarning, match=r"trained at T = 2.5, temperature is 3"):
        Start(saved=saved, temperature=3.0).prepare()


def test_small_asks_for_less_but_leaves_what_was_asked(saved: Path) -> None:
    assert Start().small().shape == (4, 4)
    assert Start(saved=saved).small().shape is None
    asked = Start(shape=(2, 2), steps=3, batch=4).small()
    assert (asked.shape, asked.steps, asked.batch) == ((2, 2), 3, 4)


def test_the_paper_flow_knows_nothing_of_its_target() -> None:
    flow = paper_flow(IsingDual((8, 8)))
    assert flow.gaussian is None
    assert flow.base == StandardNormal()
    assert not flow.odd
    assert flow.circuit.name == "mera"
    assert [layer.kind for layer in flow.circuit.layers[:2]] == ["disentangler", "decimator"]


def recorded(asked: dict[str, Any]) -> Callable[..., SimpleNamespace]:
    """A ``fit`` that only remembers its options."""

    def fit(*_: Any, **options: Any) -> SimpleNamespace:
        asked.update(options)
        return SimpleNamespace(interrupted=False, stopped=None)

    return fit


@pytest.mark.parametrize("blocks", BLOCKS)
def test_training_follows_the_blocks(blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pyro_neuralrg.paper.start.fit", recorded(asked))
    prepared = Start(shape=(4, 4), blocks=blocks).prepare()
    prepared.train()
    if blocks == "paper":
        assert (asked["steps"], asked["batch"], asked["lr"]) == (5000, 512, 1e-3)
        assert asked["schedule"].cooling is None
        assert prepared.steps == 5000
    else:
        assert (asked["steps"], asked["batch"], asked["lr"]) == (None, None, None)
        assert asked["schedule"].cooling == Cooling()
        assert prepared.steps == default_budget((4, 4)).steps


def test_a_saved_flow_is_trained_on_without_cooling(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pyro_neuralrg.paper.start.fit", recorded(asked))
    Start(saved=saved, temperature=2.5).prepare().train()
    assert asked["schedule"].cooling is None


def test_the_same_seed_gives_the_same_flow() -> None:
    flows = [Start(shape=(4, 4), seed=s).prepare().flow for s in (3, 3, 4)]
    z = torch.randn(2, 4, 4)
    first, same, other = (flow(z) for flow in flows)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_inverse_goes_by_parts_and_is_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_neuralrg.paper.start.FIELDS_AT_ONCE", 3)
    flow = hierarchical_flow((4, 4))
    z = torch.randn(7, 4, 4)
    torch.testing.assert_close(inverse(flow, flow(z)), z)


def test_what_is_not_known_is_none() -> None:
    def unknown() -> float:
        raise NotImplementedError

    assert exact_or_none(unknown) is None
    assert exact_or_none(lambda: float("nan")) is None
    assert exact_or_none(lambda: 2.0) == 2.0


@pytest.mark.parametrize(
    ("ended", "error"),
    [({"interrupted": True}, KeyboardInterrupt), ({"stopped": "loss is NaN"}, RuntimeError)],
)
def test_nothing_is_made_of_a_training_that_ended_early(ended: dict, error: type) -> None:
    prepared = Start(shape=(2, 2), steps=2, batch=4, progress=False).prepare()
    found = prepared.train().fit
    with pytest.raises(error):
        check_finished(dataclasses.replace(found, **ended))
