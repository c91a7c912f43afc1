# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""A 32 x 32 log-Gaussian Cox process: our guide and sampler beside Pyro's, draws for each second.

    python -m tests.benchmarks.cox guide noncentred plain haar normal [--draws 1000]

Positions of stained cells (scikit-image's immunohistochemistry picture), counted in 28 x 28 pixels
of a periodic lattice of 32 x 32; a Matern field with a free level, width and length of correlation.
For each method: CPU seconds of the process, training and warm-up included, and the fewest bulk
effective draws of the three and of the field at all sites.

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
import warnings
from collections.abc import Callable
from typing import Any

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
from pyro_neuralrg.spectral import apply_spectrum, neighbour_spectrum, quadratic_form
from tests.benchmarks.harness import parse, timed

SHAPE, WINDOW = (32, 32), 28
SITES = math.prod(SHAPE)
LAPLACIAN = (4.0 - neighbour_spectrum(SHAPE, (1.0, 1.0))).float()
GLOBALS = ("level", "width", "length")


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


def effective_draws(samples: dict[str, Tensor]) -> dict[str, float]:
    """Bulk effective draws of draws ``(chains, draws, ...)``, the fewest of each site."""
    field = samples.get("field")
    if field is None:
        field = field_of(*(samples[name] for name in GLOBALS), samples["noise"])
    series = {name: samples[name].numpy() for name in GLOBALS} | {"field": field.numpy()}
    found = az.ess(az.from_dict(posterior=series))
    return {name: float(found[name].min()) for name in series}


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


METHODS: dict[str, Callable[[Tensor, Any], dict[str, Tensor]]] = {
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
        draws=(1000, "of Pyro's NUTS"),
        warmup=(300, "of Pyro's NUTS"),
        steps=(1000, "of the guides' trainings"),
        guide_draws=(100, "of each of our 64 chains"),
        flow=({"type": json.loads, "default": {}}, "options of the guide's flow, as JSON"),
        seed=0,
        evidence=(False, "-ln of it, by weights and by annealing"),
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = counts_of_cells()
    print(f"{int(counts.sum())} cells; effective draws per CPU second")
    for name in options.methods or METHODS:
        pyro.clear_param_store()
        pyro.set_rng_seed(options.seed)
        samples, seconds = timed(functools.partial(METHODS[name], counts, options))
        effective = effective_draws(samples)
        fewest = min(effective.values())
        means = {key: f"{float(samples[key].mean()):.3f}" for key in GLOBALS}
        listed = ", ".join(f"{key} {value:.0f}" for key, value in effective.items())
        print(
            f"{name:>11}: {fewest / seconds:8.3f} ({fewest:.0f} in {seconds:.0f} s; {listed}); "
            f"means {means}"
        )


if __name__ == "__main__":
    main()
