# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 3(b): the structure factor relaxes, in the latent and in the physical space.

Runs HMC from one cold start with a flow, with jumps beside, and without it: against trajectories,
against wall time, and by the paper's own protocol, which samples beside the training. Without
--flow FILE, for example flow.pt of fig3a.py, one is trained first, for some minutes; the protocol
needs that. Writes fig3b.png, and fig3b.pt with the numbers.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from start import Model, Results, Start, clock, option, run
from torch import Tensor

from pyro_neuralrg import plotting
from pyro_neuralrg.mcmc import (
    HMC,
    Adaptation,
    Cycle,
    EnergyTarget,
    IndependenceMetropolis,
    Kernel,
    VectorizedMCMC,
)
from pyro_neuralrg.plotting.style import legend_beside
from pyro_neuralrg.train import TrainingStep

LABEL = r"structure factor $\langle (\sum_i s_i)^2 \rangle / N^2$"
PHYSICAL = "physical HMC"
PILOT_CHAINS = 32
ACCEPTANCE = 0.95
"""Mean over the chains that the step size aims at. High, since some chains start at stiff places of
the latent space: with steps that suit the others they never move."""


@dataclass(frozen=True)
class Settings(Start):
    """Settings of the figure."""

    chains: int = option(256, "of each sampler, from one cold start (default: 256)")
    trajectories: int = option(400, "of each chain (default: 400)")
    longer: int = option(20, "times as many in the physical space (default: 20)")
    leapfrog: int = option(10, "steps of a trajectory (default: 10)")
    pilot: int = option(100, "trajectories that find the step size (default: 100)")
    every: int = option(100, "training steps between visits of the paper's protocol (default: 100)")
    visit: int = option(10, "trajectories of a visit (default: 10)")
    step_size: float = option(0.2, "of these (default: 0.2)")


def compute(settings: Settings, folder: Path) -> Results:
    """Train if there is no flow, and sample from the cold start.

    The "curves" are of a flow that stays as it is: unbiased in the limit. The "protocol" is not to
    be counted as unbiased, since its latent chains change with the flow.
    """
    if settings.chains < 2:
        raise ValueError(f"chains is {settings.chains}; accepted: at least 2, for error bars")
    model = Model(settings)
    visits = Visits(settings, model)
    model.need_trained(folder / "flow.pt", visits)
    latent = HMC(model.target, num_steps=settings.leapfrog, jitter=0.0, flow=model.flow)
    jumps = [IndependenceMetropolis(model.flow) for _ in range(2)]
    number = settings.trajectories
    curves = {
        "latent HMC": sample(model, latent, number),
        "latent HMC and 2 jumps": sample(model, latent, number, *jumps),
        PHYSICAL: sample(model, physical(model, 0.1), number * settings.longer),
    }
    return {
        "title": f"{model.title}, {settings.chains} chains",
        "exact": model.exact("structure_factor"),
        "seconds": model.known["seconds"],
        "curves": curves,
        "protocol": visits.found,
        "visit": settings.visit,
        "every": settings.every,
    }


def cold_start(model: Model) -> Tensor:
    """White noise, far from equilibrium: the same fields for all samplers."""
    generator = torch.Generator().manual_seed(model.start.seed)
    return torch.randn(model.start.chains, *model.target.shape, generator=generator)


def physical(model: Model, step_size: float) -> HMC:
    """HMC of the field itself."""
    target = EnergyTarget(model.target, dtype=next(model.flow.parameters()).dtype)
    return HMC(target, num_steps=model.start.leapfrog, step_size=step_size, jitter=0.0)


def sample(model: Model, local: HMC, trajectories: int, *jumps: Kernel) -> dict[str, object]:
    """Find the step size in a run of its own, then record every trajectory from the cold start."""
    settings, start = model.start, cold_start(model)
    began = clock()
    pilot = VectorizedMCMC(
        local, num_samples=1, warmup_steps=Adaptation(ACCEPTANCE, steps=settings.pilot),
        num_chains=min(PILOT_CHAINS, settings.chains), initial_params={"x": start[:PILOT_CHAINS]},
        seed=settings.seed + 1, progress=settings.progress,
    )  # fmt: skip
    pilot.run()
    tuned = local.tuned(step_size=pilot.kernel.step_size)
    run = VectorizedMCMC(
        Cycle(tuned, *jumps) if jumps else tuned, num_samples=trajectories, warmup_steps=0,
        num_chains=settings.chains, initial_params={"x": start}, seed=settings.seed,
        progress=settings.progress,
        observables={"structure_factor": model.structure_factor}, keep_draws=False,
    )  # fmt: skip
    run.run()
    mean, error = over_chains(run.observables["structure_factor"])
    return {
        "mean": mean,
        "standard_error": error,
        "acceptance": float(run.sample_stats["acceptance_rate"].double().mean()),
        "step_size": float(pilot.kernel.step_size),
        "gradients": run.gradient_evaluations.draws / settings.chains / trajectories,
        "pilot_seconds": pilot.seconds.total,
        "seconds": run.seconds.draws,
        "cpu_seconds": float((clock() - began)[1]),
    }


