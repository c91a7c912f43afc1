# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What every figure starts from: the model, and a flow that is trained here or read from a file."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer
from pyro_neuralrg.distributions import StandardNormal
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.flow_file import load
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE, IsingDual
from pyro_neuralrg.train import Cooling, FitResult, Schedule, TrainingStep, default_budget, fit
from pyro_neuralrg.transforms import HierarchicalFlow

__all__ = ["BLOCKS", "Prepared", "Start", "Trained", "exact_or_none", "inverse", "paper_flow"]

BLOCKS = ("default", "paper")
PAPER_SHAPE = (16, 16)
SMALL_SHAPE = (4, 4)
PAPER_STEPS, PAPER_BATCH, PAPER_RATE = 5000, 512, 1e-3  # supplement of the paper
SMALL_STEPS, SMALL_BATCH = 8, 16
FIELDS_AT_ONCE = 500


@dataclass(frozen=True)
class Start:
    """The model, and where its flow comes from.

    Attributes:
        shape: Sides of the periodic lattice; None: those of the saved flow, else 16 x 16.
        temperature: In J/k_B.
        seed: Of all random numbers.
        blocks: "default", the flow of ``target.flow()``; or "paper", a mera of the paper's Real NVP
            blocks that knows nothing of its target.
        steps: Training steps; None: 5000 for the paper's blocks, else by the shape.
        batch: Fields per step; None: 512 for the paper's blocks, else by the shape.
        saved: File of a trained flow to start from.
        progress: Show progress bars.
    """

    shape: tuple[int, ...] | None = None
    temperature: float = CRITICAL_TEMPERATURE
    seed: int = 0
    blocks: str = "default"
    steps: int | None = None
    batch: int | None = None
    saved: Path | None = None
    progress: bool = True

    def small(self) -> Start:
        """The same in seconds: a few steps on 4 x 4, where nothing else is asked for."""
        shape = SMALL_SHAPE if self.shape is None and self.saved is None else self.shape
        return replace(
            self,
            shape=shape,
            steps=SMALL_STEPS if self.steps is None else self.steps,
            batch=SMALL_BATCH if self.batch is None else self.batch,
        )

    def prepare(self) -> Prepared:
        """Check everything, and build the target and the flow.

        Raises:
            ValueError, TypeError: naming what is not accepted; also a flow of another shape.
            OSError: if the file of the flow cannot be read.
        """
        check_integer("seed", self.seed, 0, LARGEST_SEED)
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value is not None:
                check_integer(name, value, 1 if name == "steps" else 2)
        if self.blocks not in BLOCKS:
            raise ValueError(f"blocks is {self.blocks!r}; accepted: {', '.join(BLOCKS)}")
        if self.saved is not None:
            return self._read(self.saved)
        shape = check_shape(PAPER_SHAPE if self.shape is None else self.shape)
        if math.prod(shape) < 2:
            raise ValueError(f"shape is {shape}; accepted: at least two sites")
        target = IsingDual(shape, temperature=self.temperature)
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            flow = paper_flow(target) if self.blocks == "paper" else target.flow()
        return Prepared(replace(self, shape=shape), target, flow)

    def _read(self, path: Path) -> Prepared:
        try:
            loaded = load(path)
        except OSError as error:
            raise OSError(f"flow is {path} ({one_line(error)}); accepted: a saved flow") from None
        flow = loaded.flow
        if not isinstance(flow, HierarchicalFlow):
            raise ValueError(f"flow is a {type(flow).__name__}; accepted: a HierarchicalFlow")
        if self.shape is not None and check_shape(self.shape) != flow.shape:
            raise ValueError(
                f"flow in {path} has shape {flow.shape}, shape is {tuple(self.shape)}; "
                "accepted: equal ones"
            )
        trained_at = loaded.metadata.get("temperature")
        if trained_at is not None and not math.isclose(trained_at, self.temperature, rel_tol=1e-6):
            warnings.warn(
                f"the flow in {path} was trained at T = {trained_at:.6g}, temperature is "
                f"{self.temperature:.6g}",
                stacklevel=3,
            )
        target = IsingDual(flow.shape, temperature=self.temperature)
        return Prepared(replace(self, shape=flow.shape), target, flow, dict(loaded.metadata))


def check_finished(found: FitResult) -> None:
    """Let nothing be made of a training that ended before its time.

    Raises:
        KeyboardInterrupt: if it was interrupted.
        RuntimeError: if it met what is not finite.
    """
    if found.interrupted:
        raise KeyboardInterrupt
    if found.stopped:
        raise RuntimeError(f"the training stopped: {found.stopped}")


class Trained(NamedTuple):
    """A training and what it took.

    Attributes:
        fit: What :func:`~pyro_neuralrg.train.fit` returned.
        cpu_seconds: Of the process meanwhile: unlike wall time, the same on a busy machine.
    """

    fit: FitResult
    cpu_seconds: float


