# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 3(b): the structure factor relaxes, in the latent and in the physical space."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_neuralrg import plotting
from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.mcmc import (
    HMC,
    Adaptation,
    Cycle,
    EnergyTarget,
    IndependenceMetropolis,
    Kernel,
    VectorizedMCMC,
)
from pyro_neuralrg.paper.files import read_numbers, write_flow, write_numbers
from pyro_neuralrg.paper.start import Prepared, Start, exact_or_none
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.plotting.style import GREY, broken, new_figure
from pyro_neuralrg.train import TrainingStep

__all__ = ["Curve", "Protocol", "Results", "Settings", "compute", "describe", "draw"]

NAME = "fig3b"
LABEL = r"structure factor $\langle (\sum_i s_i)^2 \rangle / N^2$"
PHYSICAL = "physical HMC"
JUMPS = 2  # after each trajectory of the sampler with jumps
PILOT_CHAINS = 32


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes:
        start: The model and its flow.
        chains: Of each sampler, all from the same cold start.
        trajectories: Of each chain.
        longer: Times as many in the physical space, where one takes a hundredth of the time.
        leapfrog: Steps of a trajectory.
        pilot: Trajectories of a run beforehand that finds the step size; its time counts.
        acceptance: Mean over the chains that the step size aims at. High, since some chains start
            at stiff places of the latent space: with steps that suit the others they never move.
        every: Training steps between two visits of the paper's own protocol; 0: leave it out. It
            needs a training, so a flow that was read has none.
        visit: Trajectories of each visit.
        step_size: Of the protocol.
    """

    start: Start = field(default_factory=Start)
    chains: int = 256
    trajectories: int = 400
    longer: int = 20
    leapfrog: int = 10
    pilot: int = 100
    acceptance: float = 0.95
    every: int = 100
    visit: int = 10
    step_size: float = 0.2

    def __post_init__(self) -> None:
        check_integer("chains", self.chains, 2)
        check_integer("trajectories", self.trajectories, 1)
        check_integer("longer", self.longer, 1)

    @classmethod
    def small(cls, start: Start) -> Settings:
        """Seconds long."""
        return cls(
            start.small(),
            chains=8,
            trajectories=6,
            leapfrog=2,
            pilot=12,
            every=4,
            visit=2,
            longer=2,
        )


@dataclass(frozen=True)
class Curve:
    """The structure factor of many chains on their way.

    Attributes:
        mean: Over the chains, after each trajectory.
        standard_error: Of the mean.
        acceptance: Mean of all trajectories.
        step_size: Of the leapfrog.
        gradients: Per chain and trajectory; a jump counts as one.
        pilot_seconds: Wall time of finding the step size.
        seconds: Wall time of the trajectories.
        cpu_seconds: CPU time of the process in both.
    """

    mean: list[float]
    standard_error: list[float]
    acceptance: float
    step_size: float
    gradients: float
    pilot_seconds: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Protocol:
    """The paper's own protocol: chains that are carried over in z while the flow still moves.

    Attributes:
        mean: Over the chains, after each trajectory.
        standard_error: Of the mean.
        acceptance: Of each trajectory.
    """

    mean: list[float] = field(default_factory=list)
    standard_error: list[float] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """What was found.

    Attributes:
        title: The model, the flow and the number of chains of each sampler.
        exact: The structure factor; None where it is not known.
        training_seconds: Wall time of the training; None if it is not known of a saved flow.
        training_cpu_seconds: CPU time of the process meanwhile, likewise.
        curves: Samplers of a flow that stays as it is: unbiased in the limit.
        protocol: Samplers of a flow in training, "latent" and "physical": not to be counted as
            unbiased, since the latent chains change with the flow.
        visit: Trajectories after every ``every`` training steps.
        every: Of the protocol.
    """

    title: str
    exact: float | None
    training_seconds: float | None
    training_cpu_seconds: float | None
    curves: dict[str, Curve]
    protocol: dict[str, Protocol]
    visit: int
    every: int

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read ``fig3b.json`` of an earlier run."""
        contents = read_numbers(folder / f"{NAME}.json")
        curves = {name: Curve(**curve) for name, curve in contents.pop("curves").items()}
        protocol = {name: Protocol(**curve) for name, curve in contents.pop("protocol").items()}
        return cls(curves=curves, protocol=protocol, **contents)


