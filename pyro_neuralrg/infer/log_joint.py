# SPDX-License-Identifier: Apache-2.0
"""ln p of a model and its data: of many data, and of shares near one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import AffineBeta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Independent, biject_to, constraints
from torch.nn.functional import logsigmoid
from torch.overrides import TorchFunctionMode

from pyro_neuralrg.infer.model_sites import (
    base_support,
    fill_masked,
    innermost,
    latent_sites,
    refuse_change,
)
from pyro_neuralrg.runtime.threads import takes_own_functions

MANY = 1000
"""Numbers in a model beyond which its terms are summed in float64: in float32 the sum of many is
rounded by more than the difference of two energies."""


class UnconstrainedModel:
    """The density of a model's latents, each on the unconstrained scale of Pyro's HMC.

    Args:
        program: the model with its arguments.
        trace: one of its runs.
    """

    def __init__(self, program: Callable[[], Any], trace: Any) -> None:
        self.program = fill_masked(program, trace)
        latents = latent_sites(trace)
        self.discrete = [x for x, site in latents.items() if site["fn"].has_enumerate_support]
        continuous = {x: site["fn"] for x, site in latents.items() if x not in self.discrete}
        self.transforms = {x: biject_to(fn.support).inv for x, fn in continuous.items()}
        shares = Beta | AffineBeta | Dirichlet
        self._with_shares = [x for x, fn in continuous.items() if isinstance(innermost(fn), shares)]
        others = continuous.keys() - self._with_shares
        self._wide = [x for x in others if _takes_wide(continuous[x], latents[x]["value"])]
        nodes = (node for node in trace.nodes.values() if node["type"] == "sample")
        is_large = sum(torch.as_tensor(node["value"]).numel() for node in nodes) > MANY
        self._sum_dtype = torch.float64 if is_large else None
        # small solves gain less than the look at every operation costs
        self._solves = SharedSolves if is_large else nullcontext

    def trace(self, params: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The run at these unconstrained values, and the sites' own values."""
        values = {x: self.transforms[x].inv(u) for x, u in params.items()}
        return poutine.trace(poutine.condition(self.program, values)).get_trace(), values

    def energy(self, params: Mapping[str, Tensor]) -> Tensor:
        """Minus ln of the joint density, nats; of a model without discrete sites.

        Each term is computed in the dtype of the site.
        """
        with self._solves():
            trace, values = self.trace(params)
            refuse_change(latent_sites(trace).keys() | values.keys() - trace.nodes.keys())
            for x in self._wide:
                trace.nodes[x]["value"] = self.transforms[x].inv(params[x].double())
            shares = {x: _shares(trace.nodes[x]["fn"], params[x]) for x in self._with_shares}
            total: Any = 0.0
            for x, site in trace.nodes.items():
                if site["type"] == "sample" and not site_is_subsample(site):
                    log_shares = shares[x][0] if x in shares else None
                    log_p = log_prob(site["fn"], site["value"], self._sum_dtype, log_shares)
                    log_p = scale_and_mask(log_p, site["scale"], site["mask"])
                    total = total + log_p.sum(dtype=self._sum_dtype)
            for x, transform in self.transforms.items():
                if x in shares:
                    total = total + shares[x][1].sum()
                else:
                    slope = transform.log_abs_det_jacobian(values[x], params[x])
                    total = total - slope.sum(dtype=self._sum_dtype)
            return -total

    def functions(self, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """The values of sites that are functions of the latents."""
        nodes = self.trace(params)[0].nodes
        return {name: nodes[name]["value"].detach() for name in names}


def sum_of(terms: Tensor) -> Tensor:
    """The sum over the last dimension, of many in float64."""
    return terms.sum(-1, dtype=torch.float64 if terms.shape[-1] > MANY else None)


def log_prob(
    fn: Any, value: Tensor, sum_dtype: torch.dtype | None, log_shares: Tensor | None = None
) -> Tensor:
    """``fn.log_prob(value)`` with events summed in a dtype of their own, or by :func:`_shares`."""
    if (sum_dtype is None and log_shares is None) or getattr(fn, "_mask", None) is False:
        return fn.log_prob(value)
    if isinstance(fn, Independent):
        log_p = log_prob(fn.base_dist, value, sum_dtype, log_shares)
        dims = fn.reinterpreted_batch_ndims
        return log_p.flatten(-dims).sum(-1, dtype=sum_dtype) if dims else log_p
    if isinstance(fn, MaskedDistribution):
        log_p = log_prob(fn.base_dist, value, sum_dtype, log_shares)
        return scale_and_mask(log_p, mask=fn._mask)
    if log_shares is None:
        return fn.log_prob(value)
    if isinstance(fn, AffineBeta):
        return log_prob(fn.base_dist, value, sum_dtype, log_shares) - fn.scale.log()
    if isinstance(fn, Dirichlet):
        both = fn.concentration
    else:
        both = torch.stack([fn.concentration1, fn.concentration0], -1)
    norm = both.double().sum(-1).lgamma() - both.double().lgamma().sum(-1)
    return ((both - 1.0) * log_shares).sum(-1) + norm


def _takes_wide(fn: Any, value: Tensor) -> bool:
    """Report whether a prior on an interval can be evaluated of values in float64, near its end."""
    if value.dtype != torch.float32 or not isinstance(base_support(fn), constraints.interval):
        return False
    try:
        with torch.no_grad():
            return fn.log_prob(value.double()).dtype == torch.float64
    except (RuntimeError, ValueError):  # of two dtypes that it does not take together
        return False


def _shares(fn: Any, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of all shares, and ln |det| of the map to them, exact where a share is near one.

    There the share itself is rounded: what is left of it, 1 - v, is a number of its own. A Beta has
    two shares, v and 1 - v, along a new last dimension. Float64.
    """
    u, fn = unconstrained.double(), innermost(fn)
    if isinstance(fn, Dirichlet):  # torch's StickBreakingTransform
        u = u - torch.arange(u.shape[-1], 0, -1, dtype=u.dtype, device=u.device).log()
        taken, left = logsigmoid(u), logsigmoid(-u)
        rest = left.cumsum(-1)
        taken = taken + rest - left
        return torch.cat([taken, rest[..., -1:]], -1), taken + left
    taken, left = logsigmoid(u), logsigmoid(-u)
    scale = fn.scale.log() if isinstance(fn, AffineBeta) else 0.0
    return torch.stack([taken, left], -1), taken + left + scale


# Triangular solves that draws share, as of a MultivariateNormal under torch.func.vmap ------------


class SharedSolves(TorchFunctionMode):
    """Within it, one matrix is solved for all draws of a vmap at once.

    The rule of ``torch.linalg.solve_triangular`` copies the matrix for each draw: a gradient of 32
    draws of a ``MultivariateNormal`` of 1600 entries takes 0.36 s, with this 0.01 s for 128.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or solve."""
        if func is torch.linalg.solve_triangular and set(kwargs or ()) == {"upper"}:
            factor, right = args
            takes = factor.dim() == right.dim() and takes_own_functions()
            if takes and not factor.requires_grad and factor.shape[:-2].numel() == 1:
                return _Solve.apply(factor, right, kwargs["upper"])  # type: ignore[index]
        return func(*args, **(kwargs or {}))


class _Solve(torch.autograd.Function):
    """``A^-1 B`` of a constant triangular matrix A."""

    @staticmethod
    def forward(factor: Tensor, right: Tensor, upper: bool) -> Tensor:
        return torch.linalg.solve_triangular(factor, right, upper=upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.factor, _, ctx.upper = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, _Solve.apply(ctx.factor.mT, gradients[0], not ctx.upper), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, factor: Tensor, right: Tensor, upper: bool) -> Any:
        """The draws are more columns of B."""
        of_factor, of_right, _ = in_dims
        if of_factor is None:
            columns = right.movedim(of_right, -1)
            solved = _Solve.apply(factor, columns.flatten(-2), upper)
            return solved.unflatten(-1, columns.shape[-2:]), right.dim() - 1
        factor = factor.movedim(of_factor, 0)
        right = right.unsqueeze(0) if of_right is None else right.movedim(of_right, 0)
        return torch.linalg.solve_triangular(factor, right, upper=upper), 0
