# SPDX-License-Identifier: Apache-2.0
"""Results of a training: the gap to the exact free energy, the cost, the smoothness of the flow.

    python -m tests.benchmarks.accuracy --shapes 8x8 16x16 --seeds 0 1 2 --json accuracy.json

One row for each case, and the medians over the seeds. Each case is trained in a process of its own,
so that the peak memory is its own. Trainings have the length that ``fit`` gives them, ``--steps``,
or as many steps as fit into ``--minutes``, of the wall or (``--clock cpu``) of the CPU; ``--grow``
trains smaller lattices first. ``--fit`` and ``--flow`` are options as JSON. ``--against`` names
another checkout: every case is then trained with both, one after the other.

    python -m tests.benchmarks.accuracy --shapes 8x8 --steps 1000 --against ../before

With ``--phi4`` the target is phi^4 at m^2 = -4 and the lambda of Albergo et al.'s ladder (6.975 at
L = 6 to 4.398 at 64, in between by 1 / L), whose gap is that to the importance estimate.

The gap is KL(q || pi); ``KL(pi || q)`` is that of reference draws. The latent step is the leapfrog
step of unit mass and ten steps a trajectory that is accepted with probability 0.8, by 64 chains
that start from the latent posterior.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_neuralrg import HMC, IsingDual, Phi4, Schedule, VectorizedMCMC, estimate, fit, save
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.free_energy import bounds
from pyro_neuralrg.mcmc import Adaptation
from tests.benchmarks.harness import (
    HERE,
    Table,
    medians,
    parse,
    peak_mib,
    result,
    shape,
    start,
    steps_within,
)

SAMPLES = 20_000
SITES_AT_ONCE = 2**18
CHAINS, WARMUP = 64, 100
REFERENCE = 2000  # draws of the target
LADDER = {64: 4.398, 32: 4.572, 20: 4.807, 12: 5.276, 6: 6.975}
"""lambda of phi^4 by the side, of M. S. Albergo, G. Kanwar and P. E. Shanahan (2019) and of P. de
Haan, C. Rainone, M. C. N. Cheng and R. Bondesan (2021)."""

PASSED_ON = (
    "phi4", "steps", "minutes", "clock", "fit", "flow", "grow", "threads", "device", "save",
)  # fmt: skip
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FIGURES = {  # name in the JSON file: heading, format
    "gap": ("gap", "10.4f"),
    "gap_se": ("+-", "8.4f"),
    "forward": ("KL(pi || q)", "12.4f"),
    "forward_se": ("its +-", "8.4f"),
    "ess": ("ESS", "7.3f"),
    "structure_factor": ("S of q", "8.4f"),
    "latent_step": ("latent step", "12.3f"),
    "seconds": ("seconds", "9.0f"),
    "steps": ("steps", "7.0f"),
    "milliseconds": ("ms/step", "9.1f"),
    "peak_mib": ("peak MiB", "10.0f"),
}


def target_of(case: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """The target of a case on a lattice."""
    if case["phi4"]:
        coupling = np.interp(1.0 / shape[0], [1.0 / side for side in LADDER], [*LADDER.values()])
        return Phi4.from_mass(shape, m2=-4.0, g=6.0 * float(coupling)).to(case["device"])
    temperature = {} if case["temperature"] is None else {"temperature": case["temperature"]}
    return IsingDual(shape, **temperature).to(case["device"])


def train(case: dict[str, Any]) -> dict[str, float]:
    """Train one flow and measure it."""
    torch.set_num_threads(case["threads"])
    shape = tuple(case["shape"])
    target = target_of(case, shape)
    torch.manual_seed(case["seed"])
    options = {"seed": case["seed"], "progress": False, **case["fit"]}
    clock = CLOCKS[case["clock"]]
    began = clock()
    flow = None
    for side, steps in case["grow"]:
        small = target_of(case, (side, side))
        flow, options = _flow(case, small, flow, options)
        fit(small, flow, steps=steps, **options)
    flow, options = _flow(case, target, flow, options)
    steps = case["steps"]
    if case["minutes"] is not None:
        steps = steps_within(60 * case["minutes"], case["clock"], target, flow, **options)
    result = fit(target, flow, steps=steps, **options)
    seconds = clock() - began
    if case["save"]:
        name = "x".join(map(str, shape))
        name += "-phi4" if case["phi4"] else f"-T{target.temperature:.4f}"
        Path(case["save"]).mkdir(parents=True, exist_ok=True)
        save(Path(case["save"]) / f"{name}-seed{case['seed']}.pt", flow)
    at_once = max(1, SITES_AT_ONCE // math.prod(shape))
    torch.manual_seed(case["seed"] + 1)
    found = estimate(target, flow, SAMPLES, at_once)
    free_energy = found.importance if case["phi4"] else -target.log_partition()
    both = bounds(target, flow, REFERENCE)
    with torch.no_grad():
        fields = [FlowDistribution(flow).rsample((200,)) for _ in range(20)]
    factor = float(target.observables()["structure_factor"](torch.cat(fields)).double().mean())
    cuda = torch.device(case["device"]).type == "cuda"
    return {
        "gap": found.variational - free_energy,
        "gap_se": found.variational_se,
        "forward": free_energy - both.lower,
        "forward_se": both.lower_se,
        "ess": found.ess,
        "structure_factor": factor,
        "latent_step": latent_step(target, flow) if case["latent_step"] else float("nan"),
        "seconds": seconds,
        "steps": float(result.steps),
        "milliseconds": 1000 * result.seconds / result.steps,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mib(),
    }


def _flow(
    case: dict[str, Any], target: Any, before: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A flow, grown from the one before if there is one, and how it is trained."""
    if before is None:
        return target.flow(**case["flow"]).to(case["device"]), options
    return before.grow(target.spectrum), {**options, "schedule": Schedule(cooling=None)}


