# SPDX-License-Identifier: Apache-2.0
"""Log-weights of a Pyro model against its guide, whose mean weight is the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.infer.autoguide import AutoContinuous, AutoDelta, AutoLaplaceApproximation
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_neuralrg.arguments import check_type, on_copies
from pyro_neuralrg.infer.guides import FlowGuide
from pyro_neuralrg.infer.model_sites import drawn_trace, latent_sites
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.infer.pyro_internals import (
    check_guide_of,
    check_model_args,
    entries_of_sites,
    guide_shapes,
)
from pyro_neuralrg.mcmc.model_target import ModelTarget
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.runtime.processes import random_state_kept


def is_guide(q: Any) -> bool:
    """True of a Pyro program, False of a flow, a FlowGuide or a distribution of fields."""
    fields = isinstance(q, Distribution | Transform | ConditionalTransformModule)
    return callable(q) and not fields and not hasattr(q, "distribution")


def model_log_weights(
    target: Any,
    guide: Any,
    sizes: Sequence[int],
    model_args: Sequence[Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """``ln p(x, y) - ln q(x)`` for x ~ q of a model, or a potential's own, with data y.

    An ``AutoContinuous`` guide is drawn in batches of these sizes, and the model is vectorised over
    them by ``torch.func.vmap``; other guides run draw by draw. Float64 on the CPU.
    """
    if not isinstance(guide, FlowGuide) and not is_guide(guide):
        seen = type(guide).__name__
        raise TypeError(f"model_args are given, and q is a {seen}; accepted: a guide of the model")
    if isinstance(guide, AutoDelta | AutoLaplaceApproximation):
        raise TypeError(
            f"guide is an {type(guide).__name__}, a point; accepted: a guide with a density (of a "
            "Laplace approximation: guide.laplace_approximation(...))"
        )
    model = target.model if isinstance(target, LatticePotential) else target
    check_type("target", model, Callable, "a Pyro model or a LatticePotential")
    check_model_args(model_args)
    args, kwargs = tuple(model_args or ()), dict(model_kwargs or {})
    with random_state_kept():
        sites = _latent_sites(model, args, kwargs)
        if not isinstance(guide, AutoContinuous):
            _check_guide(sites, guide, args, kwargs)
    weights_of = _vectorised if isinstance(guide, AutoContinuous) else _one_by_one
    return torch.cat(list(weights_of(model, guide, sizes, args, kwargs)))


def weighted_draws(density: Any, size: int) -> tuple[Tensor, Tensor]:
    """Samples of q, and ln q there."""
    x = density.sample((size,))
    _refuse_undefined(x, "q")
    return x, density.log_prob(x)


def _refuse_undefined(x: Tensor, name: str) -> None:
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"samples of {name} are not finite; accepted: a flow or a guide whose parameters are "
            "numbers, from before a training that diverged"
        )


def _vectorised(
    model: Any, guide: Any, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    """The weights in unconstrained space, where both densities have the same Jacobian."""
    target = ModelTarget(model).setup(*args, **kwargs)
    check_guide_of(target.sites, guide)
    entries = entries_of_sites(guide_shapes(guide))  # its sites may be in another order
    order = torch.cat([entries[name] for name in target.sites])
    for size in sizes:
        with torch.no_grad(), poutine.block():
            u, log_q = weighted_draws(guide.get_posterior(*args, **kwargs), size)
            energy = target.energy(u[:, order.to(u.device)])
        yield (-energy - log_q.double()).cpu()


def _one_by_one(
    model: Any, guide: Any, sizes: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    """The weights of single runs, for guides of any kind."""
    if args or kwargs:
        model, guide = on_copies(model), on_copies(guide)
    for size in sizes:
        elbo = PDD(num_particles=size)
        with torch.no_grad(), poutine.block():
            elbo.differentiable_loss(model, guide, *args, **kwargs)
        assert elbo.log_weights is not None
        yield elbo.log_weights.double().cpu()


def _check_guide(
    theirs: Mapping[str, Any], guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse points, and latent sites of one program only: they count in one density alone."""
    ours, again = (_latent_sites(guide, args, kwargs) for _ in range(2))
    if theirs.keys() != ours.keys():
        raise ValueError(
            f"model has the latent sites {sorted(theirs)}, and the guide {sorted(ours)}; "
            "accepted: the same"
        )
    for name, site in ours.items():
        _refuse_undefined(site["value"], f"guide's site {name!r}")
        same = torch.equal(site["value"], again[name]["value"])
        if same and isinstance(site["fn"], Delta) and not isinstance(theirs[name]["fn"], Delta):
            raise TypeError(
                f"guide's site {name!r} is a point; accepted: a guide with a density of every site"
            )


def _latent_sites(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of a run, which is to see all of the data."""
    trace = drawn_trace(partial(on_copies(program), *args, **kwargs))
    for site in trace.nodes.values():
        for frame in site.get("cond_indep_stack", ()):
            if frame.full_size not in (None, frame.size):
                # the exponential of an unbiased ln p is no unbiased p
                raise ValueError(
                    f"plate {frame.name!r} is subsampled ({frame.size} of {frame.full_size}); "
                    "accepted for an evidence: all of the data"
                )
    nodes = latent_sites(trace).items()
    return {name: site for name, site in nodes if not site["infer"].get("is_auxiliary")}
