# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical flow: what depends on what, which weights are shared, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
from typing import Any

import numpy as np
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch import Tensor

from pyro_neuralrg.distributions import FlowDistribution, SymmetrizedFlow
from pyro_neuralrg.lattice import Circuit
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    LayerFactory,
    Neighbour,
    RealNVP,
    coupling_sequence,
    hierarchical_flow,
)
from tests.transforms.registry import free_spectrum

Site = tuple[int, ...]
BLOCKS = RealNVP(layers=4, hidden=(6,))


def perturb(flow: HierarchicalFlow) -> HierarchicalFlow:
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return flow


def dependence(flow: HierarchicalFlow) -> Tensor:
    """Matrix of the latents (columns) that each field site (rows) depends on."""
    z = torch.randn(flow.shape)
    sites = z.numel()
    copies = z.expand(sites, *z.shape).clone().requires_grad_()
    x = flow.forward_and_ladj(copies)[0].reshape(sites, sites)
    (rows,) = torch.autograd.grad(x.diagonal().sum(), copies)
    return rows.reshape(sites, sites) != 0


def follow_axis(circuit: Circuit, site: int) -> set[int]:
    """The latents that a field site of a one-dimensional circuit depends on, from the data."""
    here, original = {site}, list(range(circuit.shape[0]))
    latents: set[int] = set()
    for layer in circuit.layers:
        side, shift = layer.shape[0], layer.shift[0]
        blocks = [
            [(start + step + shift) % side for step in range(segment.block)]
            for segment in layer.axes[0]
            for start in range(segment.start, segment.stop, segment.block)
        ]
        touched = [block for block in blocks if here & set(block)]
        here = {at for block in touched for at in block}
        if layer.kind == "decimator":
            kept = [block[0] for block in blocks]
            latents |= {original[at] for at in here if at not in kept}
            here = {kept.index(block[0]) for block in touched}
            original = [original[at] for at in kept]
    return latents | {original[at] for at in here}


@pytest.mark.parametrize("circuit", ["mera", "tree", "brickwork"])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
@pytest.mark.parametrize(("side", "block"), [(8, 2), (7, 2), (16, 2), (9, 3), (8, 3)])
def test_a_site_depends_on_its_light_cone(
    circuit: str, boundary: str, side: int, block: int
) -> None:
    flow = HierarchicalFlow.build(
        (side,), circuit, bijector=BLOCKS, boundary=boundary, block=block, odd=False
    )
    found = dependence(perturb(flow))
    for site in range(side):
        expected = torch.zeros(side, dtype=torch.bool)
        expected[list(follow_axis(flow.circuit, site))] = True
        assert torch.equal(found[site], expected)


@pytest.mark.parametrize("circuit", ["mera", "tree"])
@pytest.mark.parametrize("shape", [(8,), (4, 4), (3, 5), (2, 3, 4)])
def test_the_coarsest_latent_reaches_every_site(circuit: str, shape: Site) -> None:
    found = dependence(perturb(hierarchical_flow(shape, circuit, bijector=BLOCKS)))
    assert bool(found[:, 0].all())


def test_scale_k_lives_on_the_sublattice_of_spacing_two_to_the_k() -> None:
    """The reach of a latent grows with its scale."""
    found = dependence(perturb(hierarchical_flow((8, 8), "tree", bijector=BLOCKS)))
    for row, column in itertools.product(range(8), range(8)):
        spacing = max(s for s in (1, 2, 4, 8) if row % s == 0 and column % s == 0)
        reach = {1: 4, 2: 16, 4: 64, 8: 64}[spacing]
        assert int(found[:, 8 * row + column].sum()) == reach


def test_latents_behind_a_truncated_depth_stay_normal() -> None:
    flow = hierarchical_flow((4, 4), depth=0)
    z = torch.randn(3, 4, 4)
    x, ladj = flow.forward_and_ladj(z)
    assert torch.equal(x, z)
    assert torch.equal(ladj, torch.zeros(3))


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_the_spectrum_alone_is_the_free_field(boundary: str) -> None:
    """Cov(x) has the given eigenvalues, and ladj is half the sum of their logarithms."""
    spectrum = free_spectrum((3, 4), boundary)
    flow = hierarchical_flow((3, 4), depth=0, spectrum=spectrum, boundary=boundary)
    rows = flow(torch.eye(12).reshape(12, 3, 4)).reshape(12, 12)
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows)
    torch.testing.assert_close(eigenvalues, spectrum.flatten().sort().values)
    _, ladj = flow.forward_and_ladj(torch.randn(3, 4))
    torch.testing.assert_close(ladj, 0.5 * spectrum.log().sum())


def count(**options: Any) -> int:
    flow = hierarchical_flow((8, 8), bijector=BLOCKS, **options)
    return sum(parameter.numel() for parameter in flow.parameters())


