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

import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import fit
from pyro_neuralrg.free_energy import estimate, thermodynamics
from pyro_neuralrg.potentials import IsingDualFamily
from tests.benchmarks.harness import parse, shape

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
    options = parse(
        __doc__,
        shape={"type": shape, "default": [8, 8], "metavar": "8x8"},
        temperatures=[2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7],
        seconds=(60.0, "CPU seconds of each training"),
        alone=({"type": float, "nargs": "*"}, "train alone only at these; default: at all"),
        seed=0,
        flow=({"type": json.loads, "default": {}}, "such as '{\"spectrum_slopes\": null}'"),
        samples=SAMPLES,
        json=({"type": Path}, "file for all figures"),
    )
    warnings.simplefilter("ignore", UserWarning)
    temperatures = options.temperatures
    family = IsingDualFamily(tuple(options.shape), (min(temperatures), max(temperatures)))
    flow, steps, seconds = trained(family, options.seconds, options.seed, options.flow)
    print(f"{family.shape}, one flow: {steps} steps, {seconds:.0f} CPU seconds")
    torch.manual_seed(options.seed + 1)
    found = thermodynamics(family, flow, temperatures, options.samples)
    alone = temperatures if options.alone is None else options.alone
    print("     T     gap      +-   alone  ratio    ESS  energy %  derivative %  C - exact  +-")
    rows = []
    for i, temperature in enumerate(temperatures):
        single = float("nan")
        if temperature in alone:
            target = family.at_temperature(temperature)
            own, *_ = trained(target, options.seconds, options.seed, {})
            torch.manual_seed(options.seed + 2)
            bound = estimate(target, own, options.samples).variational
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
            f"{row['specific_heat_se']:.4f}"
        )
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
