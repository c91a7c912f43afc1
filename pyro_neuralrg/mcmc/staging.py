# SPDX-License-Identifier: Apache-2.0
"""Staging: Metropolis moves of a ring polymer that draw a stretch of it as a free particle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from pyro_neuralrg.arguments import a_kind, check_integer
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, Step
from pyro_neuralrg.mcmc.metropolis import metropolis
from pyro_neuralrg.mcmc.model_target import TargetLike
from pyro_neuralrg.mcmc.target import Target
from pyro_neuralrg.potentials.exact.path_integral import Ring
from pyro_neuralrg.potentials.ring_polymer import RingPolymer


class StagingMetropolis(Kernel):
    r"""Metropolis with exact bridges of the free particle between two beads as proposals.

    A stretch of consecutive beads is drawn anew, given those at its ends, from the springs alone,
    :math:`x_i \sim N\big(\frac{(n - i) x_{i-1} + x_n}{n - i + 1}, \frac{1}{a}\frac{n - i}{n - i +
    1}\big)` with :math:`a = m P / \beta`, and accepted by the change of the potential. Where it
    begins is drawn for each chain. The classical baseline of path integrals; an energy counts as
    one gradient evaluation.

    Args:
        target: a :class:`~pyro_neuralrg.potentials.RingPolymer` in physical space; None in a
            :class:`Cycle`, which supplies it.
        length: beads of a stretch, 1 to P - 1; None: a quarter of the ring.

    Raises:
        TypeError, ValueError: if the target is no ring polymer of two beads or more.

    References:
        M. Sprik, M. L. Klein, D. Chandler, Phys. Rev. B 31, 4234 (1985).

    Example:
        >>> from pyro_neuralrg.potentials import DoubleWell, RingPolymer
        >>> kernel = StagingMetropolis(RingPolymer(8, DoubleWell(), beta=2.0), length=3)
        >>> state, info = kernel.step(kernel.init(torch.zeros(5, 8)))
        >>> int((state.position != 0).sum(-1).max())
        3
    """

    name = "staging"

    def __init__(self, target: TargetLike | None = None, *, length: int | None = None) -> None:
        super().__init__(target)
        self.length = None if length is None else check_integer("length", length, 1)
        if self._target is not None:
            self._check(self._target)

    def on(self, target: Target) -> Self:
        self._check(target)
        return super().on(target)

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        potential, length = self._check(self.target)
        x = state.position.reshape(len(state.position), potential.ring.beads, -1)
        moved = self._with_bridge(x, potential.ring, length, generator)
        proposal, is_sound = self.evaluated(state, moved.reshape(state.position.shape))
        new, old = (fields.reshape(-1, *potential.shape) for fields in (moved, x))
        springs = potential.springs(new) - potential.springs(old)
        gained = state.energy - proposal.energy + springs.double()
        log_ratio = torch.where(is_sound, gained, -math.inf)
        return metropolis(state, proposal, log_ratio, generator)

    @staticmethod
    def _with_bridge(
        x: Tensor, ring: Ring, length: int, generator: torch.Generator | None
    ) -> Tensor:
        """Rings ``(chains, beads, dimensions)`` with a stretch each drawn from the springs."""
        chains, beads, _ = x.shape
        options: Any = {"generator": generator, "device": x.device}
        begin = torch.randint(beads, (chains, 1), **options)
        noise = torch.randn(chains, length, x.shape[-1], dtype=x.dtype, **options)
        places = (begin + torch.arange(length + 2, device=x.device)) % beads
        rows = places.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        here, end = x.gather(1, rows).unbind(1)[:: length + 1]
        drawn = []
        for step in range(length):
            left = length + 1 - step  # bonds to the end
            deviation = math.sqrt((left - 1) / (left * ring.stiffness))
            here = ((left - 1) * here + end) / left + deviation * noise[:, step]
            drawn.append(here)
        return x.scatter(1, rows[:, 1:-1], torch.stack(drawn, 1))

    def _check(self, target: Target) -> tuple[RingPolymer, int]:
        """The ring polymer and the beads of a stretch."""
        potential = target.lattice_potential
        if not isinstance(potential, RingPolymer) or target.flow is not None:
            seen = a_kind(potential if target.flow is None else target)
            raise TypeError(f"target is {seen}; accepted: a RingPolymer in physical space")
        if potential.twisted:
            raise ValueError("target is twisted; accepted: a ring with twisted=False")
        most = potential.ring.beads - 1
        if most < 1:
            raise ValueError("target is a ring of one bead; accepted: of two or more")
        return potential, check_integer("length", self.length or max(1, most // 4), 1, most)
