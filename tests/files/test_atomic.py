# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there; what killed writers left goes, what living ones write stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyro_neuralrg
from pyro_neuralrg.files import atomic
from pyro_neuralrg.files.atomic import also_named, held, remove_leftovers, replacing, writing

ROOT = Path(pyro_neuralrg.__file__).parents[1]


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


@pytest.mark.parametrize("links", [True, False])
def test_another_name(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, which for a link means to rename a file to itself."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("one")
    other.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        also_named(path, other)
        assert other.read_text() == "one"
        assert names(tmp_path) == ["a.txt", "b.txt"]
    with writing(path) as stream:
        stream.write(b"two")
    assert other.read_text() == "one"


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    """Another process writes; it is killed; then nobody does."""
    script = """
        import sys
        from pathlib import Path
        from pyro_neuralrg.files.atomic import writing

        with writing(Path(sys.argv[1])) as stream:
            print("begun", flush=True)
            sys.stdin.read()
    """
    path = tmp_path / "a.txt"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        (name,) = names(tmp_path)
        remove_leftovers(tmp_path, "a.txt")
        assert names(tmp_path) == [name]
        process.send_signal(signal.SIGKILL)
    remove_leftovers(tmp_path, "b.txt")
    assert names(tmp_path) == [name]
    remove_leftovers(tmp_path, "*.txt")
    assert names(tmp_path) == []


def test_what_was_written_since_stays(tmp_path: Path) -> None:
    """By name, which nothing locks."""
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of i")
        old = tmp_path / ".a.txt.0a.tmp"
        old.write_text("of a process that was killed")
        os.utime(old, (1e9, 1e9))
        remove_leftovers(tmp_path, "a.txt", older_than=1e9 + 1)
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == ["a.txt"]


def test_held_by_one_at_a_time(tmp_path: Path) -> None:
    """By another process; it is killed; then by this one, where what is removed holds nobody."""
    script = """
        import sys
        from pathlib import Path
        from pyro_neuralrg.files.atomic import held

        with held(Path(sys.argv[1])):
            print("begun", flush=True)
            sys.stdin.read()
    """
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(BlockingIOError), held(path):
            pass
        assert names(tmp_path) == [".lock"]
        process.send_signal(signal.SIGKILL)
    with held(path):
        path.unlink()
        with held(path), pytest.raises(BlockingIOError), held(path):
            pass
        assert names(tmp_path) == []


@pytest.mark.parametrize("code", [None, errno.ENOLCK, errno.EOPNOTSUPP])
def test_nothing_is_held_without_locks(
    code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on a system nor on a file system that has none."""

    class Refusing:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(*_: object) -> None:
            assert code is not None
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "_locks", lambda: None if code is None else Refusing)
    with held(tmp_path / ".lock"), held(tmp_path / ".lock"), held(tmp_path / "no" / ".lock"):
        pass


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be removed is left over: the system keeps open files."""
    monkeypatch.setattr(atomic, "_locks", lambda: None)
    (tmp_path / ".a.txt.0a.tmp").write_text("")
    remove_leftovers(tmp_path, "a.txt")
    with writing(tmp_path / "a.txt") as stream:
        stream.write(b"one")
    assert names(tmp_path) == ["a.txt"]
