# SPDX-License-Identifier: Apache-2.0
"""Draws, statistics and costs of a run, finished or not."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from pyro.infer.mcmc.util import diagnostics as site_diagnostics
from pyro.infer.mcmc.util import select_samples
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, copied
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, StepInfo
from pyro_neuralrg.mcmc.run_state import Cost, RunState
from pyro_neuralrg.mcmc.target import Target, concatenated
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.runtime.memory import available_memory, check_fits, kept_bytes
from pyro_neuralrg.runtime.notebook import html_table
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.statistics import summary_table
from pyro_neuralrg.statistics.draws import MIN_DRAWS

DRAWN = ("sample_stats", "observables", "draws")
"""Names of the rows to which each draw adds one."""

PHYSICAL_BATCH = 1024
"""Positions mapped to physical space at once."""

RHAT_SECONDS = 2.0
"""Seconds between two R-hats of a bar, which cost as much as several steps of a small model."""


class Rows:
    """Columns of rows ``(chains, ...)``, in memory for ``capacity`` of them that is set aside."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._columns: dict[str, Tensor] = {}
        self.length = 0

    def add(self, row: Mapping[str, Tensor]) -> None:
        """Add a row; all rows have the same columns."""
        for name, value in row.items():
            if name not in self._columns:
                self._columns[name] = value.new_empty((self.capacity, *value.shape))
            self._columns[name][self.length] = value
        self.length += 1

    def truncate(self, length: int) -> None:
        """Forget the rows from there on."""
        self.length = min(self.length, length)

    def columns(self) -> dict[str, Tensor]:
        """The columns, shape ``(chains, rows, ...)``."""
        return {name: value[: self.length].movedim(0, 1) for name, value in self._columns.items()}

    def load(self, columns: Mapping[str, Tensor], capacity: int) -> None:
        """Be these columns, with memory for at least ``capacity`` rows."""
        self.length = min((value.shape[1] for value in columns.values()), default=0)
        self.capacity, self._columns = max(capacity, self.length), {}
        for name, value in columns.items():
            rows = value[:, : self.length].movedim(1, 0)
            self._columns[name] = rows.new_empty((self.capacity, *rows.shape[1:]))
            self._columns[name][: self.length] = rows


def statistics(kernel: Kernel, state: ChainState, info: StepInfo) -> dict[str, Tensor]:
    """One row of sample_stats, each of shape ``(chains,)``, of one step."""
    energy, members = state.energy, kernel.members

    def first(name: str) -> float | None:
        values = (getattr(member, name) for member in members.values())
        return next((value for value in values if value is not None), None)

    step_size, length = first("step_size"), first("trajectory_length")
    row = {
        "lp": -energy,
        "energy": info.hamiltonian,
        "acceptance_rate": info.acceptance_rate,
        "step_size": torch.full_like(energy, math.nan if step_size is None else step_size),
        "n_steps": torch.full_like(energy, info.n_steps, dtype=torch.int64),
        "diverging": info.diverging,
    }
    if length is not None:
        row["trajectory_length"] = torch.full_like(energy, length)
    for name in members if list(members) != [kernel.name] else ():
        part = info.parts.get(name)
        still = torch.full_like(energy, math.nan)
        row[f"acceptance_rate_{name}"] = still if part is None else part.acceptance_rate
    return {name: value.cpu() for name, value in row.items()}


def observe(
    observables: Mapping[str, Observable], target: Target, positions: Tensor
) -> dict[str, Tensor]:
    """The observables of such positions, on the CPU."""
    if not observables:
        return {}

    def values(part: Tensor) -> dict[str, Tensor]:
        return observed(observables, target.physical(part), target.lattices)

    found = target.by_batches(values, positions)
    return {name: value.cpu() for name, value in found.items()}


def observed(
    observables: Mapping[str, Observable], sites: Mapping[str, Tensor], fields: Collection[str]
) -> dict[str, Tensor]:
    """The observables of draws of these sites: of the only field among them, else of all sites."""
    number = len(next(iter(sites.values())))
    names = [name for name in sites if name in fields]
    seen: Any = sites[names[0]] if len(names) == 1 else dict(sites)
    with torch.no_grad():
        found = {name: function(copied(seen)) for name, function in observables.items()}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (number,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"observables[{name!r}] returned {shape} for {number} fields; accepted: "
                f"shape ({number}, ...), one value for each field"
            )
    return {name: value.detach() for name, value in found.items()}


