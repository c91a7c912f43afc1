# SPDX-License-Identifier: Apache-2.0
"""Probability density distillation: the training loss E_q[ln q - ln pi] as a Pyro ELBO."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, warn_if_inf, warn_if_nan
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, copied
from pyro_neuralrg.infer.gradient_noise import GradientNoise
from pyro_neuralrg.infer.log_joint import MANY, log_prob, sum_of
from pyro_neuralrg.infer.model_sites import FillMasked, aside
from pyro_neuralrg.infer.particles import Way, draws_of, find_way, program_key, replayed
from pyro_neuralrg.runtime.processes import random_state_kept
from pyro_neuralrg.runtime.threads import own_threads

FEW_ENTRIES = 2**17
"""Entries of all sites up to which torch gets one thread: 64 particles of 600 latents and as many
data (77,000) take as long on one as on two, and three times as long on two of which one is busy."""


class PDD(ELBO):
    r"""Probability density distillation, an upper bound of the free energy -ln Z (paper Eq. 3-5).

    .. math:: L = E_{x \sim q}[\ln q(x) - \ln \pi(x)] = -\ln Z + KL(q \,\|\, \pi / Z)

    Guide sites must be reparameterised, so that the gradient goes through the samples. With an
    autoguide and few data, torch computes on one thread, from the second evaluation on. Sums of
    more than a thousand densities are float64, also of float32 data. What Pyro draws for data that
    ``obs_mask`` calls observed has a density here, as in chains and estimates, unless the guide
    masks it too; with Pyro's own ELBOs it is flat, and a guide's widths grow there.

    Args:
        num_particles: samples of the guide per evaluation.
        max_plate_nesting: of the model's own plates; guessed if infinite, as by ``Trace_ELBO``.
        vectorize_particles: draw all particles at once, in an outermost plate. Each model is
            compared with single draws, once; one that does not take all is run by
            ``torch.func.vmap``, or for one draw after another, with a warning.
        path_gradient: leave out the gradient of ln q's parameters at fixed x, whose expectation is
            zero ("sticking the landing"), where that lowers the variance: none is left where q
            equals the target, but far from it the rest can be hundreds of times as noisy as the
            plain gradient. Both are measured at the evaluations 1, 2, 4, ..., 64 and then every
            64th; "always" leaves it out everywhere. For guides of one site, and for autoguides of
            one vector. A step costs half as much again for flows of this package, else one more
            evaluation of ln q.
        retain_graph: keep the graph after ``loss_and_grads``.

    Attributes:
        log_weights: ``ln pi(x) - ln q(x)`` in nats for each particle of the last evaluation,
            detached, shape ``(num_particles,)``; its mean is minus the loss.

    References:
        Li, Wang, Neural Network Renormalization Group, PRL 121, 260601 (2018).
        Roeder, Wu, Duvenaud, Sticking the Landing, NeurIPS (2017).
        Vaitl et al., Fast and unified path gradient estimators for normalizing flows, ICLR (2024).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from torch.distributions import constraints
        >>> def model():
        ...     pyro.sample("x", dist.Normal(1.0, 1.0))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))
        >>> abs(PDD(num_particles=8, vectorize_particles=True).loss(model, guide)) < 1e-6
        True
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = False,
        path_gradient: bool | str = False,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles=check_integer("num_particles", num_particles, 1),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        if path_gradient not in (True, False, "always"):
            raise ValueError(
                f"path_gradient is {path_gradient!r}; accepted: True, False or 'always'"
            )
        self.path_gradient = path_gradient
        self.only_finite = False  # gradients of particles of a finite weight alone
        self.log_weights: Tensor | None = None
        self._entries = FEW_ENTRIES + 1  # not known yet
        self._ways: dict[Any, Way] = {}  # by program
        self._way = Way()
        self.noise = GradientNoise()
        self._takes_path = False  # the gradient of the present evaluation

    def __repr__(self) -> str:
        names = inspect.signature(PDD).parameters
        options = {name: getattr(self, name) for name in names}
        given = [f"{name}={x!r}" for name, x in options.items() if x not in (None, False, math.inf)]
        return f"{type(self).__name__}({', '.join(given)})"

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The estimate of E_q[ln q - ln pi] in nats."""
        with self._threads(guide):
            parts = self._particles(model, guide, args, kwargs, with_gradient=False)
            return self._report([weights for weights, _ in parts], model, guide, args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The estimate of :meth:`loss` as a tensor, with the gradient of ``loss_and_grads``.

        No number is read from it: an accelerator goes on computing, and losses that are not finite
        are not warned of.
        """
        parts = list(self._particles(model, guide, args, kwargs))
        log_weights = torch.cat([weights for weights, _ in parts])
        self.log_weights, value = log_weights.detach(), -log_weights.mean()
        if not (self.path_gradient or self.only_finite):
            return value
        surrogate = torch.stack([surrogate for _, surrogate in parts]).sum()
        return value.detach() + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The estimate of :meth:`loss`; its gradient is added to every parameter's ``grad``."""
        log_weights = []
        with self._threads(guide):
            for weights, surrogate in self._particles(model, guide, args, kwargs):
                log_weights.append(weights)
                if surrogate.requires_grad:
                    surrogate.backward(retain_graph=self.retain_graph)
            return self._report(log_weights, model, guide, args, kwargs)

    def _threads(self, guide: Any) -> contextlib.AbstractContextManager[None]:
        """One thread of torch for small problems; other guides than these may be networks."""
        small = isinstance(guide, AutoGuide) and self._entries <= FEW_ENTRIES
        return own_threads() if small else contextlib.nullcontext()

    def _guess_max_plate_nesting(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Run both once to see their plates, without using up random numbers or saying it."""
        logger = logging.getLogger(ELBO.__module__)
        before, logger.disabled = logger.disabled, True
        try:
            with random_state_kept():
                super()._guess_max_plate_nesting(
                    FillMasked()(model), guide, copied(args), copied(kwargs)
                )
        finally:
            logger.disabled = before

    def _choose_way(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Find out once whether these programs take all particles at once."""
        self._way = Way()
        if not self.vectorize_particles or self.num_particles == 1:
            return
        if math.isinf(self.max_plate_nesting):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        key = program_key(model), program_key(guide)
        if key not in self._ways:
            in_plate, number = self._vectorized_num_particles, self.num_particles
            self._ways[key] = find_way(in_plate, number, model, guide, args, kwargs)
        self._way = self._ways[key]

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        if self._together:
            guide = self._vectorized_num_particles(guide)
            if self._way.shapes is None:
                model = self._vectorized_num_particles(model)
        for _ in range(1 if self._together else self.num_particles):
            yield self._get_trace(model, guide, args, kwargs)

    @property
    def _together(self) -> bool:
        return self.vectorize_particles and not self._way.one_by_one

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Any]:
        """Run the guide, then the model against it: ln pi, and the trace of the guide."""
        masked: set[str] = set()
        model = _Data(masked)(model)
        if not isinstance(poutine.unwrap(guide), Messenger):
            guide = _Draws(self._takes_path, masked)(guide)
        if self._way.shapes is None:
            model_trace, guide_trace = get_importance_trace(
                "flat", self.max_plate_nesting, model, guide, args, kwargs
            )
            sites = _sample_sites(model_trace)
            self._entries = sum(s["value"].numel() + s["log_prob"].numel() for s in sites)
            log_pi = self._log_prob(model_trace)
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            log_pi = self._way.log_pi(model, guide_trace, self.num_particles, args, kwargs)
            guide_trace = prune_subsample_sites(guide_trace)
            guide_trace.compute_log_prob()
        if is_validation_enabled():
            check_if_enumerated(guide_trace)
        _check_reparameterised(guide_trace)
        return log_pi, guide_trace

    def _particles(
        self, model: Any, guide: Any, args: Any, kwargs: Any, with_gradient: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield log-weights and the scalar to differentiate, for all particles or one by one."""
        self._choose_way(model, guide, args, kwargs)
        programs = model, guide, args, kwargs
        wanted = bool(self.path_gradient) and with_gradient and torch.is_grad_enabled()
        can_choose = wanted and self.path_gradient != "always" and not self.only_finite
        if can_choose and self.noise.begin():  # compare both, of the same draws
            copies = model, guide, copied(args), copied(kwargs)
            with random_state_kept():
                plain = torch.cat([terms for _, terms in self._evaluate(*copies, False)])
            weights, path = map(torch.cat, zip(*self._evaluate(*programs, True), strict=True))
            yield weights, self.noise.choose(plain, path) / self.num_particles
            return
        is_path = wanted and (self.path_gradient == "always" or self.noise.is_path_better)
        for weights, terms in self._evaluate(*programs, is_path):
            yield weights, terms.sum() / self.num_particles

    def _evaluate(
        self, model: Any, guide: Any, args: Any, kwargs: Any, takes_path: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield log-weights and the losses to differentiate, with the plain or the path's graph."""
        self._takes_path = takes_path
        for log_pi, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_weights = log_pi - self._log_prob(guide_trace)
            terms = -log_weights
            if takes_path and not all(site["is_observed"] for site in _sample_sites(guide_trace)):
                _check_one_site(guide_trace)
                terms = self._log_prob(guide_trace, _path_term) - log_pi
            if self.only_finite:
                terms = self._finite_terms(terms, log_weights.detach().isfinite(), guide_trace)
            yield log_weights, terms

    def _finite_terms(self, terms: Tensor, kept: Tensor, guide_trace: Any) -> Tensor:
        """The terms of the particles kept, and ones that lower the density at the others.

        The latter are ln q at fixed draws, whose mean gradient is that of -q(A), with q(A) the
        probability to be kept. They enter once since it is not zero over the kept ones (path
        gradients leave it out), once for the flow restricted to A, of density q / q(A), and once
        for the draws that are lost, through which no other gradient goes.
        """
        lost = torch.zeros_like(terms)
        for site in _sample_sites(guide_trace):
            x, in_plate = site["value"], site["log_prob"].dim() >= self.max_plate_nesting
            if x.requires_grad and (in_plate or len(kept) == 1):
                rows = kept.view(-1, *(1,) * (x.dim() - 1)) if x.dim() else kept.view(())
                x.register_hook(lambda gradient, rows=rows: torch.where(rows, gradient, 0.0))
                if not isinstance(site["fn"], dist.Delta):
                    log_q = site["fn"].log_prob(x.detach())
                    lost = lost + log_q.reshape(len(kept), -1).sum(-1)
        weight = 2.0 if self._takes_path else 3.0
        return torch.where(kept, terms, weight * (lost - lost.detach()))

    def _log_prob(
        self, trace: Any, term_of: Callable[[Any], Tensor] = operator.itemgetter("log_prob")
    ) -> Tensor:
        """Sum over sample sites: shape ``(num_particles,)`` if vectorised, else ``(1,)``."""
        number = self.num_particles if self._together else 1
        total: Any = torch.zeros(())
        for site in _sample_sites(trace):
            term = term_of(site)
            if number == 1 or term.dim() < self.max_plate_nesting:
                total = total + sum_of(term.reshape(-1))  # outside the plate: the same for each
            else:
                total = total + sum_of(term.reshape(number, -1))
        return total.expand(number)

    def _report(
        self, log_weights: list[Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> float:
        """Keep the detached log-weights and return minus their mean; warn if it is not finite."""
        self.log_weights = torch.cat([weights.detach() for weights in log_weights])
        loss: Any = -self.log_weights.mean().item()
        if math.isnan(loss):
            warn_if_nan(loss, f"loss{nan_site(model, guide, args, kwargs)}")
        warn_if_inf(loss, "loss")
        return loss


def nan_site(model: Any, guide: Any, args: Any = (), kwargs: Any = None) -> str:
    """The first site of another run whose value or density is NaN, in words, or nothing."""
    # programs may take another run amiss, as of an iterator that is used up
    with contextlib.suppress(Exception), aside(), torch.no_grad():
        q = replayed(guide, {}, args, kwargs or {})
        p = replayed(FillMasked()(model), draws_of(q), args, kwargs or {})
        for program, trace in (("guide", q), ("model", p)):
            trace.compute_log_prob()
            for site in _sample_sites(trace):
                values = torch.as_tensor(site["value"])
                if number := int(values.isnan().sum()):
                    return f": {program} site {site['name']!r} has {number} NaN of {values.numel()}"
                if site["log_prob"].isnan().any():
                    return f": the density of {program} site {site['name']!r} is NaN"
    return ""


class _Data(FillMasked):
    """Densities of many data, summed in float64, which in float32 would round energies."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["is_observed"] and isinstance(msg["value"], Tensor) and msg["value"].numel() > MANY:
            with contextlib.suppress(ValueError):  # which the trace raises, with more words
                log_p = log_prob(msg["fn"], msg["value"], torch.float64)
                msg["log_prob"] = scale_and_mask(log_p, msg["scale"], msg["mask"])


class _Draws(Messenger):
    """Draws that come with ln q, and where asked with its score as ``infer["score"]``.

    Outermost, so that plates have expanded the distribution, and scales and masks are known.
    The names of sites under a mask are added to ``masked``.
    """

    def __init__(self, with_score: bool, masked: set[str]) -> None:
        super().__init__()
        self.with_score, self.masked = with_score, masked

    def _pyro_sample(self, msg: Any) -> None:
        q = msg["fn"]
        if msg["mask"] is not None:
            self.masked.add(msg["name"])
        if msg["is_observed"] or msg["value"] is not None:
            return
        if self.with_score and q.has_rsample and not isinstance(q, dist.Delta):
            msg["value"], log_q, msg["infer"]["score"] = _rsample_with_score(q)
        elif not self.with_score and hasattr(q, "rsample_and_log_prob"):
            msg["value"], log_q = q.rsample_and_log_prob()
        else:
            return
        # as the trace would compute them, by an inverse pass, were one of them missing
        msg["log_prob"] = log_q = scale_and_mask(log_q, msg["scale"], msg["mask"])
        msg["log_prob_sum"] = log_q.sum()
        msg["score_parts"] = ScoreParts(log_q, torch.zeros_like(log_q), log_q)


def _rsample_with_score(q: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A draw, and without its graph ln q and the score; our flows need no second pass."""
    if getattr(q, "has_score", False):
        return q.rsample_with_score()
    x = q.rsample()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()  # no remembered pair of the flow is recognised by it
        log_q = q.log_prob(leaf)
        (score,) = torch.autograd.grad(log_q.sum(), leaf)
    return x, log_q.detach(), score


def _sample_sites(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _check_one_site(guide_trace: Any) -> None:
    """Refuse guides of several sites, unless all are computed from one auxiliary site."""
    sites = _sample_sites(guide_trace)
    scored = [site for site in sites if "score" in site["infer"]]
    is_auxiliary = any(site["infer"].get("is_auxiliary", False) for site in scored)
    are_computed = is_auxiliary and all(
        isinstance(site["fn"], dist.Delta) for site in sites if "score" not in site["infer"]
    )
    if len(scored) != 1 or not (are_computed or len(sites) == 1):
        raise ValueError(
            f"path_gradient is True, and the guide has the sites {[s['name'] for s in sites]}; "
            "accepted: guides of one site, or of sites that are computed from an auxiliary one"
        )


def _path_term(site: Any) -> Tensor:
    """The score at x, a constant, times x: its gradient is the path gradient of ln q(x)."""
    if "score" not in site["infer"]:
        return site["log_prob"]
    term = sum_rightmost(site["infer"]["score"] * site["value"], site["fn"].event_dim)
    return scale_and_mask(term, site["scale"], site["mask"])


def _check_reparameterised(guide_trace: Any) -> None:
    for site in _sample_sites(guide_trace):
        if not site["fn"].has_rsample:
            name, kind = site["name"], type(site["fn"]).__name__
            factor = f"factor {name!r} has has_rsample=False"
            drawn = f"site {name!r} has distribution {kind}, which has no rsample"
            raise ValueError(
                f"guide {factor if site['is_observed'] else drawn}; accepted by PDD: "
                "reparameterised draws, and factors of them (else use Trace_ELBO)"
            )
