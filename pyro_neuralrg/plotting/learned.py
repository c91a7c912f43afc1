# SPDX-License-Identifier: Apache-2.0
"""Figures of what a flow has learned: responses, mutual information, fields of every scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure

from pyro_neuralrg.analysis import GroupedInformation, MutualInformation, Response, RunningCouplings
from pyro_neuralrg.arguments import check_array, check_choice, check_integer, check_type
from pyro_neuralrg.plotting.style import (
    Series,
    axes_or_new,
    check_named,
    draw_band,
    draw_bars,
    draw_field,
    figure_or_new,
    known_points,
    legend_beside,
    look,
)
from pyro_neuralrg.statistics import with_error

LEVELS = 25  # colours of mutual information: few, so that noise takes less room in a file
LINEAR = 10.0  # colours are linear up to the largest response divided by this
POSITIVE = colormaps["Blues"].resampled(LEVELS)  # zero is the white of the paper
RESPONSE = r"$E[\partial z / \partial x]$ (1/x)"
INFORMATION = "mutual information (nats)"
LEGEND_SHARE = 0.35  # height of the legend over that of the curves
NUMBER_OFFSET = (4, 4)  # of the number of a scale from its point, in points
MAX_NUMBERED_SCALES = 12  # numbers in more cells cannot be read


def plot_responses(
    found: Mapping[Any, Response],
    *,
    count: int = 4,
    label: str = RESPONSE,
    centred: bool = False,
    figure: Figure | None = None,
) -> Figure:
    """Mean responses of some latents of each scale, one row a scale (paper Fig. 4a).

    The colour scale is linear about zero and logarithmic beyond a tenth of the largest response.
    Under each panel are its largest standard error and the share of the response that varies from
    field to field. Shown in ``tutorials/figures/fig4a.png``.

    Args:
        found: responses by scale, or by anything else that names a row, as from
            :func:`~pyro_neuralrg.analysis.responses_by_scale`.
        count: panels of each row at most.
        label: of the colour bars, with the unit.
        centred: move each picture around its periodic lattice, until the site of its latent is in
            the middle.
        figure: to draw on; None makes a new one.

    Example:
        >>> from pyro_neuralrg import analysis, hierarchical_flow
        >>> flow = hierarchical_flow((4, 4))
        >>> found = analysis.responses_by_scale(flow, torch.randn(8, 4, 4), most=2)
        >>> len(plot_responses(found).axes)  # three rows of two panels, a colour bar each
        9
    """
    check_named("found", found, Response)
    check_integer("count", count, 1)
    if centred and any(response.boundary != "periodic" for response in found.values()):
        raise ValueError(
            "centred is True, and found has responses on an open lattice, around which no picture "
            "can be moved; accepted: centred=False"
        )
    columns = min(count, max(len(response.mean) for response in found.values()))
    figure = figure_or_new(figure, 2.1 * columns + 1.6, 2.3 * len(found) + 0.3)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for row, (name, response) in zip(grid, found.items(), strict=True):
        means = _copied(response.mean)[:columns]
        limit = float(np.abs(means).max()) or 1.0
        for index, (ax, mean) in enumerate(zip(row, means, strict=False)):
            latent = int(response.variables[index])
            ax.set_title(f"latent {latent}", fontsize="small")
            if centred:
                site = np.unravel_index(latent, mean.shape)
                by = [side // 2 - int(at) for side, at in zip(mean.shape, site, strict=True)]
                mean = np.roll(mean, by, tuple(range(mean.ndim)))
            image = draw_field(ax, mean, AsinhNorm(limit / LINEAR, -limit, limit))
            error = float(response.standard_error[index].max())
            share = 100 * float(response.nonlinearity[index])
            ax.set_xlabel(f"error <= {error:.1g}\nvaries: {share:.1f} %", fontsize="small")
        for ax in row[len(means) :]:
            ax.set_axis_off()
        row[0].set_ylabel(f"scale {name}" if isinstance(name, int) else str(name))
        bar = figure.colorbar(image, ax=list(row), label=label, shrink=0.9)
        ticks = [-limit, -limit / LINEAR, 0.0, limit / LINEAR, limit]
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def plot_information_matrix(
    found: MutualInformation, *, largest: float | None = None, ax: Axes | None = None
) -> Axes:
    """The mutual information of every pair of variables as a picture (paper Fig. 4b).

    Above the diagonal the values, below it those that exceed three standard errors; the title has
    the total of all pairs with its error. Shown in ``tutorials/figures/fig4b.png``.

    Args:
        found: result of :func:`~pyro_neuralrg.analysis.mutual_information`.
        largest: end of the colour scale in nats, to be shared by figures that are compared; None
            for the largest value.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> from pyro_neuralrg.analysis import mutual_information
        >>> found = mutual_information(torch.randn(200, 5), shuffles=20)
        >>> plot_information_matrix(found).get_xlabel()
        'variable'
    """
    check_type("found", found, MutualInformation, "a MutualInformation")
    values = _copied(found.values)
    error = np.hypot(_copied(found.standard_error), found.bias.standard_error)
    lower = np.tril_indices(len(values))
    values[lower] = np.where(values[lower] > 3 * error[lower], values[lower], np.nan)
    top = float(np.nanmax(values)) if largest is None else largest
    ax = axes_or_new(ax)
    ax.set_facecolor("white")
    image = ax.imshow(values, cmap=POSITIVE, vmin=0.0, vmax=max(top, 1e-12))
    ax.set_title(f"total {with_error(*found.total())} nats")
    ax.set(xlabel="variable", ylabel="variable (below the diagonal: > 3 errors)")
    ax.figure.colorbar(image, ax=ax, label=INFORMATION, extend="min")
    return ax


def plot_information_by_distance(
    found: Mapping[str, GroupedInformation], *, ax: Axes | None = None
) -> Axes:
    """Mean mutual information of a pair against its distance, with error bars (paper Fig. 4c).

    For the name of each kind of variable the result of :func:`~pyro_neuralrg.analysis.by_distance`.
    The scale is logarithmic down to the median error and linear below it. Shown in
    ``tutorials/figures/fig4b.png``.

    Example:
        >>> from pyro_neuralrg import analysis
        >>> found = analysis.mutual_information(torch.randn(200, 4), shuffles=20)
        >>> groups = analysis.by_distance(found, (4,))
        >>> plot_information_by_distance({"field": groups}).get_xlabel()
        'distance (sites)'
    """
    check_named("found", found, GroupedInformation)
    curves = {}
    for name, groups in found.items():
        if groups.positions is None:
            raise ValueError(f"found[{name!r}] has no distances; accepted: those of by_distance")
        points = (groups.positions, groups.values, groups.standard_error)
        curves[name] = Series(*map(_copied, points))
    ax = axes_or_new(ax)
    errors: list[float] = []
    for index, (name, curve) in enumerate(known_points(ax, curves).items()):
        draw_bars(ax, curve, index, name, linestyle=look(index)["linestyle"])
        errors.extend(error for error in curve[2] if not np.isnan(error))
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=max(float(np.median(errors or [0.0])), 1e-12))
    ax.margins(y=0.1)
    ax.set(xlabel="distance (sites)", ylabel=f"{INFORMATION} per pair")
    legend_beside(ax)
    return ax


def plot_information_by_scale(found: GroupedInformation, *, ax: Axes | None = None) -> Axes:
    """Mean mutual information of latents of each two scales, with numbers and errors in the cells.

    The result of :func:`~pyro_neuralrg.analysis.by_scale`. Shown in
    ``tutorials/figures/fig4b.png``.

    Example:
        >>> from pyro_neuralrg import analysis, hierarchical_flow
        >>> found = analysis.mutual_information(torch.randn(200, 4), shuffles=20)
        >>> groups = analysis.by_scale(found, hierarchical_flow((4,)))
        >>> plot_information_by_scale(groups).get_xlabel()
        'scale (0: the finest)'
    """
    check_type("found", found, GroupedInformation, "a GroupedInformation")
    values, error = _copied(found.values), _copied(found.standard_error)
    if values.ndim != 2:
        raise ValueError(f"found has shape {values.shape}; accepted: groups of by_scale")
    count = len(values)
    size = max(5.0, 1.3 * count + 1.5)
    ax = axes_or_new(ax, size, 0.75 * size)
    largest = np.fmax(np.abs(values), 3 * error)  # what is noise stays pale
    top = max(float(np.nanmax(largest, initial=0.0)), 1e-12)
    unit = math.floor(math.log10(top))
    image = ax.imshow(np.clip(values, 0.0, None), cmap=POSITIVE, vmin=0.0, vmax=top, aspect="auto")
    for i, j in np.ndindex(count, count) if count <= MAX_NUMBERED_SCALES else ():
        number, its_error = values[i, j] / 10.0**unit, error[i, j] / 10.0**unit
        words = f"{number:.2f}\n$\\pm${its_error:.2f}" if np.isfinite(number) else "no pair"
        colour = "white" if values[i, j] > 0.6 * top else "black"
        ax.text(j, i, words, ha="center", va="center", fontsize="small", color=colour)
    ax.set(xticks=range(count), xlabel="scale (0: the finest)")
    ax.set(yticks=range(count), ylabel="scale (0: the finest)")
    ax.set_title(f"numbers in $10^{{{unit}}}$ nats per pair")
    ax.figure.colorbar(image, ax=ax, label=f"{INFORMATION} per pair")
    return ax


def plot_pyramid(
    fields: Sequence[npt.ArrayLike], *, count: int = 3, figure: Figure | None = None
) -> Figure:
    """Fields at every scale, physical on the left, the top on the right; a row for each field.

    At most ``count`` fields of the result of :func:`~pyro_neuralrg.analysis.pyramid`, which has one
    batch dimension; each scale has a colour scale of its own. Shown in
    ``tutorials/figures/pyramid.png``.

    Example:
        >>> from pyro_neuralrg import analysis, hierarchical_flow
        >>> fields = analysis.pyramid(hierarchical_flow((4, 4)), torch.randn(2, 4, 4))
        >>> len(plot_pyramid(fields).axes)  # 2 rows of 3 scales, 3 colour bars
        9
    """
    check_type("fields", fields, Sequence, "a sequence of arrays")
    check_integer("count", count, 1)
    arrays = [check_array("fields", values) for values in fields]
    ranks = {array.ndim for array in arrays}
    finite = all(np.isfinite(array).all() for array in arrays)
    if len(ranks) != 1 or not 2 <= ranks.pop() <= 4 or not len(arrays[0]) or not finite:
        raise ValueError(
            f"fields has shapes {[array.shape for array in arrays]}"
            f"{'' if finite else ' and values that are not finite'}; accepted: finite fields, "
            "(n,) + the shape of each scale, n >= 1"
        )
    rows = min(count, len(arrays[0]))
    figure = figure_or_new(figure, 2.3 * len(arrays) + 0.4, 1.9 * rows + 1.0)
    grid = figure.subplots(rows, len(arrays), squeeze=False)
    for scale, (array, column) in enumerate(zip(arrays, grid.T, strict=True)):
        limit = float(np.quantile(np.abs(array[:rows]), 0.99)) or 1.0
        column[0].set_title("field" if scale == 0 else f"scale {scale}")
        for ax, values in zip(column, array, strict=False):
            image = draw_field(ax, values, Normalize(-limit, limit))
        bar: dict[str, Any] = {"location": "bottom", "extend": "both", "shrink": 0.9}
        figure.colorbar(image, ax=list(column), label="x" if scale == 0 else "kept", **bar)
    return figure


def plot_top_variable(
    values: Mapping[str, npt.ArrayLike], *, bins: int = 40, ax: Axes | None = None
) -> Axes:
    """Histograms of the top variable, for example above, at and below the critical temperature.

    For each name the top variable of every field. Error bars are those of independent samples: the
    root of p (1 - p) / n of each bin. Shown in ``tutorials/figures/top_variable.png``.

    Example:
        >>> plot_top_variable({"T = 2": [-1.0, 1.0], "T = 3": [0.1, -0.1]}).get_ylabel()
        'probability density'
    """
    shares, edges, middle, width = _histograms(values, bins)
    ax = axes_or_new(ax)
    for index, (name, (share, number)) in enumerate(shares.items()):
        density, error = share / width, np.sqrt(share * (1 - share) / number) / width
        shown = look(index)
        ax.stairs(density, edges, linewidth=1.5, color=shown["color"], linestyle=shown["linestyle"])
        draw_bars(ax, (middle, density, error), index, name, markersize=3)
    ax.set_ylim(bottom=0.0)
    ax.set(xlabel="top variable (dimensionless)", ylabel="probability density")
    ax.legend(frameon=False)
    return ax


def plot_effective_energy(
    values: Mapping[str, npt.ArrayLike],
    *,
    computed: Mapping[str, Series] | None = None,
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    r"""The effective energy of the top variable, for example around the critical temperature.

    Points are -ln of the histogram of exact samples, their errors the root of (1 - p) / (p n) in a
    bin of probability p; bins without samples have none. Lines are the renormalised energy (paper
    Eq. 6), all finer latents integrated out. Shown in ``tutorials/figures/effective_energy.png``.

    Args:
        values: for each name, for example a temperature, the top variable of every field.
        computed: for some of the names -ln p(y) in nats at some y, from
            :func:`~pyro_neuralrg.analysis.top_energy` and ln Z.
        bins: of the histogram, the same for all.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> line = Series([-1.0, 0.0, 1.0], [0.6, 2.0, 0.6], [0.1, 0.1, 0.1])
        >>> samples = {"T = 2": [-1.0, 1.0, 0.9], "T = 3": [0.1, -0.1, 0.2]}
        >>> plot_effective_energy(samples, computed={"T = 2": line}, bins=4).get_ylabel()
        'effective energy $-\\ln p$ (nats)'
    """
    shares, _, middle, width = _histograms(values, bins)
    ax = axes_or_new(ax)
    lines = known_points(ax, computed, "computed") if computed else {}
    strange = [name for name in lines if name not in shares]
    if strange:
        raise ValueError(f"computed has {strange}; accepted: names of values, {list(shares)}")
    for index, (name, (share, number)) in enumerate(shares.items()):
        seen = share > 0
        p = share[seen]
        points = (middle[seen], -np.log(p / width[seen]), np.sqrt((1 - p) / (p * number)))
        draw_bars(ax, points, index, f"{name}, exact samples", markersize=3)
        if name in lines:
            draw_band(ax, lines[name], index, f"{name}, Eq. 6 integrated")
    ax.set(xlabel="top variable (dimensionless)", ylabel=r"effective energy $-\ln p$ (nats)")
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + LEGEND_SHARE * (top - bottom))
    ax.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)
    return ax


def plot_coupling_flow(
    found: Mapping[str, RunningCouplings],
    *,
    first: str = "nearest",
    second: str = "fourth_power",
    finest: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The flow of two couplings from scale to scale, for example around the critical temperature.

    For each name the result of :func:`~pyro_neuralrg.analysis.running_couplings`. An arrow leads
    from each scale, whose number stands beside it, to the next coarser one; scales whose lattice is
    too small for either operator are left out. Shown in ``tutorials/figures/fixed_points.png``.

    Args:
        found: by name.
        first: operator of the abscissa.
        second: operator of the ordinate.
        finest: the first scale that is drawn.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> from pyro_neuralrg import FreeField, analysis, hierarchical_flow
        >>> target, flow = FreeField((4, 4)), hierarchical_flow((4, 4))
        >>> x = target.sample_reference(50, seed=0)
        >>> found = analysis.running_couplings(target, flow, x, num_fine=2)
        >>> plot_coupling_flow({"free": found}).get_xlabel()
        'coupling of nearest (nats)'
    """
    check_named("found", found, RunningCouplings)
    finest = check_integer("finest", finest, 0)
    ax = axes_or_new(ax)
    for index, (name, couplings) in enumerate(found.items()):
        for argument, operator in (("first", first), ("second", second)):
            check_choice(argument, operator, couplings.operators)
        places = [couplings.operators.index(operator) for operator in (first, second)]
        both = couplings.values, couplings.standard_error
        values, errors = (_copied(numbers)[finest:, places] for numbers in both)
        known = np.flatnonzero(np.isfinite(values).all(1))
        values, errors = values[known], errors[known]
        draw_bars(ax, (values[:, 0], values[:, 1], errors[:, 1]), index, name, xerr=errors[:, 0])
        for start, end in itertools.pairwise(values):
            style = {"arrowstyle": "->", "color": look(index)["color"]}
            ax.annotate("", xy=end, xytext=start, arrowprops=style)
        for scale, point in zip(finest + known, values, strict=True):
            beside: dict[str, Any] = {"xytext": NUMBER_OFFSET, "textcoords": "offset points"}
            ax.annotate(f"{scale}", point, color=look(index)["color"], **beside)
    ax.set(xlabel=f"coupling of {first} (nats)", ylabel=f"coupling of {second} (nats)")
    ax.legend(frameon=False)
    return ax


def _histograms(values: Mapping[str, npt.ArrayLike], bins: int) -> tuple[Any, ...]:
    """Share of each bin and number of samples by name; edges, middles and widths of the bins."""
    check_named("values", values)
    arrays = {name: check_array(f"values[{name!r}]", v).ravel() for name, v in values.items()}
    if any(not v.size or not np.isfinite(v).all() for v in arrays.values()):
        raise ValueError(
            "values has an entry that is empty or not finite; accepted: finite numbers"
        )
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    shares = {name: (np.histogram(v, edges)[0] / v.size, v.size) for name, v in arrays.items()}
    return shares, edges, (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def _copied(values: torch.Tensor) -> npt.NDArray[np.float64]:
    """A copy in double precision."""
    return np.array(values.detach().cpu().double().numpy())
