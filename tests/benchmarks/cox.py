# SPDX-License-Identifier: Apache-2.0
"""A 32 x 32 log-Gaussian Cox process: our samplers beside NumPyro's and Pyro's, draws a second.

    python -m tests.benchmarks.cox ours numpyro [--effective 4000] [--seeds 0 1 2]
    python -m tests.benchmarks.cox guide noncentred plain haar normal [--draws 1000]

Positions of stained cells (scikit-image's immunohistochemistry picture), counted in 28 x 28 pixels
of a periodic lattice of 32 x 32; a Matern field with a free level, width and length of correlation.
For each method: CPU seconds of the process, training and warm-up included, and the fewest bulk
effective draws of the three and of the field at all sites; the worst R-hat; means of the three.
Of ours beside NumPyro's also by how much more draws a second there are, and how far the means are
apart, in combined standard errors.

* ours: ChEES-HMC of 32 chains on the model itself, its mass of low rank, until the effective draws
  are there;
* numpyro: its NUTS of 4 chains, run by the interpreter ``--numpyro`` (the extra ``benchmarks``);
* guide: AutoHierarchicalFlow, fit, then ChEES-HMC of 64 chains in its latent space;
* noncentred, plain: Pyro's NUTS, with white noise or the field itself as the site;
* haar: Pyro's NUTS of the non-centred model, its noise in the Haar basis (HaarReparam);
* normal: Pyro's NUTS behind AutoMultivariateNormal and NeuTraReparam (the one of low rank has no
  transform, which NeuTraReparam asks for).
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.reparam import HaarReparam, NeuTraReparam
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.feature import peak_local_max
from skimage.filters import gaussian
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, ChEESHMC, VectorizedMCMC, fit
from pyro_neuralrg.free_energy import anneal, estimate
from pyro_neuralrg.mcmc import Adaptation
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum, quadratic_form
from tests.benchmarks.harness import parse, timed

SHAPE, WINDOW = (32, 32), 28
SITES = math.prod(SHAPE)
LAPLACIAN = (4.0 - neighbour_spectrum(SHAPE, (1.0, 1.0))).float()
GLOBALS = ("level", "width", "length")
FIRST, THEIRS = 3.0, 3.2
"""Draws for each effective one: of ours to begin with, and of NumPyro's, so that there are enough.
"""


def counts_of_cells() -> Tensor:
    """Count brown spots in WINDOW x WINDOW pixels."""
    stain = gaussian(rgb2hed(immunohistochemistry())[..., 2], 2.5)
    spots = peak_local_max(stain, min_distance=3, threshold_abs=float(np.percentile(stain, 75)))
    edges = [[0, side] for side in stain.shape]
    counts, *_ = np.histogram2d(spots[:, 0], spots[:, 1], bins=WINDOW, range=edges)
    return torch.from_numpy(counts).float()


def amplitudes(length: Tensor) -> Tensor:
    """Roots of the spectra of Matern fields of smoothness 1 and variance 1, ``(..., *SHAPE)``."""
    modes = (8.0 / length[..., None, None].square() + LAPLACIAN).reciprocal()
    return modes * modes.square().mean((-2, -1), keepdim=True).rsqrt()


def hyper_parameters() -> tuple[Tensor, Tensor, Tensor]:
    level = pyro.sample("level", dist.Normal(-1.0, 1.0))
    width = pyro.sample("width", dist.LogNormal(-0.5, 0.5))
    length = pyro.sample("length", dist.LogNormal(math.log(4.0), 0.5))
    return level, width, length


def observe(field: Tensor, counts: Tensor) -> None:
    rate = field[..., :WINDOW, :WINDOW].exp()
    pyro.sample("counts", dist.Poisson(rate, validate_args=False).to_event(2), obs=counts)


def field_of(level: Tensor, width: Tensor, length: Tensor, noise: Tensor) -> Tensor:
    """ln of the intensity of cells in a pixel."""
    smooth = apply_spectrum(noise, amplitudes(length), dims=2)
    return level[..., None, None] + width[..., None, None] * smooth


def noncentred(counts: Tensor) -> None:
    """White noise is the site, the field is made of it."""
    parameters = hyper_parameters()
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(2))
    observe(field_of(*parameters, noise), counts)


def plain(counts: Tensor) -> None:
    """The field is the site."""
    level, width, length = hyper_parameters()
    field = pyro.sample("field", dist.Normal(0.0, 1.0).expand(SHAPE).mask(False).to_event(2))
    variances = (width[..., None, None] * amplitudes(length)).square()
    form = quadratic_form(field - level[..., None, None], 1 / variances, dims=2)
    pyro.factor("prior", -0.5 * (form + (2 * math.pi * variances).log().sum((-2, -1))))
    observe(field, counts)


class Figures(NamedTuple):
    """Fewest bulk effective draws of each site, the worst R-hat, means and their errors."""

    effective: dict[str, float]
    rhat: float
    means: dict[str, float]
    errors: dict[str, float]

    @classmethod
    def of(cls, samples: dict[str, Tensor]) -> Figures:
        """Those of draws ``(chains, draws, ...)``."""
        field = samples.get("field")
        if field is None:
            field = field_of(*(samples[name] for name in GLOBALS), samples["noise"])
        series = {name: samples[name].numpy() for name in GLOBALS} | {"field": field.numpy()}
        tree = az.from_dict(posterior=series)
        ess, rhat, error = az.ess(tree), az.rhat(tree), az.mcse(tree)
        return cls(
            {name: float(ess[name].min()) for name in series},
            max(float(rhat[name].max()) for name in series),
            {name: float(series[name].mean()) for name in GLOBALS},
            {name: float(error[name]) for name in GLOBALS},
        )

    def apart(self, other: Figures) -> float:
        """The largest distance of two means in combined standard errors."""
        return max(
            abs(self.means[name] - other.means[name])
            / math.hypot(self.errors[name], other.errors[name])
            for name in GLOBALS
        )


def by_guide(counts: Tensor, options: Any) -> dict[str, Tensor]:
    model = functools.partial(noncentred, counts)
    guide = AutoHierarchicalFlow(model, field="noise", **options.flow)
    settings = {"steps": options.steps, "batch": 64, "lr": 0.02, "seed": options.seed}
    _, seconds = timed(lambda: fit(model, guide, **settings, progress=False))
    print(f"guide: fit in {seconds:.1f} CPU seconds")
    latent = NeuTraReparam(guide).reparam(model)
    if options.evidence:
        print(estimate(model, guide, 20_000))
        settings = {"num_particles": 512, "num_steps": 20, "seed": 4, "progress": False}
        for name, start in (("guide", latent), ("normal", model)):
            run = anneal(start, model_args=(), **settings)
            print(f"annealed from the {name}: {run.free_energy:.2f} +- {run.standard_error:.2f}")
    kernel = ChEESHMC(latent, criterion="snaper")
    mcmc = VectorizedMCMC(kernel, options.guide_draws, 150, 64, seed=options.seed, progress=False)
    mcmc.run()
    print(
        f"guide: leapfrog steps of {mcmc.kernel.step_size:.3f}, trajectories of up to "
        f"{mcmc.kernel.trajectory_length:.2f}"
    )
    return mcmc.get_samples(group_by_chain=True)


def by_chees(counts: Tensor, options: Any) -> dict[str, Tensor]:
    """As many draws as it takes, by the effective ones of the three that there are so far."""
    chains, warmup = options.our_chains, Adaptation(mass="low_rank", steps=options.our_warmup)
    kernel = ChEESHMC(functools.partial(noncentred, counts))
    draws = math.ceil(FIRST * options.effective / chains)
    mcmc = VectorizedMCMC(kernel, draws, warmup, chains, seed=options.seed, progress=False)
    mcmc.run()
    while True:
        samples = mcmc.get_samples(group_by_chain=True)
        series = {name: samples[name].numpy() for name in GLOBALS}
        found = min(float(x) for x in az.ess(az.from_dict(posterior=series)).values())
        missing = options.effective / found
        if missing <= 1:
            return samples
        mcmc.num_samples = math.ceil(1.1 * min(missing, 3.0) * mcmc.num_samples)
        mcmc.resume()


def by_numpyro(counts: Tensor, options: Any) -> tuple[dict[str, Tensor], float]:
    """Its draws, and the CPU seconds that it took itself."""
    draws = math.ceil(options.effective / 4 * THEIRS)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/counts.npy", f"{folder}/draws.npz"]
        np.save(files[0], counts.numpy())
        numbers = [str(number) for number in (4, options.their_warmup, draws, options.seed)]
        command = [options.numpyro, "-m", "tests.benchmarks.cox_numpyro", *files, *numbers]
        seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        with np.load(files[1]) as found:
            return {name: torch.from_numpy(found[name]) for name in found}, seconds


def by_nuts(model: Callable[..., None], counts: Tensor, options: Any) -> dict[str, Tensor]:
    mcmc = MCMC(NUTS(model), options.draws, options.warmup, disable_progbar=True)
    mcmc.run(counts)
    return mcmc.get_samples(group_by_chain=True)


def by_haar(counts: Tensor, options: Any) -> dict[str, Tensor]:
    columns = poutine.reparam(noncentred, config={"noise": HaarReparam(dim=-1)})
    model = poutine.reparam(columns, config={"noise_haar": HaarReparam(dim=-2)})
    samples = by_nuts(model, counts, options)
    noise = samples.pop("noise_haar_haar")
    for dim in (-2, -1):
        noise = dist.transforms.HaarTransform(dim=dim).inv(noise)
    return samples | {"noise": noise}


def by_normal(counts: Tensor, options: Any) -> dict[str, Tensor]:
    guide = AutoMultivariateNormal(noncentred, init_scale=0.3)
    svi = SVI(noncentred, guide, pyro.optim.ClippedAdam({"lr": 0.01}), Trace_ELBO(20))
    for _ in range(options.steps):
        svi.step(counts)
    transport = NeuTraReparam(guide)
    samples = by_nuts(transport.reparam(noncentred), counts, options)
    latent = samples["level_shared_latent"]
    with torch.no_grad():
        values = transport.transform_sample(latent)
    return {
        name: value.reshape(*latent.shape[:2], *value.shape[2:]) for name, value in values.items()
    }


METHODS: dict[str, Callable[[Tensor, Any], Any]] = {
    "ours": by_chees,
    "numpyro": by_numpyro,
    "guide": by_guide,
    "noncentred": functools.partial(by_nuts, noncentred),
    "plain": functools.partial(by_nuts, plain),
    "haar": by_haar,
    "normal": by_normal,
}


def main() -> None:
    options = parse(
        __doc__,
        ("methods", {"nargs": "*", "choices": list(METHODS), "help": "default: all"}),
        effective=(4000, "effective draws wanted, of ours and NumPyro's"),
        our_chains=32,
        our_warmup=160,
        numpyro=(sys.executable, "the interpreter that has NumPyro"),
        their_warmup=1000,
        draws=(1000, "of Pyro's NUTS"),
        warmup=(300, "of Pyro's NUTS"),
        steps=(1000, "of the guides' trainings"),
        guide_draws=(100, "of each of our 64 chains"),
        flow=({"type": json.loads, "default": {}}, "options of the guide's flow, as JSON"),
        seeds=[0],
        evidence=(False, "-ln of it, by weights and by annealing"),
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = counts_of_cells()
    print(f"{int(counts.sum())} cells; effective draws per CPU second")
    for seed in options.seeds:
        options.seed = seed
        compare(options, counts)


def compare(options: Any, counts: Tensor) -> None:
    """The figures of all methods with one seed."""
    found: dict[str, tuple[float, Figures]] = {}
    for name in options.methods or METHODS:
        pyro.clear_param_store()
        pyro.set_rng_seed(options.seed)
        samples, seconds = timed(functools.partial(METHODS[name], counts, options))
        if isinstance(samples, tuple):
            samples, seconds = samples
        figures = Figures.of(samples)
        fewest = min(figures.effective.values())
        found[name] = fewest / seconds, figures
        listed = ", ".join(f"{key} {value:.0f}" for key, value in figures.effective.items())
        means = ", ".join(f"{key} {value:.3f}" for key, value in figures.means.items())
        print(
            f"{name:>11}: {fewest / seconds:8.3f} ({fewest:.0f} in {seconds:.1f} s; {listed}); "
            f"R-hat {figures.rhat:.4f}; means: {means}"
        )
    if found.keys() >= {"ours", "numpyro"}:
        (ours, our_figures), (theirs, their_figures) = found["ours"], found["numpyro"]
        apart = our_figures.apart(their_figures)
        print(f"ours / NumPyro {ours / theirs:.2f}; means {apart:.1f} errors apart")


if __name__ == "__main__":
    main()
