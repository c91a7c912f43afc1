# SPDX-License-Identifier: Apache-2.0
"""Path gradients the long way: draws of any guide, scored again with its parameters frozen."""

from __future__ import annotations

from typing import Any

from pyro import poutine

from pyro_neuralrg import PDD


def loss_and_path_gradients(elbo: PDD, model: Any, guide: Any, *args: Any) -> float:
    """The loss; the gradient is added to every parameter's ``grad``."""
    log_weights = []
    own = PDD(elbo.num_particles, elbo.max_plate_nesting, elbo.vectorize_particles)
    for log_pi, guide_trace in own._get_traces(model, guide, args, {}):
        wrapped = own._vectorized_num_particles(guide) if own.vectorize_particles else guide
        seen = guide_trace.copy()
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":  # a new tensor, which no flow remembers
                seen.nodes[name] = {**site, "value": site["value"].view_as(site["value"])}
        parameters = [s["value"].unconstrained() for s in guide_trace.nodes.values() if is_param(s)]
        for parameter in parameters:
            parameter.requires_grad_(False)
        trace = poutine.trace(poutine.replay(wrapped, trace=seen)).get_trace(*args)
        trace = poutine.util.prune_subsample_sites(trace)
        trace.compute_log_prob()
        for parameter in parameters:
            parameter.requires_grad_(True)
        log_weights.append((log_pi - own._log_prob(guide_trace)).mean().detach())
        surrogate = (own._log_prob(trace) - log_pi).sum() / own.num_particles
        surrogate.backward()
    return -float(sum(log_weights)) / len(log_weights)


def is_param(site: Any) -> bool:
    return site["type"] == "param"
