# SPDX-License-Identifier: Apache-2.0
"""The installed command through a life: trained, killed, resumed, killed while sampling, resumed.

    python tests/wheel_run.py PATH/TO/neuralrg

Needs nothing but what the wheel installs; run in an empty folder. Ends with the samples in ArviZ.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import arviz

OPTIONS = [
    "--shape", "4", "4", "--steps", "200", "--batch", "32", "--chains", "4", "--draws", "200",
    "--checkpoint", "states", "--every", "0", "--resume",
]  # fmt: skip


def killed_once(command: list[str], ready: Callable[[], bool]) -> None:
    """Start the command, and send SIGKILL as soon as it is ready."""
    with open("killed.txt", "w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while not ready():
            if process.poll() is not None:
                sys.exit(f"not killed: {Path('killed.txt').read_text(encoding='utf-8')}")
            time.sleep(0.001)
        process.kill()
    if process.wait() != -signal.SIGKILL:
        sys.exit("ended before it was killed")


def finished(command: list[str]) -> dict:
    """Run the command to its end; return its report without times."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((Path(command[-1]) / "report.json").read_text(encoding="utf-8"))
    del report["training"]["seconds"]
    for sampler in ("latent", "physical"):
        del report["sampling"][sampler]["seconds"], report["sampling"][sampler]["ess_per_second"]
    return report


def check(truth: bool, words: str) -> None:
    """Say what holds, or end."""
    if not truth:
        sys.exit(f"not so: {words}")
    sys.stdout.write(f"{words}\n")


def main() -> None:
    """The life of a run."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the same numbers, whatever the machine does beside
    states, out = Path("states"), Path("out")
    command = [sys.argv[1], "ising", *OPTIONS, "--out", str(out)]
    killed_once(command, lambda: len(list(states.glob("training/*.pt"))) == 3)
    steps = max(int(path.stem.split("-")[1]) for path in states.glob("training/*.pt"))
    check(0 < steps < 200 and not out.joinpath("flow.pt").exists(), "killed while training")
    killed_once(command, lambda: len(list(states.glob("latent/*.pt"))) == 3)
    check(not out.joinpath("report.json").exists(), "resumed, and killed while sampling")
    report = finished(command)
    whole = finished([sys.argv[1], "ising", *OPTIONS[:-5], "--out", "whole"])
    check(report == whole, "resumed: the report of a run that was never killed")
    samples = arviz.from_netcdf(str(out / "samples.nc"))
    check(samples.posterior["x"].shape == (4, 200, 4, 4), "samples.nc opens in ArviZ")
    mean = float(samples.posterior["structure_factor"].mean())
    found = report["sampling"]["latent"]["structure_factor"]
    check(abs(mean - found) < 1e-6, "with the structure factor of the report")


if __name__ == "__main__":
    main()
