# SPDX-License-Identifier: Apache-2.0
"""Everything moves to another device; a training step waits for it once, a leapfrog step never.

Tensors on the device "meta" have shapes but no numbers: what was left on the CPU cannot be combined
with them, and what asks for a number within a step, as a synchronisation with an accelerator would,
raises, or is counted. So these run where there is no accelerator.
"""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_neuralrg import HMC, ChEESHMC, Cycle, FreeField, IndependenceMetropolis, IsingDual
from pyro_neuralrg.app.ising import Experiment, Settings
from pyro_neuralrg.infer.pdd import PDD
from pyro_neuralrg.mcmc import MALA, MAMS, MCLMC, EnergyTarget, Kernel, RandomWalkMetropolis
from pyro_neuralrg.runtime.processes import Processes
from pyro_neuralrg.train.loop import Training
from pyro_neuralrg.train.optimizer import Cooling, JoinedAdam, Schedule
from pyro_neuralrg.train.training import _guide
from pyro_neuralrg.transforms import Neighbour

META, CPU = torch.device("meta"), torch.device("cpu")

POTENTIALS: dict[str, Any] = {
    "ising": lambda: IsingDual((4, 4)),
    "ising, open": lambda: IsingDual((4, 4), temperature=3.0, boundary="open"),
    "ising in a field": lambda: IsingDual((4, 4), temperature=3.0, field=0.1),
    "ising, 1-d": lambda: IsingDual((5,), temperature=3.0),
    "free field": lambda: FreeField((4, 4), 0.8),
}


def moved(name: str) -> tuple[Any, Any]:
    """A potential and a flow of few couplings, made on the CPU."""
    target = POTENTIALS[name]()
    flow = target.flow(bijector=Neighbour(layers=1))
    return target.to(META), flow.to(META)


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, device=META)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("ising", "free field") else pytest.param(name, marks=pytest.mark.slow)
        for name in POTENTIALS
    ],
)
def test_flows_and_energies_move(name: str) -> None:
    target, flow = moved(name)
    for tensor in [*flow.parameters(), *flow.buffers()]:
        assert tensor.device == META
    z = normals(3, *target.shape)
    x = flow(z)
    energies = (target.energy(x), *target.energy_and_gradient(x))
    for tensor in (x, flow.inv(x.clone()), flow.log_abs_det_jacobian(z, x), *energies):
        assert tensor.device == META


@pytest.mark.parametrize("path_gradient", [False, True])
@pytest.mark.parametrize("name", POTENTIALS)
def test_a_gradient_asks_for_no_number(name: str, path_gradient: bool) -> None:
    target, flow = moved(name)
    elbo = PDD(4, max_plate_nesting=0, vectorize_particles=True, path_gradient=path_gradient)
    with pyro.validation_enabled(False):  # as in fit
        elbo.differentiable_loss(target.model, _guide(flow, False)).backward()
    assert elbo.log_weights is not None
    assert elbo.log_weights.device == META
    gradients = [parameter.grad for parameter in flow.parameters()]
    assert all(gradient is not None and gradient.device == META for gradient in gradients)


class Waits(TorchDispatchMode):
    """Counts what would wait for an accelerator, and makes up the numbers that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = [a for a in args if isinstance(a, Tensor) and a.device == META]
        if func is torch.ops.aten._local_scalar_dense.default and there:
            self.asked.append("item")
            return 1.0
        if func is torch.ops.aten._to_copy.default and there and kwargs.get("device") == CPU:
            self.asked.append("cpu")
            return torch.ones(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("act", "asked"),
    [
        (lambda x: float(x.sum()), ["item"]),
        (lambda x: x.cpu().sum().item(), ["cpu"]),
        (lambda x: bool((x > 0).all()), ["item"]),
        (lambda x: x.sum().mul_(2.0), []),
    ],
)
def test_waits_are_counted(act: Any, asked: list[str]) -> None:
    with Waits() as waits:
        act(normals(3))
    assert waits.asked == asked


@pytest.mark.parametrize("path_after_cooling", [False, True])
@pytest.mark.parametrize("name", ["ising", "free field"])
def test_a_training_step_waits_once(name: str, path_after_cooling: bool) -> None:
    """With all that the loop does in a step, the optimiser and a callback's figures included."""
    target, flow = moved(name)
    training = Training(
        target,
        _guide(flow, False),
        PDD(4, max_plate_nesting=0, vectorize_particles=True),
        JoinedAdam(flow.parameters(), 0.01, clip=100.0),
        steps=4,
        schedule=Schedule(cooling=Cooling(1.5, 0.5), average=0.5),
        path_after_cooling=path_after_cooling,
        world=Processes(),
    )
    for _ in range(4):
        with Waits() as waits:
            assert training._take_step(0.0)
        assert waits.asked == ["cpu"]
    assert [record.free_energy for record in training.records] == 4 * [-1.0]


KERNELS: dict[str, Any] = {
    "hmc": lambda target, flow: HMC(EnergyTarget(target), num_steps=2, jitter=0.0),
    "diagonal mass": lambda target, flow: HMC(
        target, num_steps=2, flow=flow, inverse_mass=torch.ones(16)
    ),
    "latent chees": lambda target, flow: ChEESHMC(target, flow=flow),
    "mala": lambda target, flow: MALA(target, flow=flow),
    "mclmc": lambda target, flow: MCLMC(target, flow=flow),
    "latent mams": lambda target, flow: MAMS(target, flow=flow),
    "random walk": lambda target, flow: RandomWalkMetropolis(target, flow=flow),
    "jumps": lambda target, flow: Cycle(
        HMC(target, num_steps=2, jitter=0.0, flow=flow), IndependenceMetropolis(flow)
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_of_all_chains_asks_for_no_number(name: str) -> None:
    target, flow = moved("ising")
    flow.requires_grad_(False)  # as the runner does
    kernel: Kernel = KERNELS[name](target, flow)
    state, info = kernel.step(kernel.init(normals(3, 16)))
    for tensor in (state.position, state.energy, info.acceptance_rate, info.hamiltonian):
        assert tensor.device == META


@pytest.mark.gpu
def test_a_run_on_an_accelerator() -> None:
    """Training, estimate and sampling where the numbers are real."""
    settings = Settings(shape=(4, 4), steps=20, batch=64, chains=4, draws=20, device="cuda")
    results = Experiment.prepare(settings).run()
    assert results.stopped == ""
    assert results.estimate is not None
    assert next(results.training.flow.parameters()).device.type == "cuda"
