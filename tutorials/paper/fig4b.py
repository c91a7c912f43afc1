# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 4(b), (c): what variables know of each other, before and after renormalization.

Estimates the mutual information of all pairs of sites of fields of cluster Monte Carlo, and of all
pairs of their latents: as matrices, by distance, and by scale. Without --flow FILE, for example
flow.pt of fig3a.py, one is trained first, for some minutes. Writes fig4b.png, and fig4b.pt with the
numbers.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from start import Model, Results, Start, option, run

from pyro_neuralrg import plotting
from pyro_neuralrg.analysis import (
    GroupedInformation,
    MutualInformation,
    by_distance,
    by_scale,
    mutual_information,
)
from pyro_neuralrg.statistics import Estimate

KINDS = ("field", "latents")


@dataclass(frozen=True)
class Settings(Start):
    """Settings of the figure."""

    samples: int = option(2000, "fields of the target (default: 2000)")
    shuffles: int = option(2000, "pairs that tell the bias (default: 2000)")


def compute(settings: Settings, folder: Path) -> Results:
    """Train if there is no flow, renormalize samples of the target; informations in nats."""
    model = Model(settings)
    model.need_trained(folder / "flow.pt")
    x = model.fields(settings.samples)
    results: Results = {
        "title": f"{model.title}, {settings.samples} fields",
        "shape": model.flow.shape,
    }
    for kind, values in zip(KINDS, (x, model.latents(x)), strict=True):
        found = mutual_information(values, shuffles=settings.shuffles, seed=settings.seed)
        results[kind] = {**vars(found), "bias": tuple(found.bias)}
    results["scales"] = vars(by_scale(found, model.flow))
    return results


def information(results: Results, kind: str) -> MutualInformation:
    """Mutual information of all pairs of sites of the "field" or of the "latents"."""
    row = results[kind]
    return MutualInformation(**{**row, "bias": Estimate(*row["bias"])})


def ratio(results: Results) -> Estimate:
    """Total of the latents over that of the field."""
    field, latents = (information(results, kind).total() for kind in KINDS)
    value = latents.value / field.value
    error = math.hypot(latents.standard_error, value * field.standard_error) / abs(field.value)
    return Estimate(value, error)


def draw(results: Results) -> Figure:
    """Both matrices on one colour scale, then by distance and by scale."""
    figure = plotting.new_figure(11.2, 7.6)
    panels = figure.subplots(2, 2)
    found, share = {kind: information(results, kind) for kind in KINDS}, ratio(results)
    figure.suptitle(
        f"{results['title']}\ntotal of the latents over that of the field: "
        rf"{share.value:.4f} $\pm$ {share.standard_error:.4f}"
    )
    largest = float(found["field"].values.nan_to_num(0.0).max())
    for ax, kind in zip(panels[0], KINDS, strict=True):
        plotting.plot_information_matrix(found[kind], largest=largest, ax=ax)
        ax.set_title(f"{kind}: {ax.get_title()}")
    distances = {kind: by_distance(found[kind], results["shape"]) for kind in KINDS}
    plotting.plot_information_by_distance(distances, ax=panels[1, 0])
    plotting.plot_information_by_scale(GroupedInformation(**results["scales"]), ax=panels[1, 1])
    return figure


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [results["title"]]
    for kind in KINDS:
        found = information(results, kind)
        total, bias = found.total(), found.bias
        lines.append(
            f"total of the {kind}: {total.value:.3f} +- {total.standard_error:.3f} nats over "
            f"{found.parts.shape[1]} pairs, bias of a pair removed: {bias.value:.2g} +- "
            f"{bias.standard_error:.1g}"
        )
    share = ratio(results)
    return [*lines, f"latents over field: {share.value:.4f} +- {share.standard_error:.4f}"]


SMOKE = {"samples": 100, "shuffles": 20}

if __name__ == "__main__":
    run(sys.modules[__name__])