def latent_step(target: Any, flow: Any) -> float:
    """Leapfrog step that warm-up finds, from draws of the latent posterior."""
    with torch.no_grad():
        pairs = [FlowDistribution(flow).rsample_and_log_prob((256,)) for _ in range(16)]
        x, log_q = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weights = torch.softmax(-target.energy(x) - log_q, 0)
    chosen = torch.multinomial(weights, CHAINS, replacement=False)
    warmup, start = Adaptation(steps=WARMUP, mass="unit"), {"x": x[chosen]}
    kernel = HMC(target, num_steps=10, flow=flow, jitter=0.0)
    mcmc = VectorizedMCMC(kernel, 1, warmup, CHAINS, start, seed=0, progress=False)
    mcmc.run()
    return mcmc.kernel.step_size


def main() -> None:
    options = parse(
        __doc__,
        shapes={"type": shape, "nargs": "+", "default": [[8, 8]], "metavar": "8x8"},
        temperatures=({"type": float, "nargs": "+", "default": [None]}, "default: critical"),
        phi4=(False, "instead of the Ising model"),
        seeds=[0],
        steps=({"type": int}, "default: that of fit"),
        minutes=({"type": float}, "as many steps as fit into this time"),
        clock=({"choices": list(CLOCKS), "default": "wall"}, "of the minutes and the seconds"),
        fit=({"type": json.loads, "default": {}}, "such as '{\"batch\": 512}'"),
        flow=({"type": json.loads, "default": {}}, 'such as \'{"bijector": "realnvp"}\''),
        grow=(
            {"type": json.loads, "default": []},
            "train smaller lattices first and grow: sides and steps, such as '[[8, 500]]'",
        ),
        threads=torch.get_num_threads(),
        device="cpu",
        no_latent_step=(False, "leave it out: it takes a while"),
        json=({"type": Path}, "file for all figures"),
        save=("", "folder for the flows"),
        against=({"type": Path}, "another checkout of this project, to compare with"),
    )
    checkouts = {"": HERE}
    if options.against is not None:
        checkouts = {"here": HERE, "against": options.against.resolve()}
    table = Table(34, dict(FIGURES.values()), "case")
    records: list[dict[str, Any]] = []
    for sides, temperature in itertools.product(options.shapes, options.temperatures):
        found: dict[str, list[dict[str, float]]] = {label: [] for label in checkouts}
        name = "x".join(map(str, sides))
        at = "Tc" if temperature is None else f"T = {temperature:g}"
        name += ", phi^4" if options.phi4 else f", {at}"
        for seed in options.seeds:
            case = {key: getattr(options, key) for key in PASSED_ON}
            case |= {"shape": sides, "temperature": temperature, "seed": seed}
            case |= {"latent_step": not options.no_latent_step}
            for label, checkout in checkouts.items():
                began = time.time()
                figures = result(start(train, case, checkout=checkout))
                found[label].append(figures)
                records.append({"case": case, "label": label, "began": began, **figures})
                table.row(f"{name}, seed {seed} {label}", *map(figures.get, FIGURES))
                if options.json is not None:
                    options.json.write_text(json.dumps(records, indent=1))
        if len(options.seeds) > 1:
            for label, rows in found.items():
                table.row(f"{name}, median {label}", *map(medians(rows).get, FIGURES))


if __name__ == "__main__":
    main()
