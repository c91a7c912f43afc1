# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom, with few steps, and its assertions hold."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_there_are_tutorials() -> None:
    assert TUTORIALS


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALRG_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(path), str(path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_asserts_a_number_in_short_functions(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(code_of(path))))
    assert any(isinstance(node, ast.Assert) for node in nodes)
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 10 for node in functions)
