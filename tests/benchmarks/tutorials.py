# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Time of every tutorial in smoke mode: ``python -m tests.benchmarks.tutorials``.

Each notebook runs in an interpreter of its own, imports included, as its reader would run it with
NEURALRG_SMOKE set. CPU time is that of all its threads; wall time is longer on a busy machine. All
together are to take less than eight minutes on two cores.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.harness import HERE, Table, parse

TUTORIALS = HERE / "tutorials"
MINUTES = 8


def smoke(path: Path) -> tuple[float, float, int]:
    """CPU and wall seconds of one notebook, and its exit status."""
    environment = os.environ | {"NEURALRG_SMOKE": "1", "MPLBACKEND": "Agg"}
    places = (str(HERE), str(TUTORIALS / "paper"), os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(places)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.returncode:
        print(found.stderr, file=sys.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, found.returncode


def main() -> int:
    """Print a line for each and for all."""
    names = sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
    of_names = {"nargs": "*", "choices": names, "help": "of tutorials; all, if there is none"}
    chosen = parse(__doc__, ("names", of_names)).names or names
    total_cpu = total_wall = 0.0
    failed = []
    table = Table(28, {"CPU s": "8.1f", "wall s": "8.1f"})
    for name in chosen:
        cpu, wall, status = smoke(TUTORIALS / f"{name}.ipynb")
        total_cpu, total_wall = total_cpu + cpu, total_wall + wall
        failed += [name] if status else []
        table.row(name, cpu, wall, note="failed" if status else "")
    table.row("all", total_cpu, total_wall, note=f"(at most {60 * MINUTES} on two cores)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
