# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Results survive being written and read; nothing is half written, nothing is executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pyro_neuralrg.paper import files


def test_numbers_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    files.write_numbers(path, {"a": 1.5, "b": [float("nan"), 2], "c": {"d": float("inf")}})
    assert files.read_numbers(path) == {"a": 1.5, "b": [None, 2], "c": {"d": None}}
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["found.json"]


def test_arrays_come_back_with_their_notes(tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    array = np.array([[1.0, np.nan], [3.0, 4.0]])
    files.write_arrays(path, {"values": array}, {"title": "x", "pair": [1, 2.5]})
    arrays, notes = files.read_arrays(path)
    np.testing.assert_array_equal(arrays["values"], array)
    assert set(arrays) == {"values"}
    assert notes == {"title": "x", "pair": [1, 2.5]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["found.npz"]


@pytest.mark.parametrize("content", [b"not JSON", b"[1, 2]", b"\xff\xfe"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no results"):
        files.read_numbers(path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    path.write_bytes(pickle.dumps({"values": 1}))
    with pytest.raises(ValueError, match="holds no results"):
        files.read_arrays(path)


def test_what_is_missing_is_an_os_error(tmp_path: Path) -> None:
    for read in (files.read_numbers, files.read_arrays):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    files.write_numbers(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_numbers(path, {"a": object()})
    assert files.read_numbers(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
