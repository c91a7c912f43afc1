# SPDX-License-Identifier: Apache-2.0
"""The runner: warm-up, draws, and how they are stopped, recorded and taken up again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer, check_type
from pyro_neuralrg.files.record import Checkpoints, Record, check_energies
from pyro_neuralrg.mcmc.adaptation import Adaptation, Warmup
from pyro_neuralrg.mcmc.kernel import Kernel, Step
from pyro_neuralrg.mcmc.results import DRAWN, RunResults, observe, statistics
from pyro_neuralrg.mcmc.run_state import CHAIN_FORMAT, Cost, RunState, settings_of
from pyro_neuralrg.mcmc.starts import Start, check_start, started, warn_of_divergences
from pyro_neuralrg.mcmc.target import frozen
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.runtime.console import HELD, Progress, deferred_interrupts
from pyro_neuralrg.runtime.processes import processes
from pyro_neuralrg.runtime.threads import own_threads


class VectorizedMCMC(RunResults):
    """Run a kernel over many chains at once.

    All random numbers come from one generator seeded here: the same seed gives the same draws on
    the same machine, and torch's global generator is left alone (but for one number if ``seed`` is
    None). Flows are frozen meanwhile. Ctrl-C during the draws keeps those made so far, and
    :meth:`resume` goes on with the very draws of a run that was never stopped. With a ``record``,
    Ctrl-C and SIGTERM end the run after the present step, which is saved, in the warm-up too (which
    then raises KeyboardInterrupt), and another process goes on from the record.

    All processes of an initialised ``torch.distributed`` make the runner and call its methods with
    the same arguments. Each runs its share of the chains, from a seed of its own; warm-up learns
    from all of them, and in the end every process has the figures of all chains, in the order of
    the processes. The first one alone shows the bar and writes files.

    Args:
        kernel: what to run; adapted during warm-up, then fixed.
        num_samples: draws to keep of each chain, >= 1.
        warmup_steps: steps before the draws, >= 0, or an Adaptation, which says how many there are
            and what they adapt; ``num_samples`` if None, as in Pyro.
        num_chains: chains, >= 1, of all processes together, which they must divide.
        initial_params: where the chains start: "uniform" (as in Stan: in (-2, 2) of the
            unconstrained scale; each chain takes the best of ten), "prior", "flow", one of Pyro's
            ``init_to_median``, ``init_to_value(values=...)``, or unconstrained values as in Pyro,
            for each site a tensor ``(num_chains,) + site shape`` (or the field of a latent site);
            :class:`Constrained` says that they are the sites' own. None: the flow in a latent
            space, the prior of a lattice model, uniform for a Pyro model.
        seed: of all random numbers.
        progress: show a progress bar.
        observables: functions by name, computed of every draw as it is made: of the physical field
            ``(chains,) + shape``, or of a dictionary of all sites if the model has not just one
            field, to ``(chains, ...)``.
        keep_draws: keep the positions; without, only observables and statistics are kept.
        record: a folder for checkpoints, from which a killed run goes on, also with more draws.

    Attributes:
        kernel: the present kernel; after the run, the adapted one.
        interrupted: whether the draws were cut short.

    Raises:
        TypeError, ValueError: naming the argument.
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

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | Adaptation | None = None,
        num_chains: int = 64,
        initial_params: Start = None,
        *,
        seed: int | None = None,
        progress: bool = True,
        observables: Mapping[str, Observable] | None = None,
        keep_draws: bool = True,
        record: Record | None = None,
    ) -> None:
        for name, value, kind, accepted in (
            ("kernel", kernel, Kernel, "a Kernel"),
            ("record", record, Record | None, "a Record, or None"),
            ("progress", progress, bool, "True or False"),
            ("keep_draws", keep_draws, bool, "True or False"),
            ("observables", observables, Mapping | None, "functions of the draws by name"),
        ):
            check_type(name, value, kind, accepted)
        self._observables = dict(observables or {})
        for name, function in self._observables.items():
            check_type(f"observables[{name!r}]", function, Callable, "a function of the draws")
        if record is not None and record.history:
            raise ValueError("record has history=True; accepted: of a training only")
        world, num_chains = processes(), check_integer("num_chains", num_chains, 1)
        world.share("num_chains", num_chains)
        num_samples = check_integer("num_samples", num_samples, 1)
        given = warmup_steps if isinstance(warmup_steps, Adaptation) else None
        self.adaptation = given or Adaptation(steps=warmup_steps)  # type: ignore[arg-type]
        steps = self.adaptation.steps
        warmup = num_samples if steps is None else check_integer("warmup_steps", steps, 0)
        super().__init__(kernel, warmup, num_samples, num_chains, keep_draws)
        self.initial_params = check_start(initial_params)
        self._given_seed = seed
        if seed is None:
            seed = int(world.broadcast_from_first(lambda: int(torch.randint(2**31, ()))))
        self.seed = check_integer("seed", seed, 0, LARGEST_SEED)
        self.progress = progress
        self._checkpoints = None if record is None else Checkpoints(record, CHAIN_FORMAT, world)

    @property
    def unsaved(self) -> str | None:
        """Reason why the last checkpoint could not be written, else None."""
        return None if self._checkpoints is None else self._checkpoints.unsaved

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up and draw, with the kernel as it was given; or go on from the record.

        Arguments are those of the Pyro model, if the target is one.

        Raises:
            CheckpointError: if the run cannot begin in the folder of the record: it is in use, is
                not to be resumed, has no intact checkpoint, or those of other settings, which are
                named, or of a target of other energies (a ValueError). ``num_samples``,
                ``progress``, ``initial_params`` and what observables compute may differ.
        """
        self._forget()
        self._set_up(args, kwargs)
        with self._folder():
            found = self._find()
            if found is None:
                self._state = self._start()
            else:
                self._state = self._world.run_on_all(lambda: self._stand_at(found))
                self.seed = found["seed"]
            self._go_on()

    def resume(self) -> None:
        """Go on with a run that was interrupted in this process, or has a larger ``num_samples``.

        Raises:
            RuntimeError: if there is no such run.
        """
        if self._state is None:
            raise RuntimeError("there is no run to go on with; call run() first")
        self.num_samples = check_integer("num_samples", self.num_samples, 1)
        if self.num_samples > self._rows["draws"].capacity:
            self._check_memory(self.kernel.target)
            for name in DRAWN:
                self._rows[name].load(self._rows[name].columns(), self.num_samples)
        with self._folder():
            self._go_on()

    def check(self, *args: Any, **kwargs: Any) -> None:
        """See that the run can begin, or go on from its record, before it is needed.

        Arguments and errors are those of :meth:`run`, but for another target of the record.
        """
        self._set_up(args, kwargs)
        with self._folder():
            self._find()

    # Where a run begins ---------------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        self._warmup, self._told = None, False  # told of gradients that are not finite

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._world = processes()
        self._world.share("num_chains", self.num_chains)
        target = self._given.target.setup(*args, **kwargs)
        target.failure = None
        self._check_memory(target)
        self.kernel = self._given.on(target)

    def _folder(self) -> AbstractContextManager[Any]:
        """The folder of the record, in use in the block; nothing without one."""
        return nullcontext() if self._checkpoints is None else self._checkpoints

    def _find(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if any."""
        if self._checkpoints is None:
            return None
        settings = {
            **settings_of(self.kernel, replace(self.adaptation, steps=None)),
            "warmup_steps": self.warmup_steps,
            "num_chains": self.num_chains,
            "keep_draws": self.keep_draws,
            "observables": list(self._observables),
            "processes": self._world.size,
            "seed": self._given_seed,
        }
        return self._checkpoints.find(settings)

    def _start(self) -> RunState:
        """The beginning of the warm-up."""
        target, generator = self.kernel.target, torch.Generator(self.kernel.target.device)
        generator.manual_seed(self._world.stream(self.seed))
        began = time.perf_counter()
        with frozen(target.modules()):
            chains, evaluations, self._told = started(
                self.kernel, self.initial_params, self.num_chains, generator, self._world
            )
            self._warmup = self._new_warmup()
            evaluations += self._warmup.begin(chains, generator)
        costs = Cost(evaluations * self.num_chains, 0), Cost(time.perf_counter() - began, 0.0)
        return RunState(chains, generator.get_state(), 0, 0, *costs)

    def _new_warmup(self) -> Warmup:
        return Warmup(self.kernel, self.adaptation, self.warmup_steps, self.num_chains, self._world)

    def _stand_at(self, contents: Mapping[str, Any]) -> RunState:
        """Take over what a checkpoint holds of this process's chains; return their state."""
        assert self._checkpoints is not None
        target, own = self.kernel.target, self._world.rows(self.num_chains)
        state = RunState.of(contents, own, self._world.rank, target.device)
        with frozen(target.modules()):
            energies = target.energy(state.chains.position)
        check_energies(self._checkpoints.folder, state.chains.energy, energies)
        for values in contents["kernel"].values():
            if values["inverse_mass"] is not None:
                values["inverse_mass"] = values["inverse_mass"].to(target.device)
        self.kernel = self.kernel.with_tuning(contents["kernel"])
        if contents["warmup"] is not None:
            self._warmup = self._new_warmup()
            self._warmup.load_state_dict(contents["warmup"])
        for name, rows in self._rows.items():
            saved = {key: value[own] for key, value in contents["rows"][name].items()}
            rows.load(saved, rows.capacity)
        return state

    # The phases -----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """The rest of the warm-up and of the draws."""
        assert self._state is not None
        world, target = self._world, self.kernel.target
        generator = torch.Generator(target.device)
        generator.set_state(self._state.random)
        self.interrupted = False
        self._samples = self._joined = None
        self._rhat, self._rhat_at = math.nan, time.monotonic()
        total = self.warmup_steps + self.num_samples
        shown = self.progress and world.is_first
        held = () if self._checkpoints is None and world.size == 1 else HELD
        # threads of our own for a lattice model; a Pyro model may need those of torch
        known = target.lattice_potential is not None
        with (
            frozen(target.modules()),
            Progress(total, self.kernel.name, shown, self._state.steps) as progress,
            deferred_interrupts(held) as pressed,
            own_threads() if known else nullcontext(),
        ):
            self._warm_up(generator, progress, pressed)
            self._draw(generator, progress, pressed)
            stats = self._rows["sample_stats"].columns()
            diverging = world.gather(stats["diverging"])
            if not self._told and world.is_first and bool(diverging.any()):
                self._told = True
                warn_of_divergences(self.kernel, self._state.chains, diverging, stats["n_steps"])

    def _warm_up(self, generator: torch.Generator, progress: Progress, pressed: list[int]) -> None:
        state, warmup = self._state, self._warmup
        if warmup is None:
            return
        assert state is not None
        for _ in range(state.warmed_up, self.warmup_steps):
            self._state = None  # a step that is torn leaves nothing to go on with but a saved one
            self._state = state = self._step(state, generator, progress)
            if self._pause(pressed):
                self.interrupted = True
                self._keep()
                raise KeyboardInterrupt
        self.kernel = warmup.finish()
        self._warmup = None

    def _draw(self, generator: torch.Generator, progress: Progress, pressed: list[int]) -> None:
        assert self._state is not None
        try:
            while self._state.drawn < self.num_samples and not self.interrupted:
                self._state = self._step(self._state, generator, progress)
                self.interrupted = self._pause(pressed)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self._state.drawn:
                raise
        with deferred_interrupts() as late:
            for name in DRAWN:
                self._rows[name].truncate(self._state.drawn)
            self._keep()
            if self._world.size > 1:
                self._joined = self._rows_of_all()
        stopped = self.interrupted or bool(late) or bool(pressed)
        (self.interrupted,) = self._world.any_process(stopped)

    def _step(self, state: RunState, generator: torch.Generator, progress: Progress) -> RunState:
        """Make and record a step of the warm-up, or after it as many draws as go together."""
        began, warmup, is_draw = time.perf_counter(), self._warmup, self._warmup is None
        kernel = self.kernel if warmup is None else warmup.kernel
        if warmup is None:
            rest = self.num_samples - state.drawn
            count = min(rest, kernel.steps_at_once(self.num_chains))
            made = kernel.steps(state.chains, generator, count)
            rows, evaluations = self._rows_of_draws(kernel, made), 0
        else:
            made = [kernel.step(state.chains, generator)]
            evaluations = warmup.update(state.warmed_up, *made[0], generator)
            self.kernel = warmup.kernel
            rows = {"warmup_stats": [statistics(self.kernel, *made[0])]}
        evaluations += sum(info.gradient_evaluations for _, info in made)
        for name, added in rows.items():
            self._rows[name].truncate(state.drawn if is_draw else state.warmed_up)
            for row in added:
                self._rows[name].add(row)
        chains, info = made[-1]
        evaluations *= self.num_chains
        state = RunState(
            chains,
            generator.get_state(),
            state.warmed_up + len(made) * (not is_draw),
            state.drawn + len(made) * is_draw,
            state.gradient_evaluations.plus(evaluations, is_draw),
            state.seconds.plus(time.perf_counter() - began, is_draw),
        )
        label = f"{'draws' if is_draw else 'warm-up'} of {self.kernel.name}"
        for _ in made:
            progress.step(partial(self._figures, self.kernel, info), label)
        return state

    def _rows_of_draws(
        self, kernel: Kernel, made: list[Step]
    ) -> dict[str, list[dict[str, Tensor]]]:
        """Statistics, observables and positions of draws."""
        positions = [chains.position for chains, _ in made]
        found = observe(self._observables, kernel.target, torch.cat(positions))
        parts = {name: value.split(len(positions[0])) for name, value in found.items()}
        return {
            "sample_stats": [statistics(kernel, *each) for each in made],
            "observables": [{x: parts[x][number] for x in parts} for number in range(len(made))],
            "draws": [{"position": x} if self.keep_draws else {} for x in positions],
        }

    def _pause(self, pressed: list[int]) -> bool:
        """Between two steps: save if it is time; whether to stop. All processes agree on both."""
        assert self._state is not None
        files = self._checkpoints
        due = files is not None and self._world.is_first and files.is_due(self._state.steps)
        due, stop = self._world.any_process(due, bool(pressed))
        if due:
            self._keep()
        return stop

    def _keep(self) -> None:
        """Write a checkpoint, if there is a record."""
        state = self._state
        if self._checkpoints is None or state is None:
            return
        contents = {
            "seed": self.seed,
            "kernel": self.kernel.tuning,
            **state.contents(self._world),
            "warmup": None if self._warmup is None else self._warmup.state_dict(),
            "rows": self._rows_of_all(),
        }
        self._checkpoints.keep(state.steps, contents)

    def _rows_of_all(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all columns ``(chains, rows, ...)``, of the chains of every process."""
        return {
            name: {key: self._world.gather(x.clone()) for key, x in rows.columns().items()}
            for name, rows in self._rows.items()
        }
