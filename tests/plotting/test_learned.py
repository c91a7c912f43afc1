# SPDX-License-Identifier: Apache-2.0
"""Figures of what a flow has learned show the numbers they were given, with their errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pyro_neuralrg import analysis, plotting
from pyro_neuralrg.plotting import learned
from pyro_neuralrg.statistics import with_error
from pyro_neuralrg.transforms import hierarchical_flow


def information(variables: int = 4, samples: int = 200) -> analysis.MutualInformation:
    x = torch.randn(samples, variables)
    x[:, 0] += 2 * x[:, 1]
    return analysis.mutual_information(x, estimator=analysis.Bins(4), shuffles=50)


@pytest.mark.parametrize("shape", [(4,), (4, 4), (2, 2, 2)])
def test_responses_are_pictures_of_the_means(shape: tuple[int, ...]) -> None:
    flow = hierarchical_flow(shape)
    found = analysis.responses_by_scale(flow, torch.randn(5, *shape), most=2)
    figure = plotting.plot_responses(found, count=2)
    panels = [ax for ax in figure.axes if ax.images]
    means = [mean for response in found.values() for mean in response.mean]
    for ax, mean in zip(panels, means, strict=True):
        shown = np.asarray(ax.images[0].get_array())
        expected = mean[:, :, 1] if len(shape) == 3 else mean.reshape(-1, shape[-1])
        np.testing.assert_allclose(shown, expected.numpy())
        low, high = ax.images[0].get_clim()
        assert low == -high
        assert "error <=" in ax.get_xlabel()
    assert panels[0].get_title() == "latent 1" + "\nslice [:, :, 1]" * (len(shape) == 3)
    assert panels[0].get_ylabel() == "scale 0"
    bars = [ax for ax in figure.axes if ax.get_ylabel() == learned.RESPONSE]
    assert len(bars) == len(found)


def test_centred_responses_have_their_site_in_the_middle() -> None:
    mean = torch.zeros(2, 4, 6)
    mean[0, 1, 5] = mean[1, 3, 0] = 1.0
    found = analysis.Response((11, 18), mean, 0 * mean, 0 * mean, 5)
    figure = plotting.plot_responses({0: found}, centred=True)
    for ax in figure.axes[:2]:
        shown = np.asarray(ax.images[0].get_array())
        assert np.unravel_index(shown.argmax(), shown.shape) == (2, 3)


def test_responses_of_an_open_lattice_are_not_moved_around_it() -> None:
    flow = hierarchical_flow((4, 4), boundary="open")
    found = analysis.responses_by_scale(flow, torch.randn(5, 4, 4), most=1)
    assert plotting.plot_responses(found).axes
    with pytest.raises(
        ValueError, match=r"centred is True, .* open lattice.*; accepted: centred=F"
    ):
        plotting.plot_responses(found, centred=True)


def test_matrix_blanks_what_is_noise_below_the_diagonal() -> None:
    found = information()
    ax = plotting.plot_information_matrix(found, largest=2.0)
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    upper, lower = np.triu_indices(4, 1), np.tril_indices(4, -1)
    np.testing.assert_allclose(shown[upper], found.values.numpy()[upper])
    assert shown[1, 0] == pytest.approx(float(found.values[1, 0]))
    error = np.hypot(found.standard_error.numpy(), found.bias.standard_error)
    noise = found.values.numpy()[lower] <= 3 * error[lower]
    assert noise.any()
    assert not noise.all()
    assert (np.isnan(shown[lower]) == noise).all()
    assert ax.images[0].get_clim() == (0.0, 2.0)
    assert ax.get_title() == f"total {with_error(*found.total())} nats"
    assert ax.figure.axes[1].get_ylabel() == "mutual information (nats)"
    assert not found.values[2, 1].isnan()  # the results themselves are untouched


def test_distances_with_error_bars() -> None:
    groups = analysis.by_distance(information(6), (6,))
    ax = plotting.plot_information_by_distance({"field": groups, "latents": groups})
    assert ax.get_legend_handles_labels()[1] == ["field", "latents"]
    line, _, bars = ax.containers[0]
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), groups.values.numpy())
    half = [np.ptp(s[:, 1]) / 2 for s in bars[0].get_segments()]
    np.testing.assert_allclose(half, groups.standard_error.numpy())
    assert ax.get_ylabel().endswith("(nats) per pair")


def test_scales_with_numbers_in_the_cells() -> None:
    found = analysis.by_scale(information(), hierarchical_flow((4,)))
    values = torch.tensor([[0.02, 0.5, 0.1], [0.5, torch.nan, -0.001], [0.1, -0.001, torch.nan]])
    groups = dataclasses.replace(found, values=values, standard_error=values.abs() / 10)
    ax = plotting.plot_information_by_scale(groups)
    texts = [text.get_text().replace("\n$\\pm$", " ") for text in ax.texts]
    assert texts[:2] == ["0.20 0.02", "5.00 0.50"]
    assert texts[4:6] == ["no pair", "-0.01 0.00"]
    assert ax.get_title() == "numbers in $10^{-1}$ nats per pair"
    noisy = dataclasses.replace(groups, standard_error=torch.full((3, 3), 2.0))
    assert plotting.plot_information_by_scale(noisy).images[0].get_clim()[1] == 6.0


def test_pyramid_shows_the_fields_of_each_scale() -> None:
    fields = analysis.pyramid(hierarchical_flow((4, 4)), torch.randn(5, 4, 4))
    figure = plotting.plot_pyramid(fields, count=2)
    panels = np.array([ax for ax in figure.axes if ax.images]).reshape(2, 3)
    for (row, scale), ax in np.ndenumerate(panels):
        shown = np.asarray(ax.images[0].get_array())
        np.testing.assert_allclose(shown, fields[scale][row].numpy())
    assert [ax.get_title() for ax in panels[0]] == ["field", "scale 1", "scale 2"]


def test_top_variable_histograms_have_binomial_errors() -> None:
    values = np.repeat([-1.0, 0.0, 1.0], [20, 30, 50])
    ax = plotting.plot_top_variable({"cold": values, "hot": values / 10}, bins=3)
    stairs = ax.patches[0].get_data()
    np.testing.assert_allclose(stairs.values * np.diff(stairs.edges), [0.2, 0.3, 0.5])
    bars = ax.containers[0][2][0].get_segments()
    half = np.array([np.ptp(s[:, 1]) / 2 for s in bars]) * np.diff(stairs.edges)
    np.testing.assert_allclose(half, np.sqrt([0.0016, 0.0021, 0.0025]))
    assert ax.get_legend_handles_labels()[1] == ["cold", "hot"]


def test_effective_energy_is_minus_the_log_of_the_histogram() -> None:
    values = np.repeat([-1.0, 0.0, 1.0], [20, 30, 50])
    curve = plotting.Series([-1.0, 1.0], [1.2, 0.3], [0.1, 0.2])
    ax = plotting.plot_effective_energy(
        {"cold": values, "hot": values / 10}, computed={"cold": curve}, bins=3
    )
    line, _, bars = ax.containers[0]
    width = 2 / 3
    np.testing.assert_allclose(line.get_ydata(), -np.log(np.array([0.2, 0.3, 0.5]) / width))
    half = [np.ptp(s[:, 1]) / 2 for s in bars[0].get_segments()]
    np.testing.assert_allclose(half, np.sqrt([0.8 / 20, 0.7 / 30, 0.5 / 50]))
    assert len(ax.containers[1][0].get_ydata()) == 1  # the other bins are empty
    drawn = next(found for found in ax.lines if found.get_label() == "cold, Eq. 6 integrated")
    assert drawn.get_ydata().tolist() == [1.2, 0.3]
    assert ax.collections[-1].get_paths()[0].vertices.size  # the band


def test_coupling_flow_goes_from_scale_to_scale() -> None:
    values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 6.0, 4.0], [torch.nan, 7.0, 8.0]])
    rest = torch.ones(4, 3)
    names = ("nearest", "square", "fourth_power")
    found = analysis.RunningCouplings(names, values, values / 10, *rest)
    ax = plotting.plot_coupling_flow({"cold": found, "hot": found})
    line, _, (across, up) = ax.containers[0]
    np.testing.assert_allclose(line.get_xydata(), [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose([np.ptp(s[:, 0]) / 2 for s in across.get_segments()], [0.1, 0.3])
    np.testing.assert_allclose([np.ptp(s[:, 1]) / 2 for s in up.get_segments()], [0.2, 0.4])
    arrows = [text for text in ax.texts if text.arrow_patch is not None]
    assert tuple(arrows[0].xyann) == (1.0, 2.0)
    assert tuple(arrows[0].xy) == (3.0, 4.0)
    assert len(arrows) == 2
    numbers = [(text.get_text(), *text.xy) for text in ax.texts if text.get_text()]
    assert numbers == [("0", 1.0, 2.0), ("1", 3.0, 4.0)] * 2
    assert ax.get_legend_handles_labels()[1] == ["cold", "hot"]
    other = plotting.plot_coupling_flow({"cold": found}, first="square", finest=1)
    np.testing.assert_allclose(other.containers[0][0].get_xydata(), [[6.0, 4.0], [7.0, 8.0]])
    assert [text.get_text() for text in other.texts if text.get_text()] == ["1", "2"]
    assert other.get_xlabel() == "coupling of square (nats)"
