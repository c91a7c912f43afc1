# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring, and every Python block of README and pages, runs as printed."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
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
LONG_PAGES = [ROOT / "README.md", ROOT / "tutorials" / "recipes.md"]
"""Their blocks run with fewer steps than a reader takes."""
PYTHON = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", flags=re.DOTALL)
"""A Python block, and the text block right behind it, which is what it prints, or how it ends."""
ENDS_IN_ERROR = re.compile(r"\w+(Error|Warning): ")
PAGES = [
    page
    for page in sorted((ROOT / "tutorials").glob("*.md"))
    if page not in LONG_PAGES and PYTHON.search(page.read_text(encoding="utf-8"))
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module: str) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for example in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def python_blocks(page: Path) -> list[tuple[str, str]]:
    return PYTHON.findall(page.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.filterwarnings("ignore:the .* estimate rests on:UserWarning")
@pytest.mark.parametrize("page", LONG_PAGES, ids=lambda page: page.stem)
def test_long_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in order, in one namespace, and what they print is not compared."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert blocks
    namespace: dict[str, object] = {}
    for block, _ in blocks:
        shorter = re.sub(r"\b(range\(|steps=|num_samples=|warmup_steps=)[\d_]+", r"\g<1>5", block)
        shorter = re.sub(r"\b(num_particles|num_draws)=[\d_]+", r"\g<1>=32", shorter)
        exec(compile(shorter, page.name, "exec"), namespace)


def outcome(block: str, name: str, namespace: dict[str, object], ends_in_error: bool) -> str:
    """What a block prints; or its error or warning, at which it is to end."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(block, name, "exec"), namespace)
    except Exception as error:
        if not ends_in_error:
            raise
        return f"{type(error).__name__}: {error}"
    return printed.getvalue()


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, in one namespace, and print what stands below them.

    Where a line such as "ValueError: message" stands there, or "UserWarning: message", it is how
    the block ends; "..." stands for anything.
    """
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block, text in python_blocks(page):
        found = outcome(block, page.name, namespace, bool(ENDS_IN_ERROR.match(text)))
        if text:
            assert doctest.OutputChecker().check_output(text, found, OPTIONS), found
