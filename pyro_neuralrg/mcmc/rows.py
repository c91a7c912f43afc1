# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of figures of all chains, in memory set aside once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_neuralrg.mcmc.kernel import ChainState, Kernel, StepInfo
from pyro_neuralrg.mcmc.target import Target

#: A function of the lattice field ``(chains,) + shape``, or of all sites by name, to
#: ``(chains, ...)``.
Observable: TypeAlias = Callable[[Any], Tensor]


class Rows:
    """Columns of rows ``(chains, ...)``.

    Memory for all rows is set aside with the first one, so that a long run needs no second copy.

    Args:
        capacity: rows that there may be.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._columns: dict[str, Tensor] = {}
        self.length = 0

    def add(self, row: Mapping[str, Tensor]) -> None:
        """Add a row; all rows have the same columns."""
        for name, value in row.items():
            if name not in self._columns:
                self._columns[name] = value.new_empty((self.capacity, *value.shape))
            self._columns[name][self.length] = value
        self.length += 1

    def reserve(self, capacity: int) -> None:
        """Set memory aside for so many rows, if it is not yet."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        for name, value in self._columns.items():
            self._columns[name] = value.new_empty((capacity, *value.shape[1:]))
            self._columns[name][: self.length] = value[: self.length]

    def truncate(self, length: int) -> None:
        """Forget the rows from there on."""
        self.length = min(self.length, length)

    def columns(self) -> dict[str, Tensor]:
        """The columns, shape ``(chains, rows, ...)``."""
        return {name: value[: self.length].movedim(0, 1) for name, value in self._columns.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The columns as plain tensors, shape ``(rows, chains, ...)``."""
        return {name: value[: self.length].clone() for name, value in self._columns.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Be as the one whose ``state_dict`` this is, but for the capacity."""
        self._columns = {}
        self.length = min((len(value) for value in state.values()), default=0)
        self.capacity = max(self.capacity, self.length)
        for name, value in state.items():
            self._columns[name] = value.new_empty((self.capacity, *value.shape[1:]))
            self._columns[name][: self.length] = value[: self.length]


def statistics(kernel: Kernel, state: ChainState, info: StepInfo) -> dict[str, Tensor]:
    """One row of sample_stats, each of shape ``(chains,)``, of one step."""
    energy, members = state.energy, kernel.members
    sizes = [m.step_size for m in members.values() if m.step_size is not None]
    lengths = [m.trajectory_length for m in members.values() if m.trajectory_length is not None]
    row = {
        "lp": -energy,
        "energy": info.hamiltonian,
        "acceptance_rate": info.acceptance_rate,
        "step_size": torch.full_like(energy, sizes[0] if sizes else math.nan),
        "n_steps": torch.full_like(energy, info.n_steps, dtype=torch.int64),
        "diverging": info.diverging,
    }
    if lengths:
        row["trajectory_length"] = torch.full_like(energy, lengths[0])
    for name in members if list(members) != [kernel.name] else ():
        moved = name in info.parts
        row[f"acceptance_rate_{name}"] = (
            info.parts[name].acceptance_rate if moved else torch.full_like(energy, math.nan)
        )
    return {name: value.cpu() for name, value in row.items()}


def observe(
    observables: Mapping[str, Observable], target: Target, positions: Tensor
) -> dict[str, Tensor]:
    """The observables of such positions, on the CPU.

    Raises:
        ValueError: if one does not return a value for each chain.
    """
    if not observables:
        return {}
    names = list(observables)

    def values(part: Tensor) -> tuple[Tensor, ...]:
        sites = target.physical(part)
        fields = [name for name in sites if name in target.lattices]
        seen = sites[fields[0]] if len(fields) == 1 else sites
        with torch.no_grad():
            found = [observables[name](seen) for name in names]
        for name, value in zip(names, found, strict=True):
            if not isinstance(value, Tensor) or value.shape[:1] != part.shape[:1]:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"observables[{name!r}] returned {shape} for {len(part)} chains; accepted: "
                    f"shape ({len(part)}, ...), one value for each chain"
                )
        return tuple(found)

    found = target.by_batches(values, positions)
    return {name: value.detach().cpu() for name, value in zip(names, found, strict=True)}


def check_observables(observables: Any) -> dict[str, Observable]:
    """Return what a user hands in as a dictionary.

    Raises:
        TypeError: if it is no mapping of functions.
    """
    accepted = "accepted: functions of the draws by name"
    if not isinstance(observables, Mapping | None):
        raise TypeError(f"observables is {observables!r}; {accepted}")
    for name, function in (observables or {}).items():
        if not callable(function):
            raise TypeError(f"observables[{name!r}] is {function!r}; {accepted}")
    return dict(observables or {})
