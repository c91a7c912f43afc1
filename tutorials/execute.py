# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Execute tutorials at full length and keep their outputs: figures and what was printed.

``python tutorials/execute.py quickstart free_energy`` from a checkout with the ``tutorials`` extra.
A notebook keeps a fingerprint of the code that its outputs came from; a test compares them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """Of the code of all cells."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def keep(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """What is worth keeping of an executed notebook: no times, no progress bars."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "executed": fingerprint(notebook),
    }
    return notebook


def is_progress(output: nbformat.NotebookNode) -> bool:
    """A bar, as text or as a widget, or a warning."""
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def execute(path: Path) -> None:
    """Execute one notebook from top to bottom, in a folder of its own, and write it back."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
        client.execute()
    nbformat.write(keep(notebook), path)


def main() -> None:
    """Execute the notebooks named, or all."""
    os.environ.pop("NEURALRG_SMOKE", None)
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb")):
        execute(HERE / f"{name}.ipynb")


if __name__ == "__main__":
    main()