@dataclass(frozen=True)
class Prepared:
    """Target and flow, ready.

    Attributes:
        start: What was asked for, with the shape.
        target: The model.
        flow: Untrained, or as it was read.
        saved: What is known of the training of a flow that was read, as :meth:`metadata` wrote it.
    """

    start: Start
    target: IsingDual
    flow: HierarchicalFlow
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Whether the flow was read from a file."""
        return self.start.saved is not None

    def train(self, callback: Callable[[TrainingStep], Any] | None = None) -> Trained:
        """Train the flow in place; one that was read goes on, without cooling.

        The paper's blocks are trained as in the paper, 5000 steps of 512 fields with Adam at 1e-3,
        but that ``fit`` lowers the rate along half a cosine.
        """
        start = self.start
        faithful = start.blocks == "paper"
        steps = PAPER_STEPS if faithful and start.steps is None else start.steps
        batch = PAPER_BATCH if faithful and start.batch is None else start.batch
        began = time.process_time()
        found = fit(
            self.target,
            self.flow,
            steps=steps,
            batch=batch,
            lr=PAPER_RATE if faithful else None,
            schedule=Schedule(cooling=None if faithful or self.is_trained else Cooling()),
            seed=start.seed,
            progress=start.progress,
            callback=callback,
        )
        check_finished(found)
        return Trained(found, time.process_time() - began)

    @property
    def steps(self) -> int:
        """Steps that :meth:`train` takes."""
        if self.start.steps is not None:
            return self.start.steps
        return (
            PAPER_STEPS if self.start.blocks == "paper" else default_budget(self.flow.shape).steps
        )

    @property
    def batch(self) -> int:
        """Fields of each of these steps."""
        if self.start.batch is not None:
            return self.start.batch
        return (
            PAPER_BATCH if self.start.blocks == "paper" else default_budget(self.flow.shape).batch
        )

    @property
    def title(self) -> str:
        """The model and the flow in one line; one that was read is as it was read."""
        return self._title("")

    @property
    def training_title(self) -> str:
        """The model and the flow behind :meth:`train` in one line."""
        more = f", {self.steps} steps of {self.batch} more" if self.is_trained else ""
        return self._title(more)

    def _title(self, more: str) -> str:
        sides = " x ".join(map(str, self.flow.shape))
        start, saved = self.start, self.saved
        kind = f"{start.blocks} blocks, {self.steps} steps of {self.batch}"
        if self.is_trained:
            known = [f"{saved[name]} {name}" for name in ("blocks", "steps") if saved.get(name)]
            if saved.get("steps") and saved.get("batch"):
                known[-1] += f" of {saved['batch']}"
            kind = "saved flow" + (f" ({', '.join(known)})" if known else "") + more
        return f"Ising {sides}, T = {start.temperature:.6g}, {kind}, seed {start.seed}"

    def metadata(self, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        """What to save beside a flow whose training took so long."""
        return {
            "temperature": self.start.temperature,
            "seed": self.start.seed,
            "blocks": self.saved.get("blocks", self.start.blocks),
            "steps": self._with_earlier("steps", self.steps),
            "batch": self.batch if self.saved.get("batch", self.batch) == self.batch else None,
            "training_seconds": self._with_earlier("training_seconds", seconds),
            "training_cpu_seconds": self._with_earlier("training_cpu_seconds", cpu_seconds),
        }

    def _with_earlier(self, name: str, value: float) -> float | None:
        """With that of the training before, of a flow that was read; None if it is not known."""
        before = self.saved.get(name) if self.is_trained else 0
        return None if before is None else before + value


def paper_flow(target: IsingDual, depth: int | None = None) -> HierarchicalFlow:
    """The paper's circuit: a mera of Real NVP blocks that knows nothing of its target.

    Example:
        >>> paper_flow(IsingDual((4, 4))).bijector
        RealNVP(layers=10, hidden=(10, 10, 10), activation='elu')
    """
    options = {"spectrum": None, "odd": False, "base": StandardNormal()}
    return target.flow(bijector="realnvp", depth=depth, **options)


def exact_or_none(value: Callable[[], float]) -> float | None:
    """An exact value; None where it is not known.

    Example:
        >>> round(exact_or_none(IsingDual((4, 4)).spins.structure_factor), 3)
        0.761
        >>> exact_or_none(IsingDual((8, 8, 8)).spins.structure_factor) is None
        True
    """
    try:
        found = float(value())
    except (NotImplementedError, MemoryError):
        return None
    return found if math.isfinite(found) else None


@torch.no_grad()
def inverse(flow: HierarchicalFlow, x: Tensor) -> Tensor:
    """The latents of fields, some hundred at a time, in the dtype of the flow."""
    dtype = next(flow.parameters()).dtype
    parts = x.to(dtype).split(FIELDS_AT_ONCE)
    return torch.cat([flow.inverse_and_ladj(part)[0] for part in parts])
