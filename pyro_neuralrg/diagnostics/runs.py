# SPDX-License-Identifier: Apache-2.0
"""Draws and statistics of a finished run, ours or Pyro's, in one form.

All that is read of private parts of Pyro's ``MCMC`` is read here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from pyro_neuralrg.arguments import a_kind
from pyro_neuralrg.diagnostics.model_groups import BATCH, ModelGroups, NamedTensors
from pyro_neuralrg.free_energy import Annealing
from pyro_neuralrg.free_energy.tempered import systematic
from pyro_neuralrg.mcmc import EnergyTarget, ModelTarget, Target, VectorizedMCMC, as_target
from pyro_neuralrg.statistics import LogWeights


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tensors of shape ``(chains, draws, ...)`` by name, and what is known of the whole run."""

    physical: NamedTensors  # the model's own sites; empty if no draws were kept
    stats: NamedTensors  # of each draw
    attrs: dict[str, Any]  # of the run as a whole
    latent: NamedTensors = field(default_factory=dict)  # latent sites of flows
    unconstrained: NamedTensors = field(default_factory=dict)  # of constrained sites
    streamed: NamedTensors = field(default_factory=dict)  # observables computed while sampling
    warmup_stats: NamedTensors = field(default_factory=dict)  # of each step; empty if unknown
    target: Target | None = None  # the density that was sampled, if known
    weights: LogWeights | None = None  # of the draws before they were resampled

    def model_groups(self) -> ModelGroups:
        """What the Pyro model makes of the draws; empty groups if it was no run of one."""
        target, draws = self.target, self.physical | self.latent
        if not isinstance(target, ModelTarget):
            return ModelGroups(None, (), {}, {})
        return ModelGroups(target._without_reparams, target._args, target._kwargs, draws)


def read_run(mcmc: Any) -> Run:
    """Read a run of :class:`VectorizedMCMC` or of Pyro's own ``MCMC``, or what sample() gives."""
    drawn = getattr(mcmc, "run", None)  # by sample()
    if isinstance(drawn, Annealing):
        return _read_weighted(mcmc, drawn)
    mcmc = drawn if isinstance(drawn, VectorizedMCMC) else mcmc
    if isinstance(mcmc, VectorizedMCMC):
        return _read_vectorized(mcmc)
    if isinstance(mcmc, MCMC):
        return _read_pyro(mcmc)
    raise TypeError(
        f"mcmc is {a_kind(mcmc)}; accepted: a VectorizedMCMC or pyro.infer.MCMC, or Samples"
    )


def _read_weighted(samples: Any, run: Annealing) -> Run:
    """One chain of as many draws, resampled by their weights and in random order."""
    generator = torch.Generator().manual_seed(0)
    chosen = systematic(run.log_weights.view(1, -1), generator)[0]
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]

    def resampled(draws: Mapping[str, Tensor]) -> NamedTensors:
        return {name: x[chosen.to(x.device)].unsqueeze(0) for name, x in draws.items()}

    return Run(
        physical=resampled(run.sites),
        streamed=resampled(samples.observables),
        stats={},
        attrs={"sampler": samples.method, "resampled_by_weight": 1},
        target=samples.target,
        weights=LogWeights(run.log_weights, copies=any(run.resampled)),
    )


def _read_vectorized(mcmc: VectorizedMCMC) -> Run:
    samples = mcmc.get_samples(group_by_chain=True)
    target = mcmc.kernel.target
    attrs = {
        "sampler": mcmc.kernel.name,
        "seed": mcmc.seed,
        "warmup_steps": mcmc.warmup_steps,
        "gradient_evaluations_warmup": mcmc.gradient_evaluations.warmup,
        "gradient_evaluations": mcmc.gradient_evaluations.draws,
        "seconds_warmup": mcmc.seconds.warmup,
        "seconds": mcmc.seconds.draws,
    }
    if mcmc.kernel.is_biased:
        attrs["biased"] = 1  # files know no booleans
    return Run(
        # none were kept of a run that only streamed its observables
        **(_sites(target, mcmc.positions, samples) if samples else {"physical": {}}),
        streamed=mcmc.observables,
        stats=mcmc.sample_stats,
        warmup_stats=mcmc.warmup_stats,
        attrs=attrs,
        target=target,
    )


def _read_pyro(mcmc: MCMC) -> Run:
    if mcmc._samples is None:
        raise RuntimeError("there are no draws; call run() first")
    samples = mcmc.get_samples(group_by_chain=True)
    batch = next(iter(samples.values())).shape[:2]
    diverging = torch.zeros(batch, dtype=torch.bool)
    kept: Any = [known or {} for known in mcmc._diagnostics]  # of each chain
    for chain, known in enumerate(kept):
        diverging[chain, known.get("divergences", [])] = True
    attrs, target = _pyro_attrs(mcmc, kept), _pyro_target(mcmc)
    if target is None:
        return Run(physical=samples, stats={"diverging": diverging}, attrs=attrs)
    positions = target.from_constrained(samples)
    flat = positions.flatten(0, 1)
    lp = -target.in_batches(BATCH).energy(flat).unflatten(0, batch)
    found = target.physical(flat) | target.computed(flat)
    physical = {name: x.unflatten(0, batch) for name, x in found.items()}
    sites, stats = _sites(target, positions, physical), {"lp": lp, "diverging": diverging}
    return Run(**sites, stats=stats, attrs=attrs, target=target)


def _pyro_target(mcmc: MCMC) -> Target | None:
    """Target of Pyro's kernel; None of a bare potential_fn, of which nothing more is known."""
    model: Any = mcmc.kernel.model
    target = as_target(mcmc.kernel.potential_fn if model is None else model)
    if model is None or isinstance(target, EnergyTarget):
        return target if isinstance(target, EnergyTarget) else None
    args: Any = mcmc._args
    kwargs: Any = mcmc._kwargs
    with warnings.catch_warnings():  # of how slowly our kernels would sample it
        warnings.filterwarnings("ignore", "the model cannot be vectorised", UserWarning)
        return target.setup(*args, **kwargs)


def _pyro_attrs(mcmc: MCMC, kept: Any) -> dict[str, Any]:
    """Acceptance of each chain, and settings that all draws share: Pyro keeps no more."""
    kernel: Any = mcmc.kernel
    attrs: dict[str, Any] = {"sampler": type(kernel).__name__, "warmup_steps": mcmc.warmup_steps}
    if all("acceptance rate" in known for known in kept):
        attrs["acceptance_rate"] = [float(known["acceptance rate"]) for known in kept]
    if mcmc.num_chains == 1 and isinstance(kernel, HMC):  # several ran as copies, now gone
        attrs["step_size"] = float(kernel.step_size)
        if not isinstance(kernel, NUTS):
            attrs["n_steps"] = int(kernel.num_steps)
    return attrs


def _sites(target: Target, positions: Tensor, samples: NamedTensors) -> dict[str, Any]:
    """Physical, latent and unconstrained values of positions; samples hold the physical ones."""
    latent = target.latent(positions)
    physical = {name: value for name, value in samples.items() if name not in latent}
    unconstrained = {
        name: value
        for name, value in target.unpack(positions).items()
        if name not in latent
        and not (value.shape == physical[name].shape and torch.allclose(value, physical[name]))
    }
    return {"physical": physical, "latent": latent, "unconstrained": unconstrained}
