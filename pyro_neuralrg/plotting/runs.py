# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: training and samplers against the exact lines, and configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_neuralrg.arguments import check_integer
from pyro_neuralrg.plotting.curves import Series, known_points
from pyro_neuralrg.plotting.style import (
    BLUE,
    COLOURS,
    GREY,
    SIGNED,
    STYLES,
    VERMILION,
    as_numbers,
    axes_or_new,
    check_named,
    new_figure,
    note,
)
from pyro_neuralrg.statistics import summarise
from pyro_neuralrg.statistics.convergence import LARGEST_RHAT, rank_counts

__all__ = ["configurations", "free_energy", "ranks", "structure_factor", "trace"]

SMOOTHING = 50  # training steps in the running median of the loss
FEW_CHAINS = 5  # up to so many, each chain has a colour of its own in a trace
ROWS = 12  # up to so many, each chain has a histogram of its own in a plot of ranks

Array = npt.NDArray[np.float64]


def free_energy(
    loss: npt.ArrayLike,
    *,
    standard_error: npt.ArrayLike | None = None,
    annealing_steps: int = 0,
    exact: float | None = None,
    estimate: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Training loss against the exact free energy.

    The thin line is the loss of each step, the thick one its running median over 51 steps, of the
    steps at a higher temperature and of the others apart.

    Shown in ``tutorials/figures/fig3a.png``.

    Args:
        loss: Loss of each training step in nats, shape ``(steps,)``.
        standard_error: Its standard error in nats, same shape; drawn as a band.
        annealing_steps: The first steps, taken at a higher temperature: their loss bounds another
            free energy, so they are shaded and left out of the vertical range.
        exact: The exact :math:`-\ln Z` in nats; None where it is not known.
        estimate: Importance-sampling estimate and its standard error after training, in nats.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes, with a note if the last step's loss is not finite.

    Raises:
        ValueError: The loss is empty or not one-dimensional, its errors have another shape, or the
            exact value is not finite.

    >>> free_energy([3.0, 2.0, 1.5], exact=1.0).get_ylabel()
    'free energy $-\\ln Z$ (nats)'
    """
    values = as_numbers("loss", loss)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"loss has shape {values.shape}; accepted: (steps,) with steps >= 1")
    if exact is not None and not np.isfinite(exact):
        raise ValueError(f"exact is {exact}; accepted: a finite number or None")
    ax = axes_or_new(ax)
    steps = np.arange(1, values.size + 1)
    ax.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.6)
    smooth = np.concatenate(
        [_running_median(phase) for phase in np.split(values, [annealing_steps])]
    )
    ax.plot(steps, smooth, color=BLUE, linewidth=1.6, label=r"loss $\geq -\ln Z$")
    if standard_error is not None:
        error = as_numbers("standard_error", standard_error)
        if error.shape != values.shape:
            raise ValueError(
                f"standard_error has shape {error.shape}; accepted: {values.shape}, as loss"
            )
        ax.fill_between(steps, smooth - error, smooth + error, color=BLUE, alpha=0.25, linewidth=0)
    if annealing_steps > 0:
        end = min(annealing_steps, values.size)
        ax.axvspan(1, end, color=GREY, alpha=0.12, linewidth=0, label="higher temperature")
    if estimate is not None:
        last = Series([values.size], [estimate[0]], [estimate[1]])
        for name, (x, mean, error) in known_points(ax, {"importance sampling": last}).items():
            ax.errorbar(
                x, mean, yerr=error, color=VERMILION, marker="o", markersize=4, capsize=3,
                linestyle="none", label=name,
            )  # fmt: skip
    if exact is not None:
        ax.axhline(exact, color="black", linestyle="--", linewidth=1.2, label="exact")
    if not np.isfinite(values[-1]):
        note(ax, "not converged: the loss is not finite")
    _free_energy_range(ax, values, annealing_steps, exact)
    ax.set_xlabel("training step")
    ax.set_ylabel(r"free energy $-\ln Z$ (nats)")
    ax.legend(frameon=False)
    return ax


def structure_factor(
    draws: Mapping[str, npt.ArrayLike], *, exact: float | None = None, ax: Axes | None = None
) -> Axes:
    """Running means of the structure factor, one curve per sampler, against the exact value.

    The band is one standard error: the scatter of the running mean from chain to chain, divided by
    the square root of their number, so it needs no estimate of the autocorrelation; of a single
    chain it is not known. Samplers whose chains have not converged are named with their R-hat.

    Shown in ``tutorials/figures/structure_factor.png``.

    Args:
        draws: For each sampler's name the structure factor of every draw, shape
            ``(chains, draws)``.
        exact: The exact value; None where it is not known.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: There is none, or an entry is empty or not two-dimensional.

    >>> structure_factor({"latent": [[0.5, 0.6], [0.7, 0.4]]}, exact=0.55).get_xlabel()
    'draws per chain'
    """
    check_named("draws", draws)
    ax = axes_or_new(ax)
    curves = {name: _running_mean(name, values) for name, values in draws.items()}
    for index, (name, (steps, mean, error)) in enumerate(known_points(ax, curves).items()):
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        ax.plot(steps, mean, color=colour, linestyle=style, linewidth=1.6, label=name)
        ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
    if exact is not None:
        ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="exact")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("draws per chain")
    ax.set_ylabel(r"structure factor $\langle (\sum_i s_i)^2 \rangle / N^2$")
    ax.legend(frameon=False)
    _note_convergence(ax, draws)
    return ax


def trace(
    draws: npt.ArrayLike,
    *,
    label: str,
    warmup: npt.ArrayLike | None = None,
    exact: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """An observable along the chains; of many chains, three in colour before the others in grey.

    The three are those with the lowest, the middle and the highest median: chains that stay in
    another mode than the rest are among them.

    Shown in ``tutorials/figures/trace.png``.

    Args:
        draws: Of the observable, shape ``(chains, draws)``.
        label: Of its axis, with the unit.
        warmup: The same during warm-up, shape ``(chains, steps)``, drawn on a shaded ground.
        exact: The exact mean; None where it is not known.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes, with a note if the draws have not converged.

    Raises:
        ValueError: An array is empty or not two-dimensional, or the numbers of chains differ.

    >>> trace([[0.1, 0.2, 0.1], [0.3, 0.2, 0.2]], label="magnetisation per site").get_xlabel()
    'draw'
    """
    values = _chains("draws", draws)
    before = np.empty((len(values), 0)) if warmup is None else _chains("warmup", warmup)
    if len(before) != len(values):
        raise ValueError(f"warmup has {len(before)} chains; accepted: {len(values)}, as draws")
    ax = axes_or_new(ax)
    lines = np.concatenate([before, values], axis=1)
    steps = np.arange(1 - before.shape[1], 1 + values.shape[1])
    order = np.argsort(np.median(values, axis=1), kind="stable")
    few = len(lines) <= FEW_CHAINS
    shown = np.arange(len(lines)) if few else order[[0, len(order) // 2, -1]]
    if not few:
        ax.plot(steps, lines.T, color="#BBBBBB", linewidth=0.4, alpha=0.6)
    names = [""] * len(shown) if few else ["lowest: ", "middle: ", "highest: "]
    for index, (chain, name) in enumerate(zip(shown, names, strict=True)):
        ax.plot(
            steps, lines[chain], color=COLOURS[index], linestyle=STYLES[index],
            linewidth=0.9, label=f"{name}chain {chain}",
        )  # fmt: skip
    if before.shape[1]:
        ax.axvspan(steps[0], 0.5, color=GREY, alpha=0.15, linewidth=0, label="warm-up")
    if exact is not None:
        ax.axhline(exact, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="exact mean")
    ax.set_xlabel("draw" if warmup is None else "draw (warm-up: 0 and below)")
    ax.set_ylabel(label)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    _note_convergence(ax, {"": values})
    return ax


def ranks(draws: npt.ArrayLike, *, label: str, bins: int = 20, ax: Axes | None = None) -> Axes:
    """How the draws of each chain rank among all draws: evenly, if the chains agree.

    Up to twelve chains have a histogram each, about a line at the even count; more are the rows of
    a picture, dark where a chain has more draws than its share.

    Shown in ``tutorials/figures/ranks.png``.

    Args:
        draws: Of the observable, shape ``(chains, draws)``.
        label: Of the observable.
        bins: Of the ranks.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The Axes, with a note if the draws have not converged.

    Raises:
        ValueError: ``draws`` is empty, not two-dimensional or has fewer entries than ``bins``.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, "Rank-normalization, folding, and
        localization: an improved R-hat", Bayesian Analysis 16 (2021).

    >>> ranks([[0.1, 0.2, 0.1], [0.3, 0.2, 0.2]], label="magnetisation", bins=3).get_ylabel()
    'chain'
    """
    values = _chains("draws", draws)
    relative = rank_counts(values, bins) * bins / values.shape[1]
    ax = axes_or_new(ax)
    chains = len(relative)
    edges = np.linspace(0, values.size, bins + 1)
    if chains <= ROWS:
        height = 0.8 / max(2.0, float(relative.max()))  # a row holds at least twice the even count
        for chain, row in enumerate(relative):
            ax.stairs(chain + height * row, edges, baseline=chain, fill=True, color="#9ECAE1")
            ax.stairs(chain + height * row, edges, baseline=chain, color=BLUE, linewidth=0.8)
            even = "even" if chain == 0 else None
            ax.plot(
                edges[[0, -1]], [chain + height] * 2, color="black", linestyle="--",
                linewidth=0.9, label=even,
            )  # fmt: skip
        ax.set_yticks(range(chains))
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        image = ax.pcolormesh(
            edges, np.arange(chains + 1) - 0.5, relative, cmap="Greys",
            vmin=0.0, vmax=max(2.0, float(np.quantile(relative, 0.99))),
        )  # fmt: skip
        ax.figure.colorbar(image, ax=ax, label="draws of the chain / even share", extend="max")
    ax.set_xlabel(f"rank of {label} among all draws")
    ax.set_ylabel("chain")
    _note_convergence(ax, {"": values})
    return ax


def configurations(
    fields: Mapping[str, npt.ArrayLike], *, count: int = 4, figure: Figure | None = None
) -> npt.NDArray[Any]:
    """Fields of several samplers, one row of panels per sampler, all on one colour scale.

    A one-dimensional lattice is drawn as a stripe, of a three-dimensional one the middle layer.

    Shown in ``tutorials/figures/configurations.png``.

    Args:
        fields: For each sampler's name an array of fields, shape ``(number,) + shape``.
        count: How many fields of each to draw.
        figure: Figure to draw on; None makes a new one.

    Returns:
        The Axes, an array of shape ``(samplers, count)``.

    Raises:
        ValueError: There is no sampler, ``count`` is not positive, or an entry holds fewer than
            ``count`` fields, fields of more than three dimensions or values that are not finite.

    >>> configurations({"latent": np.ones((4, 8, 8))}, count=2).shape
    (1, 2)
    """
    check_named("fields", fields)
    check_integer("count", count, 1)
    pictures = {name: _pictures(name, values, count) for name, values in fields.items()}
    if figure is None:
        figure = new_figure(2.0 * count + 1.2, 2.2 * len(pictures))
    axes = figure.subplots(len(pictures), count, squeeze=False)
    limit = max(float(np.quantile(np.abs(p), 0.99)) for p in pictures.values()) or 1.0
    for row, (name, panels) in zip(axes, pictures.items(), strict=True):
        for ax, panel in zip(row, panels, strict=True):
            image = ax.imshow(panel, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="equal")
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(name)
    figure.colorbar(image, ax=axes, label="field $x$ (dimensionless)", shrink=0.8, extend="both")
    return axes


def _chains(name: str, values: npt.ArrayLike) -> Array:
    array = as_numbers(name, values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted: (chains, draws)")
    return array


def _note_convergence(ax: Axes, draws: Mapping[str, npt.ArrayLike]) -> None:
    """Say above the axes which of the draws have not converged, in words and with the figure."""
    notes = []
    for name, values in draws.items():
        finding = _finding(np.asarray(values, dtype=np.float64))
        if finding:
            notes.append(f"{name}: {finding}" if name else finding)
    if notes:
        note(ax, "not converged: " + ", ".join(notes))


def _finding(values: Array) -> str:
    """What speaks against convergence; draws too few to tell do as well."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return f"{bad} draws are not finite"
    if np.ptp(values) == 0:
        return ""
    rhat = summarise(values).rhat
    if np.isnan(rhat):
        return "too few chains or draws for R-hat"
    return f"R-hat = {rhat:.3g}" if rhat > LARGEST_RHAT else ""


def _running_median(values: Array) -> Array:
    """The median of the steps around each step."""
    half = SMOOTHING // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(values.size)]
    return np.array([np.median(window) for window in windows])


def _free_energy_range(ax: Axes, values: Array, annealing_steps: int, exact: float | None) -> None:
    """Show the end of training: the first steps would squeeze everything else into a line."""
    shown = values[min(annealing_steps, values.size - 1) :]
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        return
    top = float(np.quantile(shown, 0.9))
    bottom = float(shown.min()) if exact is None else min(exact, float(shown.min()))
    margin = 0.15 * max(top - bottom, 1e-3)
    ax.set_ylim(bottom - margin, top + margin)


def _running_mean(name: str, values: npt.ArrayLike) -> Series:
    """Mean over chains of each chain's running mean, and its error, NaN of a single chain."""
    array = _chains(f"draws[{name!r}]", values)
    chains, draws = array.shape
    steps = np.arange(1, draws + 1)
    running = np.cumsum(array, axis=1) / steps
    scatter = running.std(axis=0, ddof=1) if chains > 1 else np.full(draws, np.nan)
    return Series(steps, running.mean(axis=0), scatter / np.sqrt(chains))


def _pictures(name: str, values: npt.ArrayLike, count: int) -> Sequence[Array]:
    """Two-dimensional pictures of the first ``count`` fields."""
    array = as_numbers(f"fields[{name!r}]", values)
    if not 2 <= array.ndim <= 4 or array.shape[0] < count:
        raise ValueError(
            f"fields[{name!r}] has shape {array.shape}; accepted: at least {count} fields of a "
            "lattice with 1 to 3 dimensions"
        )
    if not np.isfinite(array[:count]).all():
        raise ValueError(f"fields[{name!r}] has values that are not finite; accepted: finite ones")
    if array.ndim == 2:
        return list(array[:count, None, :])
    if array.ndim == 4:
        return list(array[:count, :, :, array.shape[3] // 2])
    return list(array[:count])
