# SPDX-License-Identifier: Apache-2.0
"""Models of Pyro's tutorials, and priors of heavy tails, with the defaults of VectorizedMCMC.

    python -m tests.benchmarks.pyro_models
    python -m tests.benchmarks.pyro_models --guides --models school regression logistic process
    python -m tests.benchmarks.pyro_models --by-sample

Worst R-hat over the unconstrained positions, the R-hat that stationary chains of the fewest bulk
effective draws have by their number, these draws, gradients for each chain in warm-up and in all,
seconds: a line for each model and seed. With ``--guides`` also the bounds of ln p(y) by
AutoHierarchicalFlow and AutoNormal after 1000 steps of SVI of so many ``--particles``.

With ``--by-sample`` other lines: draws by ``sample(model, guide)`` of a guide that was fitted,
their method and worst R-hat, and how far their means and mean squares (of positive sites: of
logarithms) are from those of long chains of ChEES-HMC, of the funnel from the exact ones: the
furthest of all in combined errors, and the chance of one so far by errors alone.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_neuralrg import PDD, AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC, fit
from pyro_neuralrg import sample as sample_by
from pyro_neuralrg.free_energy import reweight
from pyro_neuralrg.mcmc import ModelTarget
from pyro_neuralrg.statistics import summarise_field
from tests.benchmarks.harness import Table, parse

Model = Callable[[], Any]

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Data, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eight_schools(centred: bool = False) -> Model:
    """Rubin (1981), as in Pyro's example."""

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(25.0)))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(mu, tau) if centred else dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(eta if centred else mu + tau * eta, ERRORS), obs=EFFECTS)

    return model


def cauchy_regression(rows: int = 60, columns: int = 8) -> Model:
    """Linear regression with Cauchy priors of its coefficients and of its noise."""
    x = normals(rows, columns)
    y = x @ torch.linspace(-2.0, 2.0, columns).to(x) + 0.5 * normals(rows, seed=1)

    def model() -> None:
        slopes = pyro.sample("slopes", dist.Cauchy(0.0, 2.5).expand([columns]).to_event(1))
        noise = pyro.sample("noise", dist.HalfCauchy(torch.tensor(5.0)))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)

    return model


def covariance(rows: int = 50, size: int = 4) -> Model:
    """A covariance with LKJ correlations and half Cauchy widths."""
    widths = torch.logspace(-1, 1, size)
    y = normals(rows, size) * widths.to(torch.get_default_dtype())

    def model() -> None:
        sigma = pyro.sample("sigma", dist.HalfCauchy(torch.ones(size)).to_event(1))
        root = pyro.sample("root", dist.LKJCholesky(size, torch.tensor(1.0)))
        tril = sigma.unsqueeze(-1) * root
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(size), scale_tril=tril), obs=y)

    return model


def linear_regression(rows: int = 170) -> Model:
    """Terrain ruggedness and GDP, of Pyro's tutorial, with data made by its own fit."""
    rugged = normals(rows).abs() * 1.2
    africa = (normals(rows, seed=1) > 0.5).to(rugged)
    y = 9.2 - 1.9 * africa - 0.2 * rugged + 0.35 * africa * rugged + normals(rows, seed=2)

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        slopes = [pyro.sample(f"b{name}", dist.Normal(0.0, 1.0)) for name in ("A", "R", "AR")]
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = a + slopes[0] * africa + slopes[1] * rugged + slopes[2] * africa * rugged
        with pyro.plate("data", rows):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    return model


def hierarchical_logistic(groups: int = 18, trials: int = 45, centred: bool = False) -> Model:
    """Partial pooling of Pyro's baseball example, in logits; centred there."""
    chance = torch.sigmoid(-1.0 + 0.4 * normals(groups))
    hits = (trials * chance).round()

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
        with pyro.plate("players", groups):
            if centred:
                logits = pyro.sample("logits", dist.Normal(loc, scale))
            else:
                logits = loc + scale * pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("hits", dist.Binomial(trials, logits=logits), obs=hits)

    return model


