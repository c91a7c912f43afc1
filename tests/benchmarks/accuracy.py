# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a training reaches: the gap to the exact free energy, what it costs, how smooth the flow is.

    python -m tests.benchmarks.accuracy --shapes 8x8 16x16 --seeds 0 1 2 --json accuracy.json

One row for each case, and the medians over the seeds. Each case is trained in a process of its own,
so that the peak memory is its own. Trainings have the length that ``fit`` gives them, ``--steps``,
or as many steps as fit into ``--minutes``; ``--grow`` trains smaller lattices first. ``--fit`` and
``--flow`` are options as JSON. To compare with another version of the code in one run, name its
checkout: every case is then trained with both, one after the other, and the table shows them side
by side.

    python -m tests.benchmarks.accuracy --shapes 8x8 --steps 1000 --against ../before

The latent step is the leapfrog step of unit mass and ten steps a trajectory that is accepted with
probability 0.8, by 64 chains that start from the latent posterior.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import HMC, IsingDual, Schedule, fit, save
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.mcmc import LatentTarget
from pyro_neuralrg.observables import structure_factor

SAMPLES = 20_000
SITES_AT_ONCE = 2**18
CHAINS, TRAJECTORIES = 64, 10
ACCEPTANCE = 0.8
TIMED_STEPS = 12
PASSED_ON = ("steps", "minutes", "fit", "flow", "grow", "threads", "device", "save")
FIGURES = {  # name in the JSON file: heading, format
    "gap": ("gap", "9.4f"),
    "gap_se": ("+-", "7.4f"),
    "ess": ("ESS", "6.3f"),
    "structure_factor": ("S of q", "7.4f"),
    "latent_step": ("latent step", "11.3f"),
    "seconds": ("seconds", "8.0f"),
    "steps": ("steps", "6.0f"),
    "milliseconds": ("ms/step", "8.1f"),
    "peak_mib": ("peak MiB", "9.0f"),
}


