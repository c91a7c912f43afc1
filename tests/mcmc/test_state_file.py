# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Runs that were stopped go on with the very draws of runs that were not."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_neuralrg
from pyro_neuralrg import HMC, FreeField, VectorizedMCMC
from pyro_neuralrg.files.atomic import writing
from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.mcmc import Adaptation, ChEESHMC, EnergyTarget, Kernel
from pyro_neuralrg.mcmc.checkpoints import FORMAT, keep_before, read_newest
from tests.broken_files import break_reading, fill_disk
from tests.mcmc.registry import KERNELS, TARGETS

ROOT = Path(pyro_neuralrg.__file__).parents[1]


class KilledError(Exception):
    """The end of the process, as far as the runner can tell."""


def dying(energy: Callable[[Tensor], Tensor], calls: int) -> Callable[[Tensor], Tensor]:
    """The same energy, which after that many calls raises."""
    counter = itertools.count(1)

    def mortal(x: Tensor) -> Tensor:
        if next(counter) > calls:
            raise KilledError
        return energy(x)

    return mortal


def make(kernel: Kernel, **options: Any) -> VectorizedMCMC:
    settings: dict[str, Any] = {"warmup_steps": 30, "num_chains": 5, "seed": 3, "progress": False}
    settings["adaptation"] = Adaptation(mass="diagonal")
    settings["observables"] = {"square": lambda x: x.square().flatten(1).mean(1)}
    return VectorizedMCMC(kernel, **({"num_samples": 12} | settings | options))


def assert_same(one: VectorizedMCMC, other: VectorizedMCMC) -> None:
    assert torch.equal(one.positions, other.positions)
    for name in ("sample_stats", "warmup_stats", "observables"):
        first, second = getattr(one, name), getattr(other, name)
        assert set(first) == set(second)
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True)
    assert one.gradient_evaluations == other.gradient_evaluations
    assert one.seed == other.seed


@pytest.mark.parametrize("name", KERNELS)
def test_a_finished_run_goes_on_with_more_draws(name: str, tmp_path: Path) -> None:
    kernel = KERNELS[name](TARGETS["free field"]())
    whole, part = make(kernel, num_samples=12), make(kernel, num_samples=5)
    whole.run()
    part.run()
    part.save(tmp_path / "run.pt")
    rest = make(kernel, num_samples=12, seed=99)
    rest.load(tmp_path / "run.pt")
    assert rest.interrupted
    assert torch.equal(rest.positions, part.positions)
    rest.resume()
    assert_same(rest, whole)
    rest.resume()  # all is done
    assert_same(rest, whole)


def test_a_finished_run_goes_on_in_the_same_process() -> None:
    kernel = KERNELS["hmc"](TARGETS["free field"]())
    whole, part = make(kernel, num_samples=12), make(kernel, num_samples=5)
    whole.run()
    part.run()
    part.num_samples = 12
    part.resume()
    assert_same(part, whole)


def count_calls(mcmc: VectorizedMCMC) -> int:
    """Energies and gradients of a run, each of all chains at once."""
    return int(mcmc.gradient_evaluations.total) // mcmc.num_chains


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["hmc", "chees"])
def test_killed_anywhere_the_last_saved_state_goes_on(
    kind: str, fraction: float, tmp_path: Path
) -> None:
    energy, path = TARGETS["correlated Gaussian"]().energy, tmp_path / "run.pt"

    def kernel(energy: Callable[[Tensor], Tensor]) -> Kernel:
        target = EnergyTarget(energy, (5,))
        return HMC(target, num_steps=3) if kind == "hmc" else ChEESHMC(target)

    whole = make(kernel(energy))
    whole.run()
    calls = int(fraction * count_calls(whole))
    with pytest.raises(KilledError):
        make(kernel(dying(energy, calls)), checkpoint=path, checkpoint_every=1e-9).run()
    after = make(kernel(energy))
    after.load(path)
    after.resume()
    assert_same(after, whole)


