# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Log-weights of a Pyro model against its guide, whose mean weight is the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.infer.autoguide import AutoContinuous, AutoDelta, AutoLaplaceApproximation
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.mcmc.model_target import ModelTarget

Program = Callable[..., Any]


def is_guide(q: Any) -> bool:
    """True of a Pyro program, False of a flow, a FlowGuide or a distribution of fields."""
    fields = isinstance(q, Distribution | Transform | ConditionalTransformModule)
    return callable(q) and not fields and not hasattr(q, "distribution")


def model_log_weights(
    model: Program,
    guide: Program,
    sizes: Sequence[int],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Iterator[Tensor]:
    r"""Batches of :math:`\ln p(x, y) - \ln q(x)` for x ~ q, of a model with data y.

    The guide of an ``AutoContinuous`` is drawn in batches, and the model is vectorised over them by
    ``torch.func.vmap``, so that it need not know of batches; other guides run draw by draw.

    Args:
        model: a Pyro program with the sites of the guide, and without subsampling.
        guide: of the model.
        sizes: of the batches.
        args: of both.
        kwargs: of both.

    Yields:
        float64 on the CPU, shape ``(size,)``, in nats.

    Raises:
        TypeError: if the guide is a point and no density.
        ValueError: if a plate is subsampled, or model and guide have different latent sites.
    """
    options = dict(kwargs or {})
    if isinstance(guide, AutoDelta | AutoLaplaceApproximation):
        raise TypeError(
            f"guide is an {type(guide).__name__}, a point; accepted: a guide with a density (of a "
            "Laplace approximation: guide.laplace_approximation(...))"
        )
    trace = _trace(model, args, options)
    for site in trace.nodes.values():
        for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
            if frame.full_size not in (None, frame.size):
                # the exponential of an unbiased ln p is no unbiased p
                raise ValueError(
                    f"plate {frame.name!r} of the model is subsampled ({frame.size} of "
                    f"{frame.full_size}); accepted for an evidence: all of the data"
                )
    if isinstance(guide, AutoContinuous):
        return _vectorised(model, guide, sizes, args, options)
    _check_guide(trace, guide, args, options)
    return _one_by_one(model, guide, sizes, args, options)


def _vectorised(
    model: Program,
    guide: AutoContinuous,
    sizes: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Iterator[Tensor]:
    """The weights in unconstrained space, where both densities have the same Jacobian."""
    target = ModelTarget(model).setup(*args, **kwargs)
    order = _order_of_sites(guide, target.sites)
    for size in sizes:
        with torch.no_grad(), poutine.block():
            density = guide.get_posterior(*args, **kwargs)
            u = density.sample((size,))
            log_q = density.log_prob(u)
            energy = target.energy(u[:, order.to(u.device)])
        yield (-energy - log_q.double()).cpu()


def _order_of_sites(guide: AutoContinuous, sites: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Indices of the model's sites, one after the other, in the guide's vector."""
    seen = guide.prototype_trace is not None
    unconstrained = guide._unconstrained_shapes if seen else {}
    shapes = {name: tuple(shape) for name, shape in unconstrained.items()}
    if shapes != dict(sites):
        raise ValueError(
            f"model has the latent sites {dict(sites)} (unconstrained shapes), and the guide "
            f"{shapes}; accepted: the model of the guide, which has seen it, with arguments of the "
            "same shapes"
        )
    lengths = [torch.Size(shape).numel() for shape in shapes.values()]
    indices = dict(zip(shapes, torch.arange(sum(lengths)).split(lengths), strict=True))
    return torch.cat([indices[name] for name in sites])


def _one_by_one(
    model: Program,
    guide: Program,
    sizes: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Iterator[Tensor]:
    """The weights of single runs, for guides of any kind."""
    for size in sizes:
        elbo = PDD(num_particles=size)
        with torch.no_grad(), poutine.block():
            elbo.differentiable_loss(model, guide, *args, **kwargs)
        assert elbo.log_weights is not None
        yield elbo.log_weights.double().cpu()


def _check_guide(
    model_trace: Any, guide: Program, args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Refuse points, and latent sites of one program only: they count in one density alone."""
    first, second = _trace(guide, args, kwargs), _trace(guide, args, kwargs, runs=2)
    theirs, ours = (
        {
            name: site
            for name, site in trace.iter_stochastic_nodes()
            if not site["infer"].get("is_auxiliary")
        }
        for trace in (model_trace, first)
    )
    if theirs.keys() != ours.keys():
        raise ValueError(
            f"model has the latent sites {sorted(theirs)}, and the guide {sorted(ours)}; "
            "accepted: the same"
        )
    for name, site in ours.items():
        same = torch.equal(site["value"], second.nodes[name]["value"])
        if same and isinstance(site["fn"], Delta) and not isinstance(theirs[name]["fn"], Delta):
            raise TypeError(
                f"guide's site {name!r} is a point; accepted: a guide with a density of every site"
            )


def _trace(program: Program, args: Sequence[Any], kwargs: dict[str, Any], runs: int = 1) -> Any:
    """The trace of the last of so many runs, without using up random numbers."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), torch.no_grad(), poutine.block():
        for _ in range(runs):
            trace = poutine.trace(program).get_trace(*args, **kwargs)
    return prune_subsample_sites(trace)
