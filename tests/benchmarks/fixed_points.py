# SPDX-License-Identifier: Apache-2.0
"""Fixed points and running couplings of flows trained below, at and above Tc of the Ising dual.

    python -m tests.benchmarks.fixed_points --figure fixed_points.png
    python -m tests.benchmarks.fixed_points --tied --seeds 0 1 2
    python -m tests.benchmarks.fixed_points --shared

For each temperature a flow is trained, grown from a lattice of half the side, and analysed on exact
fields: the distances D of consecutive scales (``analysis.fixed_point``), how far above those at Tc
they are in standard errors, G(1) and G(2) of each scale beside those of block means, and the
couplings of each scale (``analysis.running_couplings``) with the share they explain. ``--spectrum``
gives the flows the Gaussian layer, under which the fields are nearly white. Scales that are trained
apart differ by what the loss does not see; with ``--tied`` they share their weights first, and only
what the temperature asks for moves them apart. With several ``--seeds`` a distance is the mean over
trainings, its error from their scatter, and the couplings and the figure are those of the last.

``--shared`` trains one set of weights for all scales (Li & Wang 2018, note [53]) from 8 x 8 up by
growth and prints the gap after each training, and that of the last weights on each lattice.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg import IsingDual, Schedule, fit
from pyro_neuralrg.analysis import FixedPoint, RunningCouplings, fixed_point, running_couplings
from pyro_neuralrg.plotting import plot_coupling_flow
from pyro_neuralrg.plotting.style import png
from pyro_neuralrg.potentials.ising_model import CRITICAL_TEMPERATURE
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import copy_scales
from tests.benchmarks.harness import Table, gap_of, parse, timed

SEEDS_APART = 10_000
"""Between the seeds of two temperatures, which have random numbers of their own."""


def grown(side: int, temperature: float, seed: int, options: Any) -> HierarchicalFlow:
    """A flow of the target, trained on half the side first."""
    torch.manual_seed(seed)
    flow: Any = None
    for length in (side // 2, side):
        target = IsingDual((length, length), temperature)
        spectrum = target.spectrum if options.spectrum else None
        if flow is None:
            given = {"weights": "shared" if options.tied else "scale", **options.flow}
            flow = target.flow(dtype=torch.float32, spectrum=spectrum, **given)
        else:
            flow = flow.grow(spectrum)
        train(target, flow, options, seed)
    if not options.tied:
        return flow
    apart = HierarchicalFlow.from_config({**flow.config, "weights": "scale"}).to(torch.float32)
    apart.load_state_dict(flow.state_dict())
    train(target, apart, options, seed)
    return apart


def train(
    target: IsingDual, flow: HierarchicalFlow, options: Any, seed: int, cooling: bool = False
) -> None:
    """Train a flow and print what it has reached."""
    schedule = None if cooling else Schedule(cooling=None)
    settings = {"steps": options.steps, "batch": options.batch, "seed": seed}
    _, seconds = timed(lambda: fit(target, flow, **settings, schedule=schedule, progress=False))
    gap, found = gap_of(target, flow, 2000, seed + 1, 500)
    size = "x".join(map(str, target.shape))
    print(
        f"{size}, T = {target.temperature:.4f}: gap {gap:.3f}, ESS {found.ess:.3f}, {seconds:.0f} s"
    )


def show(name: str, found: FixedPoint, couplings: RunningCouplings) -> None:
    """Correlations and couplings of each scale."""
    print(f"{name}: G(1), G(2) of the flow's fields, of block means; width; couplings; explained")
    rows = zip(found.correlations, found.block_correlations, strict=True)
    for scale, pair in enumerate(rows):
        shown = [f"{float(v):7.3f}" for one in pair for v in one.value[1:3]]
        values = zip(couplings.values[scale], couplings.standard_error[scale], strict=True)
        fitted = [f"{float(v):8.4f}({float(e):.4f})" for v, e in values]
        explained = [float(t[scale]) for t in (couplings.explained, couplings.explained_error)]
        width, ess = float(couplings.widths[scale]), float(couplings.ess[scale])
        print(
            f"  {scale}{''.join(shown)} {width:7.3f}",
            *fitted,
            f"{Estimate(*explained)}, ESS {ess:.2f}",
        )


def distances(points: list[FixedPoint], kind: str) -> tuple[Tensor, Tensor]:
    """D of each pair of scales and its error: over trainings, of one that of the fields."""
    found = [getattr(point, kind) for point in points]
    if len(found) == 1:
        return found[0].value, found[0].standard_error
    values = torch.stack([one.value for one in found])
    return values.mean(0), values.std(0) / math.sqrt(len(found))


def compare(options: Any) -> None:
    """Fixed points and couplings at all temperatures."""
    shape, couplings = (options.side, options.side), {}
    found: dict[str, list[FixedPoint]] = defaultdict(list)
    temperatures = enumerate((CRITICAL_TEMPERATURE, *options.controls))
    for (place, temperature), number in product(temperatures, options.seeds):
        seed = number + SEEDS_APART * place  # errors of differences take trainings as independent
        name = f"T = {temperature:.4f}"
        flow = grown(options.side, temperature, seed, options)
        target = IsingDual(shape, temperature)
        x = target.sample_reference(options.fields, seed).to(torch.float32)
        found[name].append(fixed_point(flow, x))
        couplings[name] = running_couplings(target, flow, x[: options.fields // 4])
        show(name, found[name][-1], couplings[name])
    critical = next(iter(found))
    columns = {"D kept": "10.5f", "+-": "9.5f", "above Tc, errors": "18.1f"}
    columns |= {"D detail": "10.5f", "+- ": "9.5f", "above Tc, errors ": "18.1f"}
    table = Table(24, columns, "scales compared")
    for name, points in found.items():
        for place, scale in enumerate(points[0].scales):
            line = []
            for kind in ("kept", "detail"):
                (value, error), (base, its_error) = (
                    (float(figure[place]) for figure in distances(one, kind))
                    for one in (points, found[critical])
                )
                line += [value, error, (value - base) / math.hypot(error, its_error)]
            table.row(f"{name}, {scale} and {scale + 1}", *line)
    if options.figure:
        axes = plot_coupling_flow(couplings, finest=1)
        options.figure.write_bytes(png(axes.figure, 120))


def share(options: Any) -> None:
    """One set of weights for all scales and lattices."""
    flow: Any = None
    seed = options.seeds[0]
    torch.manual_seed(seed)
    for side in (8, 16, 32):
        target = IsingDual((side, side))
        given = {"dtype": torch.float32, "weights": "shared", **options.flow}
        flow = target.flow(**given) if flow is None else flow.grow(target.spectrum)
        train(target, flow, options, seed, cooling=side == 8)
    print("with the last weights:")
    for side in (8, 16):
        target = IsingDual((side, side))
        small = target.flow(dtype=torch.float32, weights="shared", **options.flow)
        copy_scales(small, flow)
        gap, found = gap_of(target, small, 2000, seed + 1, 500)
        print(f"{side}x{side}: gap {gap:.3f}, ESS {found.ess:.3f}")


def main() -> None:
    options = parse(
        __doc__,
        side=16,
        controls=[2.15, 2.40],
        steps=(300, "of each training"),
        batch=128,
        fields=(2000, "exact ones that are analysed"),
        seeds=[0],
        threads=1,
        tied=(False, "train one set of weights for all scales first"),
        spectrum=(False, "flows with the Gaussian layer"),
        flow=({"type": json.loads, "default": {}}, 'such as \'{"circuit": "tree"}\''),
        shared=(False, "one set of weights instead"),
        figure=({"type": Path}, "file for the flow diagram"),
    )
    (share if options.shared else compare)(options)


if __name__ == "__main__":
    main()
