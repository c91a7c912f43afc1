# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures of quantities over temperatures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pyro_neuralrg.arguments import check_number
from pyro_neuralrg.free_energy import Thermodynamics
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
