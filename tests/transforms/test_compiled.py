# SPDX-License-Identifier: Apache-2.0
"""The compiled couplings against the plain torch that they stand for, wherever they may be used."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_neuralrg import IsingDual
from pyro_neuralrg.compiled import operation
from pyro_neuralrg.runtime import threads
from pyro_neuralrg.transforms import (
    HierarchicalFlow,
    LatticeTransform,
    Neighbour,
    RealNVP,
    conditional_hierarchical_flow,
    coupling_sequence,
    hierarchical_flow,
)
from tests.transforms.registry import perturb, waves

FEW = Neighbour(layers=2, hidden=(4,))
SLOW = Neighbour(layers=2, hidden=(4,), num_tanh=0, response=0.2, max_log_scale=1.0)
FLOWS = {
    "default": lambda: hierarchical_flow((8, 8)),
    "odd": lambda: hierarchical_flow((4, 4), odd=True),
    "odd-sides": lambda: hierarchical_flow((5, 7)),
    "odd-sides-open": lambda: hierarchical_flow((5, 7), boundary="open", odd=True),
    "line": lambda: hierarchical_flow((7,), boundary="open"),
    "cube": lambda: HierarchicalFlow.build((3, 2, 4), block=3),
    "shared": lambda: hierarchical_flow((6, 5), weights="shared"),
    "brickwork": lambda: hierarchical_flow((4, 4), "brickwork", odd=True),
    "realnvp": lambda: hierarchical_flow((4, 6), bijector="realnvp"),
    "realnvp-tanh": lambda: hierarchical_flow((4,), bijector=RealNVP(4, (5, 3), "tanh")),
    "realnvp-linear": lambda: hierarchical_flow((4,), bijector=RealNVP(4, ())),
    "haar": lambda: hierarchical_flow((4, 6), odd=True, wavelet="haar"),
    "haar-threes": lambda: HierarchicalFlow.build((4, 5), block=3, wavelet="haar", bijector=FEW),
    "sites": lambda: HierarchicalFlow.build((4, 5), site_features=waves(2, 4, 5)),
    "context": lambda: conditional_hierarchical_flow((4, 4), 2),
    "context-slow": lambda: conditional_hierarchical_flow((4, 4), 2, bijector=SLOW),
    "few": lambda: hierarchical_flow((4,), odd=True, bijector=FEW),
    "sites-odd": lambda: HierarchicalFlow.build((4, 5), site_features=waves(2, 4, 5), odd=True),
    "few-sites": lambda: HierarchicalFlow.build((3,), bijector=FEW, site_features=waves(1, 3)),
    "context-few": lambda: conditional_hierarchical_flow((2,), 2, bijector=FEW),
    "context-odd": lambda: conditional_hierarchical_flow((4, 5), 2, odd=True),
}
every = pytest.mark.parametrize("name", FLOWS)
BATCH = 70  # two tiles and a part of one


@contextmanager
def plain_torch() -> Iterator[None]:
    """The reference in the place of the compiled couplings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coupling_sequence, "is_compiled", lambda *_: False)
        yield


def prepared(name: str, batch: int = BATCH) -> tuple[Any, Any, Tensor]:
    """A flow away from its start, the transform to call, and latents."""
    flow = perturb(FLOWS[name](), 0.02)
    z = torch.randn(batch, *flow.shape)
    transform = flow.condition(torch.randn(batch, 2)) if name.startswith("context") else flow
    return flow, transform, z


def agree(results: Callable[[], Sequence[Tensor]], tolerance: float) -> None:
    """Compiled and plain couplings give the same."""
    fast = results()
    with plain_torch():
        plain = results()
    for mine, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def everything(flow: Any, transform: Any, z: Tensor) -> dict[str, Tensor]:
    """Results of all passes and the gradients of all leaves."""
    weights = torch.linspace(-1.0, 1.0, len(z), dtype=z.dtype)
    found = {}
    leaves = [z.clone().requires_grad_(), *flow.parameters()]
    x, ladj = transform.forward_and_ladj(leaves[0])
    loss = x.sin().sum() + (weights * ladj).sum()
    gradients = {"forward": torch.autograd.grad(loss, leaves)}
    x_again, ladj_again, score = transform.forward_with_score(z)
    found |= {"x": x, "ladj": ladj, "x again": x_again, "ladj again": ladj_again, "score": score}
    parameters = list(flow.parameters())
    of_path = torch.autograd.grad((score * x_again).sum(), parameters, allow_unused=True)
    gradients["path"] = [g for g in of_path if g is not None]
    leaves[0] = x.detach().requires_grad_()
    z_again, ladj_back = transform.inverse_and_ladj(leaves[0])
    found |= {"z": z_again, "ladj back": ladj_back}
    loss = z_again.sin().sum() + (weights * ladj_back).sum()
    gradients["inverse"] = torch.autograd.grad(loss, leaves)
    for which, of_leaves in gradients.items():
        found |= {f"{which} {index}": gradient for index, gradient in enumerate(of_leaves)}
    return {key: value.detach() for key, value in found.items()}


