# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Cost of a training step and of a latent gradient: alone, on two threads, beside a busy process.

Steps of ``fit`` with path gradients, 256 fields at Tc; the gradient is that of the latent energy
for 64 chains, by HMC. Every case runs in a process of its own. With ``--against`` another checkout
of this project takes turns with this one.

    python -m tests.benchmarks.step --sides 8 16 32 [--against ../before] [--threads] [--busy]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH, CHAINS, LEAPFROGS = 256, 64, 10
SECONDS = 4.0
"""Of each measurement, roughly."""
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
    import torch

    from pyro_neuralrg import HMC, IsingDual, Schedule, fit
    from pyro_neuralrg.mcmc import LatentTarget

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
        fit(target, flow, steps=100_000, batch=BATCH, path_gradient=True,
            schedule=Schedule(cooling=None),
            lr=1e-4, progress=False, callback=mark)  # fmt: skip
        divisor = 1
    else:
        kernel = HMC(LatentTarget(target, flow), step_size=0.05, num_steps=LEAPFROGS)
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


def start(checkout: Path, what: str, side: int, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, __file__, "--case", json.dumps([what, side, threads])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run(checkout: Path, what: str, side: int, threads: int) -> dict[str, float]:
    return finish(start(checkout, what, side, threads))


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def compare(here: Path, against: Path | None, sides: list[int], repeats: int) -> None:
    """One thread, CPU time, this checkout and the other in turn."""
    for what in ("step", "gradient"):
        for side in sides:
            ours, theirs = [], []
            for _ in range(repeats):
                ours.append(run(here, what, side, 1)["cpu"])
                if against is not None:
                    theirs.append(run(against, what, side, 1)["cpu"])
            line = f"{what:>8}  L = {side:2}: {statistics.median(ours):8.2f} ms CPU"
            if theirs:
                ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
                line += (
                    f", before {statistics.median(theirs):8.2f}: {statistics.median(ratios):.2f} x"
                )
                line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line, flush=True)


def compare_threads(here: Path, sides: list[int], repeats: int) -> None:
    """Steps a second of two threads, against those of two processes of one thread together."""
    for side in sides:
        shares = []
        for _ in range(repeats):
            two = run(here, "step", side, 2)["wall"]
            pair = [start(here, "step", side, 1) for _ in range(2)]
            together = sum(1 / finish(process)["wall"] for process in pair)
            one = run(here, "step", side, 1)["wall"]
            shares.append((1 / two / together, one / two, one * together))
        share, gain, both = (statistics.median(column) for column in zip(*shares, strict=True))
        print(
            f" threads  L = {side:2}: two threads {gain:.2f} x one, two processes {both:.2f} x, "
            f"share {share:.2f}",
            flush=True,
        )


def compare_busy(here: Path, sides: list[int], repeats: int) -> None:
    """Wall time of two threads over that of one, beside a process that keeps a core busy."""
    for name, program in BUSY.items():
        for side in sides:
            ratios = []
            for _ in range(repeats):
                neighbour = subprocess.Popen([sys.executable, "-c", program])
                try:
                    one, two = (run(here, "step", side, threads)["wall"] for threads in (1, 2))
                finally:
                    neighbour.kill()
                    neighbour.wait()
                ratios.append(two / one)
            print(
                f"    busy  L = {side:2}: two threads take {statistics.median(ratios):.2f} x one, "
                f"beside {name} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[8, 16, 32])
    add("--repeats", type=int, default=3)
    add("--against", type=Path, help="another checkout of this project, to compare with")
    add("--threads", action="store_true", help="also two threads against two processes")
    add("--busy", action="store_true", help="also beside a process that keeps a core busy")
    add("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure(*arguments.case)))
        return
    here = Path(__file__).parents[2]
    compare(here, arguments.against, arguments.sides, arguments.repeats)
    if arguments.threads:
        compare_threads(here, arguments.sides, arguments.repeats)
    if arguments.busy:
        compare_busy(here, arguments.sides, arguments.repeats)


if __name__ == "__main__":
    main()
