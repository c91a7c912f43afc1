# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 3(a): the free energy on the way of a training, beside the exact one."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_neuralrg import plotting
from pyro_neuralrg.free_energy import anneal
from pyro_neuralrg.free_energy.importance import (
    FreeEnergyEstimate,
    from_log_weights,
    is_trustworthy,
    log_weights,
)
from pyro_neuralrg.paper.files import read_numbers, write_flow, write_numbers
from pyro_neuralrg.paper.start import Prepared, Start, exact_or_none
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.plotting.style import broken, new_figure
from pyro_neuralrg.train import TrainingStep

__all__ = ["Results", "Settings", "compute", "describe", "draw"]

NAME = "fig3a"
EARLIEST = 32  # the first snapshot is taken after this fraction of the steps


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes:
        start: The model and its flow; one that was read is trained on.
        snapshots: Flows kept during training whose free energies are estimated, the last one after
            it; their steps grow geometrically.
        samples: Of each importance-sampling estimate.
        particles: Of each run of sequential Monte Carlo; 0 for none.
        leapfrog: Steps of its HMC moves.
    """

    start: Start = field(default_factory=Start)
    snapshots: int = 6
    samples: int = 10_000
    particles: int = 256
    leapfrog: int = 5

    @classmethod
    def small(cls, start: Start) -> Settings:
        """Seconds long."""
        return cls(start.small(), snapshots=2, samples=200, particles=32, leapfrog=1)


@dataclass(frozen=True)
class Results:
    """What was found; free energies in nats, None or NaN where there is none.

    Attributes:
        title: The model and the flow.
        exact: -ln Z.
        loss: Of each training step.
        loss_se: Its standard error.
        heated: The first steps, at a higher temperature: their loss bounds another free energy.
        training_seconds: Wall time of the training.
        training_cpu_seconds: CPU time of the process meanwhile.
        steps: Training steps behind each snapshot.
        variational: Of each snapshot, from samples at the true temperature.
        variational_se: Its standard error.
        importance: Importance-sampling estimate of each snapshot.
        importance_se: Its standard error; NaN where it rests on too few samples to be believed.
        ess: Effective fraction of its samples.
        smc: Estimate of each snapshot by annealing from the flow to the target.
        smc_se: Its standard error.
        smc_seconds: What that took.
    """

    title: str
    exact: float | None
    loss: list[float]
    loss_se: list[float]
    heated: int
    training_seconds: float
    training_cpu_seconds: float
    steps: list[int]
    variational: list[float]
    variational_se: list[float]
    importance: list[float]
    importance_se: list[float]
    ess: list[float]
    smc: list[float]
    smc_se: list[float]
    smc_seconds: list[float]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read ``fig3a.json`` of an earlier run."""
        contents = read_numbers(folder / f"{NAME}.json")
        for name in ("importance", "importance_se", "smc", "smc_se"):  # JSON knows no NaN
            contents[name] = [math.nan if value is None else value for value in contents[name]]
        return cls(**contents)