@every
def test_results_are_those_of_the_reference(name: str) -> None:
    """To 1e-10 of the largest entry; in float32 to 1e-5 of it, and the rounding of float32."""
    flow, transform, z = prepared(name)
    fast = everything(flow, transform, z)
    with plain_torch():
        exact = everything(flow, transform, z)
        rounded = everything(flow.float(), transform.float(), z.float())
    single = everything(flow, transform, z.float())
    assert fast.keys() == single.keys() == exact.keys()
    for key, value in exact.items():
        scale = float(value.abs().max())
        errors = [float((found[key] - value).abs().max()) for found in (fast, single, rounded)]
        assert errors[0] <= 1e-10 * scale, key
        assert errors[1] <= 1e-5 * scale + 2 * errors[2], key


@pytest.mark.parametrize("name", ["odd", "odd-sides-open", "sites"])
def test_bits_do_not_depend_on_threads_or_batch(name: str) -> None:
    parts = prepared(name, batch=300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(*parts)
        torch.set_num_threads(2)
        two = everything(*parts)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(two[key], value) for key, value in one.items())


@pytest.mark.parametrize("name", [name for name in FLOWS if not name.startswith("context")])
def test_columns_do_not_see_each_other(name: str) -> None:
    flow, _, z = prepared(name)
    x, ladj = flow.forward_and_ladj(z)
    z[7].flatten()[0] = float("nan")
    spoilt, spoilt_ladj = flow.forward_and_ladj(z)
    others = torch.arange(BATCH) != 7
    assert bool(spoilt[7].isnan().any())
    assert bool(spoilt_ladj[7].isnan())
    assert torch.equal(spoilt[others], x[others])
    assert torch.equal(spoilt_ladj[others], ladj[others])


@pytest.mark.parametrize("name", ["odd", "haar", "sites", "sites-odd", "realnvp", "context"])
def test_gradients_of_gradients(name: str) -> None:
    flow, transform, z = prepared(name, batch=3)

    def twice() -> tuple[Tensor, ...]:
        leaves = [z.clone().requires_grad_(), *flow.parameters()]
        found: list[Tensor] = []
        for direction in ("forward_and_ladj", "inverse_and_ladj"):
            out, ladj = getattr(transform, direction)(leaves[0])
            (force,) = torch.autograd.grad(
                (out.sin() * out).sum() + ladj.square().sum(), leaves[0], create_graph=True
            )
            found += torch.autograd.grad(force.square().sum(), leaves, allow_unused=True)
        return tuple(g for g in found if g is not None)

    agree(twice, 1e-7)


@pytest.mark.parametrize("direction", ["forward_and_ladj", "inverse_and_ladj"])
def test_gradients_where_only_one_result_or_one_input_counts(direction: str) -> None:
    flow, _, z = prepared("odd", batch=5)
    packed, free = next(flow.parameters()), z.clone().requires_grad_()

    def found() -> list[Tensor]:
        return [
            torch.autograd.grad(getattr(flow, direction)(at)[which].square().sum(), leaf)[0]
            for which in (0, 1)
            for at, leaf in ((free, free), (z, packed))
        ]

    agree(found, 1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("name", ["few", "context-few", "few-sites"])
def test_function_transforms(name: str) -> None:
    """vmap of fields is compiled; an ensemble of flows and derivatives of functions are not."""
    flow, _, z = prepared(name, batch=4)
    context, conditional = torch.randn(4, 2), name == "context-few"
    ensemble = {k: torch.stack([p, 1.01 * p]).detach() for k, p in flow.named_parameters()}

    def energy(at: Tensor, context: Tensor, inverse: bool = False) -> Tensor:
        own = flow.condition(context) if conditional else flow
        out, ladj = (own.inverse_and_ladj if inverse else own.forward_and_ladj)(at)
        return out.sin().sum() + ladj.square().sum()

    def of_parameters(parameters: dict[str, Tensor]) -> Tensor:
        x = torch.func.functional_call(flow, parameters, (z[0],))
        return x.square().sum()

    def results() -> list[Tensor]:
        func, found = torch.func, []
        for inverse in (False, True):
            of_field = functools.partial(energy, inverse=inverse)
            leaves = z.clone().requires_grad_(), context.clone().requires_grad_()
            each = func.vmap(of_field)(*leaves)
            twice = func.vmap(func.vmap(of_field))(*(t.unflatten(0, (2, 2)) for t in leaves))
            shared = func.vmap(of_field, (0, None))(leaves[0], leaves[1][0])
            parameters = [p for p in flow.parameters() if p.requires_grad]
            free = [*leaves, *parameters] if conditional else [leaves[0], *parameters]
            total = (each.sin() + twice.flatten() + shared).sum()
            found += [each, twice, shared, *torch.autograd.grad(total, free, allow_unused=True)]
            found += [func.vmap(func.grad(of_field))(z, context)]
            found += func.jvp(lambda at, f=of_field: f(at, context), (z,), (z.cos(),))
        if not conditional:
            found += [func.vmap(of_parameters)(ensemble)]
            found += func.vmap(func.grad(of_parameters))(ensemble).values()
        return [tensor for tensor in found if tensor is not None]

    agree(results, 1e-8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's
def test_batched_gradients_and_forward_over_backward() -> None:
    flow, _, z = prepared("odd", batch=2)
    z.requires_grad_()
    x, _ = flow.forward_and_ladj(z)
    several = torch.randn(3, *x.shape)
    batched = torch.autograd.grad(x, z, several, is_grads_batched=True, retain_graph=True)[0]
    each = [torch.autograd.grad(x, z, one, retain_graph=True)[0] for one in several]
    torch.testing.assert_close(batched, torch.stack(each))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(several[0], several[1])
        (pulled,) = torch.autograd.grad(x, z, dual)
        primal, tangent = torch.autograd.forward_ad.unpack_dual(pulled)
    torch.testing.assert_close(primal, each[0])
    torch.testing.assert_close(tangent, each[1])


@pytest.mark.parametrize("name", ["sites", "context"])
def test_autocast_does_not_reach_the_couplings(name: str) -> None:
    _, transform, z = prepared(name)
    transform, z = transform.float(), z.float()
    expected = transform(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = transform(z.clone())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["odd", "context", "context-odd"])
def test_score_of_the_context(name: str) -> None:
    """Against one inverse pass and autograd."""
    flow, _, z = prepared(name)
    inner = flow if name == "odd" else flow.flow
    h = z.movedim(0, -1).contiguous()
    context = None if name == "odd" else torch.randn(inner.context_dim, BATCH)
    found = inner.push_score(h, -h, context, True)
    expected = LatticeTransform.push_score(inner, h, -h, context, True)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 5.0, 30.0, 100.0])
