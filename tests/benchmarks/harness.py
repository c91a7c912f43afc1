# SPDX-License-Identifier: Apache-2.0
"""Options, clocks and interpreters of the benchmarks.

Benchmarks are run as modules from the root of a checkout: ``python -m tests.benchmarks.NAME``.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from torch import Tensor

from pyro_neuralrg import IsingDual, VectorizedMCMC, fit, load
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.mcmc import Kernel
from pyro_neuralrg.statistics import Summary, summarise
from pyro_neuralrg.transforms import HierarchicalFlow

Clock = Callable[[], float]
HERE = Path(__file__).parents[2]
"""This checkout."""
TIMED_STEPS = 12
CHILD = """
import importlib, json, sys
checkout, here, module, function, arguments = sys.argv[1:]
sys.path[0] = checkout
import pyro_neuralrg  # of that checkout; the benchmark is of this one
sys.path[0] = here
print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))
"""


def parse(about: str, *positional: tuple[str, dict[str, Any]], **options: Any) -> Any:
    """Parse the options of a benchmark; torch computes on as many ``threads`` as one of them says.

    Each keyword is an option, ``--like-this`` for ``like_this``: its default, which also tells its
    type (False: a switch, a list: several values), or a dictionary for ``add_argument``; or a pair
    of this and a help text.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=form)
    for name, settings in positional:
        parser.add_argument(name, **settings)
    for name, given in options.items():
        default, text = given if isinstance(given, tuple) else (given, None)
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **_settings(default))
    found = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if type(options.get("threads")) is int:
        torch.set_num_threads(found.threads)
    return found


def _settings(default: Any) -> dict[str, Any]:
    if isinstance(default, dict):
        return default
    if default is False:
        return {"action": "store_true"}
    if isinstance(default, list):
        return {"nargs": "+", "type": type(default[0]), "default": default}
    return {"type": type(default), "default": default}


class Table:
    """Print a line of headings, and lines of figures below.

    ``columns`` has the headings with the format of the figures, such as 9.3f.
    """

    def __init__(self, width: int, columns: Mapping[str, str], name: str = "") -> None:
        self.width, self.formats = width, list(columns.values())
        heads = [f"{head:>{form.partition('.')[0]}}" for head, form in columns.items()]
        print(f"{name:<{width}}" + "".join(heads))

    def row(self, name: str, *figures: float | None, note: str = "") -> None:
        """Print a line; figures at its end may be missing."""
        cells = [f"{figure:{form}}" for figure, form in zip(figures, self.formats, strict=False)]
        print(f"{name:<{self.width}}{''.join(cells)}  {note}".rstrip())


def shape(text: str) -> list[int]:
    """Sides, such as 8x8."""
    return [int(side) for side in text.split("x")]


def timed(function: Callable[[], Any], clock: Clock = time.process_time) -> tuple[Any, float]:
    """What a call returns, and its seconds, by default CPU time, which others do not disturb."""
    began = clock()
    found = function()
    return found, clock() - began


def in_turns(
    functions: Sequence[Callable[[], object]], repeats: int, clock: Clock = time.process_time
) -> list[list[float]]:
    """Seconds of each function, called in turns."""
    rounds = [[timed(f, clock)[1] for f in functions] for _ in range(repeats)]
    return [list(times) for times in zip(*rounds, strict=True)]


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def start(
    function: Callable[..., Any], *arguments: Any, checkout: Path = HERE, **environment: str
) -> subprocess.Popen[str]:
    """Call a benchmark's function in an interpreter of its own, with the package of a checkout."""
    module = f"tests.benchmarks.{Path(function.__code__.co_filename).stem}"
    where = [str(checkout), str(HERE), module, function.__name__, json.dumps(arguments)]
    command = [sys.executable, "-c", CHILD, *where]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    """Wait for what the function returns, by way of JSON."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output.splitlines()[-1])


def printed(python: str, function: Callable[..., None], *arguments: str) -> Any:
    """What a function prints as JSON, its source run by another Python, which may lack torch."""
    program = f"{inspect.getsource(function)}\nimport sys\n{function.__name__}(*sys.argv[1:])"
    command = [python, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def neighbour(program: str = "while True: pass") -> Iterator[None]:
    """A Python program that runs beside, and keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Gradients:
    """Calls of an energy by Pyro's samplers, and after how many each draw was there."""

    def __init__(self, energy: Callable[..., Any]) -> None:
        self.energy, self.calls = energy, 0
        self.marks: list[int] = []
        self.times: list[float] = []

    def __call__(self, values: Any) -> Any:
        """The energy."""
        self.calls += 1
        return self.energy(values)

    def hook(self, kernel: Any, values: Any, stage: str, index: int) -> None:
        """Note the calls before each draw after warm-up: the ``hook_fn`` of ``pyro.infer.MCMC``."""
        if stage == "Sample":
            self.marks.append(self.calls)
            self.times.append(time.perf_counter())