def test_interrupted_and_resumed_in_the_same_process() -> None:
    target = TARGETS["correlated Gaussian"]()
    whole = make(HMC(target.energy, shape=(5,), num_steps=3))
    whole.run()
    counter, last = itertools.count(), count_calls(whole) - 10

    def energy(x: Tensor) -> Tensor:
        if next(counter) == last:
            raise KeyboardInterrupt
        return target.energy(x)

    mcmc = make(HMC(energy, shape=(5,), num_steps=3))
    mcmc.run()
    assert mcmc.interrupted
    assert 0 < mcmc.positions.shape[1] < 12
    mcmc.resume()
    assert not mcmc.interrupted
    assert_same(mcmc, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0.1, 0.4])
def test_signals_in_the_warm_up_save_first(moment: float, number: int, tmp_path: Path) -> None:
    """After the present step, and go on with the very numbers, here or in another process."""
    target, path = TARGETS["correlated Gaussian"](), tmp_path / "run.pt"
    whole = make(HMC(target.energy, shape=(5,), num_steps=3))
    whole.run()
    counter, at = itertools.count(), int(moment * count_calls(whole))

    def energy(x: Tensor) -> Tensor:
        if next(counter) == at:
            signal.raise_signal(number)
        return target.energy(x)

    handler = signal.getsignal(number)
    options = {"checkpoint": path, "checkpoint_every": 1e9}
    stopped = make(HMC(energy, shape=(5,), num_steps=3), **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert signal.getsignal(number) is handler
    assert stopped.interrupted
    assert 0 < stopped.warmup_stats["lp"].shape[1] < 30
    after = make(HMC(target.energy, shape=(5,), num_steps=3))
    after.load(path)
    for one in (stopped, after):
        one.resume()
        assert not one.interrupted
        assert_same(one, whole)


def test_the_checkpoint_before_the_newest_is_kept(tmp_path: Path) -> None:
    kernel, path = HMC(gaussian()), tmp_path / "run.pt"
    whole = make(kernel, checkpoint=path, checkpoint_every=1e-9)
    whole.run()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.previous.pt", "run.pt"]
    drawn = [
        FORMAT.read(tmp_path / name)["costs"]["drawn"] for name in ("run.previous.pt", "run.pt")
    ]
    assert drawn == [11, 12]
    finished = path.stat().st_mtime_ns
    again = make(kernel, checkpoint=path)
    again.load(path)
    again.resume()  # nothing to draw, nothing to write
    assert path.stat().st_mtime_ns == finished
    data = path.read_bytes()
    for damaged, said in ((data[:-7], "is corrupt"), (None, r"run\.pt is missing")):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        rest = make(kernel)
        with pytest.warns(UserWarning, match=rf"{said}.*; going on from .*run\.previous\.pt"):
            rest.load(path)
        rest.resume()
        assert_same(rest, whole)


def test_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    """The newest intact one is used, beyond a gap too; fewer stay when fewer are asked for."""
    kernel, path = HMC(gaussian()), tmp_path / "run.pt"
    names = ["run.pt", "run.previous.pt", "run.previous-2.pt", "run.previous-3.pt"]
    others = {"run.previous-x.pt": "of somebody else", "run.previous_9.pt": "likewise"}
    for name, text in others.items():
        (tmp_path / name).write_text(text)

    def kept() -> list[int]:
        there = {file.name for file in tmp_path.iterdir()}
        assert there.issuperset(others)
        assert there.issubset({*names, *others})
        files = [tmp_path / name for name in names if name in there]
        return [FORMAT.read(file)["costs"]["drawn"] for file in files]

    options = {"checkpoint": path, "checkpoint_every": 1e-9}
    make(kernel, checkpoint_keep=4, **options).run()
    assert kept() == [12, 11, 10, 9]
    (tmp_path / names[1]).unlink()  # killed between two renames
    for name in (names[0], names[2]):
        (tmp_path / name).write_bytes(b"")
    rest = make(kernel, num_samples=15, checkpoint_keep=3, **options)
    with pytest.warns(UserWarning, match=r"going on from .*run\.previous-3\.pt") as caught:
        rest.load(path)
    assert len(caught) == 3
    rest.resume()
    assert kept() == [15, 14, 13]
    last = make(kernel, num_samples=16, checkpoint_keep=1, **options)
    last.load(path)
    last.resume()
    assert kept() == [16]
    whole = make(kernel, num_samples=16)
    whole.run()
    assert_same(last, whole)


def test_the_file_before_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on from the one before; without any, it says why."""
    kernel, path = HMC(gaussian()), tmp_path / "run.pt"
    whole = make(kernel, checkpoint=path, checkpoint_every=1e-9)
    whole.run()
    rest = make(kernel, checkpoint=path)
    with monkeypatch.context() as patch:
        break_reading("run.pt", patch)
        said = r"\[Errno 5\] .*run\.pt'; going on from .*run\.previous\.pt"
        with pytest.warns(UserWarning, match=said):
            rest.load(path)
    rest.resume()
    assert_same(rest, whole)
    for newest in ("damaged", "missing", "unreadable"):
        data = path.read_bytes()
        if newest == "damaged":
            path.write_bytes(data[:-7])
        elif newest == "missing":
            path.unlink()
        with monkeypatch.context() as patch:
            break_reading("run" if newest == "unreadable" else "run.previous", patch)
            with pytest.raises(OSError, match="Input/output error") as caught:
                rest.load(path)
        assert str(tmp_path) in str(caught.value)
        path.write_bytes(data)
    path.unlink()
    path.with_name("run.previous.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"run\.previous\.pt is corrupt"):
        rest.load(path)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_corruption_is_found(count: int, tmp_path: Path, seed: int) -> None:
    path, chance = tmp_path / "run.pt", random.Random(seed)
    mcmc = make(HMC(gaussian()))
    mcmc.run()
    mcmc.save(path)
    data = path.read_bytes()
    for _ in range(count):
        at, kind = chance.randrange(len(data)), chance.randrange(2)
        flipped = bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        path.write_bytes(data[:at] + (flipped if kind else b""))
        with pytest.raises(ValueError, match=r"is corrupt.*accepted"):
            mcmc.load(path)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk, say, does not end days of sampling."""
    kernel = HMC(gaussian())
    whole, path = make(kernel), tmp_path / "folder"
    whole.run()
    other = make(kernel, checkpoint=path)
    path.mkdir()
    other.checkpoint_every = 1e-9
    said = r"folder cannot be written .* the run goes on without it"
    with pytest.warns(UserWarning, match=said) as caught:
        other.run()
    assert len(caught) == 1  # of one for each step
    assert_same(other, whole)
    assert other.unsaved is not None
    assert f"{path} cannot be written" in other.unsaved
    path.rmdir()
    other.resume()  # nothing to draw, but to save
    assert other.unsaved is None
    assert path.is_file()


SCRIPT = """
    import sys, torch
    from pyro_neuralrg import HMC, VectorizedMCMC
    from pyro_neuralrg.potentials import FreeField

    torch.set_num_threads(1)
    kernel = HMC(FreeField((4, 4), 0.8), num_steps=3)
    mcmc = VectorizedMCMC(
        kernel, int(sys.argv[2]), 20, 4, seed=0, progress=False,
        checkpoint=sys.argv[1], checkpoint_every=1e-9,
    )
    print("begin", flush=True)
    mcmc.run()
"""


def test_killed_by_the_system(tmp_path: Path) -> None:
    """SIGKILL amid ceaseless saving: the file that is there loads, and the run goes on."""
    path = tmp_path / "run.pt"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            while not path.exists():
                assert process.poll() is None
            before = path.stat().st_mtime_ns
            while path.stat().st_mtime_ns == before:  # it is never missing
                assert process.poll() is None
        finally:
            process.kill()
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float32)
        kernel = HMC(FreeField((4, 4), 0.8), num_steps=3)
        mcmc = VectorizedMCMC(kernel, 3, 20, 4, progress=False)
        mcmc.load(path)
        mcmc.resume()
        assert mcmc.positions.shape[1] >= 3


