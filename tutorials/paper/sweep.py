# SPDX-License-Identifier: Apache-2.0
"""The supplement's sweep: temperatures and depths, at a fixed short budget per point.

Trains a flow for each temperature and depth, and one of each whole circuit, with the paper's blocks
and no Fourier layer, and draws their errors and the light cone of a site. By default 39 trainings
of a minute each: one that was stopped goes on from the sweep.pt in --out. Writes sweep.png, and
sweep.pt with the numbers.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from start import Model, Results, Start, errorbars, option, paper_flow, read, run, write

from pyro_neuralrg import fit, plotting
from pyro_neuralrg.analysis import light_cone, reach
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE
from pyro_neuralrg.train import TrainingStep
from pyro_neuralrg.transforms import BIJECTORS

TEMPERATURES = (2.0, 2.1, 2.2, CRITICAL_TEMPERATURE, 2.3, 2.4, 2.5, 2.6, 2.7)
CIRCUITS = ("tree", "brickwork", "mera")
BIJECTOR_OF = {"paper": ("realnvp", 10), "default": ("neighbour", 8)}  # couplings, of a mera
TIMED = 5  # steps that tell how long one takes, after one more
AUTHORS = {
    "authors, 5000 x 512,\nfull depth": ((2.0, 4.5e-3), (2.3, 9.2e-3), (2.7, 8.8e-3)),
    "authors, 5000 x 512,\ndepth 1": ((2.0, 4.5e-2), (2.3, 2.6e-2), (2.7, 1.5e-2)),
}
"""Relative errors of the authors' own sweep at 32 x 32, 5000 steps of 512 fields each."""


@dataclass(frozen=True)
class Settings(Start):
    """Settings of the sweep. Its flows have no Fourier layer, which would reach everywhere."""

    blocks: str = option("paper", "paper or default (default: paper)", choices=BIJECTOR_OF)
    batch: int = option(256, "fields per training step (default: 256)")
    temperatures: tuple[float, ...] = option(TEMPERATURES, "2.0 to 2.7", type=float, nargs="+")
    depths: tuple[int, ...] | None = option(None, "default: 1 to all", type=int, nargs="+")
    circuits: tuple[str, ...] = option(
        CIRCUITS, "whole ones at --temperature (default: all)", nargs="*", choices=CIRCUITS
    )
    seconds: float = option(60.0, "CPU seconds of training for each point (default: 60)")
    samples: int = option(10_000, "of each estimate (default: 10000)")
    steps: None = None  # a point has its seconds
    flow: None = None  # and is trained here

    def __post_init__(self) -> None:
        if not min(self.seconds, *self.temperatures) > 0:
            raise ValueError(f"{self.seconds=}, {self.temperatures=}; accepted: numbers > 0")


def compute(settings: Settings, folder: Path) -> Results:
    """Train every point that ``sweep.pt`` does not have yet; the file grows with each."""
    shape = tuple(settings.shape or (16, 16))
    asked, known = cases(settings, shape), {}
    if (folder / "sweep.pt").exists():
        known = read(folder, "sweep")["known"]
    results: Results = {
        "title": f"Ising {' x '.join(map(str, shape))}, {settings.blocks} blocks without Fourier "
        f"layer, {settings.seconds:g} CPU s of training per point\n"
        "(one training each: error bars are those of the estimates)",
        "shape": shape,
        "asked": {name: [json.dumps(case) for case in some] for name, some in asked.items()},
        "known": known,
    }
    for case in (case for some in asked.values() for case in some):
        key = json.dumps(case)  # what a point was asked for
        if key not in known:
            known[key] = train_point(case, settings)
            write(folder, "sweep", results)
    return results


def points_of(results: Results, name: str) -> list[dict[str, Any]]:
    """The "points" or the "circuits" that were asked for, as far as they are known."""
    return [results["known"][key] for key in results["asked"][name] if key in results["known"]]


