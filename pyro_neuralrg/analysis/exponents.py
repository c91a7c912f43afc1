# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo renormalization group: critical exponents from fields and their block spins.

References:
    R. H. Swendsen, Monte Carlo renormalization group, Phys. Rev. Lett. 42, 859 (1979).
    R. H. Swendsen, Monte Carlo calculation of renormalized coupling parameters, Phys. Rev. B 30,
    3866 (1984).
    C. F. Baillie, R. Gupta, K. A. Hawick and G. S. Pawley, Monte Carlo renormalization-group study
    of the three-dimensional Ising model, Phys. Rev. B 45, 10438 (1992).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_neuralrg.analysis.blocking import are_spins, blocked_shapes, sums_by_scale
from pyro_neuralrg.analysis.operators import (
    PARITIES,
    Operator,
    check_operators,
    lattice_operators,
)
from pyro_neuralrg.arguments import (
    LARGEST_SEED,
    check_integer,
    check_number,
    check_type,
    check_values,
)
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.potentials.base import generator_of
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.statistics.resampling import MAX_BLOCKS, MIN_BLOCKS, choose_cuts
from pyro_neuralrg.transforms import HierarchicalFlow

CUTOFFS = (1e-1, 1e-2, 1e-3, 1e-4)
"""Cut-offs whose effect a printed result shows."""
CONSTANT = 1e-12
"""Variance of an operator in units of its mean square below which it is taken for constant."""


def matching_normalization(small: float | Estimate, large: float | Estimate) -> Estimate:
    r"""The normalisation c of continuous block spins :math:`\phi' = c` x block mean, by matching.

    .. math:: c = \sqrt{S_L / S_{2L}}, \qquad S = E[(\textstyle\sum_x \phi_x)^2] / N^2

    At the critical point both lattices flow to the same fixed point, and a blocked lattice of side
    2L then has the moments of one of side L. With larger L c tends to :math:`2^{d - y_h}`.

    Args:
        small: S of side L, a number or an estimate.
        large: S of side 2L, independent of the first.

    Example:
        >>> from pyro_neuralrg.potentials import IsingModel
        >>> c, _ = matching_normalization(*(IsingModel((n, n)).structure_factor() for n in (8, 16)))
        >>> round(c, 4), round(2 ** (1 / 8), 4)
        (1.0891, 1.0905)
    """
    value, relative = 1.0, 0.0
    for name, given, power in (("small", small, 0.5), ("large", large, -0.5)):
        estimate = _as_estimate(name, given)
        value *= estimate.value**power
        relative = math.hypot(relative, estimate.standard_error / estimate.value / 2)
    return Estimate(value, value * relative)


class _Covariances(NamedTuple):
    """Moments of one step, of all fields at index 0, then of every resample of their blocks.

    Attributes:
        shape: of the coarser lattice.
        own: of each parity, Cov(S', S') of the operators of the coarser lattice.
        across: of each parity, Cov(S', S) with those of the finer one.
        ratio: the root of E[phi^2] / E[phi'^2].
    """

    shape: tuple[int, ...]
    own: dict[str, Tensor]
    across: dict[str, Tensor]
    ratio: Tensor


@dataclass(frozen=True)
class Linearization:
    """The transformation of the couplings of operators of one parity, linearised.

    Attributes:
        operators: as they follow one another in the matrix.
        matrix: T, ``(operators, operators)``: the change of K'_a with K_b.
        eigenvalues: real parts, largest first, ``(operators,)``.
        condition: condition number of the correlation matrix of S'.
        kept: the number of its eigenvalues above the cut-off.
    """

    operators: tuple[Operator, ...]
    matrix: Tensor
    eigenvalues: Estimate[Tensor]
    condition: float
    kept: int


@dataclass(frozen=True)
class RGStep:
    r"""One step, from scale k - 1 to k, with its exponents.

    They are NaN of a parity without operators, and where the leading eigenvalue is not positive;
    their errors where it is so in a resample, as with few fields or far from criticality.

    Attributes:
        scale: k.
        shape: of the coarser lattice.
        normalization: c of the coarser field.
        even: even couplings; None without operators.
        odd: odd ones, likewise.
        y_t: :math:`\ln \lambda / \ln b` of the leading even eigenvalue.
        y_h: of the leading odd one.
        nu: :math:`1 / y_t`.
        eta: :math:`d + 2 - 2 y_h`.
    """

    scale: int
    shape: tuple[int, ...]
    normalization: Estimate
    even: Linearization | None
    odd: Linearization | None
    y_t: Estimate
    y_h: Estimate
    nu: Estimate
    eta: Estimate