def compute(settings: Settings, prepared: Prepared, folder: Path) -> Results:
    """Train if there is no flow, sample from the cold start, and write ``fig3b.json``."""
    protocol: dict[str, Protocol] = {}
    seconds, cpu_seconds = (
        prepared.saved.get(name) for name in ("training_seconds", "training_cpu_seconds")
    )
    if not prepared.is_trained:
        visits = Visits(settings, prepared)
        trained, cpu_seconds = prepared.train(callback=visits if settings.every else None)
        protocol = visits.found if settings.every else {}
        seconds = trained.seconds - visits.seconds
        cpu_seconds -= visits.cpu_seconds
        write_flow(folder / "flow.pt", prepared.flow, prepared.metadata(seconds, cpu_seconds))
    curves = {}
    for name, (local, whole) in samplers(settings, prepared).items():
        trajectories = settings.trajectories * (settings.longer if name == PHYSICAL else 1)
        curves[name] = sample(settings, prepared, local, whole, trajectories)
    results = Results(
        title=f"{prepared.title}, {settings.chains} chains",
        exact=exact_or_none(prepared.target.spins.structure_factor),
        training_seconds=seconds,
        training_cpu_seconds=cpu_seconds,
        curves=curves,
        protocol=protocol,
        visit=settings.visit,
        every=settings.every,
    )
    write_numbers(folder / f"{NAME}.json", dataclasses.asdict(results))
    return results


def cold_start(settings: Settings, prepared: Prepared) -> Tensor:
    """White noise, far from equilibrium: the same fields for all samplers."""
    generator = torch.Generator().manual_seed(prepared.start.seed)
    return torch.randn(settings.chains, *prepared.target.shape, generator=generator)


def samplers(
    settings: Settings, prepared: Prepared
) -> dict[str, tuple[HMC, Callable[[HMC], Kernel]]]:
    """For each name the HMC kernel to be tuned, and the kernel to be made of it."""
    target, flow, steps = prepared.target, prepared.flow, settings.leapfrog
    latent = HMC(target, num_steps=steps, flow=flow)

    def with_jumps(tuned: HMC) -> Kernel:
        return Cycle(tuned, *(IndependenceMetropolis(flow) for _ in range(JUMPS)))

    def alone(tuned: HMC) -> Kernel:
        return tuned

    return {
        "latent HMC": (latent, alone),
        f"latent HMC and {JUMPS} jumps": (latent, with_jumps),
        PHYSICAL: (_physical(settings, prepared), alone),
    }


def sample(
    settings: Settings,
    prepared: Prepared,
    local: HMC,
    whole: Callable[[HMC], Kernel],
    trajectories: int,
) -> Curve:
    """Find the step size in a run of its own, then record every trajectory from the cold start."""
    start, seed = cold_start(settings, prepared), prepared.start.seed
    began = time.process_time()
    pilot = VectorizedMCMC(
        local,
        num_samples=1,
        warmup_steps=Adaptation(settings.acceptance, steps=settings.pilot),
        num_chains=min(PILOT_CHAINS, settings.chains),
        initial_params={"x": start[:PILOT_CHAINS]},
        seed=seed + 1,
        progress=prepared.start.progress,
    )
    pilot.run()
    tuned = local.tuned(step_size=pilot.kernel.step_size)
    run = VectorizedMCMC(
        whole(tuned),
        num_samples=trajectories,
        warmup_steps=0,
        num_chains=settings.chains,
        initial_params={"x": start},
        seed=seed,
        progress=prepared.start.progress,
        observables={"structure_factor": prepared.target.observables()["structure_factor"]},
        keep_draws=False,
    )
    run.run()
    mean, error = _over_chains(run.observables["structure_factor"])
    return Curve(
        mean=mean,
        standard_error=error,
        acceptance=float(run.sample_stats["acceptance_rate"].double().mean()),
        step_size=float(pilot.kernel.step_size or math.nan),
        gradients=run.gradient_evaluations.draws / settings.chains / trajectories,
        pilot_seconds=pilot.seconds.total,
        seconds=run.seconds.draws,
        cpu_seconds=time.process_time() - began,
    )


class Visits:
    """The paper's own protocol, as a callback of the training.

    After every 100 training steps both kinds of chains make 10 trajectories, each of 10 leapfrog
    steps of size 0.2. Latent chains go on from the latents where they were, with the flow of the
    moment.

    Args:
        settings: Of the figure.
        prepared: Target and flow.

    Attributes:
        found: The curves of both.
        seconds: Wall time spent here, which is no training.
        cpu_seconds: CPU time of the process, likewise.
    """

    def __init__(self, settings: Settings, prepared: Prepared) -> None:
        self.settings = settings
        self.prepared = prepared
        start = cold_start(settings, prepared)
        self.positions = {"latent": start, "physical": start}  # the latent ones: first as fields
        self.sites = {"latent": "x", "physical": "x"}
        self.found = {"latent": Protocol(), "physical": Protocol()}
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, record: TrainingStep) -> None:
        """Make a visit if it is time."""
        if (record.step + 1) % self.settings.every:
            return
        began, cpu_began = time.perf_counter(), time.process_time()
        settings, prepared = self.settings, self.prepared
        prepared.flow.clear_cache()
        latent = HMC(
            prepared.target,
            num_steps=settings.leapfrog,
            step_size=settings.step_size,
            flow=prepared.flow,
        )
        self._go_on("latent", latent, record.step)
        physical = _physical(settings, prepared, settings.step_size)
        self._go_on("physical", physical, record.step)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began

    def _go_on(self, name: str, kernel: HMC, step: int) -> None:
        run = VectorizedMCMC(
            kernel,
            num_samples=self.settings.visit,
            warmup_steps=0,
            num_chains=self.settings.chains,
            initial_params={self.sites[name]: self.positions[name]},
            seed=self.prepared.start.seed + step + 1,
            progress=False,
        )
        run.run()
        site = f"{'x_latent' if name == 'latent' else 'x'}"
        draws = run.get_samples(group_by_chain=True)
        self.positions[name], self.sites[name] = draws[site][:, -1], site
        structure_factor = self.prepared.target.observables()["structure_factor"]
        mean, error = _over_chains(structure_factor(draws["x"]))
        found = self.found[name]
        found.mean.extend(mean)
        found.standard_error.extend(error)
        acceptance = run.sample_stats["acceptance_rate"].double().mean(0)
        found.acceptance.extend(acceptance.tolist())


