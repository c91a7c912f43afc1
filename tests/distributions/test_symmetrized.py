# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.transforms import affine_coupling
from torch import Tensor
from torch.distributions import constraints

from pyro_neuralrg.distributions import (
    FlowDistribution,
    LatticeSymmetry,
    SymmetrizedFlow,
    symmetry_group,
)

Make = Callable[..., Any]


class Affine(TransformModule):
    """x = loc + exp(log_scale) z: densities of its symmetrisations are known by hand."""

    bijective = True
    domain = codomain = constraints.independent(constraints.real, 1)

    def __init__(self, loc: list[float], scale: list[float]) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(loc))
        self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())
        self.shape = (len(loc),)
        self.odd = False
        self.passes = 0

    def _call(self, z: Tensor) -> Tensor:
        self.passes += 1
        return self.loc + self.log_scale.exp() * z

    def _inverse(self, x: Tensor) -> Tensor:
        self.passes += 1
        return (x - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(z.shape[:-1])


GROUPS = {
    "Z2": {},
    "translations": {"spin_flips": False, "translation_step": 1},
    "point": {"spin_flips": False, "point_symmetries": True},
    "all": {"translation_step": 1, "point_symmetries": True},
}


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(3,), (2, 2), (2, 3)], ids=str)
def test_log_prob_is_the_mean_over_the_group(
    jittered: Make, shape: tuple[int, ...], group: str, odd: bool
) -> None:
    flow = jittered(shape, odd=odd)
    elements = symmetry_group(shape, **GROUPS[group])
    q = SymmetrizedFlow(flow, elements, orbit_chunk=7)
    x = torch.randn(4, *shape)
    base = FlowDistribution(flow)
    terms = base.log_prob(torch.stack([g(x) for g in elements]))
    expected = terms.logsumexp(0) - math.log(len(elements))
    torch.testing.assert_close(q.log_prob(x), expected)
    moved = q.log_prob(torch.stack([g(x) for g in elements]))
    torch.testing.assert_close(moved, expected.expand_as(moved))


@pytest.mark.parametrize("odd", [False, True])
def test_number_of_passes(odd: bool) -> None:
    """A sample with its density costs |G| passes, of an odd flow half as many."""
    flow = Affine([0.0] * 3 if odd else [0.3, -0.2, 0.9], [0.5, 1.0, 2.0])
    flow.odd = odd
    q = SymmetrizedFlow(flow, symmetry_group((3,), translation_step=1), orbit_chunk=1)
    q.rsample_and_log_prob((5,))
    assert len(q.elements) == 6
    assert flow.passes == (3 if odd else 6)


def test_an_odd_flow_whose_group_pairs_the_sign_with_a_shift() -> None:
    """Where -1 is not a member by itself, no two elements count the same."""
    flow = Affine([0.0] * 2, [0.5, 2.0])
    one = LatticeSymmetry.identity(1)
    twisted = LatticeSymmetry((1,), (0,), (False,), sign=-1)
    x = torch.randn(4, 2)
    expected = SymmetrizedFlow(flow, (one, twisted)).log_prob(x)
    flow.odd = True
    q = SymmetrizedFlow(flow, (twisted, one), orbit_chunk=1)
    torch.testing.assert_close(q.log_prob(x), expected)
    x, log_q = q.rsample_and_log_prob((4,))
    torch.testing.assert_close(q.log_prob(x.clone()), log_q)


def test_flows_of_fewer_event_dimensions_than_the_lattice() -> None:
    """A coupling of rows: its log-determinant has one entry for each row."""
    flow = affine_coupling(3, hidden_dims=[4])
    q = SymmetrizedFlow(flow, shape=(2, 3))
    x = torch.randn(5, 2, 3)
    rows = FlowDistribution(flow, (2, 3))
    expected = torch.logaddexp(rows.log_prob(x), rows.log_prob(-x)) - math.log(2)
    torch.testing.assert_close(q.log_prob(x), expected)
    drawn = q.rsample((4,))
    torch.testing.assert_close(q.log_prob(drawn), q.log_prob(drawn.clone()))


