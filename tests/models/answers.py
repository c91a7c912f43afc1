# SPDX-License-Identifier: Apache-2.0
"""Answers for the registry of field models: means, widths and evidences that no guide had part in.

They belong to the data of seed 0 and lie in ``answers.json``, made by ``python -m
tests.benchmarks.field_models --answers``. Where the field is Gaussian (or of independent Gamma
variables) given the globals, it is integrated in closed form and the globals by a sum over a
lattice of points; elsewhere means are those of long chains of ChEES-HMC in the model's own
variables, and evidences those of sequential Monte Carlo from a standard normal.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.func import grad, vmap

from pyro_neuralrg import ChEESHMC, VectorizedMCMC
from pyro_neuralrg.free_energy import anneal
from pyro_neuralrg.infer.autoguide.gaussians import Density, MatrixGaussian, nearest_gaussian
from pyro_neuralrg.infer.log_joint import UnconstrainedModel
from pyro_neuralrg.infer.model_sites import inspect_sites
from pyro_neuralrg.mcmc import EnergyTarget
from pyro_neuralrg.statistics import summarise_field
from tests.models.registry import REGISTRY, FieldModel

FILE = Path(__file__).with_name("answers.json")
DATA_SEED = 0

EXACT = (
    "smoothing, weak",
    "smoothing, strong",
    "smoothing, whitened",
    "GP, unknown length",
    "missing cells",
    "AR(1)",
    "random walk",
    "space-time",
    "positive field",
)
"""Models whose field is known given the globals."""

SPACINGS = (1.0, 0.7)
"""Of the lattice of globals, in posterior standard deviations: the difference is the error."""

DEPTH = 16.0
"""Points whose density is lower than the highest by so many nats are left out."""

ROUNDS, FIRST_SPACING, SHALLOW = 3, 0.4, 6.0
"""Lattices by which the widths of the globals are found, less deep."""

POINTS_AT_ONCE = 64
CHAINS, WARMUP, MAX_RHAT = 32, 150, 1.01

SCALED = {
    "probit": ("f", "scale"),
    "negative binomial": ("f", "scale"),
    "two fields": ("loc", "scale"),
    "cube": ("f", "scale"),
    "stochastic volatility": ("h", "tau"),
}
"""Fields that are sampled as multiples of their scale, since data say little of them."""


class Answer(NamedTuple):
    """What is known of a model, entries of a site in their own order.

    Attributes:
        provenance: in words.
        log_evidence: with its standard error, that of the sum where it is exact.
        means, widths, errors: by site, ``errors`` of the means.
    """

    provenance: str
    log_evidence: tuple[float, float]
    means: dict[str, np.ndarray]
    widths: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


class GivenField(NamedTuple):
    """The field, given the globals at some points.

    Attributes:
        log_density: of globals and data, the field integrated, ``(points,)``.
        means, variances: of the field's entries, ``(points, entries)``.
    """

    log_density: Tensor
    means: Tensor
    variances: Tensor


def load_answers() -> dict[str, Answer]:
    """What is known, by model."""
    found = {}
    for name, entry in json.loads(FILE.read_text()).items():
        arrays = ({x: np.array(values) for x, values in part.items()} for part in entry[2:])
        found[name] = Answer(entry[0], tuple(entry[1]), *arrays)
    return found


def keep_answer(name: str, answer: Answer) -> None:
    """Write it among the others, in the registry's order."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    parts = (answer.means, answer.widths, answer.errors)
    numbers = [
        {x: [float(f"{v:.6g}") for v in values] for x, values in part.items()} for part in parts
    ]
    known[name] = [answer.provenance, [round(v, 6) for v in answer.log_evidence], *numbers]
    lines = [f"{json.dumps(x)}: {json.dumps(known[x])}" for x in REGISTRY if x in known]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def compute_answer(name: str, draws: int = 500, particles: int = 512) -> Answer:
    """In double precision, by a sum where that is exact, else by long runs of so many draws."""
    torch.manual_seed(0)
    with double_precision():
        return exact_answer(name) if name in EXACT else long_answer(name, draws, particles)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# Closed form --------------------------------------------------------------------------------------


