# SPDX-License-Identifier: Apache-2.0
"""The sites of each scale, flows that are cut off there, and flows grown to larger lattices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import FreeField, IsingDual, fit
from pyro_neuralrg.distributions import TwoModes
from pyro_neuralrg.free_energy.importance import log_weights
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    Neighbour,
    RealNVP,
    conditional_hierarchical_flow,
)
from pyro_neuralrg.transforms.scales import blocks_of_scale, number_of_scales, sites_of_scale
from tests.transforms.registry import free_spectrum, perturb

SMALL = Neighbour(layers=2, hidden=(4,))


def small_flow(shape: tuple[int, ...], circuit: str = "mera", **options: Any) -> HierarchicalFlow:
    flow = HierarchicalFlow.build(shape, circuit, **{"bijector": SMALL, **options})
    return perturb(flow, 0.1)


FLOWS = {
    "everything": lambda: small_flow(
        (4, 4), base=TwoModes(2.0), spectrum=free_spectrum((4, 4), "periodic")
    ),
    "odd sides": lambda: small_flow((3, 5)),
    "haar": lambda: small_flow((4, 4), wavelet="haar"),
    "tree": lambda: small_flow((6,), "tree", boundary="open"),
    "truncated": lambda: small_flow((4, 4), depth=1),
    "brickwork": lambda: small_flow((4,), "brickwork"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_cut_off(name: str) -> None:
    """Its log-determinant is that of its Jacobian; finer latents are those of the whole flow.

    Scale zero is the field under the Gaussian layer.
    """
    flow = FLOWS[name]()
    x = torch.randn(3, *flow.shape)
    z, sites = flow.inverse_and_ladj(x)[0].flatten(1), math.prod(flow.shape)
    for scale in range(number_of_scales(flow.circuit) + 1):
        part = flow.up_to_scale(scale)
        u, ladj = part.inverse_and_ladj(x)
        jacobian = torch.autograd.functional.jacobian(part, u[0]).reshape(sites, sites)
        torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian)[1])
        torch.testing.assert_close(part.forward_and_ladj(u), (x, ladj))
        finer = torch.ones(sites, dtype=torch.bool)
        finer[sites_of_scale(flow.circuit, scale).flatten()] = False
        torch.testing.assert_close(u.flatten(1)[:, finer], z[:, finer])
        if scale == 0 and flow.gaussian is not None:
            torch.testing.assert_close(u, flow.gaussian.inverse_and_ladj(x)[0])
        if scale < number_of_scales(flow.circuit):
            assert (u.flatten(1) - z)[:, ~finer].abs().max() > 1e-3


def test_sites_of_odd_sides() -> None:
    circuit = make_circuit("mera", (5, 3))
    assert number_of_scales(circuit) == 3
    assert sites_of_scale(circuit, 1).tolist() == [[0, 2], [6, 8], [12, 14]]
    assert sites_of_scale(circuit, 2).tolist() == [[0], [12]]
    assert sites_of_scale(circuit, 3).tolist() == [[0]]
    rows = [[0, 0, 1], [0, 0, 1], [2, 2, 3], [2, 2, 3], [4, 4, 5]]
    assert blocks_of_scale(circuit, 1).tolist() == rows
    assert blocks_of_scale(circuit, 2)[:, 0].tolist() == [0, 0, 0, 0, 1]
    assert blocks_of_scale(circuit, 3).max() == 0


# flows grown


def weights(flow: HierarchicalFlow, index: int, region: int = 0) -> Tensor:
    return torch.cat([p.detach().flatten() for p in flow.layers[index][region].parameters()])  # type: ignore[index]


def test_scales_correspond() -> None:
    """Finest to finest, coarsest to coarsest, and the new one as the next finer one."""
    small = small_flow((8, 8), odd=True, base=TwoModes(2.0))
    large = small.grow()
    assert large.config == {**small.config, "shape": [16, 16], "depth": 4}
    layers = [(layer.kind[0], layer.scale) for layer in large.circuit.layers]
    assert layers == [("d", 0), ("d", 0), ("d", 1), ("d", 1), ("d", 2), ("d", 2), ("d", 3)]
    for index, source in enumerate([0, 1, 2, 3, 2, 3, 4]):
        assert torch.equal(weights(large, index), weights(small, source)), index
    assert not {id(p) for p in large.parameters()} & {id(p) for p in small.parameters()}


def test_shared_weights_stay_shared() -> None:
    small = small_flow((4, 4), weights="shared")
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
        ((1,), "mera", {}, (2,)),
        ((9,), "mera", {"block": 3}, (27,)),
        ((4, 4), "mera", {"depth": 1}, (8, 8)),
        ((4, 3), "mera", {"wavelet": "haar"}, (8, 6)),
        ((4, 4), "mera", {"bijector": RealNVP(layers=2)}, (8, 8)),
        ((4, 3), "mera", {"boundary": "open"}, (8, 6)),
    ],
)
def test_any_flow_grows_into_a_working_one(
    shape: tuple[int, ...], circuit: str, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    small = small_flow(shape, circuit, **options)
    large = small.grow()
    assert large.shape == expected
    learned = {float(p.detach().sum()) for p in small.parameters()} - {0.0}
    copied = {float(p.detach().sum()) for p in large.parameters()} & learned
    assert len(copied) >= 0.5 * len(learned)  # some blocks of odd sides have no counterpart
    z = torch.randn(3, *expected)
    x, ladj = large.forward_and_ladj(z)
    torch.testing.assert_close(large.inverse_and_ladj(x), (z, ladj))
    assert HierarchicalFlow.from_config(large.config).shape == expected


def test_a_grown_flow_keeps_dtype_and_conditions() -> None:
    flow = conditional_hierarchical_flow((4,), 2, bijector=SMALL, features=3, dtype=torch.float32)
    large = perturb(flow, 0.1).grow()
    context = torch.randn(2, dtype=torch.float32)
    assert torch.equal(large.features(context), flow.features(context))
    assert torch.equal(weights(large.flow, 0), weights(flow.flow, 0))
    x = large.condition(context)(torch.randn(3, 8, dtype=torch.float32))
    assert x.dtype == torch.float32


def test_what_was_learned_is_worth_something() -> None:
    """A grown flow begins nearer to its target than a new one."""
    small, large = (FreeField((side, side), mass=0.5) for side in (4, 8))
    flow = small.flow(spectrum=None, bijector=Neighbour(layers=4, hidden=(8,)))
    fit(small, flow, steps=100, seed=0, progress=False)
    grown = flow.grow()
    fresh = large.flow(spectrum=None, bijector=Neighbour(layers=4, hidden=(8,)))
    gaps = [
        large.log_partition() - float(log_weights(large, q, 2000).mean()) for q in (grown, fresh)
    ]
    assert gaps[0] < 0.3 * gaps[1]


@pytest.mark.usefixtures("as_a_reader")
def test_a_grown_flow_of_doubles_has_all_digits_of_the_spectrum() -> None:
    spectrum = IsingDual((8, 8)).spectrum
    large = IsingDual((4, 4)).flow(bijector=SMALL, dtype=torch.float64).grow(spectrum)
    torch.testing.assert_close(large.gaussian.scale.square(), spectrum, rtol=1e-14, atol=0.0)
