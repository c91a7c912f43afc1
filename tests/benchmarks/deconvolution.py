# SPDX-License-Identifier: Apache-2.0
"""CUQIpy's two-dimensional deconvolution: our guide and samples beside its Gibbs sampler.

    python -m tests.benchmarks.deconvolution [--side 16] [--seeds 0 1] [--python PATH]

A picture, blurred and seen through noise, whose prior is a Gaussian Markov field, zero outside; the
precisions of noise and prior are unknown, Gamma(1, 1e-4) as in CUQIpy's examples. ``PATH`` is a
Python with CUQIpy (``pip install cuqipy``), which runs ``HybridGibbs`` (``LinearRTO``, conjugate
draws) on the same data. The posterior is known by quadrature over both precisions. Columns: CPU
seconds of all; (mean - exact) / sd of the pixels, root mean square; their sds over the exact ones,
and those of ln precisions; effective draws a second, the fewest of both precisions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, fit, sample
from pyro_neuralrg.distributions import GaussianMarkovField
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Table, parse, printed, timed

BLUR, NOISE = 1.5, 0.02
STEPS, DRAWS, RIVALS_DRAWS = 800, 8000, 1000
POINTS = 60  # of the quadrature, for each precision


class Problem(NamedTuple):
    blur: Tensor  # along an axis
    data: Tensor
    picture: Tensor


def blurred(blur: Tensor, x: Tensor) -> Tensor:
    """Along both axes, zero outside."""
    return blur @ x @ blur.mT


def problem(side: int, seed: int) -> Problem:
    """Two rectangles, seen through the window of Deconvolution2D, nine pixels of a Gaussian."""
    far = torch.arange(side)[:, None] - torch.arange(side)
    window = (torch.arange(-4, 5).square() / (-2 * BLUR**2)).exp()
    blur = (far.square() / (-2 * BLUR**2)).exp() * (far.abs() <= 4) / window.sum()
    torch.manual_seed(seed)
    noise = NOISE * torch.randn(side, side)
    picture = torch.zeros(side, side)
    picture[side // 6 : side // 2, side // 4 : -side // 4] = 1.0
    picture[side // 2 : -side // 5, side // 3 : side // 2] = 0.6
    return Problem(blur, blurred(blur, picture) + noise, picture)


def model(blur: Tensor, data: Tensor) -> None:
    """The same as CUQIpy's."""
    side = len(data)
    noise = pyro.sample("noise precision", dist.Gamma(1.0, 1e-4))
    prior = pyro.sample("prior precision", dist.Gamma(1.0, 1e-4))
    picture = GaussianMarkovField((side, side), prior**-0.5, boundary="zero")
    x = pyro.sample("x", picture)
    seen = dist.Normal(blurred(blur, x), noise[..., None, None] ** -0.5)
    pyro.sample("y", seen.to_event(2), obs=data)


