# SPDX-License-Identifier: Apache-2.0
"""Runs that were stopped go on with the very draws of runs that were not."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import HMC, Record, VectorizedMCMC
from pyro_neuralrg.files import CheckpointError
from pyro_neuralrg.mcmc import MAMS, MCLMC, Adaptation, ChEESHMC, EnergyTarget, Kernel
from pyro_neuralrg.mcmc.run_state import CHAIN_FORMAT
from tests.mcmc.registry import BIASED, KERNELS, TARGETS


class KilledError(Exception):
    """The end of the process, as far as the runner can tell."""


def acting(
    energy: Callable[[Tensor], Tensor], call: int, act: Callable[[], object]
) -> Callable[[Tensor], Tensor]:
    """The same energy, which acts when it is called for the so-manieth time after its trial."""
    counter = itertools.count(1 - 3)  # the trial of an energy: on a batch of two, on each alone

    def watched(x: Tensor) -> Tensor:
        if next(counter) == call:
            act()
        return energy(x)

    return watched


def die() -> None:
    raise KilledError


def make(kernel: Kernel, num_samples: int = 12, **options: Any) -> VectorizedMCMC:
    settings: dict[str, Any] = {"num_chains": 5, "seed": 3, "progress": False}
    settings["warmup_steps"] = Adaptation(mass="diagonal", steps=30)
    settings["observables"] = {"square": lambda x: x.square().flatten(1).mean(1)}
    return VectorizedMCMC(kernel, num_samples, **(settings | options))


def finished(kernel: Kernel, num_samples: int = 12, **options: Any) -> VectorizedMCMC:
    mcmc = make(kernel, num_samples, **options)
    mcmc.run()
    return mcmc


def resumed(kernel: Kernel, folder: Path, num_samples: int = 12, **options: Any) -> VectorizedMCMC:
    return finished(kernel, num_samples, record=Record(folder, resume=True), **options)


def assert_same(one: VectorizedMCMC, other: VectorizedMCMC, rtol: float = 0.0) -> None:
    assert torch.equal(one.positions, other.positions)
    for name in ("sample_stats", "warmup_stats", "observables"):
        first, second = getattr(one, name), getattr(other, name)
        assert set(first) == set(second)
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=rtol, atol=0, equal_nan=True)
    assert one.gradient_evaluations == other.gradient_evaluations
    assert one.seed == other.seed


def gaussian(width: float = 1.0, sites: int = 4) -> EnergyTarget:
    return EnergyTarget(lambda x: 0.5 * (x / width).square().sum(-1), (sites,))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


@pytest.mark.parametrize("name", KERNELS | BIASED)
def test_a_finished_run_goes_on_with_more_draws(name: str, tmp_path: Path) -> None:
    kernel = (KERNELS | BIASED)[name](TARGETS["free field"]())
    short = {"warmup_steps": Adaptation(mass="diagonal", steps=24)}
    whole = finished(kernel, 8, **short)
    finished(kernel, 3, record=Record(tmp_path), **short)
    rest = resumed(kernel, tmp_path, 8, **short)
    # proposals that are evaluated at once are so in other batches
    rounding = 1e-12 if kernel.steps_at_once(5) > 1 else 0.0
    assert_same(rest, whole, rounding)
    before = (tmp_path / names(tmp_path)[-1]).stat().st_mtime_ns
    rest.resume()  # nothing to draw, nothing to write
    assert_same(rest, whole, rounding)
    assert (tmp_path / names(tmp_path)[-1]).stat().st_mtime_ns == before


def test_a_finished_run_goes_on_in_the_same_process() -> None:
    kernel = HMC(gaussian())
    part = finished(kernel, 5)
    part.num_samples = 12
    part.resume()
    assert_same(part, finished(kernel))


def test_without_a_seed_the_seed_of_the_record_goes_on(tmp_path: Path) -> None:
    first = finished(HMC(gaussian()), 5, record=Record(tmp_path), seed=None)
    rest = resumed(HMC(gaussian()), tmp_path, seed=None)
    assert rest.seed == first.seed
    assert_same(rest, finished(HMC(gaussian()), seed=first.seed))


def count_calls(mcmc: VectorizedMCMC) -> int:
    """Energies and gradients of a run, each of all chains at once."""
    return int(mcmc.gradient_evaluations.total) // mcmc.num_chains


def correlated(act: Callable[[], object] | None = None, call: int = 0) -> EnergyTarget:
    """A Gaussian whose energy may act when it is called."""
    energy = TARGETS["correlated Gaussian"]().energy
    return EnergyTarget(energy if act is None else acting(energy, call, act), (5,))


@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.98])
@pytest.mark.parametrize("kind", [HMC, ChEESHMC, MAMS, MCLMC])
def test_killed_anywhere_the_last_saved_state_goes_on(
    kind: type[Kernel], fraction: float, tmp_path: Path
) -> None:
    whole = finished(kind(correlated()))
    mortal = kind(correlated(die, int(fraction * count_calls(whole))))
    with pytest.raises(KilledError):
        finished(mortal, record=Record(tmp_path, every=0))
    assert_same(resumed(kind(correlated()), tmp_path), whole)


@pytest.mark.parametrize("fraction", [0.3, 0.8])
def test_killed_while_a_mass_of_low_rank_is_learned(fraction: float, tmp_path: Path) -> None:
    def kernel(*acts: Any) -> HMC:
        stiff = torch.cat([torch.full((1,), 0.02), torch.ones(19)])
        turned = torch.linalg.qr(torch.arange(400.0).sin().reshape(20, 20)).Q
        energy = acting(lambda x: 0.5 * (x @ turned / stiff).square().sum(-1), *acts)
        return HMC(EnergyTarget(energy, (20,)), num_steps=5)

    options: Any = {"warmup_steps": Adaptation(mass="low_rank", steps=60), "num_chains": 20}
    whole = finished(kernel(-9, die), **options)
    assert whole.kernel.inverse_mass is not None
    assert whole.kernel.inverse_mass.dim() == 2
    mortal = kernel(int(fraction * count_calls(whole)), die)
    with pytest.raises(KilledError):
        finished(mortal, record=Record(tmp_path, every=0), **options)
    assert_same(resumed(kernel(-9, die), tmp_path, **options), whole)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_interrupted_and_resumed_in_the_same_process() -> None:
    whole = finished(HMC(correlated()))
    mcmc = finished(HMC(correlated(interrupt, count_calls(whole) - 30)))
    assert mcmc.interrupted
    assert 0 < mcmc.positions.shape[1] < 12
    mcmc.resume()
    assert not mcmc.interrupted
    assert_same(mcmc, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0.1, 0.4])
def test_signals_in_the_warm_up_save_first(
    moment: float, number: signal.Signals, tmp_path: Path
) -> None:
    """After the present step, and go on with the very numbers, here or in another process."""
    whole, handler = finished(HMC(correlated())), signal.getsignal(number)
    pressed = correlated(lambda: signal.raise_signal(number), int(moment * count_calls(whole)))
    stopped = make(HMC(pressed), record=Record(tmp_path, every=1e9))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert signal.getsignal(number) is handler
    assert stopped.interrupted
    assert 0 < stopped.warmup_stats["lp"].shape[1] < 30
    after = resumed(HMC(correlated()), tmp_path)
    stopped.resume()
    for one in (stopped, after):
        assert not one.interrupted
        assert_same(one, whole)


def test_checkpoints_of_every_step(tmp_path: Path) -> None:
    """The newest intact one is used; fewer stay when fewer are asked for."""
    kernel = HMC(gaussian())
    finished(kernel, record=Record(tmp_path, every_steps=1, keep=4))
    assert names(tmp_path) == [f"sampling-{30 + drawn:010d}.pt" for drawn in (9, 10, 11, 12)]
    drawn = [CHAIN_FORMAT.read(path)["mark"]["drawn"] for path in sorted(tmp_path.glob("*.pt"))]
    assert drawn == [9, 10, 11, 12]
    for name in names(tmp_path)[2:]:
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"is corrupt.*going on from sampling-0000000040\.pt"):
        assert_same(resumed(kernel, tmp_path), finished(kernel))


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk, say, does not end days of sampling."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    whole = finished(HMC(correlated()))
    moved = correlated(lambda: folder.rename(away), count_calls(whole) // 2)
    mcmc = make(HMC(moved), record=Record(folder, every=0))
    with pytest.warns(UserWarning, match=r"cannot be written .* the run goes on without") as caught:
        mcmc.run()
    assert len(caught) == 1  # of one for each step
    assert_same(mcmc, whole)
    assert str(folder) in str(mcmc.unsaved)
    mcmc.resume()  # nothing to draw, but to save
    assert mcmc.unsaved is None
    assert names(folder) == ["sampling-0000000042.pt"]


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (lambda: ChEESHMC(gaussian()), {}, r"kernel\.whole 'HMC' \(here 'ChEESHMC'\)"),
        (lambda: HMC(gaussian()), {"num_chains": 4}, r"num_chains 5 \(here 4\)"),
        (lambda: HMC(gaussian()), {"seed": 4}, r"seed 3 \(here 4\)"),
        (
            lambda: HMC(gaussian()),
            {"warmup_steps": 3},
            r"mass 'diagonal' \(here None\); warmup_steps 30 \(here 3\)",
        ),
        (lambda: HMC(gaussian()), {"keep_draws": False}, r"keep_draws True \(here False\)"),
        (lambda: HMC(gaussian()), {"observables": {}}, r"observables \['square'\] \(here \[\]\)"),
        (lambda: HMC(gaussian(sites=3)), {}, r"sites\.x \[4\] \(here \[3\]\)"),
        (lambda: HMC(gaussian(), num_steps=9), {}, r"options\.hmc\.num_steps 10 \(here 9\)"),
        (lambda: HMC(gaussian(), jitter=0.2), {}, r"options\.hmc\.jitter 0\.5 \(here 0\.2\)"),
        (lambda: HMC(gaussian(), step_size=0.2), {}, r"options\.hmc\.step_size 0\.1 \(here 0\.2\)"),
        (lambda: HMC(gaussian(), inverse_mass=torch.ones(4)), {}, r"options\.hmc\.inverse_mass"),
        (lambda: HMC(gaussian(1.1)), {}, r"another target: its energies are off by"),
    ],
)
def test_checkpoints_of_other_runs(
    kernel: Callable[[], Kernel], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    finished(HMC(gaussian()), record=Record(tmp_path))
    other = make(kernel(), record=Record(tmp_path, resume=True), **options)
    if "target" not in message:
        with pytest.raises(CheckpointError, match=message):
            other.check()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.* of .*{message}.*accepted"):
        other.run()
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        other.resume()


def test_a_record_serves_one_run(tmp_path: Path) -> None:
    finished(HMC(gaussian()), record=Record(tmp_path))
    again = make(HMC(gaussian()), record=Record(tmp_path))
    for act in (again.check, again.run):
        with pytest.raises(CheckpointError, match="holds checkpoints of an earlier sampling run"):
            act()
    with pytest.raises(ValueError, match="record has history=True; accepted"):
        make(HMC(gaussian()), record=Record(tmp_path, history=True))
    assert os.listdir(tmp_path)
