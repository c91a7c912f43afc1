# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of the paper's kind: errors against training, relaxation, depths, light cones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_neuralrg.plotting.curves import Series, known_points
from pyro_neuralrg.plotting.style import (
    BLUE,
    COLOURS,
    MARKERS,
    STYLES,
    as_numbers,
    axes_or_new,
    check_kind,
    new_figure,
    note,
)

LOWER_EDGE = 3.0
"""The lower edge of relative errors is the smallest one over this number: bars may reach zero."""

FAR = 4.0
"""A curve that ends so many standard errors from the exact value is named."""


def relative_errors(
    found: Mapping[str, Series], *, exact: float, xlabel: str = "training step",
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    r"""Relative errors of free energies, :math:`|F - F_\text{exact}| / |F_\text{exact}|`.

    On a logarithmic scale. A bar that would reach zero ends at the lower edge: such an error is no
    larger than its own uncertainty.

    Shown in ``tutorials/figures/fig3a.png``.

    Args:
        found: For each name its free energies, in nats.
        exact: The exact one.
        xlabel: What stands on the x axis.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: There are none, ``exact`` is zero or not finite, or lengths differ.

    >>> relative_errors({"loss": Series([1, 2], [3.0, 2.0], [0.1, 0.1])}, exact=1.0).get_yscale()
    'log'
    """
    if not np.isfinite(exact) or exact == 0:
        raise ValueError(f"exact is {exact}; accepted: a finite number other than 0")
    ax = axes_or_new(ax)
    lowest: list[float] = []
    for index, (name, (x, values, error)) in enumerate(known_points(ax, found).items()):
        size, bar = np.abs(values - exact) / abs(exact), error / abs(exact)
        low = np.where(bar >= size, size * (1 - 1e-3), bar)
        many = x.size > 100
        lowest.extend(np.quantile(size[size > 0], [0.02 if many else 0.0]) if size.any() else [])
        ax.errorbar(
            x, size, yerr=None if many else np.stack([low, bar]), capsize=2,
            color=COLOURS[index % len(COLOURS)], linewidth=0.8 if many else 1.2,
            marker="" if many else MARKERS[index % len(MARKERS)], markersize=4,
            linestyle="-" if many else STYLES[index % len(STYLES)], label=name,
        )  # fmt: skip
        if many:
            ax.fill_between(
                x, size - low, size + bar, color=COLOURS[index % len(COLOURS)], alpha=0.2,
                linewidth=0,
            )  # fmt: skip
    ax.set_yscale("log")
    if lowest:
        ax.set_ylim(bottom=min(lowest) / LOWER_EDGE)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(r"relative error of $-\ln Z$")
    ax.legend(frameon=False, fontsize="small")
    return ax


def relaxation(
    found: Mapping[str, Series], *, exact: float | None = None, xlabel: str, label: str,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Means over chains on their way from a common start, against the exact value.

    The band is one standard error. A curve whose last tenth is further than four of its standard
    errors from the exact value is named in a note, and so is one without known errors there.

    Shown in ``tutorials/figures/fig3b.png``.

    Args:
        found: For each sampler's name the mean over chains of every draw.
        exact: The exact value; None where it is not known.
        xlabel: What stands on the x axis, with the unit.
        label: Of the y axis.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: There are none, lengths differ, or a curve is empty.

    >>> curve = Series([1, 2], [0.1, 0.4], [0.05, 0.05])
    >>> ax = relaxation({"latent": curve}, exact=0.5, xlabel="trajectories", label="S")
    >>> ax.get_xscale(), ax.get_title()
    ('log', '')
    """
    ax = axes_or_new(ax)
    far, unjudged = [], []
    for index, (name, (x, mean, error)) in enumerate(known_points(ax, found).items()):
        if x.size == 0:
            raise ValueError(f"found[{name!r}] is empty; accepted: at least one finite value")
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        ax.plot(x, mean, color=colour, linestyle=style, linewidth=1.4, label=name)
        ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        last = slice(-max(1, x.size // 10), None)  # correlated: its error is that of one draw
        errors = error[last][~np.isnan(error[last])]
        if exact is not None and not errors.size:
            unjudged.append(name)
        elif exact is not None and abs(mean[last].mean() - exact) > FAR * errors.mean():
            far.append(name)
    if exact is not None:
        ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="exact")
    if far:
        note(ax, f"not converged: {', '.join(far)}")
    if unjudged:
        note(ax, f"not known whether converged: {', '.join(unjudged)}")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(label)
    ax.legend(frameon=False, fontsize="small")
    return ax


def depths(
    found: Mapping[str, Series], *, lengths: Mapping[str, float], block: int = 2,
    label: str = r"relative error of $-\ln Z$", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """An error against the depth of the circuit, a curve for each temperature.

    A short vertical line on each curve, at a height interpolated between its points, marks the
    depth whose blocks are as wide as the correlation length; a length that no depth reaches has
    none.

    Shown in ``tutorials/figures/sweep.png``.

    Args:
        found: For each name the error at each depth.
        lengths: Correlation lengths in sites, for some of the names.
        block: Side of a block: depth d has blocks of ``block**d`` sites.
        label: Of the y axis.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: There are none, or lengths differ.

    >>> curve = Series([1, 2], [1e-2, 1e-3], [1e-4, 1e-4])
    >>> depths({"T = 2": curve}, lengths={"T = 2": 2.0}).get_xlabel()
    'depth (scales)'
    """
    ax = axes_or_new(ax)
    points = known_points(ax, found)
    shades = np.linspace(0.0, 0.85, max(2, len(points)))
    colours = colormaps["cividis"](shades)  # lightness grows from the first curve to the last
    for index, (name, (x, values, error)) in enumerate(points.items()):
        low = np.where(error >= values, 0.999 * np.abs(values), error)
        ax.errorbar(
            x, values, yerr=np.stack([low, error]), color=colours[index], capsize=2, markersize=4,
            marker=MARKERS[index % len(MARKERS)], linestyle=STYLES[index % len(STYLES)],
            linewidth=1.0, label=name,
        )  # fmt: skip
        depth = np.log(lengths.get(name, np.inf)) / np.log(block)
        if x.size and x.min() <= depth <= x.max():
            height = float(np.interp(depth, x, values))
            ax.plot([depth], [height], marker="|", markersize=16, color=colours[index])
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("depth (scales)")
    ax.set_ylabel(label)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def light_cone(masks: Sequence[npt.ArrayLike], *, figure: Figure | None = None) -> Figure:
    """The variables of each scale inside the light cone of one site, a panel for each scale.

    Shown in ``tutorials/figures/sweep.png``.

    Args:
        masks: For each scale a mask of its variables, of one or two dimensions.
        figure: To draw on; None makes a new one.

    Returns:
        The Figure.

    Raises:
        ValueError: There are none, or one has other dimensions or entries that are not finite.

    >>> len(light_cone([np.ones((4, 4)), np.ones((2, 2))]).axes)
    2
    """
    check_kind("masks", masks, Sequence)
    arrays = [as_numbers("masks", mask) for mask in masks]
    if not arrays or any(array.ndim not in (1, 2) for array in arrays):
        raise ValueError(
            f"masks has shapes {[array.shape for array in arrays]}; accepted: one or two dimensions"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("masks has entries that are not finite; accepted: 0 and 1")
    if figure is None:
        figure = new_figure(2.0 * len(arrays) + 0.4, 2.4)
    panels = figure.subplots(1, len(arrays), squeeze=False)[0]
    for scale, (ax, array) in enumerate(zip(panels, arrays, strict=True)):
        picture = np.atleast_2d(array)
        rows, columns = picture.shape
        ax.pcolormesh(picture, cmap="Blues", vmin=0.0, vmax=1.6, edgecolors="white", linewidth=0.5)
        ax.set_aspect("equal")
        ax.set_xlim(0, columns)
        ax.set_ylim(rows, 0)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"scale {scale}: {int(array.sum())} of {array.size}", fontsize="small")
        ax.spines[:].set_color(BLUE)
    return figure
