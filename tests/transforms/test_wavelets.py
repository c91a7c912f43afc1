# SPDX-License-Identifier: Apache-2.0
"""Flows that begin at wavelets: their collective variables are block spins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_neuralrg import IsingDual, fit, load, save
from pyro_neuralrg.analysis import (
    block_wavelets,
    overlap,
    pyramid,
    responses,
    variables_of_scale,
)
from pyro_neuralrg.transforms import HierarchicalFlow, Neighbour, RealNVP, hierarchical_flow
from pyro_neuralrg.transforms.scales import number_of_scales
from pyro_neuralrg.transforms.wavelets import BlockRotation
from tests.analysis.linear import Matrix
from tests.transforms.registry import perturb

SMALL = Neighbour(layers=2, hidden=(4,))


def nothing(size: int) -> Matrix:
    return Matrix(torch.eye(size))


def overlap_with_quarters(flow: HierarchicalFlow, target: IsingDual, fields: int = 100) -> float:
    scale = number_of_scales(flow.circuit) - 1
    x = target.sample_reference(fields, seed=0).to(next(flow.parameters()))
    found = responses(flow, x, variables_of_scale(flow, scale))
    return overlap(found, block_wavelets(flow, scale)).after


@pytest.mark.parametrize("bijector", [nothing, RealNVP(layers=2, hidden=())])
@pytest.mark.parametrize("circuit", ["tree", "mera"])
@pytest.mark.parametrize(("shape", "block"), [((8,), 2), ((4, 8), 2), ((2, 4, 2), 2), ((9, 9), 3)])
def test_what_is_kept_is_the_sum_of_the_block(
    shape: tuple[int, ...], block: int, circuit: str, bijector: Any
) -> None:
    """Over the root of its sites, at every scale, in one to three dimensions; and ladj is 0.

    Where blocks are rotated one by one, and in the compiled passes.
    """
    options: dict[str, Any] = {"bijector": bijector, "block": block, "wavelet": "haar"}
    flow = HierarchicalFlow.build(shape, circuit, **options)
    assert (flow._couplings(None) is None) == (bijector is nothing)
    with torch.no_grad():  # without its bijectors
        for parameter in flow.parameters():
            parameter.zero_()
    x = torch.randn(5, *shape)
    for scale, kept in enumerate(pyramid(flow, x)):
        expected = x.flatten(1) @ block_wavelets(flow, scale).flatten(1).T
        torch.testing.assert_close(kept.flatten(1), expected)
    z, ladj = flow.inverse_and_ladj(x)
    assert torch.equal(ladj, torch.zeros(5))
    torch.testing.assert_close(z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def test_blocks_of_unequal_sides() -> None:
    """Each is rotated by itself, and its first variable is the sum."""
    flow = hierarchical_flow((3,), "tree", bijector=nothing, wavelet="haar")
    z = flow.inv(torch.tensor([1.0, 2.0, 5.0]))
    root = 2**0.5
    expected = torch.tensor([(3 / root + 5) / root, -1 / root, (3 / root - 5) / root])
    torch.testing.assert_close(z, expected)


def test_doubles_are_rotated_with_all_their_digits() -> None:
    """Whatever precision the flow had before."""
    flow = hierarchical_flow((8,), bijector=SMALL, wavelet="haar", dtype=torch.float32)
    flow(torch.randn(2, 8, dtype=torch.float32))
    flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    sequence = flow._couplings(None)
    assert sequence is not None
    rotation = BlockRotation((2,), (1,)).matrix(torch.zeros((), dtype=torch.float64))
    found = [n.arrays[0] for n in sequence.networks(sequence.weights(None)) if len(n.arrays) == 1]
    assert len(found) == 3
    assert all(torch.equal(matrix, rotation) for matrix in found)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("side", [4, 8])
def test_collective_variables_begin_as_block_spins(side: int) -> None:
    target = IsingDual((side, side))
    assert overlap_with_quarters(target.flow(wavelet="haar"), target) > 0.95
    assert overlap_with_quarters(target.flow(), target) < 0.5


def test_they_stay_block_spins_in_a_training() -> None:
    target = IsingDual((4, 4))
    flow = target.flow(wavelet="haar", dtype=torch.float32)
    result = fit(target, flow, steps=60, batch=64, seed=1, progress=False)
    assert result.history.free_energy[-10:].mean() < -target.log_partition() + 1.0
    assert overlap_with_quarters(flow, target) > 0.6


def test_files_and_grown_flows_keep_the_wavelet(tmp_path: Path) -> None:
    flow = perturb(hierarchical_flow((4, 4), bijector=SMALL, odd=True, wavelet="haar"), 0.1)
    save(tmp_path / "flow.pt", flow)
    again = load(tmp_path / "flow.pt").flow
    z = torch.randn(3, 4, 4)
    assert torch.equal(again(z), flow(z))
    assert again.wavelet == flow.grow().wavelet == "haar"
    assert "wavelet='haar'" in repr(flow)
    before = {name: value for name, value in flow.config.items() if name != "wavelet"}
    assert HierarchicalFlow.from_config(before).wavelet is None  # of a file of before
