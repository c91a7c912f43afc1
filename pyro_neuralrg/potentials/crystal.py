# SPDX-License-Identifier: Apache-2.0
"""Crystals as fields of displacements: Lennard-Jones atoms about the sites of a lattice."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_choice, check_number, check_values
from pyro_neuralrg.lattice import check_shape
from pyro_neuralrg.observables.configurations import Observable
from pyro_neuralrg.potentials.base import ORIGIN, LatticePotential
from pyro_neuralrg.statistics.draws import FloatArray

PAIR_MARGIN = 0.5
"""Pairs are closer than the cutoff and this at their sites: farther ones do not come near."""
WALL = 10.0
"""Strength of the wall, in nats, that keeps atoms within a nearest neighbour's distance."""


class Structure(NamedTuple):
    """A crystal structure: edges of its cell and sites in it, in units of an edge; sites a volume.

    ``nearest`` is the distance of nearest neighbours in that unit.
    """

    edges: tuple[tuple[float, ...], ...]
    sites: tuple[tuple[float, ...], ...]
    nearest: float


STRUCTURES = {
    "triangular": Structure(((1.0, 0.0), (0.5, math.sqrt(0.75))), ((0.0, 0.0),), 1.0),
    "fcc": Structure(
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)),
        math.sqrt(0.5),
    ),
}


