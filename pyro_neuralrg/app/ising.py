# SPDX-License-Identifier: Apache-2.0
"""The main job on the Ising model: train a flow, estimate -ln Z, sample with it and without it."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, see
from pyro_neuralrg.diagnostics import Summary, summarise, to_arviz
from pyro_neuralrg.files import CheckpointError, Record
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.files.record import Checkpoints
from pyro_neuralrg.free_energy import Bounds, FreeEnergyEstimate, bounds, estimate
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.mcmc import HMC, EnergyTarget, VectorizedMCMC
from pyro_neuralrg.mcmc.run_state import CHAIN_FORMAT
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.runtime.console import deferred_interrupts, stage
from pyro_neuralrg.runtime.memory import check_fits, kept_bytes
from pyro_neuralrg.runtime.processes import processes, seeded
from pyro_neuralrg.sampling import sample
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.train import FitResult, default_budget, fit
from pyro_neuralrg.transforms import HierarchicalFlow

SPACES = ("latent", "physical")
TRAINED = 7 / 8  # of the steps of the default budget: a gap of 0.03 at 8 x 8
ESTIMATE_SAMPLES = 20_000
ESTIMATE_BATCH = 1000
BOUND_SITES, BOUND_SAMPLES = 2**19, 5000  # of exact samples, at most: seconds
PHYSICAL_STEPS = 10  # leapfrog steps of a trajectory, as in the paper
WARMUP = 200  # draws, at most
REFERENCE_SITES = 2**22  # of all configurations of the cluster Monte Carlo: seconds
REFERENCE_LEAST = 64  # configurations, whatever the lattice
MINIMA = {"steps": 1, "batch": 2, "chains": 1, "draws": 4}  # R-hat needs four draws
MAXIMUM = 2**31 - 1  # of each of them
QUICK = {"steps": 400, "draws": 200}  # of --quick, where they are not given
WORDS = {
    "resume=True": "--resume",
    "folder is": "checkpoint is",
    "num_chains": "chains",
    "warmup_steps": "draws for warm-up",
    "sites.x_latent": "shape",
    "sites.x": "shape",
    "spectrum has": "temperature is so low that the spectrum of the couplings has",
}
"""Words of the command for those of the library, in messages."""
FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, OSError)
"""Errors of a stage: numbers out of range or not finite, no more memory, unreadable files."""


def in_words(error: BaseException | str) -> str:
    r"""A message of the library in one line, in the words of the command.

    Example:
        >>> in_words(ValueError("accepted: resume=True,\nor a new folder")), in_words(OSError())
        ('accepted: --resume, or a new folder', 'OSError')
    """
    line = " ".join(str(error).split()) or type(error).__name__
    for theirs, ours in WORDS.items():
        line = line.replace(theirs, ours)
    return line


def side(text: str) -> int:
    """One side of the lattice; of what joins several, such as 8x8, the error tells how to write it.

    Example:
        >>> side("8")
        8
        >>> side("8x8")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: '8x8' is not an integer; accepted: sides apart, --shape 8 8
    """
    try:
        return int(text)
    except ValueError:
        joined = re.fullmatch(r"\D?\d+([x*,]\d+){1,2}\D?", text.lower())
        sides = " ".join(re.findall(r"\d+", text)) if joined else "8 8"
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an integer; accepted: sides apart, --shape {sides}"
        ) from None


def option(default: Any, help: str, **more: Any) -> Any:
    """A setting that is an option of the command, with what ``add_argument`` is told of it."""
    kind = {} if more else {"type": type(default)}
    return field(default=default, metadata={"help": help, **kind, **more})


@dataclass(frozen=True)
class Settings:
    """The options of ``neuralrg ising``, whose help describes them; ``record`` is of all stages."""

    shape: tuple[int, ...] = option(
        (8, 8), "one to three sides of the lattice (default: 8 8)", type=side, nargs="+"
    )
    temperature: float | None = option(
        None, "in units of J/k_B (default: the critical one of 2 or 3 dimensions)", type=float
    )
    steps: int | None = option(None, "training steps (default: 1750 for 8 x 8)", type=int)
    batch: int | None = option(None, "fields in each step (default: 256 for 8 x 8)", type=int)
    seed: int = option(0, "seed of all random numbers")
    chains: int = option(32, "Markov chains of each sampler; R-hat compares them")
    draws: int = option(
        700, "draws that each chain keeps, at least 4; as many come before, at most 200, to adapt"
    )
    compile: bool = option(False, "compile the flow, for a GPU", action="store_true")
    device: str = option("auto", "where torch computes: auto (a GPU if any), cpu, cuda:1, ...")
    dtype: str = option("float32", "precision of flow and fields", choices=("float32", "float64"))
    record: Record | None = None


class Exact(NamedTuple):
    """An exact value; None, and the reason, where it is not known."""

    value: float | None
    reason: str = ""

    @classmethod
    def of(cls, compute: Callable[[], float]) -> Exact:
        """The value, if it can be computed and is finite."""
        try:
            found = float(compute())
        except FAILURES as error:  # NotImplementedError is a RuntimeError
            return cls(None, in_words(error))
        return cls(found) if math.isfinite(found) else cls(None, f"the exact formula gives {found}")

    def __str__(self) -> str:
        return f"unknown ({self.reason})" if self.value is None else f"{self.value:.6f}"


class Sampling(NamedTuple):
    """A sampler that has run, its draws in ArviZ's form, and a summary of the structure factor."""

    mcmc: VectorizedMCMC
    idata: Any
    summary: Summary
    interrupted: bool
    method: str = "HMC"


