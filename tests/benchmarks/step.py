# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cost of a training step and of a latent gradient: alone, on two threads, beside a busy process.

Steps of ``fit`` with path gradients, 256 fields at Tc; the gradient is that of the latent energy
for 64 chains, by HMC. Every case runs in a process of its own. With ``--against`` another checkout
of this project takes turns with this one.

    python -m tests.benchmarks.step --sides 8 16 32 [--against ../before] [--threads] [--busy]
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import HMC, IsingDual, Schedule, fit
from pyro_neuralrg.mcmc import LatentTarget
from tests.benchmarks.harness import HERE, parse, result, start

BATCH, CHAINS, LEAPFROGS = 256, 64, 10
SECONDS = 4.0
"""Rough length of each measurement."""
BUSY = {
    "a plain loop": "while True: pass",
    "a training of torch": """
import torch
torch.set_num_threads(2)
net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
while True:
    net(torch.randn(512, 256)).square().mean().backward()
""",
}


def measure(what: str, side: int, threads: int) -> dict[str, float]:
    """Medians of CPU and wall milliseconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    target = IsingDual((side, side))
    flow = target.flow()
    marks = []

    def mark(*_: Any) -> bool:
        marks.append((time.process_time(), time.perf_counter()))
        begun = marks[min(3, len(marks) - 1)][1]
        return marks[-1][1] - begun > SECONDS

    if what == "step":
        cold = {"schedule": Schedule(cooling=None), "lr": 1e-4, "path_gradient": True}
        fit(target, flow, steps=100_000, batch=BATCH, progress=False, callback=mark, **cold)
        divisor = 1
    else:
        kernel = HMC(LatentTarget(target, flow), step_size=0.05, num_steps=LEAPFROGS, jitter=0.0)
        state = kernel.init(0.5 * torch.randn(CHAINS, side * side))
        generator = torch.Generator().manual_seed(0)
        while not mark():
            state, _ = kernel.step(state, generator)
        divisor = LEAPFROGS
    pairs = list(itertools.pairwise(marks[3:]))
    return {
        name: 1e3 * statistics.median(b[index] - a[index] for a, b in pairs) / divisor
        for index, name in enumerate(("cpu", "wall"))
    }


def begin(what: str, side: int, threads: int, checkout: Path = HERE) -> subprocess.Popen[str]:
    """Start a measurement."""
    arguments = (what, side, threads)
    return start(measure, *arguments, checkout=checkout, OMP_NUM_THREADS=str(threads))


def wall(side: int, threads: int) -> float:
    """Milliseconds of a step."""
    return result(begin("step", side, threads))["wall"]


def compare(checkouts: list[Path], sides: list[int], repeats: int) -> None:
    """One thread, CPU time, this checkout and the other in turn."""
    for what, side in itertools.product(("step", "gradient"), sides):
        rounds = [
            [result(begin(what, side, 1, checkout))["cpu"] for checkout in checkouts]
            for _ in range(repeats)
        ]
        ours, *others = map(statistics.median, zip(*rounds, strict=True))
        line = f"{what:>8}  L = {side:2}: {ours:8.2f} ms CPU"
        if others:
            ratios = [theirs / own for own, theirs in rounds]
            line += f", before {others[0]:8.2f}: {statistics.median(ratios):.2f} x"
            line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)


def compare_threads(sides: list[int], repeats: int) -> None:
    """Steps a second of two threads, against those of two processes of one thread together."""
    for side in sides:
        shares = []
        for _ in range(repeats):
            two = wall(side, 2)
            pair = [begin("step", side, 1) for _ in range(2)]
            together = sum(1 / result(process)["wall"] for process in pair)
            one = wall(side, 1)
            shares.append((1 / two / together, one / two, one * together))
        share, gain, both = map(statistics.median, zip(*shares, strict=True))
        print(
            f" threads  L = {side:2}: two threads {gain:.2f} x one, two processes {both:.2f} x, "
            f"share {share:.2f}"
        )


def compare_busy(sides: list[int], repeats: int) -> None:
    """Wall time of two threads over that of one, beside a process that keeps a core busy."""
    for (name, program), side in itertools.product(BUSY.items(), sides):
        ratios = []
        for _ in range(repeats):
            neighbour = subprocess.Popen([sys.executable, "-c", program])
            try:
                one, two = (wall(side, threads) for threads in (1, 2))
            finally:
                neighbour.kill()
                neighbour.wait()
            ratios.append(two / one)
        print(
            f"    busy  L = {side:2}: two threads take {statistics.median(ratios):.2f} x one, "
            f"beside {name} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    options = parse(
        __doc__,
        sides=[8, 16, 32],
        repeats=3,
        against=({"type": Path}, "another checkout of this project, to compare with"),
        threads=(False, "also two threads against two processes"),
        busy=(False, "also beside a process that keeps a core busy"),
    )
    checkouts = [HERE] if options.against is None else [HERE, options.against.resolve()]
    compare(checkouts, options.sides, options.repeats)
    if options.threads:
        compare_threads(options.sides, options.repeats)
    if options.busy:
        compare_busy(options.sides, options.repeats)


if __name__ == "__main__":
    main()