KILLS = """
    import os, random, signal, sys, time, warnings
    from pathlib import Path
    import torch
    from pyro_neuralrg import HMC, VectorizedMCMC
    from pyro_neuralrg.potentials import FreeField

    path, kills, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_default_dtype(torch.float64)
    chance, survived = random.Random(seed), 0
    for number in range(kills):
        started, begun = os.pipe()
        child = os.fork()
        if child == 0:
            kernel = HMC(FreeField((2, 2), 0.8), num_steps=3)
            mcmc = VectorizedMCMC(
                kernel, 100_000, 20, 4, seed=7, progress=False,
                checkpoint=path, checkpoint_every=1e-9,
            )
            os.write(begun, b"!")
            if path.exists():
                mcmc.load(path)
                mcmc.resume()
            else:
                mcmc.run()
            os._exit(0)
        os.read(started, 1)
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        survived += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    sys.stdout.write(str(survived))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_by_the_system_at_random_moments(kills: int, tmp_path: Path, seed: int) -> None:
    """SIGKILL amid ceaseless saving, again and again: in the end the draws of an unhurt run.

    The processes are forked from one that has imported everything but computed nothing.
    """
    path = tmp_path / "run.pt"
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(path), str(kills), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert int(found.stdout) == kills  # none had time to finish
    kernel = HMC(FreeField((2, 2), 0.8), num_steps=3)
    if not path.exists():  # each of them was killed too soon
        VectorizedMCMC(kernel, 1, 20, 4, seed=7, progress=False, checkpoint=path).run()
    draws = FORMAT.read(path)["costs"]["drawn"] + 3
    rest = VectorizedMCMC(kernel, draws, 20, 4, progress=False, checkpoint=path)
    rest.load(path)
    rest.resume()
    whole = VectorizedMCMC(kernel, draws, 20, 4, seed=7, progress=False)
    whole.run()
    assert_same(rest, whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.previous.pt", "run.pt"]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """Of the same file only, and not what a living process writes."""
    path = tmp_path / "run[1].pt"
    left = [f".run[1]{name}.pt.0a.tmp" for name in ("", ".previous")]
    others = [".run.pt.0a.tmp", ".run1.pt.0a.tmp", "run[1].pt.0a.tmp", "mine.tmp"]
    for name in [*left, *others]:
        (tmp_path / name).write_bytes(b"torn")
    with writing(path):  # by another run
        (alive,) = {file.name for file in tmp_path.iterdir()} - {*left, *others}
        make(HMC(gaussian()), checkpoint=path).run()
        names = {file.name for file in tmp_path.iterdir()}
    assert names == {*others, alive, "run[1].pt"}


@pytest.mark.parametrize("broken", ["writing", "replacing"])
def test_the_files_before_while_the_newest_cannot_be_written(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of as many states as before, or, killed or stopped between the two names, as one
    fewer; nothing else is left."""
    path, room, place = tmp_path / "run.pt", itertools.count(), os.replace
    if broken == "writing":
        fill_disk(lambda _: next(room) >= 5, monkeypatch)
    else:

        def crowded(source: Path, to: Path) -> None:
            if to == path and next(room) >= 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            place(source, to)

        monkeypatch.setattr(os, "replace", crowded)
    options = {"checkpoint": path, "checkpoint_every": 1e-9, "checkpoint_keep": 3}
    with pytest.warns(UserWarning, match="No space left on device"):
        make(HMC(gaussian()), **options).run()
    files = sorted(tmp_path.iterdir(), key=lambda file: file.name)
    assert [file.name for file in files] == ["run.previous-2.pt", "run.previous.pt", "run.pt"]
    warmed_up = [FORMAT.read(file)["costs"]["warmed_up"] for file in files]
    assert warmed_up == ([3, 4, 5] if broken == "writing" else [4, 5, 5])