def gaussian_given(joint: UnconstrainedModel, entry: FieldModel) -> Callable[[Tensor], GivenField]:
    """The field of a model that is Gaussian given its globals, from the model's own gradients."""
    (field,), n = entry.fields, math.prod(entry.lattice)
    names = [name for name in joint.transforms if name != field]
    probes = torch.cat([torch.zeros(1, n), torch.eye(n)])

    def energy(point: Tensor, values: Tensor) -> Tensor:
        u = dict(zip(names, point, strict=True))
        return joint.energy({**u, field: values.view(entry.lattice)})

    def at(points: Tensor) -> GivenField:
        slopes = vmap(vmap(grad(energy, 1), (None, 0)), (0, None))(points, probes)
        factor = torch.linalg.cholesky(slopes[:, 1:] - slopes[:, :1])
        mean = -torch.cholesky_solve(slopes[:, 0, :, None], factor)[..., 0]
        at_zero, lowest = (vmap(energy)(points, x) for x in (torch.zeros_like(mean), mean))
        _check_quadratic(at_zero - lowest, slopes[:, 0], mean)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_density = -lowest + 0.5 * (n * math.log(2 * math.pi) - log_det)
        variances = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        return GivenField(log_density, mean, variances)

    return at


def _check_quadratic(drop: Tensor, slope: Tensor, mean: Tensor) -> None:
    """Refuse a field that is not Gaussian: the drop to the mean is to be that of a parabola."""
    torch.testing.assert_close(drop, -0.5 * (slope * mean).sum(-1), rtol=1e-6, atol=1e-6)


def gamma_given(counts: Tensor) -> Callable[[Tensor], GivenField]:
    """The Gamma variables of "positive field" given ln of their shape, seen through counts."""
    y = counts.flatten()

    def at(points: Tensor) -> GivenField:
        shape = points.exp()
        log_prior = torch.distributions.Normal(0.5, 0.5).log_prob(points[:, 0])
        each = torch.lgamma(shape + y) - torch.lgamma(shape) - torch.lgamma(y + 1)
        each = each + shape * shape.log() - (shape + y) * (shape + 1).log()
        mean = (shape + y) / (shape + 1)
        return GivenField(log_prior + each.sum(-1), mean, mean / (shape + 1))

    return at


