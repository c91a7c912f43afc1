# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Options, clocks and interpreters of the benchmarks.

Benchmarks are run as modules from the root of a checkout: ``python -m tests.benchmarks.NAME``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]
HERE = Path(__file__).parents[2]
"""This checkout."""
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


def shape(text: str) -> list[int]:
    """Sides, such as 8x8."""
    return [int(side) for side in text.split("x")]


def seconds_of(function: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Seconds of a call, by default of the process, which others do not disturb."""
    began = clock()
    function()
    return clock() - began


def in_turns(
    functions: Sequence[Callable[[], object]], repeats: int, clock: Clock = time.process_time
) -> list[list[float]]:
    """Seconds of each function, called in turns."""
    rounds = [[seconds_of(f, clock) for f in functions] for _ in range(repeats)]
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