class RunResults:
    """Draws and statistics of a run; for the arguments see :class:`VectorizedMCMC`."""

    def __init__(
        self, kernel: Kernel, warmup_steps: int, num_samples: int, num_chains: int, keep_draws: bool
    ) -> None:
        self._given = kernel
        self.warmup_steps = warmup_steps
        self.num_samples = num_samples
        self.num_chains = num_chains
        self.keep_draws = keep_draws
        self._forget()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._given.name}, {self.num_chains} chains, "
            f"{self._drawn} of {self.num_samples} draws)"
        )

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"kernel": self._given.name, "chains": self.num_chains}
        rows |= {"draws": f"{self._drawn} of {self.num_samples}", "warm-up": self.warmup_steps}
        return html_table(type(self).__name__, rows)

    def _forget(self) -> None:
        """Be as before any run."""
        self.kernel: Kernel = self._given
        self.interrupted = False
        self._state: RunState | None = None
        self._samples: dict[str, Tensor] | None = None
        self._joined: dict[str, dict[str, Tensor]] | None = None  # of all processes
        self._world = Processes()
        self._rhat = self._rhat_at = math.nan
        self._rows = {name: Rows(self.num_samples) for name in DRAWN}
        self._rows["warmup_stats"] = Rows(self.warmup_steps)

    def _check_memory(self, target: Target) -> None:
        """Refuse draws that cannot be held, before memory for them is set aside."""
        if not self.keep_draws:
            return
        size = self.num_chains * self.num_samples * target.dim * target.dtype.itemsize
        kept = kept_bytes(size, self._world.size)
        seen = f"num_chains is {self.num_chains} and num_samples is {self.num_samples}"
        fits = partial(check_fits, seen, kept, target.device, ", or keep_draws=False")
        self._world.run_on_all(fits)

    @property
    def _drawn(self) -> int:
        return 0 if self._state is None else self._state.drawn

    def _columns(self, name: str) -> dict[str, Tensor]:
        return self._rows[name].columns() if self._joined is None else self._joined[name]

    def _figures(self, kernel: Kernel, info: StepInfo) -> str:
        """Acceptance, step sizes, and the worst R-hat of this process's draws, for the bar."""
        shown = {"acceptance": f"{float(info.acceptance_rate.mean()):.2f}"}
        for name, member in kernel.members.items():
            if member.step_size is not None:
                shown[f"step size {name}"] = f"{member.step_size:.3g}"
        now = time.monotonic()
        if now - self._rhat_at > RHAT_SECONDS:
            self._rhat, self._rhat_at = self._worst_rhat(), now
        if not math.isnan(self._rhat):
            shown["R-hat"] = f"{self._rhat:.3f}"
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def _worst_rhat(self) -> float:
        """Largest split R-hat (Gelman & Rubin) of lp and scalar observables; NaN without any."""
        lp = self._rows["sample_stats"].columns().get("lp")
        columns = [*self._rows["observables"].columns().values(), *([] if lp is None else [lp])]
        scalars = [x.double() for x in columns if x.dim() == 2 and x.shape[1] >= MIN_DRAWS]
        found = [float(split_gelman_rubin(values, 0, 1)) for values in scalars]
        return max(filter(math.isfinite, found), default=math.nan)

    @property
    def gradient_evaluations(self) -> Cost:
        """Summed over chains; a jump counts as one."""
        return Cost(0, 0) if self._state is None else self._state.gradient_evaluations

    @property
    def seconds(self) -> Cost:
        """Wall-clock."""
        return Cost(0.0, 0.0) if self._state is None else self._state.seconds

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """Return the draws of the model's own sites, its deterministic ones, and flows' latents.

        Args:
            num_samples: as in Pyro, so many of the draws, chosen by torch's global generator with
                replacement, of each chain if chains are kept apart; None for all.
            group_by_chain: keep chains apart.

        Returns:
            For each site ``(chains * draws,) + site shape``, or ``(chains, draws) + site shape``;
            latent ones under ``{name}_latent``. Nothing if no draws were kept.
        """
        if num_samples is not None:
            num_samples = check_integer("num_samples", num_samples, 1)
        if self._drawn and not self.keep_draws:
            return {}
        positions = self.positions
        if self._samples is None:
            target = self.kernel.target
            flat = positions.flatten(0, 1).split(PHYSICAL_BATCH)
            physical = concatenated([target.physical(some) for some in flat])
            self._samples = physical | target.latent(positions.flatten(0, 1))
            first = target.computed(flat[0])
            size = len(flat) * sum(values.nbytes for values in first.values())
            if 2 * size < available_memory(target.device):  # with a copy of all while it is made
                rest = [target.computed(some) for some in flat[1:]]
                self._samples |= concatenated([first, *rest])
            else:
                warnings.warn(
                    f"the draws leave out the deterministic sites {sorted(first)}, which take "
                    f"{size / 1e6:,.0f} MB; observables=... computes what is wanted of them while "
                    "sampling",
                    stacklevel=2,
                )
        chains_draws = positions.shape[:2]
        grouped = {name: x.unflatten(0, chains_draws) for name, x in self._samples.items()}
        return select_samples(grouped, num_samples, group_by_chain)

    @property
    def positions(self) -> Tensor:
        """The unconstrained draws as the kernel sees them, shape ``(chains, draws, dim)``."""
        if not self._drawn:
            raise RuntimeError("there are no draws; call run() first")
        if not self.keep_draws:
            raise RuntimeError("no draws were kept: keep_draws is False")
        return self._columns("draws")["position"]

    @property
    def sample_stats(self) -> dict[str, Tensor]:
        """Per draw, shape ``(chains, draws)``, under ArviZ's names.

        ``lp`` (ln of the density of the position, nats), ``energy`` (the Hamiltonian),
        ``acceptance_rate``, ``step_size``, ``n_steps``, ``diverging``. Kernels with a trajectory
        length add ``trajectory_length``, composed ones ``acceptance_rate_{member}`` (NaN where a
        member of a mixture did not move).
        """
        return self._columns("sample_stats")

    @property
    def warmup_stats(self) -> dict[str, Tensor]:
        """The same for each step of warm-up, shape ``(chains, warmup_steps)``."""
        return self._columns("warmup_stats")

    @property
    def observables(self) -> dict[str, Tensor]:
        """The observables asked for, shape ``(chains, draws, ...)``."""
        return self._columns("observables")

    @property
    def adapted(self) -> dict[str, dict[str, Any]]:
        """``step_size``, ``inverse_mass`` and ``trajectory_length`` of each member, by its name."""
        return self.kernel.tuning

    def summary(self, max_sites: int | None = None) -> Any:
        """Return a table of the sites, the observables and lp, with ArviZ's figures, in pandas.

        Latent sites come last; of a run that kept no draws there are no sites. One line per scalar,
        two per field (the worst over sites, and the median) of at most ``max_sites`` sites; see
        :func:`~pyro_neuralrg.statistics.summary_table`.
        """
        samples = self.get_samples(group_by_chain=True)
        known = self.kernel.target.latent(self.positions[:1, 0]) if samples else ()
        latent = {name: samples.pop(name) for name in known}
        lp = {"lp": self.sample_stats["lp"]}
        return summary_table({**samples, **self.observables, **lp, **latent}, max_sites=max_sites)

    def diagnostics(self) -> dict[str, Any]:
        """Return n_eff and R-hat of each site, divergences and acceptance of each chain.

        In the form of Pyro's ``MCMC.diagnostics``; n_eff and R-hat are NaN of fewer than 4 draws.
        """
        samples = self.get_samples(group_by_chain=True)
        stats = self.sample_stats
        floats = {name: x if x.is_floating_point() else x.double() for name, x in samples.items()}
        if self._drawn >= MIN_DRAWS:
            result: dict[str, Any] = dict(site_diagnostics(floats))
        else:
            unknown = {name: torch.full_like(x[0, 0], math.nan) for name, x in floats.items()}
            result = {name: {"n_eff": nan, "r_hat": nan} for name, nan in unknown.items()}
        names = [f"chain {chain}" for chain in range(self.num_chains)]
        where = [one.nonzero().flatten().tolist() for one in stats["diverging"]]
        result["divergences"] = dict(zip(names, where, strict=True))
        rates = stats["acceptance_rate"].mean(1).tolist()
        result["acceptance rate"] = dict(zip(names, rates, strict=True))
        return result