@dataclass(frozen=True, eq=False, repr=False)
class MCRG:
    """Critical exponents of every step of the renormalization group; ``print`` shows a table.

    Attributes:
        blocking: the rule, or "flow".
        factor: b, by which a step divides each side.
        operators: of both parities.
        normalization: as it was asked for.
        cutoff: likewise.
        num_fields: how many.
        num_blocks: of the fields, that are taken for independent.
    """

    blocking: str
    factor: int
    operators: tuple[Operator, ...]
    normalization: float | Estimate | str
    cutoff: float
    num_fields: int
    num_blocks: int
    _covariances: tuple[_Covariances, ...]

    @functools.cached_property
    def steps(self) -> tuple[RGStep, ...]:
        """One for each blocking, the finest first."""
        return tuple(self._step(k, one) for k, one in enumerate(self._covariances, 1))

    def at(
        self, *, normalization: float | Estimate | str | None = None, cutoff: float | None = None
    ) -> MCRG:
        """The result at another normalisation or cut-off, as :func:`mcrg` takes them, at no cost.

        None leaves what it is.
        """
        chosen = self.normalization if normalization is None else normalization
        return replace(
            self,
            normalization=_check_normalization(chosen),
            cutoff=self.cutoff if cutoff is None else _check_cutoff(cutoff),
        )

    def __repr__(self) -> str:
        return f"MCRG({self.blocking}, {len(self.steps)} steps, {self.num_fields} fields)"

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("step", "lattice", "y_t", "y_h", "nu", "eta", "c", "condition (even, odd)")
        ]
        for step in self.steps:
            lattice, conditions = "x".join(map(str, step.shape)), _both(step, "condition", ".0f")
            found = (step.y_t, step.y_h, step.nu, step.eta, step.normalization)
            rows.append((str(step.scale), lattice, *map(str, found), conditions))
        others = [("step", "cut-off", "y_t", "y_h", "kept (even, odd)")]
        for cutoff in dict.fromkeys((self.cutoff, *CUTOFFS)):
            for step in self.at(cutoff=cutoff).steps:
                kept = _both(step, "kept", "d")
                others.append((str(step.scale), f"{cutoff:g}", str(step.y_t), str(step.y_h), kept))
        return "\n".join([repr(self), *_aligned(rows), "", *_aligned(others)])

    def _step(self, scale: int, moments: _Covariances) -> RGStep:
        c = self._factors(moments.ratio)
        parts: dict[str, Linearization | None] = dict.fromkeys(PARITIES)
        y = dict.fromkeys(PARITIES, torch.full_like(c, math.nan))
        for parity, own in moments.own.items():
            chosen = tuple(one for one in self.operators if one.parity == parity)
            parts[parity], leading = _linearise(chosen, own, moments.across[parity], c, self.cutoff)
            y[parity] = leading.log() / math.log(self.factor)
        return RGStep(
            scale=scale,
            shape=moments.shape,
            normalization=_with_scatter(c),
            **parts,
            y_t=_with_scatter(y["even"]),
            y_h=_with_scatter(y["odd"]),
            nu=_with_scatter(1 / y["even"]),
            eta=_with_scatter(len(moments.shape) + 2 - 2 * y["odd"]),
        )

    def _factors(self, ratio: Tensor) -> Tensor:
        """The normalisation c for all fields and each resample."""
        if self.normalization == "variance":
            return ratio
        value, error = _as_estimate("normalization", self.normalization)
        normal = torch.randn(ratio.shape, generator=generator_of(0), dtype=ratio.dtype)
        normal[0] = 0.0
        return value * (error / value * normal).exp()


