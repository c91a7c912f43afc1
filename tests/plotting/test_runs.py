# SPDX-License-Identifier: Apache-2.0
"""Figures show the numbers they were given, and need neither a display nor pyplot."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_neuralrg import plotting


def line(ax, label):
    return next(found for found in ax.get_lines() if found.get_label() == label)


def legend(ax) -> set[str]:
    return {text.get_text() for text in ax.get_legend().get_texts()}


def test_free_energy_draws_exact_line_and_estimate() -> None:
    loss = 10.0 + np.exp(-np.arange(200) / 30.0)
    ax = plotting.plot_free_energy(loss, exact=9.8, estimate=(9.81, 0.02), annealing_steps=40)
    assert np.allclose(line(ax, "exact").get_ydata(), 9.8)
    bottom, top = ax.get_ylim()
    assert bottom < 9.8 < loss[-1] < top
    assert {"importance sampling", "higher temperature"} <= legend(ax)
    assert "nats" in ax.get_ylabel()
    ax = plotting.plot_free_energy([3.0, 2.0, np.nan], standard_error=[0.1, 0.1, 0.1])
    assert "exact" not in legend(ax)
    assert ax.get_title() == "not converged: the loss is not finite"
    assert plotting.plot_free_energy([3.0, 2.0]).get_title() == ""


def test_structure_factor_ends_at_the_mean_with_its_standard_error() -> None:
    values = np.random.default_rng(0).uniform(size=(16, 100))
    ax = plotting.plot_structure_factor({"latent": values, "physical": values[:1]}, exact=0.5)
    assert line(ax, "latent").get_ydata()[-1] == pytest.approx(values.mean())
    band = ax.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 100.0][:, 1]
    width = np.ptp(at_end) / 2
    assert width == pytest.approx(values.mean(axis=1).std(ddof=1) / 4.0)
    assert np.allclose(line(ax, "exact").get_ydata(), 0.5)


@pytest.mark.parametrize("shape", [(8,), (1, 1), (4, 4, 3)])
def test_configurations_share_one_scale(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    fields = {"latent": rng.normal(size=(5, *shape)), "physical": np.zeros((4, *shape))}
    axes = plotting.plot_configurations(fields, count=3)
    assert axes.shape == (2, 3)
    ((low, high),) = {ax.images[0].get_clim() for ax in axes.flat}
    assert low == -high < 0
    assert {ax.get_title() for ax in axes.flat} == {"slice [:, :, 1]" if len(shape) == 3 else ""}


def test_spins_stand_beside_their_fields() -> None:
    rng = np.random.default_rng(1)
    fields = {name: rng.normal(size=(2, 4, 4)) for name in ("latent", "physical")}
    spins = {name: np.sign(x) for name, x in fields.items()}
    axes = plotting.plot_configurations(fields, count=2, spins=spins)
    assert axes.shape == (2, 4)
    for row, name in zip(axes, fields, strict=True):
        for index in range(2):
            field, spin = (ax.images[0] for ax in row[2 * index : 2 * index + 2])
            np.testing.assert_allclose(field.get_array(), fields[name][index])
            np.testing.assert_allclose(spin.get_array(), spins[name][index])
            assert spin.get_clim() == (-1, 1)
            assert spin.get_cmap() != field.get_cmap()
    with pytest.raises(ValueError, match=r"spins has \['latent'\]; accepted: \['latent', 'phys"):
        plotting.plot_configurations(fields, count=2, spins={"latent": spins["latent"]})


def test_legends_hide_neither_data_nor_the_exact_line() -> None:
    figures = [
        plotting.plot_free_energy(np.geomspace(3, 1, 50), exact=0.9, annealing_steps=10),
        plotting.plot_estimates({"importance": plotting.Series([1, 2], [3.0, 2.0], [0.1, 0.1])}),
        plotting.plot_structure_factor({"latent": converged()}, exact=0.0),
    ]
    for ax in figures:
        ax.figure.draw_without_rendering()
        assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


def test_the_structure_factor_fills_its_axis() -> None:
    rng = np.random.default_rng(0)
    draws = {
        "latent": 0.54 + 0.02 * rng.normal(size=(8, 200)),
        "physical": 0.5 + np.zeros((2, 200)),
    }
    draws["latent"][:, 0] = 3.0  # the first mean
    bottom, top = plotting.plot_structure_factor(draws, exact=0.55).get_ylim()
    assert 0.45 < bottom < 0.5
    late = np.cumsum(draws["latent"], 1).mean(0)[20] / 21
    assert late < top < 1.0


def converged(chains: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(chains, 300))


def stuck(chains: int = 4) -> np.ndarray:
    """Chains that stay in one of two modes; the last one in the upper, the others below."""
    values = 0.1 * converged(chains) - 0.7
    values[-1] += 1.4
    return values


def test_structure_factor_names_the_sampler_that_has_not_converged() -> None:
    ax = plotting.plot_structure_factor({"latent": converged(), "physical": stuck()})
    assert ax.get_title().startswith("not converged: physical: R-hat = 1.")
    assert "latent" not in ax.get_title()


def test_trace_of_few_chains_shows_each_from_the_warmup_on() -> None:
    values = converged(chains=3)
    ax = plotting.plot_trace(values, label="energy (nats)", exact=0.1, warmup=np.ones((3, 2)))
    for chain in range(3):
        shown = line(ax, f"chain {chain}")
        np.testing.assert_array_equal(shown.get_xdata(), np.arange(-1, 301))
        np.testing.assert_array_equal(shown.get_ydata(), [1.0, 1.0, *values[chain]])
    assert "warm-up" in legend(ax)
    assert ax.get_ylabel() == "energy (nats)"
    assert np.allclose(line(ax, "exact mean").get_ydata(), 0.1)


def test_trace_of_many_chains_shows_the_outer_ones_in_colour() -> None:
    values = stuck(chains=30)
    ax = plotting.plot_trace(values, label="m")
    np.testing.assert_array_equal(line(ax, "highest: chain 29").get_ydata(), values[-1])
    lowest = int(np.argmin(np.median(values, axis=1)))
    np.testing.assert_array_equal(line(ax, f"lowest: chain {lowest}").get_ydata(), values[lowest])
    assert len(ax.get_lines()) == 33


def test_ranks_of_few_chains_are_histograms() -> None:
    ax = plotting.plot_ranks(stuck(), label="m", bins=4)
    # two outlines a chain; all draws of the last chain are in the last bin, at four times the even
    heights = [patch.get_data() for patch in ax.patches[::2]]
    np.testing.assert_allclose(heights[3].values - 3, [0, 0, 0, 0.8])
    even = [segment[0, 1] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(even, np.arange(4) + 0.2)
    assert heights[0].edges[-1] == 1200


def test_ranks_of_many_chains_are_a_picture() -> None:
    ax = plotting.plot_ranks(stuck(chains=20), label="m", bins=10)
    shown = ax.collections[0].get_array().reshape(20, 10)
    np.testing.assert_allclose(shown.mean(1), 1.0)
    np.testing.assert_allclose(shown[-1, :9], 0.0)
    assert shown[-1, 9] == pytest.approx(10.0)
    assert "even share" in ax.figure.axes[1].get_ylabel()


@pytest.mark.parametrize("figure", [plotting.plot_trace, plotting.plot_ranks])
@pytest.mark.parametrize(
    ("values", "finding"),
    [
        (stuck(), "R-hat = 1."),
        (np.full((4, 9), np.nan), "36 draws are not finite"),
        (np.where(np.arange(36) == 7, np.inf, np.arange(36.0)).reshape(4, 9), "1 draws are not"),
        (np.arange(8.0).reshape(4, 2), "too few chains or draws for R-hat"),
        (np.arange(4.0)[:, None] * np.ones((4, 9)), "R-hat = inf"),
    ],
)
def test_what_cannot_have_converged_is_said_not_to_have(figure, values, finding: str) -> None:
    options = {"bins": 2} if figure is plotting.plot_ranks else {}
    title = figure(values, label="m", **options).get_title().replace("\n", " ")
    assert title.startswith(f"not converged: {finding}")
    assert figure(converged(), label="m").get_title() == ""
