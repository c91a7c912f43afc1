# SPDX-License-Identifier: Apache-2.0
"""Checkpoints survive kills, corruptions and full disks; other runs' files are refused."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_neuralrg
from pyro_neuralrg.files import CheckpointError, Record
from pyro_neuralrg.files.format import FileFormat, replacing, writing
from pyro_neuralrg.files.record import Checkpoints, check_energies
from pyro_neuralrg.runtime.processes import Processes
from tests.broken_files import break_reading, fill_disk

ROOT = Path(pyro_neuralrg.__file__).parents[1]
FORMAT = FileFormat("pyro_neuralrg.counting", 2, "count")
SETTINGS = {"seed": 3, "target": {"shape": (2, 2)}}


def count(
    record: Record,
    steps: int,
    settings: dict[str, Any] | None = None,
    act: Callable[[int], object] = lambda _: None,
) -> Checkpoints:
    """A run that adds up the numbers of its steps."""
    with Checkpoints(record, FORMAT, Processes()) as checkpoints:
        found = checkpoints.find(SETTINGS if settings is None else settings)
        value = torch.zeros(2) if found is None else found["value"]
        for step in range(int(value[0]) + 1, steps + 1):
            act(step)
            value = torch.tensor([step, float(value[1]) + step])
            if checkpoints.is_due(step) or step == steps:
                checkpoints.keep(step, {"value": value})
    assert value.tolist() == [steps, steps * (steps + 1) / 2]
    return checkpoints


def often(folder: Path, **options: Any) -> Record:
    return Record(folder, every=0, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def files(*steps: int) -> list[str]:
    return [f"counting-{step:010d}.pt" for step in steps]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """A finished run that is resumed writes nothing."""
    count(often(tmp_path / "a", keep=4), 9)
    assert names(tmp_path / "a") == files(6, 7, 8, 9)
    count(Record(tmp_path / "b", every_steps=4), 10)
    assert names(tmp_path / "b") == files(4, 8, 10)
    count(Record(tmp_path / "c", every=1e9), 10)
    assert names(tmp_path / "c") == files(10)
    count(often(tmp_path / "a", keep=1, resume=True), 10)
    assert names(tmp_path / "a") == files(10)
    before = (tmp_path / "a" / files(10)[0]).stat().st_mtime_ns
    with Checkpoints(often(tmp_path / "a", resume=True), FORMAT, Processes()) as checkpoints:
        checkpoints.keep(10, checkpoints.find(SETTINGS) or {})
    assert (tmp_path / "a" / files(10)[0]).stat().st_mtime_ns == before


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no checkpoint yet: counting starts from the beginning"):
        count(often(tmp_path, resume=True), 3)
    with pytest.raises(CheckpointError, match="an earlier counting run; accepted: resume=True, or"):
        count(often(tmp_path), 3)


def test_other_settings_are_named(tmp_path: Path) -> None:
    count(often(tmp_path), 3)
    other = {"seed": 4, "target": {"shape": (2, 3)}}
    message = r"seed 3 \(here 4\); target\.shape \[2, 2\] \(here \[2, 3\]\); accepted"
    with pytest.raises(CheckpointError, match=message) as caught:
        count(often(tmp_path, resume=True), 5, other)
    assert caught.value.differing["seed"] == (3, 4)


def test_another_target_is_refused() -> None:
    energies = torch.tensor([1.0, -300.0])
    check_energies("here", energies, energies * (1 + 1e-5))
    for other in (energies + 0.1, energies * torch.nan):
        with pytest.raises(CheckpointError, match=r"here holds .* of another target: its energies"):
            check_energies("here", energies, other)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut off, flip a bit, or overwrite a stretch; never the same as before."""
    where = chance.randrange(len(data))
    kind = chance.randrange(3)
    if kind == 0:
        return data[:where]
    if kind == 1:
        return data[:where] + bytes([data[where] ^ 1 << chance.randrange(8)]) + data[where + 1 :]
    return data[:where] + chance.randbytes(16) + data[where + 16 :]


@pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_corruption_is_found(number: int, tmp_path: Path, seed: int) -> None:
    path, chance = tmp_path / "file.pt", random.Random(seed)
    FORMAT.write(path, {"settings": "{}", "value": torch.ones(3)})
    data = path.read_bytes()
    assert FORMAT.read(path)["value"].tolist() == [1, 1, 1]
    # bits that say who wrote it and which version, and every kind of damage anywhere
    cases = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(26)]
    for bad in [*cases, *(damage(data, chance) for _ in range(number))]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"is corrupt.*accepted"):
            FORMAT.read(path)


@pytest.mark.parametrize("kind", ["corrupt", "unreadable"])
def test_the_newest_intact_one_is_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(often(tmp_path), 9)
    (tmp_path / files(99)[0]).write_text("")
    newest = tmp_path / files(9)[0]
    said = r"00009\.pt"
    if kind == "corrupt":
        newest.write_bytes(newest.read_bytes()[:-7])
        said += " is corrupt"
    else:
        break_reading(newest.name, monkeypatch)
        said = rf"\[Errno 5\] .*{said}'"
    with pytest.warns(UserWarning, match=r"going on from .*08\.pt") as caught:
        count(often(tmp_path, resume=True, keep=2), 11)
    assert len(caught) == 2  # of that one, too
    assert re.search(said, str(caught[1].message))
    assert names(tmp_path) == files(10, 11)


