# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Which circuit closes the gap: mera, brickwork or tree, of as many parameters, on 8 x 8.

Two targets, a free field of mass 0.25 (correlation length 4) and the dual Ising model at Tc, and
the paper's blocks or couplings that see neighbouring blocks. No Fourier layer:
what the circuit itself can do. The number of couplings in a block makes up for the number of
layers; the table has the parameters. Gaps are KL(q || pi/Z) in nats, mean and standard error over
the seeds.

    python -m tests.benchmarks.circuits [--steps 1000] [--seeds 3] [--bijectors realnvp neighbour]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch

from pyro_neuralrg import FreeField, IsingDual, LatticePotential, fit
from pyro_neuralrg.free_energy import estimate
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import BIJECTORS, HierarchicalFlow

SHAPE = (8, 8)
TARGETS = {"free field": FreeField(SHAPE, mass=0.25), "Ising at Tc": IsingDual(SHAPE)}
MERA_COUPLINGS = {"realnvp": 10, "neighbour": 8}
MERA_LAYERS = len(make_circuit("mera", SHAPE).layers)


class Contender(NamedTuple):
    """A circuit, and its depth where it has one of its own."""

    circuit: str
    depth: int | None

    def flow(self, target: LatticePotential, bijector: str) -> HierarchicalFlow:
        """The flow with as many couplings in all as a mera of the default blocks."""
        layers = len(make_circuit(self.circuit, SHAPE, depth=self.depth).layers)
        couplings = round(MERA_COUPLINGS[bijector] * MERA_LAYERS / layers)
        return target.flow(
            circuit=self.circuit,
            depth=self.depth,
            bijector=BIJECTORS[bijector](layers=couplings),
            spectrum=None,
        )


CONTENDERS = [
    Contender("mera", None),
    Contender("brickwork", MERA_LAYERS),
    Contender("tree", None),
]


def gap(target: LatticePotential, flow: HierarchicalFlow, steps: int, seed: int) -> float:
    """Nats that remain after a training."""
    fit(target, flow, steps=steps, seed=seed, progress=False)
    torch.manual_seed(seed)
    return estimate(target, flow, 20_000).variational + target.log_partition()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bijectors", nargs="+", default=["realnvp", "neighbour"])
    arguments = parser.parse_args()
    print(f"gap in nats after {arguments.steps} steps of 256, {arguments.seeds} seeds")
    for name, target in TARGETS.items():
        for bijector in arguments.bijectors:
            for contender in CONTENDERS:
                began, gaps = time.perf_counter(), []
                for seed in range(arguments.seeds):
                    torch.manual_seed(seed)
                    flow = contender.flow(target, bijector)
                    gaps.append(gap(target, flow, arguments.steps, seed))
                error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
                parameters = sum(parameter.numel() for parameter in flow.parameters())
                print(
                    f"{name:<12} {bijector:<9} {contender.circuit:<9} {parameters:6d} parameters: "
                    f"{statistics.mean(gaps):7.3f} +- {error:.3f}   "
                    f"({(time.perf_counter() - began) / len(gaps):.0f} s a training)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