def _physical(settings: Settings, prepared: Prepared, step_size: float = 0.1) -> HMC:
    dtype = next(prepared.flow.parameters()).dtype
    target = EnergyTarget(prepared.target, dtype=dtype)
    return HMC(target, num_steps=settings.leapfrog, step_size=step_size)


def _over_chains(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean over the chains of each draw, and its standard error."""
    values = values.double()
    error = values.std(0) / len(values) ** 0.5
    return values.mean(0).tolist(), error.tolist()


def draw(results: Results) -> Figure:
    """Against trajectories, against wall time, and the paper's protocol if it was followed."""
    rows = 3 if results.protocol else 2
    figure = new_figure(6.4, 3.6 * rows)
    panels = figure.subplots(rows, 1)
    figure.suptitle(broken(figure, results.title), fontsize="medium")
    by_step, by_time = {}, {}
    for name, curve in results.curves.items():
        steps = np.arange(1, len(curve.mean) + 1)
        by_step[name] = Series(steps, curve.mean, curve.standard_error)
        before = curve.pilot_seconds
        if name != PHYSICAL:
            before += results.training_seconds or 0.0
        times = before + steps * curve.seconds / len(steps)
        by_time[name] = Series(times, curve.mean, curve.standard_error)
    xlabels = ("trajectories from the cold start", broken(figure, _time_label(results)))
    for ax, curves, xlabel in zip(panels, (by_step, by_time), xlabels, strict=False):
        if curves is by_time and results.training_seconds:
            ax.axvline(
                results.training_seconds, color=GREY, linestyle=":", linewidth=1.2,
                label="the flow is trained",
            )  # fmt: skip
        plotting.relaxation(curves, exact=results.exact, xlabel=xlabel, label=LABEL, ax=ax)
    if results.protocol:
        curves = {
            f"{name} space": Series(
                np.arange(1, len(curve.mean) + 1), curve.mean, curve.standard_error
            )
            for name, curve in results.protocol.items()
        }
        xlabel = (
            f"trajectories, {results.visit} after every {results.every} training steps "
            "(the paper's protocol)\nthe flow still moves: not counted as unbiased"
        )
        plotting.relaxation(curves, exact=results.exact, xlabel=xlabel, label=LABEL, ax=panels[2])
    return figure


def _time_label(results: Results) -> str:
    """What the wall time holds, and beside it the CPU time of the process, of all its threads."""

    def seconds(time: float | None) -> str:
        if time is None:
            return "unknown"
        return f"{time:.0f} s" if time >= 10 else f"{time:.2g} s"

    left_out = " (unknown, left out)" if results.training_seconds is None else ""
    parts = {"training": (results.training_seconds, results.training_cpu_seconds)} | {
        name: (curve.pilot_seconds + curve.seconds, curve.cpu_seconds)
        for name, curve in results.curves.items()
    }
    spent = ", ".join(
        f"{name} {seconds(cpu)} of {seconds(wall)}" for name, (wall, cpu) in parts.items()
    )
    return (
        f"wall time (s) of training{left_out}, tuning and sampling\n"
        f"CPU time of the process: {spent}"
    )


def describe(results: Results) -> list[str]:
    """The figures in words."""
    exact = "unknown" if results.exact is None else f"{results.exact:.7f}"
    lines = [f"{results.title}: exact structure factor {exact}"]
    for name, curve in results.curves.items():
        lines.append(
            f"{name}: {curve.mean[-1]:.4f} +- {curve.standard_error[-1]:.4f} after "
            f"{len(curve.mean)} trajectories (step size {curve.step_size:.3g}, acceptance "
            f"{curve.acceptance:.2f}, {curve.gradients:.0f} gradients each, {curve.seconds:.1f} s)"
        )
    for name, moving in results.protocol.items():
        lines.append(
            f"the paper's protocol, {name}: {moving.mean[-1]:.4f} +- "
            f"{moving.standard_error[-1]:.4f} after {len(moving.mean)} trajectories, not counted "
            "as unbiased"
        )
    return lines
