# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments of flows and their parts: named, with what is accepted instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import nn

from pyro_neuralrg import FlowGuide, IsingDual, fit
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import (
    FourierLayer,
    HierarchicalFlow,
    LayerFactory,
    Neighbour,
    RealNVP,
    conditional_hierarchical_flow,
    realnvp_block,
)
from pyro_neuralrg.transforms.scales import blocks_of_scale, sites_of_scale

build = partial(HierarchicalFlow.build, (4, 4))
conditional = partial(conditional_hierarchical_flow, (4, 4), 2, bijector=Neighbour(1, (3,)))
ONES, LINE, NAN = torch.ones(4, 4), torch.ones(4), float("nan")
WAVY = torch.arange(16.0).view(1, 4, 4) / 20  # not even
SEEING = {"site_features": torch.zeros(1, 4, 4)}
FOLLOWS = {"spectrum": ONES, "spectrum_slopes": 0.5 * ONES[None]}
SPECTRUM_8 = IsingDual((8, 8)).spectrum
INT, META = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, device="meta")
of_context = partial(pyro_transforms.conditional_affine_coupling, context_dim=5, hidden_dims=[4])
alone = pyro_transforms.affine_coupling
last_axis = LayerFactory(lambda n, c: pyro_transforms.matrix_exponential(c[-1]))


class OneWay(TransformModule):
    bijective = False
    domain = codomain = torch.distributions.constraints.real_vector


def draw(**options: Any) -> Any:
    """A field of a flow that should have a context."""
    return build(**options)(torch.ones(4, 4))


def at(context: Any) -> Any:
    return conditional().condition(context)


def made(value: Any) -> Callable[[], Any]:
    """A flow of blocks that a factory returns."""
    return partial(build, bijector=lambda size: value)


def spectrum(*values: float) -> Callable[[], Any]:
    return partial(FourierLayer, torch.tensor(values))


def sloped(slopes: Any) -> Callable[[], Any]:
    return partial(conditional, spectrum=ONES, spectrum_slopes=slopes)


