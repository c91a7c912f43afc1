# SPDX-License-Identifier: Apache-2.0
"""Figures of runs against exact lines, of configurations, phase diagrams and collapses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pyro_neuralrg.arguments import check_array, check_integer, check_number, check_type
from pyro_neuralrg.free_energy import ScalingCollapse, Thermodynamics
from pyro_neuralrg.free_energy.critical_points import check_curves
from pyro_neuralrg.plotting.style import (
    BLUE,
    COLOURS,
    GREY,
    STYLES,
    Series,
    axes_or_new,
    check_named,
    draw_band,
    draw_bars,
    draw_field,
    exact_line,
    figure_or_new,
    known_points,
    legend_beside,
    look,
    note,
)
from pyro_neuralrg.statistics import summarise
from pyro_neuralrg.statistics.summary import LARGEST_RHAT, rank_counts

PANELS = {
    "energy": "energy per site (J)",
    "specific_heat": "specific heat per site ($k_B$)",
    "susceptibility": r"susceptibility $N \langle m^2 \rangle / T$ (1/J)",
    "binder": "Binder cumulant",
}

WITH_LEGEND = 7.5  # width of a figure with its legend beside, in inches
SMOOTHING = 50  # training steps in the running median of the loss, at most
MAX_COLOURED_CHAINS = 5  # up to so many, each chain has a colour of its own in a trace
MAX_HISTOGRAMS = 12  # up to so many, each chain has a histogram of its own in a plot of ranks


def plot_free_energy(
    loss: npt.ArrayLike,
    *,
    standard_error: npt.ArrayLike | None = None,
    annealing_steps: int = 0,
    exact: float | None = None,
    estimate: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Training loss against the exact free energy.

    The thin line is the loss of each step, the thick one its running median over a twentieth of the
    steps, 51 at most, of those at a higher temperature and of the others apart; a note says if the
    last loss is not finite. Shown in ``tutorials/figures/fig3a.png``.

    Args:
        loss: loss of each training step in nats, shape ``(steps,)``.
        standard_error: its standard error in nats, same shape; drawn as a band.
        annealing_steps: the first steps, taken at a higher temperature: their loss bounds another
            free energy, so they are shaded and left out of the vertical range.
        exact: the exact :math:`-\ln Z` in nats; None where it is not known.
        estimate: importance-sampling estimate and its standard error after training, in nats.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> plot_free_energy([3.0, 2.0, 1.5], exact=1.0).get_ylabel()
        'free energy $-\\ln Z$ (nats)'
    """
    values = check_array("loss", loss)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"loss has shape {values.shape}; accepted: (steps,) with steps >= 1")
    ax = axes_or_new(ax, WITH_LEGEND)
    steps = np.arange(1, values.size + 1)
    ax.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.6)
    smooth = np.concatenate([_running_median(part) for part in np.split(values, [annealing_steps])])
    ax.plot(steps, smooth, color=BLUE, linewidth=1.6, label="loss $\\geq -\\ln Z$,\nrunning median")
    if standard_error is not None:
        error = check_array("standard_error", standard_error)
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
        for name, points in known_points(ax, {"importance sampling": last}).items():
            draw_bars(ax, points, 1, name, marker="o")
    exact_line(ax, exact)
    if not np.isfinite(values[-1]):
        note(ax, "not converged: the loss is not finite")
    _show_end_of_training(ax, values, annealing_steps, exact)
    ax.set(xlabel="training step", ylabel=r"free energy $-\ln Z$ (nats)")
    legend_beside(ax)
    return ax


def plot_estimates(found: Mapping[str, Series], *, ax: Axes | None = None) -> Axes:
    """Estimates with error bars, for example on the Axes of :func:`plot_free_energy`.

    By name; the legend is renewed. Shown in ``tutorials/figures/fig3a.png``.

    Example:
        >>> len(plot_estimates({"importance": Series([1, 2], [3.0, 2.0], [0.1, 0.1])}).containers)
        1
    """
    ax = axes_or_new(ax)
    for index, (name, points) in enumerate(known_points(ax, found).items()):
        draw_bars(ax, points, 1 + index % (len(COLOURS) - 1), name)  # the first is that of a loss
    legend_beside(ax)
    return ax