class LennardJonesCrystal(LatticePotential):
    r"""Atoms about the sites of a periodic crystal, in reduced units (epsilon = sigma = k_B = 1).

    .. math:: E(u) = \frac{1}{T} \sum_{i < j} v(|R_{ij} + u_j - u_i|) + \frac{\kappa}{2} |q_0|^2

    over all pairs and their images, with :math:`v(r) = 4 (r^{-12} - r^{-6})` truncated at the
    cutoff and shifted to zero there. A field is ``cells + (components,)``: the displacements of the
    atoms of each cell, one after the other. Only their differences matter; the centre of mass
    :math:`q_0 = \sum_i u_i / \sqrt N` has a normal of precision :math:`\kappa` of its own, whose
    integral is known: :meth:`helmholtz` takes it off. Z is that of one arrangement of the atoms: a
    wall keeps each within the distance of nearest neighbours, far beyond where it goes.

    Args:
        cells: of the periodic box along each axis: two of "triangular" (rhombic cells of one atom),
            three of "fcc" (cubic cells of four).
        density: number density rho sigma^d.
        temperature: k_B T / epsilon.
        structure: "triangular" or "fcc"; None: by the number of axes.
        cutoff: of v.

    Attributes:
        spectrum: covariance of the harmonic crystal, matrices of its modes: T times the inverse of
            the dynamical matrix. ``flow(depth=0)`` is that crystal alone.
        atoms: N.
        dimensions: d.
        volume: of the box.

    Raises:
        ValueError: also if the crystal is not stable, having modes without a restoring force.

    References:
        P. Wirnsberger et al., Mach. Learn.: Sci. Technol. 3, 025009 (2022); J. M. Polson, E.
        Trizac, S. Pronk, D. Frenkel, J. Chem. Phys. 112, 5339 (2000), the centre of mass.

    Example:
        >>> crystal = LennardJonesCrystal((4, 4), density=1.0, temperature=1.0)
        >>> crystal.shape, crystal.atoms
        ((4, 4, 2), 16)
        >>> crystal.energy(torch.zeros(4, 4, 2)) / crystal.atoms  # of the sites, per atom
        tensor(-3.0413)
    """

    _shown = ("density", "temperature", "structure", "cutoff")

    def __init__(
        self,
        cells: Iterable[int],
        density: float,
        temperature: float,
        *,
        structure: str | None = None,
        cutoff: float = 2.7,
    ) -> None:
        sides = check_shape(cells, "cells")
        if structure is None:
            if len(sides) == 1:
                raise ValueError(
                    f"cells is {sides}; accepted: two sides (triangular) or three (fcc)"
                )
            structure = "triangular" if len(sides) == 2 else "fcc"
        self.structure = check_choice("structure", structure, STRUCTURES)
        self.density = check_number("density", density, "a finite number > 0", above=0)
        self.temperature = check_number("temperature", temperature, "a number > 0", above=0)
        self.cutoff = check_number("cutoff", cutoff, "a finite number > 1", above=1)
        edges, sites, nearest = STRUCTURES[self.structure]
        self.dimensions = len(edges)
        if len(sides) != self.dimensions:
            raise ValueError(
                f"cells is {sides}; accepted for {structure}: {self.dimensions} integers >= 1"
            )
        self.atoms = len(sites) * math.prod(sides)
        self.volume = self.atoms / self.density
        scale = (len(sites) / (self.density * abs(np.linalg.det(edges)))) ** (1 / self.dimensions)
        self.nearest = scale * nearest
        self.linear_below: float | None = None
        lattice, basis = scale * np.array(edges), scale * np.array(sites)
        first, second, distances = _pairs(sides, lattice, basis, cutoff + PAIR_MARGIN)
        apart = first != second  # images of one atom keep their distance
        self._of_images = float(self._pair_energy(torch.from_numpy(distances[~apart])).sum())
        self._first, self._second, vectors = first[apart], second[apart], distances[apart]
        self.stiffness, spectrum = self._harmonic(sides, len(sites), vectors)
        super().__init__(sides, spectrum=spectrum, components=len(sites) * self.dimensions)
        corners = np.moveaxis(np.indices(sides), 0, -1) @ lattice
        places = (corners[..., None, :] + basis).reshape(self.shape)
        self._register("sites", torch.from_numpy(places))
        self._register("vectors", torch.from_numpy(vectors))

    @property
    def sites(self) -> Tensor:
        """Where the atoms stand at x = 0, float64 of shape ``shape``."""
        return self._constants["sites"][torch.float64]

    def linearised(self, below: float = 0.8) -> LennardJonesCrystal:
        """The same crystal whose v is a line below this distance, to be trained with.

        With r^-12 the mean energy of any smooth density is infinite. Free energies are estimated
        with the crystal itself, whose weights are bounded there.
        """
        other = copy.copy(self)
        other.linear_below = check_number("below", below, "a number > 0, below 1", above=0, below=1)
        return other

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        u, centre = self._displacements(x)
        vectors = self._constant("vectors", x)
        bonds = self._pair_energy(vectors + u[..., self._second, :] - u[..., self._first, :])
        strayed = (u - centre).square().sum(-1) / self.nearest**2 - 1.0
        wall = WALL * strayed.clamp(min=0.0).square().sum(-1)
        nats = (bonds.sum(-1) + self._of_images) / self.temperature + wall
        return nats + self._of_centre(centre)

    def _displacements(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the atoms, ``batch + (atoms, d)``, and of their centre, ``batch + (1, d)``."""
        u = x.reshape(*x.shape[: x.dim() - len(self.shape)], self.atoms, self.dimensions)
        return u, u.mean(-2, keepdim=True)

    def _of_centre(self, centre: Tensor) -> Tensor:
        """The part of the energy that holds the centre of mass."""
        return 0.5 * self.stiffness * self.atoms * centre.square().sum((-1, -2))

    def helmholtz(self, log_partition: float) -> float:
        r"""beta F / N from ln Z, with a de Broglie wavelength of sigma.

        The centre of mass is set free: :math:`\beta F = -\ln Z + \frac d2 \ln\frac{2\pi}{\kappa} -
        \frac d2 \ln N - \ln\frac VN`. Of the N! ways to put the atoms on the sites, N are one
        another's translations, and N! divides the partition function.
        """
        centre = 0.5 * self.dimensions * math.log(2 * math.pi / self.stiffness)
        free = 0.5 * self.dimensions * math.log(self.atoms) + math.log(self.volume / self.atoms)
        return (centre - free - log_partition) / self.atoms

    def harmonic_log_partition(self) -> float:
        """Exact ln Z of the harmonic crystal, in nats, the energy of the sites included."""
        assert self.spectrum is not None
        modes = 0.5 * torch.linalg.slogdet(2 * math.pi * self.spectrum).logabsdet.sum()
        zero = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        return float(modes) - float(self.energy(zero))

    def energy_per_atom(self, x: Tensor) -> Tensor:
        """Potential energy per atom in units of epsilon, of batch shape."""
        _, centre = self._displacements(check_values("x", x, self.shape))
        return (self.energy(x) - self._of_centre(centre)) * self.temperature / self.atoms

    def mean_square(self, x: Tensor) -> Tensor:
        """Mean square displacement of an atom from its site, the centre of mass at rest."""
        u, centre = self._displacements(check_values("x", x, self.shape))
        return (u - centre).square().sum(-1).mean(-1)

    def observables(self) -> dict[str, Observable]:
        """Energy and mean square displacement of an atom."""
        return {"energy_per_atom": self.energy_per_atom, "mean_square": self.mean_square}

    def heated(self, factor: float) -> LennardJonesCrystal:
        """The same crystal at ``factor`` > 0 times its temperature."""
        factor = check_number("factor", factor, "a finite number > 0", above=0)
        known: Any = {"structure": self.structure, "cutoff": self.cutoff}
        hot = LennardJonesCrystal(self.lattice, self.density, factor * self.temperature, **known)
        hot.linear_below = self.linear_below
        return hot.to(self.device)

    def _pair_energy(self, vectors: Tensor) -> Tensor:
        """v of vectors ``(..., d)``, in units of epsilon."""
        squares = vectors.square().sum(-1)
        least = self.linear_below
        inner = squares if least is None else squares.clamp(min=least**2)
        cube = inner.reciprocal() ** 3
        found = 4.0 * (cube.square() - cube) - _lennard_jones(self.cutoff)[0]
        found = torch.where(squares < self.cutoff**2, found, 0.0)
        if least is None:
            return found
        slope = _lennard_jones(least)[1]
        short = (least - (squares + ORIGIN).sqrt()).clamp(min=0.0)
        return found - slope * short

    def _harmonic(
        self, cells: tuple[int, ...], basis: int, vectors: FloatArray
    ) -> tuple[float, Tensor]:
        """Precision of the centre of mass, and covariance matrices of the modes."""
        d, components = self.dimensions, basis * self.dimensions
        r = np.linalg.norm(vectors, axis=-1)
        _, slope, curvature = _lennard_jones(r)
        slope, curvature = (np.where(r < self.cutoff, part, 0.0) for part in (slope, curvature))
        along = vectors / r[:, None]
        outer = along[:, :, None] * along[:, None, :]
        across = (slope / r)[:, None, None] * (np.eye(d) - outer)
        springs = (curvature[:, None, None] * outer + across) / self.temperature
        at_zero = np.zeros((math.prod(cells), basis, d, basis, d))
        places = np.stack(np.unravel_index(np.arange(math.prod(cells)), cells), -1)
        pairs = zip(self._first.tolist(), self._second.tolist(), springs, strict=True)
        for i, j, spring in pairs:
            (a, p), (b, q) = divmod(i, basis), divmod(j, basis)
            for here, there, own, other in ((a, b, p, q), (b, a, q, p)):
                # K(R p, 0 q) stands at R, as the convolution of the field wants it
                offset = np.ravel_multi_index(tuple((places[here] - places[there]) % cells), cells)
                at_zero[offset, own, :, other, :] -= spring / math.prod(cells)
                at_zero[0, own, :, own, :] += spring / math.prod(cells)
        kernel = at_zero.reshape(*cells, components, components)
        dynamical = np.fft.fftn(kernel, axes=range(len(cells)))
        dynamical = 0.5 * (dynamical + dynamical.conj().swapaxes(-1, -2))
        uniform, origin = np.kron(np.ones((basis, basis)) / basis, np.eye(d)), (0,) * len(cells)
        values = np.linalg.eigvalsh(dynamical)
        values[origin] = np.linalg.eigvalsh(dynamical[origin] + values.max() * uniform)
        least = float(values.min())
        if not least > 0:
            raise ValueError(
                f"the {self.structure} crystal at density {self.density} is not stable: a mode has "
                f"a force constant of {least:.3g}; accepted: densities at which all are positive"
            )
        dynamical[origin] += least * uniform
        return least, torch.from_numpy(np.linalg.inv(dynamical))


def _lennard_jones(r: Any) -> tuple[Any, Any, Any]:
    """v(r), not shifted, and its first two derivatives, of a number or an array."""
    six = r**-6.0
    return (
        4.0 * (six**2 - six),
        4.0 * (-12.0 * six**2 + 6.0 * six) / r,
        4.0 * (156.0 * six**2 - 42.0 * six) / r**2,
    )


def _pairs(
    cells: tuple[int, ...], edges: FloatArray, sites: FloatArray, reach: float
) -> tuple[Tensor, Tensor, FloatArray]:
    """Atoms of all pairs closer than ``reach``, images too, each once, and the vectors between.

    Atoms are numbered cell by cell; of images of one atom both are the same.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(edges), axis=0)  # of a cell
    spans = [range(-math.ceil(reach / h) - 1, math.ceil(reach / h) + 2) for h in heights]
    places = np.stack(np.unravel_index(np.arange(math.prod(cells)), cells), -1)
    first, second, vectors = [], [], []
    for offset in itertools.product(*spans):
        target = np.ravel_multi_index(tuple((places + offset).T % np.array(cells)[:, None]), cells)
        for p, q in itertools.product(range(len(sites)), repeat=2):
            if (offset, q) <= ((0,) * len(cells), p):  # the other way round
                continue
            vector = np.array(offset) @ edges + sites[q] - sites[p]
            if np.linalg.norm(vector) < reach:
                first.append(np.arange(len(places)) * len(sites) + p)
                second.append(target * len(sites) + q)
                vectors.append(np.tile(vector, (len(places), 1)))
    one, other = (torch.from_numpy(np.concatenate(part)) for part in (first, second))
    return one, other, np.concatenate(vectors)
