# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Every latent belongs to one scale, and blocks are what the decimators make of the lattice."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.analysis import (
    block_wavelets,
    latents_of_scale,
    scale_of_latents,
    variables_of_scale,
)
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales

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
def test_every_latent_belongs_to_one_scale(name: str) -> None:
    flow = named(name)
    last = number_of_scales(flow.circuit)
    members = [latents_of_scale(flow, k) for k in range(last + 1)]
    scales = scale_of_latents(flow)
    assert scales.shape == flow.shape
    assert torch.cat(members).sort().values.tolist() == list(range(scales.numel()))
    for scale, latents in enumerate(members):
        assert (scales.flatten()[latents] == scale).all()
        coarser = torch.cat(members[scale:]).sort().values
        assert variables_of_scale(flow, scale).tolist() == coarser.tolist()


@pytest.mark.parametrize("name", FLOWS)
def test_block_wavelets_are_orthonormal_and_hold_their_own_site(name: str) -> None:
    flow = named(name)
    for scale in range(number_of_scales(flow.circuit) + 1):
        wavelets = block_wavelets(flow, scale).flatten(1)
        sites = variables_of_scale(flow, scale)
        torch.testing.assert_close(wavelets @ wavelets.T, torch.eye(len(sites)))
        own = wavelets[torch.arange(len(sites)), sites]
        assert (own > 0).all()
        assert ((wavelets > 0).sum(0) == 1).all()


def test_a_square_and_its_quarters() -> None:
    flow = named("mera")
    assert [len(latents_of_scale(flow, k)) for k in range(4)] == [48, 12, 3, 1]
    assert variables_of_scale(flow, 2).tolist() == [0, 4, 32, 36]
    quarters = block_wavelets(flow, 2)
    expected = torch.zeros(4, 8, 8)
    expected[0, :4, :4] = expected[1, :4, 4:] = expected[2, 4:, :4] = expected[3, 4:, 4:] = 0.25
    torch.testing.assert_close(quarters, expected)