class Lattice(NamedTuple):
    """Points of the globals that matter, the cell's ln volume, and the field there."""

    points: Tensor
    log_cell: float
    given: GivenField

    @property
    def log_evidence(self) -> float:
        return float(self.given.log_density.logsumexp(0)) + self.log_cell

    def moments(self, values: Tensor, variances: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what has these values ``(points, ...)``."""
        weights = self.given.log_density.softmax(0)
        mean = weights @ values
        return mean, (weights @ ((values - mean).square() + variances)).sqrt()


def lattice_of(
    at: Callable[[Tensor], GivenField], middle: Tensor, axes: Tensor, depth: float
) -> Lattice:
    """The points of a lattice whose density is at most ``depth`` nats below the highest.

    Columns of ``axes`` are its steps. It grows from the middle, by the neighbours of such points.
    """
    known: dict[tuple[int, ...], float] = {}
    waiting, found = [(0,) * len(middle)], []
    while waiting:
        points = middle + torch.tensor(waiting, dtype=middle.dtype) @ axes.T
        parts = [at(part) for part in points.split(POINTS_AT_ONCE)]
        given = _joined(parts)
        found.append((points, given))
        known.update(zip(waiting, given.log_density.tolist(), strict=True))
        floor = max(known.values()) - depth
        inside = (place for place, value in known.items() if value >= floor)
        waiting = sorted({x for place in inside for x in _neighbours(place)} - known.keys())
    log_cell = float(torch.linalg.slogdet(axes).logabsdet)
    points = torch.cat([points for points, _ in found])
    return Lattice(points, log_cell, _joined([given for _, given in found]))


def _neighbours(place: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for axis, step in itertools.product(range(len(place)), (-1, 1)):
        yield (*place[:axis], place[axis] + step, *place[axis + 1 :])


def _joined(parts: list[GivenField]) -> GivenField:
    return GivenField(*(torch.cat(column) for column in zip(*parts, strict=True)))


def exact_answer(name: str) -> Answer:
    """By a sum over globals, the field integrated in closed form."""
    entry = REGISTRY[name]
    model = entry.build(DATA_SEED)
    trace = inspect_sites(model)
    joint = UnconstrainedModel(model, trace)
    names = [site for site in joint.transforms if site not in entry.fields]
    gamma = name == "positive field"
    at = gamma_given(trace.nodes["y"]["value"]) if gamma else gaussian_given(joint, entry)
    middle, axes = torch.zeros(len(names)), FIRST_SPACING * torch.eye(len(names))
    for _ in range(ROUNDS):
        first = lattice_of(at, middle, axes, SHALLOW)
        weights = first.given.log_density.softmax(0)
        middle = weights @ first.points
        offset = first.points - middle
        axes = torch.linalg.cholesky((weights[:, None] * offset).T @ offset)
    found = []
    for spacing in SPACINGS:
        lattice = lattice_of(at, middle, spacing * axes, DEPTH)
        values = {
            x: joint.transforms[x].inv(u) for x, u in zip(names, lattice.points.T, strict=True)
        }
        moments = {x: lattice.moments(value[:, None]) for x, value in values.items()}
        moments[entry.fields[0]] = lattice.moments(lattice.given.means, lattice.given.variances)
        found.append((lattice.log_evidence, moments))
    (coarse, rough), (evidence, moments) = found
    return Answer(
        f"exact, a sum over {len(lattice.points)} points of the globals",
        (evidence, abs(evidence - coarse)),
        {site: mean.numpy() for site, (mean, _) in moments.items()},
        {site: width.numpy() for site, (_, width) in moments.items()},
        {site: (mean - rough[site][0]).abs().numpy() for site, (mean, _) in moments.items()},
    )


# Long runs ----------------------------------------------------------------------------------------


class Whitened:
    """A model in coordinates y in which the Gaussian nearest to the posterior is N(0, 1).

    Where data are weak, a field goes as a multiple of its scale, which is exact as well. No law
    depends on the Gaussian, only how fast chains and particles mix.
    """

    def __init__(self, name: str) -> None:
        self.entry = REGISTRY[name]
        model = self.entry.build(DATA_SEED)
        trace = inspect_sites(model)
        self.joint = UnconstrainedModel(model, trace)
        latents = ((x, f(trace.nodes[x]["value"])) for x, f in self.joint.transforms.items())
        self.shapes = {x: value.shape for x, value in latents}
        self.scaled = SCALED.get(name)
        dim = sum(shape.numel() for shape in self.shapes.values())
        density = Density(vmap(self._energy), torch.float64)
        first = MatrixGaussian(torch.zeros(dim), 0.1 * torch.eye(dim))
        found = nearest_gaussian(density, first)
        assert found is not None
        self.gaussian: Any = found
        self.target = EnergyTarget(self.energy, (dim,))

    def _sites(self, v: Tensor) -> tuple[dict[str, Tensor], Tensor | float]:
        """Unconstrained values of the sites, and ln |det| of what multiplies the scaled field."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), v.split(sizes, -1), strict=True)
        u = {x: part.reshape((*v.shape[:-1], *shape)) for (x, shape), part in parts}
        if self.scaled is None:
            return u, 0.0
        field, scale = self.scaled
        sides = len(self.shapes[field])
        u[field] = u[field] * u[scale].exp()[(...,) + (None,) * sides]
        return u, self.shapes[field].numel() * u[scale]

    def _energy(self, v: Tensor) -> Tensor:
        u, log_det = self._sites(v)
        return self.joint.energy(u) - log_det

    def energy(self, y: Tensor) -> Tensor:
        """Of points ``(n, dim)``, in nats; exp(-energy) integrates to the evidence."""
        v = self.gaussian.mean + self.gaussian.moved(y)
        with pyro.validation_enabled(False):
            return vmap(self._energy)(v) - self.gaussian.log_det

    def physical(self, y: Tensor) -> dict[str, Tensor]:
        """The sites' own values."""
        u, _ = self._sites(self.gaussian.mean + y @ self.gaussian.factor.T)
        return {x: self.joint.transforms[x].inv(value) for x, value in u.items()}


def long_answer(name: str, draws: int, particles: int) -> Answer:
    """By chains of ChEES-HMC and by annealed particles."""
    whitened = Whitened(name)
    start = 1.5 * torch.randn(CHAINS, whitened.target.dim)
    settings = {"seed": 1, "progress": False}
    run = VectorizedMCMC(
        ChEESHMC(whitened.target, criterion="snaper"),
        draws,
        WARMUP,
        CHAINS,
        {"x": start},
        **settings,
    )
    run.run()
    samples = whitened.physical(run.get_samples(group_by_chain=True)["x"])
    found = {x: summarise_field(value, value[0, 0].numel()) for x, value in samples.items()}
    rhat = max(of_site.worst().rhat for of_site in found.values())
    ess = min(of_site.worst().ess_bulk for of_site in found.values())
    if rhat > MAX_RHAT:
        raise RuntimeError(
            f"{name}: R-hat is {rhat:.4f}, at most {MAX_RHAT}; more draws are needed"
        )
    smc = anneal(whitened.target, num_particles=particles, **settings)
    figures = {x: of_site.figures for x, of_site in found.items()}
    return Answer(
        f"{CHAINS} chains x {draws} draws, R-hat {rhat:.4f}, ESS {ess:.0f}; {particles} particles",
        (-smc.free_energy, smc.standard_error),
        *({x: figures[x][figure] for x in figures} for figure in ("mean", "sd", "mcse")),
    )