def plot_structure_factor(
    draws: Mapping[str, npt.ArrayLike], *, exact: float | None = None, ax: Axes | None = None
) -> Axes:
    """Running means of the structure factor, one curve per sampler, against the exact value.

    For each sampler's name the structure factor of every draw, shape ``(chains, draws)``. The band
    is one standard error, the scatter of the running mean from chain to chain divided by the square
    root of their number; of a single chain it is not known. Samplers whose chains have not
    converged are named with their R-hat. Shown in ``tutorials/figures/structure_factor.png``.

    Example:
        >>> plot_structure_factor({"latent": [[0.5, 0.6], [0.7, 0.4]]}, exact=0.55).get_xlabel()
        'draws per chain'
    """
    check_named("draws", draws)
    ax = axes_or_new(ax, WITH_LEGEND)
    curves = {name: _running_mean(name, values) for name, values in draws.items()}
    for index, (name, points) in enumerate(known_points(ax, curves).items()):
        draw_band(ax, points, index, name)
    exact_line(ax, exact)
    _show_after_the_start(ax, curves, exact)
    factor = r"structure factor $\langle (\sum_i s_i)^2 \rangle / N^2$"
    ax.set(xlabel="draws per chain", ylabel=factor)
    legend_beside(ax)
    _note_convergence(ax, draws)
    return ax


