# SPDX-License-Identifier: Apache-2.0
"""A function of tensors as the list of its operations, without the Python that chose them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])


class Traced(Generic[Outputs]):
    """Energies of a model, or these and gradients, by the operations of one of its calls.

    A Pyro program of a few sites spends more of a call on its own Python, ``vmap`` and the graph of
    autograd than on numbers. After ``PATIENCE`` calls of one shape its operations are traced, which
    takes as long as several hundred calls; the next ``TRIALS`` calls, of other positions, compute
    both ways, and from then on the trace is used if they agreed bit for bit: no number depends on
    when that was. Another shape is computed as before.
    """

    PATIENCE, TRIALS = 500, 3

    def __init__(self, function: Callable[[Tensor], Outputs]) -> None:
        self.function = function
        self._shape: torch.Size | None = None
        self._calls, self._graph = 0, None

    def __call__(self, positions: Tensor) -> Outputs:
        """The function of positions ``(chains, dim)``."""
        if positions.shape != self._shape:
            if self._graph is not None:
                return self.function(positions)
            self._shape, self._calls = positions.shape, 0
        self._calls += 1
        if self._graph is not None and self._calls > self.PATIENCE + self.TRIALS:
            with torch.no_grad():
                return self._graph(positions)
        found = self.function(positions)
        if self._calls == self.PATIENCE:
            self._graph = _traced(self.function, positions)
        elif self._graph is not None:
            try:
                with torch.no_grad():
                    same = all(map(torch.equal, self._graph(positions), found))
            except Exception:
                same = False
            self._graph = self._graph if same else None
        return found


def _traced(function: Callable[[Tensor], Any], positions: Tensor) -> Any:
    """The operations as a module; None where they cannot be traced."""
    from torch.fx.experimental.proxy_tensor import make_fx  # loads much that few runs need

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(lambda x: function(x))(positions)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            return graph
    except Exception:  # whatever stands in the way, the function itself is there
        return None
