# SPDX-License-Identifier: Apache-2.0
"""Guides through Pyro's parameter store, as its tutorials save and load them, and through files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor

import pyro_neuralrg
from pyro_neuralrg.infer import AutoHierarchicalFlow, FlowGuide
from pyro_neuralrg.transforms import hierarchical_flow
from tests.infer import autoguide_models as models
from tests.infer.autoguide_models import CASES, shaken, train

pytestmark = pytest.mark.filterwarnings("ignore:the guide begins at")  # of subsampled data

LATE = CASES["subsampled observations"].args


def auto(name: str, **options: Any) -> Callable[[], AutoHierarchicalFlow]:
    case = CASES[name]
    options = {"prototype_args": case.args, **models.SMALL, **options}
    return lambda: AutoHierarchicalFlow(case.model, **options)


GUIDES: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[Any, ...]]] = {
    "field and globals": (auto("field and globals"), (10,), ()),
    "globals": (auto("globals only"), (2,), ()),
    "widths": (auto("one field", init_scale=0.3), (16,), ()),
    "late": (auto("subsampled observations", prototype_args=()), (4,), LATE),
    "flow": (lambda: FlowGuide(hierarchical_flow((4, 4))), (4, 4), ()),
    # with a random permutation, which is a buffer
    "permuted": (lambda: FlowGuide(affine_autoregressive(6), shape=(6,)), (6,), ()),
}


def log_prob(guide: Any, x: Tensor) -> Tensor:
    q = guide.distribution() if isinstance(guide, FlowGuide) else guide.get_posterior()
    return q.log_prob(x)


def check_same(guide: Any, x: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(log_prob(guide, x), expected, rtol=0, atol=0)


def save_and_clear(path: str) -> Any:
    store = pyro.get_param_store()
    store.save(path)
    pyro.clear_param_store()
    return store


@pytest.mark.parametrize("order", ["loaded before", "loaded after", "after a call"])
@pytest.mark.parametrize("name", GUIDES)
def test_a_reloaded_store_gives_the_same_guide(name: str, order: str, tmp_path: Path) -> None:
    make, shape, args = GUIDES[name]
    guide, points, path = make(), torch.randn(5, *shape), str(tmp_path / "store")
    guide(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    guide(*args)
    expected = log_prob(guide, points).detach()
    store = save_and_clear(path)
    torch.manual_seed(1)  # the start of a guide depends on draws
    if order == "loaded before":
        store.load(path)
    other = make()
    if order == "after a call":
        other(*args)
        assert (log_prob(other, points) != expected).all()
    if order != "loaded before":
        store.load(path)
    if name == "late":
        other(*args)
    check_same(other, points, expected)
    other(*args)
    check_same(other, points, expected)
    of_store = {id(value) for _, value in store.named_parameters()}
    assert {id(parameter) for parameter in other.parameters()} <= of_store


def test_training_goes_on_from_a_loaded_store(tmp_path: Path) -> None:
    case, path = CASES["field and globals"], str(tmp_path / "store")
    train(models.make(case), case)
    saved = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    store = save_and_clear(path)
    store.load(path)
    guide = models.make(case)
    train(guide, case, 3)
    moved = {name for name, value in store.items() if not torch.equal(value, saved[name])}
    fixed = "transform$$$frame.", "field_flow.frame.pace"
    assert moved == {name for name in saved if not any(part in name for part in fixed)}
    u = torch.randn(3, case.dim)
    expected = log_prob(guide, u)
    store.save(path)
    store.load(path)  # of its own
    check_same(guide, u, expected)


def test_a_guide_moved_to_another_dtype_is_saved_as_it_is(tmp_path: Path) -> None:
    case, path = CASES["field and globals"], str(tmp_path / "store")
    guide = models.make(case).float()
    guide()
    guide.double()
    with torch.no_grad():
        guide.get_transform().frame.mean.add_(1e-9)
    guide()
    save_and_clear(path).load(path)
    u = torch.randn(3, case.dim)
    found = log_prob(models.make(case).double(), u)  # the first to ask gets what was loaded
    check_same(guide, u, found)


def test_the_advice_for_files_works(tmp_path: Path) -> None:
    case, path = CASES["field and globals"], tmp_path / "guide.pt"
    guide, other = shaken(models.make(case)), models.make(case, init_scale=None)
    with pytest.raises(TypeError, match=r"torch\.save\(guide\.state_dict\(\), path\)"):
        pyro_neuralrg.save(path, guide)  # type: ignore[arg-type]
    torch.save(guide.state_dict(), path)
    other.load_state_dict(torch.load(path))
    u = torch.randn(3, case.dim)
    check_same(other, u, log_prob(guide, u))
