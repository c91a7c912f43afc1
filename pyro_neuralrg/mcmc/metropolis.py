# SPDX-License-Identifier: Apache-2.0
"""Metropolis' rule, and the kernels that need no more: random walks, and jumps drawn by a flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type
from pyro_neuralrg.bases import base_of
from pyro_neuralrg.distributions.flow import check_flow, flow_dtype_and_device
from pyro_neuralrg.mcmc.kernel import (
    ChainState,
    Kernel,
    LocalKernel,
    Step,
    StepInfo,
    normals_like,
    uniforms_like,
)
from pyro_neuralrg.mcmc.model_target import TargetLike
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.base import forward_and_ladj, inverse_and_ladj
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale


def metropolis(
    state: ChainState, proposal: ChainState, log_ratio: Tensor, generator: torch.Generator | None
) -> Step:
    """Accept or reject by ln of the Metropolis-Hastings ratio; reject where it is not finite."""
    probability, accepted, failed = _accept(log_ratio, uniforms_like(log_ratio, generator))
    new = chosen_chains(accepted, proposal, state)
    return new, StepInfo(probability, accepted, failed, new.energy, 0, 1)


def _accept(log_ratio: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Acceptance probability, whether accepted, and whether the ratio is not finite."""
    finite = torch.isfinite(log_ratio)
    probability = torch.where(finite, log_ratio.clamp(max=0.0).exp(), torch.zeros_like(log_ratio))
    return probability, uniform < probability, ~finite


def chosen_chains(chosen: Tensor, one: ChainState, other: ChainState) -> ChainState:
    """The state of each chain: of ``one`` where chosen, else of the other."""
    rows, gradient = chosen.unsqueeze(-1), None
    if one.gradient is not None and other.gradient is not None:
        gradient = torch.where(rows, one.gradient, other.gradient)
    return other._replace(
        position=torch.where(rows, one.position, other.position),
        energy=torch.where(chosen, one.energy, other.energy),
        gradient=gradient,
        log_q=None,
    )


class RandomWalkMetropolis(LocalKernel):
    """Metropolis with normal proposals around where the chain is.

    The proposal is ``x + step_size * N(0, inverse_mass)``. One energy counts as one gradient
    evaluation, so that tables compare like with like. Warm-up aims at an acceptance of 0.234, the
    optimum in many dimensions.

    Args:
        target, shape, flow: as for :class:`~pyro_neuralrg.mcmc.HMC`.
        step_size: width of the proposals, > 0.
        inverse_mass: their covariance up to the step size, shape ``(dim,)`` or ``(dim, dim)``.

    References:
        Roberts, Gelman, Gilks, "Weak convergence and optimal scaling of random walk Metropolis
        algorithms" (1997).

    Example:
        >>> import torch
        >>> walk = RandomWalkMetropolis(lambda x: 0.5 * x.square().sum(-1), shape=(3,))
        >>> state, info = walk.step(walk.init(torch.zeros(5, 3)))
        >>> info.n_steps, info.gradient_evaluations
        (0, 1)
    """

    name = "random_walk"
    target_acceptance = 0.234

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        here = state.position
        move = self.mass(here).displacement(normals_like(here, generator))
        proposal, is_sound = self.evaluated(state, here + self.step_size * move)
        log_ratio = torch.where(is_sound, state.energy - proposal.energy, -torch.inf)
        return metropolis(state, proposal, log_ratio, generator)


PROPOSALS_AT_ONCE = 512  # of jumps of few chains


