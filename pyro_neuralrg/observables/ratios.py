# SPDX-License-Identifier: Apache-2.0
"""Quantities that are functions of several means, from draws of any kind, with standard errors.

All take series of shape ``(chains, draws)``, numpy arrays or torch tensors measured on the same
draws (by ``target.observables()``), or weighted means of the same samples, by
:func:`~pyro_neuralrg.free_energy.expectations` or ``reweight``, and return an
:class:`~pyro_neuralrg.statistics.Estimate` by :func:`~pyro_neuralrg.statistics.jackknife`. As only
means enter, series averaged over the spins given x serve as well as those of sampled spins. Shapes
are the lattice's, temperatures T in units of J / k_B::

    found = expectations(target, flow, target.observables()).observables
    susceptibility(found["structure_factor"], target.shape, target.temperature)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pyro_neuralrg.arguments import check_integer, check_number
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.statistics import Estimate, jackknife


def susceptibility(
    structure_factor: Any, shape: Iterable[int], temperature: float, magnetisation: Any = None
) -> Estimate:
    r"""Magnetic susceptibility per site, in units of 1 / J.

    :math:`\chi = N \langle m^2\rangle / T`, the response of an even model above its transition.
    With ``magnetisation`` the connected one, :math:`N (\langle m^2\rangle -
    \langle\cdot\rangle^2) / T`: subtract <m> in a field (exactly d<m> / dh), the mean of the
    absolute value of m in an ordered phase that a finite lattice visits with both signs.

    Args:
        structure_factor: series, or weighted mean, of m^2.
        shape: of the lattice.
        temperature: T in units of J / k_B.
        magnetisation: series of m, or of its absolute value; None subtracts nothing.

    Example:
        >>> import torch
        >>> susceptibility(torch.full((40, 5), 0.5), (4, 4), 2.0).value
        4.0
    """
    temperature = check_number("temperature", temperature, "a finite number > 0", above=0)
    scale = math.prod(check_shape(shape)) / temperature
    series = [structure_factor] if magnetisation is None else [structure_factor, magnetisation]
    return jackknife(lambda square, mean=0.0: scale * (square - mean**2), *series)


def binder_cumulant(structure_factor: Any, fourth_moment: Any) -> Estimate:
    r"""Binder's cumulant :math:`U = 1 - \langle m^4\rangle / (3 \langle m^2\rangle^2)`.

    2/3 in the ordered phase, 0 in the disordered one, independent of the size at the transition.

    Args:
        structure_factor: series of m^2; if it is zero throughout, the estimate is NaN.
        fourth_moment: series of m^4.

    References:
        K. Binder, Z. Phys. B 43, 119 (1981).

    Example:
        >>> import torch
        >>> f"{binder_cumulant(torch.ones(40, 5), torch.ones(40, 5)).value:.4f}"
        '0.6667'
    """
    return jackknife(
        lambda square, fourth: 1 - fourth / (3 * square**2) if square else math.nan,
        structure_factor,
        fourth_moment,
    )


def specific_heat(
    internal_energy: Any, squared_internal_energy: Any, shape: Iterable[int], temperature: float
) -> Estimate:
    r"""Specific heat per site, :math:`(\langle H^2\rangle - \langle H\rangle^2) / (N T^2)`, in k_B.

    Args:
        internal_energy: series of H / N.
        squared_internal_energy: series of (H / N)^2; not the square of energies averaged over the
            spins given x, which lacks their variance. The difference loses N-fold precision: of
            large lattices measure float64 fields.
        shape: of the lattice.
        temperature: T in units of J / k_B.

    Example:
        >>> import torch
        >>> energy = torch.tensor([[-1.0, -2.0]]).expand(40, 2)
        >>> specific_heat(energy, energy**2, (4, 4), 2.0).value
        1.0
    """
    temperature = check_number("temperature", temperature, "a finite number > 0", above=0)
    scale = math.prod(check_shape(shape)) / temperature**2
    return jackknife(
        lambda mean, square: scale * (square - mean**2), internal_energy, squared_internal_energy
    )


def correlation_length(uniform: Any, lowest: Any, side: int) -> Estimate:
    r"""Second-moment correlation length along one axis, in units of the lattice spacing.

    :math:`\xi = \sqrt{S(0) / S(k) - 1} / (2 \sin(\pi / L))` with :math:`k = 2\pi / L` along the
    axis: exact where :math:`S(k) \propto 1 / (4 \sin^2(k/2) + \xi^{-2})`, that of a free field on a
    periodic lattice. NaN if S(0) < S(k), for all draws or all but one block.

    Args:
        uniform: series of S(0).
        lowest: series of S(k), :func:`mode_structure_factor` at index 1 of the axis, 0 of others.
        side: L, at least 2.

    References:
        F. Cooper, B. Freedman and D. Preston, Nucl. Phys. B 210, 210 (1982).

    Example:
        >>> import torch
        >>> found = correlation_length(torch.full((40, 5), 0.3), torch.full((40, 5), 0.1), 6)
        >>> f"{found.value:.4f}"
        '1.4142'
    """
    unit = 2 * math.sin(math.pi / check_integer("side", side, 2))

    def length(zero: float, low: float) -> float:
        ratio = zero / low - 1 if low else math.nan
        return math.sqrt(ratio) / unit if ratio >= 0 else math.nan

    return jackknife(length, uniform, lowest)
