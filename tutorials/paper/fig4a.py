# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 4(a): what the collective variables of every scale respond to.

Differentiates latents by the field, averaged over fields of cluster Monte Carlo: a row of pictures
for each scale. Says how far the four top variables are block spins, of --seeds trainings. Without
--flow FILE, for example flow.pt of fig3a.py, flows are trained first, for some minutes each. Writes
fig4a.png, and fig4a.pt with the numbers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from start import Model, Results, Start, option, run
from torch import Tensor

from pyro_neuralrg import plotting
from pyro_neuralrg.analysis import (
    Response,
    block_wavelets,
    overlap,
    responses,
    responses_by_scale,
    scale_of_latents,
    variables_of_scale,
    written_patterns,
)

OVERLAPS = ("before", "after", "subspace", "written_before", "written_after")


@dataclass(frozen=True)
class Settings(Start):
    """Settings of the figure."""

    samples: int = option(1000, "fields that responses are averaged over (default: 1000)")
    most: int = option(4, "latents of each scale (default: 4)")
    seeds: int = option(1, "trainings, from --seed on; the first one is drawn (default: 1)")


def compute(settings: Settings, folder: Path) -> Results:
    """Train if there is no flow, and differentiate.

    A number per seed of the top variables against the indicators of the blocks they stand for: the
    mean largest cosine "before" and "after" the best rotation of the responses (the prior does not
    tell them from their rotations), the smallest cosine of a principal angle of the "subspace"s;
    likewise of what the latents write into the field, dx/dz: where a Fourier layer makes the field
    smooth, a latent answers to a single site, as that tells of all around, yet writes broadly.
    """
    if settings.seeds < 1 or (settings.seeds > 1 and settings.flow is not None):
        raise ValueError(f"seeds is {settings.seeds}; accepted: at least 1, and 1 of a saved flow")
    results: Results = {name: [] for name in OVERLAPS}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        model = Model(replace(settings, seed=seed))
        model.need_trained(folder / ("flow.pt" if seed == settings.seed else f"flow-{seed}.pt"))
        x = model.fields(settings.samples)
        top = responses(model.flow, x, variables_of_scale(model.flow, top_scale(model.flow)))
        for name, value in zip(OVERLAPS, overlaps(model, x, top), strict=True):
            results[name].append(value)
        if seed == settings.seed:
            scales = responses_by_scale(model.flow, x, most=settings.most)
            shown = {"top variables": top, **scales}
            results |= {"title": model.title, "rows": {k: vars(v) for k, v in shown.items()}}
    return results


def top_scale(flow: Any) -> int:
    """The last scale but one: that of the four top variables of a square lattice of side 2^n."""
    return max(0, int(scale_of_latents(flow).max()) - 1)


def overlaps(model: Model, x: Tensor, top: Response) -> tuple[float, ...]:
    """The numbers of ``OVERLAPS`` for one training."""
    blocks = block_wavelets(model.flow, top_scale(model.flow)).to(x.dtype)
    alike = overlap(top, blocks)
    patterns = written_patterns(model.flow, model.latents(x), list(top.variables))
    written = overlap(patterns, blocks)
    return alike.before, alike.after, float(alike.subspace.min()), written.before, written.after


def draw(results: Results) -> Figure:
    """The top variables in the first row of panels, then a row for each scale below them."""
    rows = {name: Response(**row) for name, row in results["rows"].items()}
    top = set(rows["top variables"].variables)
    rows = {k: row for k, row in rows.items() if k == "top variables" or {*row.variables} - top}
    figure = plotting.plot_responses(rows, centred=True)
    listed = {name: " ".join(f"{value:.3f}" for value in results[name]) for name in OVERLAPS}
    count = len(results["before"])
    figure.suptitle(
        f"{results['title']}\noverlap of the top variables with their blocks"
        f"{f', {count} trainings' if count > 1 else ''}: "
        f"{listed['before']}, after the best rotation {listed['after']};\nof what they write into "
        f"the field: {listed['written_before']} and {listed['written_after']}",
        fontsize="medium",
    )
    return figure


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [results["title"]]
    for index, numbers in enumerate(zip(*(results[name] for name in OVERLAPS), strict=True)):
        before, after, subspace, written, rotated = numbers
        lines.append(
            f"training {index}: overlap of the top variables with their blocks {before:.4f}, after "
            f"the best rotation {after:.4f}, smallest cosine of the subspaces {subspace:.4f}; of "
            f"what they write {written:.4f} and {rotated:.4f}"
        )
    for scale, row in list(results["rows"].items())[1:]:
        share = 100 * float(Response(**row).nonlinearity.mean())
        lines.append(f"scale {scale}: {share:.1f} % of the squared response varies between fields")
    return lines


SMOKE = {"samples": 20}

if __name__ == "__main__":
    run(sys.modules[__name__])
