# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same known state and leaves none behind."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch


def pytest_configure() -> None:
    """One thread for each child, workers of xdist among them, which are as many as there are cores.

    And SIGINT interrupts, here and in child processes, also in a background job of a script.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed from the test's name alone: runs repeat, whatever the order."""
    return zlib.crc32(request.node.name.encode()) % 2**31


@pytest.fixture(autouse=True)
def clean_state(seed: int) -> Iterator[None]:
    """Seed all generators, compute in float64, and put back what a test may have changed."""
    default_dtype = torch.get_default_dtype()
    pyro_validation = pyro.settings.get("validate_poutine")
    dist_validation = torch.distributions.Distribution._validate_args
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    np.random.seed(seed)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(default_dtype)
    pyro.settings.set(validate_poutine=pyro_validation)
    torch.distributions.Distribution.set_default_validate_args(dist_validation)


@pytest.fixture
def as_a_reader(clean_state: None) -> None:
    """A reader types examples into a fresh interpreter, whose default is float32."""
    torch.set_default_dtype(torch.float32)
