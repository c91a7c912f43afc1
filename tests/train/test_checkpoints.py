# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Trainings that were stopped, killed or damaged go on with the numbers of those that were not."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pyro_neuralrg
from pyro_neuralrg import IsingDual
from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.train import FitResult, TrainingStep, checkpoints, fit
from pyro_neuralrg.train.checkpoints import FORMAT, CheckpointError
from tests.broken_files import break_reading, fill_disk
from tests.infer.conftest import GaussianTarget

ROOT = Path(pyro_neuralrg.__file__).parents[1]
QUICK: dict[str, Any] = {
    "steps": 20, "batch": 8, "lr": 0.05, "progress": False, "average": 0.4, "every_steps": 3,
}  # fmt: skip
PLAIN = {name: value for name, value in QUICK.items() if name != "every_steps"}


class KilledError(Exception):
    """The end of the process, as far as the training can tell."""


def at(step: int, act: Callable[[], Any]) -> Callable[[TrainingStep], Any]:
    return lambda record: act() if record.step == step else None


def die() -> None:
    raise KilledError


def killed(target: Any, folder: Path, step: int, **options: Any) -> None:
    with pytest.raises(KilledError):
        fit(target, checkpoint=folder, callback=at(step, die), seed=5, **{**QUICK, **options})


def assert_same(one: FitResult, other: FitResult) -> None:
    for name, values in one.history.as_dict().items():
        if name != "seconds":
            np.testing.assert_array_equal(values, getattr(other.history, name))
    for first, second in zip(one.flow.parameters(), other.flow.parameters(), strict=True):
        assert torch.equal(first, second)
    for name in ("steps", "batch", "stopped", "divergences"):
        assert getattr(one, name) == getattr(other, name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_files(*steps: int) -> list[str]:
    return [f"training-{step:010d}.pt" for step in steps]


@pytest.mark.parametrize("step", [3, 7, 15, 19])
def test_killed_and_resumed_is_the_same_as_not_killed(
    step: int, target: Any, tmp_path: Path
) -> None:
    whole = fit(target, seed=5, **PLAIN)
    killed(target, tmp_path, step)
    assert names(tmp_path)[-1] == step_files(step // 3 * 3)[0]
    rest = fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert_same(rest, whole)
    assert (np.diff(rest.history.seconds) >= 0).all()
    assert names(tmp_path) == step_files(15, 18, 20)


def test_a_flow_of_this_package_with_path_gradients(tmp_path: Path) -> None:
    target, slow = IsingDual((2, 2), temperature=3.0), {"lr": 0.01}
    whole = fit(target, seed=5, **{**PLAIN, **slow})
    killed(target, tmp_path, 11, **slow)
    rest = fit(target, checkpoint=tmp_path, resume=True, seed=5, **{**QUICK, **slow})
    assert_same(rest, whole)


class Breaking(GaussianTarget):
    """Its energy is NaN from one evaluation on."""

    def __init__(self, sound: int) -> None:
        super().__init__()
        self.sound = sound

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        self.sound -= 1
        return super().energy(x) + (0.0 if self.sound >= 0 else math.nan)


@pytest.mark.filterwarnings("ignore:training (diverged|stopped):UserWarning")
def test_a_loss_that_is_nan_right_after_resuming(tmp_path: Path) -> None:
    """Goes back to parameters that another process found."""
    options: dict[str, Any] = {"anneal": None, "average": 0.0}
    whole = fit(Breaking(1 + 6), seed=5, **{**PLAIN, **options})
    killed(Breaking(100), tmp_path, 6, **options)
    rest = fit(Breaking(0), checkpoint=tmp_path, resume=True, seed=5, **{**QUICK, **options})
    assert rest.stopped == "the loss at step 6 is nan, after 10 divergences before"
    assert_same(rest, whole)
    assert names(tmp_path) == step_files(3, 6)


class Cliff(GaussianTarget):
    """Its energy is NaN beyond a height, which some batches reach."""

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return super().energy(x).masked_fill((x > 2.8).flatten(-2).any(-1), math.nan)

    def heated(self, factor: float) -> GaussianTarget:
        return Cliff(self.shape, self.variance * factor)


@pytest.mark.filterwarnings("ignore:training diverged:UserWarning")
@pytest.mark.parametrize("step", [3, 7, 12, 16, 19])
def test_killed_and_resumed_around_divergences(step: int, tmp_path: Path) -> None:
    whole = fit(Cliff(), seed=5, **PLAIN)
    assert 2 <= whole.divergences <= 10
    assert whole.stopped is None
    killed(Cliff(), tmp_path, step)
    assert_same(fit(Cliff(), checkpoint=tmp_path, resume=True, seed=5, **QUICK), whole)


@pytest.mark.filterwarnings("ignore:training diverged:UserWarning")
def test_killed_and_resumed_while_the_rate_is_too_large(target: Any, tmp_path: Path) -> None:
    """The running mean, its best and the rise of the rate go on where they were."""
    options: dict[str, Any] = {"steps": 150, "lr": 40.0, "clip": None}
    whole = fit(target, seed=5, **{**PLAIN, **options})
    assert 2 <= whole.divergences <= 10
    for step in (20, 50, 110):
        killed(target, tmp_path / str(step), step, **options)
        there = {**QUICK, **options, "checkpoint": tmp_path / str(step)}
        assert_same(fit(target, resume=True, seed=5, **there), whole)


def test_without_a_seed_the_global_state_goes_on(target: Any, tmp_path: Path) -> None:
    torch.manual_seed(11)
    whole = fit(target, **PLAIN)
    expected = torch.rand(2)
    torch.manual_seed(11)
    with pytest.raises(KilledError):
        fit(target, checkpoint=tmp_path, callback=at(10, die), **QUICK)
    torch.manual_seed(12)
    assert_same(fit(target, checkpoint=tmp_path, resume=True, **QUICK), whole)
    assert torch.equal(torch.rand(2), expected)


def test_resuming_a_finished_training_takes_no_step(target: Any, tmp_path: Path) -> None:
    whole = fit(target, checkpoint=tmp_path, seed=5, **QUICK)
    again = fit(target, checkpoint=tmp_path, resume=True, seed=5, callback=lambda _: die(), **QUICK)
    assert_same(again, whole)


def test_nothing_to_resume_begins_and_says_so(target: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"holds no checkpoint yet: training starts from the begi"):
        begun = fit(target, checkpoint=tmp_path / "new", resume=True, seed=5, **QUICK)
    assert_same(begun, fit(target, seed=5, **PLAIN))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_save_first(name: str, target: Any, tmp_path: Path) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    stopped = fit(
        target,
        checkpoint=tmp_path,
        callback=at(9, lambda: signal.raise_signal(number)),
        seed=5,
        **{**PLAIN, "every": 1e9},
    )
    assert signal.getsignal(number) is before
    assert stopped.interrupted
    assert stopped.stopped == "interrupted at step 10"
    assert names(tmp_path) == step_files(10)
    rest = fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert not rest.interrupted
    assert_same(rest, fit(target, seed=5, **PLAIN))


def test_every_so_many_seconds(target: Any, tmp_path: Path) -> None:
    fit(target, checkpoint=tmp_path / "often", every=0, keep=4, seed=5, **PLAIN)
    assert names(tmp_path / "often") == step_files(17, 18, 19, 20)
    fit(target, checkpoint=tmp_path / "seldom", every=1e9, seed=5, **PLAIN)
    assert names(tmp_path / "seldom") == step_files(20)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut off, flip a bit, or overwrite a stretch; never the same as before."""
    where = chance.randrange(len(data))
    kind = chance.randrange(3)
    if kind == 0:
        return data[:where]
    if kind == 1:
        return data[:where] + bytes([data[where] ^ 1 << chance.randrange(8)]) + data[where + 1 :]
    noise = chance.randbytes(16)
    return data[:where] + noise + data[where + 16 :]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_corruption_is_found(count: int, target: Any, tmp_path: Path, seed: int) -> None:
    killed(target, tmp_path, 4)
    path = tmp_path / step_files(3)[0]
    data, chance = path.read_bytes(), random.Random(seed)
    FORMAT.read(path)
    # bits that say who wrote it and which version, and every kind of damage anywhere
    cases = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(26)]
    for bad in [*cases, *(damage(data, chance) for _ in range(count))]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"is corrupt.*accepted"):
            FORMAT.read(path)


def test_the_one_before_a_corrupt_one_is_used(target: Any, tmp_path: Path) -> None:
    whole = fit(target, seed=5, **PLAIN)
    killed(target, tmp_path, 13)
    assert names(tmp_path) == step_files(6, 9, 12)
    for step, size in ((12, 0), (9, 2000)):
        path = tmp_path / step_files(step)[0]
        path.write_bytes(path.read_bytes()[:size])
    (tmp_path / ".training-0000000015.pt.ab.tmp").write_text("of a process that was killed")
    with pytest.warns(UserWarning, match="is corrupt") as caught:
        rest = fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    assert all("is corrupt" in one and one.endswith(step_files(6)[0]) for one in said)
    assert_same(rest, whole)
    assert names(tmp_path) == step_files(15, 18, 20)


def test_the_one_before_an_unreadable_one_is_used(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(target, seed=5, **PLAIN)
    killed(target, tmp_path, 13)
    with monkeypatch.context() as patch:
        break_reading("training-", patch)
        with pytest.raises(CheckpointError, match=r"where none can be read: \[Errno 5\] .*12\.pt"):
            fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    break_reading("training-0000000012", monkeypatch)
    with pytest.warns(UserWarning, match=r"\[Errno 5\] .*12\.pt'; going on from .*09\.pt"):
        rest = fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert_same(rest, whole)


def test_no_intact_one(target: Any, tmp_path: Path) -> None:
    killed(target, tmp_path, 4)
    (tmp_path / step_files(3)[0]).write_text("")
    with pytest.raises(CheckpointError, match=r"where none is intact: .*is corrupt"):
        fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert names(tmp_path) == step_files(3)


def test_later_files_of_no_use_are_replaced(target: Any, tmp_path: Path) -> None:
    killed(target, tmp_path, 4)
    (tmp_path / step_files(99)[0]).write_text("")
    with pytest.warns(UserWarning, match="is corrupt"):
        fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert names(tmp_path) == step_files(15, 18, 20)


def test_code_is_never_run(target: Any, tmp_path: Path) -> None:
    """Also in a file whose checksum is right."""
    killed(target, tmp_path, 4)
    path = tmp_path / step_files(3)[0]
    contents = FORMAT.read(path)
    FORMAT.write(path, {**contents, "random": {"cpu": Marker(tmp_path / "ran")}})
    with pytest.raises(CheckpointError, match="holds more than tensors and plain data"):
        fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)
    assert not (tmp_path / "ran").exists()


class Marker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)

    def __repr__(self) -> str:
        return "marker"


def test_another_version_is_refused(target: Any, tmp_path: Path) -> None:
    killed(target, tmp_path, 8)
    path = tmp_path / step_files(6)[0]
    old = FileFormat(FORMAT.name, 0, FORMAT.writer, FORMAT.entries, sealed=True)
    old.write(path, FORMAT.read(path))
    with pytest.raises(CheckpointError, match=r"has version 0; accepted: .*, version 2$"):
        fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)


def test_an_earlier_training_is_not_overwritten(target: Any, tmp_path: Path) -> None:
    killed(target, tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"an earlier training; accepted: resume=True, or a"):
        fit(target, checkpoint=tmp_path, seed=5, **QUICK)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"steps": 21}, ["steps 20 (here 21)"]),
        ({"batch": 10, "lr": 0.1}, ["batch 8 (here 10)", "learning_rate 0.05 (here 0.1)"]),
        ({"clip": None}, ["clip 100.0 (here inf)"]),
        ({"anneal": None}, ["anneal [1.3, 0.1] (here None)"]),
        ({"average": 0.0, "seed": 6}, ["average 0.4 (here 0.0)", "seed 5 (here 6)"]),
        ({"path_gradient": True}, ["path_gradient False (here True)"]),
    ],
)
def test_every_setting_that_differs_is_named(
    options: dict[str, Any], fields: list[str], target: Any, tmp_path: Path
) -> None:
    killed(target, tmp_path, 4)
    with pytest.raises(CheckpointError, match="is of another training, with") as caught:
        fit(target, **{**QUICK, "checkpoint": tmp_path, "resume": True, "seed": 5, **options})
    for named in fields:
        assert named in str(caught.value)
    assert str(caught.value).count("(here") == len(fields)


def test_another_flow_or_target_is_named(tmp_path: Path) -> None:
    killed(IsingDual((2, 2), temperature=3.0), tmp_path, 4)
    options = {**QUICK, "checkpoint": tmp_path, "resume": True, "seed": 5}
    with pytest.raises(CheckpointError) as caught:
        fit(IsingDual((4, 2), temperature=2.0), **options)
    for named in (
        "target.shape [2, 2] (here [4, 2])", "target.temperature 3.0 (here 2.0)",
        "flow.shape [2, 2] (here [4, 2])", "parameters",
    ):  # fmt: skip
        assert named in str(caught.value)
    couplings = IsingDual((2, 2), temperature=3.0, couplings=(1.5, 1.5))
    with pytest.raises(CheckpointError, match="of another target: its energies are off by"):
        fit(couplings, IsingDual((2, 2), temperature=3.0).flow(), **options)


def test_a_checkpoint_that_cannot_be_written(target: Any, tmp_path: Path) -> None:
    """A full disk, say, does not end days of training."""

    def gone() -> None:
        for path in tmp_path.joinpath("a").iterdir():
            path.unlink()
        tmp_path.joinpath("a").rmdir()

    said = r"training-0000000018.pt cannot be written \(FileNotFoundError.*goes on without"
    with pytest.warns(UserWarning, match=said) as caught:
        result = fit(target, checkpoint=tmp_path / "a", seed=5, callback=at(16, gone), **QUICK)
    assert len(caught) == 1  # of two that were tried
    assert_same(result, fit(target, seed=5, **PLAIN))
    assert result.unsaved is not None
    assert f"{tmp_path}/a/training-0000000020.pt cannot be written" in result.unsaved


def test_the_disk_is_full_for_a_while(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last intact checkpoint stays; with room again, there is the newest one."""
    there: list[list[str]] = []

    def full(_: Path) -> bool:
        there.append(sorted(path.name for path in tmp_path.glob("training*")))
        return 2 <= len(there) <= 4

    fill_disk(full, monkeypatch)
    with pytest.warns(UserWarning, match=r"No space left on device") as caught:
        result = fit(target, checkpoint=tmp_path, seed=5, **QUICK)
    assert len(caught) == 1
    assert there[1:5] == [step_files(3)] * 4
    assert names(tmp_path) == step_files(15, 18, 20)
    assert result.unsaved is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": 3}, TypeError, "checkpoint is 3; accepted: a folder"),
        ({"checkpoint": ""}, ValueError, "checkpoint is ''; accepted: a folder"),
        ({"every": -1.0}, ValueError, "every is -1.0; accepted: a number of seconds"),
        ({"every": "soon"}, TypeError, "every is 'soon'"),
        ({"every_steps": 0}, ValueError, "every_steps is 0; accepted: an integer >= 1"),
        ({"keep": 0}, ValueError, "keep is 0"),
        ({"resume": 1}, TypeError, "resume is 1; accepted: True or False"),
        (
            {"every": 1, "every_steps": 2},
            ValueError,
            "every is 1 and every_steps is 2; accepted: one",
        ),
        ({"checkpoint": None, "resume": True}, ValueError, "resume is True without checkpoint"),
        ({"checkpoint": None, "every": 60.0}, ValueError, "every is 60.0 without checkpoint; acce"),
        ({"checkpoint": None, "every_steps": 2}, ValueError, "every_steps is 2 without checkpoint"),
        ({"checkpoint": None, "keep": 3}, ValueError, "keep is 3 without checkpoint"),
    ],
)
def test_bad_options(
    options: dict[str, Any], error: type[Exception], message: str, target: Any, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fit(target, **{"checkpoint": tmp_path, **PLAIN, **options})


def test_a_folder_that_cannot_be_made(target: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"checkpoint is .*file.*accepted: a folder that can be"
    ):
        fit(target, checkpoint=tmp_path / "file", **PLAIN)


def test_a_folder_that_cannot_be_read(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not an empty one."""
    killed(target, tmp_path, 4)

    def refuse(*_: object) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoint is .*Permission denied.*can be read"):
        fit(target, checkpoint=tmp_path, resume=True, seed=5, **QUICK)


KILLS = """
    import os, random, signal, sys, time, warnings
    import torch
    from pyro_neuralrg import fit
    from tests.infer.conftest import GaussianTarget

    folder, kills, steps, seed = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_default_dtype(torch.float64)
    chance, survived = random.Random(seed), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            warnings.simplefilter("ignore")  # of the first, which finds nothing
            fit(GaussianTarget(), steps=steps, batch=8, seed=1, progress=False,
                checkpoint=folder, every_steps=1, resume=True)
            os._exit(0)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        survived += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    sys.stdout.write(str(survived))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 400), pytest.param(20, 3000, marks=pytest.mark.slow)]
)
def test_killed_by_the_system_at_random_moments(
    kills: int, steps: int, target: Any, tmp_path: Path, seed: int
) -> None:
    """SIGKILL amid ceaseless saving, again and again: in the end all is as if there had been none.

    The processes are forked from one that has imported everything but computed nothing.
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path), str(kills), str(steps),
         str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert int(found.stdout) == kills  # none had time to finish
    options: dict[str, Any] = {"steps": steps, "batch": 8, "seed": 1, "progress": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*holds no checkpoint yet")  # killed too soon
        rest = fit(target, checkpoint=tmp_path, resume=True, **options)
    assert_same(rest, fit(target, **options))
    assert steps in [int(name[9:19]) for name in names(tmp_path)]  # and nothing half-written


def test_a_folder_serves_one_training_at_a_time(target: Any, tmp_path: Path) -> None:
    """Another one would remove its later checkpoints; interrupted, it can be resumed at once."""
    options: dict[str, Any] = {**QUICK, "checkpoint": tmp_path, "seed": 5}

    def second() -> None:
        there = names(tmp_path)
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=f"{tmp_path}, which another training uses"):
                fit(target, resume=resume, **options)
        assert names(tmp_path) == there
        signal.raise_signal(signal.SIGINT)

    assert fit(target, callback=at(7, second), **options).interrupted
    assert names(tmp_path) == step_files(3, 6, 8)
    assert_same(fit(target, resume=True, **options), fit(target, seed=5, **PLAIN))


def test_random_numbers_of_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one."""
    device, states = torch.device("cuda", 1), {torch.device("cuda", 1): torch.arange(3)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": states[device])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device="cuda": states.update({device: state})
    )
    parameter = SimpleNamespace(device=device)
    training: Any = SimpleNamespace(
        optimizer=SimpleNamespace(parameters=[parameter]), world=Processes()
    )
    saved = checkpoints._random_state(training)
    states[device] = torch.zeros(3)
    checkpoints._set_random_state(saved, training)
    assert list(states) == [device]
    assert torch.equal(states[device], torch.arange(3))


def test_files_hold_plain_data_with_the_configuration_of_the_flow(tmp_path: Path) -> None:
    killed(IsingDual((2, 2), temperature=3.0), tmp_path, 4)
    contents = FORMAT.read(tmp_path / step_files(3)[0])
    settings = json.loads(contents["settings"])
    assert settings["flow"]["shape"] == [2, 2]
    assert settings["processes"] == 1
    assert contents["training"]["step"] == 3
    assert contents["training"]["history"].shape == (3, 7)
