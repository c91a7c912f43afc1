# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there, and what killed writers left goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyro_neuralrg.files.format import remove_leftovers, replacing, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def torn() -> None:
        with writing(path) as stream:
            stream.write(b"half of i")
            raise ZeroDivisionError

    def torn_by_name() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of i")
            raise ZeroDivisionError

    for tear in (torn, torn_by_name):
        with pytest.raises(ZeroDivisionError):
            tear()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_the_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with writing(tmp_path / "ours"):
        pass
    usual, ours = ((tmp_path / name).stat().st_mode for name in ("usual", "ours"))
    assert ours == usual


def test_leftovers(tmp_path: Path) -> None:
    left = tmp_path / ".a.txt.0a.tmp"
    for name in (left.name, ".b.txt.0a.tmp", "a.txt", "a.txt.0a.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, "a.txt", older_than=left.stat().st_mtime - 1)
    assert left.exists()
    remove_leftovers(tmp_path, "a.txt")
    assert names(tmp_path) == [".b.txt.0a.tmp", "a.txt", "a.txt.0a.tmp"]
