# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom, with few steps, and its assertions hold."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

import pyro_neuralrg

FOLDER = Path(pyro_neuralrg.__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
SLOW = {
    "cox_process",
    "crystal",
    "elevation_holes",
    "image_restoration",
    "inverse_problems",
    "lattice_priors",
    "paper_fig3",
    "paper_fig4",
    "renormalization_group",
    "ring_polymer",
    "sampling_and_diagnostics",
    "temperature_conditioned",
    "your_own_model",
}
"""They take many seconds, and other tests run what they call."""
MOST_BYTES = 200_000
"""Largest size of a notebook with its outputs."""

spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def code_of(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in code_cells(path))


def marks_of(path: Path) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.slow] * (path.stem in SLOW)
    if path.stem == "renormalization_group":  # in twenty steps
        marks.append(pytest.mark.filterwarnings("ignore:training diverged:UserWarning"))
    return marks


@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=marks_of(path)) for path in TUTORIALS]
)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALRG_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(path.parent / "paper")
    exec(compile(code_of(path), str(path), "exec"), {"__name__": "__main__"})


@every_tutorial
def test_asserts_a_number_in_short_functions(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(code_of(path))))
    assert any(isinstance(node, ast.Assert) for node in nodes)
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 10 for node in functions)


@every_tutorial
def test_kept_outputs_are_those_of_one_run_of_this_code(path: Path) -> None:
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    counts = [cell["execution_count"] for cell in cells]
    if not outputs and not any(counts):
        pytest.skip("no outputs are kept")
    assert counts == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert all(execute.without_progress(output) == output for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.get("name") == "stdout" for output in outputs)
    assert path.stat().st_size < MOST_BYTES
    executed = json.loads(path.read_text(encoding="utf-8"))["metadata"]["executed"]
    assert executed == hashlib.sha256(code_of(path).encode()).hexdigest()


def test_pictures_of_the_results_are_those_of_the_notebook() -> None:
    path = FOLDER / "renormalization_group.ipynb"
    kept = execute.pictures(json.loads(path.read_text(encoding="utf-8")))
    page = (FOLDER / "renormalization_results.md").read_text(encoding="utf-8")
    shown = re.findall(r"\((renormalization_group/\d+\.png)\)", page)
    assert len(shown) >= 4
    assert [(FOLDER / name).read_bytes() for name in shown] == kept
