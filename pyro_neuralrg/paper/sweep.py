# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The supplement's sweep: temperatures and depths, at a fixed short budget per point."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from pyro_neuralrg import plotting
from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.free_energy.importance import from_log_weights, log_weights
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.paper.files import read_numbers, write_numbers
from pyro_neuralrg.paper.light_cone import light_cone, reach
from pyro_neuralrg.paper.start import Prepared, Start, exact_or_none
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.plotting.style import new_figure
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingDual
from pyro_neuralrg.train import TrainingStep, fit
from pyro_neuralrg.transforms import BIJECTORS, HierarchicalFlow

__all__ = [
    "Case",
    "Point",
    "Results",
    "Settings",
    "compute",
    "correlation_length",
    "describe",
    "draw",
]

NAME = "sweep"
TEMPERATURES = (2.0, 2.1, 2.2, CRITICAL_TEMPERATURE, 2.3, 2.4, 2.5, 2.6, 2.7)
CIRCUITS = ("tree", "brickwork", "mera")
BLOCKS = {"paper": "realnvp", "default": "neighbour"}
COUPLINGS = {"realnvp": 10, "neighbour": 8}  # of a block of a mera
TIMED = 5  # steps that tell how long one takes, after one more
AUTHORS = {
    "authors, 5000 x 512,\nfull depth": ((2.0, 4.5e-3), (2.3, 9.2e-3), (2.7, 8.8e-3)),
    "authors, 5000 x 512,\ndepth 1": ((2.0, 4.5e-2), (2.3, 2.6e-2), (2.7, 1.5e-2)),
}
"""Relative errors of the authors' own sweep at 32 x 32, 5000 steps of 512 fields each."""


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes:
        start: The model; its temperature is that of the circuits alone. Neither kind of block is
            given the spectrum: a Fourier layer would reach everywhere at once.
        temperatures: In J/k_B.
        depths: Numbers of scales; None: from 1 to all.
        seconds: Of training, for each point: CPU seconds of the process, so that other work on the
            machine takes nothing from a point.
        circuits: Beside the mera, whole circuits of about as many parameters, at the temperature of
            the start; ``()`` for none.
        samples: Of each estimate.
    """

    start: Start = field(default_factory=lambda: Start(blocks="paper"))
    temperatures: tuple[float, ...] = TEMPERATURES
    depths: tuple[int, ...] | None = None
    seconds: float = 60.0
    circuits: tuple[str, ...] = CIRCUITS
    samples: int = 10_000

    @classmethod
    def small(cls, start: Start) -> Settings:
        """Seconds long."""
        temperatures = (2.0, 2.7)
        return cls(start.small(), temperatures, seconds=0.2, circuits=("tree", "mera"), samples=100)

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, "a finite number > 0", above=0)
        for temperature in self.temperatures:
            check_number("temperatures", temperature, "finite numbers > 0", above=0)
        for depth in self.depths or ():
            check_integer("depths", depth, 1)
        for circuit in self.circuits:
            if circuit not in CIRCUITS:
                raise ValueError(f"circuits has {circuit!r}; accepted: {', '.join(CIRCUITS)}")
        for name in ("temperatures", "depths", "circuits"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; accepted: each value once")


@dataclass(frozen=True)
class Case:
    """What one point is asked for; results of another one are not taken for it."""

    circuit: str
    depth: int
    temperature: float
    shape: list[int]
    blocks: str
    batch: int
    seconds: float
    seed: int


@dataclass(frozen=True)
class Point:
    """One training of the sweep.

    Attributes:
        case: What was asked for.
        steps: Training steps that the budget allowed.
        parameters: Trained numbers.
        gap: Variational bound less the exact free energy, KL(q || pi/Z) in nats; None if unknown.
        gap_se: Its standard error.
        relative: Gap over |ln Z|.
        ess: Effective fraction of the samples.
        took: CPU seconds that training took.
    """

    case: Case
    steps: int
    parameters: int
    gap: float | None
    gap_se: float
    relative: float | None
    ess: float
    took: float


@dataclass(frozen=True)
class Results:
    """All points, and what the circuit itself says.

    Attributes:
        title: The model and the flow.
        shape: Of the lattice.
        seconds: Budget of a point, in CPU seconds.
        points: Of temperatures and depths.
        circuits: Of whole circuits.
        reach: For each depth, the distance up to which all pairs of sites share a variable, of
            blocks that act alone.
        lengths: Correlation length at each temperature, "2.5" for one, of the infinite lattice.
    """

    title: str
    shape: tuple[int, ...]
    seconds: float
    points: list[Point]
    circuits: list[Point]
    reach: list[int]
    lengths: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read ``sweep.json`` of an earlier run, which may have been stopped early."""
        contents = read_numbers(folder / f"{NAME}.json")
        contents.pop("others")
        points = [_point(row) for row in contents.pop("points")]
        circuits = [_point(row) for row in contents.pop("circuits")]
        lengths = {
            name: math.inf if value is None else value
            for name, value in contents.pop("lengths").items()
        }
        shape = tuple(contents.pop("shape"))
        return cls(shape=shape, points=points, circuits=circuits, lengths=lengths, **contents)


