# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The runner: warm-up, draws, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer.mcmc.util import diagnostics as site_diagnostics
from torch import Tensor
from tqdm.auto import tqdm

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer
from pyro_neuralrg.infer.mcmc.adaptation import Adaptation, Warmup
from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo
from pyro_neuralrg.infer.mcmc.target import Target, frozen
from pyro_neuralrg.interrupts import deferred_interrupts

__all__ = ["Cost", "VectorizedMCMC"]

#: How often random starts of chains whose energy is not finite are drawn anew.
MAX_RESTARTS = 10
#: R-hat splits chains and needs two draws of each half.
MIN_DRAWS = 4
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


class VectorizedMCMC:
    """Run a kernel over many chains at once.

    All random numbers come from one generator seeded here: the same seed gives the same draws on
    the same machine, and torch's global generator is left alone (but for one number drawn from it
    if ``seed`` is None). Flows are frozen meanwhile. An interrupt (Ctrl-C) during the draws keeps
    those made so far.

    Args:
        kernel: what to run; adapted during warm-up as ``adaptation`` says, then fixed.
        num_samples: draws to keep of each chain, >= 1.
        warmup_steps: steps before the draws, >= 0; ``num_samples`` if None, as in Pyro.
        num_chains: chains, >= 1.
        initial_params: where the chains start, unconstrained as in Pyro: for each site a tensor
            ``(num_chains,) + site shape``. A target in the latent space of a flow accepts the
            physical field instead. None: the target's own, random.
        thinning: steps per kept draw, >= 1.
        seed: of all random numbers.
        progress: show a progress bar.
        adaptation: what warm-up adapts.

    Attributes:
        kernel: the present kernel; after the run, the adapted one.
        interrupted: whether the draws were cut short.
        gradient_evaluations: :class:`Cost`, summed over chains; a jump counts as one.
        seconds: :class:`Cost`, wall-clock.

    Raises:
        TypeError: if a number is none.
        ValueError: if one is out of range, the initial parameters do not fit, or a chain has
            no finite starting energy.

    Example:
        >>> import torch
        >>> from pyro_neuralrg.infer.mcmc import HMC
        >>> kernel = HMC(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        >>> mcmc = VectorizedMCMC(kernel, num_samples=50, num_chains=4, seed=0, progress=False)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([4, 50, 3])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 64,
        initial_params: Mapping[str, Tensor] | None = None,
        *,
        thinning: int = 1,
        seed: int | None = None,
        progress: bool = True,
        adaptation: Adaptation | None = None,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(kernel).__name__}; accepted: a kernel of infer.mcmc"
            )
        self.kernel = self._given = kernel
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.warmup_steps = (
            self.num_samples
            if warmup_steps is None
            else check_integer("warmup_steps", warmup_steps, 0)
        )
        self.num_chains = check_integer("num_chains", num_chains, 1)
        self.thinning = check_integer("thinning", thinning, 1)
        self.initial_params = initial_params
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        self.seed = check_integer("seed", seed, 0, LARGEST_SEED)
        self.progress = progress
        self.adaptation = Adaptation() if adaptation is None else adaptation
        self._forget()

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up and draw; each run begins anew, with the kernel as it was given.

        Args:
            *args: arguments of the Pyro model, if the target is one.
            **kwargs: likewise.
        """
        target = self._given.target.setup(*args, **kwargs)
        self.kernel = self._given.on(target)
        self._forget()
        generator = torch.Generator(target.device).manual_seed(self.seed)
        bar = tqdm(
            total=self.warmup_steps + self.num_samples, disable=not self.progress, leave=True
        )
        with frozen(target.modules()), bar:
            state = self._start(target, generator)
            state = self._warm_up(state, generator, bar)
            self._draw(state, generator, bar)

    def _forget(self) -> None:
        """Be as before any run."""
        self.interrupted = False
        self.gradient_evaluations = Cost(0, 0)
        self.seconds = Cost(0.0, 0.0)
        self._positions: Tensor | None = None
        self._stats: dict[str, Tensor] = {}
        self._samples: dict[str, Tensor] | None = None

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return the draws of the model's own sites and of the flows' latent sites.

        Args:
            group_by_chain: keep chains apart.

        Returns:
            For each site ``(chains * draws,) + site shape``, or ``(chains, draws) + site shape``;
            physical sites under their own names, latent ones under ``{name}_latent``.
        """
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
        if self._positions is None:
            raise RuntimeError("there are no draws; call run() first")
        return self._positions

    @property
    def sample_stats(self) -> dict[str, Tensor]:
        """Per draw, shape ``(chains, draws)``, under ArviZ's names.

        ``lp`` (ln of the density of the position, nats), ``energy`` (the Hamiltonian),
        ``acceptance_rate``, ``step_size``, ``n_steps``, ``diverging``; with thinning, means, sums
        or any over the steps of a draw. A composed kernel adds ``acceptance_rate_{member}``.
        """
        return dict(self._stats)

    def diagnostics(self) -> dict[str, Any]:
        """Return n_eff and R-hat of each site, divergences and acceptance of each chain.

        In the form of Pyro's ``MCMC.diagnostics``; n_eff and R-hat are NaN of fewer than four
        draws, of which nothing can be told.
        """
        samples = self.get_samples(group_by_chain=True)
        if self.positions.shape[1] >= MIN_DRAWS:
            result: dict[str, Any] = dict(site_diagnostics(samples))
        else:
            unknown = {name: torch.full_like(x[0, 0], math.nan) for name, x in samples.items()}
            result = {name: {"n_eff": nan, "r_hat": nan} for name, nan in unknown.items()}
        diverging, acceptance = self._stats["diverging"], self._stats["acceptance_rate"]
        result["divergences"] = {
            f"chain {chain}": diverging[chain].nonzero().flatten().tolist()
            for chain in range(self.num_chains)
        }
        result["acceptance rate"] = {
            f"chain {chain}": float(acceptance[chain].mean()) for chain in range(self.num_chains)
        }
        return result

    # The phases -----------------------------------------------------------------------------------

    def _start(self, target: Target, generator: torch.Generator) -> ChainState:
        if self.initial_params is not None:
            state = self.kernel.init(target.pack(self.initial_params, self.num_chains))
        else:
            state = self.kernel.init(target.initial(self.num_chains, generator))
            for _ in range(MAX_RESTARTS):
                bad = _not_finite(state)
                if not bool(bad.any()):
                    break
                fresh = target.initial(self.num_chains, generator)
                state = self.kernel.init(torch.where(bad.unsqueeze(-1), fresh, state.position))
        bad = _not_finite(state)
        if bool(bad.any()):
            seen = {
                chain: float(state.energy[chain]) for chain in bad.nonzero().flatten().tolist()[:8]
            }
            raise ValueError(
                f"the initial energy or gradient of {int(bad.sum())} of {self.num_chains} chains "
                f"is not finite (energies by chain: {seen}); accepted: "
                "initial_params of finite energy"
            )
        return state

    def _warm_up(self, state: ChainState, generator: torch.Generator, bar: Any) -> ChainState:
        began = time.perf_counter()
        warmup = Warmup(self.kernel, self.adaptation, self.warmup_steps)
        evaluations = 1 + warmup.begin(state, generator)  # one for the start
        for index in range(self.warmup_steps):
            state, info = warmup.kernel.step(state, generator)
            warmup.update(index, state, info)
            evaluations += info.gradient_evaluations
            _show(bar, "warm-up", warmup.kernel, info)
        self.kernel = warmup.finish()
        self.gradient_evaluations = Cost(evaluations * self.num_chains, 0)
        self.seconds = Cost(time.perf_counter() - began, 0.0)
        return state

    def _draw(self, state: ChainState, generator: torch.Generator, bar: Any) -> None:
        began = time.perf_counter()
        positions: list[Tensor] = []
        stats: list[dict[str, Tensor]] = []
        evaluations = 0
        try:
            for _ in range(self.num_samples):
                infos = []
                for _ in range(self.thinning):
                    state, info = self.kernel.step(state, generator)
                    evaluations += info.gradient_evaluations
                    infos.append(info)
                row = _statistics(self.kernel, state, infos)
                positions.append(state.position)
                stats.append(row)
                _show(bar, "draws", self.kernel, infos[-1])
        except KeyboardInterrupt:
            self.interrupted = True
            if not stats:
                raise
        with deferred_interrupts() as pressed:
            draws = min(len(positions), len(stats))
            self._positions = torch.stack(positions[:draws], 1)
            self._stats = {
                name: torch.stack([row[name] for row in stats[:draws]], 1).cpu()
                for name in stats[0]
            }
            self.gradient_evaluations = self.gradient_evaluations._replace(
                draws=evaluations * self.num_chains
            )
            self.seconds = self.seconds._replace(draws=time.perf_counter() - began)
        self.interrupted = self.interrupted or bool(pressed)


def _statistics(kernel: Kernel, state: ChainState, infos: list[StepInfo]) -> dict[str, Tensor]:
    """One row of sample_stats, each of shape ``(chains,)``, of the steps that make one draw."""

    def mean(rates: list[Tensor]) -> Tensor:
        return torch.stack(rates).mean(0)

    energy = state.energy
    sizes = [m.step_size for m in kernel.members.values() if m.step_size is not None]
    row = {
        "lp": -energy,
        "energy": infos[-1].hamiltonian,
        "acceptance_rate": mean([info.acceptance_rate for info in infos]),
        "step_size": torch.full_like(energy, sizes[0] if sizes else float("nan")),
        "n_steps": torch.full_like(energy, sum(info.n_steps for info in infos), dtype=torch.int64),
        "diverging": torch.stack([info.diverging for info in infos]).any(0),
    }
    for name in infos[0].parts:
        row[f"acceptance_rate_{name}"] = mean([info.parts[name].acceptance_rate for info in infos])
    return row


def _not_finite(state: ChainState) -> Tensor:
    bad = ~torch.isfinite(state.energy)
    return bad if state.gradient is None else bad | ~torch.isfinite(state.gradient).all(-1)


def _show(bar: Any, phase: str, kernel: Kernel, info: StepInfo) -> None:
    if bar.disable:
        return
    bar.set_description(phase, refresh=False)
    shown = {"acceptance": f"{float(info.acceptance_rate.mean()):.2f}"}
    for name, member in kernel.members.items():
        if member.step_size is not None:
            shown[f"step size {name}"] = f"{member.step_size:.3g}"
    bar.set_postfix(shown, refresh=False)
    bar.update()