def mcrg(
    fields: Tensor,
    shape: Iterable[int],
    blocking: str | HierarchicalFlow = "majority",
    *,
    operators: Sequence[Operator] | None = None,
    levels: int | None = None,
    normalization: float | Estimate | str = "variance",
    signs: bool = False,
    cutoff: float = 1e-8,
    blocks: int | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> MCRG:
    r"""Estimate critical exponents from fields and their block spins (Swendsen).

    The couplings of operators S change from one scale to the next by

    .. math:: T = \frac{\partial K'}{\partial K} = A^+ B, \qquad
        A = \mathrm{Cov}(S', S'), \quad B = \mathrm{Cov}(S', S),

    whose leading eigenvalues are :math:`b^{y_t}` of even and :math:`b^{y_h}` of odd operators, once
    the irrelevant couplings have died out: look at the steps from first to last. What is left out,
    interactions of longer range and the sides of small lattices, is no part of the errors, which
    are the scatter of resampled blocks of fields (the bootstrap).

    Continuous block spins may be multiplied by any c, and the exponents depend on it. Of
    :math:`\phi' = c` x block mean the sum of the field is an eigenvector, of the eigenvalue
    :math:`b^d / c` whatever the energy: :math:`y_h = d - \log_b c` *is* the choice of c. The
    change of scale :math:`\phi \to (1 + \epsilon) \phi` is redundant: of the right c it has the
    even eigenvalue 1, of a wrong one there is no fixed point. In the same way the shift
    :math:`\phi \to \phi + \epsilon` is redundant, with the odd eigenvalue c. A step from spins to
    continuous fields leads to more couplings than there were, and its exponents say little.

    Products of the signs of continuous block spins (``signs=True``) are a basis without a
    normalisation: of averages of the dual Ising field, 16 x 16, y_t is 1.42(3) by the values at the
    second step, 1.01(3) by the signs. A flow's coarse fields have exponents only if it does the
    same at every scale: ``weights="shared"``, no Gaussian layer; of such flows that began at Haar
    wavelets y_t was 1.01 to 1.06(3) by the signs, of flows with weights for each scale 0.1 to 1.5.

    Args:
        fields: at criticality, shape ``(n,) + shape`` if independent, or ``(chains, draws) +
            shape``, one after the other in each chain.
        shape: periodic lattice.
        blocking: "majority" (of spins +1 and -1), "average" or "decimation", see
            :func:`block_spins`; or a HierarchicalFlow, whose coarse fields are those of
            :func:`pyramid` (its Gaussian layer is in the first step), of that sign with which they
            follow the block means.
        operators: of any parity; default: those of :func:`lattice_operators` that fit the coarsest
            lattice.
        levels: number of steps; default: as many as leave sides of 4 or more.
        normalization: c, factor on each coarser field. "variance": such that :math:`E[\phi^2]` of
            a site stays what it is, in each step (1 for spins); a number; or an Estimate, such as
            of :func:`matching_normalization`, whose error joins that of the exponents.
        signs: look at the signs of the fields of every scale alone.
        cutoff: relative to the largest, below which eigenvalues of the correlation matrix of S' are
            left out of :math:`A^+`.
        blocks: that each chain is cut into; None: as in
            :func:`~pyro_neuralrg.statistics.jackknife`. Independent fields are blocks themselves.
        resamples: of the bootstrap.
        seed: of ties and resamples.

    Warns:
        UserWarning: if the choice left fewer than eight blocks.

    Example:
        >>> from pyro_neuralrg.potentials import IsingModel
        >>> found = mcrg(IsingModel((8, 8)).sample(500, seed=0), (8, 8))
        >>> abs(found.steps[0].y_h.value - 15 / 8) < 0.1
        True
    """
    sides = check_shape(shape)
    batch = check_values("fields", fields, sides).shape[: fields.dim() - len(sides)]
    if len(batch) not in (1, 2) or math.prod(batch) < 2 or not bool(fields.isfinite().all()):
        raise ValueError(
            f"fields has shape {tuple(fields.shape)}, or entries that are not finite; accepted: "
            f"(n,) + {sides} or (chains, draws) + {sides}, of at least two fields"
        )
    shapes = blocked_shapes(sides, blocking, levels)
    check_type("signs", signs, bool, "True or False")
    spins = signs or (blocking in ("majority", "decimation") and are_spins(fields))
    chosen = check_operators(
        lattice_operators(shapes[-1], spins=spins) if operators is None else operators, shapes[-1]
    )
    if signs and normalization != "variance":
        raise ValueError(
            f"normalization is {normalization!r} with signs=True; accepted: 'variance', as signs "
            "have none"
        )
    normalization, cutoff = _check_normalization(normalization), _check_cutoff(cutoff)
    resamples = check_integer("resamples", resamples, 2)
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    flat = fields.detach().reshape(-1, *sides)
    sums = sums_by_scale(flat, blocking, shapes, chosen, signs, seed)
    _check_variance(sums, chosen)
    edges = _block_edges(sums[-1], (len(flat), 1) if len(batch) == 1 else batch, blocks)
    number = len(edges) - 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=resamples)
    return MCRG(
        blocking=blocking if isinstance(blocking, str) else "flow",
        factor=sides[0] // shapes[1][0],
        operators=chosen,
        normalization=normalization,
        cutoff=cutoff,
        num_fields=len(flat),
        num_blocks=number,
        _covariances=tuple(_covariances(sums, shapes, chosen, edges, drawn)),
    )


def _check_variance(sums: Tensor, operators: Sequence[Operator]) -> None:
    """Raise if an operator of a coarser lattice is the same for all fields."""
    coarse = sums[1:, :, :-1]
    constant = coarse.var(1) <= CONSTANT * coarse.square().mean(1)
    for scale, index in constant.nonzero().tolist():
        raise ValueError(
            f"operators has {operators[index].name!r}, which is constant at scale {scale + 1}; "
            "accepted: operators that vary"
        )


