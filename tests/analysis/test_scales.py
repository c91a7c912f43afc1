# SPDX-License-Identifier: Apache-2.0
"""Every latent belongs to one scale, and sees what the Jacobian says that it sees."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.analysis import (
    block_wavelets,
    latents_of_scale,
    light_cone,
    reach,
    scale_of_latents,
    variables_of_scale,
)
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import HierarchicalFlow, hierarchical_flow
from pyro_neuralrg.transforms.bijectors import RealNVP
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale

FLOWS = {
    "mera": ((8, 8), "mera", {}),
    "odd sides": ((5, 3), "mera", {}),
    "open tree": ((7,), "tree", {"boundary": "open"}),
    "truncated": ((8, 8), "mera", {"depth": 2}),
    "block of 3": ((9,), "mera", {"block": 3}),
    "3-d": ((2, 4, 2), "mera", {}),
    "brickwork": ((4, 4), "brickwork", {}),
}


def named(name: str):
    shape, circuit, options = FLOWS[name]
    return HierarchicalFlow.build(shape, circuit, **options)


@pytest.mark.parametrize("name", FLOWS)
def test_every_latent_belongs_to_one_scale_whose_block_wavelets_hold_their_own_site(
    name: str,
) -> None:
    flow = named(name)
    last = number_of_scales(flow.circuit)
    members = [latents_of_scale(flow, k) for k in range(last + 1)]
    scales = scale_of_latents(flow)
    assert torch.cat(members).sort().values.tolist() == list(range(scales.numel()))
    for scale, latents in enumerate(members):
        assert (scales.flatten()[latents] == scale).all()
        coarser = torch.cat(members[scale:]).sort().values
        sites, wavelets = variables_of_scale(flow, scale), block_wavelets(flow, scale).flatten(1)
        assert sites.tolist() == coarser.tolist()
        torch.testing.assert_close(wavelets @ wavelets.T, torch.eye(len(sites)))
        own = wavelets[torch.arange(len(sites)), sites]
        assert (own > 0).all()
        assert ((wavelets > 0).sum(0) == 1).all()


@pytest.mark.parametrize(
    ("circuit", "shape", "boundary"),
    [("tree", (8,), "periodic"), ("mera", (7,), "open"), ("mera", (4, 6), "periodic"),
     ("brickwork", (8,), "periodic")],
)  # fmt: skip
def test_the_cone_is_where_the_jacobian_is_not_zero(
    circuit: str, shape: tuple[int, ...], boundary: str
) -> None:
    bijector = RealNVP(layers=4, hidden=(4,))
    flow = hierarchical_flow(shape, circuit, bijector=bijector, boundary=boundary)
    for parameter in flow.parameters():
        parameter.data = torch.randn_like(parameter)
    z = torch.randn(shape)
    jacobian = torch.autograd.functional.jacobian(flow, z).reshape(z.numel(), z.numel())
    expected = torch.zeros_like(jacobian, dtype=torch.bool)
    for scale, cone in enumerate(light_cone(flow.circuit)):
        sites = sites_of_scale(flow.circuit, scale).flatten()
        own = torch.isin(sites, latents_of_scale(flow, scale))
        expected[:, sites[own]] = cone.flatten(1)[:, own]
    assert torch.equal(jacobian.abs() > 1e-12, expected)


def test_reach_and_cones_of_known_circuits() -> None:
    assert reach(make_circuit("mera", (16, 16))) == [2, 6, 8, 8]
    assert reach(make_circuit("brickwork", (16,), depth=2)) == [2]
    assert reach(make_circuit("tree", (4,), boundary="open")) == [0, 3]
    cones = light_cone(make_circuit("mera", (64,)))
    widths = [int(cone.flatten(1).sum(1).max()) for cone in cones]
    assert widths == [4, 6, 6, 6, 4, 2, 1]  # narrow at every scale
