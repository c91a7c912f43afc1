# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Draws and statistics of a finished run, ours or Pyro's, in one form, and the data of its model.

All that is read of private parts of Pyro's ``MCMC`` is read here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_neuralrg.arguments import a_kind, copied
from pyro_neuralrg.infer.model_sites import aside
from pyro_neuralrg.mcmc import EnergyTarget, ModelTarget, Target, VectorizedMCMC, as_target

BATCH = 1024  # configurations that are mapped at once

NamedTensors = dict[str, Tensor]


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

    def model(self) -> Any:
        """Run the Pyro model with the arguments of the run, if it was one."""
        if isinstance(self.target, ModelTarget):
            return self.target.model(*copied(self.target._args), **copied(self.target._kwargs))
        return None

    def model_values(self) -> NamedTensors:
        """Draws of every sampled site of the model, as the model sees them; z for flows."""
        known = self.physical | self.latent
        return {name: known[name] for name in self.target.sites} if self.target and known else {}


class ModelSites(NamedTuple):
    """Sites of one execution of a model, by name."""

    observed: NamedTensors  # values
    dims: dict[str, list[str]]  # names of all dimensions of sites in plates, and of densities
    unknown: list[str]  # latent sites whose values were not given, such as discrete ones


def read_run(mcmc: VectorizedMCMC | MCMC) -> Run:
    """Read a run of :class:`VectorizedMCMC` or of Pyro's own ``MCMC``."""
    if isinstance(mcmc, VectorizedMCMC):
        return _read_vectorized(mcmc)
    if isinstance(mcmc, MCMC):
        return _read_pyro(mcmc)
    raise TypeError(f"mcmc is {a_kind(mcmc)}; accepted: a VectorizedMCMC or pyro.infer.MCMC")


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


def _sites(target: Target, positions: Tensor, samples: NamedTensors) -> dict[str, NamedTensors]:
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


def read_sites(model: Callable[[], Any], values: Mapping[str, Tensor]) -> ModelSites:
    """Run a model once at values of its latent sites; those of others are drawn from the prior.

    Torch's random numbers are left as they are. Values that are functions of others
    (``pyro.deterministic``, sites replaced by a reparameterisation) and factors are no data.
    """
    with aside(), torch.no_grad():
        nodes = {
            name: node
            for name, node in _nodes_at(model, values).items()
            if node["type"] == "sample" and not site_is_subsample(node)
        }
    new = {name: node for name, node in nodes.items() if name not in values}
    observed = {
        name: node["value"].detach()
        for name, node in new.items()
        if node["is_observed"] and not _is_computed(node["fn"])
    }
    dims = {name: names for name in nodes if (names := _plate_dims(name, nodes))}
    for name in observed.keys() & dims.keys():  # a density sums over the dimensions of an event
        size = observed[name].dim() - nodes[name]["fn"].event_dim
        dims[f"log_likelihood/{name}"] = dims[name][:size]
    unknown = [name for name, node in new.items() if not node["is_observed"]]
    return ModelSites(observed, dims, unknown)


def log_likelihood_of(
    model: Callable[[], Any], values: Mapping[str, Tensor], sites: ModelSites
) -> NamedTensors:
    """Log-density of each datum of each observed site at each draw, nats.

    Vectorised over draws by ``torch.func.vmap``; draw by draw for models that it cannot take. As
    in ArviZ's own conversion, what ``poutine.scale`` and ``poutine.mask`` do is left out.
    """
    observed = list(sites.observed)
    if not observed or not values or sites.unknown:
        raise ValueError(
            f"log_likelihood is True for a run with observed sites {observed}, draws of "
            f"{list(values)} and other latent sites {sites.unknown}; accepted: a run of a Pyro "
            "model with observed sites, and draws of all latent ones"
        )

    def of_one_draw(one: NamedTensors) -> NamedTensors:
        nodes = _nodes_at(model, one)
        return {name: nodes[name]["fn"].log_prob(nodes[name]["value"]) for name in observed}

    batch = next(iter(values.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    with aside(), torch.no_grad():
        try:
            found = torch.func.vmap(of_one_draw, chunk_size=BATCH)(flat)
        except Exception:  # whatever vmap, or the model inside vmap, raises
            draws = zip(*flat.values(), strict=True)
            one_by_one = [of_one_draw(dict(zip(flat, draw, strict=True))) for draw in draws]
            found = {name: torch.stack([one[name] for one in one_by_one]) for name in observed}
    return {name: value.unflatten(0, batch) for name, value in found.items()}


def _nodes_at(model: Callable[[], Any], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Nodes of the model's trace at values of its latent sites."""
    return dict(poutine.trace(poutine.condition(model, dict(values))).get_trace().nodes)


def _is_computed(fn: Any) -> bool:
    """Report whether an observed site is no datum: a function of others, or a factor."""
    while not isinstance(fn, dist.Delta | dist.Unit) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta | dist.Unit)


def _plate_dims(name: str, nodes: Mapping[str, Any]) -> list[str]:
    """Names of all dimensions of a site in plates: theirs, and ArviZ's default for others."""
    value, fn, frames = (nodes[name][key] for key in ("value", "fn", "cond_indep_stack"))
    batch = value.dim() - fn.event_dim
    plates = {batch + f.dim: f.name for f in frames if f.vectorized and batch + f.dim >= 0}
    # a dimension cannot share a variable's name
    named = {axis: plate for axis, plate in plates.items() if plate not in nodes}
    return [named.get(axis, f"{name}_dim_{axis}") for axis in range(value.dim())] if plates else []