def _block_edges(sums: Tensor, chains: Sequence[int], blocks: int | None) -> list[int]:
    """First fields of the blocks that are resampled, and the number of fields."""
    number, draws = chains
    if blocks is None:
        series = sums.reshape(number, draws, -1)
        cuts = choose_cuts([column.numpy() for column in series.square().unbind(-1)])
        if number * cuts < MIN_BLOCKS:
            warn_user(f"errors come from {number * cuts} blocks only: use more or longer chains")
    else:
        cuts = check_integer("blocks", blocks, 1, draws)
    if number * cuts < 2:
        raise ValueError(f"blocks is {blocks}; accepted: two or more in all")
    starts = np.linspace(0, draws, cuts, endpoint=False).astype(int)
    edges = (np.arange(number)[:, None] * draws + starts).reshape(-1)
    edges = np.append(edges, number * draws)
    merged = np.linspace(0, len(edges) - 1, min(len(edges), MAX_BLOCKS + 1)).astype(int)
    return edges[merged].tolist()


def _covariances(
    sums: Tensor,
    shapes: Sequence[tuple[int, ...]],
    operators: Sequence[Operator],
    edges: Sequence[int],
    drawn: NDArray[np.int64],
) -> Iterator[_Covariances]:
    """The moments of each step, over all fields and where blocks are ``drawn`` so often."""
    counts = torch.from_numpy(np.vstack([np.ones((1, len(edges) - 1)), drawn]))
    masses = counts @ torch.from_numpy(np.diff(edges)).double()

    def mean(values: Tensor) -> Tensor:
        of_blocks = torch.from_numpy(np.add.reduceat(values.numpy(), edges[:-1], axis=0))
        totals = counts @ of_blocks.reshape(len(of_blocks), -1)
        return (totals / masses[:, None]).reshape(-1, *values.shape[1:])

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        return mean(a[:, :, None] * b[:, None]) - mean(a)[:, :, None] * mean(b)[:, None]

    squares = mean(sums[:, :, -1].T).T
    centred = sums - sums.mean(1, keepdim=True)
    of_parity = {
        parity: [index for index, one in enumerate(operators) if one.parity == parity]
        for parity in PARITIES
    }
    for k in range(1, len(shapes)):
        own, across = {}, {}
        for parity, columns in of_parity.items():
            if columns:
                coarse, fine = centred[k][:, columns], centred[k - 1][:, columns]
                own[parity], across[parity] = covariance(coarse, coarse), covariance(coarse, fine)
        yield _Covariances(shapes[k], own, across, (squares[k - 1] / squares[k]).sqrt())


def _linearise(
    operators: tuple[Operator, ...], own: Tensor, across: Tensor, c: Tensor, cutoff: float
) -> tuple[Linearization, Tensor]:
    """T of all fields, and the leading eigenvalue of them and of each resample.

    An operator that does not vary in a resample is cut away there.
    """
    variance = own.diagonal(dim1=-2, dim2=-1)[..., None]
    scale = torch.where(variance > 0, variance, 1.0).sqrt()
    values, vectors = torch.linalg.eigh(own / scale / scale.mT)
    kept = values > cutoff * values[:, -1:]
    inverse = torch.where(kept, 1 / values, 0.0)[..., None]
    powers = torch.stack([c**operator.degree for operator in operators], 1)[..., None]
    matrices = vectors @ (inverse * (vectors.mT @ (across / scale))) / scale / powers
    eigenvalues = torch.linalg.eigvals(matrices).real.sort(-1, descending=True).values
    found = Linearization(
        operators=operators,
        matrix=matrices[0],
        eigenvalues=Estimate(eigenvalues[0], eigenvalues[1:].std(0)),
        condition=float(values[0, -1] / values[0, 0].clamp(min=0.0)),
        kept=int(kept[0].sum()),
    )
    return found, eigenvalues[:, 0]


def _with_scatter(values: Tensor) -> Estimate:
    """The value of all fields with the scatter of the resamples."""
    return Estimate(float(values[0]), float(values[1:].std()))


def _both(step: RGStep, name: str, form: str) -> str:
    parts = [part for part in (step.even, step.odd) if part is not None]
    return ", ".join(f"{getattr(part, name):{form}}" for part in parts)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _check_cutoff(cutoff: Any) -> float:
    return check_number("cutoff", cutoff, "a number > 0 and < 1", above=0.0, below=1.0)


def _check_normalization(value: Any) -> Any:
    if isinstance(value, str) and value == "variance":
        return value
    _as_estimate("normalization", value, "'variance', ")
    return value


def _as_estimate(name: str, value: Any, others: str = "") -> Estimate:
    """A positive number, or an estimate of one, as an estimate."""
    accepted = f"{others}a finite number > 0, or an Estimate of one"
    pair = value if isinstance(value, Estimate) else Estimate(value, 0.0)
    number = check_number(name, pair.value, accepted, above=0.0, given=value)
    error = check_number(name, pair.standard_error, accepted, least=0.0, given=value)
    return Estimate(number, error)
