# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Paper Fig. 4(a): what the collective variables of every scale respond to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_neuralrg import plotting
from pyro_neuralrg.analysis import (
    Response,
    block_wavelets,
    overlap,
    responses,
    responses_by_scale,
    variables_of_scale,
    written_patterns,
)
from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.paper.files import read_arrays, write_arrays, write_flow
from pyro_neuralrg.paper.start import Prepared, Start, inverse
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.scales import number_of_scales

__all__ = ["Overlaps", "Results", "Settings", "compute", "describe", "draw"]

NAME = "fig4a"
FIELDS = ("mean", "standard_error", "spread")


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes:
        start: The model and its flow.
        samples: Fields of the target, by cluster Monte Carlo, over which responses are averaged.
        most: Latents of each scale.
        seeds: Trainings whose overlaps are reported, from the seed of the start on; the figure is
            of the first. A flow that was read is the only one.
    """

    start: Start = field(default_factory=Start)
    samples: int = 1000
    most: int = 4
    seeds: int = 1

    def __post_init__(self) -> None:
        check_integer("seeds", self.seeds, 1)

    @classmethod
    def small(cls, start: Start) -> Settings:
        """Seconds long."""
        return cls(start.small(), samples=20)


@dataclass(frozen=True)
class Overlaps:
    """The top variables against the indicators of the blocks they stand for, a number per seed.

    Attributes:
        before: Mean largest cosine of each response, as the flow has it.
        after: Mean cosine after the best rotation of the responses: the prior does not tell them
            from their rotations.
        subspace: Smallest cosine of a principal angle between what both span.
        written_before: As ``before``, of what the latents write into the field, dx/dz: where a
            Fourier layer makes the field smooth, a latent answers to a single site of it, as that
            tells of all around, and yet writes a broad pattern.
        written_after: Likewise after the best rotation.
    """

    before: list[float]
    after: list[float]
    subspace: list[float]
    written_before: list[float]
    written_after: list[float]


@dataclass(frozen=True)
class Results:
    """What was found.

    Attributes:
        title: The model and the flow.
        responses: Of some latents of each scale.
        top: Of the variables of the last scale but one, four on a square lattice of side 2^n.
        overlaps: Of these with their blocks.
    """

    title: str
    responses: dict[int, Response]
    top: Response
    overlaps: Overlaps

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read ``fig4a.npz`` of an earlier run."""
        arrays, notes = read_arrays(folder / f"{NAME}.npz")
        found = {}
        for name in ["top", *(str(scale) for scale in notes["scales"])]:
            parts = {part: torch.from_numpy(arrays[f"{name}_{part}"]) for part in FIELDS}
            variables = tuple(arrays[f"{name}_variables"].tolist())
            found[name] = Response(variables, num_samples=notes["samples"], **parts)
        top = found.pop("top")
        by_scale = {int(name): response for name, response in found.items()}
        return cls(notes["title"], by_scale, top, Overlaps(**notes["overlaps"]))


def compute(settings: Settings, prepared: Prepared, folder: Path) -> Results:
    """Train if there is no flow, differentiate, and write ``fig4a.npz``."""
    found: list[tuple[float, ...]] = []
    first: tuple[dict[int, Response], Response] | None = None
    seeds = 1 if prepared.is_trained else settings.seeds
    for index in range(seeds):
        start = replace(prepared.start, seed=prepared.start.seed + index)
        one = prepared if index == 0 else start.prepare()
        if not one.is_trained:
            trained, cpu_seconds = one.train()
            name = "flow.pt" if index == 0 else f"flow-{start.seed}.pt"
            write_flow(folder / name, one.flow, one.metadata(trained.seconds, cpu_seconds))
        x = one.target.sample_reference(settings.samples, start.seed + 1)
        x = x.to(next(one.flow.parameters()).dtype)
        top = top_responses(one.flow, x)
        found.append(_overlaps(one.flow, x, top))
        if first is None:
            first = responses_by_scale(one.flow, x, most=settings.most), top
    assert first is not None
    overlaps = Overlaps(*(list(column) for column in zip(*found, strict=True)))
    results = Results(prepared.title, *first, overlaps)
    _write(results, settings, folder)
    return results


def top_scale(flow: HierarchicalFlow) -> int:
    """The last scale but one: that of the four top variables of a square lattice of side 2^n."""
    return max(0, number_of_scales(flow.circuit) - 1)


def top_responses(flow: HierarchicalFlow, x: torch.Tensor) -> Response:
    """The responses of the latents at the sites of the top variables."""
    return responses(flow, x, variables_of_scale(flow, top_scale(flow)))


def _overlaps(flow: HierarchicalFlow, x: torch.Tensor, top: Response) -> tuple[float, ...]:
    """The numbers of :class:`Overlaps` for one training."""
    blocks = block_wavelets(flow, top_scale(flow)).to(x.dtype)
    alike = overlap(top, blocks)
    written = overlap(written_patterns(flow, inverse(flow, x), list(top.variables)), blocks)
    subspace = float(alike.subspace.min())
    return alike.before, alike.after, subspace, written.before, written.after


def _write(results: Results, settings: Settings, folder: Path) -> None:
    arrays = {}
    named = {"top": results.top, **{str(k): value for k, value in results.responses.items()}}
    for name, response in named.items():
        arrays[f"{name}_variables"] = torch.tensor(response.variables)
        arrays.update({f"{name}_{part}": getattr(response, part) for part in FIELDS})
    notes = {
        "title": results.title,
        "scales": list(results.responses),
        "samples": settings.samples,
        "overlaps": asdict(results.overlaps),
    }
    write_arrays(folder / f"{NAME}.npz", arrays, notes)


def draw(results: Results) -> Figure:
    """The top variables in the first row of panels, then a row for each scale."""
    rows: dict[Any, Response] = {"top variables": results.top, **results.responses}
    figure = plotting.plot_responses(rows)
    found = results.overlaps
    trainings = f", {len(found.before)} trainings" if len(found.before) > 1 else ""
    figure.suptitle(
        f"{results.title}\noverlap of the top variables with their blocks{trainings}: "
        f"{_listed(found.before)}, after the best rotation {_listed(found.after)};\n"
        "of what they write into the field: "
        f"{_listed(found.written_before)} and {_listed(found.written_after)}",
        fontsize="medium",
    )
    return figure


def _listed(values: list[float]) -> str:
    """Of all trainings.

    >>> _listed([0.1068, 0.1155])
    '0.107 0.116'
    """
    return " ".join(f"{value:.3f}" for value in values)


def describe(results: Results) -> list[str]:
    """The figures in words."""
    overlaps = results.overlaps
    lines = [results.title]
    for index, before in enumerate(overlaps.before):
        lines.append(
            f"training {index}: overlap of the {len(results.top.variables)} top variables with "
            f"their blocks {before:.4f}, after the best rotation {overlaps.after[index]:.4f}, "
            f"smallest cosine of the subspaces {overlaps.subspace[index]:.4f}; of what they write "
            f"{overlaps.written_before[index]:.4f} and {overlaps.written_after[index]:.4f}"
        )
    for scale, response in results.responses.items():
        share = 100 * float(response.nonlinearity.mean())
        lines.append(f"scale {scale}: {share:.1f} % of the squared response varies between fields")
    return lines