def plot_trace(
    draws: npt.ArrayLike,
    *,
    label: str,
    warmup: npt.ArrayLike | None = None,
    exact: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """An observable along the chains, with a note if they have not converged.

    Of many chains those with the lowest, the middle and the highest median are in colour before
    the others in grey. Shown in ``tutorials/figures/trace.png``.

    Args:
        draws: values of the observable, shape ``(chains, draws)``.
        label: of its axis, with the unit.
        warmup: the same during warm-up, shape ``(chains, steps)``, drawn on a shaded ground.
        exact: the exact mean; None where it is not known.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> plot_trace([[0.1, 0.2, 0.1], [0.3, 0.2, 0.2]], label="magnetisation").get_xlabel()
        'draw'
    """
    values = _chains("draws", draws)
    before = np.empty((len(values), 0)) if warmup is None else _chains("warmup", warmup)
    if len(before) != len(values):
        raise ValueError(f"warmup has {len(before)} chains; accepted: {len(values)}, as draws")
    ax = axes_or_new(ax)
    lines = np.concatenate([before, values], axis=1)
    steps = np.arange(1 - before.shape[1], 1 + values.shape[1])
    named = {f"chain {chain}": chain for chain in range(len(lines))}
    if len(lines) > MAX_COLOURED_CHAINS:
        ax.plot(steps, lines.T, color="#BBBBBB", linewidth=0.4, alpha=0.6)
        order = np.argsort(np.median(values, axis=1), kind="stable")
        chosen = {"lowest": order[0], "middle": order[len(order) // 2], "highest": order[-1]}
        named = {f"{name}: chain {chain}": chain for name, chain in chosen.items()}
    for colour, style, (name, chain) in zip(COLOURS, STYLES, named.items(), strict=False):
        ax.plot(steps, lines[chain], color=colour, linestyle=style, linewidth=0.9, label=name)
    if before.shape[1]:
        ax.axvspan(steps[0], 0.5, color=GREY, alpha=0.15, linewidth=0, label="warm-up")
    exact_line(ax, exact, "exact mean")
    below = "" if warmup is None else " (warm-up: 0 and below)"
    ax.set(xlabel=f"draw{below}", ylabel=label)
    legend_beside(ax)
    _note_convergence(ax, {"": values})
    return ax


def plot_ranks(draws: npt.ArrayLike, *, label: str, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Ranks of the draws of each chain among all draws: even, if the chains agree.

    Up to twelve chains have a histogram each, about a line at the even count; more are the rows of
    a picture, dark where a chain has more draws than its share (A. Vehtari et al., Bayesian
    Analysis 16 (2021)). Shown in ``tutorials/figures/ranks.png``.

    Args:
        draws: values of the observable, shape ``(chains, draws)``.
        label: name of the observable.
        bins: number of bins of the ranks.
        ax: Axes to draw on; None makes a new figure.

    Example:
        >>> ax = plot_ranks([[0.1, 0.2, 0.1], [0.3, 0.2, 0.2]], label="magnetisation", bins=3)
        >>> ax.get_ylabel()
        'chain'
    """
    values = _chains("draws", draws)
    relative = rank_counts(values, bins) * bins / values.shape[1]
    ax = axes_or_new(ax)
    chains = len(relative)
    edges = np.linspace(0, values.size, bins + 1)
    if chains <= MAX_HISTOGRAMS:
        height = 0.8 / max(2.0, float(relative.max()))  # a row holds at least twice the even count
        for chain, row in enumerate(relative):
            ax.stairs(chain + height * row, edges, baseline=chain, fill=True, color="#9ECAE1")
            ax.stairs(chain + height * row, edges, baseline=chain, color=BLUE, linewidth=0.8)
        even = np.arange(chains) + height
        ax.hlines(even, 0, values.size, color="black", linestyle="--", linewidth=0.9, label="even")
        ax.set_yticks(range(chains))
        legend_beside(ax)
    else:
        rows, top = np.arange(chains + 1) - 0.5, max(2.0, float(np.quantile(relative, 0.99)))
        image = ax.pcolormesh(edges, rows, relative, cmap="Greys", vmin=0.0, vmax=top)
        ax.figure.colorbar(image, ax=ax, label="draws of the chain / even share", extend="max")
    ax.set(xlabel=f"rank of {label} among all draws", ylabel="chain")
    _note_convergence(ax, {"": values})
    return ax


def plot_configurations(
    fields: Mapping[str, npt.ArrayLike],
    *,
    count: int = 4,
    spins: Mapping[str, npt.ArrayLike] | None = None,
    figure: Figure | None = None,
) -> npt.NDArray[Any]:
    """Fields of several samplers, one row of panels per sampler, all on one colour scale.

    For each sampler's name the first ``count`` of its fields, shape ``(number,) + shape``, drawn as
    stripes in one dimension, by their middle slice in three; if ``spins`` are given, in the same
    form, those of a field in black and white beside it. Returns the Axes, an array of shape
    ``(samplers, count)``, with spins ``(samplers, 2 * count)``. Shown in
    ``tutorials/figures/configurations.png``.

    Example:
        >>> plot_configurations({"latent": np.ones((4, 8, 8))}, count=2).shape
        (1, 2)
    """
    check_named("fields", fields)
    check_integer("count", count, 1)
    if spins is not None:
        check_named("spins", spins)
        if spins.keys() != fields.keys():
            raise ValueError(f"spins has {list(spins)}; accepted: {list(fields)}, as fields")
    arrays = {name: _first_fields(f"fields[{name!r}]", x, count) for name, x in fields.items()}
    drawn = {} if spins is None else spins
    beside = {name: _first_fields(f"spins[{name!r}]", x, count) for name, x in drawn.items()}
    each, side = (2, 1.4) if beside else (1, 2.0)
    figure = figure_or_new(figure, side * each * count + 1.2, (side + 0.2) * len(arrays))
    axes = figure.subplots(len(arrays), each * count, squeeze=False)
    limit = max(float(np.quantile(np.abs(x), 0.99)) for x in arrays.values()) or 1.0
    for row, (name, array) in zip(axes, arrays.items(), strict=True):
        for ax, field in zip(row[::each], array, strict=True):
            image = draw_field(ax, field, Normalize(-limit, limit))
        for ax, signs in zip(row[1::2], beside.get(name, ()), strict=False):
            draw_field(ax, signs, Normalize(-1, 1)).set_cmap("gray")
        row[0].set_ylabel(name)
    bar: dict[str, Any] = {"shrink": 0.8, "extend": "both"}
    figure.colorbar(image, ax=axes, label="field $x$ (dimensionless)", **bar)
    return axes


def plot_thermodynamics(
    found: Thermodynamics | Mapping[str, Thermodynamics],
    *,
    critical: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Energy, specific heat, susceptibility and Binder cumulant against temperature.

    Points with errors are those by importance weights; lines are exact, where that is known at the
    temperatures of the points. Shown in ``tutorials/figures/amortised.png``.

    Args:
        found: results of :func:`~pyro_neuralrg.free_energy.thermodynamics`, one or several by name,
            such as the side of each lattice.
        critical: temperature of a dotted line, in units of J / k_B; None draws none.
        figure: to draw on; None makes a new one.

    Example:
        >>> from pyro_neuralrg import distributions, free_energy, potentials
        >>> family = potentials.IsingDualFamily((1,), (2.0, 3.0))
        >>> flow = family.flow(base=distributions.StandardNormal())
        >>> found = free_energy.thermodynamics(family, flow, [2.0, 3.0], 500)
        >>> len(plot_thermodynamics(found).axes)
        4
    """
    named = {"importance sampling": found} if isinstance(found, Thermodynamics) else found
    check_named("found", named, Thermodynamics)
    figure = figure_or_new(figure, 9.0, 6.5)
    for ax, (name, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        curves = {
            key: Series(one.temperature, getattr(one, name), getattr(one, f"{name}_se"))
            for key, one in named.items()
        }
        for index, (key, points) in enumerate(known_points(ax, curves).items()):
            draw_bars(ax, points, index, key)
            exact = getattr(named[key], f"exact_{name}", None)
            if exact is not None and np.isfinite(exact).any():
                order = np.argsort(named[key].temperature)
                style = {"color": look(index)["color"], "linestyle": look(index)["linestyle"]}
                line = named[key].temperature[order], exact[order]
                ax.plot(*line, linewidth=1.0, label=f"{key}, exact", **style)
        if critical is not None:
            at = check_number("critical", critical, "a finite number > 0", above=0)
            ax.axvline(at, color="black", linewidth=0.8, linestyle=":")
        ax.set(xlabel="temperature (J/$k_B$)", ylabel=label)
        ax.legend(frameon=False, fontsize="small")
    return figure


def _chains(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = check_array(name, values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted: (chains, draws)")
    return array


def _note_convergence(ax: Axes, draws: Mapping[str, npt.ArrayLike]) -> None:
    """Say above the axes which of the draws have not converged, in words and with the figure."""
    found = {name: _doubt(np.asarray(values, dtype=np.float64)) for name, values in draws.items()}
    notes = [f"{name}: {doubt}" if name else doubt for name, doubt in found.items() if doubt]
    if notes:
        note(ax, "not converged: " + ", ".join(notes))


def _doubt(values: npt.NDArray[np.float64]) -> str:
    """A reason against convergence; draws too few to tell are one."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return f"{bad} draws are not finite"
    if np.ptp(values) == 0:
        return ""
    rhat = summarise(values).rhat
    if np.isnan(rhat):
        return "too few chains or draws for R-hat"
    return f"R-hat = {rhat:.3g}" if rhat > LARGEST_RHAT else ""


def _running_median(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The median of the steps around each step."""
    half = min(SMOOTHING, values.size // 20) // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(values.size)]
    return np.array([np.median(window) for window in windows])


def _show_end_of_training(
    ax: Axes, values: npt.NDArray[np.float64], annealing_steps: int, exact: float | None
) -> None:
    """Set the vertical range: the first steps would squeeze everything else into a line."""
    shown = values[min(annealing_steps, values.size - 1) :]
    shown = shown[np.isfinite(shown)]
    if shown.size:
        top = float(np.quantile(shown, 0.9))
        bottom = min(float(shown.min()), np.inf if exact is None else exact)
        margin = 0.15 * max(top - bottom, 1e-3)
        ax.set_ylim(bottom - margin, top + margin)


def _show_after_the_start(ax: Axes, curves: Mapping[str, Series], exact: float | None) -> None:
    """Set the vertical range: all bands but for the first tenth of the draws, and the exact value.

    The first means are of few draws, and from zero on the differences would be a tenth of it.
    """
    shown = [np.empty(0) if exact is None else np.array([exact])]
    for curve in curves.values():
        steps, mean, error = curve.finite()
        late, width = 10 * steps > steps[-1:], np.nan_to_num(error)
        shown += [(mean - width)[late], (mean + width)[late]]
    known = np.concatenate(shown)
    if known.size and np.ptp(known) > 0:
        margin = 0.1 * np.ptp(known)
        ax.set_ylim(known.min() - margin, known.max() + margin)


def _running_mean(name: str, values: npt.ArrayLike) -> Series:
    """Mean over chains of each chain's running mean, and its error, NaN of a single chain."""
    array = _chains(f"draws[{name!r}]", values)
    chains, draws = array.shape
    steps = np.arange(1, draws + 1)
    running = np.cumsum(array, axis=1) / steps
    scatter = running.std(axis=0, ddof=1) if chains > 1 else np.full(draws, np.nan)
    return Series(steps, running.mean(axis=0), scatter / np.sqrt(chains))


def _first_fields(name: str, values: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """The first fields, checked."""
    array = check_array(name, values)
    if not 2 <= array.ndim <= 4 or len(array) < count or not np.isfinite(array[:count]).all():
        raise ValueError(
            f"{name} has shape {array.shape} or values that are not finite; accepted: at "
            f"least {count} finite fields of a lattice with 1 to 3 dimensions"
        )
    return array[:count]


def plot_collapse(
    curves: Mapping[int, Any],
    found: ScalingCollapse,
    *,
    names: tuple[str, str] = ("coupling", "Binder cumulant"),
    critical: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    r"""Curves of several sizes that cross, and the same against :math:`(p - p_c) L^{1/\nu}`.

    Shown in ``tutorials/figures/critical_points.png``.

    Args:
        curves: as of :func:`~pyro_neuralrg.free_energy.crossings`.
        found: result of :func:`~pyro_neuralrg.free_energy.scaling_collapse`; a band shows its
            critical parameter with the error.
        names: of the parameter and of the quantity.
        critical: known critical parameter, for a dotted line; None draws none.
        figure: to draw on; None makes a new one.

    Example:
        >>> from pyro_neuralrg import free_energy
        >>> t = np.linspace(-0.1, 0.1, 5)
        >>> curves = {L: (2.27 + t, 0.6 - 0.1 * L * t, 0 * t + 0.01) for L in (8, 16)}
        >>> found = free_energy.scaling_collapse(curves, degree=1)
        >>> len(plot_collapse(curves, found).axes)
        2
    """
    checked = check_curves(curves)
    check_type("found", found, ScalingCollapse, "a ScalingCollapse")
    figure = figure_or_new(figure, 9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    p_c, error = found.parameter
    for index, (side, curve) in enumerate(checked.items()):
        scaled = (curve.parameter - p_c) * side ** (1 / found.nu.value)
        line = look(index)["linestyle"]
        draw_bars(left, curve, index, f"L = {side}", linestyle=line)
        draw_bars(right, curve._replace(parameter=scaled), index, f"L = {side}")
    left.axvspan(p_c - error, p_c + error, color="black", alpha=0.15, linewidth=0)
    if critical is not None:
        at = check_number("critical", critical, "a finite number or None")
        left.axvline(at, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel=names[0], ylabel=names[1])
    right.set(xlabel=rf"$(p - p_c) L^{{1/\nu}}$, $p_c$ = {found.parameter}, $\nu$ = {found.nu}")
    left.legend(frameon=False, fontsize="small")
    return figure
