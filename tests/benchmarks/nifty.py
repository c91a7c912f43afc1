# SPDX-License-Identifier: Apache-2.0
"""NIFTy's correlated field, seen through counts: our guide and samples beside MGVI and geoVI.

    python -m tests.benchmarks.nifty [--side 16] [--seeds 0 1 2] [--python PATH]

A field on a torus of volume 1 has a power law of unknown amplitude and slope, as of NIFTy's
``CorrelatedFieldMaker`` without flexibility and asperity, and counts are Poisson of its
exponential. ``PATH`` is a Python with NIFTy 9 (``pip install nifty jax``), which gets the same data
and prior; without it only ours is run. The reference are more draws of ours. Columns: CPU seconds,
everything included; root mean square of (mean - truth) / sd, and the share of 68 % intervals that
hold the truth; the distance from the reference's mean, in its sds; sds over its; and the slope.
"""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_neuralrg import AutoHierarchicalFlow, fit, sample
from pyro_neuralrg.distributions import StationaryField
from tests.benchmarks.harness import Table, parse, printed, timed

MEAN = 1.0  # of ln rate
OFFSET, FLUCTUATIONS, SLOPE = (0.3, 0.1), (0.8, 0.4), (-2.0, 0.5)
"""Means and standard deviations, of two log-normals and of a normal."""
STEPS, DRAWS, REFERENCE = 600, 4000, 20_000


class PowerLaw(StationaryField):
    """A field on a torus: amplitudes of its modes are a power of the wave number."""

    def __init__(self, shape: Any, offset: Tensor, fluctuations: Tensor, slope: Tensor) -> None:
        parameters = {"offset": offset, "fluctuations": fluctuations, "slope": slope}
        super().__init__(shape, "periodic", None, scale=1.0, **parameters)

    def eigenvalues(self) -> Tensor:
        sides = [torch.fft.fftfreq(n, 1 / n).to(self.slope) for n in self.event_shape]
        waves = torch.stack(torch.meshgrid(*sides, indexing="ij")).square().sum(0).flatten()[1:]
        power = waves ** self.slope[..., None]
        power = self.fluctuations[..., None] ** 2 * power / power.sum(-1, keepdim=True)
        zero = self.offset[..., None] ** 2
        inverse = 1 / (torch.cat([zero, power], -1) * math.prod(self.event_shape))
        return inverse.reshape(*inverse.shape[:-1], *self.event_shape)


def log_normal(mean: float, sd: float) -> Any:
    """By its mean and standard deviation, as NIFTy has it."""
    width = math.sqrt(math.log1p((sd / mean) ** 2))
    return dist.LogNormal(math.log(mean) - width**2 / 2, width)


def model(side: int, counts: Tensor | None = None) -> None:
    """The same as NIFTy's."""
    offset = pyro.sample("offset", log_normal(*OFFSET))
    fluctuations = pyro.sample("fluctuations", log_normal(*FLUCTUATIONS))
    slope = pyro.sample("slope", dist.Normal(*SLOPE))
    white = pyro.sample("white", dist.Normal(torch.zeros(side, side), 1.0).to_event(2))
    prior = PowerLaw((side, side), offset, fluctuations, slope)
    field = pyro.deterministic("field", prior.from_normal(white), event_dim=2)
    pyro.sample("counts", dist.Poisson((MEAN + field).exp()).to_event(2), obs=counts)


def figures(field: Tensor, slope: Tensor) -> dict[str, Any]:
    """What is compared, of draws."""
    moments = {"mean": field.mean(0).double(), "sd": field.std(0).double()}
    return {**moments, "slope": [float(slope.mean()), float(slope.std())]}


def of_draws(draws: Any) -> dict[str, Any]:
    found = draws.get_samples()
    return figures(found["field"], found["slope"])


def ours(side: int, counts: Tensor, seed: int) -> tuple[Any, Any]:
    """A trained guide, and the figures of its draws."""
    guide = AutoHierarchicalFlow(model, field="white", prototype_args=(side, counts))
    options = {"model_args": (side, counts), "seed": seed, "progress": False}
    fit(model, guide, steps=STEPS, batch=64, lr=1e-2, **options)
    with torch.no_grad():
        found = pyro.infer.Predictive(guide, num_samples=DRAWS, parallel=True)(side, counts)
        sites = {"return_sites": ("field", "slope"), "parallel": True}
        found = pyro.infer.Predictive(model, found, **sites)(side, counts)
    return guide, figures(found["field"].reshape(DRAWS, side, side), found["slope"].flatten())