class Visits:
    """The paper's own protocol: short runs beside the training, chains carried over.

    Latent chains go on from the latents where they were, with the flow of the moment. ``found`` are
    mean and standard error over the chains after each trajectory.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings, self.model = settings, model
        start = {"x": cold_start(model)}
        self.positions = {"latent space": start, "physical space": start}
        self.found: dict[str, dict[str, list[float]]] = {}

    def __call__(self, record: TrainingStep) -> None:
        """Make a visit if it is time."""
        settings, model = self.settings, self.model
        if (record.step + 1) % settings.every:
            return
        model.flow.clear_cache()
        options = {"num_steps": settings.leapfrog, "step_size": settings.step_size, "jitter": 0.0}
        latent = HMC(model.target, flow=model.flow, **options)
        self._go_on("latent space", latent, "x_latent", record.step)
        self._go_on("physical space", physical(model, settings.step_size), "x", record.step)

    def _go_on(self, name: str, kernel: HMC, site: str, step: int) -> None:
        run = VectorizedMCMC(
            kernel, num_samples=self.settings.visit, warmup_steps=0,
            num_chains=self.settings.chains, initial_params=self.positions[name],
            seed=self.settings.seed + step + 1, progress=False,
        )  # fmt: skip
        run.run()
        draws = run.get_samples(group_by_chain=True)
        self.positions[name] = {site: draws[site][:, -1]}
        found = self.found.setdefault(name, {"mean": [], "standard_error": []})
        mean, error = over_chains(self.model.structure_factor(draws["x"]))
        found["mean"] += mean
        found["standard_error"] += error


def over_chains(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean over the chains of each draw, and its standard error."""
    values = values.double()
    return values.mean(0).tolist(), (values.std(0) / len(values) ** 0.5).tolist()


def draw(results: Results) -> Figure:
    """Against trajectories, against wall time, and the paper's protocol if it was followed."""
    rows = 3 if results["protocol"] else 2
    figure = plotting.new_figure(8.0, 3.6 * rows)
    panels = figure.subplots(rows, 1)
    figure.suptitle("\n".join(textwrap.wrap(results["title"], 76)), fontsize="medium")
    training, cpu_seconds = results["seconds"]
    clocks, spent = {}, [f"training {cpu_seconds:.3g} s of {training:.3g} s"]
    for name, curve in results["curves"].items():
        began = curve["pilot_seconds"] + (0 if name == PHYSICAL else np.nan_to_num(training))
        clocks[name] = began, curve["seconds"] / len(curve["mean"])
        wall = curve["pilot_seconds"] + curve["seconds"]
        spent.append(f"{name} {curve['cpu_seconds']:.3g} s of {wall:.3g} s")
    exact, curves = results["exact"], results["curves"]
    relaxation(curves, exact, "trajectories from the cold start", panels[0])
    panels[1].axvline(training, color="0.4", linestyle=":", label="the flow is trained")
    xlabel = "wall time (s) of training, tuning and sampling\nCPU time of the process: "
    xlabel += f"{', '.join(spent[:2])},\n{', '.join(spent[2:])}"
    relaxation(curves, exact, xlabel, panels[1], clocks)
    if results["protocol"]:
        xlabel = (
            f"trajectories, {results['visit']} after every {results['every']} training steps "
            "(the paper's protocol)\nthe flow still moves: not counted as unbiased"
        )
        relaxation(results["protocol"], exact, xlabel, panels[2])
    return figure


def relaxation(
    curves: dict[str, Any],
    exact: float,
    xlabel: str,
    ax: Axes,
    clocks: dict[str, Any] | None = None,
) -> None:
    """Means over chains and bands of one standard error, against the exact value.

    A curve whose last tenth is further than four of its standard errors from it is named. Clocks
    are the time when it begins and that of a trajectory.
    """
    far = []
    for index, (name, curve) in enumerate(curves.items()):
        mean, error = np.array(curve["mean"]), np.array(curve["standard_error"])
        began, each = (0.0, 1.0) if clocks is None else clocks[name]
        x, colour = began + each * np.arange(1, len(mean) + 1), plotting.COLOURS[index]
        ax.plot(x, mean, color=colour, linestyle=plotting.STYLES[index], label=name)
        ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        last = slice(-max(1, len(mean) // 10), None)  # correlated: its error is that of one draw
        if abs(mean[last].mean() - exact) > 4 * error[last].mean():
            far.append(name)
    ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="exact")
    if far:
        ax.set_title(f"not converged: {', '.join(far)}", fontweight="bold", fontsize="small")
    ax.set(xscale="log", xlabel=xlabel, ylabel=LABEL)
    ax.set_ylim(bottom=0.0)
    legend_beside(ax)


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [f"{results['title']}: exact structure factor {results['exact']:.7f}"]
    for name, curve in results["curves"].items():
        lines.append(
            f"{name}: {_last(curve)} (step size {curve['step_size']:.3g}, acceptance "
            f"{curve['acceptance']:.2f}, {curve['gradients']:.0f} gradients each, "
            f"{curve['seconds']:.1f} s)"
        )
    for name, curve in results["protocol"].items():
        lines.append(f"the paper's protocol, {name}: {_last(curve)}, not counted as unbiased")
    return lines


def _last(curve: dict) -> str:
    mean, error = curve["mean"], curve["standard_error"]
    return f"{mean[-1]:.4f} +- {error[-1]:.4f} after {len(mean)} trajectories"


SMOKE = {
    "chains": 8, "trajectories": 6, "leapfrog": 2, "pilot": 12, "every": 4, "visit": 2, "longer": 2,
}  # fmt: skip

if __name__ == "__main__":
    run(sys.modules[__name__])
