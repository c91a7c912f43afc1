# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every potential of the registry."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine

from pyro_neuralrg.potentials import LatticePotential
from tests.potentials.registry import POTENTIALS, SYMMETRIES, Case

BATCHES = [(), (1,), (5,), (2, 0), (2, 1, 3)]
CASES = [pytest.param(case.build(), id=name) for name, case in POTENTIALS.items()]
SAMPLED = [pytest.param(case.build(), id=name) for name, case in POTENTIALS.items() if case.samples]

every_potential = pytest.mark.parametrize("potential", CASES)


@every_potential
def test_force_is_the_finite_difference_of_the_energy(potential: LatticePotential) -> None:
    x = 1.5 * torch.randn(potential.shape)
    x.requires_grad_()
    (force,) = torch.autograd.grad(potential.energy(x), x)
    step = 1e-5
    moves = step * torch.eye(x.numel()).reshape(-1, *potential.shape)
    with torch.no_grad():
        slope = (potential.energy(x + moves) - potential.energy(x - moves)) / (2 * step)
    torch.testing.assert_close(force.flatten(), slope, rtol=1e-6, atol=1e-7)


@every_potential
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_energy_with_its_gradient(potential: LatticePotential, batch: tuple[int, ...]) -> None:
    """In closed form or not: that of autograd, without a graph; also at 0 and far away."""
    x = 2 * torch.randn(*batch, *potential.shape)
    x[..., :1] *= 100
    x[..., -1:] *= 0
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        leaf = x.to(dtype).requires_grad_()
        expected = potential.energy(leaf)
        (force,) = torch.autograd.grad(expected.sum(), leaf)
        energy, gradient = potential.energy_and_gradient(leaf)
        assert not energy.requires_grad
        assert not gradient.requires_grad
        assert all(t.isfinite().all() for t in potential.energy_and_gradient(100 * leaf))
        size = float(expected.detach().abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(energy, expected.detach(), rtol=rtol, atol=rtol * size)
        torch.testing.assert_close(gradient, force, rtol=rtol, atol=10 * rtol)
    energy = potential.energy(x)
    assert energy.shape == batch
    one_by_one = [potential.energy(field) for field in x.reshape(-1, *potential.shape)]
    if one_by_one:
        torch.testing.assert_close(energy.flatten(), torch.stack(one_by_one))


@every_potential
def test_second_derivatives_exist_everywhere(potential: LatticePotential) -> None:
    """Also at x = 0, where |x| has none."""
    sites = math.prod(potential.shape)
    for x in (torch.zeros(potential.shape), torch.randn(potential.shape)):
        hessian = torch.func.jacrev(torch.func.grad(potential.energy))(x).reshape(sites, sites)
        moves = 1e-5 * torch.eye(sites).reshape(-1, *potential.shape)
        force = torch.func.vmap(torch.func.grad(potential.energy))
        slope = (force(x + moves) - force(x - moves)).reshape(sites, sites) / 2e-5
        torch.testing.assert_close(hessian, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POTENTIALS)
def test_energy_has_the_declared_symmetries(name: str) -> None:
    potential = POTENTIALS[name].build()
    x = 2 * torch.randn(20, *potential.shape)
    energy = potential.energy(x)
    for symmetry in POTENTIALS[name].symmetries:
        moved = potential.energy(SYMMETRIES[symmetry](x, len(potential.shape)))
        torch.testing.assert_close(moved, energy, rtol=1e-12, atol=1e-11)
    assert potential.even == torch.allclose(energy, potential.energy(-x), rtol=1e-10)


@every_potential
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_precision_is_computed_in_its_own_dtype(
    potential: LatticePotential, dtype: torch.dtype
) -> None:
    x = 2 * torch.randn(20, *potential.shape).to(dtype)
    energy = potential.energy(x)
    assert energy.dtype == dtype
    exact = potential.energy(x.double())
    assert exact.dtype == torch.float64
    accuracy = 2e-5 if dtype == torch.float32 else 0.1
    assert float((energy - exact).abs().max() / exact.abs().max()) < accuracy


@every_potential
def test_batched_and_vmapped_forces_agree(potential: LatticePotential) -> None:
    x = torch.randn(4, *potential.shape, requires_grad=True)
    energy = potential.energy(x)
    (force,) = torch.autograd.grad(energy.sum(), x)
    per_chain = torch.func.vmap(torch.func.grad_and_value(potential.energy))
    mapped_force, mapped_energy = per_chain(x.detach())
    torch.testing.assert_close(mapped_energy, energy.detach())
    torch.testing.assert_close(mapped_force, force)
    fresh = copy.deepcopy(potential)
    with torch.inference_mode():
        fresh.energy(x.float())
    for again in (potential, fresh):  # nothing of transform or mode was kept
        torch.testing.assert_close(torch.autograd.grad(again.energy(x).sum(), x)[0], force)
        assert torch.autograd.grad(again.energy(x.float()).sum(), x)[0].isfinite().all()


@every_potential
def test_wrong_fields_are_named(potential: LatticePotential) -> None:
    shape = potential.shape
    accepted = rf"accepted.*{'.*'.join(str(side) for side in shape)}"
    for wrong in ((*shape[:-1], shape[-1] + 1), shape[1:], (*shape, 11)):
        with pytest.raises(ValueError, match=f"x has shape .*{accepted}"):
            potential.energy(torch.zeros(wrong))
    with pytest.raises(TypeError, match=r"x is torch\.int64; accepted"):
        potential.energy(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x is on the device meta.*accepted: cpu"):
        potential.energy(torch.zeros(shape, device="meta"))


@every_potential
def test_potential_fn_and_model_agree_with_the_energy(potential: LatticePotential) -> None:
    trace = poutine.trace(potential.model).get_trace()
    x = trace.nodes["x"]["value"]
    assert (x.shape, x.dtype) == (potential.shape, torch.get_default_dtype())
    torch.testing.assert_close(potential.potential_fn({"x": x}), potential.energy(x))
    with pyro.plate("particles", 3):
        trace = poutine.trace(potential.model).get_trace()
    trace.compute_log_prob()
    x = trace.nodes["x"]["value"]
    assert x.shape == (3, *potential.shape)
    torch.testing.assert_close(trace.nodes["energy_factor"]["log_prob"], -potential.energy(x))
    assert float(trace.nodes["x"]["log_prob"].sum()) == 0
    with pytest.raises(ValueError, match=r"params has the sites \['y'\].*accepted"):
        potential.potential_fn({"y": x})


@pytest.mark.parametrize("name", POTENTIALS)
def test_observables_are_functions_of_fields(name: str) -> None:
    """One number for each field, also of a copy and in another precision."""
    potential = POTENTIALS[name].build()
    x = torch.randn(2, 3, *potential.shape)
    functions = potential.observables()
    sent = pickle.loads(pickle.dumps(functions))
    if POTENTIALS[name].magnetic:
        assert functions.keys() >= {"abs_magnetisation", "structure_factor", "fourth_moment"}
        assert ("magnetisation" in functions) == (not potential.components)
        has_waves = any("axis" in key for key in functions)
        assert has_waves == (potential.boundary == "periodic" and max(potential.lattice) > 1)
    for key, function in functions.items():
        values = function(x)
        assert values.shape == (2, 3)
        assert torch.equal(sent[key](x), values)
        assert function(x.float()).dtype == torch.float32
        with pytest.raises(ValueError, match=r"has shape .*; accepted"):
            function(torch.zeros(11))


@every_potential
def test_copies_are_the_same_potential(potential: LatticePotential) -> None:
    x = torch.randn(3, *potential.shape)
    for twin in (copy.deepcopy(potential), pickle.loads(pickle.dumps(potential))):
        torch.testing.assert_close(twin.energy(x), potential.energy(x), rtol=0, atol=0)
        assert repr(twin) == repr(potential)
    there = potential.to("meta")
    assert (there.device.type, potential.device.type) == ("meta", "cpu")
    assert there.energy(x.to("meta")).device.type == "meta"


@every_potential
def test_heating_by_one_changes_nothing(potential: LatticePotential) -> None:
    x = torch.randn(3, *potential.shape)
    torch.testing.assert_close(potential.heated(1.0).energy(x), potential.energy(x))
    hot = potential.heated(2.0)
    for name in ("shape", "lattice", "components", "boundary", "even"):
        assert getattr(hot, name) == getattr(potential, name)
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"factor is .*accepted"):
            potential.heated(factor)


@pytest.mark.gpu
@every_potential
def test_moves_to_an_accelerator(potential: LatticePotential) -> None:
    x = torch.randn(3, *potential.shape)
    assert potential.to("cpu") is potential
    there = potential.to("cuda")
    assert potential.device.type == "cpu"
    torch.testing.assert_close(there.energy(x.cuda()).cpu(), potential.energy(x))
    with pytest.raises(ValueError, match=r"x is on the device cpu; accepted: cuda:0"):
        there.energy(x)
    assert there.heated(2.0).device.type == "cuda"
    assert poutine.trace(there.model).get_trace().nodes["x"]["value"].is_cuda
    if potential.spectrum is not None:
        torch.testing.assert_close(there.to("cpu").energy(x), potential.energy(x))


@every_potential
def test_flow_knows_shape_and_symmetry(potential: LatticePotential) -> None:
    flow = potential.flow()
    assert flow.shape == potential.shape
    assert flow.odd == potential.even
    z = torch.randn(2, *potential.shape)
    assert potential.energy(flow(z)).shape == (2,)
    assert potential.flow(odd=False, circuit="tree").odd is False


@pytest.mark.parametrize("potential", SAMPLED)
def test_reference_samples_repeat_with_their_seed(potential: LatticePotential) -> None:
    x = potential.sample_reference(3, seed=5)
    assert x.shape == (3, *potential.shape)
    assert x.dtype == torch.get_default_dtype()
    torch.testing.assert_close(potential.sample_reference(3, seed=5), x, rtol=0, atol=0)
    torch.manual_seed(1)
    state, one = torch.get_rng_state(), potential.sample_reference(3)
    assert not torch.equal(torch.get_rng_state(), state)  # so that the next ones are others
    torch.manual_seed(1)
    assert torch.equal(potential.sample_reference(3), one)
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n is {n}; accepted: an integer >= 1"):
            potential.sample_reference(n)


@pytest.mark.parametrize("potential", SAMPLED)
def test_reference_samples_obey_the_virial_theorem(potential: LatticePotential) -> None:
    """E[x . dE/dx] = N for the density exp(-E), whatever its normalisation."""
    n = 1000
    x = potential.sample_reference(n, seed=1).requires_grad_()
    (force,) = torch.autograd.grad(potential.energy(x).sum(), x)
    virial = (x * force).detach().flatten(1).sum(1) - math.prod(potential.shape)
    assert abs(float(virial.mean())) < 4.5 * float(virial.std()) / math.sqrt(n)


@pytest.mark.parametrize(("name", "case"), POTENTIALS.items())
def test_the_unknown_says_so(name: str, case: Case) -> None:
    potential = case.build()
    if not case.exact:
        with pytest.raises(NotImplementedError, match="no exact ln Z is known"):
            potential.log_partition()
    if not case.samples:
        with pytest.raises(NotImplementedError, match="no reference sampler is known"):
            potential.sample_reference(3)
