# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the paper's figures: a model, a flow, a command line, a file of numbers."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from pyro_neuralrg import IsingDual, fit, load, save
from pyro_neuralrg.app.ising import side
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.plotting import COLOURS, MARKERS, STYLES, Series
from pyro_neuralrg.plotting.style import legend_beside, png
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE
from pyro_neuralrg.train import Cooling, FitResult, Schedule, TrainingStep, default_budget

PAPER_STEPS, PAPER_BATCH, PAPER_RATE = 5000, 512, 1e-3  # supplement of the paper
SMOKE = {"shape": (4, 4), "steps": 8, "batch": 16}
FIELDS_AT_ONCE = 500
DOTS_PER_INCH = 120
UNKNOWN = [math.nan, math.nan]

Results = dict[str, Any]
"""Numbers, text, tensors, and lists and dictionaries of them."""
Callback = Callable[[TrainingStep], Any]


def option(default: Any, help: str, **more: Any) -> Any:
    """A setting that the command line asks for, with what ``add_argument`` is to be told of it."""
    kind = {"type": type(default)} if isinstance(default, int | float) else {}
    return field(default=default, metadata={"help": help, **kind, **more})


@dataclass(frozen=True)
class Start:
    """The model and its flow: settings of every figure, and options of every command."""

    shape: tuple[int, ...] | None = option(None, "default: 16 16", type=side, nargs="+")
    temperature: float = option(
        CRITICAL_TEMPERATURE, "in J/k_B (default: 2.269..., critical in 2 dimensions)"
    )
    seed: int = option(0, "of all random numbers (default: 0)")
    blocks: str = option(
        "default", "default, of a flow that knows its target, or paper: Real NVP, by default 5000 "
        "steps of 512 fields (default: default)", choices=("default", "paper"),
    )  # fmt: skip
    steps: int | None = option(None, "training steps (default: by blocks and shape)", type=int)
    batch: int | None = option(None, "fields of each (default: by blocks and shape)", type=int)
    flow: str | None = option(None, "file of a saved one (default: one is trained)", type=str)
    progress: bool = True


class Model:
    """Target and flow of a figure; ``known`` is what is saved beside the flow, once trained."""

    def __init__(self, start: Start) -> None:
        self.start, self.known = start, {}
        self.target = IsingDual(start.shape or (16, 16), temperature=start.temperature)
        if start.flow is not None:
            self._load(start.flow)
            return
        make = paper_flow if start.blocks == "paper" else IsingDual.flow
        with torch.random.fork_rng([]):
            torch.manual_seed(start.seed)
            self.flow = make(self.target)

    def _load(self, path: str) -> None:
        start = self.start
        self.flow, metadata = load(path)
        unknown = {"training": "saved flow", "seconds": UNKNOWN, "temperature": start.temperature}
        self.known = {**unknown, **metadata}
        if start.shape is not None and start.shape != self.flow.shape:
            raise ValueError(f"shape is {start.shape}; accepted: that of {path}, {self.flow.shape}")
        if not math.isclose(self.known["temperature"], start.temperature, rel_tol=1e-6):
            warnings.warn(f"the flow was trained at T = {self.known['temperature']}", stacklevel=4)
        self.target = IsingDual(self.flow.shape, temperature=start.temperature)

    @property
    def steps(self) -> int:
        """Steps that :meth:`train` takes."""
        paper = self.start.blocks == "paper"
        usual = PAPER_STEPS if paper else default_budget(self.flow.shape).steps
        return usual if self.start.steps is None else self.start.steps

    @property
    def title(self) -> str:
        """The model and the flow in one line."""
        sides, start = " x ".join(map(str, self.flow.shape)), self.start
        model = f"Ising {sides}, T = {start.temperature:.6g}"
        return f"{model}, {self.known['training']}, seed {start.seed}"

    def exact(self, quantity: str) -> float:
        """The exact "free_energy" or "structure_factor"; NaN where it is not known."""
        values = {
            "free_energy": lambda: -self.target.log_partition(),
            "structure_factor": self.target.spins.structure_factor,
        }
        try:
            return float(values[quantity]())
        except (NotImplementedError, MemoryError):
            return math.nan

    def structure_factor(self, x: Tensor) -> Tensor:
        """(sum of the spins)^2 / N^2 of each field, the spins averaged given the field."""
        return self.target.observables()["structure_factor"](x)

    def fields(self, number: int) -> Tensor:
        """Fields of the target by cluster Monte Carlo, in the dtype of the flow."""
        x = self.target.sample_reference(number, self.start.seed + 1)
        return x.to(next(self.flow.parameters()).dtype)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """The latents of fields, some hundred at a time."""
        return torch.cat([self.flow.inv(part) for part in x.split(FIELDS_AT_ONCE)])

    def need_trained(self, path: Path, callback: Callback | None = None) -> None:
        """Train the flow and write it, unless it was read from a file."""
        if not self.known:
            self.train(path, callback)
        elif self.start.steps is not None or self.start.batch is not None:
            raise ValueError("steps and batch are given beside a saved flow, which is not trained")

    def train(self, path: Path, callback: Callback | None = None) -> FitResult:
        """Train the flow in place and write it; a saved one goes on, without cooling.

        The paper's blocks are trained as in the paper, but that ``fit`` lowers the rate along half
        a cosine. The time of the callback is no training.
        """
        start, paper, before = self.start, self.start.blocks == "paper", self.known
        outside = np.zeros(2)

        def timed(record: TrainingStep) -> None:
            nonlocal outside
            entered = clock()
            if callback is not None:
                callback(record)
            outside += clock() - entered

        began = clock()
        found = fit(
            self.target,
            self.flow,
            steps=self.steps,
            batch=PAPER_BATCH if paper and start.batch is None else start.batch,
            lr=PAPER_RATE if paper else None,
            seed=start.seed,
            progress=start.progress,
            callback=timed,
            schedule=Schedule(cooling=None if paper or before else Cooling()),
        )
        spent = clock() - began - outside + before.get("seconds", 0.0)
        if found.interrupted:
            raise KeyboardInterrupt
        if found.stopped:
            raise RuntimeError(f"the training stopped: {found.stopped}")
        said = f"{before.get('training', f'{start.blocks} blocks')}, {found.steps} steps of "
        said += f"{found.batch}{' more' if before else ''}"
        self.known = {"training": said, "seconds": spent.tolist()}
        self.known |= {"temperature": start.temperature, "seed": start.seed}
        save(path, self.flow, metadata=self.known)
        return found