VALUES: list[tuple[Callable[[], Any], str]] = [
    # flows
    (partial(HierarchicalFlow.build, ()), r"shape is \(\); accepted"),
    (partial(build, "merra"), "circuit is 'merra'; accepted: mera, tree, brick"),
    (partial(build, bijector="nvp"), "bijector is 'nvp'; accepted: realnvp, neighbour"),
    (partial(build, bijector={"name": "realnvp", "depth": 2}), r"options \['depth'\]; accept"),
    (partial(build, bijector=RealNVP(activation="gelu")), "activation is 'gelu'; accepted"),
    (partial(build, bijector={"name": "neighbour", "hidden": []}), r"hidden is \(\); accepted"),
    (partial(build, bijector=Neighbour(layers=0)), "layers is 0; accepted"),
    (partial(build, bijector=RealNVP(hidden=(3, 0))), r"hidden is \(3, 0\); accepted"),
    (partial(build, bijector=Neighbour(num_tanh=-1)), "num_tanh is -1; accepted: an integer"),
    (partial(build, weights="site"), "weights is 'site'; accepted: scale, block, shared"),
    (partial(build, weights="block"), "weights is 'block', but neighbour acts on all blocks"),
    (partial(build, boundary=None), "boundary is None; accepted: periodic, open"),
    (partial(build, block=1), "block is 1; accepted: an integer >= 2"),
    (partial(build, wavelet="db4"), "wavelet is 'db4'; accepted: haar"),
    (partial(build, "brickwork", wavelet="haar"), "wavelet is 'haar', but a brickwork has no dec"),
    (partial(build, depth=-1), "depth is -1; accepted: an integer >= 0"),
    (partial(build, spectrum=LINE), r"spectrum has shape \(4,\); accepted: .*\(4, 4"),
    (partial(build, bijector=lambda size: None, odd=True), "odd is True, but whether your"),
    (partial(realnvp_block, 1), "size is 1; accepted: a block of at least two sites"),
    (lambda: build(bijector=alone).config, "cannot be written as JSON; accepted: realnvp, neigh"),
    # blocks from elsewhere
    (made(OneWay()), "factory returned OneWay .*accepted: a bijective"),
    (made(pyro_transforms.GeneralizedChannelPermute(4)), "of event_dim 3; accepted"),
    (partial(build, bijector=of_context), "accepted: a ConditionalTransformModule in a condition"),
    (partial(conditional, bijector=alone), "AffineCoupling; accepted: a ConditionalTransformMod"),
    # fields
    (partial(build(), torch.zeros(4, 5)), r"z has shape \(4, 5\); accepted: any batch shape foll"),
    (partial(build().inv, LINE), r"x has shape \(4,\); accepted: any batch shape followed by"),
    (partial(build(), META), "z is .* on meta; accepted: .* on cpu"),
    # spectra
    (spectrum(1.0, 0.0, 1.0), r"an entry 0\.0; accepted: positive, finite"),
    (spectrum(1.0, NAN, 1.0), "an entry nan; accepted: positive"),
    (spectrum(1.0, 2.0, 3.0), "not even under k -> -k; accepted"),
    (partial(FourierLayer, torch.tensor(1.0)), r"shape is \(\); accepted"),
    (partial(FourierLayer, LINE, "closed"), "boundary is 'closed'; accepted: periodic, open"),
    (sloped(ONES), r"slopes has shape \(4, 4\); .*\(entries, 4, 4\)"),
    (sloped(-0.6 * torch.ones(2, 4, 4)), "accepted: positive"),
    (sloped(WAVY), "not even under k -> -k"),
    (partial(build, spectrum_slopes=WAVY, context_dim=2), "spectrum_slopes is given; accepted: on"),
    (partial(build, spectrum_slopes=WAVY, spectrum=ONES), "spectrum_slopes is given; accepted: on"),
    # contexts
    (partial(conditional, features=0), "features is 0; accepted: an integer >= 1"),
    (lambda: draw(**FOLLOWS, context_dim=1), "context is None; accepted for a spectrum with slop"),
    (lambda: draw(bijector=of_context, context_dim=5), "context is None; accepted for Conditional"),
    (lambda: FlowGuide(conditional())(), "context is None; accepted for a conditional flow"),
    (lambda: at(torch.zeros(3)), r"context has shape \(3,\); accepted: .*\(\.\.\., 2\)"),
    (lambda: at(torch.tensor(0.0)), r"context has shape \(\)"),
    # features of sites
    (partial(build, site_features=ONES), r"site_features has shape \(4, 4\); accepted"),
    (partial(build, site_features=torch.zeros(0, 4, 4)), r"has shape \(0, 4, 4\); accepted"),
    (partial(build, site_features=NAN * ONES[None]), "entry inf or nan; accepted"),
    (partial(build, **SEEING, odd=True, context_dim=1), "odd=True; accepted: .* no context"),
    (partial(build, **SEEING, bijector="realnvp"), r"bijector is RealNVP\(.*accepted: a bijector"),
    (partial(build, spectrum=ONES, covariance=torch.eye(16)), "covariance is given beside"),
    (partial(build, covariance=torch.eye(4)), r"covariance has shape \(4, 4\).*\(16, 16\)"),
    (partial(build, covariance=-torch.eye(16)), "covariance has an eigenvalue -1; accepted: a sym"),
    (partial(build, covariance=NAN * torch.eye(16)), "covariance has entries that are not .*accep"),
    (
        partial(build, covariance=torch.eye(16) + torch.ones(16, 16).triu(1)),
        "is not symmetric; ",
    ),
    (partial(build, covariance=torch.eye(16).expand(2, 16, 16)), "covariance has shape .*; accep"),
    (partial(build, **SEEING, bijector=last_axis), r"bijector is LayerFactory\("),
    # scales and growth
    *(
        (partial(f, make_circuit("mera", (4, 4)), scale), "accepted: an integer from 0 to 2")
        for f in (sites_of_scale, blocks_of_scale)
        for scale in (-1, 3)
    ),
    (lambda: build().up_to_scale(3), "scale is 3; accepted: an integer from 0 to 2"),
    (lambda: build(spectrum=ONES).grow(), r"spectrum is None; accepted: .*IsingDual\(\(8, 8\)\)"),
    (lambda: build().grow(SPECTRUM_8), "spectrum is given; accepted: None"),
    (lambda: build(spectrum=ONES).grow(ONES), r"spectrum has shape \(4, 4\); accepted: .*\(8, 8\)"),
    (lambda: build(bijector="realnvp", weights="block").grow(), "the flow has weights of each bl"),
    (lambda: build(**SEEING).grow(), "the flow has site_features, and those of"),
    (lambda: build(bijector=last_axis).grow(), "on the number of blocks, so that they cannot grow"),
    (lambda: conditional(**FOLLOWS).grow(SPECTRUM_8), "the flow has a spectrum for each context"),
]