def gaussian_process(points: int = 20) -> Model:
    """Pyro's tutorial: an RBF kernel with log-normal hyper-parameters, marginally."""
    x = torch.linspace(0.0, 5.0, points)
    y = 0.5 * torch.sin(3 * x) + 0.2 * normals(points)
    squares = (x - x.unsqueeze(-1)).square()

    def model() -> None:
        variance = pyro.sample("variance", dist.LogNormal(torch.tensor(0.0), 1.0))
        length = pyro.sample("length", dist.LogNormal(torch.tensor(0.0), 1.0))
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
        kernel = variance * (-0.5 * squares / length.square()).exp()
        kernel = kernel + (noise + 1e-6) * torch.eye(points)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(points), kernel), obs=y)

    return model


MODELS: dict[str, Callable[[], Model]] = {
    "eight schools": eight_schools,
    "eight schools, centred": lambda: eight_schools(centred=True),
    "Cauchy regression": cauchy_regression,
    "LKJ covariance": covariance,
    "linear regression": linear_regression,
    "hierarchical logistic": hierarchical_logistic,
    "logistic, centred": lambda: hierarchical_logistic(centred=True),
    "Gaussian process": gaussian_process,
}


class Found(NamedTuple):
    """Figures of one run; gradients are for each chain."""

    rhat: float
    expected: float
    ess: float
    warmup: float
    gradients: float
    seconds: float


def run(model: Model, seed: int, draws: int = 1000, chains: int = 64) -> VectorizedMCMC:
    """Chains with the defaults."""
    mcmc = VectorizedMCMC(ChEESHMC(model), draws, num_chains=chains, seed=seed, progress=False)
    mcmc.run()
    return mcmc


def sample(model: Model, seed: int, draws: int = 1000, chains: int = 64) -> Found:
    """Figures of chains with the defaults."""
    return figures(run(model, seed, draws, chains))


def figures(mcmc: VectorizedMCMC) -> Found:
    """Figures of chains that have run."""
    worst, cost = summarise_field(mcmc.positions).worst(), mcmc.gradient_evaluations
    # means of m halves of chains differ by their error: R^2 = 1 + m / ESS
    expected = math.sqrt(1 + 2 * mcmc.num_chains / worst.ess_bulk)
    per_chain = cost.warmup / mcmc.num_chains, cost.total / mcmc.num_chains
    return Found(worst.rhat, expected, worst.ess_bulk, *per_chain, mcmc.seconds.total)


class Guided(NamedTuple):
    """Bounds of ln p(y) by both guides, with errors; the mean that is furthest off, in errors.

    That of a thousand draws of the flow, and of four thousand with their importance weights.
    """

    flow: float
    flow_se: float
    normal: float
    normal_se: float
    off: float
    weighted: float


def guided(model: Model, seed: int, chains: Tensor | None = None, particles: int = 1) -> Guided:
    """Guides of equal steps of SVI; the flow's draws against chains of the same positions."""
    bounds: list[float] = []
    for kind in (AutoNormal, AutoHierarchicalFlow):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide: Any = kind(model)
        loss = PDD(particles, vectorize_particles=particles > 1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)  # type: ignore[attr-defined]
        for _ in range(1000):
            svi.step()
        elbo = PDD(4000, vectorize_particles=True)
        with torch.no_grad():
            loss = elbo.loss(model, guide)
        assert elbo.log_weights is not None
        bounds = [-loss, float(elbo.log_weights.std()) / math.sqrt(4000), *bounds]
    if chains is None:
        return Guided(*bounds, math.nan, math.nan)
    known, q, off = summarise_field(chains).figures, guide.get_posterior(), []
    draws = q.sample((4000,))
    weights = -ModelTarget(model).setup().energy(draws) - q.log_prob(draws).detach()
    for part, log_w in ((draws[:1000], torch.zeros(1000)), (draws, weights)):
        mean = reweight(part, log_w)
        errors = np.hypot(known["mcse"], mean.standard_error.numpy())
        off.append(float(np.abs((mean.value.numpy() - known["mean"]) / errors).max()))
    return Guided(*bounds, *off)


