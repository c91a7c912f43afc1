# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The main job on the Ising model: train a flow, estimate -ln Z, sample with it and without it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.app.job import Exact, Results, Sampling, Settings
from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, refuse_without
from pyro_neuralrg.diagnostics import summarise, to_arviz
from pyro_neuralrg.files import CheckpointError
from pyro_neuralrg.files.record import checkpoint_files, format_differences
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate, bounds, estimate
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.mcmc import (
    HMC,
    Cycle,
    EnergyTarget,
    IndependenceMetropolis,
    Kernel,
    VectorizedMCMC,
)
from pyro_neuralrg.mcmc.checkpoints import FORMAT as SAMPLING
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.potentials.cluster import MonteCarlo
from pyro_neuralrg.runtime.interrupts import deferred_interrupts
from pyro_neuralrg.runtime.memory import MemoryLimitError, check_fits, kept_bytes
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.train import FitResult, default_budget, fit
from pyro_neuralrg.train.checkpoints import FORMAT as TRAINING
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.compilation import compiled_operations

__all__ = [
    "FAILURES",
    "CheckpointError",
    "Experiment",
    "MemoryLimitError",
    "one_line",
]

SPACES = ("latent", "physical")
ESTIMATE_SAMPLES = 20_000
ESTIMATE_BATCH = 1000
BOUND_SITES, BOUND_SAMPLES = 2**19, 5000  # of exact samples, at most: seconds
LATENT_STEPS = 2  # leapfrog steps of a latent draw
JUMPS = 2  # and jumps after them: cheaper, and what moves the collective variables
PHYSICAL_STEPS = 10  # leapfrog steps of a trajectory, as in the paper
WARMUP = 200  # draws, at most
REFERENCE_SITES = 2**22  # of all configurations of the cluster Monte Carlo: seconds
REFERENCE_LEAST = 64  # configurations, whatever the lattice
PICTURED = 4  # fields kept for the figure
LEAST = {"steps": 1, "batch": 2, "chains": 1, "draws": 1}
MOST = 2**31 - 1  # of each of them
FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, OSError)
"""What a stage may raise: a target that is not finite, numbers out of range, no more memory, files
that cannot be read or written."""


