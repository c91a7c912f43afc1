# SPDX-License-Identifier: Apache-2.0
"""Where chains begin, and a warning where gradients keep them from parts of their target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, LocalKernel, normals_like
from pyro_neuralrg.mcmc.metropolis import chosen_chains
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.runtime.processes import Processes

MAX_RESTARTS, UNIFORM_RESTARTS = 10, 100
"""Times that starts without a finite energy are drawn anew; those of uniform ones as in Stan."""

CANDIDATES = 10
"""Uniform starts of each chain, of which it takes the one of lowest energy."""

LARGEST_ENERGY = 1e30
"""Beyond it, in nats, numbers overflow anyway."""

LOOKS = 8
"""Points on the way of a trajectory at which the gradient is looked at after a run."""

STEEP_REMEDY = (
    "often that of the branch of torch.where that is not taken: give it an argument that suits it "
    "everywhere, such as torch.where(x > 0, x, 1.0).sqrt()"
)
"""What to do where an energy is finite and its gradient is not."""


class Constrained(dict[str, Tensor]):
    """Starts in the model's own values: ``(num_chains,) + site shape`` for each site.

    Draws of a guide will do: ``Constrained(Predictive(guide, num_samples=num_chains)())``.

    Example:
        >>> start = Constrained(tau=torch.full((64,), 6.0))  # unconstrained: {"tau": log(6)}
    """


Start: TypeAlias = "Mapping[str, Tensor] | Callable[[Any], Tensor] | str | None"
"""Values by site, unconstrained or Constrained; an init_to_... of Pyro; a name in NAMED; None."""

NAMED = ("prior", "uniform", "flow")


def check_start(initial_params: Any) -> Start:
    """Return it if it is one, else raise a ValueError."""
    known = isinstance(initial_params, Mapping | None) or callable(initial_params)
    if not known and initial_params not in NAMED:
        raise ValueError(
            f"initial_params is {initial_params!r}; accepted: 'prior', 'uniform', 'flow', None, "
            "one of Pyro's init_to_..., a tensor of unconstrained values for each site, or "
            "Constrained(...) of them"
        )
    return initial_params


def started(
    kernel: Kernel, start: Start, chains: int, generator: torch.Generator, world: Processes
) -> tuple[ChainState, int, bool]:
    """Evaluate the starts of this process's chains, of all ``chains``.

    Returns also how many evaluations it took, and whether it warned of gradients.

    Random ones that are not finite are drawn anew, with a warning unless they are uniform and only
    their energy was not finite. Of uniform ones each chain takes the best of a few.

    Raises:
        ValueError: on all processes, telling chains without a finite energy and gradient, or sites
            whose gradient is not finite where the energy is as low as where chains start: draws
            would miss a part of the target.
    """
    rows, target = world.rows(chains), kernel.target
    candidates, restarts = 1, MAX_RESTARTS
    if isinstance(start, Mapping):
        given = target.unconstrained(start) if isinstance(start, Constrained) else start
        first, restarts = target.pack(given, chains)[rows], 0
    else:
        if start == "uniform" or (start is None and target.starts_uniformly):
            candidates, restarts = CANDIDATES, UNIFORM_RESTARTS
        first = target.initial(rows.stop - rows.start, generator, start)
    state, evaluations = kernel.init(first), 1
    bad = redrawn = ~_finite(state)
    steep, energy = [_steep(target, state)], [state.energy]
    while evaluations <= restarts and (evaluations < candidates or bool(bad.any())):
        other = kernel.init(target.initial(len(first), generator, start))
        is_better = _finite(other) & (other.energy < state.energy)
        taken = bad | is_better if evaluations < candidates else bad
        state = chosen_chains(taken, other, state)
        bad, evaluations = ~_finite(state), evaluations + 1
        steep.append(_steep(target, other))
        energy.append(other.energy)
    if bool(world.gather(bad).any()):
        raise ValueError(_refusal(target, state, world))
    redrawn, barred = world.gather(redrawn), torch.cat([world.gather(one) for one in steep])
    is_low = torch.cat([world.gather(one) for one in energy]) <= world.gather(state.energy).median()
    if bool(barred.any()):
        message = _warning(target, barred, f"of {evaluations * chains} starts")
        if bool((barred.any(-1) & is_low).any()):
            raise ValueError(message)
        if world.is_first:
            warnings.warn(message, stacklevel=4)
    elif world.is_first and candidates == 1 and bool(redrawn.any()):
        warnings.warn(
            f"{int(redrawn.sum())} of {chains} chains started where the energy is not finite, and "
            "were given other starts",
            stacklevel=4,  # the caller of run()
        )
    return state, evaluations, bool(barred.any())


def _finite(state: ChainState) -> Tensor:
    good = torch.isfinite(state.energy)
    return good if state.gradient is None else good & torch.isfinite(state.gradient).all(-1)


def _steep(target: Target, state: ChainState) -> Tensor:
    """Of each chain and site, whether the gradient is not finite though the energy is."""
    if state.gradient is None:
        return torch.zeros(len(state.energy), len(target.sites), dtype=torch.bool)
    finite = state.energy.abs() < LARGEST_ENERGY
    parts = target.unpack(state.gradient).values()
    bad = [finite & ~torch.isfinite(part.reshape(len(part), -1)).all(-1) for part in parts]
    return torch.stack(bad, -1)


def _refusal(target: Target, state: ChainState, world: Processes) -> str:
    """What is not finite at the starts."""
    energy, steep = world.gather(state.energy), world.gather(_steep(target, state))
    chains, said = len(energy), []
    bad = (~(energy.abs() < LARGEST_ENERGY)).nonzero().flatten().tolist()
    if bad:
        first = {chain: float(energy[chain]) for chain in bad[:8]}
        reason = "" if target.failure is None else f"; the model says {target.failure!r}"
        said.append(
            f"the energy of {len(bad)} of {chains} chains is not finite (by chain: {first}{reason})"
        )
    if bool(steep.any()):
        bad = steep.any(-1).nonzero().flatten().tolist()
        said.append(
            f"the gradient of {len(bad)} of {chains} chains (such as {bad[0]}) is not finite at "
            f"{_names_of(target, steep)} although the energy is ({STEEP_REMEDY})"
        )
    return f"at the start, {' and '.join(said)}; accepted: initial_params where both are finite"


def _warning(target: Target, steep: Tensor, where: str) -> str:
    return (
        f"the gradient is not finite at {_names_of(target, steep)} although the energy is, at "
        f"{int(steep.any(-1).sum())} {where}: chains cannot go there, and draws would miss it; the "
        f"reason is {STEEP_REMEDY}"
    )


def warn_of_divergences(kernel: Kernel, state: ChainState, failed: Tensor, n_steps: Tensor) -> None:
    """Warn of draws in which the model failed for all chains, and of gradients that bar the way.

    ``failed``, of shape ``(chains, draws)``, is that of all processes. A single chain is to fail
    in most of its draws: one failed proposal says nothing of the model. Gradients are looked at
    along straight lines as long as trajectories, from where chains ended.
    """
    target, (chains, draws) = kernel.target, failed.shape
    stuck = int(failed.all(0).sum())
    if stuck > (0 if chains > 1 else draws // 2) and target.failure is not None:
        warnings.warn(
            f"in {stuck} of {draws} draws no chain could move on, for there was no "
            f"energy of what they proposed; the model says {target.failure!r}",
            stacklevel=4,  # the caller of run()
        )
    for mover in kernel.members.values():
        if not (isinstance(mover, LocalKernel) and mover.needs_gradient):
            continue
        position = state.position
        normal = normals_like(position, torch.Generator(position.device).manual_seed(0))
        way = mover.mass(normal).displacement(normal) * (
            mover.step_size * int(n_steps.max()) / LOOKS
        )
        probes = [mover.init(position + step * way) for step in range(1, LOOKS + 1)]
        steep = torch.cat([_steep(target, probe) for probe in probes])
        if bool(steep.any()):
            where = f"of {len(steep)} points around the last draws"
            warnings.warn(_warning(target, steep, where), stacklevel=4)
        return


def _names_of(target: Target, steep: Tensor) -> str:
    bad = steep.any(0).tolist()
    names = [repr(name) for name, is_bad in zip(target.sites, bad, strict=True) if is_bad]
    return f"site{'s' * (len(names) > 1)} {', '.join(names)}"
