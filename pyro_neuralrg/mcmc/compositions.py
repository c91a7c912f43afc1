# SPDX-License-Identifier: Apache-2.0
"""Kernels made of kernels: one after the other, or one at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, Step, StepInfo
from pyro_neuralrg.mcmc.metropolis import IndependenceMetropolis
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.runtime.processes import processes


class Composition(Kernel):
    """Members by name, all of one target, each of which leaves it invariant."""

    def __init__(self, *kernels: Kernel) -> None:
        for kernel in kernels:
            if not isinstance(kernel, Kernel) or isinstance(kernel, Composition):
                raise TypeError(
                    f"kernels has a {type(kernel).__name__}; accepted: kernels that are not made "
                    "of others (of a Cycle or Mixture, its members)"
                )
        targets = [kernel._target for kernel in kernels if kernel._target is not None]
        if not targets or not all(other.same_as(targets[0]) for other in targets):
            raise ValueError(
                f"kernels is {list(kernels)}; accepted: at least one kernel that has a target, and "
                "no two different ones: make it by as_target(...) and give it to each"
            )
        super().__init__(targets[0])
        self._members: dict[str, Kernel] = {}
        for kernel in kernels:
            number, name = 2, kernel.name
            while name in self._members:
                name, number = f"{kernel.name}_{number}", number + 1
            self._members[name] = kernel.on(targets[0])
        self.needs_gradient = any(member.needs_gradient for member in self._members.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._members.values()))})"

    @property
    def members(self) -> dict[str, Kernel]:
        """The kernels by name, numbered if a name comes twice."""
        return dict(self._members)

    def with_members(self, members: Mapping[str, Kernel]) -> Self:
        return self._changed(_members=dict(members))

    def on(self, target: Target) -> Self:
        members = {name: member.on(target) for name, member in self._members.items()}
        return self._changed(_target=target, _members=members)

    def _step_of(
        self, member: Kernel, state: ChainState, generator: torch.Generator | None
    ) -> Step:
        """One step of a member; what it knows of a flow's density is for jumps of this flow."""
        state, info = member.step(state, generator)
        jumps = [one for one in self._members.values() if isinstance(one, IndependenceMetropolis)]
        if member not in jumps or len({id(jump.flow) for jump in jumps}) > 1:
            state = state._replace(log_q=None)
        return state, info

    def init(self, positions: Tensor) -> ChainState:
        for member in self._members.values():
            member.init(positions[:1])  # its own checks
        return super().init(positions)


class Cycle(Composition):
    """One step of each kernel in turn: ``Cycle(HMC(latent), IndependenceMetropolis(flow))``.

    Local moves repair what the flow misses, jumps go where local moves do not. The info of a step
    holds each member's own in ``parts`` (``"hmc"``, ``"jump"``; numbered if a name comes twice),
    and in itself the mean acceptance, any divergence, sums of the costs, and as Hamiltonian the
    energy of the new position and the last kinetic one. With ``repeats`` each part is that of all
    turns of a member likewise; its Hamiltonian and trajectory are of the last one.

    Args:
        *kernels: at least one; those without a target get the first one found.
        repeats: turns of the members in one step, >= 1.

    Raises:
        TypeError: if one is not a kernel, or is a ``Mixture`` or ``Cycle``.
        ValueError: if there is no kernel, no target, or two different ones.

    Example:
        >>> from pyro_neuralrg.mcmc import HMC, as_target
        >>> target = as_target(lambda x: 0.5 * x.square().sum(-1), shape=(2,))
        >>> list(Cycle(HMC(target, step_size=0.1), HMC(target, step_size=1.0)).members)
        ['hmc', 'hmc_2']
    """

    name = "cycle"

    def __init__(self, *kernels: Kernel, repeats: int = 1) -> None:
        super().__init__(*kernels)
        self.repeats = check_integer("repeats", repeats, 1)

    def __repr__(self) -> str:
        repeats = f", repeats={self.repeats})" if self.repeats > 1 else ")"
        return super().__repr__().removesuffix(")") + repeats

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        turns: dict[str, list[StepInfo]] = {name: [] for name in self._members}
        kinetic = torch.zeros_like(state.energy)  # of the last momentum
        for name, member in [*self._members.items()] * self.repeats:
            state, info = self._step_of(member, state, generator)
            turns[name].append(info)
            if info.n_steps:
                kinetic = info.hamiltonian - state.energy
        parts = {name: _summed(infos) for name, infos in turns.items()}
        whole = _summed([*parts.values()])
        return state, whole._replace(hamiltonian=state.energy + kinetic, parts=parts)


def _summed(infos: Sequence[StepInfo]) -> StepInfo:
    """The info of several steps as one."""
    trajectory = infos[-1].trajectory
    if trajectory is not None:
        before = sum(info.trajectory.time for info in infos[:-1] if info.trajectory is not None)
        trajectory = trajectory._replace(before=before)
    return infos[-1]._replace(
        trajectory=trajectory,
        acceptance_rate=torch.stack([info.acceptance_rate for info in infos]).mean(0),
        accepted=torch.stack([info.accepted for info in infos]).any(0),
        diverging=torch.stack([info.diverging for info in infos]).any(0),
        n_steps=sum(info.n_steps for info in infos),
        gradient_evaluations=sum(info.gradient_evaluations for info in infos),
    )


class Mixture(Composition):
    """One step of one kernel, chosen at random each time, the same for all chains.

    The info of a step is that of the chosen member, which alone stands in ``parts``.

    Args:
        *kernels: as for :class:`Cycle`.
        probabilities: of each kernel, positive, summing to one; equal ones if None.

    Raises:
        TypeError, ValueError: as for :class:`Cycle`, or naming the probabilities.

    Example:
        >>> from pyro_neuralrg.mcmc import HMC, MALA, as_target
        >>> target = as_target(lambda x: 0.5 * x.square().sum(-1), shape=(2,))
        >>> mixture = Mixture(HMC(target), MALA(target), probabilities=[0.2, 0.8])
        >>> mixture.probabilities
        (0.2, 0.8)
    """

    name = "mixture"

    def __init__(self, *kernels: Kernel, probabilities: Sequence[float] | None = None) -> None:
        super().__init__(*kernels)
        count = len(kernels)
        given: Any = [1 / count] * count if probabilities is None else probabilities
        accepted = f"{count} numbers > 0 that sum to 1"
        numbers = [
            check_number("probabilities", value, accepted, above=0, most=1, given=given)
            for value in (given if isinstance(given, Sequence) else [given])
        ]
        if len(numbers) != count or abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(f"probabilities is {given!r}; accepted: {accepted}")
        self.probabilities = tuple(numbers)

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        device = None if generator is None else generator.device
        weights = torch.tensor(self.probabilities, device=device)
        chosen = processes().first(int(torch.multinomial(weights, 1, generator=generator)))
        name, member = list(self._members.items())[chosen]
        state, info = self._step_of(member, state, generator)
        return state, info._replace(parts={name: info})
