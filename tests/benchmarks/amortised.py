# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One flow for a range of temperatures, beside flows trained at each temperature alone.

    python -m tests.benchmarks.amortised --shape 16x16 --seconds 600

For each temperature: the gap of the one flow, that of a flow trained at this temperature alone for
the same time, their ratio, and the energy per site (by importance weights, and by the derivative of
the bound) in per cent of the exact one. ``--alone`` limits the flows of single temperatures to some
of them, ``--alone 0`` to none. Times are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import fit
from pyro_neuralrg.free_energy import estimate, thermodynamics
from pyro_neuralrg.potentials import IsingDualFamily

SAMPLES = 10_000
TIMED_STEPS = 20


def trained(target: Any, seconds: float, seed: int, options: dict[str, Any]) -> Any:
    """A flow trained for about this many CPU seconds, and how long that took."""
    torch.manual_seed(seed)
    flow = target.flow(**options)
    for _ in range(2):  # the first time much is set up
        began = time.process_time()
        fit(target, target.flow(**options), steps=TIMED_STEPS, seed=seed, progress=False)
    each = (time.process_time() - began) / TIMED_STEPS
    began = time.process_time()
    result = fit(target, flow, steps=max(10, int(seconds / each)), seed=seed, progress=False)
    return flow, result.steps, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", default="8x8")
    add("--temperatures", type=float, nargs="+", default=[2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7])
    add("--seconds", type=float, default=60.0, help="CPU seconds of each training")
    add("--alone", type=float, nargs="*", help="train alone only at these; default: at all")
    add("--seed", type=int, default=0)
    add("--flow", type=json.loads, default={}, help="such as '{\"spectrum_slopes\": null}'")
    add("--samples", type=int, default=SAMPLES)
    add("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    shape = tuple(int(side) for side in arguments.shape.split("x"))
    temperatures = arguments.temperatures
    family = IsingDualFamily(shape, (min(temperatures), max(temperatures)))
    flow, steps, seconds = trained(family, arguments.seconds, arguments.seed, arguments.flow)
    print(f"{arguments.shape}, one flow: {steps} steps, {seconds:.0f} CPU seconds", flush=True)
    torch.manual_seed(arguments.seed + 1)
    found = thermodynamics(family, flow, temperatures, arguments.samples)
    alone = temperatures if arguments.alone is None else arguments.alone
    print("     T     gap      +-   alone  ratio    ESS  energy %  derivative %  C - exact  +-")
    rows = []
    for i, temperature in enumerate(temperatures):
        single = float("nan")
        if temperature in alone:
            target = family.at_temperature(temperature)
            own, *_ = trained(target, arguments.seconds, arguments.seed, {})
            torch.manual_seed(arguments.seed + 2)
            bound = estimate(target, own, arguments.samples).variational
            single = bound + target.log_partition()
        row = {name: float(values[i]) for name, values in found.as_dict().items()}
        row |= {"gap": float(found.gap[i]), "alone": single}
        rows.append(row)
        error, slope = (
            100 * abs(row[name] / row["exact_energy"] - 1)
            for name in ("energy", "variational_energy")
        )
        print(
            f"{temperature:6.2f} {row['gap']:7.4f} {row['variational_log_partition_se']:7.4f} "
            f"{single:7.4f} {row['gap'] / single:6.2f} {row['ess']:6.3f} {error:9.3f} "
            f"{slope:13.3f} {row['specific_heat'] - row['exact_specific_heat']:10.4f} "
            f"{row['specific_heat_se']:.4f}",
            flush=True,
        )
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