@pytest.mark.parametrize("kind", ["corrupt", "unreadable"])
def test_no_intact_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count(often(tmp_path), 2)
    if kind == "unreadable":
        break_reading("counting", monkeypatch)
    for path in tmp_path.glob("*.pt"):
        path.write_text("")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint in .*(corrupt|Input/output)"):
        count(often(tmp_path, resume=True), 5)
    assert names(tmp_path) == files(1, 2)


def test_files_of_other_versions_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / files(3)[0]
    contents = {"settings": "{}", "value": torch.ones(3)}
    replace(FORMAT, version=1).write(path, contents)
    with pytest.raises(CheckpointError, match=r"has version 1; accepted: .*count, version 2$"):
        count(often(tmp_path, resume=True), 5)
    replace(FORMAT, name="pyro_neuralrg.other").write(path, contents)
    with pytest.raises(CheckpointError, match="is not a counting file"):
        count(often(tmp_path, resume=True), 5)
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match="has no seal: it is of an earlier version"):
        count(often(tmp_path, resume=True), 5)


def test_the_disk_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intact ones stay, the run goes on; with room again, there is the newest one."""
    fill_disk(lambda path: path.name in files(3, 4, 5), monkeypatch)
    seen = []
    with pytest.warns(UserWarning, match=r"03\.pt cannot be written .*No space.*run goes on") as w:
        checkpoints = count(often(tmp_path), 7, act=lambda _: seen.append(names(tmp_path)))
    assert len(w) == 1
    assert seen[2:6] == [files(1, 2)] * 4
    assert names(tmp_path) == files(2, 6, 7)
    assert checkpoints.unsaved is None


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"folder is .*file.*accepted: a folder that can be"):
        count(often(tmp_path / "file"), 3)

    def refuse(*_: object) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", refuse)  # it is not an empty folder
    with pytest.raises(CheckpointError, match=r"cannot be read .*Permission denied"):
        count(often(tmp_path, resume=True), 3)


def test_a_folder_serves_one_run_at_a_time(tmp_path: Path) -> None:
    """Another one would remove its later checkpoints; what writers left goes at the beginning."""
    left, other = tmp_path / ".counting-0000000015.pt.ab.tmp", tmp_path / ".mine.tmp"
    for path in (left, other):
        path.write_text("torn")

    def second(step: int) -> None:
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=f"{tmp_path}, which another run uses"):
                count(often(tmp_path, resume=resume), 3)

    count(often(tmp_path), 3, act=second)
    assert names(tmp_path) == [other.name, *files(1, 2, 3)]
    count(often(tmp_path, resume=True), 4)


KILLS = """
    import os, random, signal, sys, time, warnings
    from pathlib import Path
    from tests.files.test_record import count, often

    folder, kills, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
    chance, survived = random.Random(seed), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            warnings.simplefilter("ignore")  # of the first, which finds nothing
            count(often(folder, resume=True), 1_000_000)
            os._exit(0)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        survived += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    sys.stdout.write(str(survived))
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    (tmp_path / ".counting-0000000001.pt.0a.tmp").write_text("torn")
    count(often(tmp_path), 3)
    assert names(tmp_path)[-1] == "counting-0000000003.pt"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_by_the_system_at_random_moments(tmp_path: Path, seed: int) -> None:
    """SIGKILL amid ceaseless saving, again and again: in the end as if there had been none.

    The processes are forked from one that has imported everything but computed nothing.
    """
    command = [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path), "30", str(seed)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert int(found.stdout) == 30  # none had time to finish
    steps = int(names(tmp_path)[-1][9:19])
    count(often(tmp_path, resume=True), steps + 2)
    assert names(tmp_path) == files(steps, steps + 1, steps + 2)  # and nothing half-written


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folder": 3}, TypeError, "folder is an int; accepted: a path"),
        ({"folder": ""}, ValueError, "folder is ''; accepted: a path"),
        ({"every": -1.0}, ValueError, "every is -1.0; accepted: a number of seconds"),
        ({"every_steps": 0}, ValueError, "every_steps is 0; accepted: an integer >= 1"),
        ({"keep": 0}, ValueError, "keep is 0"),
        ({"resume": 1}, TypeError, "resume is an int; accepted: True or False"),
        ({"history": "a.csv"}, TypeError, "history is a str; accepted: True or False"),
    ],
)
def test_bad_records(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Record(**{"folder": "states", **options})


@pytest.mark.parametrize("write", [replacing, writing])
def test_a_block_that_raises_leaves_what_was_there(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def tear(file: Any) -> None:
        _ = file.write_text("half of i") if write is replacing else file.write(b"half of i")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), write(path) as file:
        tear(file)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_the_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with writing(tmp_path / "ours"):
        pass
    usual, ours = ((tmp_path / name).stat().st_mode for name in ("usual", "ours"))
    assert ours == usual
