# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The monotone map far from its start: still increasing, still inverted to the last digits."""

from __future__ import annotations

import pytest
import torch

from pyro_neuralrg.transforms import MonotoneMap


def steep(odd: bool) -> MonotoneMap:
    """Narrow tall steps on a nearly flat line: the hardest case of Newton's iteration."""
    transform = MonotoneMap((1,), steps=3, odd=odd)
    with torch.no_grad():
        transform.log_slope.fill_(-3.0)
        transform.raw_weight.copy_(torch.tensor([3.0, 1.0, 4.0]))
        transform.raw_steepness.copy_(torch.tensor([30.0, 12.0, 0.1]))
        transform.centre.copy_(torch.tensor([0.05, 1.5, -3.0]))
    return transform


@pytest.mark.parametrize("odd", [True, False])
def test_increasing_and_inverted_everywhere(odd: bool) -> None:
    transform = steep(odd)
    z = torch.linspace(-30.0, 30.0, 5001).unsqueeze(-1)
    with torch.no_grad():
        x, ladj = transform.forward_and_ladj(z)
        back, ladj_back = transform.inverse_and_ladj(x)
    assert bool((x.diff(dim=0) > 0).all())
    torch.testing.assert_close(back, z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ladj_back, ladj, rtol=1e-8, atol=1e-8)
    far = torch.tensor([[1e6], [-1e6], [0.0]])
    torch.testing.assert_close(transform.inv(transform(far).detach().clone()), far)


def test_float32_is_inverted_to_its_own_precision() -> None:
    transform = steep(True).float()
    z = torch.linspace(-5.0, 5.0, 501, dtype=torch.float32).unsqueeze(-1)
    with torch.no_grad():
        x = transform.forward_and_ladj(z)[0]
        again = transform.forward_and_ladj(transform.inverse_and_ladj(x)[0])[0]
    torch.testing.assert_close(again, x, rtol=1e-5, atol=2e-5)


def test_a_pair_of_steps_turns_one_hump_into_two() -> None:
    transform = MonotoneMap((1,), steps=1)
    with torch.no_grad():
        transform.raw_weight.fill_(4.0)
        transform.raw_steepness.fill_(3.0)
    x = torch.tensor([[-4.0], [0.0], [4.0]])
    z, ladj = transform.inverse_and_ladj(x)
    log_q = -0.5 * z.square().sum(-1) - ladj
    assert log_q[0] > log_q[1]
    assert log_q[2] > log_q[1]


def test_entries_do_not_mix() -> None:
    transform = steep(True)
    z = torch.randn(7, 1)
    apart = torch.stack([transform(one) for one in z])
    torch.testing.assert_close(transform(z), apart)
    assert MonotoneMap((2, 3)).inv(torch.zeros(0, 2, 3)).shape == (0, 2, 3)
