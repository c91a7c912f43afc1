# SPDX-License-Identifier: Apache-2.0
"""Every public function refuses what it cannot take, naming the argument and what is accepted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pyro_neuralrg import analysis
from pyro_neuralrg.potentials import IsingDual
from pyro_neuralrg.statistics import Estimate
from pyro_neuralrg.transforms import HierarchicalFlow, hierarchical_flow
from tests.analysis.linear import haar

SHAPE = (2, 2)
FUNCTIONS = [name for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))]


def flow() -> HierarchicalFlow:
    return hierarchical_flow(SHAPE, bijector=haar)


def fields(number: int = 3) -> torch.Tensor:
    return torch.randn(number, *SHAPE)


def information(sites: int = 4) -> analysis.MutualInformation:
    samples = torch.randn(64, sites)
    return analysis.mutual_information(samples, estimator=analysis.Bins(2), shuffles=2)


def right() -> dict[str, Any]:
    """What every function takes, by the name of its argument."""
    units = torch.eye(4).reshape(4, *SHAPE)
    alone = [operator for operator in analysis.OPERATORS if operator.extent == 0]
    return {
        "flow": flow(), "circuit": flow().circuit, "scale": 1, "variables": [0], "batch_size": 2,
        "x": fields(), "z": fields(), "y": torch.zeros(3), "target": IsingDual(SHAPE),
        "samples": torch.randn(64, *SHAPE), "estimator": analysis.Bins(2), "shuffles": 2, "seed": 0,
        "information": information(), "shape": SHAPE, "boundary": "periodic",
        "covariance": torch.eye(4), "first": [0], "second": [1], "response": units,
        "patterns": units, "fix": "fine", "number": 1, "generator": torch.Generator(), "most": 1,
        "num_samples": 2, "fields": fields(), "operators": alone, "parity": "even", "spins": True,
        "signs": False,
        "rule": "average", "blocking": "average", "levels": 1, "normalization": 1.0, "cutoff": 1e-8,
        "blocks": 1, "resamples": 2, "small": 0.6, "large": 0.5,
        "num_fine": 2,
    }  # fmt: skip


NEVER = [None, math.nan, "x", object(), 3j, {}, [], torch.zeros(())]
"""No argument takes one of these, but None where it is the default."""

FIELDS = [torch.zeros(3, 3), torch.zeros(()), fields() * math.nan, fields() * math.inf,
          fields().long(), np.zeros((3, *SHAPE))]  # fmt: skip
INTEGERS = [-1, 1.5, True, [1]]
NUMBERS = [0.0, -1, math.inf, True, "1", Estimate(1.0, -0.1), Estimate(0.0, 0.1)]
VARIABLES = [[], [-1], [4], [1.5], [None], 3, "0"]

WRONG: dict[str, list[Any]] = {
    "batch_size": INTEGERS,
    "blocking": ["mean", haar(4)],
    "blocks": [*INTEGERS, 0, 2],
    "circuit": [flow()],
    "covariance": [torch.ones(2, 2), torch.eye(2) * math.nan, torch.zeros(2, 3), np.eye(4),
                   torch.eye(4).long(), torch.eye(4) + torch.eye(4).roll(1, 0).tril() / 9],
    "cutoff": [-1.0, 1.0, math.inf],
    "estimator": [analysis.Bins],
    "fields": FIELDS[:2] + FIELDS[4:],
    "first": VARIABLES,
    "fix": ["all"],
    "information": [torch.zeros(4, 4), information(9)],
    "large": NUMBERS,
    "levels": [*INTEGERS, 0, 2],
    "most": INTEGERS,
    "normalization": NUMBERS,
    "num_fine": [*INTEGERS, 0],
    "num_samples": [*INTEGERS, 1],
    "number": INTEGERS,
    "operators": [[], ["nearest"], analysis.OPERATORS],
    "parity": ["odder"],
    "patterns": [torch.ones(4, *SHAPE), 2 * torch.eye(4).reshape(4, *SHAPE), fields(4) * math.nan,
                 fields(3), np.eye(4)],
    "resamples": [*INTEGERS, 1],
    "response": [torch.zeros(4, *SHAPE), fields(4) * math.nan, fields(3), torch.randn(4)],
    "rule": ["mean"],
    "samples": [torch.randn(63, 4), torch.ones(64, 4), torch.randn(64), torch.randn(64, 4) / 0,
                torch.randn(64, 1), torch.randn(64, 4) + 1j],
    "scale": [*INTEGERS, 10**9],
    "second": [*VARIABLES, [0]],
    "seed": INTEGERS,
    "shape": [(2.0, 2), -4],
    "shuffles": INTEGERS,
    "signs": [1],
    "small": NUMBERS,
    "spins": [1],
    "target": [lambda x: x.sum(), lambda x: 0.0, IsingDual((3, 3))],
    "variables": VARIABLES,
    "x": FIELDS,
    "y": [torch.zeros(2, 2), torch.zeros(0), torch.full((2,), math.nan), np.zeros(3)],
    "z": FIELDS,
}  # fmt: skip
FEW = [fields()[:0], fields()[0]]
SEVERAL_TOPS = [hierarchical_flow(SHAPE, depth=0)]
SPECIAL: dict[str, Callable[[], dict[str, Any]]] = {
    "running_couplings": lambda: {"x": fields(64)},
    "fixed_point": lambda: {
        "flow": hierarchical_flow((4, 4), "tree", bijector=haar), "x": torch.randn(8, 4, 4)
    },
}  # fmt: skip
"""Of functions that need several scales, or many fields."""
OF_SINGLE_FUNCTIONS: dict[tuple[str, str], list[Any]] = {
    ("by_scale", "flow"): [flow().inv],
    ("mcrg", "fields"): [*FIELDS, fields()[:1], fields()[0], fields()[:, None, None]],
    ("fixed_point", "flow"): [hierarchical_flow((4, 4), depth=1)],
    ("fixed_point", "x"): FEW,
    ("responses", "x"): FEW,
    ("responses_by_scale", "x"): FEW,
    ("running_couplings", "flow"): [hierarchical_flow(SHAPE, boundary="open")],
    ("running_couplings", "x"): [fields()],
    ("top_energy", "flow"): SEVERAL_TOPS,
    ("top_variable", "flow"): SEVERAL_TOPS,
    ("written_patterns", "z"): FEW,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_wrong_in_a_call_that_is_right_is_named(name: str) -> None:
    function, known = getattr(analysis, name), right()
    parameters = inspect.signature(function).parameters
    arguments = {argument: known[argument] for argument in parameters}
    arguments |= SPECIAL[name]() if name in SPECIAL else {}
    assert function(**arguments) is not None
    for argument, parameter in parameters.items():
        never = [v for v in NEVER if v is not None or parameter.default is not None]
        more = OF_SINGLE_FUNCTIONS.get((name, argument), [])
        for value in never + WRONG.get(argument, []) + more:
            with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b.*accepted: "):
                function(**(arguments | {argument: value}))


def test_labels_of_groups_and_sizes_of_estimators_are_named() -> None:
    found = information()
    for labels in [*NEVER, torch.zeros(4, 4), torch.zeros(3, 3, dtype=torch.long)]:
        with pytest.raises((TypeError, ValueError), match=r"labels .*accepted: "):
            found.grouped(labels)
    for make, name in ((analysis.Neighbours, "k"), (analysis.Bins, "count")):
        for size in (*INTEGERS, 0):
            with pytest.raises((TypeError, ValueError), match=f"{name} is .*accepted: "):
                make(size)
