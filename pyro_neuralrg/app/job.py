# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The main job as data: what is asked for, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_neuralrg.diagnostics import Summary
from pyro_neuralrg.files import Record
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate
from pyro_neuralrg.potentials import CRITICAL_TEMPERATURE
from pyro_neuralrg.potentials.cluster import MonteCarlo
from pyro_neuralrg.train import FitResult

__all__ = ["Exact", "Results", "Sampling", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What is to be done.

    Attributes:
        shape: Sides of the periodic lattice.
        temperature: In J/k_B.
        steps: Training steps; None: from the shape.
        batch: Fields per training step; None: from the shape.
        chains: Chains of each sampler.
        draws: Kept draws per chain, after as many for warm-up, but at most 200.
        seed: Of training, estimates and sampling.
        compile: train through ``torch.compile``, on an accelerator.
        device: Where torch computes; "auto" is an NVIDIA GPU where there is one, else the CPU.
        dtype: "float32" or "float64".
        checkpoint: Folder for checkpoints of training and sampling; None: there are none.
        every: Seconds between them; None: 60.
        keep: How many of them, the newest, are kept; None: three.
        resume: Go on from the newest intact one.
        history: Keep a table of the training steps, ``training/history.csv``, beside them.
    """

    shape: tuple[int, ...] = (8, 8)
    temperature: float = CRITICAL_TEMPERATURE
    steps: int | None = None
    batch: int | None = None
    chains: int = 32
    draws: int = 700
    seed: int = 0
    compile: bool = False
    device: str = "auto"
    dtype: str = "float32"
    checkpoint: str | None = None
    every: float | None = None
    keep: int | None = None
    resume: bool = False
    history: bool = False

    def folder(self, name: str) -> Path | None:
        """Folder for the checkpoints of one stage, "training", "latent" or "physical"."""
        return None if self.checkpoint is None else Path(self.checkpoint) / name

    def record(self, name: str, resume: bool) -> Record | None:
        """Record of one stage, if there are checkpoints."""
        if self.checkpoint is None:
            return None
        if self.checkpoint == "":
            raise ValueError("checkpoint is ''; accepted: a folder")
        given: dict[str, Any] = {"every": self.every, "keep": self.keep}
        return Record(
            Path(self.checkpoint) / name,
            resume=resume,
            history=self.history and name == "training",
            **{option: value for option, value in given.items() if value is not None},
        )


@dataclass(frozen=True)
class Sampling:
    """What one sampler found.

    Attributes:
        structure_factor: Of every kept draw, shape ``(chains, draws)``.
        summary: Its mean, Monte Carlo standard error, R-hat and bulk effective sample size.
        acceptance_rate: Mean over draws and chains.
        gradient_evaluations: For the kept draws, summed over chains; a jump counts as one.
        seconds: Wall time of the kept draws.
        last_fields: Last fields of the first chains, shape ``(number,) + shape``.
        interrupted: Ctrl-C cut the draws short.
        unsaved: Why the last checkpoint could not be written; None if it could.
        idata: The run in ArviZ's form.
    """

    structure_factor: npt.NDArray[np.float64]
    summary: Summary
    acceptance_rate: float
    gradient_evaluations: int
    seconds: float
    last_fields: npt.NDArray[np.float64]
    interrupted: bool
    unsaved: str | None
    idata: Any = field(repr=False)


class Exact(NamedTuple):
    """An exact value, or why it is not known.

    Attributes:
        value: The value; None where it is not known.
        reason: Why it is not known; empty where it is.
    """

    value: float | None
    reason: str


@dataclass(frozen=True)
class Results:
    """What there is at the end, however it came.

    Attributes:
        settings: What was asked for.
        training: The result of :func:`~pyro_neuralrg.train.fit`.
        parameters: Trained numbers of the flow.
        exact_free_energy: -ln Z of the dual field in nats.
        exact_structure_factor: E[(sum s)^2] / N^2.
        reference_structure_factor: The same by cluster Monte Carlo with its standard error, where
            the exact value is not known; None where it is, or if it did not come to that.
        estimate: Free energies from samples of the flow; None if it did not come to that.
        bounds: The free energy from below, from exact samples, and from above; likewise.
        samplers: "latent" and "physical", those that drew anything.
        stopped: Why the run ended early, "interrupted" for Ctrl-C; empty if it did not.
    """

    settings: Settings
    training: FitResult
    parameters: int
    exact_free_energy: Exact
    exact_structure_factor: Exact
    reference_structure_factor: MonteCarlo | None
    estimate: FreeEnergyEstimate | None
    bounds: Bounds | None
    samplers: dict[str, Sampling]
    stopped: str

    @property
    def unsaved(self) -> list[str]:
        """What of the stages could not be written, the last checkpoints for one, and why."""
        found = [self.training.unsaved, *(run.unsaved for run in self.samplers.values())]
        return [reason for reason in found if reason is not None]

    @property
    def gap(self) -> float | None:
        """Variational bound minus exact free energy, KL(q || pi/Z) in nats; None if unknown."""
        if self.exact_free_energy.value is None or self.estimate is None:
            return None
        return self.estimate.variational - self.exact_free_energy.value

    @property
    def forward_kl(self) -> float | None:
        """Exact free energy minus the lower bound, KL(pi/Z || q) in nats; None if unknown.

        A mode that the flow misses shows here, and not in the gap.
        """
        if self.exact_free_energy.value is None or self.bounds is None:
            return None
        return self.exact_free_energy.value - self.bounds.lower

    @property
    def relative_error(self) -> float | None:
        """The gap as a fraction of |ln Z|; None if unknown."""
        exact = self.exact_free_energy.value
        return None if self.gap is None or not exact else self.gap / abs(exact)
