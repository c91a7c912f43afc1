# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The runner: warm-up, draws, and how they are stopped, recorded and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer
from pyro_neuralrg.files.record import Checkpoints, Record, check_energies
from pyro_neuralrg.mcmc import checkpoints
from pyro_neuralrg.mcmc.adaptation import Adaptation, Warmup
from pyro_neuralrg.mcmc.kernel import Kernel, StepInfo
from pyro_neuralrg.mcmc.progress import Figures
from pyro_neuralrg.mcmc.results import Cost, Mark, RunResults
from pyro_neuralrg.mcmc.rows import Observable, check_observables, observe, statistics
from pyro_neuralrg.mcmc.starts import check_start, started
from pyro_neuralrg.mcmc.target import frozen
from pyro_neuralrg.runtime.console import HELD, Progress, deferred_interrupts
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.runtime.threads import own_threads


class VectorizedMCMC(RunResults):
    """Run a kernel over many chains at once.

    All random numbers come from one generator seeded here: the same seed gives the same draws on
    the same machine, and torch's global generator is left alone (but for one number drawn from it
    if ``seed`` is None). Flows are frozen meanwhile. Ctrl-C during the draws keeps those made so
    far, and :meth:`resume` goes on with the very draws of a run that was never stopped. With a
    ``record``, Ctrl-C and SIGTERM end the run after the present step, which is saved, in the
    warm-up too (which then raises KeyboardInterrupt), and another process goes on from the record.

    Where ``torch.distributed`` is initialised, all its processes must make the runner and call its
    methods that run with the same arguments. Each runs its share of the chains, from a seed of its
    own; warm-up learns from all of them, the step sizes, masses and lengths are the same
    everywhere, and in the end every process has the figures of all chains, in the order of the
    processes. The first one alone shows the bar and writes files, which as many processes load.

    Args:
        kernel: what to run; adapted during warm-up, then fixed.
        num_samples: draws to keep of each chain, >= 1.
        warmup_steps: steps before the draws, >= 0, or an Adaptation, which says how many there are
            and what they adapt; ``num_samples`` if None, as in Pyro.
        num_chains: chains, >= 1, of all processes together, which they must divide.
        initial_params: where the chains start: "prior", "flow", or unconstrained values as in
            Pyro, for each site a tensor ``(num_chains,) + site shape`` (a target in the latent
            space of a flow accepts the physical field instead). None: the flow in a latent space,
            else the prior.
        seed: of all random numbers.
        progress: show a progress bar.
        observables: functions by name, computed of every draw as it is made: of the physical field
            ``(chains,) + shape``, or of a dictionary of all sites if the model has not just one
            field, to ``(chains, ...)``.
        keep_draws: keep the positions; without, only observables and statistics are kept, and long
            runs of large fields need no more memory than short ones.
        record: a folder for checkpoints, from which a killed run goes on, also with more draws;
            None: none.

    Attributes:
        kernel: the present kernel; after the run, the adapted one.
        interrupted: whether the draws were cut short.
        gradient_evaluations: :class:`Cost`, summed over chains; a jump counts as one.
        seconds: :class:`Cost`, wall-clock.
        unsaved: why the last checkpoint could not be written, else None.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if a number is out of range, the initial parameters do not fit, or a chain has
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
    _figures: Figures

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | Adaptation | None = None,
        num_chains: int = 64,
        initial_params: Mapping[str, Tensor] | str | None = None,
        *,
        seed: int | None = None,
        progress: bool = True,
        observables: Mapping[str, Observable] | None = None,
        keep_draws: bool = True,
        record: Record | None = None,
    ) -> None:
        for name, value, kind in (("kernel", kernel, Kernel), ("record", record, Record | None)):
            if not isinstance(value, kind):
                accepted = getattr(kind, "__name__", "a Record, or None")
                raise TypeError(f"{name} is a {type(value).__name__}; accepted: {accepted}")
        if record is not None and record.history:
            raise ValueError("record has history=True; accepted: of a training only")
        num_samples = check_integer("num_samples", num_samples, 1)
        world = processes()
        world.share("num_chains", check_integer("num_chains", num_chains, 1))
        self.adaptation = warmup_steps if isinstance(warmup_steps, Adaptation) else Adaptation()
        steps = self.adaptation.steps if isinstance(warmup_steps, Adaptation) else warmup_steps
        super().__init__(
            kernel,
            num_samples if steps is None else check_integer("warmup_steps", steps, 0),
            num_samples,
            int(num_chains),
            keep_draws,
        )
        self.initial_params = check_start(initial_params)
        self._given_seed = seed
        if seed is None:
            seed = int(world.broadcast_from_first(lambda: int(torch.randint(2**31, ()))))
        self.seed = check_integer("seed", seed, 0, LARGEST_SEED)
        self.progress = progress
        self._observables = check_observables(observables)
        self._checkpoints: Checkpoints | None = None
        if record is not None:
            self._checkpoints = Checkpoints(record, checkpoints.FORMAT, world)

    @property
    def unsaved(self) -> str | None:
        """Why the last checkpoint could not be written, else None."""
        return None if self._checkpoints is None else self._checkpoints.unsaved

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up and draw, with the kernel as it was given; or go on from the record.

        Args:
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.

        Raises:
            CheckpointError: if the run cannot begin in the folder of the record: another run uses
                it, it holds checkpoints and is not to be resumed, none of them is intact, or they
                are of other settings, which are named, or of another target, whose energies would
                be others (a ValueError). ``num_samples`` and ``progress`` may differ;
                ``initial_params`` and what observables compute are not compared.
        """
        self._forget()
        self._set_up(args, kwargs)
        with self._folder():
            found = self._find()
            if found is None:
                self._mark = self._start()
            else:
                self._mark = self._world.run_on_all(lambda: self._stand_at(found))
                self.seed = found["seed"]
            self._go_on()

    def resume(self) -> None:
        """Go on with a run that was interrupted in this process.

        A run that has all its draws stays as it is; with a larger ``num_samples``, more are drawn.

        Raises:
            RuntimeError: if there is no such run.
        """
        if self._mark is None:
            raise RuntimeError("there is no run to go on with; call run() first")
        self.num_samples = check_integer("num_samples", self.num_samples, 1)
        if self.num_samples > self._rows["draws"].capacity:
            self._check_memory(self.kernel.target)
        for name in ("sample_stats", "observables", "draws"):
            self._rows[name].reserve(self.num_samples)
        with self._folder():
            self._go_on()

    def check(self, *args: Any, **kwargs: Any) -> None:
        """See that the run can begin, or go on from its record, before it is needed.

        Args:
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.

        Raises:
            ValueError: as :meth:`run`, but for another target.
        """
        self._set_up(args, kwargs)
        with self._folder():
            self._find()

    # Where a run begins ---------------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        self._warmup = None

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._world = processes()
        self._world.share("num_chains", self.num_chains)
        target = self._given.target.setup(*args, **kwargs)
        self._check_memory(target)
        self.kernel = self._given.on(target)

    def _folder(self) -> AbstractContextManager[Any]:
        """The folder of the record, in use in the block; nothing without one."""
        return nullcontext() if self._checkpoints is None else self._checkpoints

    def _find(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if any."""
        if self._checkpoints is None:
            return None
        names = ("warmup_steps", "num_chains", "keep_draws")
        settings = {
            **checkpoints.describe(self.kernel, replace(self.adaptation, steps=None)),
            **{name: getattr(self, name) for name in names},
            "observables": list(self._observables),
            "processes": self._world.size,
            "seed": self._given_seed,
        }
        return self._checkpoints.find(settings)

    def _start(self) -> Mark:
        """The beginning of the warm-up."""
        world, chains = self._world, self.num_chains
        device = self.kernel.target.device
        generator = torch.Generator(device).manual_seed(world.stream(self.seed))
        began = time.perf_counter()
        with frozen(self.kernel.target.modules()):
            state = started(self.kernel, self.initial_params, chains, generator, world)
            self._warmup = Warmup(self.kernel, self.adaptation, self.warmup_steps, chains, world)
            evaluations = 1 + self._warmup.begin(state, generator)  # one for the start
        cost = Cost(evaluations * chains, 0)
        seconds = Cost(time.perf_counter() - began, 0.0)
        return Mark(state, generator.get_state(), 0, 0, cost, seconds)

    def _stand_at(self, contents: Mapping[str, Any]) -> Mark:
        """Take over what a checkpoint holds of this process's chains; return its mark."""
        assert self._checkpoints is not None
        world, chains = self._world, self.num_chains
        own, target = world.rows(chains), self.kernel.target
        state = checkpoints.chains_of(self.kernel, contents["chains"], own)
        with frozen(target.modules()):
            check_energies(self._checkpoints.folder, state.energy, target.energy(state.position))
        self.kernel = checkpoints.kernel_of(self.kernel, contents["kernel"])
        if contents["warmup"] is not None:
            self._warmup = Warmup(self.kernel, self.adaptation, self.warmup_steps, chains, world)
            self._warmup.load_state_dict(contents["warmup"])
        for name, rows in self._rows.items():
            saved = contents["rows"][name]
            rows.load_state_dict({key: value[:, own] for key, value in saved.items()})
        mark = contents["mark"]
        return Mark(
            state,
            contents["random"][world.rank].clone(),
            mark["warmed_up"],
            mark["drawn"],
            Cost(*mark["gradient_evaluations"]),
            Cost(*mark["seconds"]),
        )

    # The phases -----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """The rest of the warm-up and of the draws, from the mark on."""
        assert self._mark is not None
        world, target = self._world, self.kernel.target
        generator = torch.Generator(target.device)
        generator.set_state(self._mark.random)
        self.interrupted = False
        self._samples = self._joined = None
        self._figures = Figures(self._series)
        total = self.warmup_steps + self.num_samples
        # threads of our own for a lattice model; a Pyro model may need those of torch
        known = target.lattice_potential is not None
        with (
            frozen(target.modules()),
            Progress(
                total, "warm-up", self.progress and world.is_first, self._mark.steps
            ) as progress,
            deferred_interrupts(
                () if self._checkpoints is None and world.size == 1 else HELD
            ) as pressed,
            own_threads() if known else nullcontext(),
        ):
            self._warm_up(generator, progress, pressed)
            self._draw(generator, progress, pressed)

    def _warm_up(self, generator: torch.Generator, progress: Progress, pressed: list[int]) -> None:
        mark, warmup = self._mark, self._warmup
        if warmup is None:
            return
        assert mark is not None
        for _ in range(mark.warmed_up, self.warmup_steps):
            self._mark = None  # a step that is torn leaves nothing to go on with but a saved one
            mark, info = self._one_warm_up_step(mark, warmup, generator)
            self._mark = mark
            progress.step(partial(self._figures.of, self.kernel, info), "warm-up")
            if self._pause(pressed):
                self.interrupted = True
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
        self._rows["warmup_stats"].truncate(mark.warmed_up)
        self._rows["warmup_stats"].add(statistics(warmup.kernel, state, info))
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
        try:
            while self._mark.drawn < self.num_samples and not self.interrupted:
                self._mark = self._one_draw(self._mark, generator, progress)
                self.interrupted = self._pause(pressed)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self._mark.drawn:
                raise
        with deferred_interrupts() as late:
            for name in ("sample_stats", "observables", "draws"):
                self._rows[name].truncate(self._mark.drawn)
            self._keep()
            self._join()
        stopped = self.interrupted or bool(late) or bool(pressed)
        (self.interrupted,) = self._world.any_process(stopped)

    def _one_draw(self, mark: Mark, generator: torch.Generator, progress: Progress) -> Mark:
        """Make a step and record it."""
        began = time.perf_counter()
        state, info = self.kernel.step(mark.state, generator)
        rows = {
            "sample_stats": statistics(self.kernel, state, info),
            "observables": observe(self._observables, self.kernel.target, state.position),
            "draws": {"position": state.position} if self.keep_draws else {},
        }
        for name, row in rows.items():
            self._rows[name].truncate(mark.drawn)
            self._rows[name].add(row)
        progress.step(partial(self._figures.of, self.kernel, info), "draws")
        evaluations = info.gradient_evaluations * self.num_chains
        cost, seconds = mark.gradient_evaluations, mark.seconds
        return mark._replace(
            state=state,
            random=generator.get_state(),
            drawn=mark.drawn + 1,
            gradient_evaluations=cost._replace(draws=cost.draws + evaluations),
            seconds=seconds._replace(draws=seconds.draws + time.perf_counter() - began),
        )

    def _pause(self, pressed: list[int]) -> bool:
        """Between two steps: save if it is time; whether to stop. All processes agree on both."""
        assert self._mark is not None
        files = self._checkpoints
        due = files is not None and self._world.is_first and files.is_due(self._mark.steps)
        due, stop = self._world.any_process(due, bool(pressed))
        if due:
            self._keep()
        return stop

    def _keep(self) -> None:
        """Write a checkpoint, if there is a record."""
        mark, world = self._mark, self._world
        if self._checkpoints is None or mark is None:
            return
        contents = {
            "seed": self.seed,
            "kernel": checkpoints.tuning(self.kernel),
            "chains": checkpoints.joined(mark.state._asdict(), world),
            "random": world.gather(mark.random[None]),
            "warmup": None if self._warmup is None else self._warmup.state_dict(),
            "rows": {
                name: checkpoints.joined(rows.state_dict(), world, axis=1)
                for name, rows in self._rows.items()
            },
            "mark": {
                "warmed_up": mark.warmed_up,
                "drawn": mark.drawn,
                "gradient_evaluations": list(mark.gradient_evaluations),
                "seconds": list(mark.seconds),
            },
        }
        self._checkpoints.keep(mark.steps, contents)

    def _join(self) -> None:
        """Let every process have the figures of all chains."""
        if self._world.size > 1:
            self._joined = {
                name: {key: self._world.gather(value) for key, value in rows.columns().items()}
                for name, rows in self._rows.items()
            }

    def _series(self) -> dict[str, Tensor]:
        """Series of this process's chains, whose worst R-hat is shown."""
        columns = (self._rows[name].columns() for name in ("sample_stats", "observables"))
        stats, observables = columns
        return {name: value for name, value in stats.items() if name == "lp"} | observables