def correlation_length(temperature: float) -> float:
    r"""Of the infinite square Ising lattice along an axis, in sites (exact).

    .. math:: 1/\xi = -\ln\tanh K - 2K \quad (T > T_c), \qquad 1/\xi = 4K + 2\ln\tanh K \quad (T <
        T_c)

    with K = 1 / T; infinite at Tc.

    Args:
        temperature: In J/k_B, J = 1.

    References:
        B. M. McCoy and T. T. Wu, The Two-Dimensional Ising Model (1973).

    Example:
        >>> round(correlation_length(2.7), 3), round(correlation_length(2.0), 3)
        (3.369, 2.192)
    """
    k = 1.0 / check_number("temperature", temperature, "a finite number > 0", above=0)
    inverse = -math.log(math.tanh(k)) - 2 * k
    if temperature < CRITICAL_TEMPERATURE:
        inverse *= -2
    return 1 / inverse if inverse > 1e-12 else math.inf


def compute(settings: Settings, prepared: Prepared, folder: Path) -> Results:
    """Train every point that ``sweep.json`` does not have yet; the file grows with each.

    A run that was stopped goes on where it was.
    """
    shape = prepared.target.shape
    if prepared.is_trained:
        raise ValueError("the sweep trains a flow for every point; accepted: no saved flow")
    asked, whole = cases(settings, shape)
    known = _known(folder)
    temperatures = {t: f"{t:.6g}" for t in settings.temperatures}
    results = Results(
        title=f"Ising {' x '.join(map(str, shape))}, {settings.start.blocks} blocks without "
        f"Fourier layer, {settings.seconds:g} CPU s of training per point\n"
        "(one training each: error bars are those of the estimates)",
        shape=shape,
        seconds=settings.seconds,
        points=[],
        circuits=[],
        reach=reach(make_circuit("mera", shape)),
        lengths={name: correlation_length(t) for t, name in temperatures.items()},
    )
    jobs = [(case, results.points) for case in asked]
    jobs += [(case, results.circuits) for case in whole]
    for case, where in jobs:
        key = case_key(case)
        known[key] = known.get(key) or train_point(case, settings)
        where.append(known[key])
        _write(results, known, folder)
    return results


def train_point(case: Case, settings: Settings) -> Point:
    """Train one flow for the CPU seconds it has, and estimate its gap.

    The first steps tell how many fit, so that the schedule of the learning rate ends with them. A
    step before them may compile loops: it is not counted.
    """
    target = IsingDual(case.shape, temperature=case.temperature)
    _fit(case, target, 1, math.inf)
    began = time.process_time()
    trial = _fit(case, target, TIMED + 1, math.inf)
    step = (trial[-1] - trial[0]) / TIMED
    left = case.seconds - (time.process_time() - began)
    steps = max(1, int(left / max(step, 1e-6)))
    flow = build_flow(case, target)
    times = _fit(case, target, steps, left, flow)
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a poor flow: its ESS says so
        torch.manual_seed(case.seed + 1)
        took = time.process_time() - began
        found = from_log_weights(log_weights(target, flow, settings.samples))
    exact = exact_or_none(target.log_partition)
    gap = None if exact is None else found.variational + exact
    return Point(
        case=case,
        steps=len(times),
        parameters=sum(p.numel() for p in flow.parameters()),
        gap=gap,
        gap_se=found.variational_se,
        relative=None if gap is None or exact is None else gap / abs(exact),
        ess=found.ess,
        took=took,
    )