@dataclass(frozen=True)
class Experiment:
    """Target and flow, checked and ready to run; make one with :meth:`prepare`."""

    settings: Settings
    target: IsingDual
    flow: HierarchicalFlow

    @classmethod
    def prepare(cls, settings: Settings) -> Experiment:
        """Check every setting and build target and flow, the flow from ``settings.seed``.

        Raises:
            ValueError, TypeError: A setting is not accepted; the message names it. A
                MemoryLimitError if its fields alone cannot fit.
        """
        for name, least in LEAST.items():
            value = getattr(settings, name)
            if value is not None:
                check_integer(name, value, least, MOST)
        check_integer("seed", settings.seed, 0, LARGEST_SEED)
        if settings.checkpoint is None:
            given = {
                name: getattr(settings, name) for name in ("every", "keep", "resume", "history")
            }
            refuse_without("checkpoint", "with a folder of them", **given)
        settings.record("training", settings.resume)
        device = _device(settings.device)
        processes().run_on_all(lambda: _check_memory(settings, device))
        processes().share("batch", _batch(settings))
        processes().share("chains", settings.chains)
        target = IsingDual(settings.shape, temperature=settings.temperature).to(device)
        with torch.random.fork_rng(_generators(device)):
            torch.manual_seed(settings.seed)
            flow = target.flow(dtype=getattr(torch, settings.dtype)).to(device)
        if not any(True for _ in flow.parameters()):
            raise ValueError(
                f"shape is {settings.shape}, which leaves a flow nothing to learn; "
                "accepted: at least two sites"
            )
        return cls(replace(settings, device=str(device)), target, flow)

    def run(self, on_trained: Callable[[FitResult], object] | None = None) -> Results:
        """Train, estimate, sample. Ctrl-C ends it with what there is.

        All processes of a group train and sample; the first one alone estimates.

        Args:
            on_trained: Called with the training as soon as it is over, however it ended.

        Raises:
            ValueError, RuntimeError, ...: The training could not begin. A later stage that fails
                ends the run with what there is, and ``stopped`` says why.
        """
        exact_free_energy = _exact(lambda: -self.target.log_partition())
        exact_structure_factor = _exact(self.target.exact_structure_factor)
        self._check_samplers()
        training = self.train()
        with deferred_interrupts() as pressed:
            if on_trained is not None:
                on_trained(training)
        interrupted = training.interrupted or bool(pressed)
        stopped = "interrupted" if interrupted else training.stopped or ""
        exact = exact_structure_factor.value is not None
        found, between, reference, stopped = self._estimates(exact, stopped)
        samplers, stopped = self._samplers(stopped)
        return Results(
            settings=self.settings,
            training=training,
            parameters=sum(p.numel() for p in self.flow.parameters()),
            exact_free_energy=exact_free_energy,
            exact_structure_factor=exact_structure_factor,
            reference_structure_factor=reference,
            estimate=found,
            bounds=between,
            samplers=samplers,
            stopped=stopped,
        )

    def _estimates(
        self, exact: bool, stopped: str
    ) -> tuple[FreeEnergyEstimate | None, Bounds | None, MonteCarlo | None, str]:
        """Free energies, the structure factor where it is not ``exact``, and why it stopped."""
        found: FreeEnergyEstimate | None = None
        between: Bounds | None = None
        reference: MonteCarlo | None = None
        try:
            if processes().is_first:
                found = self.estimate()
                if not stopped:
                    between = self.bounds()
                if not exact and not stopped:
                    reference = self.reference()
        except KeyboardInterrupt:
            stopped = "interrupted"
        except FAILURES as error:
            stopped = stopped or one_line(error)
        return found, between, reference, stopped

    def _samplers(self, stopped: str) -> tuple[dict[str, Sampling], str]:
        """What the samplers found, none if the run has stopped, and why it stopped."""
        samplers: dict[str, Sampling] = {}
        try:
            stopped = processes().broadcast_from_first(
                lambda: stopped
            )  # so that all sample, or none
            for name in () if stopped else SPACES:
                samplers[name] = self.sample(name)
                if samplers[name].interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            stopped = "interrupted"
        except FAILURES as error:
            stopped = stopped or one_line(error)
        return samplers, stopped

    def train(self) -> FitResult:
        """Train the flow, with steps and batch from the shape where they are not set."""
        settings = self.settings
        with compiled_operations() if settings.compile else contextlib.nullcontext():
            return fit(
                self.target,
                self.flow,
                steps=settings.steps,
                batch=settings.batch,
                seed=settings.seed,
                record=settings.record("training", settings.resume),
            )

    def estimate(self) -> FreeEnergyEstimate:
        """Estimate -ln Z from samples of the flow."""
        with torch.random.fork_rng(_generators(self.target.device)):
            torch.manual_seed(self.settings.seed + 1)
            return estimate(self.target, self.flow, ESTIMATE_SAMPLES, ESTIMATE_BATCH)

    def bounds(self) -> Bounds:
        """Bound -ln Z from both sides: from exact samples of the target, and from the flow's."""
        sites, seed = self.target.spectrum.numel(), self.settings.seed
        number = min(BOUND_SAMPLES, max(REFERENCE_LEAST, BOUND_SITES // sites))
        with torch.random.fork_rng(_generators(self.target.device)):
            torch.manual_seed(seed + 2)
            return bounds(self.target, self.flow, number, batch_size=ESTIMATE_BATCH, seed=seed)

    def reference(self) -> MonteCarlo:
        """The structure factor by cluster Monte Carlo of the spins, without the flow."""
        n = max(REFERENCE_LEAST, REFERENCE_SITES // self.target.spectrum.numel())
        return self.target.reference_structure_factor(n, self.settings.seed)

    def sample(self, space: str) -> Sampling:
        """Sample in the "latent" space (HMC and jumps) or in the "physical" one (HMC).

        With checkpoints, it goes on where it was stopped if it is to be resumed.
        """
        mcmc = self._sampler(space)
        mcmc.run()
        with deferred_interrupts() as pressed:
            found = _sampling(mcmc)
        (interrupted,) = processes().any_process(found.interrupted or bool(pressed))
        return replace(found, interrupted=interrupted)

    def _sampler(self, space: str) -> VectorizedMCMC:
        """What samples in the "latent" or in the "physical" space, not run yet."""
        return VectorizedMCMC(
            self._kernel(space),
            num_samples=self.settings.draws,
            warmup_steps=min(self.settings.draws, WARMUP),
            num_chains=self.settings.chains,
            initial_params={"x": self._start()},
            seed=self.settings.seed,
            record=self.settings.record(space, self.settings.resume and self._is_there(space)),
        )

    def _is_there(self, name: str) -> bool:
        """Whether there are checkpoints of the training or of a sampler."""
        folder = self.settings.folder(name)
        if folder is None:
            return False
        kind = TRAINING if name == "training" else SAMPLING
        return processes().broadcast_from_first(
            lambda: folder.is_dir() and bool(checkpoint_files(folder, kind))
        )

    def _check_samplers(self) -> None:
        """Raise a CheckpointError if there are states of samplers that this run cannot go on from.

        They are, without ``resume``, of an earlier run; of one that is not known, if the training
        is missing; or of one with other settings; or they cannot be read.
        """
        folder = self.settings.checkpoint
        try:
            present = [space for space in SPACES if self._is_there(space)]
            trained = self._is_there("training")
        except OSError as error:
            raise CheckpointError(one_line(error)) from None
        if present and not trained:
            raise CheckpointError(
                f"checkpoint is {folder}, which holds {' and '.join(present)} without the training "
                "before; accepted: a folder with both, or without checkpoints"
            )
        for space in present:
            self._check_sampler(space)

    def _check_sampler(self, space: str) -> None:
        """Raise a CheckpointError if this sampler cannot go on from the state that is there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sampling will speak of damaged files
            try:
                self._sampler(space).check()
            except CheckpointError as error:
                if not error.differing:
                    raise
                raise CheckpointError(
                    f"{self.settings.folder(space)} is of another run, with "
                    f"{format_differences(self._in_words(error.differing))}; accepted: the same "
                    "settings"
                ) from None

    def _in_words(self, differing: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
        """The settings of a sampler by the names of those of this job, which they come from."""
        words = {"num_chains": "chains", "warmup_steps": "draws", "sites": "shape"}
        found = {words.get(name.split(".")[0], name): both for name, both in differing.items()}
        if "draws" in found:  # as many were for warm-up, at most
            saved, _ = found["draws"]
            found["draws"] = (f">= {WARMUP}" if saved == WARMUP else saved, self.settings.draws)
        return found

    def _kernel(self, space: str) -> Kernel:
        if space == "latent":
            local = HMC(self.target, num_steps=LATENT_STEPS, flow=self.flow)
            return Cycle(local, *[IndependenceMetropolis(self.flow) for _ in range(JUMPS)])
        dtype, device = getattr(torch, self.settings.dtype), self.target.device
        return HMC(EnergyTarget(self.target, dtype=dtype, device=device), num_steps=PHYSICAL_STEPS)

    def _start(self) -> Tensor:
        """White noise, far from equilibrium and the same for both samplers."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randn(self.settings.chains, *self.target.shape, generator=generator)


def _sampling(mcmc: VectorizedMCMC) -> Sampling:
    idata = to_arviz(mcmc)
    values = np.asarray(idata.posterior["structure_factor"], dtype=np.float64)
    fields = np.asarray(idata.posterior["x"], dtype=np.float64)
    return Sampling(
        structure_factor=values,
        summary=summarise(values),
        acceptance_rate=float(mcmc.sample_stats["acceptance_rate"].mean()),
        gradient_evaluations=int(mcmc.gradient_evaluations.draws),
        seconds=mcmc.seconds.draws,
        last_fields=fields[:PICTURED, -1],
        interrupted=mcmc.interrupted,
        unsaved=mcmc.unsaved,
        idata=idata,
    )


def _exact(value: Callable[[], float]) -> Exact:
    try:
        found = float(value())
    except FAILURES as error:  # NotImplementedError is a RuntimeError
        return Exact(None, one_line(error))
    if not math.isfinite(found):
        return Exact(None, f"the exact formula gives {found} here")
    return Exact(found, "")


def one_line(error: BaseException) -> str:
    """An error's message in one line; its kind, if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _generators(device: torch.device) -> list[torch.device]:
    """The devices whose random state is to be put back."""
    return [device] if device.type == "cuda" else []


def _device(name: str) -> torch.device:
    """The device of this name, if torch can compute there.

    Raises:
        ValueError: It cannot.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device).sum())  # a "meta" tensor, say, has no numbers
    except Exception as error:  # whatever its backend raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device is {name!r}; accepted: auto, cpu, or an accelerator that torch finds here "
            f"({reason})"
        ) from None
    return device


def _batch(settings: Settings) -> int:
    """Fields per training step, of all processes."""
    return default_budget(settings.shape).batch if settings.batch is None else settings.batch


def _check_memory(settings: Settings, device: torch.device) -> None:
    """Refuse what cannot be held, before anything tries.

    Raises:
        MemoryLimitError: The fields of one training step, or those that are kept of one sampler,
            take more memory than is available; the message names the settings.
    """
    size = 8 if settings.dtype == "float64" else 4
    shape = f"shape is {settings.shape}"
    field, number = size * math.prod(check_shape(settings.shape)), processes().size
    check_fits(shape, field, device)
    batch = _batch(settings)
    check_fits(f"{shape} and batch is {batch}", field * batch / number, device)
    chains, draws = settings.chains, settings.draws
    sampled = f"{shape}, chains is {chains} and draws is {draws}"
    check_fits(sampled, kept_bytes(field * chains * draws, number), device)