def test_number_of_weights() -> None:
    """Of 8 x 8: five layers of 16 + 16, 4 + 4 and 1 blocks."""
    one = count(depth=1)
    assert one % 2 == 0
    assert count() == 5 * (one // 2)
    assert count(weights="block") == (16 + 16 + 4 + 4 + 1) * (one // 2)
    assert count(weights="shared") == one


def test_blocks_of_their_own_differ() -> None:
    shared = perturb(hierarchical_flow((4,), "brickwork", depth=1, bijector=BLOCKS))
    own = perturb(hierarchical_flow((4,), "brickwork", depth=1, bijector=BLOCKS, weights="block"))
    z = torch.randn(2).repeat(2)
    first, second = shared(z).reshape(2, 2)
    torch.testing.assert_close(first, second)
    first, second = own(z).reshape(2, 2)
    assert not torch.allclose(first, second)


def test_shared_weights_stay_shared_through_copies_and_training() -> None:
    flow = hierarchical_flow((8,), weights="shared")
    before = sum(p.numel() for p in flow.parameters())
    flow.load_state_dict(flow.state_dict())
    assert sum(p.numel() for p in flow.float().parameters()) == before
    tops = [layer[0].packed for layer in flow.layers if len(layer) == 1]
    assert len({id(top) for top in tops}) < len(tops)


def test_a_periodic_flow_on_blocks_is_equivariant_under_their_translations() -> None:
    flow = perturb(hierarchical_flow((8, 8), depth=1))
    z = torch.randn(3, 8, 8)
    x, ladj = flow.forward_and_ladj(z)
    moved, same = flow.forward_and_ladj(z.roll((2, 4), (1, 2)))
    torch.testing.assert_close(moved, x.roll((2, 4), (1, 2)))
    torch.testing.assert_close(same, ladj)


def test_a_flow_of_foreign_blocks_has_no_configuration() -> None:
    for bijector in (pyro_transforms.affine_coupling, LayerFactory(lambda size, count: None)):
        flow = hierarchical_flow((1,), bijector=bijector)
        with pytest.raises(
            ValueError, match=r"cannot be written as JSON; accepted: realnvp, neigh"
        ):
            _ = flow.config


def test_configuration_names_every_option() -> None:
    options: dict[str, Any] = {
        "bijector": {"name": "realnvp", "layers": 2, "hidden": [3, 4], "activation": "tanh"},
        "block": 3,
        "depth": 1,
        "boundary": "open",
        "weights": "block",
        "odd": True,
        "context_dim": 3,
    }
    config = HierarchicalFlow.build((4, 5), "tree", **options).config
    hidden = config["bijector"]["hidden"]
    config["bijector"]["hidden"] = list(hidden)
    assert config == {
        "shape": [4, 5],
        "circuit": "tree",
        "base": {"name": "StandardNormal"},
        "spectrum": False,
        "spectrum_slopes": 0,
        "site_features": 0,
        **options,
    }


@pytest.mark.parametrize(
    "bijector",
    [
        RealNVP(layers=np.int64(2), hidden=(np.int32(3), np.int64(4))),
        Neighbour(layers=np.int64(2), hidden=[np.int64(3)], num_tanh=np.int8(1)),
    ],
)
def test_integers_of_numpy_are_integers(bijector: Any) -> None:
    flow = HierarchicalFlow.build(
        np.array([4, 4]),
        block=np.int64(2),
        depth=np.int64(1),
        bijector=bijector,
    )
    again = HierarchicalFlow.from_config(json.loads(json.dumps(flow.config)))
    again.load_state_dict(flow.state_dict())
    z = torch.randn(3, 4, 4)
    assert torch.equal(again(z), flow(z))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": ()}, ValueError, r"shape is \(\); accepted"),
        ({"circuit": "merra"}, ValueError, "circuit is 'merra'; accepted: mera, tree, brick"),
        ({"bijector": "nvp"}, ValueError, "bijector is 'nvp'; accepted: realnvp, neighbour"),
        ({"bijector": {"layers": 2}}, ValueError, "bijector is None; accepted: realnvp"),
        ({"bijector": {"name": "realnvp", "depth": 2}}, ValueError, r"options \['depth'\]; accept"),
        ({"bijector": 3}, TypeError, "bijector is 3; accepted: one of realnvp, neighbour"),
        ({"bijector": pyro_transforms.Permute(torch.arange(4))}, TypeError, "accepted: one of"),
        ({"bijector": RealNVP(layers=0)}, ValueError, "layers is 0; accepted: at least one"),
        ({"bijector": RealNVP(hidden=(0,))}, ValueError, r"hidden is \(0,\); accepted"),
        ({"bijector": RealNVP(activation="gelu")}, ValueError, "activation is 'gelu'; accepted"),
        ({"bijector": {"name": "neighbour", "hidden": []}}, ValueError, "hidden is empty; acc"),
        ({"bijector": RealNVP(layers=2.5)}, TypeError, r"layers is 2\.5; accepted: .* an integer"),
        ({"bijector": RealNVP(hidden=10)}, TypeError, "hidden is 10; accepted: a tuple of integ"),
        (
            {"bijector": Neighbour(hidden=(2.5,))},
            TypeError,
            r"hidden is \(2\.5,\); accepted",
        ),
        ({"bijector": Neighbour(num_tanh=-1)}, ValueError, "num_tanh is -1; accepted: an integer"),
        ({"bijector": RealNVP}, TypeError, "bijector is <class .*RealNVP.*not the class"),
        ({"odd": "no"}, TypeError, "odd is 'no'; accepted: True or False"),
        ({"dtype": "float32"}, TypeError, "dtype is 'float32'; accepted: a floating dtype"),
        ({"dtype": torch.int64}, TypeError, r"dtype is torch\.int64; accepted: a floating dtype"),
        ({"weights": "site"}, ValueError, "weights is 'site'; accepted: scale, block, shared"),
        ({"weights": "block"}, ValueError, "weights is 'block', but neighbour acts on all blocks"),
        ({"block": 1}, ValueError, "block is 1; accepted: an integer >= 2"),
        ({"spectrum": torch.ones(4)}, ValueError, r"spectrum has shape \(4,\); accepted: .*\(4, 4"),
        ({"spectrum": torch.zeros(4, 4)}, ValueError, r"spectrum has an entry 0\.0; accepted: pos"),
        ({"spectrum": [1.0]}, TypeError, "spectrum is list; accepted: a floating tensor"),
        (
            {"bijector": pyro_transforms.affine_coupling, "odd": True},
            ValueError,
            "odd is True, but whether your own bijector commutes with .*accepted: odd=False",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HierarchicalFlow.build(**{"shape": (4, 4), **options})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(4, 5), ValueError, r"has shape \(4, 5\); accepted: any batch shape followed"),
        (torch.zeros(4), ValueError, r"has shape \(4,\); accepted: any batch shape followed by"),
        (torch.zeros(4, 4, 1), ValueError, r"has shape \(4, 4, 1\); accepted"),
        (torch.zeros(4, 4, dtype=torch.long), TypeError, r"is torch\.int64; accepted: a floating"),
        (torch.zeros(4, 4, dtype=torch.bool), TypeError, r"is torch\.bool; accepted: a floating"),
        (torch.zeros(4, 4, dtype=torch.cfloat), TypeError, r"is torch\.complex64; accepted: a f"),
        (
            torch.zeros(4, 4, dtype=torch.float32),
            TypeError,
            r"is torch\.float32 on cpu; accepted: torch\.f",
        ),
        (
            torch.zeros(4, 4, device="meta"),
            ValueError,
            r"is .* on meta; accepted: .* on cpu",
        ),
        ([[0.0] * 4] * 4, TypeError, r"is list; accepted: a floating tensor"),
    ],
)
def test_bad_fields(value: Any, error: type[Exception], message: str) -> None:
    flow = hierarchical_flow((4, 4))
    for name, use in (("z", flow), ("x", flow.inv)):
        with pytest.raises(error, match=f"^{name} {message}"):
            use(value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "HierarchicalFlow((4, 4), 'mera', bijector=RealNVP(layers=4, "),
        ({"depth": 1, "odd": True}, ", depth=1, odd=True)"),
        ({"spectrum": torch.ones(4, 4), "boundary": "open"}, ", boundary='open', spectrum=...)"),
    ],
)
def test_it_prints_its_circuit(options: dict[str, Any], expected: str) -> None:
    flow = hierarchical_flow((4, 4), bijector=BLOCKS, **options)
    assert expected in repr(flow)
    assert repr(FlowDistribution(flow)) == f"FlowDistribution({flow!r})"
    assert repr(SymmetrizedFlow(flow)) == f"SymmetrizedFlow({flow!r}, <2 elements>)"


def test_parameters_of_the_helper() -> None:
    assert len(inspect.signature(hierarchical_flow).parameters) <= 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.filterwarnings("error:torch.compile fails here")
def test_a_compiled_flow_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tracing of torch.compile alone, as on an accelerator; its copies are plain."""
    monkeypatch.setattr(coupling_sequence, "is_compiled", lambda *_: False)
    flow, z = perturb(hierarchical_flow((4,), bijector=Neighbour(2, (4,)))), torch.randn(3, 4)
    expected = flow.forward_and_ladj(z)
    flow.compile(backend="aot_eager")
    for one in (flow, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(one.forward_and_ladj(z), expected)
    assert flow._couplings(None).operations is not None
