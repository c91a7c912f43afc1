# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a Pyro model says besides its draws: observed data, their log-likelihood, its plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_neuralrg.diagnostics.runs import BATCH, Program

__all__ = ["Sites", "log_likelihood", "read_sites"]

Values = dict[str, Tensor]


class Sites(NamedTuple):
    """What one run of a model shows.

    Attributes:
        observed: values of the observed sites.
        batch_dims: of each observed site, its dimensions that are not of one event.
        dims: names of all dimensions of the sites that stand in plates, by site.
        unknown: latent sites whose values were not given, such as discrete ones.
    """

    observed: Values
    batch_dims: dict[str, int]
    dims: dict[str, list[str]]
    unknown: list[str]


def read_sites(program: Program, values: Mapping[str, Tensor]) -> Sites:
    """Run the model once and read its sites; torch's random numbers are left as they are.

    Args:
        program: the model and its arguments.
        values: of latent sites, at which it is run; the prior's where there is none.

    Returns:
        :class:`Sites`. Values that are functions of others (``pyro.deterministic``, sites replaced
        by a reparameterisation) and factors are no data.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(data):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("person", len(data)):
        ...         pyro.sample("height", dist.Normal(mean, 1.0), obs=data)
        >>> found = read_sites(Program(model, (torch.zeros(3),), {}), {})
        >>> found.observed, found.dims
        ({'height': tensor([0., 0., 0.])}, {'height': ['person']})
    """
    with torch.random.fork_rng(), poutine.block(), torch.no_grad():
        conditioned = poutine.condition(program.model, dict(values))
        trace = poutine.trace(conditioned).get_trace(*program.args, **program.kwargs)
    nodes: dict[str, Any] = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }
    observed = {
        name: node["value"].detach()
        for name, node in nodes.items()
        if name not in values and node["is_observed"] and not _is_computed(node)
    }
    return Sites(
        observed,
        {name: nodes[name]["value"].dim() - nodes[name]["fn"].event_dim for name in observed},
        {name: names for name in nodes if (names := _plate_dims(name, nodes))},
        [name for name, node in nodes.items() if name not in values and not node["is_observed"]],
    )


def log_likelihood(program: Program, values: Mapping[str, Tensor], sites: Sites) -> Values:
    """Log-density of each datum of each observed site at each draw.

    Vectorised over draws by ``torch.func.vmap``; draw by draw for models that it cannot take. As
    in ArviZ's own conversion, what ``poutine.scale`` and ``poutine.mask`` do is left out.

    Args:
        program: the model and its arguments.
        values: of all latent sites, shape ``(chains, draws) + site shape`` each.
        sites: what :func:`read_sites` found.

    Returns:
        By observed site, nats, shape ``(chains, draws) + batch shape`` of the site.

    Raises:
        ValueError: if nothing is observed, no draws were kept, or not of all latent sites.
    """
    if not sites.observed or not values or sites.unknown:
        raise ValueError(
            f"log_likelihood is True for a model with observed sites {list(sites.observed)}, draws "
            f"of {list(values)} and other latent sites {sites.unknown}; accepted: observed sites, "
            "and draws of all latent ones"
        )

    def of_one_draw(one: Values) -> Values:
        trace = poutine.trace(poutine.condition(program.model, one))
        nodes: Any = trace.get_trace(*program.args, **program.kwargs).nodes
        return {name: nodes[name]["fn"].log_prob(nodes[name]["value"]) for name in sites.observed}

    chains, draws = next(iter(values.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    with torch.random.fork_rng(), poutine.block(), torch.no_grad():
        found = _over_draws(of_one_draw, flat, chains * draws)
    return {name: value.unflatten(0, (chains, draws)) for name, value in found.items()}


def _over_draws(function: Callable[[Values], Values], values: Values, number: int) -> Values:
    """Results of all draws, stacked: vectorised if the function can be."""
    pieces: list[Values] = []
    with pyro.validation_enabled(False):
        try:
            for start in range(0, number, BATCH):
                part = {name: value[start : start + BATCH] for name, value in values.items()}
                pieces.append(torch.func.vmap(function)(part))
        except Exception:  # whatever vmap, or the model inside vmap, raises
            single = [
                function({name: value[index] for name, value in values.items()})
                for index in range(number)
            ]  # an error of the model itself comes out here
            return {name: torch.stack([one[name] for one in single]) for name in single[0]}
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _is_computed(node: Mapping[str, Any]) -> bool:
    """Whether an observed site is no datum: a function of others, or a factor."""
    fn = node["fn"]
    while not isinstance(fn, dist.Delta | dist.Unit) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta | dist.Unit)


def _plate_dims(name: str, nodes: Mapping[str, Any]) -> list[str]:
    """Names of all dimensions of a site: those of its plates, ArviZ's default for others."""
    node = nodes[name]
    value = node["value"]
    batch = value.dim() - node["fn"].event_dim
    names = [f"{name}_dim_{axis}" for axis in range(value.dim())]
    plates = {
        batch + frame.dim: frame.name
        for frame in node["cond_indep_stack"]
        if frame.vectorized and batch + frame.dim >= 0
    }
    for axis, plate in plates.items():
        if plate not in nodes:  # a dimension cannot share a variable's name
            names[axis] = plate
    return names if plates else []
