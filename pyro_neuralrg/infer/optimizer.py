# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One Adam over all parameters as Pyro's SVI wants it, which refuses steps that are not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

__all__ = ["GuardedAdam"]


class GuardedAdam(PyroOptim):
    """Adam with gradient clipping on all parameters, joined to one vector.

    Pyro's own wrapper keeps one optimiser per parameter, each clipped by itself and stepped from
    Python: for the few hundred small tensors of a flow that costs as much as the flow. Joining the
    gradients takes a tenth of a millisecond. A step whose gradient is not finite, or that
    ``read`` refuses, is left out and ``failed`` is set; the parameters before the last step are
    remembered, so that :meth:`undo` can go back to the last ones known to give a finite loss.
    A step waits for an accelerator once: where ``read`` takes the norm of the gradient from it.

    Args:
        parameters: all that is to be trained, of one dtype and on one device.
        learning_rate: Adam's learning rate; assign ``learning_rate`` to change it.
        clip: largest norm of the whole gradient; None: unlimited.
        read: returns the norm of the gradient, a tensor, as a number, or NaN if the step is not to
            be taken; whatever else of the step is to be known can come with the norm.
        reduce: what is done with the joined gradient first, such as averaging it over processes.

    Attributes:
        before: the parameters before the last step, joined, or None.

    Raises:
        ValueError: if there are no parameters, or they differ in dtype or device.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        clip: float | None = None,
        read: Callable[[Tensor], float] = float,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(torch.optim.Adam, {"lr": learning_rate})
        self.parameters = list(parameters)
        kinds = {f"{p.dtype} on {p.device}" for p in self.parameters}
        if len(kinds) != 1:
            raise ValueError(
                f"parameters are {', '.join(sorted(kinds)) or 'none'}; accepted: at least one, "
                "all of one dtype and on one device"
            )
        self.clip = math.inf if clip is None else clip
        self.read = read
        self.reduce = reduce
        self.failed = False
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._vector = torch.nn.Parameter(self._join())
        self._pieces = self._split(self._vector.detach())
        self._adam = torch.optim.Adam([self._vector], lr=learning_rate)
        self.before: Tensor | None = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._adam.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._adam.param_groups[0]["lr"] = value

    @torch.no_grad()
    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Take one step with the gradients that the parameters hold, and clear them.

        Raises:
            ValueError: if SVI met parameters that this optimiser was not given.
        """
        self._check_known(params)
        gradient = torch.cat(
            [
                torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1)
                for p in self.parameters
            ]
        )
        self.clear_gradients()
        if self.reduce is not None:
            gradient = self.reduce(gradient)
        norm = self.read(gradient.norm())
        self.failed = not math.isfinite(norm)
        if self.failed:
            return
        self.before = self._join()
        self._vector.copy_(self.before)
        self._vector.grad = gradient.mul_(min(1.0, self.clip / max(norm, 1e-12)))
        self._adam.step()
        torch._foreach_copy_(self.parameters, self._pieces)

    def clear_gradients(self) -> None:
        """Forget the gradients that the parameters hold."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def undo(self) -> None:
        """Put back the parameters from before the last step, if there was one."""
        if self.before is not None:
            self.assign(self.before)
            self.before = None

    def vector(self) -> Tensor:
        """A copy of all parameters, joined."""
        return self._join()

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Write a vector such as that of :meth:`vector` to the parameters."""
        torch._foreach_copy_(self.parameters, self._split(vector))

    def get_state(self) -> dict[str, Any]:
        """Adam's state as plain tensors and numbers."""
        return copy.deepcopy(self._adam.state_dict())

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Continue from the moments of a state of :meth:`get_state`, at the present learning rate.

        Raises:
            ValueError: if it is not such a state, or belongs to a flow of another size.
        """
        size = self._vector.numel()
        try:
            sizes = _moment_sizes(state_dict)
        except (TypeError, KeyError, AttributeError, ValueError, RuntimeError):
            raise ValueError(
                "optimizer_state is not the state of an earlier fit; accepted: "
                "FitResult.optimizer_state"
            ) from None
        for found in sizes - {size}:
            raise ValueError(
                f"optimizer_state is of {found} parameters; accepted: the state for "
                f"this flow's {size}"
            )
        present = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict(
            {"state": copy.deepcopy(state_dict["state"]), "param_groups": present}
        )

    def _join(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def _split(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split(self._sizes)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def _check_known(self, params: Iterable[Tensor]) -> None:
        known = {id(parameter) for parameter in self.parameters}
        unknown = sum(id(parameter) not in known for parameter in params)
        if unknown:
            raise ValueError(
                f"the model or guide made {unknown} parameters after training began; accepted: "
                "programs that create all their parameters when first run"
            )


def _moment_sizes(state_dict: dict[str, Any]) -> set[int]:
    """Lengths of the moment vectors; raises if it is not the state of one Adam of one vector."""
    if set(state_dict) != {"state", "param_groups"} or not set(state_dict["state"]) <= {0}:
        raise KeyError("state, param_groups")
    sizes = set()
    for entry in state_dict["state"].values():
        float(entry["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            (number,) = entry[name].shape
            sizes.add(number)
    return sizes
