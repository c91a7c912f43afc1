# SPDX-License-Identifier: Apache-2.0
"""The log-Gaussian Cox process of the Finnish pines, of which there are many published figures.

    python -m tests.benchmarks.pines [--table] [--seeds 3] [--steps 1500] [--side 40]

126 trees in the unit square (``finpines.csv``, of the R package spatstat), counted in side x side
cells; a Gaussian field f of mean ln 126 - 1.91 / 2 and covariance 1.91 exp(-33 |i - j| / side) with
|i - j| in cells, and ln L = sum_i [f_i y_i - exp(f_i) / side^2]. At 40 x 40 the published ln Z is
501.806 (three guides of this table together and its SMC: 501.778 +- 0.006, 501.776 +- 0.009), the
ELBO of the best Gaussian 498.80; published samplers reach 469.9 to 497.9 (DDS 471.6, SCLD 486.8,
SMC 497.9).

The rows of the guide are of one training each, its ln Z by importance sampling. With --table also:

* Laplace: Pyro's AutoLaplaceApproximation, its mode by L-BFGS;
* best Gaussian: AutoHierarchicalFlow before training;
* SMC: particles annealed from the guide of the first seed to the posterior;
* ChEES: 64 chains in the latent space of this guide;
* bridge: between draws of this guide and those of these chains;
* NUTS: Pyro's, of the same model written with white noise as the site.

Seconds of a guide come on top of the best Gaussian's, where it starts; those of SMC and ChEES on
top of the guide's, of the bridge on top of ChEES's. Each row includes its 10,000 draws of q.
The last columns are the posterior mean of the expected number of trees, and effective draws of it
for each CPU second of the row and of those that it builds on.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC, fit
from pyro_neuralrg.free_energy import anneal
from pyro_neuralrg.free_energy.bridge import bridge
from pyro_neuralrg.free_energy.model_evidence import model_log_weights
from pyro_neuralrg.statistics import LogWeights, Summary, summarise
from pyro_neuralrg.transforms import Neighbour
from tests.benchmarks.harness import Table, parse

TREES, VARIANCE, SCALE = 126, 1.91, 33.0
BATCH, RATE = 32, 5e-3
FLOW = Neighbour(layers=4, hidden=(16,), num_tanh=2)
PARTS = [500] * 20  # of the draws of a guide
PARTICLES, CHAINS, DRAWS, WARMUP = 2048, 64, 50, 100
NUTS_DRAWS, NUTS_WARMUP = 500, 200


def prior(side: int) -> dist.MultivariateNormal:
    axis = torch.arange(float(side)).double()
    grid = torch.cartesian_prod(axis, axis)
    covariance = VARIANCE * torch.exp(-torch.cdist(grid, grid) * SCALE / side)
    mean = torch.full((side * side,), math.log(TREES) - 0.5 * VARIANCE)
    return dist.MultivariateNormal(mean, scale_tril=torch.linalg.cholesky(covariance).float())


def log_likelihood(side: int) -> Callable[[Tensor], Tensor]:
    """ln L of fields ``(..., side, side)``."""
    file = Path(__file__).with_name("finpines.csv")
    places = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2))
    cells = np.minimum((places * side).astype(int), side - 1)
    counts = torch.zeros(side, side)
    counts.index_put_(tuple(torch.from_numpy(cells.T)), torch.ones(len(cells)), accumulate=True)
    return lambda f: (f * counts - f.exp() / side**2).sum((-1, -2))


def pines(side: int) -> Callable[[], None]:
    """The model, whose site is the field."""
    to_grid = dist.transforms.ReshapeTransform((side * side,), (side, side))
    fields = dist.TransformedDistribution(prior(side), [to_grid])
    log_l = log_likelihood(side)

    def model() -> None:
        pyro.factor("y", log_l(pyro.sample("f", fields)))

    return model


def trees(fields: Tensor) -> Tensor:
    """The expected number of trees."""
    return fields.exp().mean((-1, -2))


class Rows:
    """Rows of the table, each with the CPU and wall seconds of what it shows."""

    def __init__(self) -> None:
        heads = ("ELBO", "+-", "ln Z", "+-.", "ESS %", "k-hat", "CPU s", "wall s", "trees")
        forms = ("10.3f", "7.3f", "10.3f", "7.3f", "8.1f", "7.2f", "8.0f", "8.0f", "8.1f")
        more = {"+- ": "6.1f", "ESS / s": "9.2f"}
        self.table = Table(20, dict(zip(heads, forms, strict=True)) | more)
        self.start()

    def start(self) -> None:
        self.begun = time.process_time(), time.perf_counter()

    def add(self, name: str, *figures: float, found: Summary | None = None, more: float = 0.0):
        """Figures up to k-hat; ``more`` CPU seconds are those of what the row builds on."""
        processor, wall = time.process_time() - self.begun[0], time.perf_counter() - self.begun[1]
        padded = [*figures, *(math.nan,) * (6 - len(figures)), processor, wall]
        if found is not None:
            padded += [found.mean, found.mcse, found.ess_bulk / (processor + more)]
        self.table.row(name, *padded)
        self.start()
        return processor

    def add_weights(self, name: str, weights: LogWeights) -> float:
        share, k = 100 * weights.ess, weights.pareto_k
        return self.add(name, *weights.mean_log, *weights.log_mean, share, k)


def weights_of(model: Callable[[], None], guide: Any) -> LogWeights:
    return LogWeights(model_log_weights(model, guide, PARTS))


def laplace(model: Callable[[], None]) -> Any:
    """A normal at the mode."""
    guide, elbo = AutoLaplaceApproximation(model), Trace_ELBO()
    guide()
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found: Tensor = elbo.differentiable_loss(model, guide)
        found.backward()
        return found

    optimizer.step(loss)
    return guide.laplace_approximation()


def by_chains(rows: Rows, model: Any, guide: Any, weights: LogWeights, cpu: float, seed: int):
    """SMC, ChEES and the bridge, which begin at a guide that took so many CPU seconds."""
    latent = NeuTraReparam(guide).reparam(model)
    options = {"seed": seed, "progress": False}
    run = anneal(latent, model_args=(), num_particles=PARTICLES, **options)
    ess = 100 * LogWeights(run.log_weights, copies=True).ess
    rows.add("SMC", math.nan, math.nan, -run.free_energy, run.standard_error, ess)
    of_draws = {"observables": {"trees": trees}}
    mcmc = VectorizedMCMC(ChEESHMC(latent), DRAWS, WARMUP, CHAINS, **of_draws, **options)
    mcmc.run()
    cpu += rows.add("ChEES", found=summarise(mcmc.observables["trees"]), more=cpu)
    base = dist.Normal(0.0, 1.0).log_prob(mcmc.positions.double()).sum(-1)
    found = bridge(weights.values, mcmc.sample_stats["lp"] - base)
    rows.add("bridge", math.nan, math.nan, *found)


def by_nuts(rows: Rows, side: int, seed: int) -> None:
    of_field, log_l = prior(side), log_likelihood(side)

    def field(noise: Tensor) -> Tensor:
        f = of_field.loc + noise @ of_field.scale_tril.T
        return f.reshape(*noise.shape[:-1], side, side)

    def whitened() -> None:
        noise = pyro.sample("noise", dist.Normal(torch.zeros(side**2), 1.0).to_event(1))
        pyro.factor("y", log_l(field(noise)))

    pyro.set_rng_seed(seed)
    mcmc = MCMC(NUTS(whitened), NUTS_DRAWS, NUTS_WARMUP, disable_progbar=True)
    mcmc.run()
    found = summarise(trees(field(mcmc.get_samples(group_by_chain=True)["noise"])))
    rows.add("NUTS", found=found)


def main() -> None:
    arguments = parse(
        __doc__, table=False, seeds=1, steps=1500, side=40, threads=1, rate=RATE, batch=BATCH
    )
    warnings.simplefilter("ignore")
    model, rows = pines(arguments.side), Rows()
    pyro.set_rng_seed(0)
    if arguments.table:
        rows.add_weights("Laplace", weights_of(model, laplace(model)))
    start = AutoHierarchicalFlow(model, bijector=FLOW)
    begun = time.process_time() - rows.begun[0]
    rows.add_weights("best Gaussian", weights_of(model, start))
    options = {"steps": arguments.steps, "batch": arguments.batch, "lr": arguments.rate}
    trained = []
    for seed in range(arguments.seeds):
        pyro.set_rng_seed(seed)
        guide = copy.deepcopy(start)
        fit(model, guide, path_gradient=True, seed=seed, progress=False, **options)
        weights = weights_of(model, guide)
        trained.append((guide, weights, begun + rows.add_weights(f"guide, seed {seed}", weights)))
    if arguments.table:
        by_chains(rows, model, *trained[0], seed=0)
        by_nuts(rows, arguments.side, seed=0)


if __name__ == "__main__":
    main()
