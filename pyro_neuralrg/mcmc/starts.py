# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Starts of chains: what is accepted, and that every one is finite."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.runtime.processes import Processes

#: How often random starts of chains whose energy is not finite are drawn anew.
MAX_RESTARTS = 10

#: Unconstrained values by site, "prior", "flow", or None.
Start: TypeAlias = "Mapping[str, Tensor] | str | None"


def check_start(initial_params: Any) -> Start:
    """Return it if it is one.

    Raises:
        ValueError: if it is not.
    """
    if initial_params is None or isinstance(initial_params, Mapping):
        return initial_params
    if initial_params not in ("prior", "flow"):
        raise ValueError(
            f"initial_params is {initial_params!r}; accepted: 'prior', 'flow', None, or a tensor "
            "for each site"
        )
    return initial_params


def started(
    kernel: Kernel, start: Start, chains: int, generator: torch.Generator, world: Processes
) -> ChainState:
    """Evaluate the starts of this process's chains.

    Random ones that are not finite are drawn anew, up to ``MAX_RESTARTS`` times.

    Args:
        kernel: of a known target.
        start: of all chains.
        chains: of all processes.
        generator: of this process.
        world: the processes that share the chains.

    Raises:
        ValueError: on all processes, if a chain has no finite energy and gradient; the message
            names some.

    Warns:
        UserWarning: if starts had to be drawn anew.
    """
    rows = world.rows(chains)
    if isinstance(start, Mapping):
        state = kernel.init(kernel.target.pack(start, chains)[rows])
        redrawn = torch.zeros_like(state.energy, dtype=torch.bool)
    else:
        state, redrawn = _drawn(kernel, start, rows.stop - rows.start, generator)
    bad, energies = world.gather(_not_finite(state)), world.gather(state.energy)
    if bool(bad.any()):
        seen = {chain: float(energies[chain]) for chain in bad.nonzero().flatten().tolist()[:8]}
        raise ValueError(
            f"the initial energy or gradient of {int(bad.sum())} of {chains} chains "
            f"is not finite (energies by chain: {seen}); accepted: "
            "initial_params of finite energy"
        )
    redrawn = world.gather(redrawn)
    if world.is_first and bool(redrawn.any()):
        warnings.warn(
            f"{int(redrawn.sum())} of {chains} chains started where the energy or its gradient is "
            "not finite, and were given other starts",
            stacklevel=3,
        )
    return state


def _drawn(
    kernel: Kernel, start: str | None, chains: int, generator: torch.Generator
) -> tuple[ChainState, Tensor]:
    """Random starts, others in place of bad ones, and which chains those were."""
    state = kernel.init(kernel.target.initial(chains, generator, start))
    redrawn = torch.zeros_like(state.energy, dtype=torch.bool)
    for _ in range(MAX_RESTARTS):
        bad = _not_finite(state)
        if not bool(bad.any()):
            break
        redrawn |= bad
        fresh = kernel.target.initial(chains, generator, start)
        state = kernel.init(torch.where(bad.unsqueeze(-1), fresh, state.position))
    return state, redrawn


def _not_finite(state: ChainState) -> Tensor:
    bad = ~torch.isfinite(state.energy)
    return bad if state.gradient is None else bad | ~torch.isfinite(state.gradient).all(-1)
