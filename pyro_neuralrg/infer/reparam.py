# SPDX-License-Identifier: Apache-2.0
"""Sampling a site of a Pyro program in the latent space of a flow (paper Eq. 6)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.distributions.flow import (
    base_distribution,
    check_flow,
)
from pyro_neuralrg.infer.model_sites import base_support, innermost
from pyro_neuralrg.transforms.base import forward_and_ladj, inverse_and_ladj


class FlowReparam(Reparam):
    r"""Replace a site ``name`` by its latents ``{name}_latent``, with ``name = flow(z)`` computed.

    The density of the reparameterised program in ``z`` is exactly, whatever the flow (paper Eq. 6),

    .. math:: \tilde p(z) = p(x = g(z)) \, |\det \partial g / \partial z|

    A perfect flow makes it standard normals. Pyro's ``HMC``, ``NUTS`` and ``SVI``
    and :class:`~pyro_neuralrg.mcmc.VectorizedMCMC` run on the result. The flow is not trained.

    A site may stand inside plates (batch dimensions on the left); an observed one stays as it is.
    ``poutine.mask`` and ``poutine.scale`` act on the *whole* site, log-determinant included, as
    with Pyro's reparameterisers; to leave out a prior alone, mask its distribution
    (``fn.mask(False)``).

    Samplers start at draws of the flow's base and move in z. With ``from_normal=True`` they move in
    standard normals u, ``z = base.from_normal(u)``, and give draws of z all the same: of the Ising
    dual at Tc, 8 x 8, HMC crosses between the phases 1.5 times per 1000 gradients in z, with any
    flow; in u 0.1 times with an untrained one, 5 times after 400 steps
    (``tests/benchmarks/crossings.py``).

    Args:
        flow: a bijective TransformModule of real tensors, ``x = flow(z)``, such as a
            ``HierarchicalFlow``. One of fewer event dimensions than the site acts on the rightmost.
        from_normal: let samplers move in standard normals instead of z.

    Raises:
        TypeError: if ``flow`` is not a TransformModule (``flow.inv`` is not one).
        ValueError: when the program runs, if the site's event shape is not the flow's, its
            support is not the real line, or another reparameterisation has replaced it: Pyro's
            ``AutoReparam`` goes around, ``AutoReparam()(poutine.reparam(model, {...}))``. The
            parameters of ``AutoReparam``, such as ``level_centered`` in Pyro's store, are trained
            by SVI; chains leave them as they are, 0.5 where there was no training (``centered=0.0``
            has none).

    References:
        Li, Wang, Neural Network Renormalization Group, PRL 121, 260601 (2018).
        Hoffman et al., NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural
        Transport (2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> flow = dist.transforms.affine_coupling(2)
        >>> def model():
        ...     return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> latent = pyro.poutine.reparam(model, {"x": FlowReparam(flow)})
        >>> trace = pyro.poutine.trace(latent).get_trace()
        >>> [name for name, site in trace.nodes.items() if site["type"] == "sample"]
        ['x_latent', 'x']
    """

    def __init__(self, flow: TransformModule, from_normal: bool = False) -> None:
        check_flow(flow)
        self.flow = flow
        self.from_normal = from_normal
        self._images: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def image(self, name: str, image: tuple[Tensor, Tensor]) -> Iterator[None]:
        """A context in which the flow's field and ``ln |det|`` at a site's latent are known."""
        self._images[name] = image
        try:
            yield
        finally:
            del self._images[name]

    def __repr__(self) -> str:
        options = ", from_normal=True" if self.from_normal else ""
        return f"{type(self).__name__}({self.flow!r}{options})"

    def apply(self, msg: Any) -> Any:
        """Replace the site; called by ``poutine.reparam``."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if msg["is_observed"]:
            if isinstance(innermost(fn), dist.Delta):
                raise ValueError(
                    f"site {name!r} is a function of other sites, as of another reparameterisation "
                    "inside; accepted: FlowReparam inside of the other, such as "
                    "AutoReparam()(poutine.reparam(model, {...}))"
                )
            return {"fn": fn, "value": value, "is_observed": True}
        self._check_site(name, fn)
        if poutine.get_mask() is False and torch.is_grad_enabled():
            warnings.warn(
                f"site {name!r} stands under poutine.mask(mask=False), which hides the "
                "flow's log-determinant too; to leave out the prior alone, mask its distribution: "
                "fn.mask(False)",
                stacklevel=2,
            )
        latent = base_distribution(self.flow, fn.event_shape, self.from_normal)
        latent = latent.expand(fn.batch_shape).mask(False)
        # "is_observed" keeps an initial value from counting as data; "flow_site" tells whoever
        # reads the trace how latent values become physical ones.
        infer: Any = {"is_observed": False, "flow_site": (name, self)}
        z, ladj = None, None
        if value is not None:  # an initial value, not data: keep it, and find its latent
            z, ladj = inverse_and_ladj(self.flow, value, fn.event_dim)
        z = pyro.sample(f"{name}_latent", latent, obs=z, infer=infer)
        if value is None and name in self._images:
            value, ladj = self._images[name]
        elif value is None:
            value, ladj = forward_and_ladj(self.flow, z, fn.event_dim)
        density = dist.Delta(value, fn.log_prob(value) + ladj, event_dim=fn.event_dim)
        return {"fn": density, "value": value, "is_observed": True}

    def transform_sample(self, latent: Tensor) -> Tensor:
        """The fields x of latent samples z, ``batch_shape + event_shape``, without gradients."""
        with torch.no_grad():
            return forward_and_ladj(self.flow, latent, self.flow.domain.event_dim)[0]

    def _check_site(self, name: str, fn: Any) -> None:
        shape, sides = getattr(self.flow, "shape", fn.event_shape), self.flow.domain.event_dim
        if tuple(fn.event_shape) != tuple(shape) or fn.event_dim < sides:
            accepted = tuple(shape) if hasattr(self.flow, "shape") else f"{sides} dimensions"
            raise ValueError(
                f"site {name!r} has event shape {tuple(fn.event_shape)} and batch shape "
                f"{tuple(fn.batch_shape)}; accepted: an event of {accepted}, as the flow's "
                f"(.to_event({sides}) turns batch into event dimensions)"
            )
        support = base_support(fn)
        if support is not constraints.real:
            raise ValueError(f"site {name!r} has support {support}; accepted: the real line")
