# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring, and every Python block of the README and the pages, runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pyro_neuralrg

MODULES = [
    info.name
    for info in pkgutil.walk_packages(pyro_neuralrg.__path__, f"{pyro_neuralrg.__name__}.")
    if not info.name.endswith("__main__")
]
ROOT = Path(pyro_neuralrg.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "tutorials" / "recipes.md"]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for example in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.filterwarnings("ignore:the .* estimate rests on:UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in order, in one namespace, with fewer steps than a reader takes."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        shorter = re.sub(r"\b(range\(|steps=|num_samples=|warmup_steps=)[\d_]+", r"\g<1>5", block)
        shorter = re.sub(r"\b(num_particles|num_draws)=[\d_]+", r"\g<1>=32", shorter)
        exec(compile(shorter, str(page), "exec"), namespace)
