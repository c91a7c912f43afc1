# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 3(a): the free energy on the way of a training, beside the exact one.

Trains a flow, and estimates -ln Z of some flows on the way: the variational bound, importance
sampling, sequential Monte Carlo. Above in nats with the loss of every step, below as relative
errors. The training takes some minutes. Writes fig3a.png, fig3a.pt with the numbers, and flow.pt,
the trained flow, which the other scripts take.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from start import Model, Results, Start, errorbars, option, run

from pyro_neuralrg import plotting
from pyro_neuralrg.free_energy import anneal, estimate
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.train import TrainingStep

EARLIEST = 32  # the first snapshot is taken after this fraction of the steps
ESTIMATES = {
    "variational": "variational",
    "importance": "importance sampling",
    "smc": "sequential Monte Carlo",
}


@dataclass(frozen=True)
class Settings(Start):
    """Settings of the figure; a saved flow is trained on."""

    snapshots: int = option(6, "flows of the training to be estimated (default: 6)")
    samples: int = option(10_000, "of each importance-sampling estimate (default: 10000)")
    particles: int = option(256, "of sequential Monte Carlo (default: 256)")
    leapfrog: int = option(5, "steps of its HMC moves (default: 5)")


def compute(settings: Settings, folder: Path) -> Results:
    """Train, and estimate the free energies of snapshots of the flow, in nats.

    Error bars of importance sampling are NaN where ``estimate`` warns that they mean nothing; of
    the loss, the first ``heated`` steps at a higher temperature bound another free energy.
    """
    model = Model(settings)
    wanted, states = snapshot_steps(model.steps, settings.snapshots), {}

    def keep(record: TrainingStep) -> None:
        if record.step + 1 in wanted:
            states[record.step + 1] = deepcopy(model.flow.state_dict())

    trained = model.train(folder / "flow.pt", keep)
    states[trained.steps] = deepcopy(model.flow.state_dict())  # not always that of the last step
    rows = []
    for state in states.values():
        model.flow.load_state_dict(state)
        model.flow.clear_cache()
        rows.append(estimates(model, settings))
    history = trained.history
    return {
        "title": model.title,
        "exact": model.exact("free_energy"),
        "loss": history.free_energy.tolist(),
        "loss_se": history.free_energy_se.tolist(),
        "heated": int((history.temperature_factor > 1).sum()),
        "seconds": model.known["seconds"],
        "steps": list(states),
        **{name: [row[name] for row in rows] for name in rows[0]},
    }


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps that grow geometrically up to the last one.

    Example:
        >>> snapshot_steps(1000, 3)
        [31, 177, 1000]
    """
    found = np.geomspace(max(1.0, steps / EARLIEST), steps, count).tolist()
    return sorted({round(step) for step in found[:-1]} | {steps})


def estimates(model: Model, settings: Settings) -> dict[str, Any]:
    """The free energies of the flow as it is."""
    target, flow = model.target, model.flow
    smc = smc_se = math.nan
    with warnings.catch_warnings(record=True) as warned, torch.random.fork_rng([]):
        warnings.simplefilter("always", UserWarning)
        torch.manual_seed(settings.seed + 1)
        found = estimate(target, flow, settings.samples)
        doubtful = bool(warned)
        with contextlib.suppress(RuntimeError):  # the target is too far away
            annealed = anneal(
                target, flow, num_particles=settings.particles, num_steps=settings.leapfrog,
                seed=settings.seed + 2, progress=settings.progress,
            )  # fmt: skip
            smc, smc_se = annealed.free_energy, annealed.standard_error
    return {
        "variational": found.variational,
        "variational_se": found.variational_se,
        "importance": found.importance,
        "importance_se": math.nan if doubtful else found.importance_se,
        "ess": found.ess,
        "smc": smc,
        "smc_se": smc_se,
    }


def draw(results: Results) -> Figure:
    """Free energies above, their relative errors below, against the training step."""
    figure = plotting.new_figure(8.4, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    loss, error, heated = (results[name] for name in ("loss", "loss_se", "heated"))
    exact = None if math.isnan(results["exact"]) else results["exact"]
    plotting.plot_free_energy(
        loss, standard_error=error, annealing_steps=heated, exact=exact, ax=above
    )
    above.set_xlabel("")
    found = {
        words: Series(results["steps"], results[name], results[f"{name}_se"])
        for name, words in ESTIMATES.items()
    }
    plotting.plot_estimates(found, ax=above)
    wall, cpu = results["seconds"]
    figure.suptitle(
        f"{results['title']}\nthe training took {wall:.0f} s ({cpu:.0f} s of CPU time)",
        fontsize="small",
    )
    if exact is None:
        below.set_axis_off()
        return figure
    cold = {
        "loss of a step": Series(range(heated + 1, len(loss) + 1), loss[heated:], error[heated:])
    }
    errors = {}
    for name, series in {**cold, **found}.items():
        x, values, error = series.finite()
        errors[name] = Series(x, abs(values - exact) / abs(exact), error / abs(exact))
    errorbars(errors, below)
    below.set_xlabel("training step")
    return figure


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [f"{results['title']}: exact -ln Z {results['exact']:.4f} nats"]
    for index, step in enumerate(results["steps"]):
        said = [
            f"{words} {results[name][index]:.4f} +- {results[f'{name}_se'][index]:.4f}"
            for name, words in ESTIMATES.items()
        ]
        lines.append(f"after {step} steps: {', '.join(said)} (ESS {results['ess'][index]:.2%})")
    return lines


SMOKE = {"steps": 8, "batch": 16, "snapshots": 2, "samples": 200, "particles": 32, "leapfrog": 1}

if __name__ == "__main__":
    run(sys.modules[__name__])
