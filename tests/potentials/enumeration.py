# SPDX-License-Identifier: Apache-2.0
"""The Ising model by enumeration of its spins, bond by bond, independent of the package."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_neuralrg.potentials import DualSpins, IsingDual, IsingModel, SpinModel


def bond_matrix(shape: tuple[int, ...], bonds: tuple[float, ...], boundary: str) -> Tensor:
    """K with K_ij = K of the axis for each bond of nearest neighbours."""
    sites = list(itertools.product(*map(range, shape)))
    matrix = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    for site, (axis, bond) in itertools.product(sites, enumerate(bonds)):
        if shape[axis] == 1 or (boundary == "open" and site[axis] + 1 == shape[axis]):
            continue
        step = [int(a == axis) for a in range(len(shape))]
        other = tuple((s + d) % n for s, d, n in zip(site, step, shape, strict=True))
        matrix[sites.index(site), sites.index(other)] += bond
        matrix[sites.index(other), sites.index(site)] += bond
    return matrix


@dataclass(frozen=True)
class Ising:
    """All spins ``(2^N, N)`` of a small model, their s.K.s / 2 + h.s / T, and K ``(N, N)``."""

    temperature: float
    spins: Tensor
    log_weight: Tensor
    matrix: Tensor

    @staticmethod
    def of(model: IsingDual | IsingModel | DualSpins | SpinModel) -> Ising:
        if isinstance(model, DualSpins | SpinModel):
            matrix = model.couplings / model.temperature
        else:
            bonds = tuple(coupling / model.temperature for coupling in model.couplings)
            matrix = bond_matrix(model.shape, bonds, model.boundary)
        sites = torch.arange(math.prod(model.shape))
        spins = 2.0 * ((torch.arange(2 ** len(sites))[:, None] >> sites) & 1).double() - 1
        log_weight = ((spins @ matrix) * spins).sum(1) / 2
        if model.field is not None:
            log_weight = log_weight + spins @ model.field.flatten() / model.temperature
        return Ising(model.temperature, spins, log_weight, matrix)

    @property
    def probability(self) -> Tensor:
        return self.log_weight.softmax(0)

    @property
    def mean(self) -> Tensor:
        return self.probability @ self.spins

    @property
    def second_moment(self) -> Tensor:
        return self.spins.T @ (self.probability[:, None] * self.spins)

    @property
    def log_partition(self) -> float:
        return float(self.log_weight.logsumexp(0))

    @property
    def specific_heat(self) -> float:
        deviation = self.log_weight - self.probability @ self.log_weight
        return float(self.probability @ deviation.square()) / len(self.matrix)

    @property
    def averages(self) -> dict[str, float]:
        """Thermal averages by the names of the observables, energies per site."""
        m = self.spins.mean(1)
        energy = -self.log_weight * self.temperature / len(self.matrix)
        values = {
            "magnetisation": m,
            "abs_magnetisation": m.abs(),
            "structure_factor": m**2,
            "fourth_moment": m**4,
            "internal_energy": energy,
            "squared_internal_energy": energy**2,
        }
        return {name: float(self.probability @ value) for name, value in values.items()}
