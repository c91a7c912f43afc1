# SPDX-License-Identifier: Apache-2.0
"""Are the collective variables block spins (paper Fig. 4a), and what does it cost in accuracy?

One row for each setting and seed: the gap KL(q || pi/Z) in nats, CPU time of a step, the overlap of
the top variables' responses with the averages of the quarters after the best rotation, at the start
and after the training, with the smallest cosine of the spaces that both span, and the Gaussian
mutual information of each variable kept for the last scale but one with the average of its own
quarter, with that of another one, and of two such averages, in nats.

    python -m tests.benchmarks.collective --shapes 8x8 16x16 --steps 400 --seeds 0 1 2

"by scale" has, in the place of the Fourier layer, the root of the same covariance that whitens the
coarsest block averages first, then what is left of the finer ones: block spins exactly, at first.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg import IsingDual, fit
from pyro_neuralrg.analysis import (
    block_wavelets,
    gaussian_mutual_information,
    overlap,
    pyramid,
    responses,
    scale_of_latents,
    variables_of_scale,
)
from pyro_neuralrg.spectral import apply_spectrum
from pyro_neuralrg.transforms import HierarchicalFlow, LatticeTransform
from tests.benchmarks.harness import Table, gap_of, parse, shape, timed

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "haar": {"wavelet": "haar"},
    "haar, by scale": {"wavelet": "haar"},
    "haar, no spectrum": {"wavelet": "haar", "spectrum": None},
    "no spectrum": {"spectrum": None},
    "paper's blocks": {"bijector": "realnvp", "spectrum": None},
    "paper's blocks, haar": {"bijector": "realnvp", "spectrum": None, "wavelet": "haar"},
}
FIGURES = {
    "gap": "9.4f",
    "+-": "8.4f",
    "ms/step": "9.1f",
    "start": "8.3f",
    "trained": "9.3f",
    "subspace": "10.3f",
    "MI own": "8.3f",
    "another": "9.3f",
    "averages": "10.3f",
}
FIELDS, RESPONSES, SAMPLES, AT_ONCE = 4000, 1000, 20_000, 4000


class ByScale(LatticeTransform):
    """White noise to a covariance of the given eigenvalues, coarse from finer block averages."""

    def __init__(self, spectrum: Tensor, flow: HierarchicalFlow) -> None:
        super().__init__(flow.shape)
        white = whitening(spectrum.double(), flow)
        self.register_buffer("white", white.to(next(flow.parameters())))
        self.register_buffer("colour", torch.linalg.inv(white).to(self.white))
        self.ladj = 0.5 * float(spectrum.log().sum())

    def _pass(self, h: Tensor, context: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = self.white if inverse else self.colour
        return (matrix @ h.flatten(0, -2)).view(h.shape), h.new_full(h.shape[-1:], self.ladj)

    def push_score(self, h: Tensor, score: Tensor, *_: Any) -> Any:
        """The score goes through the transposed inverse."""
        return *self.forward(h), (self.white.T @ score.flatten(0, -2)).view(h.shape), None


def whitening(spectrum: Tensor, flow: HierarchicalFlow) -> Tensor:
    """The matrix from x to white noise."""
    sites = spectrum.numel()
    unit = torch.eye(sites, dtype=spectrum.dtype)
    covariance = apply_spectrum(unit.view(sites, *flow.shape), spectrum).view(sites, sites)
    total = torch.zeros_like(unit)
    coarse = unit[:0]
    for scale in range(top_scale(flow), -1, -1):
        fine = block_wavelets(flow, scale).to(unit).flatten(1)
        new = torch.linalg.svd(fine - fine @ coarse.T @ coarse).Vh[: len(fine) - len(coarse)]
        known = coarse @ covariance
        slope = torch.linalg.solve(known @ coarse.T, known @ new.T).T
        rest = new - slope @ coarse
        values, vectors = torch.linalg.eigh(rest @ covariance @ new.T)
        total += new.T @ (vectors * values.rsqrt()) @ vectors.T @ rest
        coarse = fine
    return total


def top_scale(flow: HierarchicalFlow) -> int:
    """The last scale but one: that of the quarters of a square lattice of side 2^n."""
    return int(scale_of_latents(flow).max()) - 1


def figures(flow: HierarchicalFlow, x: Tensor) -> list[float]:
    """Overlap after the best rotation, smallest cosine of the subspaces, mutual information."""
    scale = top_scale(flow)
    quarters = block_wavelets(flow, scale).to(x)
    found = overlap(responses(flow, x[:RESPONSES], variables_of_scale(flow, scale)), quarters)
    kept, averages = pyramid(flow, x)[scale].flatten(1), x.flatten(1) @ quarters.flatten(1).T
    covariance = torch.cat([kept, averages], 1).double().T.cov()
    n = len(quarters)
    information = functools.partial(gaussian_mutual_information, covariance)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    own = [information([i], [n + i]) for i in range(n)]
    another = [information([i], [n + j]) for i, j in pairs]
    between = [information([n + i], [n + j]) for i, j in pairs]
    nats = map(statistics.mean, (own, another, between))
    return [found.after, float(found.subspace.min()), *nats]


def row(name: str, target: IsingDual, steps: int, seed: int) -> list[float]:
    """The figures of one training, in the order of ``FIGURES``."""
    torch.manual_seed(seed)
    flow = target.flow(**SETTINGS[name])
    if name.endswith("by scale"):
        flow.gaussian = ByScale(target.spectrum, flow)  # type: ignore[assignment]
    x = target.sample_reference(FIELDS, seed=1)
    start = figures(flow, x)[0]
    _, seconds = timed(lambda: fit(target, flow, steps=steps, seed=seed, progress=False))
    gap, found = gap_of(target, flow, SAMPLES, seed + 1, AT_ONCE)
    return [gap, found.variational_se, 1000 * seconds / steps, start, *figures(flow, x)]


def main() -> None:
    options = parse(
        __doc__,
        shapes={"type": shape, "nargs": "+", "default": [[8, 8]], "metavar": "8x8"},
        steps=400,
        seeds=[0],
        settings={"nargs": "+", "choices": SETTINGS, "default": list(SETTINGS)},
        threads=1,
    )
    table = Table(34, FIGURES, f"{options.steps} steps")
    for sides in options.shapes:
        for name in options.settings:
            rows = [row(name, IsingDual(sides), options.steps, seed) for seed in options.seeds]
            for seed, values in zip(options.seeds, rows, strict=True):
                table.row(f"{'x'.join(map(str, sides))}, {name}, seed {seed}", *values)


if __name__ == "__main__":
    main()
