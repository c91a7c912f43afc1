# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""State of a run between two steps: where chains begin, where they stand, how a file holds it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_neuralrg.files.format import FileFormat
from pyro_neuralrg.mcmc.adaptation import Adaptation
from pyro_neuralrg.mcmc.kernel import ChainState, Kernel
from pyro_neuralrg.runtime.processes import Processes

CHAIN_FORMAT = FileFormat(
    name="pyro_neuralrg.sampling",
    version=5,
    writer="VectorizedMCMC(..., record=Record(...))",
    entries={
        "settings": (str,),
        "seed": (int,),
        "kernel": (dict,),
        "chains": (dict,),
        "random": (Tensor,),
        "warmup": (dict, type(None)),
        "rows": (dict,),
        "mark": (dict,),
    },
)

MAX_RESTARTS = 10
"""Largest number of times that starts whose energy is not finite are drawn anew."""

Start: TypeAlias = "Mapping[str, Tensor] | str | None"
"""Unconstrained values by site, "prior", "flow", or None."""


class Cost(NamedTuple):
    """A cost of the two phases of a run: gradient evaluations summed over chains, or seconds."""

    warmup: float
    draws: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.warmup + self.draws


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

    def after(
        self, is_draw: bool, chains: ChainState, random: Tensor, evaluations: int, seconds: float
    ) -> RunState:
        """The state after a step of the warm-up, or a draw, that cost so much."""
        phase = "draws" if is_draw else "warmup"

        def add(cost: Cost, amount: float) -> Cost:
            return cost._replace(**{phase: getattr(cost, phase) + amount})

        return RunState(
            chains,
            random,
            self.warmed_up + (not is_draw),
            self.drawn + is_draw,
            add(self.gradient_evaluations, evaluations),
            add(self.seconds, seconds),
        )

    def contents(self, world: Processes) -> dict[str, Any]:
        """The entries of a file that hold the states of all processes."""
        return {
            "chains": gathered(self.chains._asdict(), world),
            "random": world.gather(self.random[None]),
            "mark": {
                "warmed_up": self.warmed_up,
                "drawn": self.drawn,
                "gradient_evaluations": list(self.gradient_evaluations),
                "seconds": list(self.seconds),
            },
        }

    @classmethod
    def of(cls, contents: Mapping[str, Any], chains: slice, rank: int, device: Any) -> RunState:
        """The state of these chains in such a file."""
        mark = contents["mark"]
        own: dict[str, Any] = {
            name: value[chains].to(device) if isinstance(value, Tensor) else value
            for name, value in contents["chains"].items()
        }
        costs = (Cost(*mark[name]) for name in ("gradient_evaluations", "seconds"))
        random = contents["random"][rank].clone()
        return cls(ChainState(**own), random, mark["warmed_up"], mark["drawn"], *costs)


def gathered(values: Mapping[str, Any], world: Processes, axis: int = 0) -> dict[str, Any]:
    """The mapping with its tensors, whose ``axis`` is that of the chains, of all processes."""
    return {
        name: world.gather(value.movedim(axis, 0)).movedim(0, axis)
        if isinstance(value, Tensor)
        else value
        for name, value in values.items()
    }


def settings_of(kernel: Kernel, adaptation: Adaptation) -> dict[str, Any]:
    """Settings of kernel, target and warm-up that must be the same for a run to go on."""
    target, members = kernel.target, kernel.members
    whole = {} if list(members) == [kernel.name] else {"whole": _options(kernel)}
    return {
        "kernel": {name: type(one).__name__ for name, one in {"whole": kernel, **members}.items()},
        "options": {name: _options(member) for name, member in members.items()} | whole,
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


def check_start(initial_params: Any) -> Start:
    """Return it if it is one, else raise a ValueError."""
    if not isinstance(initial_params, Mapping | None) and initial_params not in ("prior", "flow"):
        raise ValueError(
            f"initial_params is {initial_params!r}; accepted: 'prior', 'flow', None, or a tensor "
            "for each site"
        )
    return initial_params


def started(
    kernel: Kernel, start: Start, chains: int, generator: torch.Generator, world: Processes
) -> ChainState:
    """Evaluate the starts of this process's chains, of all ``chains``.

    Random ones that are not finite are drawn anew, up to ``MAX_RESTARTS`` times, with a warning.

    Raises:
        ValueError: on all processes, naming chains without a finite energy and gradient.
    """
    rows, target, redraw = world.rows(chains), kernel.target, None
    if isinstance(start, Mapping):
        state = kernel.init(target.pack(start, chains)[rows])
    else:
        redraw = partial(target.initial, rows.stop - rows.start, generator, start)
        state = kernel.init(redraw())
    redrawn = torch.zeros_like(state.energy, dtype=torch.bool)
    for _ in range(MAX_RESTARTS):
        bad = _not_finite(state)
        if redraw is None or not bool(bad.any()):
            break
        redrawn |= bad
        state = kernel.init(torch.where(bad.unsqueeze(-1), redraw(), state.position))
    bad, energies = world.gather(_not_finite(state)), world.gather(state.energy)
    if bool(bad.any()):
        seen = {chain: float(energies[chain]) for chain in bad.nonzero().flatten().tolist()[:8]}
        raise ValueError(
            f"the initial energy or gradient of {int(bad.sum())} of {chains} chains "
            f"is not finite (energies by chain: {seen}); accepted: "
            "initial_params of finite energy"
        )
    redrawn = world.gather(redrawn)
    if world.is_first and bool(redrawn.any()):
        warnings.warn(
            f"{int(redrawn.sum())} of {chains} chains started where the energy or its gradient is "
            "not finite, and were given other starts",
            stacklevel=4,  # the caller of run()
        )
    return state


def _not_finite(state: ChainState) -> Tensor:
    bad = ~torch.isfinite(state.energy)
    return bad if state.gradient is None else bad | ~torch.isfinite(state.gradient).all(-1)