def compute(settings: Settings, prepared: Prepared, folder: Path) -> Results:
    """Train, estimate the free energies of snapshots of the flow, and write ``fig3a.json``.

    The flow is written to ``flow.pt`` as soon as it is trained.
    """
    snapshots: dict[int, dict[str, Tensor]] = {}
    wanted = snapshot_steps(prepared.steps, settings.snapshots)
    target, flow = prepared.target, prepared.flow

    def keep(record: TrainingStep) -> None:
        if record.step + 1 in wanted[:-1]:
            state = flow.state_dict()
            snapshots[record.step + 1] = {name: value.clone() for name, value in state.items()}

    trained, cpu_seconds = prepared.train(callback=keep)
    write_flow(folder / "flow.pt", flow, prepared.metadata(trained.seconds, cpu_seconds))
    snapshots[trained.steps] = {name: value.clone() for name, value in flow.state_dict().items()}
    rows = []
    for step, state in snapshots.items():
        flow.load_state_dict(state)
        flow.clear_cache()
        rows.append({"steps": step, **_estimates(prepared, settings)})
    history = trained.history
    results = Results(
        title=prepared.training_title,
        exact=exact_or_none(lambda: -target.log_partition()),
        loss=history.free_energy.tolist(),
        loss_se=history.free_energy_se.tolist(),
        heated=int((history.temperature_factor > 1).sum()),
        training_seconds=trained.seconds,
        training_cpu_seconds=cpu_seconds,
        **{name: [row[name] for row in rows] for name in rows[0]},
    )
    write_numbers(folder / f"{NAME}.json", dataclasses.asdict(results))
    return results


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps that grow geometrically up to the last one.

    Example:
        >>> snapshot_steps(1000, 3)
        [31, 177, 1000]
    """
    if count == 1:
        return [steps]
    found = np.geomspace(max(1.0, steps / EARLIEST), steps, count)
    return sorted({round(step) for step in found.tolist()})


def _estimates(prepared: Prepared, settings: Settings) -> dict[str, Any]:
    """The free energies of the flow as it is."""
    target, flow, seed = prepared.target, prepared.flow, prepared.start.seed
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore", UserWarning)  # an early flow is poor: no error bar says it
        torch.manual_seed(seed + 1)
        found: FreeEnergyEstimate = from_log_weights(log_weights(target, flow, settings.samples))
        began = time.perf_counter()
        smc = smc_se = math.nan
        if settings.particles:
            try:
                annealed = anneal(
                    target, flow, num_particles=settings.particles, num_steps=settings.leapfrog,
                    seed=seed + 2, progress=prepared.start.progress,
                )  # fmt: skip
                smc, smc_se = annealed.free_energy, annealed.standard_error
            except RuntimeError:  # the target is too far away
                pass
    return {
        "variational": found.variational,
        "variational_se": found.variational_se,
        "importance": found.importance,
        "importance_se": found.importance_se if is_trustworthy(found) else math.nan,
        "ess": found.ess,
        "smc": smc,
        "smc_se": smc_se,
        "smc_seconds": time.perf_counter() - began,
    }


def draw(results: Results) -> Figure:
    """Free energies above, their relative errors below, against the training step."""
    figure = new_figure(6.4, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    plotting.plot_free_energy(
        results.loss,
        standard_error=results.loss_se,
        annealing_steps=results.heated,
        exact=results.exact,
        ax=above,
    )
    above.set_xlabel("")
    steps = results.steps
    found = {
        "variational": Series(steps, results.variational, results.variational_se),
        "importance sampling": Series(steps, results.importance, results.importance_se),
        "sequential Monte Carlo": Series(steps, results.smc, results.smc_se),
    }
    plotting.plot_estimates(found, ax=above)
    title = (
        f"{results.title}\n{len(results.loss)} training steps took "
        f"{results.training_seconds:.0f} s ({results.training_cpu_seconds:.0f} s of CPU time)"
    )
    figure.suptitle(broken(figure, title), fontsize="medium")
    if results.exact is None:
        below.set_axis_off()
        return figure
    cold = slice(results.heated, None)
    everywhere = np.arange(1, len(results.loss) + 1)
    loss = Series(everywhere[cold], results.loss[cold], results.loss_se[cold])
    plotting.relative_errors({"loss of a step": loss, **found}, exact=results.exact, ax=below)
    return figure


def describe(results: Results) -> list[str]:
    """The figures in words."""
    exact = "unknown" if results.exact is None else f"{results.exact:.4f}"
    lines = [f"{results.title}: exact -ln Z {exact} nats"]
    for index, step in enumerate(results.steps):
        lines.append(
            f"after {step} steps: variational "
            f"{results.variational[index]:.4f} +- {results.variational_se[index]:.4f}, importance "
            f"{results.importance[index]:.4f} +- {results.importance_se[index]:.4f} "
            f"(ESS {results.ess[index]:.2%}), SMC {results.smc[index]:.4f} +- "
            f"{results.smc_se[index]:.4f}"
        )
    return lines
