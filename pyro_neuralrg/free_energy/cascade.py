# SPDX-License-Identifier: Apache-2.0
"""Fields of a large lattice from those of smaller ones: coarse first, then refined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_type, check_values
from pyro_neuralrg.free_energy.annealing import (
    NUM_GROUPS,
    Annealing,
    AnnealingRun,
    AnnealingSettings,
)
from pyro_neuralrg.free_energy.tempered import RefinedTarget, TemperedTarget
from pyro_neuralrg.mcmc import LatentTarget
from pyro_neuralrg.mcmc.target import frozen
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.runtime.console import Progress
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale


@dataclass(frozen=True, repr=False)
class Cascade:
    """Result of :func:`cascade`.

    Attributes:
        levels: for each lattice, the smallest first, the :class:`Annealing` that ends there: its
            weighted fields, -ln Z with its error, and what it took; without the first lattice if
            its fields were given.
    """

    levels: tuple[Annealing, ...]
    _first: int  # sites of the lattice before the first level, 0 without

    def __repr__(self) -> str:
        return f"Cascade({self.levels[-1]!r}, {self.work:.0f} evaluations per field)"

    @property
    def work(self) -> float:
        """Gradient evaluations per site and field of the last lattice.

        Those of smaller lattices count by their sites, up to the last beta of each; with each
        evaluation of a level that begins at a smaller lattice goes one of that.
        """
        volumes = [level.fields[0].numel() for level in self.levels]
        number, total = len(self.levels[-1].log_weights), 0.0
        for level, volume, coarse in zip(
            self.levels, volumes, (self._first, *volumes), strict=False
        ):
            total += level.gradient_evaluations * (volume + coarse)
        return total / number / volumes[-1]


def cascade(
    targets: Sequence[Any],
    flows: Sequence[HierarchicalFlow],
    *,
    reference: Tensor | None = None,
    num_particles: int = 1024,
    num_steps: int = 10,
    conditional_ess: float = 0.97,
    resample_below: float = 0.5,
    batch_size: int = 256,
    seed: int | None = None,
    progress: bool = True,
) -> Cascade:
    r"""Sample lattices of sides L, 2 L, 4 L, ... one from the other, and estimate each -ln Z.

    Each larger flow begins at the fields that the smaller lattice has given: these are mapped to
    latents :math:`z_c` by the smaller flow; the larger one generates the coarse field :math:`u_c`
    of its scale 1 from them, and a fine field by ``flow.conditional(u_c, 1)``. These proposals have
    the density

    .. math:: \pi_L(g_L(z_c))\, |\det \partial g_L / \partial z_c|\; N(z_f; 0, 1)

    of the larger flow's latents :math:`(z_c, z_f)`, up to :math:`Z_L`: not that of its target, as
    the smaller theory is not the law of the larger one's coarse field. Weights correct both that
    and the fine part: the particles are carried to the larger target as by :func:`anneal`, in steps
    of the logarithm of the density, resampled where few are effective, and moved by HMC and jumps.
    The weighted fields of every level have the law of its target for any flows: means over them are
    consistent, and the mean weight is an estimate of Z as of :func:`anneal`.

    What the smaller lattice costs counts for little, and what it has corrected, such as the weights
    of two phases, is brought along. How much that is depends on the flows: of the dual Ising model
    at Tc, 16 and 32 sites long and trained by growth, the log-weights of both correlate by 0.2 to
    0.3 only, and those that are left have a standard deviation of 1.4 nats as without the smaller
    lattice. ``betas`` of each level show it.

    Args:
        targets: LatticePotentials or batched energies, the smallest lattice first.
        flows: one of each target's shape, such as a trained one and those that ``grow`` made of it;
            the field of scale 1 of each has the shape of the one before.
        reference: fields of the first target, ``(n,) + shape``, independent, instead of an
            annealing of its flow; energies are then differences to its -ln Z, and ``num_particles``
            is n.
        num_particles: at every level; the others are as for :func:`anneal`.
        num_steps: mean number of leapfrog steps of an HMC move.
        conditional_ess: in (0, 1), effective fraction that each next beta leaves.
        resample_below: in [0, 1], effective fraction of a group below which it is resampled.
        batch_size: particles evaluated at a time.
        seed: of all random numbers; None takes one from torch's global state.
        progress: show a progress bar.

    Warns:
        UserWarning: if the final weights cannot be trusted.

    References:
        Li & Wang, PRL 121, 260601 (2018); Del Moral, Doucet, Jasra, JRSS B 68, 411 (2006).

    Example:
        >>> from pyro_neuralrg import FreeField
        >>> targets = FreeField((2, 2)), FreeField((4, 4))
        >>> flows = [target.flow() for target in targets]
        >>> found = cascade(targets, flows, num_particles=32, seed=0, progress=False)
        >>> [level.fields.shape for level in found.levels]
        [torch.Size([32, 2, 2]), torch.Size([32, 4, 4])]
    """
    latents = _latent_targets(targets, flows)
    batch_size = check_integer("batch_size", batch_size, 1)
    if reference is not None:
        num_particles = _check_reference(reference, latents)
    settings = AnnealingSettings.checked(num_particles, num_steps, conditional_ess, resample_below)
    generator = generator_of(seed, latents[0].device)
    runs: list[AnnealingRun] = []
    modules = [module for latent in latents for module in latent.modules()]
    with frozen(modules), Progress(100 * len(latents), "cascade", progress) as bar:
        if reference is None:
            start = TemperedTarget(latents[0], 0.0, batch_size)
            runs.append(AnnealingRun(start, settings, generator))
            _go(runs[0], bar, 0)
            positions, log_weights = runs[0].particles.positions, runs[0].log_weights
        else:
            positions = latents[0].pack({"x": reference}, num_particles)
            log_weights = positions.new_zeros(num_particles, dtype=torch.float64)
        for number in range(1, len(latents)):
            kept = sites_of_scale(flows[number].circuit, 1).flatten().to(positions.device)
            tempered = RefinedTarget(latents[number], 0.0, batch_size, latents[number - 1], kept)
            refined = tempered.refined(positions, generator)
            runs.append(AnnealingRun(tempered, settings, generator, refined, log_weights))
            _go(runs[-1], bar, number)
            positions, log_weights = runs[-1].particles.positions, runs[-1].log_weights
        first = 0 if reference is None else latents[0].dim
        found = Cascade(tuple(run.result() for run in runs), first)
    copies = any(any(level.resampled) for level in found.levels)
    LogWeights(found.levels[-1].log_weights, copies=copies).warn_if_poor("annealed")
    return found


def _go(run: AnnealingRun, bar: Progress, level: int) -> None:
    """Carry the particles to the target of a level."""
    run.go(None, lambda: bar.step(run.figures, done=int(100 * (level + run.beta))))


def _check_reference(reference: Tensor, latents: Sequence[LatentTarget]) -> int:
    """The number of reference fields."""
    lattice = latents[0].shape
    shape = check_values("reference", reference, lattice).shape
    if len(shape) != 1 + len(lattice) or len(latents) < 2:
        raise ValueError(
            f"reference has shape {tuple(shape)} with {len(latents)} targets; accepted: (n,) + "
            f"{lattice}, and two targets or more"
        )
    if (len(reference) % NUM_GROUPS and len(reference) > NUM_GROUPS) or len(reference) < 2:
        raise ValueError(
            f"reference has {len(reference)} fields; accepted: 2 to {NUM_GROUPS}, or a multiple of "
            f"{NUM_GROUPS}"
        )
    return len(reference)


def _latent_targets(targets: Any, flows: Any) -> list[LatentTarget]:
    """The targets in the latent spaces of their flows, if each flow refines the one before."""
    for name, given in (("targets", targets), ("flows", flows)):
        check_type(name, given, Sequence, "a sequence, the smallest lattice first")
    if not flows or len(flows) != len(targets):
        raise ValueError(
            f"flows are {len(flows)} of {len(targets)} targets; accepted: one of each, at least one"
        )
    for flow in flows:
        check_type("flows", flow, HierarchicalFlow, "HierarchicalFlows, one of each target")
    for small, large in itertools.pairwise(flows):
        scales = number_of_scales(large.circuit)
        coarse = tuple(sites_of_scale(large.circuit, 1).shape) if scales else ()
        if coarse != small.shape:
            raise ValueError(
                f"flows has shape {large.shape} after {small.shape}; accepted: shapes whose field "
                f"of scale 1, here {coarse}, has the shape before"
            )
    for target, flow in zip(targets, flows, strict=True):
        shape = getattr(target, "shape", flow.shape)
        if shape != flow.shape:
            raise ValueError(f"targets has shape {shape}; accepted: {flow.shape}, its flow's")
    return [LatentTarget(*pair, pair[1].shape) for pair in zip(targets, flows, strict=True)]
