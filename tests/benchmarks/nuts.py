# Copyright the pyro_neuralrg contributors.
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

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_neuralrg import ChEESHMC, IsingDual, VectorizedMCMC
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Gradients, parse

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
    energy = Gradients(lambda params: target.energy(params["x"].unsqueeze(0))[0])
    pyro.set_rng_seed(0)
    kernel, start = NUTS(potential_fn=energy, adapt_mass_matrix=False), torch.randn(target.shape)
    mcmc = MCMC(
        kernel, THEIR_DRAWS, WARMUP, {"x": start}, hook_fn=energy.hook, disable_progbar=True
    )
    mcmc.run()
    trees = torch.tensor(energy.marks).diff().double()
    batches = trees[torch.randint(len(trees), (2000, CHAINS))]
    ess = summarise(target.watched(mcmc.get_samples(group_by_chain=True)["x"])).ess_bulk
    alone = 1000 * ess / float(trees.sum())
    return alone, alone * float(trees.mean() / batches.max(1).values.mean())


def chees(target: Target) -> float:
    """The same of ChEES-HMC."""
    kernel = ChEESHMC(target.energy, shape=target.shape)
    options = {"keep_draws": False, "observables": {"watched": target.watched}, "progress": False}
    mcmc = VectorizedMCMC(kernel, DRAWS, WARMUP, CHAINS, seed=0, **options)
    mcmc.run()
    ess = summarise(mcmc.observables["watched"]).ess_bulk
    return 1000 * ess / mcmc.gradient_evaluations.draws


def main() -> None:
    parse(__doc__)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    print(f"{'ESS / 1000 gradients':<24}{'NUTS':>8}{'64 in step':>12}{'ChEES':>8}")
    for name, make in TARGETS.items():
        target = make()
        alone, in_step = nuts(target)
        print(f"{name:<24}{alone:>8.2f}{in_step:>12.2f}{chees(target):>8.2f}")


if __name__ == "__main__":
    main()
