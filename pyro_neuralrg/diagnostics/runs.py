# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of a finished run, ours or Pyro's, in one form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from pyro_neuralrg.mcmc import EnergyTarget, Target, VectorizedMCMC, as_target

__all__ = ["Run", "read_run"]

#: Configurations that are mapped at once.
BATCH = 1024


class Program(NamedTuple):
    """A Pyro model and the arguments of its run."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Run(NamedTuple):
    """What is known of a run: tensors of shape ``(chains, draws, ...)``.

    Attributes:
        physical: the model's own sites; empty if no draws were kept.
        latent: latent sites of flows.
        unconstrained: unconstrained values of constrained sites.
        streamed: observables that were computed while sampling.
        stats: per draw.
        warmup_stats: per step of the warm-up, shape ``(chains, steps)``; empty if unknown.
        attrs: of the run as a whole.
        target: what was sampled, if known.
        program: the Pyro model, if it was one.
    """

    physical: dict[str, Tensor]
    latent: dict[str, Tensor]
    unconstrained: dict[str, Tensor]
    streamed: dict[str, Tensor]
    stats: dict[str, Tensor]
    warmup_stats: dict[str, Tensor]
    attrs: dict[str, Any]
    target: Target | None
    program: Program | None

    def values_of_sites(self) -> dict[str, Tensor]:
        """Draws of every sampled site of the model, as the model sees them; z for flows."""
        known = self.physical | self.latent
        sites = {} if self.target is None else self.target.sites
        return {name: known[name] for name in sites if name in known}


def read_run(mcmc: VectorizedMCMC | MCMC) -> Run:
    """Read a run of :class:`VectorizedMCMC` or of Pyro's own ``MCMC``.

    Raises:
        RuntimeError: if ``mcmc`` has not been run.
        TypeError: if ``mcmc`` is neither.
    """
    if isinstance(mcmc, VectorizedMCMC):
        return _of_vectorized(mcmc)
    if isinstance(mcmc, MCMC):
        return _of_pyro(mcmc)
    raise TypeError(
        f"mcmc is a {type(mcmc).__name__}; accepted: a VectorizedMCMC or pyro.infer.MCMC"
    )


def _of_vectorized(mcmc: VectorizedMCMC) -> Run:
    samples = mcmc.get_samples(group_by_chain=True)
    target = mcmc.kernel.target
    latent: dict[str, Tensor] = {}
    unconstrained: dict[str, Tensor] = {}
    if samples:  # none were kept of a run that only streamed its observables
        latent = {name: samples.pop(name) for name in list(target.latent(mcmc.positions))}
        unconstrained = _unconstrained(target, mcmc.positions, samples)
    attrs = {
        "sampler": mcmc.kernel.name,
        "seed": mcmc.seed,
        "warmup_steps": mcmc.warmup_steps,
        "gradient_evaluations_warmup": mcmc.gradient_evaluations.warmup,
        "gradient_evaluations": mcmc.gradient_evaluations.draws,
        "seconds_warmup": mcmc.seconds.warmup,
        "seconds": mcmc.seconds.draws,
    }
    return Run(
        physical=samples,
        latent=latent,
        unconstrained=unconstrained,
        streamed=dict(getattr(mcmc, "observables", None) or {}),
        stats=mcmc.sample_stats,
        warmup_stats=dict(getattr(mcmc, "warmup_stats", None) or {}),
        attrs=attrs,
        target=target,
        program=_program(target),
    )


def _of_pyro(mcmc: MCMC) -> Run:
    if mcmc._samples is None:
        raise RuntimeError("there are no draws; call run() first")
    samples = mcmc.get_samples(group_by_chain=True)
    first = next(iter(samples.values()))
    stats = {"diverging": torch.zeros(first.shape[:2], dtype=torch.bool)}
    kept: Any = mcmc._diagnostics
    for chain, diagnostics in enumerate(kept):
        for draw in (diagnostics or {}).get("divergences", []):
            stats["diverging"][chain, draw] = True
    known = Run(samples, {}, {}, {}, stats, {}, _pyro_attrs(mcmc), None, None)
    model = mcmc.kernel.model
    target = as_target(mcmc.kernel.potential_fn if model is None else model)
    if model is None and not isinstance(target, EnergyTarget):
        return known  # a bare potential_fn: nothing more is known
    if not isinstance(target, EnergyTarget):
        args: Any = mcmc._args
        kwargs: Any = mcmc._kwargs
        with warnings.catch_warnings():  # of how slowly our kernels would sample it
            warnings.filterwarnings("ignore", "the model cannot be vectorised", UserWarning)
            target = target.setup(*args, **kwargs)
    positions = target.from_constrained(samples)
    flat = positions.flatten(0, 1)
    lp = torch.cat([-target.energy(part) for part in flat.split(BATCH)])
    physical = {
        name: value.unflatten(0, positions.shape[:2])
        for name, value in target.physical(flat).items()
    }
    return known._replace(
        physical=physical,
        latent=target.latent(positions),
        unconstrained=_unconstrained(target, positions, physical),
        stats={"lp": lp.unflatten(0, positions.shape[:2])} | stats,
        target=target,
        program=_program(target),
    )


def _pyro_attrs(mcmc: MCMC) -> dict[str, Any]:
    """What Pyro knows of a run as a whole: its kernels keep no acceptance of single draws."""
    kernel: Any = mcmc.kernel
    attrs: dict[str, Any] = {"sampler": type(kernel).__name__, "warmup_steps": mcmc.warmup_steps}
    kept: Any = mcmc._diagnostics
    if all("acceptance rate" in (diagnostics or {}) for diagnostics in kept):
        attrs["acceptance_rate"] = [float(known["acceptance rate"]) for known in kept]
    if mcmc.num_chains == 1 and isinstance(kernel, HMC):  # several ran as copies, now gone
        attrs["step_size"] = float(kernel.step_size)
        if not isinstance(kernel, NUTS):
            attrs["n_steps"] = int(kernel.num_steps)
    return attrs


def _unconstrained(
    target: Target, positions: Tensor, physical: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of the sites, other than latent ones of flows, whose unconstrained values are others."""
    values = target.unpack(positions)
    return {
        name: value
        for name, value in values.items()
        if name not in target.flow_sites
        and not (value.shape == physical[name].shape and torch.allclose(value, physical[name]))
    }


def _program(target: Target) -> Program | None:
    model = getattr(target, "model", None)
    if model is None:
        return None
    known: Any = target
    return Program(model, known._args, known._kwargs)
