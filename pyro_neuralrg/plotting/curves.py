# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of quantities over temperatures and other parameters, of one lattice and of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_neuralrg.arguments import check_number, check_type
from pyro_neuralrg.free_energy import ScalingCollapse, Thermodynamics
from pyro_neuralrg.free_energy.critical_points import check_curves
from pyro_neuralrg.plotting.style import (
    Series,
    check_named,
    draw_bars,
    figure_or_new,
    known_points,
    look,
)

PANELS = {
    "energy": "energy per site (J)",
    "specific_heat": "specific heat per site ($k_B$)",
    "susceptibility": r"susceptibility $N \langle m^2 \rangle / T$ (1/J)",
    "binder": "Binder cumulant",
}


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