def build_flow(case: Case, target: IsingDual) -> HierarchicalFlow:
    """The untrained flow; a circuit of fewer layers than the mera has more couplings in each."""
    bijector = BLOCKS[case.blocks]
    couplings = COUPLINGS[bijector]
    own = len(make_circuit(case.circuit, case.shape, depth=case.depth).layers)
    if case.circuit != "mera":
        layers = len(make_circuit("mera", case.shape).layers)
        couplings = max(2, round(couplings * layers / max(1, own)))
    with torch.random.fork_rng([]):
        torch.manual_seed(case.seed)
        return target.flow(
            circuit=case.circuit,
            depth=case.depth,
            bijector=BIJECTORS[bijector](layers=couplings),
            spectrum=None,
            odd=case.blocks == "default",
            base=StandardNormal(),
        )


def _fit(
    case: Case,
    target: IsingDual,
    steps: int,
    seconds: float,
    flow: HierarchicalFlow | None = None,
) -> list[float]:
    """Train for so many steps, or until the time is over; the CPU seconds after each step."""
    began = time.process_time()
    times: list[float] = []

    def stop(_: TrainingStep) -> bool:
        times.append(time.process_time() - began)
        return times[-1] > 1.1 * seconds  # steps were timed: it is seldom needed

    found = fit(
        target,
        build_flow(case, target) if flow is None else flow,
        steps=steps,
        batch=case.batch,
        seed=case.seed,
        progress=False,
        callback=stop,
    )
    if found.interrupted:
        raise KeyboardInterrupt
    return times


def cases(settings: Settings, shape: tuple[int, ...]) -> tuple[list[Case], list[Case]]:
    """What is asked for: temperatures and depths, and whole circuits.

    Raises:
        ValueError: a depth is more than the lattice has.
    """
    return [*_cases(settings, shape)], [*_whole_circuits(settings, shape)]


def _cases(settings: Settings, shape: tuple[int, ...]) -> Iterator[Case]:
    whole = make_circuit("mera", shape).depth
    for temperature in settings.temperatures:
        for depth in settings.depths or range(1, whole + 1):
            if depth > whole:
                raise ValueError(f"depths has {depth}; accepted: at most {whole} on {shape}")
            yield _case(settings, shape, "mera", depth, temperature)


def _whole_circuits(settings: Settings, shape: tuple[int, ...]) -> Iterator[Case]:
    layers = len(make_circuit("mera", shape).layers)
    for circuit in settings.circuits:
        depth = layers if circuit == "brickwork" else make_circuit(circuit, shape).depth
        yield _case(settings, shape, circuit, depth, settings.start.temperature)


def _case(
    settings: Settings, shape: tuple[int, ...], circuit: str, depth: int, temperature: float
) -> Case:
    start = settings.start
    batch = 256 if start.batch is None else start.batch
    return Case(
        circuit, depth, temperature, list(shape), start.blocks, batch, settings.seconds, start.seed
    )


def case_key(case: Case) -> str:
    """A case as text: equal for equal ones."""
    return repr(dataclasses.astuple(case))


def _point(row: dict[str, Any]) -> Point:
    return Point(case=Case(**row.pop("case")), **row)


