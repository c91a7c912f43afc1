# SPDX-License-Identifier: Apache-2.0
"""AutoHierarchicalFlow beside Pyro's own guides, over the registry of field models.

    python -m tests.benchmarks.guides [--seeds 0 1 2] [--models Cox probit] [--json guides.json]

Each guide is trained by plain SVI with plain Adam, 16 particles, 800 steps at a rate of 1e-2; the
ELBO is that of 20,000 fresh draws, the median of the seeds. Seconds are CPU time with all of the
start. With ``--explosions`` our guide alone is trained at three rates, with ``Trace_ELBO(1)`` and
with ``PDD(16)``, and trainings are listed whose loss is not finite or exceeds its first value by
20 times that value and 2,000 nats (of single particles the mean of 20 steps). With ``--cost`` the
CPU time of one step with 64 particles is compared with AutoIAFNormal's, with the number of torch
operations; with ``--busy`` the wall time of a step on two threads with that on one, while another
process keeps one core busy. With ``--options`` flows of several sizes are trained for 800 steps and
then for 1,600 at a fifth of the rate.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_neuralrg import PDD
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.transforms import Neighbour
from tests.benchmarks.harness import Table, elbo_of, in_turns, medians, neighbour, parse, timed
from tests.models.registry import REGISTRY

OURS = "AutoHierarchicalFlow"
PEERS = (AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal)
GUIDES: dict[str, Callable[[Any], Any]] = {
    guide.__name__: guide for guide in (AutoHierarchicalFlow, *PEERS)
}
STEPS, PARTICLES, RATE = 800, 16, 1e-2
DRAWS, DRAWS_AT_ONCE = 20_000, 500
RATES = (1e-3, 5e-3, 1e-2)
LOSSES: dict[str, tuple[Callable[[], Any], int]] = {
    "Trace_ELBO(1)": (lambda: Trace_ELBO(1), 20),
    "PDD(16)": (lambda: PDD(16, vectorize_particles=True), 1),
}
"""Each with the number of steps over which it is averaged."""
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "depth 2": {"depth": 2},
    "4 couplings": {"bijector": Neighbour(layers=4, hidden=(8,), num_tanh=0)},
    "16 units, 2 tanh": {"bijector": Neighbour(layers=2, hidden=(16,), num_tanh=2)},
    "4 x 16, 2 tanh": {"bijector": Neighbour(layers=4, hidden=(16,), num_tanh=2)},
    "disentanglers": {"circuit": "mera"},
}
GRIDS = ((5, 7), (8, 8), (16, 16), (20, 30))


def make_svi(model: Any, guide: Any, loss: Any = None, rate: float = RATE) -> SVI:
    """SVI by Adam, by default with the loss of the comparison."""
    adam = pyro.optim.Adam({"lr": rate})  # type: ignore[attr-defined]
    return SVI(model, guide, adam, loss or Trace_ELBO(PARTICLES, vectorize_particles=True))


def run_steps(svi: SVI, steps: int = STEPS) -> list[float]:
    """The losses of so many steps."""
    return [svi.step() for _ in range(steps)]


def fresh(name: str, seed: int) -> Any:
    """A model of the registry, and Pyro as if nothing had run before."""
    model = REGISTRY[name].build(0)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return model


def train(kind: str, name: str, seed: int) -> dict[str, float]:
    """One guide on one model."""
    model, start = fresh(name, seed), math.nan
    try:
        guide, seconds = timed(lambda: GUIDES[kind](model))
        if kind == OURS:
            start = elbo_of(model, guide, DRAWS, DRAWS_AT_ONCE)[0]
        seconds += timed(lambda: run_steps(make_svi(model, guide)))[1]
        elbo, error = elbo_of(model, guide, DRAWS, DRAWS_AT_ONCE)
    except ValueError:  # Pyro's guides meet NaN in some models
        return {"elbo": -math.inf, "error": 0.0, "seconds": math.nan, "start": math.nan}
    return {"elbo": elbo, "error": error, "seconds": seconds, "start": start}


def compare(models: list[str], seeds: list[int], file: Path | None) -> None:
    """The table of ELBOs."""
    columns = {"start": "9.2f", "ours": "10.2f", "s": "7.1f", "best peer": "10.2f", "gain": "8.2f"}
    table = Table(26, columns, "model")
    records = []
    for name in models:
        by_guide: dict[str, dict[str, float]] = {}
        for guide in GUIDES:
            rows = [train(guide, name, seed) for seed in seeds]
            records += [{"model": name, "guide": guide, **row} for row in rows]
            by_guide[guide] = medians(rows)
        ours = by_guide.pop(OURS)
        best = max(by_guide, key=lambda guide: by_guide[guide]["elbo"])
        elbo = by_guide[best]["elbo"]
        table.row(
            name, ours["start"], ours["elbo"], ours["seconds"], elbo, ours["elbo"] - elbo, note=best
        )
        if file is not None:
            file.write_text(json.dumps(records, indent=1))


def sizes(models: list[str], seed: int) -> None:
    """ELBO and CPU seconds of flows of several sizes."""
    for name, kind in product(models, OPTIONS):
        model, row = fresh(name, seed), []
        guide, seconds = timed(functools.partial(AutoHierarchicalFlow, model, **OPTIONS[kind]))
        svi = make_svi(model, guide)
        for steps in (STEPS, 2 * STEPS):
            seconds += timed(functools.partial(run_steps, svi, steps))[1]
            elbo, error = elbo_of(model, guide, DRAWS, DRAWS_AT_ONCE)
            row.append(f"{elbo:9.2f}({error:.2f}) {seconds:6.1f} s")
            for optimizer in svi.optim.optim_objs.values():
                optimizer.param_groups[0]["lr"] = RATE / 5
        print(f"{name:<26} {kind:<18} {'  '.join(row)}")


def explosions(models: list[str], seeds: list[int]) -> None:
    """List trainings whose loss grew beyond all measure."""
    for name, seed, rate, kind in product(models, seeds, RATES, LOSSES):
        model = fresh(name, seed)
        loss, window = LOSSES[kind]
        svi = make_svi(model, AutoHierarchicalFlow(model), loss(), rate)
        losses = np.array(run_steps(svi))
        means = np.convolve(losses, np.full(window, 1 / window), "valid")
        if not means.max() <= means[0] + 20 * abs(means[0]) + 2000:  # or it is NaN
            print(f"{name}, seed {seed}, rate {rate:g}, {kind}: {losses.max():g}")


def steps_on(shape: tuple[int, ...]) -> list[Callable[[], Any]]:
    """One of SVI with our guide, and one with AutoIAFNormal."""
    y = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def model() -> None:
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        f = pyro.sample("f", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        pyro.sample("y", dist.Normal(s[..., None, None] * f, 0.3).to_event(2), obs=y)

    steps = []
    for guide, kind in ((AutoHierarchicalFlow, PDD), (AutoIAFNormal, Trace_ELBO)):
        loss = kind(64, vectorize_particles=True, max_plate_nesting=0)
        steps.append(make_svi(model, guide(model), loss, 1e-3).step)
    in_turns(steps, 3)
    return steps


def cost() -> None:
    """CPU time of a step beside AutoIAFNormal's, in turns."""
    for shape in GRIDS:
        steps = steps_on(shape)
        ours, theirs = map(statistics.median, in_turns(steps, 30))
        with torch.profiler.profile() as profile:
            steps[0]()
        operations = sum(event.name.startswith("aten::") for event in profile.events() or ())
        print(
            f"{shape}: {1e3 * ours:.1f} ms, AutoIAFNormal {1e3 * theirs:.1f} ms, "
            f"ratio {ours / theirs:.2f}; {operations} operations"
        )