def train(case: dict[str, Any]) -> dict[str, float]:
    """Train one flow and measure it."""
    torch.set_num_threads(case["threads"])
    shape = tuple(case["shape"])
    temperature = {} if case["temperature"] is None else {"temperature": case["temperature"]}
    target = IsingDual(shape, **temperature).to(case["device"])
    torch.manual_seed(case["seed"])
    options = {"seed": case["seed"], "progress": False, **case["fit"]}
    began = time.perf_counter()
    flow = _grown(case, target, temperature, options) if case["grow"] else None
    if flow is None:
        flow = target.flow(**case["flow"]).to(case["device"])
    else:
        options["schedule"] = Schedule(cooling=None)
    steps = case["steps"]
    if case["minutes"] is not None:
        steps = _steps_within(60 * case["minutes"], target, flow, options)
    result = fit(target, flow, steps=steps, **options)
    seconds = time.perf_counter() - began
    if case["save"]:
        name = "x".join(map(str, shape))
        Path(case["save"]).mkdir(parents=True, exist_ok=True)
        save(Path(case["save"]) / f"{name}-T{target.temperature:.4f}-seed{case['seed']}.pt", flow)
    torch.manual_seed(case["seed"] + 1)
    found = estimate(target, flow, SAMPLES, max(1, SITES_AT_ONCE // math.prod(shape)))
    with torch.no_grad():
        fields = [FlowDistribution(flow).rsample((200,)) for _ in range(20)]
    factor = float(structure_factor(torch.cat(fields), shape).double().mean())
    figures = {
        "gap": found.variational + target.log_partition(),
        "gap_se": found.variational_se,
        "ess": found.ess,
        "structure_factor": factor,
        "latent_step": latent_step(target, flow) if case["latent_step"] else float("nan"),
        "seconds": seconds,
        "steps": float(result.steps),
        "milliseconds": 1000 * result.seconds / result.steps,
    }
    return {**figures, "peak_mib": _peak_mib(case["device"])}


def _grown(
    case: dict[str, Any], target: IsingDual, temperature: dict[str, float], options: dict[str, Any]
) -> Any:
    """A flow that was trained on each of some smaller lattices before, ``[side, steps]`` each."""
    flow: Any = None
    for side, steps in case["grow"]:
        small = IsingDual((side, side), **temperature).to(case["device"])
        if flow is None:
            flow = small.flow(**case["flow"]).to(case["device"])
            fit(small, flow, steps=steps, **options)
        else:
            flow = flow.grow(small.spectrum)
            fit(small, flow, steps=steps, **{**options, "schedule": Schedule(cooling=None)})
    return flow.grow(target.spectrum)


def latent_step(target: IsingDual, flow: Any) -> float:
    """Leapfrog step accepted with probability 0.8, by bisection of its logarithm."""
    latent = LatentTarget(target, flow)
    with torch.no_grad():
        pairs = [FlowDistribution(flow).rsample_and_log_prob((256,)) for _ in range(16)]
        x, log_q = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weights = torch.softmax(-target.energy(x) - log_q, 0)
    chosen = torch.multinomial(weights, CHAINS, replacement=False)
    start = latent.pack({"x": x[chosen]}, CHAINS)
    low, high = 0.01, 2.0
    for _ in range(7):
        middle = (low * high) ** 0.5
        if _acceptance(latent, start, middle) > ACCEPTANCE:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def _acceptance(latent: LatentTarget, start: torch.Tensor, step_size: float) -> float:
    kernel = HMC(latent, step_size=step_size, num_steps=10)
    state, generator = kernel.init(start), torch.Generator(start.device).manual_seed(0)
    rates = []
    for _ in range(TRAJECTORIES):
        state, info = kernel.step(state, generator)
        rates.append(float(info.acceptance_rate.mean()))
    return statistics.mean(rates)


def _steps_within(seconds: float, target: IsingDual, flow: Any, options: dict[str, Any]) -> int:
    """How many steps fit into the time, by the second half of a few at full heat and size."""
    trial = fit(target, flow, **{**options, "steps": TIMED_STEPS, "lr": 1e-9})
    marks = trial.history.seconds
    step = (marks[-1] - marks[TIMED_STEPS // 2]) / (TIMED_STEPS - 1 - TIMED_STEPS // 2)
    return max(1, int(seconds / step))


def _peak_mib(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(case: dict[str, Any], checkout: Path) -> dict[str, float]:
    """Run one case with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _shape(text: str) -> list[int]:
    return [int(side) for side in text.split("x")]


def _row(name: str, figures: dict[str, float]) -> str:
    cells = [f"{figures[key]:{form}}" for key, (_, form) in FIGURES.items()]
    return f"{name:<34} " + " ".join(cells)


def _heading() -> str:
    cells = [f"{head:>{form.split('.')[0]}}" for head, form in FIGURES.values()]
    return f"{'case':<34} " + " ".join(cells)


def _median(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(rows)
    return {key: statistics.median(row[key] for row in rows) for key in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", type=_shape, nargs="+", default=[[8, 8]], metavar="8x8")
    add("--temperatures", type=float, nargs="+", default=[None], help="default: critical")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="default: that of fit")
    add("--minutes", type=float, help="as many steps as fit into this time")
    add("--fit", type=json.loads, default={}, help="such as '{\"batch\": 512}'")
    add("--flow", type=json.loads, default={}, help='such as \'{"bijector": "realnvp"}\'')
    add("--grow", type=json.loads, default=[], help="train smaller lattices first and grow: "
        "sides and steps, such as '[[8, 500], [16, 700]]'")  # fmt: skip
    add("--threads", type=int, default=torch.get_num_threads())
    add("--device", default="cpu")
    add("--no-latent-step", action="store_true", help="leave it out: it takes a while")
    add("--json", type=Path, help="file for all figures")
    add("--save", default="", help="folder for the flows")
    add("--against", type=Path, help="another checkout of this project, to compare with")
    add("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(train(arguments.case)))
        return
    here = Path(__file__).parents[2]
    checkouts = {"": here} if arguments.against is None else {
        "here": here, "against": arguments.against.resolve()
    }  # fmt: skip
    print(_heading(), flush=True)
    records = []
    for shape in arguments.shapes:
        for temperature in arguments.temperatures:
            found: dict[str, list[dict[str, float]]] = {label: [] for label in checkouts}
            name = "x".join(map(str, shape))
            heat = "Tc" if temperature is None else f"T = {temperature:g}"
            for seed in arguments.seeds:
                case = {
                    **{key: getattr(arguments, key) for key in PASSED_ON},
                    "shape": shape,
                    "temperature": temperature,
                    "seed": seed,
                    "latent_step": not arguments.no_latent_step,
                }
                for label, checkout in checkouts.items():
                    began = time.time()
                    figures = in_a_process(case, checkout)
                    found[label].append(figures)
                    records.append({"case": case, "label": label, "began": began, **figures})
                    print(_row(f"{name}, {heat}, seed {seed} {label}", figures), flush=True)
                    if arguments.json is not None:
                        arguments.json.write_text(json.dumps(records, indent=1))
            if len(arguments.seeds) > 1:
                for label, rows in found.items():
                    print(_row(f"{name}, {heat}, median {label}", _median(rows)), flush=True)


if __name__ == "__main__":
    main()
