# SPDX-License-Identifier: Apache-2.0
"""Draws of good and poor flows by ``sample``, against the exact structure factor.

    python -m tests.benchmarks.exactness [--steps 60 300 2000] [--draws 12000 32000 400000]

The dual Ising model at Tc, a flow with its defaults for each number of training steps, and as many
draws of ``sample`` with its own: the gap that is left in nats, with its error, the method that was
chosen, S with its error, and z, its deviation from the exact value in errors.
"""

from __future__ import annotations

import torch

from pyro_neuralrg import IsingDual, sample
from tests.benchmarks.harness import Table, gap_of, parse, timed, trained_flow

COLUMNS = {
    "gap": "9.3f", "+-": "7.3f", "draws": "9.0f", "S": "10.5f", "error": "10.5f", "z": "7.2f",
    "training": "10.1f", "drawing": "9.1f",
}  # fmt: skip


def main() -> None:
    options = parse(
        __doc__,
        side=16,
        steps=[60, 300, 2000],
        draws=([12_000, 32_000, 400_000], "for each number of steps"),
        seed=0,
        threads=1,
    )
    target = IsingDual((options.side, options.side))
    observables = {"S": target.observables()["structure_factor"]}
    exact = target.spins.structure_factor()
    table = Table(10, COLUMNS, "steps")
    for steps, number in zip(options.steps, options.draws, strict=True):
        torch.manual_seed(options.seed)
        flow, training = timed(lambda n=steps: trained_flow(target, None, n, options.seed))
        gap, quality = gap_of(target, flow, 4000, options.seed)
        settings = {"observables": observables, "keep_draws": False, "progress": False}
        draws, drawing = timed(
            lambda q=flow, n=number, s=settings: sample(target, q, n, seed=options.seed, **s)
        )
        found = draws.mean(draws.observables["S"])
        value, error = float(found.value), float(found.standard_error)
        table.row(
            str(steps), gap, quality.variational_se, number, value, error, (value - exact) / error,
            training, drawing, note=f"{draws.method}: {draws.reason}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
