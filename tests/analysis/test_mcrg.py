# SPDX-License-Identifier: Apache-2.0
"""Exponents from block spins, where the renormalization group is exact, and in the Ising model."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from pyro_neuralrg.analysis import (
    OPERATORS,
    Operator,
    block_spins,
    lattice_operators,
    matching_normalization,
    mcrg,
    operator_sums,
)
from pyro_neuralrg.potentials import FreeField, IsingModel
from pyro_neuralrg.statistics import Estimate
from tests.analysis.linear import Matrix, haar, linear_flow

BY_NAME = {operator.name: operator for operator in OPERATORS}


def named(*names: str) -> list[Operator]:
    return [BY_NAME[name] for name in names]


def rings(n: int, side: int, coupling: float) -> Tensor:
    """Independent spins of a ring: free bonds, of which an even number is broken."""
    broken = torch.rand(4 * n, side) > (1 + math.tanh(coupling)) / 2
    kept = broken[broken.sum(1) % 2 == 0][:n]
    first = torch.rand(n, 1) < 0.5
    return 1 - 2.0 * ((kept.cumsum(1) + first) % 2)


def rough(n: int, *shape: int) -> Tensor:
    """Fields of no symmetry, neither normal nor independent from site to site."""
    x = torch.randn(n, *shape)
    return x + x.roll(1, 1) + 0.3 * x**3 + 0.2 * x**2


def test_blocks_of_spins() -> None:
    x = torch.tensor([[1.0, 1, 1, -1], [1, -1, -1, 1], [1, 1, -1, -1], [1, 1, -1, -1]])
    assert block_spins(x, (4, 4), "average").tolist() == [[0.5, 0.0], [1.0, -1.0]]
    assert block_spins(x, (4, 4), "decimation").tolist() == [[1.0, 1.0], [1.0, -1.0]]
    many = block_spins(x.expand(4000, 4, 4), (4, 4), seed=1)
    assert torch.equal(many, block_spins(x.expand(4000, 4, 4), (4, 4), seed=1))
    assert torch.equal(many[:, [0, 1, 1], [0, 0, 1]], torch.tensor([1.0, 1, -1]).expand(4000, 3))
    assert abs(float(many[:, 0, 1].mean())) < 4 / math.sqrt(4000)
    fields = torch.randn(2, 3, 4, 6, 2)
    means = block_spins(fields, (4, 6, 2), "average")
    assert means.shape == (2, 3, 2, 3, 1)
    torch.testing.assert_close(means[..., 1, 2, 0], fields[..., 2:, 4:, :].mean((-1, -2, -3)))
    with pytest.raises(ValueError, match=r"fields has .*accepted.* \+1 and -1"):
        block_spins(fields, (4, 6, 2))
    with pytest.raises(ValueError, match=r"shape is .*accepted: even sides"):
        block_spins(torch.ones(3, 2), (3, 2))


def test_decimation_of_a_ring_is_exact() -> None:
    """K' = ln cosh 2K / 2 and h' = h (1 + tanh 2K): both couplings stay alone."""
    coupling = 0.9
    found = mcrg(
        rings(30_000, 32, coupling), (32,), "decimation", operators=named("nearest", "field")
    )
    assert [step.shape for step in found.steps] == [(16,), (8,), (4,)]
    for step in found.steps:
        alive = math.tanh(2 * coupling)
        for y, exact in ((step.y_t, alive), (step.y_h, 1 + alive)):
            assert abs(y.value - math.log2(exact)) < 4 * y.standard_error
            assert y.standard_error < 0.03
        value, error = step.even.eigenvalues
        relative = step.y_t.standard_error * math.log(2)
        assert float(error[0] / value[0]) == pytest.approx(relative, rel=0.05)
        assert step.nu.value == pytest.approx(1 / step.y_t.value)
        assert step.eta.value == pytest.approx(3 - 2 * step.y_h.value)
        assert step.eta.standard_error == pytest.approx(2 * step.y_h.standard_error)
        assert step.normalization == Estimate(1.0, 0.0)
        coupling = math.log(math.cosh(2 * coupling)) / 2


def test_errors_are_the_scatter_of_repetitions() -> None:
    options = {"operators": named("nearest", "field"), "levels": 1, "resamples": 50}
    runs = [mcrg(rings(400, 16, 0.8), (16,), "decimation", **options).steps[0] for _ in range(60)]
    for values in ([run.y_t for run in runs], [run.y_h for run in runs]):
        scatter = torch.tensor([y.value for y in values]).std()
        claimed = torch.tensor([y.standard_error for y in values]).mean()
        assert 0.7 < float(claimed / scatter) < 1.4  # 60 repetitions tell it to 9 %


@pytest.mark.parametrize("shape", [(16,), (8, 8), (4, 4, 4)])
def test_sum_of_averaged_fields_has_an_exponent_that_is_the_choice_of_c(
    shape: tuple[int, ...],
) -> None:
    x = rough(300, *shape)
    found = mcrg(x, shape, "average", normalization=1.0, levels=1)
    field = [operator.name for operator in found.steps[0].odd.operators].index("field")
    column = torch.zeros(len(found.steps[0].odd.operators))
    column[field] = 2.0 ** len(shape)
    for c in (1.0, 1.1, 2.0 ** (1 / 8)):
        step = found.at(normalization=c).steps[0]
        torch.testing.assert_close(step.odd.matrix[:, field], column / c, atol=1e-7, rtol=1e-7)
        alone = mcrg(x, shape, "average", normalization=c, levels=1, operators=named("field"))
        y_h = alone.steps[0].y_h
        assert y_h.value == pytest.approx(len(shape) - math.log2(c))
        assert y_h.standard_error < 1e-9
    kept = found.at(normalization="variance").steps[0]
    ratio = (x.square().mean() / block_spins(x, shape, "average").square().mean()).sqrt()
    assert kept.normalization.value == pytest.approx(float(ratio))
    assert kept.normalization.standard_error > 0
    uncertain = alone.at(normalization=Estimate(1.1, 0.011)).steps[0].y_h
    assert uncertain.value == pytest.approx(len(shape) - math.log2(1.1))
    assert uncertain.standard_error == pytest.approx(0.01 / math.log(2), rel=0.2)


def test_even_couplings_of_gaussian_fields_are_those_of_exact_covariances() -> None:
    """Cov(x A x, x B x) = 2 tr(A G B G) of fields of covariance G."""
    target, side = FreeField((8, 8), mass=0.4), 8
    operators = named("square", "nearest", "diagonal")
    found = mcrg(
        target.sample_reference(20_000, seed=3), (8, 8), "average", operators=operators,
        normalization=1.1, levels=2,
    )  # fmt: skip
    units = torch.eye(64).reshape(64, 8, 8)
    covariance = torch.stack(
        [target.correlations((i, j)).flatten() for i in range(8) for j in range(8)]
    ).to(units)
    blocks = torch.eye(64)

    def forms(side: int, blocks: Tensor) -> list[Tensor]:
        units = torch.eye(side * side).reshape(-1, side, side)
        of_pairs = operator_sums(units[:, None] + units, (side, side), operators)
        alone = operator_sums(units, (side, side), operators)
        mixed = (of_pairs - alone[:, None] - alone).to(units).movedim(-1, 0) / 2
        return [blocks.T @ form @ blocks for form in mixed]

    def cov(of: list[Tensor], other: list[Tensor]) -> Tensor:
        return torch.stack(
            [
                torch.stack([2 * torch.trace(a @ covariance @ b @ covariance) for b in other])
                for a in of
            ]
        )

    for step in found.steps:
        fine = forms(side, blocks)
        of_units = torch.eye(side * side).reshape(-1, side, side)
        blocks = block_spins(of_units, (side, side), "average").flatten(1).T @ blocks
        side //= 2
        coarse = forms(side, blocks)
        matrix = torch.linalg.solve(cov(coarse, coarse), cov(coarse, fine)) / 1.1**2
        exact = torch.linalg.eigvals(matrix).real.sort(descending=True).values
        value, error = step.even.eigenvalues
        assert ((value - exact).abs() < 4 * error).all()
        assert error[0] < 0.02 * value[0]
        assert abs(step.y_t.value - math.log2(exact[0])) < 4 * step.y_t.standard_error
        assert math.isnan(step.y_h.value)
        assert step.odd is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_coarse_fields_of_a_haar_flow_are_block_means_of_either_sign(sign: float) -> None:
    x = FreeField((8, 8), mass=0.5).sample_reference(200, seed=0) ** 3
    flow = linear_flow((8, 8), lambda size: Matrix(sign * haar(size).matrix))
    operators = named("square", "nearest", "field", "cube", "corner")
    ours, theirs = (
        mcrg(x, (8, 8), blocking, operators=operators, levels=2) for blocking in (flow, "average")
    )
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        assert other.normalization.value / one.normalization.value == pytest.approx(2.0)
        for found, expected in ((one.even, other.even), (one.odd, other.odd)):
            torch.testing.assert_close(found.eigenvalues.value, expected.eigenvalues.value)
    assert repr(ours) == "MCRG(flow, 2 steps, 200 fields)"


def test_signs_of_fields_have_no_normalization() -> None:
    x = rough(300, 8, 8)
    ours = mcrg(x, (8, 8), "decimation", levels=2, signs=True)
    assert repr(ours.steps) == repr(mcrg(x.sign(), (8, 8), "decimation", levels=2).steps)
    flow = linear_flow((8, 8), lambda size: Matrix(-haar(size).matrix))
    ours = mcrg(x, (8, 8), flow, levels=2, signs=True)
    means = mcrg(x, (8, 8), "average", levels=2, signs=True)
    assert ours.operators == lattice_operators((2, 2), spins=True)
    assert repr(ours.steps) == repr(means.steps)
    assert [step.normalization for step in ours.steps] == [Estimate(1.0, 0.0)] * 2


def test_draws_of_one_chain_are_not_taken_for_independent() -> None:
    x = rough(100, 8, 8)
    options = {"operators": named("nearest", "square", "field"), "levels": 1}
    alone = mcrg(x, (8, 8), "decimation", **options)
    again = mcrg(x[:, None].expand(100, 5, 8, 8), (8, 8), "decimation", **options)
    assert (alone.num_blocks, again.num_blocks, again.num_fields) == (100, 100, 500)
    for name in ("y_t", "y_h"):
        y, same = getattr(alone.steps[0], name), getattr(again.steps[0], name)
        assert same.value == pytest.approx(y.value)
        assert same.standard_error == pytest.approx(y.standard_error)
    chain = x.reshape(2, 50, 8, 8)
    assert mcrg(chain, (8, 8), "decimation", blocks=7, **options).num_blocks == 14
    assert mcrg(rough(2500, 4, 4), (4, 4), "decimation", **options).num_blocks == 1000
    with pytest.warns(UserWarning, match="errors come from 2 blocks only"):
        mcrg(chain[:, :3], (8, 8), "decimation", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcrg(chain[:, :3], (8, 8), "decimation", blocks=1, **options)


def test_results_depend_on_no_units_of_the_operators() -> None:
    x = rough(400, 8, 8)
    once, larger = (mcrg(scale * x, (8, 8), "average", levels=1) for scale in (1.0, 10.0))
    for parity in ("even", "odd"):
        one, other = (getattr(found.steps[0], parity) for found in (once, larger))
        torch.testing.assert_close(
            one.eigenvalues.value, other.eigenvalues.value, rtol=1e-4, atol=1e-4
        )
        assert one.condition == pytest.approx(other.condition, rel=1e-3)


def test_cut_off_keeps_the_directions_that_are_known() -> None:
    found = mcrg(rough(400, 8, 8), (8, 8), "average", levels=1)
    table = str(found).splitlines()
    assert table[0] == repr(found)
    assert table[1].split()[:4] == ["step", "lattice", "y_t", "y_h"]
    assert len(table) == 3 + 2 + 5
    counts = []
    for cutoff in (1e-12, 0.1, 0.5):
        step = found.at(cutoff=cutoff).steps[0]
        counts.append(step.even.kept)
        assert int(torch.linalg.matrix_rank(step.even.matrix)) <= step.even.kept
    assert counts[0] == len(step.even.operators)
    assert counts[0] > counts[1] > counts[2] >= 1


def test_exponents_of_the_ising_model() -> None:
    found = mcrg(IsingModel((16, 16)).sample(512, seed=5), (16, 16))
    assert found.operators == lattice_operators((4, 4), spins=True)
    y_t, y_h = found.steps[0].y_t, found.steps[0].y_h
    assert abs(y_t.value - 1) < 4 * y_t.standard_error + 0.03
    assert y_t.standard_error < 0.1
    assert abs(y_h.value - 15 / 8) < 4 * y_h.standard_error + 0.01
    assert y_h.standard_error < 0.006


def test_matching_normalization_of_estimates() -> None:
    c = matching_normalization(Estimate(0.6, 0.012), Estimate(0.5, 0.01))
    assert c.value == pytest.approx(math.sqrt(1.2))
    assert c.standard_error == pytest.approx(c.value * math.hypot(0.01, 0.01))


def test_what_cannot_be_blocked_is_named() -> None:
    x = torch.randn(10, 8, 8).sign()
    for shape, blocking in (((8, 9), "average"), ((4, 4), linear_flow((8, 8), haar))):
        with pytest.raises(ValueError, match=r"shape is .*accepted: "):
            mcrg(torch.randn(10, *shape), shape, blocking)
    with pytest.raises(ValueError, match="levels is 4; accepted: an integer from 1 to 3"):
        mcrg(x, (8, 8), levels=4)
    with pytest.raises(ValueError, match="operators has 'square', which is constant at scale 1"):
        mcrg(x, (8, 8), operators=named("field", "square"))
    with pytest.raises(ValueError, match=r"fields has .*\+1 and -1"):
        mcrg(torch.randn(10, 8, 8), (8, 8))
    with pytest.raises(ValueError, match="blocks is 1; accepted"):
        mcrg(x[None], (8, 8), blocks=1)
    with pytest.raises(TypeError, match="signs is an int; accepted: True or False"):
        mcrg(x, (8, 8), signs=1)


def test_signs_take_no_normalization() -> None:
    with pytest.raises(ValueError, match=r"normalization is 1\.09 with signs=True"):
        mcrg(torch.randn(50, 8, 8), (8, 8), "average", signs=True, normalization=1.09)