def funnel() -> Model:
    """Neal's, nine x of variance e^v for v of variance one; centred."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("sites", 9):
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    return model


def cox_process() -> Model:
    """The log-Gaussian Cox process of :mod:`tests.benchmarks.cox`."""
    from tests.benchmarks import cox

    return functools.partial(cox.noncentred, cox.counts_of_cells())


SAMPLED: dict[str, tuple[Callable[[], Model], dict[str, Any], dict[str, Any]]] = {
    "eight schools": (eight_schools, {}, {}),
    "funnel": (funnel, {}, {}),
    "Gaussian process": (gaussian_process, {}, {"batch": 64, "lr": 0.02}),
    "Cox process": (cox_process, {"field": "noise"}, {"batch": 64, "lr": 0.02}),
}  # model, options of its guide, options of the fit


def moments(draws: Any) -> tuple[Tensor, Tensor, float]:
    """Means and mean squares of all sites, their errors, and the worst R-hat."""
    weighted = getattr(draws, "log_weights", None) is not None
    parts, worst = [], math.nan
    for name, x in sorted(draws.get_samples(group_by_chain=not weighted).items()):
        if name.endswith("_latent"):  # the guide's
            continue
        x = x.double().log() if bool((x > 0).all()) else x.double()
        for values in (x, x.square()):
            if weighted:
                mean, error = (part.flatten() for part in draws.mean(values))
            else:
                found = summarise_field(values, max_sites=values[0, 0].numel())
                mean, error = (torch.from_numpy(found.figures[n]) for n in ("mean", "mcse"))
                worst = np.fmax(worst, found.figures["rhat"].max())
            parts.append(torch.stack([mean, error]))
    return *torch.cat(parts, -1), float(worst)


def compare(name: str, seed: int, options: Any) -> None:
    """A line of a guide that is fitted, and of draws by it."""
    make, of_guide, of_fit = SAMPLED[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, began = make(), time.process_time()
    guide = AutoHierarchicalFlow(model, **of_guide)
    fit(model, guide, steps=options.steps, seed=seed, progress=False, **of_fit)
    draws = sample_by(model, guide, options.number, model_args=(), seed=seed, progress=False)
    (mean, error, worst), spent = moments(draws), time.process_time() - began
    if name == "funnel":  # sites v and x in this order, mean and mean square
        right = torch.tensor([0.0, 1.0, *[0.0] * 9, *[math.exp(0.5)] * 9])
        its_error, its_worst = torch.zeros(len(right)), math.nan
    else:
        right, its_error, its_worst = moments(run(model, seed + 1, options.draws, options.chains))
    pulls = (mean - right).abs() / torch.hypot(error, its_error)
    chance = 1 - (1 - math.erfc(float(pulls.max()) / math.sqrt(2))) ** len(pulls)
    print(
        f"{name}, {seed}: {draws.method}, {draws.reason}; R-hat {worst:.4f} (reference "
        f"{its_worst:.4f}); furthest of {len(pulls)} {float(pulls.max()):.2f} errors (chance "
        f"{chance:.3f}); {spent:.0f} s"
    )


if __name__ == "__main__":
    options = parse(
        __doc__ or "",
        seeds=[0, 1, 2], draws=1000, chains=64, threads=1, models=[""], guides=False, particles=1,
        by_sample=False, number=(20_000, "draws by sample"), steps=(1000, "of the fit"),
    )  # fmt: skip
    if options.by_sample:
        for name in SAMPLED:
            for seed in options.seeds if any(part in name for part in options.models) else ():
                compare(name, seed, options)
        raise SystemExit
    columns = ("R-hat", "8.4f"), ("by ESS", "8.4f"), ("ESS", "8.0f"), ("warm-up", "9.0f")
    columns += ("gradients", "10.0f"), ("seconds", "9.1f")
    if options.guides:
        columns += ("flow", "10.3f"), ("+-", "7.3f"), ("normal", "10.3f"), ("+- ", "7.3f")
        columns += ("off", "6.1f"), ("weighted", "9.1f")
    table = Table(26, dict(columns), "model, seed")
    for name, make in MODELS.items():
        if not any(part in name for part in options.models):
            continue
        for seed in options.seeds:
            mcmc = run(make(), seed, options.draws, options.chains)
            more: Any = ()
            if options.guides:
                more = guided(make(), seed, mcmc.positions, options.particles)
            table.row(f"{name}, {seed}", *figures(mcmc), *more)
