# SPDX-License-Identifier: Apache-2.0
"""Families of targets: each field of a batch has the potential of its own context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_neuralrg.infer import PDD, FlowGuide
from pyro_neuralrg.potentials import IsingDual, IsingDualFamily, LatticePotential, PotentialFamily
from pyro_neuralrg.train import fit

RANGE = (2.0, 2.7)
CASES = {
    "torus": IsingDualFamily((4, 3), RANGE),
    "anisotropic": IsingDualFamily((4, 4), (1.0, 3.0), (0.5, -1.2)),
    "open": IsingDualFamily((3, 4), RANGE, boundary="open"),
    "ring": IsingDualFamily((5,), (0.8, 1.1)),
    "one site": IsingDualFamily((1,), RANGE),
}
every_family = pytest.mark.parametrize("family", CASES.values(), ids=CASES)


def spread(family: IsingDualFamily) -> list[float]:
    low, high = family.temperatures
    return [low, 0.7 * low + 0.3 * high, high]


@every_family
def test_members_at_their_temperatures(family: IsingDualFamily) -> None:
    """Energy, Gaussian part and ln Z."""
    temperatures = spread(family)
    x = 2 * torch.randn(3, 2, *family.shape)
    context = family.contexts(temperatures).unsqueeze(1)
    energy = family.energy(x, context)
    assert energy.shape == (3, 2)
    for i, temperature in enumerate(temperatures):
        member = IsingDual(family.shape, temperature, family.couplings, boundary=family.boundary)
        torch.testing.assert_close(energy[i], member.energy(x[i]))
        assert repr(family.at_temperature(temperature)) == repr(member)
        assert family.at(context[i, 0]).temperature == pytest.approx(temperature)
        beta = torch.tensor(1 / temperature)
        difference = member.log_partition() - member.spins.log_partition()
        assert float(family.dual_log_partition(beta)) == pytest.approx(difference)
        assert family.spectrum is not None
        assert family.spectrum_slopes is not None
        spectrum = family.spectrum + context[i, 0] * family.spectrum_slopes[0]
        torch.testing.assert_close(spectrum, member.spectrum)


def test_contexts_run_from_hot_to_cold_also_heated() -> None:
    context = CASES["torus"].contexts(torch.tensor([2.7, 2.0]))
    torch.testing.assert_close(context, torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(CASES["torus"].beta(context), 1 / torch.tensor([2.7, 2.0]))
    family = IsingDualFamily((4, 3), RANGE, (1.0, 0.5), "open")
    hot = family.heated(1.5)
    context = family.contexts([2.2])
    assert float(hot.beta(context) * 1.5) == pytest.approx(1 / 2.2)
    assert repr(hot) == repr(IsingDualFamily((4, 3), (3.0, 1.5 * 2.7), (1.0, 0.5), "open"))


def test_contexts_are_spread_evenly() -> None:
    family = UserFamily((2,), 3)
    context = family.sample_contexts(50, torch.empty(0))
    assert context.shape == (50, 3)
    part = ((context + 1) * 25).floor().sort(0).values
    torch.testing.assert_close(part, torch.arange(50.0).unsqueeze(1).expand(50, 3))
    assert not torch.equal(context[:, 0].argsort(), context[:, 1].argsort())
    assert family.sample_contexts(2, torch.empty(0, dtype=torch.float32)).dtype == torch.float32


class UserFamily(PotentialFamily):
    """Normal fields of a mean that depends on the context; no even symmetry, no spectrum."""

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        self._check(x, context)
        return 0.5 * (x - context[..., :1]).square().flatten(-len(self.shape)).sum(-1)

    def at(self, context: Tensor) -> Any:
        raise NotImplementedError


def test_a_users_family() -> None:
    family = UserFamily((2,), 2)
    assert family.heated(2.0) is family
    flow = family.flow(features=3)
    assert (flow.shape, flow.context_dim) == ((2,), 2)
    assert not flow.flow.odd


def test_model_has_the_energies_of_its_contexts() -> None:
    family, context = CASES["torus"], CASES["torus"].contexts([2.0, 2.1, 2.7])
    with pyro.plate("particles", 3):
        trace = poutine.trace(family.model).get_trace(context)
    trace.compute_log_prob()
    x = trace.nodes["x"]["value"]
    expected = -family.energy(x, context)
    torch.testing.assert_close(trace.nodes["energy_factor"]["log_prob"], expected)
    assert float(trace.nodes["x"]["log_prob"].sum()) == 0
    with pytest.raises(ValueError, match=r"energy of .* returned shape \(3,\) for .*\(4, 3\)"):
        family.model(context)


def test_flow_knows_the_family() -> None:
    config = CASES["open"].flow().config
    expected = {"odd": True, "boundary": "open", "spectrum": True, "spectrum_slopes": 1}
    assert expected.items() <= config.items()
    assert CASES["open"].flow(spectrum_slopes=None).config["spectrum_slopes"] == 0


class Own(PotentialFamily):
    """A user's family with an energy that is given."""

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__((2, 3), 2)
        self.fn = fn

    def energy(self, x: Tensor, context: Tensor) -> Tensor:
        return self.fn(x, context)

    def at(self, context: Tensor) -> LatticePotential:
        raise NotImplementedError


def widths(x: Tensor, context: Tensor) -> Tensor:
    return ((1.5 + context[..., 0]) * x.square().sum((-1, -2))) / 2


COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fields": lambda x, c: widths(x - x.mean(0), c),
    "contexts": lambda x, c: widths(x, c - c.mean(0)),
    "random": lambda x, c: widths(x + torch.randn_like(x), c),
}


def train(family: PotentialFamily) -> None:
    fit(family, family.flow(), steps=1, batch=4, progress=False)


def one_loss(family: PotentialFamily) -> None:
    pyro.clear_param_store()
    loss, contexts = PDD(4, 0, vectorize_particles=True), torch.rand(4, 2)
    loss.loss(family.model, FlowGuide(family.flow()), contexts)


@pytest.mark.parametrize("use", [train, one_loss])
def test_a_family_couples_no_fields_and_leaves_them(use: Callable[[PotentialFamily], None]) -> None:
    for energy in COUPLED.values():
        with pytest.raises(ValueError, match=r"energy of Own gives .* for the same field alone"):
            use(Own(energy))
    with pytest.raises(ValueError, match="energy of Own writes to its field; accepted: no"):
        use(Own(lambda x, c: widths(x.mul_(2.0), c)))
    use(Own(widths))