@dataclass
class Results:
    """The results of a run, finished or not; None for what it did not reach."""

    settings: Settings
    training: FitResult
    exact_free_energy: Exact  # -ln Z of the field in nats
    exact_structure_factor: Exact  # E[(sum s)^2] / N^2
    reference: Estimate | None = None  # the structure factor by cluster Monte Carlo, if not exact
    estimate: FreeEnergyEstimate | None = None
    bounds: Bounds | None = None
    samplers: dict[str, Sampling] = field(default_factory=dict)  # by space, if they drew anything
    stopped: str = ""  # reason of an early end, "interrupted" for Ctrl-C

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Note an error or interrupt in the block as the reason why the run stopped."""
        try:
            yield
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        except FAILURES as error:
            self.stopped = self.stopped or in_words(error)

    @property
    def unsaved(self) -> list[str]:
        """Last checkpoints of stages that could not be written, and why."""
        found = [self.training.unsaved, *(run.mcmc.unsaved for run in self.samplers.values())]
        return [reason for reason in found if reason is not None]

    @property
    def parameters(self) -> int:
        """Parameters of the flow."""
        return sum(p.numel() for p in self.training.flow.parameters())


@dataclass(frozen=True)
class Experiment:
    """Target and flow, checked and ready to run."""

    settings: Settings
    target: IsingDual
    flow: HierarchicalFlow

    @classmethod
    def prepare(cls, settings: Settings) -> Experiment:
        """Check every setting and build target and flow, the flow from ``settings.seed``."""
        for name, least in MINIMA.items():
            value = getattr(settings, name)
            if value is not None:
                check_integer(name, value, least, MAXIMUM)
        device, shape = _torch_device(settings.device), check_shape(settings.shape)
        budget = default_budget(shape)
        batch = budget.batch if settings.batch is None else settings.batch
        steps = round(TRAINED * budget.steps) if settings.steps is None else settings.steps
        settings = replace(settings, device=str(device), batch=batch, steps=steps)
        processes().run_on_all(lambda: _check_fields_fit(settings, device))
        processes().share("batch", batch)
        processes().share("chains", settings.chains)
        target = IsingDual(settings.shape, temperature=settings.temperature).to(device)
        settings = replace(settings, temperature=target.temperature)
        with seeded(settings.seed):
            flow = target.flow(dtype=getattr(torch, settings.dtype)).to(device)
        if not any(True for _ in flow.parameters()):
            raise ValueError(f"shape is {settings.shape}; accepted: at least two sites")
        return cls(settings, target, flow)

    def run(self, on_trained: Callable[[Results], object] | None = None) -> Results:
        """Train, estimate, sample; Ctrl-C, or a stage that fails, ends it with what there is.

        All processes train and sample, the first one alone estimates. ``on_trained`` is called as
        soon as the training is over, however it ended.
        """
        exact = Exact.of(lambda: -self.target.log_partition())
        exact_structure_factor = Exact.of(self.target.spins.structure_factor)
        self._check_samplers()
        training = self.train()
        results = Results(self.settings, training, exact, exact_structure_factor)
        with deferred_interrupts() as pressed:
            if on_trained is not None:
                on_trained(results)
        interrupted = training.interrupted or pressed
        results.stopped = "interrupted" if interrupted else training.stopped or ""
        with results.stopping():
            if processes().is_first:
                results.estimate = self.estimate()
                if not results.stopped:
                    results.bounds = self.bounds()
                if not results.stopped and exact_structure_factor.value is None:
                    results.reference = self.reference()
        with results.stopping():  # all processes sample, or none
            results.stopped = processes().broadcast_from_first(lambda: results.stopped)
            for name in SPACES if not results.stopped else ():
                results.samplers[name] = self.sample(name)
                if results.samplers[name].interrupted:
                    raise KeyboardInterrupt
        return results

    def train(self) -> FitResult:
        """Train the flow."""
        settings = self.settings
        if settings.compile:
            self.flow.compile()
        return fit(
            self.target,
            self.flow,
            steps=settings.steps,
            batch=settings.batch,
            seed=settings.seed,
            record=self._record("training"),
        )

    def estimate(self) -> FreeEnergyEstimate:
        """Estimate -ln Z from samples of the flow."""
        with seeded(self._seed(1)):
            return estimate(self.target, self.flow, ESTIMATE_SAMPLES, ESTIMATE_BATCH)

    def bounds(self) -> Bounds:
        """Bound -ln Z from both sides: from exact samples of the target, and from the flow's."""
        seed = self.settings.seed
        number = min(BOUND_SAMPLES, max(REFERENCE_LEAST, BOUND_SITES // math.prod(self.flow.shape)))
        with seeded(self._seed(2)):
            return bounds(self.target, self.flow, number, batch_size=ESTIMATE_BATCH, seed=seed)

    def reference(self) -> Estimate:
        """The structure factor by cluster Monte Carlo of the spins, without the flow."""
        n = max(REFERENCE_LEAST, REFERENCE_SITES // math.prod(self.flow.shape))
        return self.target.spins.reference_structure_factor(n, self.settings.seed)

    def sample(self, space: str) -> Sampling:
        """Run the sampler of the "latent" space, or of the "physical" one (HMC)."""
        with stage(f"{space} sampler"):
            mcmc, method = self._latent() if space == "latent" else (self._physical(), "HMC")
            if space == "physical":
                mcmc.run()
        with deferred_interrupts() as pressed:
            idata = to_arviz(mcmc)
            summary = summarise(idata.posterior["structure_factor"].values)
        (interrupted,) = processes().any_process(mcmc.interrupted or bool(pressed))
        return Sampling(mcmc, idata, summary, interrupted, method)

    def _check_samplers(self) -> None:
        """Refuse checkpoints of another run, or without the training before."""
        present = [space for space in SPACES if self._has_checkpoints(space)]
        folder = self.settings.record and self.settings.record.folder
        if present and not self._has_checkpoints("training"):
            raise CheckpointError(
                f"checkpoint is {folder}, which holds {' and '.join(present)} "
                "without the training before; accepted: a folder with both, or without checkpoints"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sampling will speak of damaged files
            if "physical" in present:
                self._physical().check()
            if "latent" in present:
                self._check_latent()

    def _check_latent(self) -> None:
        """Refuse other chains; all else follows from the flow, which is yet to be trained."""
        record = self._record("latent")
        assert record is not None
        try:
            with Checkpoints(record, CHAIN_FORMAT, processes()) as kept:
                kept.find({"num_chains": self.settings.chains})
        except CheckpointError as error:
            chains = error.differing.get("num_chains")
            if chains is not None:
                raise CheckpointError(
                    f"{record.folder} is of another run, with chains {chains[0]} (here "
                    f"{chains[1]}); accepted: the same settings{see('error-checkpoint')}"
                ) from None
            if not error.differing:
                raise

    def _latent(self) -> tuple[VectorizedMCMC, str]:
        """Chains by the flow, and the method that its weights suggest."""
        settings = self.settings
        draws = sample(
            self.target,
            self.flow,
            settings.chains * settings.draws,
            num_chains=settings.chains,
            chains_only=True,
            seed=settings.seed,
            record=self._record("latent"),
        )
        assert isinstance(draws.run, VectorizedMCMC)
        return draws.run, draws.method

    def _physical(self) -> VectorizedMCMC:
        """HMC from white noise, far from equilibrium."""
        settings, dtype = self.settings, getattr(torch, self.settings.dtype)
        target = EnergyTarget(self.target, dtype=dtype, device=self.target.device)
        generator = torch.Generator().manual_seed(settings.seed)
        noise = torch.randn(settings.chains, *self.target.shape, generator=generator)
        return VectorizedMCMC(
            HMC(target, num_steps=PHYSICAL_STEPS),
            num_samples=settings.draws,
            warmup_steps=min(settings.draws, WARMUP),
            num_chains=settings.chains,
            initial_params={"x": noise},
            seed=settings.seed,
            record=self._record("physical"),
        )

    def _seed(self, number: int) -> int:
        """The seed of another stage."""
        return (self.settings.seed + number) % (LARGEST_SEED + 1)

    def _record(self, stage: str) -> Record | None:
        """The record of one stage, "training", "latent" or "physical"."""
        record, training = self.settings.record, stage == "training"
        return record and replace(
            record,
            folder=Path(record.folder) / stage,
            resume=record.resume and (training or self._has_checkpoints(stage)),
            history=record.history and training,
        )

    def _has_checkpoints(self, stage: str) -> bool:
        record = self.settings.record
        return record is not None and processes().broadcast_from_first(
            lambda: any((Path(record.folder) / stage).rglob("*.pt"))
        )


def _torch_device(name: str) -> torch.device:
    """The device of this name, if torch can compute there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device).sum())  # a "meta" tensor, say, has no numbers
    except Exception as error:  # whatever its backend raises
        accepted = "auto, cpu, or an accelerator that torch finds here"
        raise ValueError(f"device is {name!r}; accepted: {accepted} ({one_line(error)})") from None
    return device


def _check_fields_fit(settings: Settings, device: torch.device) -> None:
    """Refuse fields of a training step, or of a sampler, that cannot be held, before any tries."""
    shape, chains, draws = f"shape is {settings.shape}", settings.chains, settings.draws
    size = getattr(torch, settings.dtype).itemsize * math.prod(settings.shape)
    number, batch = processes().size, settings.batch or 0
    check_fits(shape, size, device)
    check_fits(f"{shape} and batch is {batch}", size * batch / number, device)
    sampled = f"{shape}, chains is {chains} and draws is {draws}"
    check_fits(sampled, kept_bytes(size * chains * draws, number), device)
