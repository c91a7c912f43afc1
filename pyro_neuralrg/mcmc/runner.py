# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The runner: warm-up, draws, and how they are stopped, saved and taken up again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, check_number, refuse_without
from pyro_neuralrg.files.interval import EVERY, attempt
from pyro_neuralrg.mcmc import checkpoints
from pyro_neuralrg.mcmc.adaptation import Adaptation, Warmup
from pyro_neuralrg.mcmc.kernel import Kernel, StepInfo
from pyro_neuralrg.mcmc.progress import Figures
from pyro_neuralrg.mcmc.record import Observable, check_observables, observe, statistics
from pyro_neuralrg.mcmc.results import Cost, Mark, RunResults
from pyro_neuralrg.mcmc.starts import check_start, started
from pyro_neuralrg.mcmc.target import Target, frozen
from pyro_neuralrg.runtime.forecast import Forecast
from pyro_neuralrg.runtime.interrupts import HELD, deferred_interrupts
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.runtime.progress import Progress
from pyro_neuralrg.runtime.threads import own_threads

__all__ = ["VectorizedMCMC"]

#: Checkpoints, if nothing else is said.
KEEP = 2


class VectorizedMCMC(RunResults):
    """Run a kernel over many chains at once.

    All random numbers come from one generator seeded here: the same seed gives the same draws on
    the same machine, and torch's global generator is left alone (but for one number drawn from it
    if ``seed`` is None). Flows are frozen meanwhile. An interrupt (Ctrl-C) during the draws keeps
    those made so far; :meth:`resume` goes on, in this process or, after :meth:`save` and
    :meth:`load`, in another, with the very draws of a run that was never stopped. With
    ``checkpoint``, Ctrl-C and SIGTERM end the run after the present step, which is saved, in the
    warm-up too (which then raises KeyboardInterrupt).

    Where ``torch.distributed`` is initialised, all its processes must make the runner and call its
    methods that run, save or load with the same arguments. Each runs its share of the chains, from
    a seed of its own; warm-up learns from all of them, the step sizes, masses and lengths are the
    same everywhere, and in the end every process has the figures of all chains, in the order of
    the processes. The first one alone shows the bar and writes files, which as many processes load.

    Args:
        kernel: what to run; adapted during warm-up as ``adaptation`` says, then fixed.
        num_samples: draws to keep of each chain, >= 1.
        warmup_steps: steps before the draws, >= 0; ``num_samples`` if None, as in Pyro.
        num_chains: chains, >= 1, of all processes together, which they must divide.
        initial_params: where the chains start: "prior", "flow", or unconstrained values as in
            Pyro, for each site a tensor ``(num_chains,) + site shape`` (a target in the latent
            space of a flow accepts the physical field instead). None: the flow in a latent space,
            else the prior.
        thinning: steps per kept draw, >= 1.
        seed: of all random numbers.
        progress: show a progress bar, and after the first steps, of warm-up and of draws, a line
            that says how long the rest takes, if that is more than a minute.
        adaptation: what warm-up adapts.
        chain_batch_size: chains whose energies and gradients are computed at once, which bounds the
            memory, not the result; None for all.
        observables: functions by name, computed of every draw as it is made: of the physical field
            ``(chains,) + shape``, or of a dictionary of all sites if the model has not just one
            field, to ``(chains, ...)``.
        keep_draws: keep the positions; without, only observables and statistics are kept, and long
            runs of large fields need no more memory than short ones.
        checkpoint: a file to :meth:`save` to, every ``checkpoint_every`` seconds and at the end;
            the one before is kept beside it, as ``NAME.previous.SUFFIX``, older ones, if asked for,
            as ``NAME.previous-2.SUFFIX`` and so on. If it cannot be written then, a warning says
            so, once; the run goes on, and tries again.
        checkpoint_every: seconds, > 0; 60 if None. Accepted with a checkpoint only.
        checkpoint_keep: how many of them, the newest, are kept, >= 1; two if None. Likewise.

    Attributes:
        kernel: the present kernel; after the run, the adapted one.
        interrupted: whether the draws were cut short.
        gradient_evaluations: :class:`Cost`, summed over chains; a jump counts as one.
        seconds: :class:`Cost`, wall-clock.
        unsaved: why the last checkpoint could not be written, else None.

    Raises:
        TypeError: if a number is none.
        ValueError: if one is out of range, the initial parameters do not fit, or a chain has
            no finite starting energy.
        MemoryLimitError: at the start, if the draws to be kept cannot fit (a ValueError).

    Example:
        >>> import torch
        >>> from pyro_neuralrg.mcmc import HMC
        >>> kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        >>> mcmc = VectorizedMCMC(kernel, num_samples=50, num_chains=4, seed=0, progress=False)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([4, 50, 3])
    """

    _warmup: Warmup | None
    _saved: float
    _kept: Mark | None  # of the newest file
    _has_kept = False  # a checkpoint, by this object
    unsaved: str | None = None
    _figures: Figures

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 64,
        initial_params: Mapping[str, Tensor] | str | None = None,
        *,
        thinning: int = 1,
        seed: int | None = None,
        progress: bool = True,
        adaptation: Adaptation | None = None,
        chain_batch_size: int | None = None,
        observables: Mapping[str, Observable] | None = None,
        keep_draws: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float | None = None,
        checkpoint_keep: int | None = None,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(kernel).__name__}; accepted: a kernel of infer.mcmc"
            )
        num_samples = check_integer("num_samples", num_samples, 1)
        world = processes()
        world.share("num_chains", check_integer("num_chains", num_chains, 1))
        super().__init__(
            kernel,
            num_samples if warmup_steps is None else check_integer("warmup_steps", warmup_steps, 0),
            num_samples,
            int(num_chains),
            keep_draws,
        )
        self.thinning = check_integer("thinning", thinning, 1)
        self.initial_params = check_start(initial_params)
        if seed is None:
            seed = int(world.from_first(lambda: int(torch.randint(2**31, ()))))
        self.seed = check_integer("seed", seed, 0, LARGEST_SEED)
        self.progress = progress
        if not isinstance(adaptation, Adaptation | None):
            raise TypeError(f"adaptation is {adaptation!r}; accepted: an Adaptation, or None")
        self.adaptation = Adaptation() if adaptation is None else adaptation
        if chain_batch_size is not None:
            check_integer("chain_batch_size", chain_batch_size, 1)
        self.chain_batch_size = chain_batch_size
        self._observables = check_observables(observables)
        self.checkpoint = world.from_first(lambda: checkpoints.check_path(checkpoint))
        if checkpoint is None:
            given = {"checkpoint_every": checkpoint_every, "checkpoint_keep": checkpoint_keep}
            refuse_without("checkpoint", "with a file", **given)
        seconds = EVERY if checkpoint_every is None else checkpoint_every
        self.checkpoint_every = check_number(
            "checkpoint_every", seconds, "a finite number > 0", above=0
        )
        kept = KEEP if checkpoint_keep is None else checkpoint_keep
        self.checkpoint_keep = check_integer("checkpoint_keep", kept, 1)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up and draw; each run begins anew, with the kernel as it was given.

        Args:
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.
        """
        self._forget()
        target = self._set_up(args, kwargs)
        world, chains = self._world, self.num_chains
        generator = torch.Generator(target.device).manual_seed(world.stream(self.seed))
        began = time.perf_counter()
        with frozen(target.modules()):
            state = started(self.kernel, self.initial_params, chains, generator, world)
            self._warmup = Warmup(self.kernel, self.adaptation, self.warmup_steps, chains, world)
            evaluations = 1 + self._warmup.begin(state, generator)  # one for the start
        cost = Cost(evaluations * chains, 0)
        seconds = Cost(time.perf_counter() - began, 0.0)
        self._mark = Mark(state, generator.get_state(), 0, 0, cost, seconds)
        self._go_on()

    def resume(self) -> None:
        """Go on with a run that was interrupted, or that :meth:`load` has read.

        A run that has all its draws stays as it is; with a larger ``num_samples``, more are drawn.

        Raises:
            RuntimeError: if there is no such run.
        """
        if self._mark is None:
            raise RuntimeError("there is no run to go on with; call run() or load(path) first")
        self.num_samples = check_integer("num_samples", self.num_samples, 1)
        if self.num_samples > self._records["draws"].capacity:
            self._check_memory(self.kernel.target)
        self.interrupted = False
        for name in ("sample_stats", "observables", "draws"):
            self._records[name].reserve(self.num_samples)
        self._go_on()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run as it stands, completely or not at all.

        The file holds tensors and plain data, a checksum, and no code. The kernel and its target
        are not in it, but for what warm-up has adapted.

        Raises:
            RuntimeError: if there is no run.
            OSError: if ``path`` cannot be written.
        """
        self._write(Path(path))

    def _write(self, path: Path, before: Callable[[], object] | None = None) -> None:
        """As :meth:`save`; ``before`` is called just before the new file takes its place."""
        if self._mark is None:
            raise RuntimeError("there is no run to save; call run() first")
        mark, world = self._mark, self._world
        contents = {
            "settings": self._settings(),
            "seed": self.seed,
            "kernel": checkpoints.tuning(self.kernel),
            "chains": checkpoints.joined(mark.state._asdict(), world),
            "random": world.gather(mark.random[None]),
            "warmup": None if self._warmup is None else self._warmup.state_dict(),
            "records": {
                name: checkpoints.joined(record.state_dict(), world, axis=1)
                for name, record in self._records.items()
            },
            "costs": {
                "warmed_up": mark.warmed_up,
                "drawn": mark.drawn,
                "gradient_evaluations": list(mark.gradient_evaluations),
                "seconds": list(mark.seconds),
            },
        }
        world.from_first(lambda: checkpoints.FORMAT.write(path, contents, before))

    def load(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Read a file of :meth:`save` into a runner made in the same way; never executes code.

        If it is damaged, missing or cannot be read, the one before is, with a warning.

        Args:
            path: the file.
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.

        Raises:
            FileNotFoundError, OSError: if there is no such file, or it cannot be read.
            ValueError: if the file is corrupt, of another kernel, of other settings (each is
                named; ``num_samples``, ``seed``, ``progress``, ``chain_batch_size`` and the
                checkpoint may differ), or of another target, whose energies would be others.
        """
        contents = processes().from_first(lambda: checkpoints.read_newest(Path(path)))
        self._forget()
        self._set_up(args, kwargs)
        try:
            checkpoints.check_same(path, contents["settings"], self._settings())
            self._mark = self._world.together(lambda: self._stand_at(path, contents))
        except BaseException:
            self._forget()
            raise
        self.seed = contents["seed"]
        self._kept = self._mark if self.checkpoint == Path(path) else None
        self.interrupted = self._mark.drawn < self.num_samples
        self._join()

    def check(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """See that a file is of such a run as this one, of the same seed, before it is needed.

        Args:
            path: the file.
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.

        Raises:
            OSError, ValueError: as :meth:`load`, but for another target.
        """

        def read() -> tuple[str, int]:
            found = checkpoints.read_newest(Path(path))
            return found["settings"], found["seed"]

        saved, seed = processes().from_first(read)
        self._set_up(args, kwargs)
        checkpoints.check_same(path, saved, self._settings(), seed=(seed, self.seed))

    def _stand_at(self, path: str | os.PathLike[str], contents: Mapping[str, Any]) -> Mark:
        """Take over what a file holds of this process's chains; return its mark."""
        world, costs = self._world, contents["costs"]
        self.kernel = checkpoints.kernel_of(self.kernel, contents["kernel"])
        rows = world.rows(self.num_chains)
        with frozen(self.kernel.target.modules()):
            state = checkpoints.chains_of(path, self.kernel, contents["chains"], rows)
        if contents["warmup"] is not None:
            self._warmup = Warmup(
                self.kernel, self.adaptation, self.warmup_steps, self.num_chains, world
            )
            self._warmup.load_state_dict(contents["warmup"])
        for name, record in self._records.items():
            saved = contents["records"][name]
            record.load_state_dict({key: value[:, rows] for key, value in saved.items()})
        return Mark(
            state,
            contents["random"][world.rank].clone(),
            costs["warmed_up"],
            costs["drawn"],
            Cost(*costs["gradient_evaluations"]),
            Cost(*costs["seconds"]),
        )

    # The phases -----------------------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        self._warmup = None
        self._kept = None
        self.unsaved = None

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        self._world = processes()
        self._world.share("num_chains", self.num_chains)
        target = self._given.target.setup(*args, **kwargs).in_batches(self.chain_batch_size)
        self._check_memory(target)
        self.kernel = self._given.on(target)
        return target

    def _settings(self) -> str:
        names = ("warmup_steps", "num_chains", "thinning", "keep_draws")
        settings = {name: getattr(self, name) for name in names}
        settings["observables"] = list(self._observables)
        settings["processes"] = self._world.size
        return checkpoints.described(self.kernel, self.adaptation, settings)

    def _go_on(self) -> None:
        """The rest of the warm-up and of the draws, from the mark on."""
        assert self._mark is not None
        world, target, path = self._world, self.kernel.target, self.checkpoint
        if path is not None:
            world.from_first(lambda: checkpoints.clean_up(path))
        generator = torch.Generator(target.device)
        generator.set_state(self._mark.random)
        self._saved = time.monotonic()
        self._samples = self._joined = None
        self._figures = Figures(self._series)
        total, done = self.warmup_steps + self.num_samples, self._mark.warmed_up + self._mark.drawn
        held = HELD if path is not None or world.size > 1 else ()
        with (
            frozen(target.modules()),
            Progress(total, "warm-up", self.progress and world.is_first, done) as progress,
            deferred_interrupts(held) as pressed,
            self._threads(),
        ):
            self._warm_up(generator, progress, pressed)
            self._draw(generator, progress, pressed)

    def _threads(self) -> AbstractContextManager[None]:
        """Threads of our own for a lattice model; a Pyro model may need those of torch."""
        known = self.kernel.target.lattice_potential is not None
        return own_threads() if known else nullcontext()

    def _warm_up(self, generator: torch.Generator, progress: Progress, pressed: list[int]) -> None:
        mark, warmup, forecast = self._mark, self._warmup, Forecast(progress)
        if warmup is None:
            return
        assert mark is not None
        for _ in range(mark.warmed_up, self.warmup_steps):
            self._mark = None  # a step that is torn leaves nothing to go on with but a saved one
            mark, info = self._one_warm_up_step(mark, warmup, generator)
            self._mark = mark
            progress.step(partial(self._figures.of, self.kernel, info), "warm-up")
            left = self.warmup_steps - mark.warmed_up + self.num_samples * self.thinning
            forecast.step(left, ", while steps adapt")
            if self._pause(pressed):
                self.interrupted = True
                if self.checkpoint is not None:
                    self._keep()
                raise KeyboardInterrupt
        self.kernel = warmup.finish()
        self._warmup = None

    def _one_warm_up_step(
        self, mark: Mark, warmup: Warmup, generator: torch.Generator
    ) -> tuple[Mark, StepInfo]:
        began = time.perf_counter()
        state, info = warmup.kernel.step(mark.state, generator)
        evaluations = info.gradient_evaluations
        evaluations += warmup.update(mark.warmed_up, state, info, generator)
        self._records["warmup_stats"].truncate(mark.warmed_up)
        self._records["warmup_stats"].add(statistics(warmup.kernel, state, [info]))
        self.kernel = warmup.kernel
        cost, seconds = mark.gradient_evaluations, mark.seconds
        mark = Mark(
            state,
            generator.get_state(),
            mark.warmed_up + 1,
            0,
            Cost(cost.warmup + evaluations * self.num_chains, 0),
            Cost(seconds.warmup + time.perf_counter() - began, 0.0),
        )
        return mark, info

    def _draw(self, generator: torch.Generator, progress: Progress, pressed: list[int]) -> None:
        assert self._mark is not None
        forecast = Forecast(progress)
        try:
            while self._mark.drawn < self.num_samples and not self.interrupted:
                self._mark = self._one_draw(self._mark, generator, progress)
                forecast.step(self.num_samples - self._mark.drawn)
                self.interrupted = self._pause(pressed)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self._mark.drawn:
                raise
        with deferred_interrupts() as late:
            for name in ("sample_stats", "observables", "draws"):
                self._records[name].truncate(self._mark.drawn)
            if self.checkpoint is not None:
                self._keep()
            self._join()
        stopped = self.interrupted or bool(late) or bool(pressed)
        (self.interrupted,) = self._world.any(stopped)

    def _pause(self, pressed: list[int]) -> bool:
        """Between two steps: save if it is time; whether to stop. All processes agree on both."""
        elapsed = time.monotonic() - self._saved
        due = self.checkpoint is not None and elapsed >= self.checkpoint_every
        due, stop = self._world.any(due, bool(pressed))
        if due:
            self._keep()
        return stop

    def _keep(self) -> None:
        """Save to the checkpoint; that it cannot be written does not end days of sampling."""
        path = self.checkpoint
        assert path is not None
        if self._mark is self._kept:
            return
        keep, verify = self.checkpoint_keep, not self._has_kept
        before = partial(checkpoints.keep_before, path, keep, verify)
        quiet = self.unsaved is not None or not self._world.is_first
        self.unsaved = attempt(partial(self._write, path, before), path, "the run", quiet)
        if self.unsaved is None:
            self._kept, self._has_kept = self._mark, True
        self._saved = time.monotonic()

    def _join(self) -> None:
        """Let every process have the figures of all chains."""
        if self._world.size > 1:
            self._joined = {
                name: {key: self._world.gather(value) for key, value in record.columns().items()}
                for name, record in self._records.items()
            }

    def _one_draw(self, mark: Mark, generator: torch.Generator, progress: Progress) -> Mark:
        """Make the steps of one draw and record it."""
        began = time.perf_counter()
        state, infos = mark.state, []
        for _ in range(self.thinning):
            state, info = self.kernel.step(state, generator)
            infos.append(info)
        stats = self._records["sample_stats"]
        rows = {
            "sample_stats": statistics(self.kernel, state, infos),
            "observables": observe(self._observables, self.kernel.target, state.position),
            "draws": {"position": state.position} if self.keep_draws else {},
        }
        for name, row in rows.items():
            self._records[name].truncate(mark.drawn)
            self._records[name].add(row)
        progress.step(partial(self._figures.of, self.kernel, infos[-1]), "draws")
        evaluations = sum(info.gradient_evaluations for info in infos) * self.num_chains
        cost, seconds = mark.gradient_evaluations, mark.seconds
        return mark._replace(
            state=state,
            random=generator.get_state(),
            drawn=stats.length,
            gradient_evaluations=cost._replace(draws=cost.draws + evaluations),
            seconds=seconds._replace(draws=seconds.draws + time.perf_counter() - began),
        )

    def _series(self) -> dict[str, Tensor]:
        """What the worst R-hat is looked for in: the chains of this process."""
        columns = (self._records[name].columns() for name in ("sample_stats", "observables"))
        stats, observables = columns
        return {name: value for name, value in stats.items() if name == "lp"} | observables
