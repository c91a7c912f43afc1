# SPDX-License-Identifier: Apache-2.0
"""One flow for a range of temperatures, beside flows trained at each temperature alone.

    python -m tests.benchmarks.amortised --shape 16x16 --seconds 600

For each temperature: the gap of the one flow, that of a flow trained at this temperature alone for
the same time, their ratio, and the energy per site (by importance weights, and by the derivative of
the bound) in per cent of the exact one. ``--alone`` limits the flows of single temperatures to some
of them, ``--alone 0`` to none. Times are CPU seconds of the process. ``--figure FILE`` draws
energy, specific heat, susceptibility and Binder cumulant.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_neuralrg import fit
from pyro_neuralrg.free_energy import thermodynamics
from pyro_neuralrg.plotting import plot_thermodynamics
from pyro_neuralrg.plotting.style import png
from pyro_neuralrg.potentials import IsingDualFamily, critical_temperature
from tests.benchmarks.harness import Table, gap_of, parse, shape, steps_within, timed

SAMPLES = 10_000
COLUMNS = {
    "gap": "8.4f", "+-": "8.4f", "alone": "8.4f", "ratio": "7.2f", "ESS": "7.3f",
    "energy %": "10.3f", "derivative %": "14.3f", "C - exact": "11.4f", "error": "9.4f",
}  # fmt: skip


def trained(target: Any, seconds: float, seed: int, options: dict[str, Any]) -> Any:
    """A flow trained for about this many CPU seconds, and how long that took."""
    torch.manual_seed(seed)
    flow = target.flow(**options)
    steps = steps_within(seconds, "cpu", target, flow, seed=seed, progress=False)
    chosen = {"steps": max(10, steps), "seed": seed, "progress": False}
    result, seconds = timed(lambda: fit(target, flow, **chosen))
    return flow, result.steps, seconds


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
        figure=({"type": Path}, "file of a picture"),
    )
    warnings.simplefilter("ignore", UserWarning)
    temperatures = options.temperatures
    family = IsingDualFamily(tuple(options.shape), (min(temperatures), max(temperatures)))
    flow, steps, seconds = trained(family, options.seconds, options.seed, options.flow)
    print(f"{family.shape}, one flow: {steps} steps, {seconds:.0f} CPU seconds")
    torch.manual_seed(options.seed + 1)
    found = thermodynamics(family, flow, temperatures, options.samples)
    if options.figure is not None:
        name = "x".join(map(str, family.shape))
        picture = plot_thermodynamics({name: found}, critical=critical_temperature(family.shape))
        options.figure.write_bytes(png(picture, 110))
    alone = temperatures if options.alone is None else options.alone
    table = Table(6, COLUMNS, "T")
    rows = []
    for i, temperature in enumerate(temperatures):
        single = float("nan")
        if temperature in alone:
            target = family.at_temperature(temperature)
            own, *_ = trained(target, options.seconds, options.seed, {})
            single, _ = gap_of(target, own, options.samples, options.seed + 2)
        row = {name: float(values[i]) for name, values in found.as_dict().items()}
        row |= {"gap": float(found.gap[i]), "alone": single}
        rows.append(row)
        error, slope = (
            100 * abs(row[name] / row["exact_energy"] - 1)
            for name in ("energy", "variational_energy")
        )
        table.row(
            f"{temperature:.2f}", row["gap"], row["variational_log_partition_se"], single,
            row["gap"] / single, row["ess"], error, slope,
            row["specific_heat"] - row["exact_specific_heat"], row["specific_heat_se"],
        )  # fmt: skip
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
