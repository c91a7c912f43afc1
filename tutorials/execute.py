# SPDX-License-Identifier: Apache-2.0
"""Execute tutorials at full length and keep their outputs: figures and what was printed.

``python tutorials/execute.py quickstart free_energy`` from a checkout with the ``tutorials`` extra.
A notebook keeps a fingerprint of the code of its cells that its outputs came from, which a test
compares, and names the version of the package, which nothing compares. The pictures of one with a
folder of its name are also written there, for pages that show them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|| \d+/\d+ \(\d+ %\), |\b\d+it \[")
"""A progress bar, a line of progress, or a count without a known end."""


def fingerprint(notebook: dict[str, Any]) -> str:
    """Hash of the code of all cells."""
    code = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def keep(notebook: dict[str, Any], made_by: str) -> dict[str, Any]:
    """Keep what is worth it of an executed notebook: no times, no progress bars.

    Args:
        notebook: Executed, in the form of nbformat 4; changed in place.
        made_by: Version of the package that its outputs came from.
    """
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            outputs = (without_progress(output) for output in cell["outputs"])
            cell["outputs"] = [output for output in outputs if output is not None]
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "executed": fingerprint(notebook),
        "made_by": made_by,
    }
    return notebook


def without_progress(output: dict[str, Any]) -> dict[str, Any] | None:
    """An output less its progress bars, as text or as a widget; None if nothing is left.

    Warnings stay, without the folder that they came from.
    """
    if WIDGET in output.get("data", {}):
        return None
    if output.get("name") != "stderr":
        return output
    lines = re.split(r"[\r\n]", "".join(output["text"]))
    kept = [line for line in lines if line.strip() and not PROGRESS.search(line)]
    if not kept:
        return None
    text = "".join(f"{re.sub(r'^/.*/(?=[^/]+:[0-9]+: )', '', line)}\n" for line in kept)
    if text == "".join(output["text"]):
        return output
    return type(output)({**output, "text": text})  # of nbformat, if it was


def pictures(notebook: dict[str, Any]) -> list[bytes]:
    """The PNGs of all outputs, in order."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    return [base64.b64decode(one["image/png"]) for one in data if "image/png" in one]


def made_by() -> str:
    """The version of the package and the commit that its code was at."""
    import pyro_neuralrg

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    commit = git("describe", "--always")
    if git("status", "--porcelain", "--", "../pyro_neuralrg"):
        commit += ", changed"
    return f"pyro_neuralrg {pyro_neuralrg.__version__}" + (f", commit {commit}" if commit else "")


def execute(path: Path, version: str) -> None:
    """Execute one notebook from top to bottom, in a folder of its own, and write it back."""
    import nbformat  # of the tutorials' extra, as is the next
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
        client.execute()
    nbformat.write(keep(notebook, version), path)
    if path.with_suffix("").is_dir():
        for number, picture in enumerate(pictures(notebook), 1):
            (path.with_suffix("") / f"{number}.png").write_bytes(picture)


def main() -> None:
    """Execute the notebooks named, or all."""
    os.environ.pop("NEURALRG_SMOKE", None)
    os.environ["PYTHONPATH"] = f"{HERE / 'paper'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    version = made_by()  # before the first is written
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb")):
        execute(HERE / f"{name}.ipynb", version)


if __name__ == "__main__":
    main()
