# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The sites of each scale, and flows that are cut off there."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import HierarchicalFlow, Neighbour, hierarchical_flow
from pyro_neuralrg.transforms.scales import blocks_of_scale, number_of_scales, sites_of_scale


def small_flow(shape: tuple[int, ...], circuit: str = "mera", **options) -> HierarchicalFlow:
    bijector = Neighbour(layers=3, hidden=(5,))
    flow = hierarchical_flow(shape, circuit, bijector=bijector, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def spectrum(shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.rand(shape) + 0.5
    return values + values.flip((0, 1)).roll((1, 1), (0, 1))


FLOWS = {
    "mera": lambda: small_flow((4, 4)),
    "everything": lambda: small_flow((4, 4), base=TwoModes(2.0), spectrum=spectrum((4, 4))),
    "odd sides": lambda: small_flow((3, 5)),
    "tree": lambda: small_flow((6,), "tree", boundary="open"),
    "truncated": lambda: small_flow((4, 4), depth=1),
    "brickwork": lambda: small_flow((4,), "brickwork"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_cut_off_flow_has_the_log_determinant_of_its_jacobian(name: str) -> None:
    flow = FLOWS[name]()
    for scale in range(number_of_scales(flow.circuit) + 1):
        part = flow.up_to_scale(scale)
        u = torch.randn(flow.shape)
        x, ladj = part.forward_and_ladj(u)
        jacobian = torch.autograd.functional.jacobian(part, u)
        sites = math.prod(flow.shape)
        exact = torch.linalg.slogdet(jacobian.reshape(sites, sites))[1]
        torch.testing.assert_close(ladj, exact)
        back, same = part.inverse_and_ladj(x)
        torch.testing.assert_close(back, u)
        torch.testing.assert_close(same, ladj)


@pytest.mark.parametrize("name", FLOWS)
def test_finer_latents_are_those_of_the_whole_flow(name: str) -> None:
    flow = FLOWS[name]()
    x = torch.randn(3, *flow.shape)
    z = flow.inverse_and_ladj(x)[0].flatten(1)
    for scale in range(number_of_scales(flow.circuit) + 1):
        u = flow.up_to_scale(scale).inverse_and_ladj(x)[0].flatten(1)
        finer = torch.ones(u.shape[1], dtype=torch.bool)
        finer[sites_of_scale(flow.circuit, scale).flatten()] = False
        torch.testing.assert_close(u[:, finer], z[:, finer])
        coarse = ~finer
        if scale < number_of_scales(flow.circuit):
            assert (u[:, coarse] - z[:, coarse]).abs().max() > 1e-3


def test_scale_zero_is_the_field_under_the_gaussian_layer() -> None:
    flow = FLOWS["everything"]()
    assert flow.gaussian is not None
    x = torch.randn(3, 4, 4)
    torch.testing.assert_close(
        flow.up_to_scale(0).inverse_and_ladj(x)[0], flow.gaussian.inverse_and_ladj(x)[0]
    )


def test_sites_of_odd_sides() -> None:
    circuit = make_circuit("mera", (5, 3))
    assert number_of_scales(circuit) == 3
    assert sites_of_scale(circuit, 1).tolist() == [[0, 2], [6, 8], [12, 14]]
    assert sites_of_scale(circuit, 2).tolist() == [[0], [12]]
    assert sites_of_scale(circuit, 3).tolist() == [[0]]
    assert blocks_of_scale(circuit, 1).tolist() == [
        [0, 0, 1],
        [0, 0, 1],
        [2, 2, 3],
        [2, 2, 3],
        [4, 4, 5],
    ]
    assert blocks_of_scale(circuit, 2)[:, 0].tolist() == [0, 0, 0, 0, 1]
    assert blocks_of_scale(circuit, 3).max() == 0


@pytest.mark.parametrize("scale", [-1, 3])
def test_scales_that_are_not_there(scale: int) -> None:
    circuit = make_circuit("mera", (4, 4))
    for function in (sites_of_scale, blocks_of_scale):
        with pytest.raises(ValueError, match="accepted: an integer from 0 to 2"):
            function(circuit, scale)
    with pytest.raises(ValueError, match="scale is"):
        hierarchical_flow((4, 4)).up_to_scale(scale)
    with pytest.raises(TypeError, match=r"scale is 1\.5"):
        hierarchical_flow((4, 4)).up_to_scale(1.5)  # type: ignore[arg-type]
