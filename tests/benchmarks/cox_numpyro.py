# SPDX-License-Identifier: Apache-2.0
"""The Cox process of ``tests.benchmarks.cox`` in NumPyro; torch is not needed here.

    python -m tests.benchmarks.cox_numpyro COUNTS.npy DRAWS.npz CHAINS WARMUP DRAWS SEED

runs NUTS on one thread, writes the draws and prints the CPU seconds, compilation included.
"""

from __future__ import annotations

import math
import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

SHAPE, WINDOW = (32, 32), 28
WAVES = 2 * np.pi * np.arange(SHAPE[0]) / SHAPE[0]
LAPLACIAN = jnp.asarray(4.0 - 2 * np.cos(WAVES)[:, None] - 2 * np.cos(WAVES), dtype=jnp.float32)


def model(counts: jnp.ndarray) -> None:
    """The non-centred one."""
    level = numpyro.sample("level", dist.Normal(-1.0, 1.0))
    width = numpyro.sample("width", dist.LogNormal(-0.5, 0.5))
    length = numpyro.sample("length", dist.LogNormal(math.log(4.0), 0.5))
    noise = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand(SHAPE).to_event(2))
    modes = 1 / (8.0 / length**2 + LAPLACIAN)
    modes = modes / jnp.sqrt(jnp.mean(modes**2))
    waves = jnp.fft.rfft2(noise) * modes[:, : SHAPE[1] // 2 + 1]
    field = numpyro.deterministic("field", level + width * jnp.fft.irfft2(waves, s=SHAPE))
    rate = jnp.exp(field[:WINDOW, :WINDOW])
    numpyro.sample("counts", dist.Poisson(rate).to_event(2), obs=counts)


def main() -> None:
    """Run and report."""
    source, target, *numbers = sys.argv[1:]
    chains, warmup, draws, seed = map(int, numbers)
    counts = jnp.asarray(np.load(source))
    began = time.process_time()
    options = {"num_warmup": warmup, "num_samples": draws, "num_chains": chains}
    mcmc = MCMC(NUTS(model), **options, chain_method="sequential", progress_bar=False)
    mcmc.run(jax.random.PRNGKey(seed), counts)
    found = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.process_time() - began
    np.savez(target, **{name: found[name] for name in ("level", "width", "length", "field")})
    print(seconds)


if __name__ == "__main__":
    main()