def _known(folder: Path) -> dict[str, Point]:
    """The points of an earlier run."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {}
    contents = read_numbers(path)
    rows = contents.get("points", []) + contents.get("circuits", []) + contents.get("others", [])
    return {case_key(point.case): point for point in map(_point, rows)}


def _write(results: Results, known: dict[str, Point], folder: Path) -> None:
    """Write the results so far, and keep what an earlier run has that is still to come."""
    contents = dataclasses.asdict(results)
    written = {case_key(point.case) for point in results.points + results.circuits}
    contents["others"] = [
        dataclasses.asdict(point) for key, point in known.items() if key not in written
    ]
    write_numbers(folder / f"{NAME}.json", contents)


def draw(results: Results) -> Figure:
    """Errors by depth, errors by temperature, the circuits, and the light cone of one site."""
    rows = 3 if results.circuits else 2
    figure = new_figure(8.0, 3.3 * rows + 2.6)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.3 * rows, 1.0))
    upper, lower = parts
    panels = upper.subplots(rows, 1)
    figure.suptitle(results.title, fontsize="medium")
    _draw_depths(results, panels[0])
    _draw_temperatures(results, panels[1])
    if results.circuits:
        _draw_circuits(results, panels[2])
    cone = light_cone(make_circuit("mera", results.shape))
    middle = sum(s // 2 * math.prod(results.shape[i + 1 :]) for i, s in enumerate(results.shape))
    masks = [scale[middle].numpy() for scale in cone]
    if len(results.shape) < 3:
        plotting.light_cone(masks, figure=lower)
        reaches = ", ".join(f"{r}" for r in results.reach)
        lower.suptitle(
            "variables in the light cone of the site in the middle (blocks that act alone);\nall "
            f"pairs up to these distances share one, by depth: {reaches}",
            fontsize="small",
        )
    return figure


def _draw_depths(results: Results, ax: Any) -> None:
    curves = {}
    lengths = {}
    for name, length in results.lengths.items():
        rows = [p for p in results.points if f"{p.case.temperature:.6g}" == name]
        if rows:
            label = f"T = {name}, " + (
                rf"$\xi$ = {length:.1f}" if math.isfinite(length) else r"$\xi = \infty$"
            )
            curves[label] = _series(rows, [p.case.depth for p in rows])
            lengths[label] = length
    plotting.depths(curves, lengths=lengths, ax=ax)


def _draw_temperatures(results: Results, ax: Any) -> None:
    depths = sorted({p.case.depth for p in results.points})
    curves = {}
    for depth in depths:
        rows = [p for p in results.points if p.case.depth == depth]
        curves[f"depth {depth}"] = _series(rows, [p.case.temperature for p in rows])
    plotting.depths(curves, lengths={}, ax=ax)
    if results.shape == (32, 32):
        for index, (name, values) in enumerate(AUTHORS.items()):
            t, error = zip(*values, strict=True)
            ax.plot(t, error, linestyle="none", marker="*x"[index], color="black", label=name)
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.axvline(CRITICAL_TEMPERATURE, color="black", linewidth=0.8, linestyle=":")
    ax.xaxis.set_major_locator(AutoLocator())
    ax.set_xlabel("temperature ($J / k_B$; dotted: critical)")


def _draw_circuits(results: Results, ax: Any) -> None:
    known = [p for p in results.circuits if p.gap is not None]
    if not known:
        ax.set_axis_off()
        return
    names = [f"{p.case.circuit}\n{p.parameters} parameters\n{p.steps} steps" for p in known]
    gaps = [math.nan if p.gap is None else p.gap for p in known]
    places = list(range(len(known)))
    found = Series(places, gaps, [p.gap_se for p in known])
    plotting.plot_estimates({f"whole circuits, T = {known[0].case.temperature:.6g}": found}, ax=ax)
    ax.set_xticks(places, names)
    ax.set_xlim(-0.5, len(known) - 0.5)
    ax.set_ylim(bottom=0.0)
    ax.set_ylabel("gap (nats)")


def _series(rows: list[Point], x: list[Any]) -> Series:
    scale = [p.relative / p.gap if p.gap and p.relative else math.nan for p in rows]
    values = [math.nan if p.relative is None else p.relative for p in rows]
    return Series(x, values, [abs(p.gap_se * s) for p, s in zip(rows, scale, strict=True)])


def describe(results: Results) -> list[str]:
    """The figures in words."""
    title = " ".join(results.title.split())
    lines = [title, f"all pairs share a variable up to distance, by depth: {results.reach}"]
    for point in results.points + results.circuits:
        case = point.case
        gap = "unknown" if point.gap is None else f"{point.gap:.3f} +- {point.gap_se:.3f} nats"
        lines.append(
            f"T = {case.temperature:.6g}, {case.circuit} of depth {case.depth}: gap {gap} after "
            f"{point.steps} steps ({point.took:.1f} CPU s, {point.parameters} parameters)"
        )
    return lines