def test_samples_follow_the_density() -> None:
    """First and second moments of the mixture, within five standard errors."""
    group = symmetry_group((2,), translation_step=1)
    q = SymmetrizedFlow(Affine([1.0, -0.5], [0.5, 1.5]), group)
    n = 40_000
    first, other = q.sample((n,)).T
    second = (1.0 + 0.25 + 0.25 + 2.25) / 2
    exact = {0.0: (first, other), second: (first**2, other**2), -0.5: (first * other,)}
    for expected, several in exact.items():
        for values in several:
            assert abs(values.mean() - expected) < 5 * values.std() / n**0.5


def test_gradient_of_the_entropy(jittered: Make) -> None:
    """The derivative of E[ln q] by quadrature, within five standard errors."""
    flow = Affine([0.8], [0.6])
    q = SymmetrizedFlow(flow)
    grid = torch.linspace(-6, 6, 4001).unsqueeze(-1)
    log_q = q.log_prob(grid)
    exact = torch.autograd.grad((log_q.exp() * log_q).sum() * 12 / 4000, [flow.loc, flow.log_scale])
    batches = []
    for _ in range(50):
        _, log_q = q.rsample_and_log_prob((2000,))
        batches.append(torch.stack(torch.autograd.grad(log_q.mean(), [flow.loc, flow.log_scale])))
    found = torch.stack(batches).squeeze(-1)
    error = (found.mean(0) - torch.cat(exact)).abs()
    assert (error < 5 * found.std(0) / 50**0.5).all()


@pytest.mark.parametrize("group", GROUPS)
def test_gradient_of_the_density(jittered: Make, group: str) -> None:
    """The combined pass and the mean over the group have the same gradient in every parameter."""
    flow = jittered((2, 2))
    elements = symmetry_group((2, 2), **GROUPS[group])
    q = SymmetrizedFlow(flow, elements)
    torch.manual_seed(3)
    x, log_q = q.rsample_and_log_prob((3,))
    parameters = list(flow.parameters())
    fast = torch.autograd.grad(log_q.sum(), parameters, allow_unused=True)
    torch.manual_seed(3)
    x = q.rsample((3,))
    base = FlowDistribution(flow)
    slow_log_q = base.log_prob(torch.stack([g(x) for g in elements])).logsumexp(0)
    slow = torch.autograd.grad(slow_log_q.sum(), parameters, allow_unused=True)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_expand_copy_pickle(jittered: Make) -> None:
    q = SymmetrizedFlow(jittered((2, 2)), symmetry_group((2, 2), point_symmetries=True))
    wide = q.expand((3,))
    assert wide.batch_shape == (3,)
    x = wide.rsample((2,))
    assert x.shape == (2, 3, 2, 2)
    torch.testing.assert_close(wide.log_prob(x), q.log_prob(x.clone()))
    for clone in (copy.deepcopy(wide), pickle.loads(pickle.dumps(wide))):
        torch.testing.assert_close(clone.log_prob(x), wide.log_prob(x))


def test_float32_and_trivial_group(jittered: Make) -> None:
    one = (LatticeSymmetry.identity(2),)
    flow = jittered((2, 3), dtype=torch.float32)
    q = SymmetrizedFlow(flow, one)
    x, log_q = q.rsample_and_log_prob((4,))
    assert x.dtype == log_q.dtype == torch.float32
    torch.testing.assert_close(log_q, FlowDistribution(flow).log_prob(x.clone()))
    with torch.inference_mode():
        q.rsample_and_log_prob((2,))
    q.clear_cache()


def test_wrong_arguments(jittered: Make) -> None:
    flow = jittered((4,))
    with pytest.raises(TypeError, match="TransformModule"):
        SymmetrizedFlow(flow.inv)
    with pytest.raises(ValueError, match="not closed"):
        SymmetrizedFlow(flow, symmetry_group((4,), translation_step=1)[:3])
    with pytest.raises(ValueError, match="orbit_chunk is 0"):
        SymmetrizedFlow(flow, orbit_chunk=0)
    for elements in (3, "x"):
        with pytest.raises(TypeError, match="accepted: a group of LatticeSymmetry"):
            SymmetrizedFlow(flow, elements)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"elements is \(\); accepted: a group"):
        SymmetrizedFlow(flow, ())
    with pytest.raises(ValueError, match="support"):
        SymmetrizedFlow(flow, validate_args=True).log_prob(torch.full((4,), float("nan")))
