# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Every public function refuses what it cannot take, naming the argument and what is accepted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pyro_neuralrg import analysis
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.transforms import HierarchicalFlow, hierarchical_flow
from tests.analysis.linear import haar

SHAPE = (2, 2)


class Case(NamedTuple):
    """Makes the arguments, by name, of a call that is right; values of some that are wrong."""

    right: Callable[[], dict[str, Any]]
    wrong: Mapping[str, list[Any]] = MappingProxyType({})


def flow() -> HierarchicalFlow:
    return hierarchical_flow(SHAPE, bijector=haar)


def fields(number: int = 3) -> torch.Tensor:
    return torch.randn(number, *SHAPE)


def information(sites: int = 4) -> analysis.MutualInformation:
    samples = torch.randn(64, sites)
    return analysis.mutual_information(samples, estimator=analysis.Bins(2), shuffles=2)


FIELDS = [torch.zeros(3, 3), torch.zeros(()), fields() * math.nan, fields() * math.inf]
FEW = [fields()[:0], fields()[0]]
FLOATS = [fields().long(), np.zeros((3, *SHAPE))]
INTEGERS = [-1, 1.5, True, [1], 10**9]
VARIABLES = [[], [-1], [4], [1.5], [None], 3, "0"]

NEVER = [None, math.nan, "x", object(), 3j, {}, [], torch.zeros(())]
"""No argument takes one of these, but None where it is the default."""

SCALE = {"scale": INTEGERS}
OF_SCALE = Case(lambda: {"flow": flow(), "scale": 1}, SCALE)
CASES = {
    "block_wavelets": OF_SCALE,
    "by_distance": Case(
        lambda: {"information": information(), "shape": SHAPE, "boundary": "periodic"},
        {"information": [torch.zeros(4, 4), information(9)], "shape": [(2.0, 2), -4]},
    ),
    "by_scale": Case(
        lambda: {"information": information(), "flow": flow()},
        {"information": [information(9)], "flow": [flow().inv]},
    ),
    "effective_energy": Case(
        lambda: {"target": IsingDual(SHAPE), "flow": flow(), "z": fields(), "scale": 1},
        {
            "target": [lambda x: x.sum(), lambda x: 0.0, lambda x: None, IsingDual((3, 3))],
            "z": FIELDS + FLOATS,
            **SCALE,
        },
    ),
    "gaussian_mutual_information": Case(
        lambda: {"covariance": torch.eye(4), "first": [0], "second": [1]},
        {
            "covariance": [torch.ones(2, 2), torch.eye(2) * math.nan, torch.zeros(2, 3), np.eye(4),
                           torch.eye(4).long(), torch.eye(4) + torch.eye(4).roll(1, 0).tril() / 9],
            "first": VARIABLES,
            "second": [*VARIABLES, [0]],
        },
    ),
    "light_cone": Case(lambda: {"circuit": flow().circuit}, {"circuit": [flow()]}),
    "reach": Case(lambda: {"circuit": flow().circuit}, {"circuit": [flow()]}),
    "latents_of_scale": OF_SCALE,
    "mutual_information": Case(
        lambda: {
            "samples": torch.randn(64, *SHAPE), "estimator": analysis.Bins(2), "shuffles": 2,
            "seed": 0,
        },
        {
            "samples": [torch.randn(63, 4), torch.ones(64, 4), torch.randn(64),
                        torch.randn(64, 4) / 0, torch.randn(64, 1), torch.randn(64, 4) + 1j],
            "estimator": [analysis.Bins],
            "shuffles": INTEGERS[:4],
            "seed": INTEGERS[:4],
        },
    ),
    "overlap": Case(
        lambda: {name: torch.eye(4).reshape(4, *SHAPE) for name in ("response", "patterns")},
        {
            "response": [torch.zeros(4, *SHAPE), fields(4) * math.nan, fields(3), torch.randn(4)],
            "patterns": [torch.ones(4, *SHAPE), 2 * torch.eye(4).reshape(4, *SHAPE),
                         fields(4) * math.nan, fields(3), np.eye(4)],
        },
    ),
    "pyramid": Case(lambda: {"flow": flow(), "x": fields()}, {"x": FIELDS + FLOATS}),
    "resample": Case(
        lambda: {"flow": flow(), "x": fields(), "fix": "fine", "scale": 1, "number": 1,
                 "generator": torch.Generator()},
        {"x": FIELDS + FLOATS, "fix": ["all"], "number": INTEGERS[:4], **SCALE},
    ),
    "responses": Case(
        lambda: {"flow": flow(), "x": fields(), "variables": [0], "batch_size": 2},
        {"x": FIELDS + FLOATS + FEW, "variables": VARIABLES, "batch_size": INTEGERS[:4]},
    ),
    "responses_by_scale": Case(
        lambda: {"flow": flow(), "x": fields(), "most": 1, "batch_size": 2},
        {"x": FIELDS + FLOATS + FEW, "most": INTEGERS[:4], "batch_size": INTEGERS[:4]},
    ),
    "scale_of_latents": Case(lambda: {"flow": flow()}),
    "top_energy": Case(
        lambda: {"target": IsingDual(SHAPE), "flow": flow(), "y": torch.zeros(3),
                 "num_samples": 2, "seed": 0},
        {
            "target": [lambda x: x.sum(), lambda x: 0.0, IsingDual((3, 3))],
            "flow": [hierarchical_flow(SHAPE, depth=0)],
            "y": [torch.zeros(2, 2), torch.zeros(0), torch.full((2,), math.nan), np.zeros(3)],
            "num_samples": [*INTEGERS[:4], 1],
            "seed": INTEGERS[:4],
        },
    ),
    "top_variable": Case(
        lambda: {"flow": flow(), "x": fields()},
        {"x": FIELDS + FLOATS, "flow": [hierarchical_flow(SHAPE, depth=0)]},
    ),
    "variables_of_scale": OF_SCALE,
    "written_patterns": Case(
        lambda: {"flow": flow(), "z": fields(), "variables": [0], "batch_size": 2},
        {"z": FIELDS + FLOATS + FEW, "variables": VARIABLES, "batch_size": INTEGERS[:4]},
    ),
}  # fmt: skip


def test_every_public_function_is_here() -> None:
    functions = [n for n in analysis.__all__ if inspect.isfunction(getattr(analysis, n))]
    assert set(CASES) == set(functions)


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_in_a_call_that_is_right_is_named(name: str) -> None:
    function, case = getattr(analysis, name), CASES[name]
    right = case.right()
    assert set(right) == set(inspect.signature(function).parameters)
    assert function(**right) is not None
    for argument, parameter in inspect.signature(function).parameters.items():
        never = [v for v in NEVER if v is not None or parameter.default is not None]
        for value in never + case.wrong.get(argument, []):
            with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b.*accepted: "):
                function(**(right | {argument: value}))


def test_labels_of_groups_and_sizes_of_estimators_are_named() -> None:
    found = information()
    for labels in [*NEVER, torch.zeros(4, 4), torch.zeros(3, 3, dtype=torch.long)]:
        with pytest.raises((TypeError, ValueError), match=r"labels .*accepted: "):
            found.grouped(labels)
    for make, name in ((analysis.Neighbours, "k"), (analysis.Bins, "count")):
        for size in (*INTEGERS[:4], 0):
            with pytest.raises((TypeError, ValueError), match=f"{name} is .*accepted: "):
                make(size)
