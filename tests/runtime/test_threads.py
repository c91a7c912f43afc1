# SPDX-License-Identifier: Apache-2.0
"""Parts of a computation on threads of our own: all of them, once, and with the same bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from pyro_neuralrg.runtime import threads
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum, quadratic_form


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_part_is_done_once() -> None:
    done: list[int] = []
    threads.share(done.append, 100)
    assert sorted(done) == list(range(100))


def test_parts_run_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=20)
    threads.share(lambda _: together.wait() and None, 2)


def test_an_error_of_a_part_is_raised() -> None:
    def work(part: int) -> None:
        if part == 3:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        threads.share(work, 4)


def test_torch_has_one_thread_meanwhile() -> None:
    with threads.own_threads():
        assert torch.get_num_threads() == 1
        assert threads.number_of_threads() == 2
    with pytest.raises(ValueError, match="mine"), threads.own_threads():
        raise ValueError("mine")
    assert torch.get_num_threads() == 2


def test_whoever_leaves_last_gives_torch_its_threads_back() -> None:
    first, second = threads.own_threads(), threads.own_threads()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == threads.number_of_threads() == 2


def test_parts_of_fields_change_no_bit() -> None:
    """The same on one thread and on two, and as good as without parts."""
    x = torch.randn(300, 16, 16, requires_grad=True)
    spectrum = neighbour_spectrum((16, 16), (1.0, 0.5)) + 5.0
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        moved, form = apply_spectrum(x, spectrum), quadratic_form(x, spectrum)
        (gradient,) = torch.autograd.grad((moved.sin().sum((-1, -2)) * form).sum(), x)
        found.append((moved.detach(), form.detach(), gradient))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    few = torch.cat([apply_spectrum(part, spectrum) for part in x.detach().split(7)])
    torch.testing.assert_close(found[0][0], few)
