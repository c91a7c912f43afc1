# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The light cone is that of a flow: the Jacobian vanishes outside it and nowhere inside."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.analysis import latents_of_scale, light_cone, reach
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import hierarchical_flow
from pyro_neuralrg.transforms.bijectors import RealNVP
from pyro_neuralrg.transforms.scales import number_of_scales, sites_of_scale


@pytest.mark.parametrize(
    ("circuit", "shape", "boundary"),
    [
        ("tree", (8,), "periodic"),
        ("mera", (8,), "periodic"),
        ("mera", (7,), "open"),
        ("mera", (4, 6), "periodic"),
        ("brickwork", (8,), "periodic"),
    ],
)
def test_cone_is_where_the_jacobian_is_not_zero(
    circuit: str, shape: tuple[int, ...], boundary: str
) -> None:
    flow = hierarchical_flow(
        shape, circuit, bijector=RealNVP(layers=4, hidden=(4,)), boundary=boundary
    )
    for parameter in flow.parameters():
        parameter.data = torch.randn_like(parameter)
    z = torch.randn(shape)
    jacobian = torch.autograd.functional.jacobian(flow, z).reshape(z.numel(), z.numel())
    cones = light_cone(flow.circuit)
    expected = torch.zeros_like(jacobian, dtype=torch.bool)
    scales = number_of_scales(flow.circuit)
    for scale in range(scales + 1):
        sites = sites_of_scale(flow.circuit, scale).flatten()
        mine = set(latents_of_scale(flow, scale).tolist())
        cone = cones[scale].flatten(1)
        for position, site in enumerate(sites.tolist()):
            if site in mine:
                expected[:, site] = cone[:, position]
    assert torch.equal(jacobian.abs() > 1e-12, expected)


def test_reach_of_known_circuits() -> None:
    assert reach(make_circuit("tree", (8,))) == [0, 0, 4]
    assert reach(make_circuit("mera", (16, 16))) == [2, 6, 8, 8]
    assert reach(make_circuit("brickwork", (16,), depth=2)) == [2]
    assert reach(make_circuit("tree", (4,), boundary="open")) == [0, 3]


def test_the_cone_of_a_mera_stays_narrow() -> None:
    cones = light_cone(make_circuit("mera", (64,)))
    widths = [int(cone.flatten(1).sum(1).max()) for cone in cones]
    assert widths == [4, 6, 6, 6, 4, 2, 1]