TYPES: list[tuple[Callable[[], Any], str]] = [
    (partial(build, bijector=3), "bijector is 3; accepted: one of realnvp, neighbour"),
    (partial(build, bijector=RealNVP), "bijector is <class .*RealNVP.*not the class"),
    (partial(build, bijector=pyro_transforms.Permute(torch.arange(4))), "accepted: one of"),
    (partial(build, bijector=RealNVP(layers=2.5)), r"layers is 2\.5; accepted: an integer"),  # type: ignore[arg-type]
    (partial(build, bijector=RealNVP(hidden=10)), "hidden is 10; accepted: a tuple of integ"),  # type: ignore[arg-type]
    (partial(build, block=2.0), r"block is 2\.0; accepted: an integer >= 2"),
    (partial(build, odd="no"), "odd is a str; accepted: True or False"),
    (partial(build, dtype="float32"), "dtype is 'float32'; accepted: a floating dtype"),
    (made(nn.Linear(4, 4)), "factory returned Linear; accepted: a TransformModule"),
    (made(torch.distributions.transforms.ExpTransform()), "returned ExpTransform; accepted"),
    (partial(build(), INT), r"z is torch\.int64; accepted: a floating"),
    (lambda: build().inv(ONES), r"x is torch\.float32 on cpu; accepted: torch\.float64"),
    (partial(build(), [[0.0] * 4] * 4), "z is list; accepted: a floating tensor"),
    (partial(FourierLayer, INT), r"spectrum is torch\.int64; accepted: a floating"),
    (partial(FourierLayer, [1.0, 1.0]), "spectrum is list; accepted: a floating tensor"),
    (sloped(INT[None]), "slopes is torch.int64; accepted"),
    (lambda: at(1.0), "context is float; accepted: a tensor"),
    (lambda: at(LINE[:2]), "accepted: .*, torch.float64 as the flow"),
    (partial(fit, IsingDual((4, 4)), conditional()), r"flow is a Cond.*; accepted: flow\.cond"),
    (partial(build, site_features=1.0), "site_features is float; accepted"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [(call, ValueError, message) for call, message in VALUES]
    + [(call, TypeError, message) for call, message in TYPES],
)
def test_wrong_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"depth": 1}, "2 layers of .*, this flow 3 layers of .* numbers in all"),
        ({"bijector": "realnvp"}, "3 layers of .*, this flow 3 layers"),
    ],
)
def test_parameters_of_another_flow(options: dict[str, Any], seen: str) -> None:
    """One sentence; torch's list of their names is the cause."""
    with pytest.raises(RuntimeError, match=f"^state_dict has {seen}") as caught:
        build().load_state_dict(build(**options).state_dict())
    assert "accepted: those of a flow made as this one, HierarchicalFlow((4, 4), 'mera', " in str(
        caught.value
    )
    assert "state_dict" in str(caught.value.__cause__)