def paper_flow(target: IsingDual, **options: Any) -> Any:
    """The paper's circuit: a mera of Real NVP blocks that knows nothing of its target."""
    blind = {"bijector": "realnvp", "spectrum": None, "odd": False, "base": StandardNormal()}
    return target.flow(**{**blind, **options})


def clock() -> np.ndarray:
    """Wall time and CPU time of the process (the same on a busy machine), in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def errorbars(curves: Mapping[str, Series], ax: Axes, shaded: bool = False) -> None:
    """Relative errors of -ln Z, logarithmic; a bar that would reach zero ends below the axis."""
    shades = colormaps["turbo"](np.linspace(0.05, 0.95, max(2, len(curves))))
    for index, (name, series) in enumerate(curves.items()):
        x, values, error = series.finite()
        many = {"marker": "", "capsize": 0, "elinewidth": 0.2} if len(x) > 100 else {}
        look = {"marker": MARKERS[index % 5], "markersize": 4, "capsize": 2, **many}
        ax.errorbar(
            x, values, yerr=[np.where(error >= values, 0.999 * values, error), error], label=name,
            color=shades[index] if shaded else COLOURS[index], linestyle=STYLES[index % 5],
            linewidth=1.0, **look,
        )  # fmt: skip
    known = np.concatenate([series.finite()[1] for series in curves.values()])
    if (known > 0).any():
        ax.set_yscale("log")
        ax.set_ylim(bottom=np.quantile(known[known > 0], 0.02) / 3)
    ax.set_ylabel(r"relative error of $-\ln Z$")
    legend_beside(ax)


def write(folder: Path, name: str, results: Results) -> None:
    """Write ``NAME.pt``, whole or not at all."""
    temporary = folder / f".{name}.tmp"
    torch.save(results, temporary)
    temporary.replace(folder / f"{name}.pt")


def read(folder: Path, name: str) -> Results:
    """Read what :func:`write` wrote; executes no code."""
    return torch.load(folder / f"{name}.pt", weights_only=True)


def make_parser(figure: ModuleType) -> argparse.ArgumentParser:
    """The options of a figure: those of its settings that have a help text, and three more."""
    prog, about = Path(figure.__file__).name, figure.__doc__.strip()
    kept = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=about, formatter_class=kept)
    for entry in fields(figure.Settings):
        if "help" in entry.metadata:
            flag = f"--{entry.name.replace('_', '-')}"
            parser.add_argument(flag, default=argparse.SUPPRESS, **entry.metadata)
    parser.add_argument("--smoke", action="store_true", help="in seconds: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=Path("neuralrg-paper"), help="folder to write")
    parser.add_argument("--redraw", action="store_true", help="draw the numbers in --out again")
    return parser


def run(figure: ModuleType, arguments: Sequence[str] | None = None) -> None:
    """The command of one figure: compute, write FIGURE.pt and FIGURE.png, and describe.

    A figure is a script with ``Settings``, ``SMOKE`` (those that take seconds), ``compute``,
    ``draw`` and ``describe``. What is not accepted ends it with one line and status 2.
    """
    parser, name = make_parser(figure), Path(figure.__file__).stem
    given = vars(parser.parse_args(arguments))
    out, small, redraw = (given.pop(word) for word in ("out", "smoke", "redraw"))
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    if small:
        given = {**({} if "flow" in given else SMOKE), **figure.SMOKE, **given}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not redraw:
            write(out, name, figure.compute(figure.Settings(**given), out))
        results = read(out, name)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    (out / f"{name}.png").write_bytes(png(figure.draw(results), DOTS_PER_INCH))
    said = "\n".join(figure.describe(results))
    sys.stdout.write(f"{said}\n\nwritten to {out}: {name}.png\n")
