# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""One Adam over all parameters of a flow, joined to one vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class JoinedAdam:
    """Adam with gradient clipping on all parameters, joined to one vector.

    A flow has a few hundred small tensors. One vector makes the norm of the gradient and its mean
    over processes one operation each, and a step takes a quarter of the time that
    ``torch.optim.Adam(foreach=True)`` takes with the tensors (0.6 ms for 2.3 ms with the 200 of the
    8 x 8 flow, one thread).

    Args:
        parameters: all that is to be trained, of one dtype and on one device.
        learning_rate: Adam's learning rate; assign ``learning_rate`` to change it.
        clip: largest norm of the whole gradient; None: unlimited.

    Raises:
        ValueError: if there are no parameters, or they differ in dtype or device.

    Example:
        >>> x = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> adam = JoinedAdam([x], learning_rate=0.5)
        >>> gradient = adam.gradient(x.square().sum())
        >>> adam.step(gradient, float(gradient.norm()))
        >>> [round(value, 4) for value in x.tolist()]
        [0.5, -1.5]
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, clip: float | None = None
    ) -> None:
        self.parameters = list(parameters)
        kinds = {f"{p.dtype} on {p.device}" for p in self.parameters}
        if len(kinds) != 1:
            raise ValueError(
                f"parameters are {', '.join(sorted(kinds)) or 'none'}; accepted: at least one, "
                "all of one dtype and on one device"
            )
        self.clip = math.inf if clip is None else clip
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._vector = torch.nn.Parameter(self.vector())
        self._pieces = self._split(self._vector.detach())
        self._adam = torch.optim.Adam([self._vector], lr=learning_rate)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._adam.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._adam.param_groups[0]["lr"] = value

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a scalar, joined; zero for parameters that it does not depend on."""
        parts = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in parts])

    @torch.no_grad()
    def step(self, gradient: Tensor, norm: float) -> None:
        """Take one step.

        Args:
            gradient: such as that of :meth:`gradient`; it is clipped in place.
            norm: its norm, a number that the caller has seen to be finite.
        """
        self._vector.copy_(self.vector())
        self._vector.grad = gradient.mul_(min(1.0, self.clip / max(norm, 1e-12)))
        self._adam.step()
        torch._foreach_copy_(self.parameters, self._pieces)

    def vector(self) -> Tensor:
        """A copy of all parameters, joined."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Write a vector such as that of :meth:`vector` to the parameters."""
        torch._foreach_copy_(self.parameters, self._split(vector))

    def reset(self) -> None:
        """Forget the moments."""
        self._adam = torch.optim.Adam([self._vector], lr=self.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """A copy of Adam's state, as plain tensors and numbers."""
        return copy.deepcopy(self._adam.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the moments of a state of :meth:`state_dict`, at the present rate."""
        present = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict(
            {"state": copy.deepcopy(state["state"]), "param_groups": present}
        )

    def _split(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split(self._sizes)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]