class IndependenceMetropolis(Kernel):
    r"""Metropolis-Hastings with proposals drawn from the flow, independent of where the chain is.

    With log-weights :math:`\ln w = \ln \pi(x) - \ln q(x)`, in float64, a proposal is accepted with
    probability :math:`\min(1, w' / w)`. In the latent space of the same flow the proposals are
    draws of its base; in physical space they are ``x = flow(z)``, and the density of a position
    that another kernel has moved costs one inverse pass. A jump counts as one gradient evaluation.

    Args:
        flow: the proposal, ``x = flow(z)``, exactly invertible.
        target: as for :class:`HMC`; None in a :class:`Cycle`, which supplies its own.
        shape: lattice shape of a plain energy.
        num_jumps: jumps of a step, one after the other, whose proposals are evaluated at once.

    Raises:
        ValueError: if the flow's shape is not the target's, or the target lives in the latent space
            of another flow.

    References:
        Albergo, Kanwar, Shanahan, "Flow-based generative models for Markov chain Monte Carlo in
        lattice field theory", PRD 100, 034515 (2019).

    Example:
        >>> import torch
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> flow = hierarchical_flow((2, 2))
        >>> energy = lambda x: 0.5 * x.square().sum((-1, -2))
        >>> jump = IndependenceMetropolis(flow, energy, shape=(2, 2))
        >>> state, info = jump.step(jump.init(torch.zeros(5, 4)))
        >>> info.gradient_evaluations
        1
    """

    name = "jump"

    def __init__(
        self,
        flow: TransformModule,
        target: TargetLike | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        num_jumps: int = 1,
    ) -> None:
        check_flow(flow)
        super().__init__(target, shape=shape)
        self.flow = flow
        self.num_jumps = check_integer("num_jumps", num_jumps, 1)

    def init(self, positions: Tensor) -> ChainState:
        target = self.target
        if target.flow not in (None, self.flow):
            raise ValueError("flow is not that of the latent space that target lives in")
        shape = tuple(getattr(self.flow, "shape", target.event_shape))
        if shape != target.event_shape:
            raise ValueError(f"flow has shape {shape}; accepted: the target's {target.event_shape}")
        return super().init(positions)

    def steps_at_once(self, chains: int) -> int:
        """As many as make a batch of proposals that is worth its while."""
        return max(1, PROPOSALS_AT_ONCE // (self.num_jumps * chains))

    def step(self, state: ChainState, generator: torch.Generator | None = None) -> Step:
        return self.steps(state, generator)[0]

    def steps(
        self, state: ChainState, generator: torch.Generator | None = None, count: int = 1
    ) -> list[Step]:
        """So many steps; their proposals, which no chain matters to, are evaluated at once.

        Random numbers are drawn step by step: the draws do not depend on how many go together.
        """
        target, jumps = self.target, self.num_jumps * len(state.position)
        latents, uniforms = [], []
        with torch.no_grad():
            for _ in range(count):
                latents.append(self._joined(self._fresh(jumps, generator), state.position))
                turns = range(self.num_jumps)
                uniforms.append([uniforms_like(state.energy, generator) for _ in turns])
            positions, log_q = self._proposals(torch.cat(latents))
            if state.log_q is None:
                state = state._replace(log_q=target.by_batches(self._log_q, state.position))
        energy, found = target.energy(positions), []
        parts = (whole.split(jumps) for whole in (positions, log_q, energy))
        for proposals, its_uniforms in zip(zip(*parts, strict=True), uniforms, strict=True):
            found.append(self._jump(state, proposals, its_uniforms))
            state = found[-1][0]
        return found

    def _jump(
        self, state: ChainState, proposals: tuple[Tensor, ...], uniforms: list[Tensor]
    ) -> Step:
        """The jumps of a step, by positions, ln q and energies ``(jumps * chains, ...)``."""
        positions, log_q, energy = proposals
        target, chains, like, here = self.target, len(state.position), state.position, state.log_q
        assert here is not None  # steps() has seen to it
        log_weight = -(state.energy + here)
        chosen = torch.full((chains,), -1, device=like.device)
        rates, failed = [], torch.zeros(chains, dtype=torch.bool, device=like.device)
        log_weights = -(energy + log_q).view(self.num_jumps, chains)
        for number, (proposed, uniform) in enumerate(zip(log_weights, uniforms, strict=True)):
            rate, accepted, _ = _accept(proposed - log_weight, uniform)
            failed |= proposed.isnan() | (proposed == math.inf)  # no weight is no failure
            log_weight = torch.where(accepted, proposed, log_weight)
            chosen = torch.where(accepted, number, chosen)
            rates.append(rate)
        rows = chosen.clamp(min=0) * chains + torch.arange(chains, device=like.device)
        moved, gradient = chosen >= 0, state.gradient
        if gradient is not None:
            # jumps together are reversible, and so they are without points of no gradient
            _, found = target.energy_and_grad(
                torch.where(moved.unsqueeze(-1), positions[rows], like)
            )
            sound = found.isfinite().all(-1)
            gradient = torch.where((moved & sound).unsqueeze(-1), found, gradient)
            failed |= moved & ~sound
            moved &= sound
        new = state._replace(
            position=torch.where(moved.unsqueeze(-1), positions[rows], like),
            energy=torch.where(moved, energy[rows], state.energy),
            gradient=gradient,
            log_q=torch.where(moved, log_q[rows], here),
        )
        rate = torch.stack(rates).mean(0)
        return new, StepInfo(rate, moved, failed, new.energy, 0, self.num_jumps)

    def _fresh(self, number: int, generator: torch.Generator | None) -> Tensor:
        """Draws ``(number, dim)`` of the base."""
        target, shape = self.target, self.target.event_shape
        if target.flow is not None:
            return target.from_base(number, generator)
        dtype = flow_dtype_and_device(self.flow)[0]
        options: Any = {"generator": generator, "dtype": dtype, "device": target.device}
        return base_of(self.flow).sample((number, *shape), len(shape), **options).flatten(1)

    def _proposals(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of these latents, and ln of their density."""
        target, base, event_dim = self.target, base_of(self.flow), len(self.target.event_shape)
        if target.flow is not None:
            return z, target.by_batches(self._log_q, z)

        def generate(z: Tensor) -> tuple[Tensor, Tensor]:
            x, ladj = forward_and_ladj(self.flow, z, event_dim)
            log_q = base.log_prob(z.double(), event_dim) - ladj.double()
            return x.flatten(1).to(target.dtype), log_q

        return target.by_batches(generate, z.reshape(-1, *target.event_shape))

    def _joined(self, fresh: Tensor, like: Tensor) -> Tensor:
        """Latents ``(jumps * chains, dim)`` of the proposals, from fresh draws of the base."""
        return fresh

    def _log_q(self, position: Tensor) -> Tensor:
        """ln of the density of positions as proposals."""
        event_dim = len(self.target.event_shape)
        value = position.reshape(-1, *self.target.event_shape)
        if self.target.flow is not None:
            return self.target.base.log_prob(value.double(), event_dim)
        z, ladj = self._latents_and_ladj(value)
        return base_of(self.flow).log_prob(z.double(), event_dim) - ladj.double()

    def _latents_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(flow_dtype_and_device(self.flow)[0])
        return inverse_and_ladj(self.flow, x, len(self.target.event_shape))


class ConditionalMetropolis(IndependenceMetropolis):
    r"""Jumps that keep the flow's field of one scale: only the latents of finer scales are drawn.

    A proposal x' is a draw of :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.conditional` at the
    chain's own coarse field :math:`u_c`, accepted with probability :math:`\min(1, w' / w)` of the
    log-weights :math:`\ln w = \ln\pi(x) - \ln q(x | u_c)`. As :math:`q(u_c)` is the same for
    both, these are the weights of a whole jump. The coarse field needs moves of another kernel of a
    :class:`Cycle`. In physical space a step costs one more inverse pass.

    Args:
        flow: a HierarchicalFlow, the proposal.
        target, shape, num_jumps: as for :class:`IndependenceMetropolis`.
        scale: k of the field that stays, from 1 to the number of decimators.

    Example:
        >>> import torch
        >>> from pyro_neuralrg.analysis import pyramid
        >>> from pyro_neuralrg.transforms import hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> energy = lambda x: 0.5 * x.square().sum((-1, -2))
        >>> kernel = ConditionalMetropolis(flow, energy, shape=(4, 4), scale=1)
        >>> state, _ = kernel.step(kernel.init(torch.zeros(5, 16)))
        >>> pyramid(flow, state.position.reshape(5, 4, 4))[1].abs().max() < 1e-5
        tensor(True)
    """

    name = "detail"

    def __init__(
        self,
        flow: HierarchicalFlow,
        target: TargetLike | None = None,
        *,
        scale: int,
        shape: tuple[int, ...] | None = None,
        num_jumps: int = 1,
    ) -> None:
        check_type("flow", flow, HierarchicalFlow, "a HierarchicalFlow")
        self.scale = check_integer("scale", scale, 1, number_of_scales(flow.circuit))
        super().__init__(flow, target, shape=shape, num_jumps=num_jumps)
        self._coarse = torch.zeros(math.prod(flow.shape), dtype=torch.bool)
        self._coarse[sites_of_scale(flow.circuit, scale).flatten()] = True

    def steps_at_once(self, chains: int) -> int:
        """One: its proposals depend on the chains."""
        return 1

    def _joined(self, fresh: Tensor, like: Tensor) -> Tensor:
        """See :class:`IndependenceMetropolis`; the coarse latents are those of the chains."""
        target = self.target
        if target.flow is None:
            x = like.reshape(-1, *target.event_shape)
            like = target.by_batches(lambda part: self._latents_and_ladj(part)[0], x).flatten(1)
        return torch.where(self._coarse.to(like.device), like.repeat(self.num_jumps, 1), fresh)
