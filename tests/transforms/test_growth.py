# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A flow on a larger lattice begins with what a smaller one has learned."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_neuralrg import FreeField, IsingDual, fit
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.free_energy.importance import log_weights
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    LayerFactory,
    Neighbour,
    RealNVP,
    conditional_hierarchical_flow,
    hierarchical_flow,
)

SMALL = Neighbour(layers=2, hidden=(4,))


def perturbed(shape: tuple[int, ...], circuit: str = "mera", **options: Any) -> HierarchicalFlow:
    flow = HierarchicalFlow.build(shape, circuit, **{"bijector": SMALL, **options})
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def weights(flow: HierarchicalFlow, index: int, region: int = 0) -> Tensor:
    return torch.cat([p.detach().flatten() for p in flow.layers[index][region].parameters()])  # type: ignore[index]


def test_scales_correspond() -> None:
    """Finest to finest, coarsest to coarsest, and the new one as the next finer one."""
    small = perturbed((8, 8), odd=True, base=TwoModes(2.0))
    large = small.grow()
    assert large.shape == (16, 16)
    assert large.config == {**small.config, "shape": [16, 16], "depth": 4}
    layers = [(layer.kind[0], layer.scale) for layer in large.circuit.layers]
    assert layers == [("d", 0), ("d", 0), ("d", 1), ("d", 1), ("d", 2), ("d", 2), ("d", 3)]
    for index, source in enumerate([0, 1, 2, 3, 2, 3, 4]):
        assert torch.equal(weights(large, index), weights(small, source)), index
    assert not {id(p) for p in large.parameters()} & {id(p) for p in small.parameters()}


def test_shared_weights_stay_shared() -> None:
    small = perturbed((4, 4), weights="shared")
    large = small.grow().grow()
    assert large.shape == (16, 16)
    assert torch.equal(weights(large, 0), weights(small, 0))
    decimators = [i for i, layer in enumerate(large.circuit.layers) if layer.kind == "decimator"]
    first, *others = [list(large.layers[i].parameters()) for i in decimators]
    assert len(others) == 3
    for other in others:
        assert all(a is b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("shape", "circuit", "options", "expected"),
    [
        ((8,), "tree", {}, (16,)),
        ((4,), "brickwork", {}, (8,)),
        ((5, 3), "mera", {}, (10, 6)),
        ((1, 4), "mera", {}, (1, 8)),
        ((2, 2), "mera", {}, (4, 4)),
        ((1,), "mera", {}, (2,)),
        ((9,), "mera", {"block": 3}, (27,)),
        ((4, 4), "mera", {"depth": 1}, (8, 8)),
        ((4, 4), "mera", {"bijector": RealNVP(layers=2)}, (8, 8)),
        ((4, 3), "mera", {"boundary": "open"}, (8, 6)),
    ],
)
def test_any_flow_grows_into_a_working_one(
    shape: tuple[int, ...], circuit: str, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    small = perturbed(shape, circuit, **options)
    large = small.grow()
    assert large.shape == expected
    learned = {float(p.detach().sum()) for p in small.parameters()} - {0.0}
    copied = {float(p.detach().sum()) for p in large.parameters()} & learned
    assert len(copied) >= 0.5 * len(learned)  # some blocks of odd sides have no counterpart
    z = torch.randn(3, *expected)
    x, ladj = large.forward_and_ladj(z)
    back, same = large.inverse_and_ladj(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(same, ladj)
    assert HierarchicalFlow.from_config(large.config).shape == expected


def test_keeps_dtype_and_conditions() -> None:
    flow = conditional_hierarchical_flow((4,), 2, bijector=SMALL, features=3, dtype=torch.float32)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    large = flow.grow()
    context = torch.randn(2, dtype=torch.float32)
    assert torch.equal(large.features(context), flow.features(context))
    assert torch.equal(weights(large.flow, 0), weights(flow.flow, 0))
    x = large.condition(context)(torch.randn(3, 8, dtype=torch.float32))
    assert x.dtype == torch.float32


def test_what_was_learned_is_worth_something() -> None:
    """A grown flow begins nearer to its target than a new one."""
    small, large = (FreeField((side, side), mass=0.5) for side in (4, 8))
    flow = small.flow(spectrum=None, bijector=Neighbour(layers=4, hidden=(8,)))
    fit(small, flow, steps=200, seed=0, progress=False)
    grown = flow.grow()
    fresh = large.flow(spectrum=None, bijector=Neighbour(layers=4, hidden=(8,)))
    gaps = [
        large.log_partition() - float(log_weights(large, q, 2000).mean()) for q in (grown, fresh)
    ]
    assert gaps[0] < 0.3 * gaps[1]


def test_a_gaussian_layer_needs_the_larger_spectrum() -> None:
    flow = IsingDual((4, 4)).flow(bijector=SMALL)
    with pytest.raises(
        ValueError, match=r"spectrum is None; accepted: .*IsingDual\(\(8, 8\)\)\.spectrum"
    ):
        flow.grow()
    with pytest.raises(ValueError, match="spectrum is given; accepted: None"):
        hierarchical_flow((4, 4)).grow(IsingDual((8, 8)).spectrum)
    with pytest.raises(ValueError, match=r"spectrum has shape \(4, 4\); accepted: .*\(8, 8\)"):
        flow.grow(IsingDual((4, 4)).spectrum)
    target = IsingDual((8, 8))
    large = flow.grow(target.spectrum)
    assert large.gaussian is not None
    torch.testing.assert_close(large.gaussian.scale.square(), target.spectrum)


def test_weights_per_block_cannot_grow() -> None:
    flow = hierarchical_flow((4, 4), bijector="realnvp", weights="block")
    with pytest.raises(ValueError, match="the flow has weights of each block"):
        flow.grow()


def test_layers_that_depend_on_the_number_of_blocks_cannot_grow() -> None:
    def layer(size: int, count: tuple[int, ...]) -> Any:
        return dist.transforms.matrix_exponential(count[-1])

    flow = hierarchical_flow((4, 4), bijector=LayerFactory(layer))
    with pytest.raises(
        ValueError, match="depend on the number of blocks, so that they cannot grow"
    ):
        flow.grow()