def busy() -> None:
    """Wall time of a step on one thread and on two, beside a process that is busy."""
    for shape in GRIDS:
        step = steps_on(shape)[0]

        def on_threads(threads: int) -> None:
            torch.set_num_threads(threads)
            step()  # noqa: B023

        calls = [functools.partial(on_threads, threads) for threads in (1, 2)]
        with neighbour():
            times = in_turns(calls, 30, time.perf_counter)
        one, two = (1e3 * statistics.median(row) for row in times)
        print(f"{shape}: {one:.1f} ms on one thread, {two:.1f} ms on two: {two / one:.2f}")


def main() -> None:
    arguments = parse(
        __doc__,
        seeds=[0],
        models=([""], "parts of names; default: all"),
        explosions=False,
        cost=False,
        busy=False,
        options=False,
        json=({"type": Path}, "file for all figures"),
        threads=1,
    )
    logging.disable(logging.INFO)  # Pyro's guesses of plates
    warnings.simplefilter("ignore")
    chosen = [name for name in REGISTRY if any(part in name for part in arguments.models)]
    if arguments.cost:
        cost()
    elif arguments.busy:
        busy()
    elif arguments.explosions:
        explosions(chosen, arguments.seeds)
    elif arguments.options:
        sizes(chosen, arguments.seeds[0])
    else:
        compare(chosen, arguments.seeds, arguments.json)


if __name__ == "__main__":
    main()
