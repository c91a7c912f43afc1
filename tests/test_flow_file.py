# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_neuralrg.flow_file import FLOW_FORMAT, load, save
from pyro_neuralrg.potentials import FreeField
from pyro_neuralrg.transforms import hierarchical_flow

FLOWS: dict[str, dict[str, Any]] = {
    "default": {"shape": (4, 4)},
    "odd with spectrum": {"shape": (4, 6), "odd": True, "spectrum": FreeField((4, 6)).spectrum},
    "tree 1-d": {"shape": (5,), "circuit": "tree", "bijector": "realnvp"},
    "float32": {"shape": (2, 2), "dtype": torch.float32},
    "shared": {"shape": (4, 4), "weights": "shared"},
}


def make(name: str) -> Any:
    options = dict(FLOWS[name])
    shape = options.pop("shape")
    flow = hierarchical_flow(shape, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("name", FLOWS)
def test_samples_are_equal_before_and_after(tmp_path: Path, name: str) -> None:
    flow = make(name)
    path = tmp_path / "flow.pt"
    save(path, flow, metadata={"temperature": 2.5, "shape": [4, 4]})
    loaded = load(path)
    assert loaded.metadata == {"temperature": 2.5, "shape": [4, 4]}
    z = torch.randn(3, *flow.shape, dtype=next(flow.parameters()).dtype)
    x, ladj = flow.forward_and_ladj(z)
    again, ladj_again = loaded.flow.forward_and_ladj(z)
    torch.testing.assert_close(again, x, rtol=0, atol=0)
    torch.testing.assert_close(ladj_again, ladj, rtol=0, atol=0)
    assert os.listdir(tmp_path) == ["flow.pt"]


class Runs:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_code_is_never_run(tmp_path: Path) -> None:
    """Also in a file whose checksum is right."""
    evidence, path = tmp_path / "ran", tmp_path / "flow.pt"
    contents = {"config": "{}", "dtype": Runs(evidence), "state_dict": {}, "metadata": "{}"}
    for write in (
        lambda: path.write_bytes(pickle.dumps(Runs(evidence))),
        lambda: torch.save(contents, path),
        lambda: FLOW_FORMAT.write(path, contents),
    ):
        write()
        with pytest.raises(ValueError, match=r"is corrupt|no seal|holds more than tensors"):
            load(path)
        assert not evidence.exists()


CONFIG = {"kind": "HierarchicalFlow", **hierarchical_flow((4, 4)).config}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"config": None}, "cannot be built"),
        ({"config": json.dumps({**CONFIG, "circuit": "ring"})}, "cannot be built .*ring"),
        ({"state_dict": {}}, "cannot be built"),
        ({"dtype": "int64"}, "cannot be built"),
        ({"metadata": "3"}, "cannot be built"),
        ({"metadata": {"a": 1}}, "cannot be built .*; accepted: a file of .*save"),
    ],
    ids=str,
)
def test_altered_files(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = tmp_path / "flow.pt"
    save(path, make("default"))
    FLOW_FORMAT.write(path, {**FLOW_FORMAT.read(path), **change})
    with pytest.raises(ValueError, match=match) as info:
        load(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"map_location is '{device}'; accepted: a device"):
        load(tmp_path / "flow.pt", map_location=device)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path, flow = tmp_path / "flow.pt", torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="flow is a Linear; accepted: HierarchicalFlow"):
        save(path, flow)
    with pytest.raises(ValueError, match="metadata is not JSON data"):
        save(path, make("default"), metadata={"flow": flow})
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(OSError, match="nowhere"):
        save(tmp_path / "nowhere" / "flow.pt", make("default"))
    assert os.listdir(tmp_path) == []
