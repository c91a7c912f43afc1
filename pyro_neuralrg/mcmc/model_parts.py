# SPDX-License-Identifier: Apache-2.0
"""What a sampled site of a Pyro model stands for: itself, or sites behind a flow or a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from pyro_neuralrg.bases import NORMAL, StandardNormal, base_of
from pyro_neuralrg.infer import FlowReparam
from pyro_neuralrg.infer.pyro_internals import find_neutra, guide_shapes, num_plate_dims


class Part(NamedTuple):
    """The model's own sites of a sampled one, and how their values follow from its.

    ``module`` is the flow or guide behind which they are, ``base`` the density of its draws.
    """

    sites: list[str]
    values: Callable[[Tensor], dict[str, Tensor]]
    lattices: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    module: nn.Module | None = None
    flow: TransformModule | None = None
    base: StandardNormal = NORMAL
    reparam: FlowReparam | None = None


def part_of(model: Any, name: str, trace: Any) -> Part:
    """The part of a latent site of a model's trace."""
    if (found := trace.nodes[name]["infer"].get("flow_site")) is not None:
        site, reparam = found
        lattices = {site: tuple(trace.nodes[site]["fn"].event_shape)}
        base = NORMAL if reparam.from_normal else base_of(reparam.flow)
        flow = reparam.flow
        sites = [site], lambda z: {site: reparam.transform_sample(z)}
        return Part(*sites, lattices, flow, flow, base, reparam)
    if (transport := find_neutra(model, name, trace)) is None:
        return Part([name], lambda value: {name: value})
    neutra = transport[1]
    guide: Any = neutra.guide
    nodes = {site: trace.nodes[site] for site in guide_shapes(guide)}
    plates = (1,) * num_plate_dims(nodes.values())  # which the batch must not meet

    def values(latent: Tensor) -> dict[str, Tensor]:
        found = neutra.transform_sample(latent.reshape(-1, *plates, latent.shape[-1]))
        batch = latent.shape[:-1]
        return {x: value.reshape(batch + nodes[x]["value"].shape) for x, value in found.items()}

    lattices = dict.fromkeys(getattr(guide, "fields", ()), getattr(guide, "shape", ()))
    flow = guide.get_transform()
    known = (flow, base_of(flow)) if isinstance(flow, TransformModule) else ()
    return Part(list(nodes), values, lattices, guide, *known)