def rival(file: str, linear: str) -> None:
    """Run NIFTy's variational inference; printed as JSON. The source is run by its own Python."""
    import json
    import time

    import jax
    import jax.numpy as jnp
    import nifty.re as jft
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    data = np.load(file)
    side = len(data["counts"])
    began = time.process_time()
    maker = jft.CorrelatedFieldMaker("cf")
    maker.set_amplitude_total_offset(offset_mean=float(data["mean"]), offset_std=data["offset"])
    maker.add_fluctuations(
        (side, side),
        distances=1 / side,
        fluctuations=tuple(data["fluctuations"]),
        loglogavgslope=tuple(data["slope"]),
        harmonic_type="fourier",
    )
    field = maker.finalize()
    signal = jft.Model(lambda x: jnp.exp(field(x)), domain=field.domain, init=field.init)
    likelihood = jft.Poissonian(jnp.asarray(data["counts"])).amend(signal)
    quiet = {"name": None, "xtol": 1e-4, "cg_kwargs": {"name": None}}
    key, start = jax.random.split(jax.random.PRNGKey(int(data["seed"])))
    samples, _ = jft.optimize_kl(
        likelihood,
        jft.Vector(likelihood.init(start)),
        key=key,
        n_total_iterations=8,
        n_samples=lambda i: 8 if i < 7 else 50,
        draw_linear_kwargs={"cg_name": None, "cg_kwargs": {"absdelta": 1e-3, "maxiter": 200}},
        nonlinearly_update_kwargs={"minimize_kwargs": {**quiet, "maxiter": 10}},
        kl_kwargs={"minimize_kwargs": {**quiet, "maxiter": 35}},
        sample_mode="linear_resample" if linear == "MGVI" else "nonlinear_resample",
    )
    fields = np.stack([field(s) for s in samples]) - float(data["mean"])
    low, wide = data["slope"]
    slopes = np.array([low + wide * float(s["cfloglogavgslope"]) for s in samples])
    found = {"mean": fields.mean(0).tolist(), "sd": fields.std(0, ddof=1).tolist()}
    found["slope"] = [slopes.mean(), slopes.std(ddof=1)]
    print(json.dumps({**found, "seconds": time.process_time() - began}))


def of_rival(python: str, method: str, counts: Tensor, seed: int) -> dict[str, Any]:
    prior = {"offset": OFFSET, "fluctuations": FLUCTUATIONS, "slope": SLOPE, "mean": MEAN}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", counts=counts.numpy().astype(int), seed=seed, **prior)
        found = printed(python, rival, f"{folder}/data.npz", method)
    return {**found, **{name: torch.tensor(found[name]).double() for name in ("mean", "sd")}}


def main() -> None:
    arguments = parse(__doc__, side=16, seeds=[0, 1, 2], threads=1, python="")
    side = arguments.side
    columns = {"seconds": "9.1f", "rms z": "8.3f", "inside": "8.3f", "off": "8.3f", "sds": "8.3f"}
    table = Table(22, columns)
    for seed in arguments.seeds:
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        trace = pyro.poutine.trace(model).get_trace(side)
        truth, counts = trace.nodes["field"]["value"].double(), trace.nodes["counts"]["value"]
        (guide, of_guide), trained = timed(lambda: ours(side, counts, seed))  # noqa: B023
        options = {"model_args": (side, counts), "seed": seed, "progress": False}
        draws, drawn = timed(lambda: sample(model, guide, DRAWS, **options))  # noqa: B023
        reference = sample(model, guide, REFERENCE, **options | {"seed": seed + 1000})
        exact = of_draws(reference)
        rows = [("guide", of_guide, trained), ("sample", of_draws(draws), trained + drawn)]
        for method in ("MGVI", "geoVI") if arguments.python else ():
            found = of_rival(arguments.python, method, counts, seed)
            rows.append((method, found, found["seconds"]))
        for name, found, seconds in [*rows, ("reference", exact, math.nan)]:
            z = (found["mean"] - truth) / found["sd"]
            off = ((found["mean"] - exact["mean"]) / exact["sd"]).square().mean().sqrt()
            numbers = (z.square().mean().sqrt(), (z.abs() < 1).double().mean(), off)
            ratio = float((found["sd"] / exact["sd"]).mean())
            slope = "slope {:.2f} +- {:.2f}".format(*found["slope"])
            table.row(f"seed {seed}, {name}", seconds, *map(float, numbers), ratio, note=slope)
        worst = reference.summary()["r_hat"].max()
        print(f"the reference: {reference.method}, R-hat {worst:.3f}")


if __name__ == "__main__":
    main()