def cases(settings: Settings, shape: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    """List the trainings: "points" of temperatures and depths, and whole "circuits".

    Raises:
        ValueError: if a depth is more than the lattice has.
    """
    mera = make_circuit("mera", shape)
    depths = settings.depths or tuple(range(1, mera.depth + 1))
    if not 1 <= min(depths) <= max(depths) <= mera.depth:
        raise ValueError(f"depths is {depths}; accepted: 1 to {mera.depth} on {shape}")
    points = [("mera", depth, t) for t in settings.temperatures for depth in depths]
    whole = []
    for circuit in settings.circuits:
        brickwork = circuit == "brickwork"
        depth = len(mera.layers) if brickwork else make_circuit(circuit, shape).depth
        whole.append((circuit, depth, settings.temperature))
    same = {"shape": list(shape)}
    same |= {name: getattr(settings, name) for name in ("blocks", "batch", "seconds", "seed")}
    return {
        name: [{"circuit": c, "depth": d, "temperature": t, **same} for c, d, t in asked]
        for name, asked in (("points", points), ("circuits", whole))
    }


def train_point(case: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Train one flow for the CPU seconds it has, and estimate its gap, KL(q || pi/Z) in nats.

    The first steps tell how many fit, so that the schedule of the learning rate ends with them. A
    step before them may compile loops: it is not counted.
    """
    model = Model(Start(shape=tuple(case["shape"]), temperature=case["temperature"]))
    target = model.target
    train(case, model, 1)
    began = time.process_time()
    trial = train(case, model, TIMED + 1)
    step = (trial[-1] - trial[0]) / TIMED
    left = case["seconds"] - (time.process_time() - began)
    steps = max(1, int(left / max(step, 1e-6)))
    times = train(case, model, steps, left)
    took, flow = time.process_time() - began, model.flow
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a poor flow: its ESS says so
        torch.manual_seed(case["seed"] + 1)
        found = estimate(target, flow, settings.samples)
    return {
        **case,
        "steps": len(times),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "gap": found.variational - model.exact("free_energy"),
        "gap_se": found.variational_se,
        "free_energy": model.exact("free_energy"),
        "ess": found.ess,
        "took": took,
    }


def train(case: dict[str, Any], model: Model, steps: int, seconds: float = math.inf) -> list[float]:
    """Train a new flow for so many steps, or that time; the CPU seconds after each step."""
    model.flow = build_flow(case, model.target)
    began = time.process_time()
    times: list[float] = []

    def stop(_: TrainingStep) -> bool:
        times.append(time.process_time() - began)
        return times[-1] > 1.1 * seconds  # steps were timed: it is seldom needed

    found = fit(
        model.target, model.flow, steps=steps, batch=case["batch"], seed=case["seed"],
        progress=False, callback=stop,
    )  # fmt: skip
    if found.interrupted:
        raise KeyboardInterrupt
    return times


def build_flow(case: dict[str, Any], target: Any) -> Any:
    """The untrained flow; a circuit of fewer layers than the mera has more couplings in each."""
    (name, couplings), circuit = BIJECTOR_OF[case["blocks"]], case["circuit"]
    shape, depth = tuple(case["shape"]), case["depth"]
    if circuit != "mera":
        own = len(make_circuit(circuit, shape, depth=depth).layers)
        layers = len(make_circuit("mera", shape).layers)
        couplings = max(2, round(couplings * layers / max(1, own)))
    with torch.random.fork_rng([]):
        torch.manual_seed(case["seed"])
        bijector = BIJECTORS[name](layers=couplings)
        odd = case["blocks"] == "default"
        return paper_flow(target, circuit=circuit, depth=depth, bijector=bijector, odd=odd)


def correlation_length(temperature: float) -> float:
    r"""Correlation length of the infinite square Ising lattice along an axis, in sites (exact).

    .. math:: 1/\xi = -\ln\tanh K - 2K \quad (T > T_c), \qquad 1/\xi = 4K + 2\ln\tanh K \quad (T <
        T_c)

    with K = 1 / T; infinite at Tc.

    References:
        B. M. McCoy and T. T. Wu, The Two-Dimensional Ising Model (1973).

    Example:
        >>> round(correlation_length(2.7), 3), round(correlation_length(2.0), 3)
        (3.369, 2.192)
    """
    inverse = -math.log(math.tanh(1 / temperature)) - 2 / temperature
    inverse *= -2 if temperature < CRITICAL_TEMPERATURE else 1
    return 1 / inverse if inverse > 1e-12 else math.inf


def draw(results: Results) -> Figure:
    """Errors by depth, errors by temperature, the circuits, and the light cone of one site."""
    points, circuits = points_of(results, "points"), points_of(results, "circuits")
    rows, shape = 3 if circuits else 2, results["shape"]
    figure = plotting.new_figure(8.0, 3.3 * rows + 2.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.3 * rows, 1.0))
    panels = upper.subplots(rows, 1)
    figure.suptitle(results["title"], fontsize="medium")
    draw_depths(points, panels[0])
    draw_temperatures(points, shape, panels[1])
    if circuits:
        draw_circuits(circuits, panels[2])
    if len(shape) < 3:
        draw_cone(shape, lower)
    return figure


def curve(points: list[dict[str, Any]], name: str, value: float) -> Series:
    """Relative errors of points that have this "depth" or "temperature", against the other."""
    other = "temperature" if name == "depth" else "depth"
    mine = [p for p in points if p[name] == value]
    gap, error, exact = (np.array([p[n] for p in mine]) for n in ("gap", "gap_se", "free_energy"))
    return Series([p[other] for p in mine], gap / abs(exact), error / abs(exact))


def draw_depths(points: list[dict[str, Any]], ax: Axes) -> None:
    """A mark on each curve where blocks are as wide as the correlation length."""
    curves = {}
    for t in dict.fromkeys(p["temperature"] for p in points):
        length = correlation_length(t)
        words = rf"$\xi$ = {length:.1f}" if math.isfinite(length) else r"$\xi = \infty$"
        curves[f"T = {t:.6g}, {words}"] = series = curve(points, "temperature", t)
        x, values, _ = series.finite()
        if len(x) and x.min() <= math.log2(length) <= x.max():
            height = np.interp(math.log2(length), x, values)
            ax.plot(math.log2(length), height, marker="|", markersize=16, color="black")
    errorbars(curves, ax, shaded=True)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("depth (scales; |: blocks as wide as the correlation length)")


def draw_temperatures(points: list[dict[str, Any]], shape: tuple[int, ...], ax: Axes) -> None:
    """A curve for each depth; at 32 x 32 with the authors' points."""
    if shape == (32, 32):
        for index, (name, values) in enumerate(AUTHORS.items()):
            t, error = zip(*values, strict=True)
            ax.plot(t, error, linestyle="none", marker="*x"[index], color="black", label=name)
    depths = sorted({p["depth"] for p in points})
    curves = {f"depth {depth}": curve(points, "depth", depth) for depth in depths}
    errorbars(curves, ax, shaded=True)
    ax.axvline(CRITICAL_TEMPERATURE, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("temperature ($J / k_B$; dotted: critical)")


def draw_circuits(points: list[dict[str, Any]], ax: Axes) -> None:
    """The gap of each whole circuit."""
    names = [f"{p['circuit']}\n{p['parameters']} parameters\n{p['steps']} steps" for p in points]
    found = Series(range(len(points)), [p["gap"] for p in points], [p["gap_se"] for p in points])
    plotting.plot_estimates({"gap": found}, ax=ax)
    ax.get_legend().remove()
    ax.set_title(f"whole circuits, T = {points[0]['temperature']:.6g}", fontsize="small")
    ax.set_xticks(range(len(points)), names)
    ax.set(xlim=(-0.5, len(points) - 0.5), ylabel="gap (nats)")
    ax.set_ylim(bottom=0.0)


def draw_cone(shape: tuple[int, ...], figure: Any) -> None:
    """The variables of each scale in the light cone of the site in the middle."""
    circuit = make_circuit("mera", shape)
    cones = light_cone(circuit)
    middle = int(np.ravel_multi_index([side // 2 for side in shape], shape))
    panels = figure.subplots(1, len(cones), squeeze=False)[0]
    for scale, (ax, cone) in enumerate(zip(panels, cones, strict=True)):
        mask = np.atleast_2d(cone[middle].numpy())
        ax.pcolormesh(mask, cmap="Blues", vmin=0.0, vmax=1.6, edgecolors="white", linewidth=0.5)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.invert_yaxis()
        ax.set_title(f"scale {scale}: {int(mask.sum())} of {mask.size}", fontsize="small")
    figure.suptitle(
        "variables in the light cone of the site in the middle (blocks that act alone);\nall pairs "
        f"up to these distances share one, by depth: {', '.join(map(str, reach(circuit)))}",
        fontsize="small",
    )


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [" ".join(results["title"].split())]
    for p in points_of(results, "points") + points_of(results, "circuits"):
        lines.append(
            f"T = {p['temperature']:.6g}, {p['circuit']} of depth {p['depth']}: gap {p['gap']:.3f} "
            f"+- {p['gap_se']:.3f} nats after {p['steps']} steps ({p['took']:.1f} CPU s, "
            f"{p['parameters']} parameters)"
        )
    return lines


SMOKE = {"temperatures": (2.0, 2.7), "seconds": 0.2, "circuits": ("tree", "mera"), "samples": 100}

if __name__ == "__main__":
    run(sys.modules[__name__])
