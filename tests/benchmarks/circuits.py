# SPDX-License-Identifier: Apache-2.0
"""Gaps of three circuits, mera, brickwork and tree, of as many parameters, on 8 x 8.

Two targets, a free field of mass 0.25 (correlation length 4) and the dual Ising model at Tc, and
the paper's blocks or couplings that see neighbouring blocks. No Fourier layer:
what the circuit itself can do. The number of couplings in a block makes up for the number of
layers; the table has the parameters. Gaps are KL(q || pi/Z) in nats, mean and standard error over
the seeds.

    python -m tests.benchmarks.circuits [--steps 1000] [--seeds 3] [--bijectors realnvp neighbour]
"""

from __future__ import annotations

import functools
import itertools
import statistics

import torch

from pyro_neuralrg import FreeField, IsingDual, LatticePotential, fit
from pyro_neuralrg.lattice import make_circuit
from pyro_neuralrg.transforms import BIJECTORS, HierarchicalFlow
from tests.benchmarks.harness import gap_of, parse, timed

SHAPE = (8, 8)
TARGETS = {"free field": FreeField(SHAPE, mass=0.25), "Ising at Tc": IsingDual(SHAPE)}
MERA_COUPLINGS = {"realnvp": 10, "neighbour": 8}
MERA_LAYERS = len(make_circuit("mera", SHAPE).layers)


CIRCUITS = {"mera": None, "brickwork": MERA_LAYERS, "tree": None}
"""Each with its depth, where it has one of its own."""


def make_flow(target: LatticePotential, circuit: str, bijector: str) -> HierarchicalFlow:
    """The flow with as many couplings in all as a mera of the default blocks."""
    depth = CIRCUITS[circuit]
    layers = len(make_circuit(circuit, SHAPE, depth=depth).layers)
    blocks = BIJECTORS[bijector](layers=round(MERA_COUPLINGS[bijector] * MERA_LAYERS / layers))
    return target.flow(circuit=circuit, depth=depth, bijector=blocks, spectrum=None)


def gap(target: LatticePotential, flow: HierarchicalFlow, steps: int, seed: int) -> float:
    """Nats that remain after a training."""
    fit(target, flow, steps=steps, seed=seed, progress=False)
    return gap_of(target, flow, 20_000, seed)[0]


def main() -> None:
    options = parse(__doc__, steps=1000, seeds=3, bijectors=["realnvp", "neighbour"])
    print(f"gap in nats after {options.steps} steps of 256, {options.seeds} seeds")
    for name, bijector, circuit in itertools.product(TARGETS, options.bijectors, CIRCUITS):
        target, seconds, gaps = TARGETS[name], 0.0, []
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            flow = make_flow(target, circuit, bijector)
            found, more = timed(functools.partial(gap, target, flow, options.steps, seed))
            gaps, seconds = [*gaps, found], seconds + more
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        parameters = sum(parameter.numel() for parameter in flow.parameters())
        print(
            f"{name:<12} {bijector:<9} {circuit:<9} {parameters:6d} parameters: "
            f"{statistics.mean(gaps):7.3f} +- {error:.3f}   "
            f"({seconds / len(gaps):.0f} CPU s a training)"
        )


if __name__ == "__main__":
    main()
