# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Alternation of kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_neuralrg.infer.mcmc.base import ChainState, Kernel, StepInfo
from pyro_neuralrg.infer.mcmc.target import Target

__all__ = ["Cycle"]


class Cycle(Kernel):
    """One step of each kernel in turn: ``Cycle(HMC(latent), IndependenceMetropolis(flow))``.

    Local moves repair what the flow misses, jumps go where local moves do not. Each member leaves
    the target invariant, so does their product. The info of a step holds each member's own in
    ``parts`` (``"hmc"``, ``"jump"``; numbered if a name comes twice), and in itself the mean
    acceptance, any divergence, sums of the costs, and as Hamiltonian the energy of the new position
    and the last kinetic one.

    Args:
        *kernels: at least one; those without a target get the first one found.

    Raises:
        ValueError: if there is no kernel, no target, or two different ones.

    Example:
        >>> from pyro_neuralrg.infer.mcmc import HMC, as_target
        >>> target = as_target(lambda x: 0.5 * x.square().sum(-1), shape=(2,))
        >>> list(Cycle(HMC(target, step_size=0.1), HMC(target, step_size=1.0)).members)
        ['hmc', 'hmc_2']
    """

    name = "cycle"

    def __init__(self, *kernels: Kernel) -> None:
        if not kernels:
            raise ValueError("kernels is empty; accepted: at least one kernel")
        for kernel in kernels:
            if not isinstance(kernel, Kernel):
                raise TypeError(f"kernels has a {type(kernel).__name__}; accepted: kernels")
        targets = [kernel._target for kernel in kernels if kernel._target is not None]
        if not targets:
            raise ValueError("none of the kernels has a target; accepted: at least one that has")
        for other in targets[1:]:
            if not other.same_as(targets[0]):
                raise ValueError(
                    "the kernels have different targets; accepted: one, made by as_target(...) "
                    "and given to each"
                )
        super().__init__(targets[0])
        self._members: dict[str, Kernel] = {}
        for kernel in kernels:
            for name, member in kernel.members.items():
                self._members[_unused(name, self._members)] = member.on(targets[0])
        self.needs_gradient = any(member.needs_gradient for member in self._members.values())

    @property
    def members(self) -> dict[str, Kernel]:
        """The kernels in turn, by name."""
        return dict(self._members)

    def with_members(self, members: Mapping[str, Kernel]) -> Cycle:
        """Return the same alternation of other members."""
        return self._changed(_members=dict(members))

    def on(self, target: Target) -> Cycle:
        """Return this cycle for another target."""
        members = {name: member.on(target) for name, member in self._members.items()}
        return self._changed(_target=target, _members=members)

    def init(self, positions: Tensor) -> ChainState:
        """Evaluate the starting positions, shape ``(chains, dim)``."""
        for member in self._members.values():
            if not member.needs_gradient:
                member.init(positions[:1])  # its own checks
        return super().init(positions)

    def step(
        self, state: ChainState, generator: torch.Generator | None = None
    ) -> tuple[ChainState, StepInfo]:
        """One step of each member."""
        parts = {}
        kinetic = torch.zeros_like(state.energy)  # of the last momentum
        for name, member in self._members.items():
            state, parts[name] = member.step(state, generator)
            if parts[name].n_steps:
                kinetic = parts[name].hamiltonian - state.energy
        infos = list(parts.values())
        return state, StepInfo(
            acceptance_rate=torch.stack([info.acceptance_rate for info in infos]).mean(0),
            accepted=torch.stack([info.accepted for info in infos]).any(0),
            diverging=torch.stack([info.diverging for info in infos]).any(0),
            hamiltonian=state.energy + kinetic,
            n_steps=sum(info.n_steps for info in infos),
            gradient_evaluations=sum(info.gradient_evaluations for info in infos),
            parts=parts,
        )


def _unused(name: str, taken: Mapping[str, Kernel]) -> str:
    number = 2
    candidate = name
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate
