# SPDX-License-Identifier: Apache-2.0
"""Critical exponents of the Ising model at Tc by MCRG, against the exact y_t = 1, y_h = 15/8.

Cluster configurations, blocked by the majority rule, by averages (c by matching the exact
structure factors of sides L / 2 and L) and by decimation. Of each step and blocking the mean over
repetitions and its distance from exact in per cent, the systematic part; the error that one
repetition claims beside the scatter of all; and how many of them have the mean within one and two
of their errors (68 % and 95 %; the mean is the repetitions' own).

    python -m tests.benchmarks.mcrg
    python -m tests.benchmarks.mcrg --repetitions 1 --draws 1000 --rules majority
    python -m tests.benchmarks.mcrg --repetitions 0 --flow-side 16

With ``--flow-side`` a flow of the Ising dual that begins at Haar wavelets, with no Gaussian layer,
is trained for so many ``--steps`` (or that of a ``--flow`` file taken), and its coarse fields of
exact fields stand beside averages of the same, by their values and by their signs alone.
``--figure FILE`` draws the exponents against the steps, ``--cache FOLDER`` keeps configurations.

20 repetitions of 32 chains x 250 configurations, 5 sweeps apart, at L = 64 with 7 even and 4 odd
operators (averages: 6 repetitions, c = 1.0904), mean and its distance from exact in per cent. The
sums of spins were formed bit by bit, checked against ``operator_sums`` on 50 configurations:

    step            1                  2                  3                  4
    majority y_t    0.969(2)  -3.1     0.995(2)  -0.5     0.990(3)  -1.0     0.975(5)   -2.5
    majority y_h    1.8808(1) +0.3     1.8759(1) +0.05    1.8743(2) -0.04    1.8734(4)  -0.08
    decimation y_t  1.179(2)  +18      1.166(2)  +17      1.062(3)  +6       0.681(4)   -32
    decimation y_h  1.9452(3) +3.7     1.9299(3) +2.9     1.9231(3) +2.6     1.8978(6)  +1.2
    average y_t     0.06(1)   -94      0.30(2)   -70      0.80(2)   -20      0.67(3)    -33

Of the 160 pairs of exponent, step and repetition of the majority rule 113 have the mean within one
error (71 %), 151 within two (94 %); of decimation 106 and 151. The y_h of averages is 2 - log2 c,
1.8752; with c = 1 they are 2 and y_t 1.47 and 1.49 at the last two steps. One repetition, with
errors of 1 % of y_t, takes some 30 s for the configurations and 5 s for each blocking.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_neuralrg import IsingDual, fit, load
from pyro_neuralrg.analysis import MCRG, OPERATORS, matching_normalization, mcrg
from pyro_neuralrg.plotting.style import COLOURS, GREY, MARKERS, STYLES, new_figure, png
from pyro_neuralrg.potentials import IsingModel
from pyro_neuralrg.potentials.cluster import swendsen_wang
from tests.benchmarks.harness import Table, gap_of, parse

RULES = ("majority", "average", "decimation")
EXACT = {"y_t": 1.0, "y_h": 15 / 8}
OF_SPINS = {
    "nearest", "diagonal", "plaquette", "two_apart", "knight", "diamond", "two_diagonals",
    "field", "corner", "row_of_three", "hook",
}  # fmt: skip
OF_FIELDS = {
    "nearest", "square", "diagonal", "fourth_power", "plaquette", "two_apart", "nearest_squares",
    "field", "cube", "corner", "square_neighbour",
}  # fmt: skip
COLUMNS = {
    "step": "6.0f", "mean": "9.4f", "off, %": "9.2f", "its error": "11.4f", "claimed": "9.4f",
    "scatter": "9.4f", "in 1": "6.0f", "in 2": "6.0f",
}  # fmt: skip


def configurations(options: Any, seed: int) -> NDArray[np.uint8]:
    """Cluster configurations at Tc, made or read from the cache: a bit for each site."""
    file = options.cache and options.cache / f"ising{options.side}_{seed}.npy"
    if file and file.exists():
        return np.load(file)
    spins = swendsen_wang(
        IsingModel((options.side, options.side)).bonds,
        None,
        options.side**2,
        chains=options.chains,
        rounds=options.draws,
        seed=seed,
        between=options.between,
    )
    bits = np.packbits(spins > 0, axis=-1)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, bits)
    return bits


def exponents(bits: NDArray[np.uint8], rule: str, options: Any, c: float) -> MCRG:
    """The exponents of one repetition, of (draws, chains) configurations."""
    up = torch.from_numpy(np.unpackbits(bits, axis=-1)).transpose(0, 1)
    shape = options.side, options.side
    names = OF_FIELDS if rule == "average" else OF_SPINS
    return mcrg(
        2 * up.reshape(*up.shape[:2], *shape).float() - 1,
        shape,
        rule,
        operators=[operator for operator in OPERATORS if operator.name in names],
        levels=options.levels,
        normalization=c if rule == "average" else "variance",
    )


def rows(table: Table, name: str, runs: Sequence[MCRG]) -> None:
    """Print each exponent of every step, over repetitions."""
    for exponent, exact in EXACT.items():
        for index in range(len(runs[0].steps) if runs else 0):
            found = [getattr(run.steps[index], exponent) for run in runs]
            values = torch.tensor([y.value for y in found], dtype=torch.float64)
            errors = torch.tensor([y.standard_error for y in found], dtype=torch.float64)
            mean, scatter = float(values.mean()), float(values.std()) if len(runs) > 1 else math.nan
            off = (values - mean).abs()
            table.row(
                f"{name} {exponent}",
                index + 1,
                mean,
                100 * (mean / exact - 1),
                float(errors.square().mean().sqrt()) / math.sqrt(len(runs)),
                float(errors.mean()),
                scatter,
                float((off < errors).sum()),
                float((off < 2 * errors).sum()),
            )


def draw(file: Path, runs: dict[str, list[MCRG]]) -> None:
    """The exponents of each blocking against the steps, means over the repetitions."""
    figure = new_figure(7.0, 2.6)
    for place, (exponent, exact) in enumerate(EXACT.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.axhline(exact, color=GREY, linewidth=0.8)
        for index, (rule, found) in enumerate(runs.items()):
            values = np.array([[getattr(s, exponent).value for s in run.steps] for run in found])
            errors = np.array(
                [[getattr(s, exponent).standard_error for s in run.steps] for run in found]
            )
            axes.errorbar(
                np.arange(1, values.shape[1] + 1) + 0.08 * (index - 1),
                values.mean(0),
                np.sqrt(np.square(errors).mean(0) / len(found)),
                color=COLOURS[index],
                marker=MARKERS[index],
                linestyle=STYLES[index],
                markersize=4,
                label=rule,
            )
        axes.set(xlabel="step", ylabel=f"${exponent}$", xticks=range(1, values.shape[1] + 1))
    axes.legend(frameon=False, fontsize="small")
    file.write_bytes(png(figure, 150))


def of_a_flow(options: Any) -> None:
    """The exponents from a flow's own coarse fields, and from averages of the same fields."""
    target = IsingDual((options.flow_side, options.flow_side))
    if options.flow:
        flow = load(options.flow).flow
    else:
        look = {"circuit": options.circuit, "weights": options.weights, "wavelet": "haar"}
        flow = target.flow(spectrum=None, dtype=torch.float32, **look)
        fit(target, flow, steps=options.steps, batch=options.batch, seed=0, progress=False)
    print(f"{flow}: gap {gap_of(target, flow, 2000, 1, 500)[0]:.3f}")
    x = target.sample_reference(options.flow_fields, seed=1).to(next(flow.parameters()).dtype)
    for blocking, signs in itertools.product((flow, "average"), (False, True)):
        print("signs" if signs else "values", mcrg(x, target.shape, blocking, signs=signs), "\n")


def main() -> None:
    """Print a table of all blockings, or the exponents of a flow."""
    options = parse(
        __doc__,
        side=64,
        repetitions=20,
        chains=32,
        draws=(250, "configurations of each chain"),
        between=(5, "sweeps from one to the next"),
        levels=4,
        rules=list(RULES),
        cache=({"type": Path}, "folder of configurations"),
        figure=({"type": Path}, "PNG of the exponents"),
        flow_side=(0, "side of the dual whose flow is looked at"),
        flow=({"type": Path}, "its file"),
        circuit=("tree", "without a file"),
        weights=("shared", "likewise"),
        steps=(400, "of its training, likewise"),
        batch=(128, "likewise"),
        flow_fields=(4000, "exact ones that it renormalises"),
        threads=1,
    )
    runs: dict[str, list[MCRG]] = {rule: [] for rule in options.rules}
    if options.repetitions:
        sides = options.side // 2, options.side
        matched = (IsingModel((side, side)).structure_factor() for side in sides)
        c = matching_normalization(*matched).value
        table = Table(24, COLUMNS, f"c = {c:.5f}")
        bits = [configurations(options, seed) for seed in range(options.repetitions)]
        for rule, found in runs.items():
            found.extend(exponents(one, rule, options, c) for one in bits)
            rows(table, rule, found)
            for cutoff in (1e-2, 1e-3):
                rows(table, f"{rule}, {cutoff:g}", [run.at(cutoff=cutoff) for run in found])
        for off in (0.99, 1.01):
            found = [run.at(normalization=off * c) for run in runs.get("average", [])]
            rows(table, f"average, {off} c", found)
    if options.figure:
        draw(options.figure, runs)
    if options.flow_side:
        of_a_flow(options)


if __name__ == "__main__":
    main()
