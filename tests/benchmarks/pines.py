# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The log-Gaussian Cox process of the Finnish pines, of which there are many published figures.

    python -m tests.benchmarks.pines [--side 40] [--steps 1500] [--threads 2]

126 trees in the unit square (``finpines.csv``, of the R package spatstat), counted in side x side
cells; a Gaussian field f of mean ln 126 - 1.91 / 2 and covariance 1.91 exp(-33 |i - j| / side) with
|i - j| in cells, and ln L = sum_i [f_i y_i - exp(f_i) / side^2]. At 40 x 40 ln Z is 501.806, the
ELBO of the best Gaussian 498.80; published samplers reach 469.9 to 497.9 (DDS 471.6, SCLD 486.8,
SMC 497.9).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_neuralrg import AutoHierarchicalFlow, fit
from tests.benchmarks.harness import elbo_of, parse, timed

TREES, VARIANCE, SCALE = 126, 1.91, 33.0
DRAWS, DRAWS_AT_ONCE = 10_000, 100
BATCH, RATE = 32, 5e-3


def pines(side: int) -> Callable[[], None]:
    """The model."""
    file = Path(__file__).with_name("finpines.csv")
    places = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2))
    cells = np.minimum((places * side).astype(int), side - 1)
    counts = torch.zeros(side, side)
    counts.index_put_(tuple(torch.from_numpy(cells.T)), torch.ones(len(cells)), accumulate=True)
    axis = torch.arange(float(side)).double()
    grid = torch.cartesian_prod(axis, axis)
    covariance = VARIANCE * torch.exp(-torch.cdist(grid, grid) * SCALE / side)
    factor = torch.linalg.cholesky(covariance).float()
    mean = torch.full((side * side,), math.log(TREES) - 0.5 * VARIANCE)

    def model() -> None:
        prior = dist.MultivariateNormal(mean, scale_tril=factor)
        to_grid = dist.transforms.ReshapeTransform((side * side,), (side, side))
        f = pyro.sample("f", dist.TransformedDistribution(prior, [to_grid]))
        pyro.factor("y", (f * counts - f.exp() / side**2).sum((-1, -2)))

    return model


def elbo(model: Callable[[], None], guide: AutoHierarchicalFlow) -> str:
    mean, error = elbo_of(model, guide, DRAWS, DRAWS_AT_ONCE, max_plate_nesting=0)
    return f"{mean:.3f} +- {error:.3f}"


def main() -> None:
    arguments = parse(__doc__, side=40, steps=1500, threads=2, seed=0)
    pyro.set_rng_seed(arguments.seed)
    model = pines(arguments.side)
    processor = time.process_time()
    guide, seconds = timed(lambda: AutoHierarchicalFlow(model), time.perf_counter)
    print(f"start: {seconds:.0f} s, ELBO {elbo(model, guide)}")
    options = {"steps": arguments.steps, "batch": BATCH, "lr": RATE, "seed": arguments.seed}
    seconds += timed(lambda: fit(model, guide, **options), time.perf_counter)[1]
    processor = time.process_time() - processor
    print(f"{arguments.steps} steps: {seconds:.0f} s in all, ELBO {elbo(model, guide)}")
    print(f"{processor:.0f} s of the processor, measuring the first ELBO included")


if __name__ == "__main__":
    main()