def test_steep_inverse(size: float, dtype: torch.dtype) -> None:
    """Weights of a size that only the bracketed iteration inverts."""
    flow = hierarchical_flow((2,), "brickwork", depth=1, bijector=Neighbour(1, (3,)))
    with torch.no_grad():
        flow.layers[0][0].packed.normal_(std=0.3 * size)
    flow.to(dtype)
    x = 3 * torch.randn(500, 2, dtype=dtype)
    z, ladj = flow.inverse_and_ladj(x)
    back, ladj_back = flow.forward_and_ladj(z)
    with plain_torch():
        plain = flow.inverse_and_ladj(x.clone())[0]
        residual = float((flow.forward_and_ladj(plain)[0] - x).detach().abs().max())
    assert float((back - x).detach().abs().max()) <= 4 * residual + 1e4 * torch.finfo(dtype).eps
    if dtype == torch.float64:
        torch.testing.assert_close(ladj_back, ladj, rtol=1e-8, atol=1e-8)
    few, _ = flow.inverse_and_ladj(x[:5])
    assert torch.equal(few, z[:5])  # however long the others take


def test_a_replaced_layer_is_used() -> None:
    flow, _, z = prepared("odd")
    other = copy.deepcopy(flow)
    with torch.no_grad():
        other.layers[0][0].packed.add_(0.01)
    flow.layers[0] = other.layers[0]
    torch.testing.assert_close(flow(z.clone()), other(z))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork() -> None:
    """The child, which has none of the threads, starts its own."""
    flow, _, z = prepared("odd", batch=300)
    expected, before = flow(z), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads.share(lambda part: None, 4)  # now there are threads
        child = os.fork()
        if child == 0:
            status = 1
            try:
                done: list[int] = []
                threads.share(done.append, 4)
                torch.set_num_threads(1)  # torch's own OpenMP does not survive a fork
                good = sorted(done) == [0, 1, 2, 3] and torch.equal(flow(z.clone()), expected)
                status = 0 if good else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_several_threads_of_python() -> None:
    flow, _, z = prepared("odd", batch=300)
    expected = flow.forward_and_ladj(z)[0]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: flow.forward_and_ladj(z)[0], range(15)))
    assert all(torch.equal(one, expected) for one in found)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, and gives the same numbers to rounding."""
    flow, _, z = prepared("odd")
    expected = flow(z)
    monkeypatch.setattr(operation.importlib.util, "find_spec", lambda name: None)
    operation._has_numba.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba is not installed"):
            found = flow(z.clone())
        flow(z.clone())  # said once
    finally:
        operation._has_numba.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_importing_and_building_compile_nothing() -> None:
    program = (
        "import sys, pyro_neuralrg; pyro_neuralrg.IsingDual((4, 4)).flow(); "
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_default_flow_is_compiled() -> None:
    """Or all of this would compare the reference with itself."""
    flow = IsingDual((4, 4)).flow()
    assert operation.is_compiled(flow._couplings(None), torch.randn(16, 3))
    assert operation.is_compiled(flow.float()._couplings(None), torch.randn(16, 3).float())
