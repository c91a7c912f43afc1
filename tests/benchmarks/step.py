# SPDX-License-Identifier: Apache-2.0
"""Cost of a training step and of a latent gradient: alone, on two threads, beside a busy process.

Steps of ``fit`` with path gradients, 256 fields at Tc; the gradient is that of the latent energy
for 64 chains, by HMC. Every case runs in a process of its own.

    python -m tests.benchmarks.step --sides 8 16 32 [--threads] [--busy]
    python -m tests.benchmarks.step --memory --sides 8 16 32 64 128
    python -m tests.benchmarks.step --program

With ``--memory`` time and peak memory of a step of so many fields that all lattices have the same
number of sites in total, so that both should stay the same: of default couplings with path
gradients, as ``fit`` trains them, and of the paper's Real NVP blocks without. The memory is the
highest resident memory during the step above that just before it (Linux).

With ``--program`` the batched gradient of a Pyro program of 13 unknowns, a field of 3 x 4 and its
width, for 64 chains: as it is, with ``FlowReparam`` of the field, and by neural transport. Of the
program as it is also once its operations are known, after 500 calls.
"""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import NeuTraReparam

from pyro_neuralrg import (
    HMC,
    AutoHierarchicalFlow,
    FlowReparam,
    IsingDual,
    Schedule,
    fit,
    hierarchical_flow,
)
from pyro_neuralrg.distributions import FlowDistribution, StandardNormal
from pyro_neuralrg.mcmc import LatentTarget
from pyro_neuralrg.mcmc.model_target import ModelTarget
from pyro_neuralrg.mcmc.tracing import Traced
from tests.benchmarks.harness import Marks, in_turns, neighbour, parse, result, start

BATCH, CHAINS, LEAPFROGS = 256, 64, 10
SITES = 2**17
"""Of all fields of a step whose memory is measured."""
SECONDS = 4.0
"""Rough length of each measurement."""
BUSY = {
    "beside a plain loop": "while True: pass",
    "beside a training of torch": """
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
    marks = Marks(limit=SECONDS)
    if what == "step":
        cold = {"schedule": Schedule(cooling=None), "lr": 1e-4, "path_gradient": True}
        fit(target, flow, steps=100_000, batch=BATCH, progress=False, callback=marks, **cold)
        divisor = 1
    else:
        kernel = HMC(LatentTarget(target, flow), step_size=0.05, num_steps=LEAPFROGS, jitter=0.0)
        state = kernel.init(0.5 * torch.randn(CHAINS, side * side))
        generator = torch.Generator().manual_seed(0)
        while not marks():
            state, _ = kernel.step(state, generator)
        divisor = LEAPFROGS
    return {name: 1e3 * seconds / divisor for name, seconds in marks.medians().items()}


def measured(what: str, side: int, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    return result(start(measure, what, side, threads, OMP_NUM_THREADS=str(threads)))


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_memory(bijector: str, side: int) -> dict[str, float]:
    """Seconds and MiB that one step needs, parameters and compiled code not counted."""
    torch.set_num_threads(1)
    target, batch = IsingDual((side, side)), SITES // side**2
    options = {"odd": False, "base": StandardNormal()} if bijector == "realnvp" else {}
    flow = target.flow(bijector=bijector, **options)
    q = FlowDistribution(flow)

    def step(batch: int = batch) -> None:
        flow.zero_grad()
        if bijector == "realnvp":
            x = q.rsample((batch,))
            (q.log_prob(x) + target.energy(x)).mean().backward()
        else:
            x, _, score = q.rsample_with_score((batch,))
            (target.energy(x) + (score * x).sum((-1, -2))).mean().backward()

    step(2)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    before = resident("VmRSS")
    step()
    peak = resident("VmHWM") - before
    (times,) = in_turns([step], 7, time.perf_counter)
    return {"seconds": statistics.median(times), "mib": peak}


def compare_memory(sides: list[int]) -> None:
    """Wall time and memory of a step for each site, float32."""
    for bijector, side in itertools.product(("neighbour", "realnvp"), sides):
        found = result(start(measure_memory, bijector, side))
        print(
            f"{bijector:>9}  L = {side:3}, {SITES // side**2:4} fields: "
            f"{1e6 * found['seconds'] / SITES:.2f} microseconds a site; {found['mib']:6.0f} MiB, "
            f"{2**20 * found['mib'] / SITES:5.0f} bytes a site"
        )


def measure_alone(sides: list[int], repeats: int) -> None:
    """One thread, CPU time."""
    for what, side in itertools.product(("step", "gradient"), sides):
        times = [measured(what, side, 1)["cpu"] for _ in range(repeats)]
        print(f"{what:>8}  L = {side:2}: {statistics.median(times):8.2f} ms CPU")


def program() -> None:
    """A field of 3 x 4 and its width."""
    width = pyro.sample("width", dist.LogNormal(0.0, 0.5))[..., None, None]
    field = pyro.sample("field", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(width * field, 0.5).to_event(2), obs=torch.ones(3, 4))


def compare_programs() -> None:
    """CPU time of a gradient of 64 chains, with and without a flow, in turns."""
    guide = AutoHierarchicalFlow(program)
    guide()
    lattice = poutine.reparam(program, {"field": FlowReparam(hierarchical_flow((3, 4)))})
    known = ModelTarget(program).setup()
    targets = {
        "as it is": ModelTarget(program).setup(),
        "as it is, operations known": known,
        "FlowReparam of the field": ModelTarget(lattice).setup(),
        "neural transport": ModelTarget(NeuTraReparam(guide).reparam(program)).setup(),
    }
    positions = 0.5 * torch.randn(CHAINS, known.dim)
    for _ in range(Traced.PATIENCE + Traced.TRIALS):
        known.energy_and_grad(positions)
    calls = [partial(target.energy_and_grad, positions) for target in targets.values()]
    times = in_turns(calls, Traced.PATIENCE // 2)
    plain = statistics.median(times[0])
    for name, seconds in zip(targets, times, strict=True):
        median = statistics.median(seconds)
        print(f"{name:>26}: {1e3 * median:6.2f} ms CPU, {median / plain:.2f} x the program's")


def compare_threads(sides: list[int], repeats: int, beside: dict[str, str]) -> None:
    """Wall time of a step on two threads over that on one, beside each of some programs."""
    for (name, program), side in itertools.product(beside.items(), sides):
        ratios = []
        for _ in range(repeats):
            with neighbour(program):
                one, two = (measured("step", side, threads)["wall"] for threads in (1, 2))
            ratios.append(two / one)
        print(
            f" threads  L = {side:2}: two threads take {statistics.median(ratios):.2f} x one, "
            f"{name} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    options = parse(
        __doc__,
        sides=[8, 16, 32],
        repeats=3,
        threads=(False, "also two threads against one"),
        busy=(False, "also beside a process that keeps a core busy"),
        memory=(False, "time and memory of steps of as many sites instead"),
        program=(False, "a gradient of a Pyro program instead"),
    )
    if options.memory:
        compare_memory(options.sides)
        return
    if options.program:
        torch.set_num_threads(1)
        compare_programs()
        return
    measure_alone(options.sides, options.repeats)
    if options.threads:
        compare_threads(options.sides, options.repeats, {"alone": "pass"})
    if options.busy:
        compare_threads(options.sides, options.repeats, BUSY)


if __name__ == "__main__":
    main()
