# SPDX-License-Identifier: Apache-2.0
"""State of a run between two steps: where chains stand, how a file holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.mcmc.adaptation import Adaptation
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.runtime.processes import Processes

CHAIN_FORMAT = FileFormat(
    "pyro_neuralrg.sampling", version=9, writer="VectorizedMCMC(..., record=Record(...))"
)


class Cost(NamedTuple):
    """A cost of the two phases of a run: gradient evaluations summed over chains, or seconds."""

    warmup: float
    draws: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.warmup + self.draws

    def plus(self, amount: float, is_draw: bool) -> Cost:
        """The cost after a step of the warm-up, or a draw."""
        return Cost(self.warmup + amount * (not is_draw), self.draws + amount * is_draw)


class RunState(NamedTuple):
    """All that the next step of a run depends on, and the costs so far.

    ``random`` is the state of the process's generator; ``warmed_up`` and ``drawn`` count steps.
    """

    chains: ChainState
    random: Tensor
    warmed_up: int
    drawn: int
    gradient_evaluations: Cost
    seconds: Cost

    @property
    def steps(self) -> int:
        """Steps taken, of warm-up and draws."""
        return self.warmed_up + self.drawn

    def contents(self, world: Processes) -> dict[str, Any]:
        """The entries of a file that hold the states of all processes."""
        mark = {"warmed_up": self.warmed_up, "drawn": self.drawn}
        costs = {name: list(getattr(self, name)) for name in ("gradient_evaluations", "seconds")}
        chains = {
            name: world.gather(value) if isinstance(value, Tensor) else value
            for name, value in self.chains._asdict().items()
        }
        random = world.gather(self.random[None])
        return {"chains": chains, "random": random, "mark": mark | costs}

    @classmethod
    def of(cls, contents: Mapping[str, Any], chains: slice, rank: int, device: Any) -> RunState:
        """The state of these chains in such a file."""
        mark = contents["mark"]
        own: dict[str, Any] = {
            name: value[chains].to(device) if isinstance(value, Tensor) else value
            for name, value in contents["chains"].items()
        }
        costs = {name: Cost(*mark[name]) for name in ("gradient_evaluations", "seconds")}
        random = contents["random"][rank].clone()
        return cls(ChainState(**own), random, **{**mark, **costs})


def settings_of(kernel: Kernel, adaptation: Adaptation) -> dict[str, Any]:
    """Settings of kernel, target and warm-up that must be the same for a run to go on."""
    target, members = kernel.target, kernel.members
    every = members if list(members) == [kernel.name] else {"whole": kernel, **members}
    return {
        "kernel": {name: type(one).__name__ for name, one in {"whole": kernel, **members}.items()},
        "options": {name: _options(one) for name, one in every.items()},
        "sites": {name: list(shape) for name, shape in target.sites.items()},
        "dtype": str(target.dtype),
        "device": target.device.type,
        "adaptation": asdict(adaptation),
    }


def _options(kernel: Kernel) -> dict[str, Any]:
    """Options of a kernel beside its target, as it was given; of a mass, its sum."""
    options: dict[str, Any] = {
        name: value
        for name, value in vars(kernel).items()
        if isinstance(value, int | float | str | tuple) and not name.startswith("_")
    }
    if kernel.inverse_mass is not None:
        options["inverse_mass"] = float(kernel.inverse_mass.sum())
    return options
