# SPDX-License-Identifier: Apache-2.0
"""Why there is no NUTS over a batch of chains: Pyro's NUTS against ChEES-HMC, per gradient.

    python -m tests.benchmarks.nuts

Both with unit mass. Effective samples of one squared quantity for each 1000 gradients; the trees of
Pyro's single chain also tell what 64 chains in one batch would pay, which wait for the largest of
64 trees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_neuralrg import ChEESHMC, IsingDual
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Table, parse, pyros_nuts, watch

CHAINS, WARMUP, DRAWS, THEIR_DRAWS = 64, 300, 300, 1500


class Target(NamedTuple):
    """An energy of fields ``(chains,) + shape``, and what is watched of them."""

    energy: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    watched: Callable[[Tensor], Tensor]


def normals(widths: Tensor) -> Target:
    """Independent ones; the square of the widest is watched."""
    return Target(
        lambda x: 0.5 * (x / widths).square().sum(-1),
        tuple(widths.shape),
        lambda x: x[..., -1].square(),
    )


def ising(side: int, temperature: float | None = None) -> Target:
    """The dual field, and its structure factor."""
    shape = (side, side)
    target = IsingDual(shape) if temperature is None else IsingDual(shape, temperature)
    return Target(target.energy, shape, target.observables()["structure_factor"])


TARGETS = {
    "20 standard normals": lambda: normals(torch.ones(20)),
    "20 normals, 0.1 to 10": lambda: normals(torch.logspace(-1, 1, 20)),
    "4 x 4 Ising, T = 3": lambda: ising(4, 3.0),
    "8 x 8 Ising, Tc": lambda: ising(8),
}


def nuts(target: Target) -> tuple[float, float]:
    """Effective samples for each 1000 gradients: of one chain, and of 64 in step."""
    x, _, calls = pyros_nuts(
        lambda params: target.energy(params["x"].unsqueeze(0))[0],
        target.shape, THEIR_DRAWS, WARMUP,
    )  # fmt: skip
    trees = torch.tensor(calls.marks).diff().double()
    batches = trees[torch.randint(len(trees), (2000, CHAINS))]
    ess = summarise(target.watched(x)).ess_bulk
    alone = 1000 * ess / float(trees.sum())
    return alone, alone * float(trees.mean() / batches.max(1).values.mean())


def chees(target: Target) -> float:
    """The same of ChEES-HMC."""
    kernel = ChEESHMC(target.energy, shape=target.shape)
    mcmc, found = watch(kernel, target.watched, DRAWS, WARMUP, CHAINS)
    return 1000 * found.ess_bulk / mcmc.gradient_evaluations.draws


def main() -> None:
    parse(__doc__)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    columns = {"NUTS": "8.2f", "64 in step": "12.2f", "ChEES": "8.2f"}
    table = Table(24, columns, "ESS / 1000 gradients")
    for name, make in TARGETS.items():
        target = make()
        table.row(name, *nuts(target), chees(target))


if __name__ == "__main__":
    main()
