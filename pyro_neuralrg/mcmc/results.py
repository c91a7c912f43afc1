# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Draws, statistics and costs of a run, finished or not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.infer.mcmc.util import diagnostics as site_diagnostics
from torch import Tensor

from pyro_neuralrg.mcmc import checkpoints
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.mcmc.progress import MIN_DRAWS
from pyro_neuralrg.mcmc.rows import Rows
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.runtime.memory import check_fits, kept_bytes
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.statistics import summary_table

#: Positions mapped to physical space at once.
PHYSICAL_BATCH = 1024


class Cost(NamedTuple):
    """A cost of the two phases of a run: gradient evaluations summed over chains, or seconds."""

    warmup: float
    draws: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.warmup + self.draws


class Mark(NamedTuple):
    """State of a run after a whole step: all that the next one depends on, and the costs."""

    state: ChainState
    random: Tensor
    warmed_up: int
    drawn: int
    gradient_evaluations: Cost
    seconds: Cost

    @property
    def steps(self) -> int:
        """Steps taken, of warm-up and draws."""
        return self.warmed_up + self.drawn


class RunResults:
    """Draws and statistics of a run; :class:`VectorizedMCMC` makes them.

    Args:
        kernel: what is run.
        warmup_steps: steps before the draws.
        num_samples: draws of each chain, at most.
        num_chains: chains.
        keep_draws: whether positions are kept.
    """

    kernel: Kernel
    _mark: Mark | None
    _samples: dict[str, Tensor] | None
    _rows: dict[str, Rows]
    _joined: dict[str, dict[str, Tensor]] | None  # of all processes, if there are several
    _world: Processes

    def __init__(
        self,
        kernel: Kernel,
        warmup_steps: int,
        num_samples: int,
        num_chains: int,
        keep_draws: bool,
    ) -> None:
        self._given = kernel
        self.warmup_steps = warmup_steps
        self.num_samples = num_samples
        self.num_chains = num_chains
        self.keep_draws = keep_draws
        self._forget()

    def __repr__(self) -> str:
        drawn = 0 if self._mark is None else self._mark.drawn
        return (
            f"{type(self).__name__}({self._given.name}, {self.num_chains} chains, "
            f"{drawn} of {self.num_samples} draws)"
        )

    def _forget(self) -> None:
        """Be as before any run."""
        self.kernel = self._given
        self.interrupted = False
        self._mark = None
        self._samples = None
        self._joined = None
        self._world = Processes()
        self._rows = {
            "warmup_stats": Rows(self.warmup_steps),
            "sample_stats": Rows(self.num_samples),
            "observables": Rows(self.num_samples),
            "draws": Rows(self.num_samples),
        }

    def _check_memory(self, target: Target) -> None:
        """Refuse draws that cannot be held, before memory for them is set aside."""
        if not self.keep_draws:
            return
        size = self.num_chains * self.num_samples * target.dim * target.dtype.itemsize
        seen = f"num_chains is {self.num_chains} and num_samples is {self.num_samples}"
        kept = kept_bytes(size, self._world.size)
        instead = ", or keep_draws=False"
        self._world.run_on_all(lambda: check_fits(seen, kept, target.device, instead))

    def _has_run(self) -> bool:
        return self._mark is not None and self._mark.drawn > 0

    def _columns(self, name: str) -> dict[str, Tensor]:
        return self._rows[name].columns() if self._joined is None else self._joined[name]

    @property
    def gradient_evaluations(self) -> Cost:
        """Summed over chains; a jump counts as one."""
        return Cost(0, 0) if self._mark is None else self._mark.gradient_evaluations

    @property
    def seconds(self) -> Cost:
        """Wall-clock."""
        return Cost(0.0, 0.0) if self._mark is None else self._mark.seconds

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return the draws of the model's own sites and of the flows' latent sites.

        Args:
            group_by_chain: keep chains apart.

        Returns:
            For each site ``(chains * draws,) + site shape``, or ``(chains, draws) + site shape``;
            physical sites under their own names, latent ones under ``{name}_latent``. Nothing if no
            draws were kept.
        """
        if self._has_run() and not self.keep_draws:
            return {}
        positions = self.positions
        if self._samples is None:
            target = self.kernel.target
            flat = positions.flatten(0, 1).split(PHYSICAL_BATCH)
            parts = [target.physical(some) for some in flat]
            physical = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self._samples = physical | target.latent(positions.flatten(0, 1))
        samples = self._samples
        if group_by_chain:
            chains_draws = positions.shape[:2]
            samples = {name: value.unflatten(0, chains_draws) for name, value in samples.items()}
        return dict(samples)

    @property
    def positions(self) -> Tensor:
        """The unconstrained draws as the kernel sees them, shape ``(chains, draws, dim)``."""
        if not self._has_run():
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
        return checkpoints.tuning(self.kernel)

    def summary(self, max_sites: int | None = None) -> Any:
        """Return a table of lp, the observables and the sites, with ArviZ's figures.

        One line per scalar, two per field (the worst over sites, and the median); see
        :func:`~pyro_neuralrg.statistics.summary_table`.

        Args:
            max_sites: sites of a field to look at, at most.

        Returns:
            A pandas DataFrame.

        Raises:
            RuntimeError: if there are no draws.
        """
        if not self._has_run():
            raise RuntimeError("there are no draws; call run() first")
        lp = {"lp": self.sample_stats["lp"]}
        samples = self.get_samples(group_by_chain=True)
        return summary_table({**lp, **self.observables, **samples}, max_sites=max_sites)

    def diagnostics(self) -> dict[str, Any]:
        """Return n_eff and R-hat of each site, divergences and acceptance of each chain.

        In the form of Pyro's ``MCMC.diagnostics``; n_eff and R-hat are NaN of fewer than four
        draws, of which nothing can be told.
        """
        samples = self.get_samples(group_by_chain=True)
        stats = self.sample_stats
        if not samples or self.positions.shape[1] >= MIN_DRAWS:
            result: dict[str, Any] = dict(site_diagnostics(samples))
        else:
            unknown = {name: torch.full_like(x[0, 0], math.nan) for name, x in samples.items()}
            result = {name: {"n_eff": nan, "r_hat": nan} for name, nan in unknown.items()}
        diverging, acceptance = stats["diverging"], stats["acceptance_rate"]
        result["divergences"] = {
            f"chain {chain}": diverging[chain].nonzero().flatten().tolist()
            for chain in range(self.num_chains)
        }
        result["acceptance rate"] = {
            f"chain {chain}": float(acceptance[chain].mean()) for chain in range(self.num_chains)
        }
        return result
