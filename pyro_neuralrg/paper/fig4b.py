# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 4(b), (c): what variables know of each other, before and after renormalization."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_neuralrg import plotting
from pyro_neuralrg.analysis import (
    GroupedInformation,
    MutualInformation,
    by_distance,
    by_scale,
    mutual_information,
)
from pyro_neuralrg.analysis.estimators import Bins, Estimator, Neighbours
from pyro_neuralrg.paper.files import read_arrays, write_arrays, write_flow
from pyro_neuralrg.paper.start import Prepared, Start, inverse
from pyro_neuralrg.plotting.style import new_figure
from pyro_neuralrg.statistics import Estimate

__all__ = ["Results", "Settings", "compute", "describe", "draw"]

NAME = "fig4b"
KINDS = ("field", "latents")
GROUPS = ("values", "standard_error", "pairs")
ESTIMATORS: dict[str, type[Neighbours] | type[Bins]] = {"neighbours": Neighbours, "bins": Bins}


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes:
        start: The model and its flow.
        estimator: "neighbours" (Kraskov, Stoegbauer, Grassberger) or "bins", which is faster.
        samples: Fields of the target, by cluster Monte Carlo.
        shuffles: Pairs that tell the bias.
    """

    start: Start = field(default_factory=Start)
    estimator: str = "neighbours"
    samples: int = 2000
    shuffles: int = 2000

    @classmethod
    def small(cls, start: Start) -> Settings:
        """Seconds long."""
        return cls(start.small(), samples=100, shuffles=20)


@dataclass(frozen=True)
class Results:
    """What was found, in nats.

    Attributes:
        title: The model and the flow.
        shape: Of the lattice.
        information: Of all pairs of sites of the "field" and of the "latents".
        distances: Mean of a pair at each distance, likewise.
        scales: Mean of a pair of latents of each two scales.
    """

    title: str
    shape: tuple[int, ...]
    information: dict[str, MutualInformation]
    distances: dict[str, GroupedInformation]
    scales: GroupedInformation

    @property
    def ratio(self) -> Estimate:
        """Total of the latents over that of the field."""
        latents, field = (self.information[kind].total() for kind in ("latents", "field"))
        ratio = latents.value / field.value
        relative = np.hypot(
            latents.standard_error / field.value, ratio * field.standard_error / field.value
        )
        return Estimate(ratio, float(relative))

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read ``fig4b.npz`` of an earlier run."""
        arrays, notes = read_arrays(folder / f"{NAME}.npz")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        shape = tuple(notes["shape"])
        information = {
            kind: MutualInformation(
                values=tensors[f"{kind}_values"],
                standard_error=tensors[f"{kind}_standard_error"],
                bias=Estimate(*notes["bias"][kind]),
                num_samples=notes["samples"],
                parts=tensors[f"{kind}_parts"],
                noise=notes["noise"][kind],
            )
            for kind in KINDS
        }
        distances = {kind: by_distance(found, shape) for kind, found in information.items()}
        scales = GroupedInformation(*(tensors[f"scales_{part}"] for part in GROUPS))
        return cls(notes["title"], shape, information, distances, scales)


def compute(settings: Settings, prepared: Prepared, folder: Path) -> Results:
    """Train if there is no flow, renormalize samples of the target, write ``fig4b.npz``."""
    target, flow = prepared.target, prepared.flow
    if not prepared.is_trained:
        trained, cpu_seconds = prepared.train()
        write_flow(folder / "flow.pt", flow, prepared.metadata(trained.seconds, cpu_seconds))
    x = target.sample_reference(settings.samples, prepared.start.seed + 1)
    variables = {"field": x, "latents": inverse(flow, x)}
    information = {
        kind: mutual_information(
            values,
            estimator=_estimator(settings.estimator),
            shuffles=settings.shuffles,
            seed=prepared.start.seed,
        )
        for kind, values in variables.items()
    }
    results = Results(
        title=f"{prepared.title}, {settings.samples} fields, {settings.estimator}",
        shape=flow.shape,
        information=information,
        distances={kind: by_distance(found, flow.shape) for kind, found in information.items()},
        scales=by_scale(information["latents"], flow),
    )
    _write(results, folder)
    return results


def _estimator(name: str) -> Estimator:
    if name not in ESTIMATORS:
        raise ValueError(f"estimator is {name!r}; accepted: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]()


def _write(results: Results, folder: Path) -> None:
    arrays = {f"scales_{part}": getattr(results.scales, part) for part in GROUPS}
    for kind, found in results.information.items():
        for part in ("values", "standard_error", "parts"):
            arrays[f"{kind}_{part}"] = getattr(found, part)
    notes = {
        "title": results.title,
        "shape": list(results.shape),
        "samples": results.information["field"].num_samples,
        "bias": {kind: list(found.bias) for kind, found in results.information.items()},
        "noise": {kind: found.noise for kind, found in results.information.items()},
    }
    write_arrays(folder / f"{NAME}.npz", arrays, notes)


def draw(results: Results) -> Figure:
    """Both matrices on one colour scale, then by distance and by scale."""
    figure = new_figure(10.2, 7.6)
    panels = figure.subplots(2, 2)
    ratio = results.ratio
    figure.suptitle(
        f"{results.title}\ntotal of the latents over that of the field: "
        rf"{ratio.value:.4f} $\pm$ {ratio.standard_error:.4f}"
    )
    largest = float(results.information["field"].values.nan_to_num(0.0).max())
    for ax, kind in zip(panels[0], KINDS, strict=True):
        plotting.plot_information_matrix(results.information[kind], largest=largest, ax=ax)
        ax.set_title(f"{kind}: {ax.get_title()}")
    plotting.plot_information_by_distance(results.distances, ax=panels[1, 0])
    plotting.plot_information_by_scale(results.scales, ax=panels[1, 1])
    return figure


def describe(results: Results) -> list[str]:
    """The figures in words."""
    lines = [results.title]
    for kind, found in results.information.items():
        total = found.total()
        lines.append(
            f"total of the {kind}: {total.value:.3f} +- {total.standard_error:.3f} nats over "
            f"{found.parts.shape[1]} pairs, bias of a pair removed: {found.bias.value:.2g} +- "
            f"{found.bias.standard_error:.1g}"
        )
    ratio = results.ratio
    lines.append(f"latents over field: {ratio.value:.4f} +- {ratio.standard_error:.4f}")
    return lines