def test_the_intact_file_before_is_kept_until_there_is_a_newer_one(tmp_path: Path) -> None:
    """The newest is damaged; the run goes on from the one before, and is killed as it saves."""
    path = tmp_path / "run.pt"
    kernel = HMC(FreeField((2, 2), 0.8), num_steps=3)
    mcmc = VectorizedMCMC(kernel, 4, 0, 2, progress=False, checkpoint=path, checkpoint_every=1e-9)
    mcmc.run()
    path.write_bytes(path.read_bytes()[:-7])
    keep_before(path, verify=True)  # as the first save of a run does
    with pytest.warns(UserWarning, match="going on from"):
        read_newest(path)


def gaussian(width: float = 1.0) -> EnergyTarget:
    return EnergyTarget(lambda x: 0.5 * (x / width).square().sum(-1), (4,))


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (lambda: ChEESHMC(gaussian()), {}, r"kernel\.whole 'HMC' \(here 'ChEESHMC'\)"),
        (lambda: HMC(gaussian()), {"num_chains": 4}, r"num_chains 5 \(here 4\)"),
        (lambda: HMC(gaussian()), {"thinning": 2}, r"thinning 1 \(here 2\)"),
        (lambda: HMC(gaussian()), {"warmup_steps": 3}, r"warmup_steps 30 \(here 3\)"),
        (lambda: HMC(gaussian()), {"keep_draws": False}, r"keep_draws True \(here False\)"),
        (lambda: HMC(gaussian()), {"observables": {}}, r"observables \['square'\] \(here \[\]\)"),
        (
            lambda: HMC(gaussian()),
            {"adaptation": Adaptation()},
            r"adaptation\.mass 'diagonal' \(here 'unit'\)",
        ),
        (lambda: HMC(EnergyTarget(gaussian().energy, (3,))), {}, r"sites\.x \[4\] \(here \[3\]\)"),
        (lambda: HMC(gaussian(), num_steps=9), {}, r"options\.hmc\.num_steps 10 \(here 9\)"),
        (lambda: HMC(gaussian(), jitter=0.5), {}, r"options\.hmc\.jitter 0\.0 \(here 0\.5\)"),
        (lambda: HMC(gaussian(1.1)), {}, r"another target: its energies are off by"),
    ],
)
def test_files_of_other_runs(
    kernel: Callable[[], Kernel], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.pt"
    mcmc = make(HMC(gaussian()))
    mcmc.run()
    mcmc.save(path)
    other = make(kernel(), **options)
    with pytest.raises(ValueError, match=rf"{path} is of .*{message}.*accepted"):
        other.load(path)
    with pytest.raises(RuntimeError, match=r"call run\(\) or load"):
        other.resume()


def test_files_that_are_none(tmp_path: Path) -> None:
    mcmc = make(HMC(gaussian()))
    with pytest.raises(RuntimeError, match=r"no run to save; call run\(\)"):
        mcmc.save(tmp_path / "run.pt")
    with pytest.raises(FileNotFoundError):
        mcmc.load(tmp_path / "none.pt")
    mcmc.run()
    mcmc.save(tmp_path / "run.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]
    whole = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"is corrupt"):
        mcmc.load(tmp_path / "run.pt")
    other = FileFormat("pyro_neuralrg.flow", FORMAT.version, "save", {}, sealed=True)
    other.write(tmp_path / "run.pt", {})
    with pytest.raises(ValueError, match=r"is not a sampling file"):
        mcmc.load(tmp_path / "run.pt")
