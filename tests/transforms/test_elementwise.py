# SPDX-License-Identifier: Apache-2.0
"""Maps of one variable, inverted wherever they are, in few evaluations and in compiled code."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_neuralrg.transforms import elementwise
from pyro_neuralrg.transforms.elementwise import AffineTanh, SinhArcsinh


def random_terms(number: int, height: float, width: float) -> AffineTanh:
    """A map of its own for each of 20000 entries."""
    entries = 20_000
    return AffineTanh(
        shift=torch.randn(entries),
        log_scale=torch.randn(entries),
        height=height * torch.rand(number, entries),
        centre=2 * torch.randn(number, entries),
        steepness=width * torch.rand(number, entries),
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("number", [1, 8])
@pytest.mark.parametrize(
    ("height", "width"), [(0.01, 1.0), (1.0, 1.0), (2.0, 3.0), (10.0, 10.0), (10.0, 50.0)]
)
def test_inverted_whatever_the_terms(
    number: int, height: float, width: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newton's steps between flat and steep parts must not go to and fro."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    terms = random_terms(number, height, width)
    v = 3 * torch.randn(20_000)
    x, log_slope = terms.forward(v)
    back, log_slope_back = terms.inverse(x)
    torch.testing.assert_close(back, v, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(log_slope_back, log_slope, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore")  # the compiler's own, none of them about our code
def test_one_graph_for_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "COMPILED_STEPS", 12)  # enough for small terms
    terms = random_terms(2, 0.01, 1.0)
    x, _ = terms.forward(torch.randn(20_000))
    compiled = torch.compile(terms.inverse, fullgraph=True, backend="eager")
    for mine, theirs in zip(compiled(x), terms.inverse(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


def test_the_map_is_the_documented_sum() -> None:
    """At v = c_k a term contributes nothing to x, and its whole slope a_k b_k."""
    height, centre, steepness = torch.tensor([[0.5], [2.0]]), torch.tensor([[1.5], [-0.7]]), 3.0
    given = torch.tensor(0.3), torch.tensor(-0.2), height, centre, torch.full((2, 1), steepness)
    for k in (0, 1):
        at, other, a, b = centre[k], centre[1 - k], height[k], height[1 - k]
        x, log_slope = AffineTanh(*given).forward(at)
        rise = torch.tanh(steepness * (at - other))
        torch.testing.assert_close(x, math.exp(-0.2) * at + 0.3 + b * rise)
        slope = math.exp(-0.2) + a * steepness + b * steepness * (1 - rise**2)
        torch.testing.assert_close(log_slope, slope.log())


def test_skewness_and_tails() -> None:
    """Its inverse, its slope by autograd, the identity at zero, and far out."""
    bend = SinhArcsinh(0.5 * torch.randn(1000), 0.5 * torch.randn(1000))
    v = (3 * torch.randn(1000)).requires_grad_()
    x, log_slope = bend.forward(v)
    (slope,) = torch.autograd.grad(x.sum(), v)
    torch.testing.assert_close(log_slope, slope.log())
    for mine, theirs in zip(bend.inverse(x), (v, log_slope), strict=True):
        torch.testing.assert_close(mine, theirs)
    nothing = SinhArcsinh(torch.zeros(()), torch.zeros(()))
    for mine, theirs in zip(nothing.forward(v), (v, torch.zeros(1000)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(part.isfinite().all() for part in bend.forward(torch.full((1000,), 40.0)))
    skewed = SinhArcsinh(torch.tensor(0.3), torch.zeros(())).forward(torch.randn(100_000))[0]
    centred = skewed - skewed.mean()
    assert float(centred.pow(3).mean() / centred.pow(2).mean() ** 1.5) > 0.3