def pyros_nuts(
    energy: Callable[..., Any],
    shape: Sequence[int],
    draws: int,
    warmup: int,
    seed: int = 0,
    adapt_mass_matrix: bool = False,
) -> tuple[Tensor, NUTS, Gradients]:
    """Draws of one chain of Pyro's NUTS, its kernel, and the calls of the energy."""
    calls = Gradients(energy)
    pyro.set_rng_seed(seed)
    kernel = NUTS(potential_fn=calls, adapt_mass_matrix=adapt_mass_matrix)
    start = {"x": torch.randn(*shape)}
    mcmc = MCMC(kernel, draws, warmup, start, hook_fn=calls.hook, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["x"], kernel, calls


def watch(
    kernel: Kernel, function: Callable[[Tensor], Tensor], draws: int, warmup: int, chains: int
) -> tuple[VectorizedMCMC, Summary]:
    """A run of one of our samplers, of which only a function of the draws is kept."""
    options = {"keep_draws": False, "observables": {"watched": function}, "progress": False}
    mcmc = VectorizedMCMC(kernel, draws, warmup, chains, seed=0, **options)
    mcmc.run()
    return mcmc, summarise(mcmc.observables["watched"])


def trained_flow(target: IsingDual, file: Path | None, steps: int, seed: int) -> HierarchicalFlow:
    """The flow of a file, or one of the target after so many steps."""
    if file is not None:
        return load(file).flow
    flow = target.flow(dtype=torch.float32)
    return fit(target, flow, steps=steps, seed=seed, progress=False).flow


def gap_of(target: Any, flow: Any, samples: int, seed: int, *at_once: int) -> tuple[float, Any]:
    """The gap of a flow in nats, and the estimate that it is of."""
    torch.manual_seed(seed)
    found = estimate(target, flow, samples, *at_once)
    return found.variational + target.log_partition(), found


class Marks:
    """CPU and wall time after each step, as a callback that ends a training after some seconds."""

    def __init__(self, skipped: int = 3, limit: float = math.inf) -> None:
        self.skipped, self.limit = skipped, limit
        self.times: list[tuple[float, float]] = []

    def __call__(self, *_: Any) -> bool:
        self.times.append((time.process_time(), time.perf_counter()))
        kept = self.times[self.skipped :]
        return bool(kept) and kept[-1][1] - kept[0][1] > self.limit

    def medians(self) -> dict[str, float]:
        """Seconds of a step, those that are skipped left out."""
        pairs = itertools.pairwise(self.times[self.skipped :])
        return medians([{"cpu": b[0] - a[0], "wall": b[1] - a[1]} for a, b in pairs])


def steps_within(seconds: float, clock: str, target: Any, flow: Any, **options: Any) -> int:
    """Steps of ``fit`` that the CPU or wall time suffices for, by a few that change little.

    The options are those of ``fit``.
    """
    marks = Marks(TIMED_STEPS // 2)
    fit(target, flow, **options | {"steps": TIMED_STEPS, "lr": 1e-9, "callback": marks})
    return max(1, int(seconds / marks.medians()[clock]))


def elbo_of(
    model: Any, guide: Any, draws: int, at_once: int, **options: Any
) -> tuple[float, float]:
    """Mean and standard error over fresh draws; options are those of Pyro's ELBO."""
    loss = Trace_ELBO(at_once, vectorize_particles=True, **options)
    with torch.no_grad():
        values = [-loss.loss(model, guide) for _ in range(draws // at_once)]
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
