# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Observed data of a Pyro model, their log-likelihood, and the names of its plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_neuralrg.diagnostics.runs import BATCH, NamedTensors


class ModelSites(NamedTuple):
    """Sites of one execution of a model, by name."""

    observed: NamedTensors  # values
    batch_dims: dict[str, int]  # of observed sites: dimensions that are not of one event
    dims: dict[str, list[str]]  # names of all dimensions of the sites that stand in plates
    unknown: list[str]  # latent sites whose values were not given, such as discrete ones


def read_sites(model: Callable[[], Any] | None, values: Mapping[str, Tensor]) -> ModelSites:
    """Run the model once at values of its latent sites; those of others are drawn from the prior.

    Torch's random numbers are left as they are. Values that are functions of others
    (``pyro.deterministic``, sites replaced by a reparameterisation) and factors are no data.
    """
    if model is None:
        return ModelSites({}, {}, {}, [])
    with torch.random.fork_rng(), poutine.block(), torch.no_grad():
        nodes = {
            name: node
            for name, node in _trace(model, values).items()
            if node["type"] == "sample" and not site_is_subsample(node)
        }
    new = {name: node for name, node in nodes.items() if name not in values}
    observed = {
        name: node["value"].detach()
        for name, node in new.items()
        if node["is_observed"] and not _is_computed(node["fn"])
    }
    return ModelSites(
        observed,
        {name: value.dim() - nodes[name]["fn"].event_dim for name, value in observed.items()},
        {name: names for name in nodes if (names := _plate_dims(name, nodes))},
        [name for name, node in new.items() if not node["is_observed"]],
    )


def log_likelihood(
    model: Callable[[], Any] | None, values: Mapping[str, Tensor], sites: ModelSites
) -> NamedTensors:
    """Log-density of each datum of each observed site at each draw, nats.

    Vectorised over draws by ``torch.func.vmap``; draw by draw for models that it cannot take. As
    in ArviZ's own conversion, what ``poutine.scale`` and ``poutine.mask`` do is left out.

    Args:
        model: with its arguments bound.
        values: of all latent sites, shape ``(chains, draws) + site shape`` each.
        sites: result of :func:`read_sites`.

    Returns:
        By observed site, shape ``(chains, draws) + batch shape`` of the site.
    """
    observed = list(sites.observed)
    if model is None or not observed or not values or sites.unknown:
        raise ValueError(
            f"log_likelihood is True for a run with observed sites {observed}, draws of "
            f"{list(values)} and other latent sites {sites.unknown}; accepted: a run of a Pyro "
            "model with observed sites, and draws of all latent ones"
        )

    def of_one_draw(one: NamedTensors) -> NamedTensors:
        nodes = _trace(model, one)
        return {name: nodes[name]["fn"].log_prob(nodes[name]["value"]) for name in observed}

    batch = next(iter(values.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    with torch.random.fork_rng(), poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
        try:
            found = torch.func.vmap(of_one_draw, chunk_size=BATCH)(flat)
        except Exception:  # whatever vmap, or the model inside vmap, raises
            draws = zip(*flat.values(), strict=True)
            one_by_one = [of_one_draw(dict(zip(flat, draw, strict=True))) for draw in draws]
            found = {name: torch.stack([one[name] for one in one_by_one]) for name in observed}
    return {name: value.unflatten(0, batch) for name, value in found.items()}


def _trace(model: Callable[[], Any], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Nodes of the model at values of its latent sites."""
    return dict(poutine.trace(poutine.condition(model, dict(values))).get_trace().nodes)


def _is_computed(fn: Any) -> bool:
    """Whether an observed site is no datum: a function of others, or a factor."""
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