def exact(known: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sd of each pixel, means and sds of ln precisions (noise, prior)."""
    blur, data = known.blur.double(), known.data.double().flatten()
    side, sites = len(blur), len(data)
    forward = torch.kron(blur, blur)
    one = torch.eye(side, dtype=blur.dtype)
    step = 2 * one - one.roll(1, 0).tril() - one.roll(1, 1).triu()
    precision = torch.kron(step, one) + torch.kron(one, step)
    root = torch.linalg.cholesky(precision)
    white = torch.linalg.solve_triangular(root, forward.mT, upper=False).mT
    values, vectors = torch.linalg.eigh(white.mT @ white)
    modes = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    heard = modes.mT @ (forward.mT @ data)
    noises = torch.linspace(0.7, 1.4, POINTS).double() * -2 * np.log(NOISE)
    priors = torch.linspace(-1.0, 6.0, POINTS).double()
    noise, prior = (x[..., None] for x in torch.meshgrid(noises, priors, indexing="ij"))
    total = noise.exp() * values.clamp(min=0) + prior.exp()
    mean = noise.exp() * heard / total
    log_p = 0.5 * (sites * (noise + prior) - noise.exp() * data.square().sum())[..., 0]
    log_p = log_p + 0.5 * (noise.exp() * heard * mean - total.log()).sum(-1)
    log_p = log_p + (noise + prior - 1e-4 * (noise.exp() + prior.exp()))[..., 0]
    weights = log_p.flatten().softmax(0)[:, None]
    mean, variance = mean.flatten(0, 1), (1 / total).flatten(0, 1)
    centre = (weights * mean).sum(0)
    spread = modes * (weights * variance).sum(0) @ modes.mT
    moved = (mean - centre) @ modes.mT
    variance = spread.diagonal() + (weights * moved.square()).sum(0)
    grid = torch.stack([noise, prior], -1).reshape(-1, 2)
    log_mean = (weights * grid).sum(0)
    log_sd = (weights * (grid - log_mean).square()).sum(0).sqrt()
    return modes @ centre, variance.sqrt(), torch.stack([log_mean, log_sd])


def rival(file: str, draws: str) -> None:
    """Run CUQIpy's sampler; printed as JSON. The source is run by its own Python."""
    import json
    import time

    import cuqi
    import numpy as np

    known = np.load(file)
    np.random.seed(0)
    side, began = len(known["data"]), time.process_time()
    blur = cuqi.testproblem.Deconvolution2D(
        dim=side, PSF_param=float(known["blur"]), PSF_size=9, BC="zero", phantom=known["picture"]
    ).model
    d = cuqi.distribution.Gamma(1, 1e-4)
    s = cuqi.distribution.Gamma(1, 1e-4)
    x = cuqi.distribution.GMRF(np.zeros(side**2), lambda d: d, geometry=blur.domain_geometry)
    y = cuqi.distribution.Gaussian(blur @ x, lambda s: 1 / s, geometry=blur.range_geometry)
    posterior = cuqi.distribution.JointDistribution(d, s, x, y)(y=known["data"].flatten())
    linear = cuqi.sampler.LinearRTO(maxit=100, tol=1e-6)
    steps = {"x": linear, "d": cuqi.sampler.Conjugate(), "s": cuqi.sampler.Conjugate()}
    sampler = cuqi.sampler.HybridGibbs(posterior, steps)
    sampler.warmup(200)
    sampler.sample(int(draws))
    found = sampler.get_samples()
    kept = {name: found[name].samples[:, -int(draws) :] for name in ("x", "d", "s")}
    logs = [np.log(kept[name][0]).tolist() for name in ("s", "d")]
    moments = {"mean": kept["x"].mean(1).tolist(), "sd": kept["x"].std(1).tolist()}
    print(json.dumps({**moments, "logs": logs, "seconds": time.process_time() - began}))


def ours(known: Problem, seed: int) -> Any:
    options = {"model_args": (known.blur, known.data), "seed": seed, "progress": False}
    guide = AutoHierarchicalFlow(model, field="x", prototype_args=options["model_args"])
    fit(model, guide, steps=STEPS, batch=64, lr=5e-3, **options)
    return sample(model, guide, DRAWS, **options)


def main() -> None:
    arguments = parse(__doc__, side=16, seeds=[0, 1], threads=1, python="")
    pixels = {"seconds": "9.1f", "off": "8.3f", "sds": "8.3f"}
    table = Table(18, {**pixels, "of noise": "10.3f", "of prior": "10.3f", "draws/s": "9.1f"})
    for seed in arguments.seeds:
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        known = problem(arguments.side, seed)
        mean, sd, logs = exact(known)
        draws, seconds = timed(lambda: ours(known, seed))  # noqa: B023
        found = draws.get_samples(group_by_chain=True)
        x = found["x"].flatten(0, 1).flatten(1).double()
        names = ("noise precision", "prior precision")
        log_p = torch.stack([found[name].double().log() for name in names])
        rows = [("sample", x.mean(0), x.std(0), log_p, seconds)]
        if arguments.python:
            with tempfile.TemporaryDirectory() as folder:
                file = str(Path(folder) / "data.npz")
                np.savez(file, blur=BLUR, data=known.data.numpy(), picture=known.picture.numpy())
                of = printed(arguments.python, rival, file, str(RIVALS_DRAWS))
            parts = [torch.tensor(of[name]).double() for name in ("mean", "sd", "logs")]
            rows.append(("CUQIpy", *parts[:2], parts[2][:, None], of["seconds"]))
        for name, found_mean, found_sd, log_p, seconds in rows:
            off = ((found_mean - mean) / sd).square().mean().sqrt()
            ratios = log_p.flatten(1).std(1) / logs[1]
            ess = min(float(summarise(part).ess_bulk) for part in log_p)
            z = (log_p.flatten(1).mean(1) - logs[0]) / logs[1]
            note = "ln precisions off by {:.2f}, {:.2f} sd".format(*z)
            numbers = (float(off), float((found_sd / sd).mean()), *map(float, ratios))
            table.row(f"seed {seed}, {name}", seconds, *numbers, ess / seconds, note=note)


if __name__ == "__main__":
    main()
