# Copyright the pyro_neuralrg contributors.
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
PATIENCE = 300.0


def killed_once(command: list[str], ready: Callable[[], bool]) -> str:
    """Start the command, send SIGKILL as soon as it is ready; return what it had said."""
    with open("killed.txt", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                sys.exit(f"not killed: {Path('killed.txt').read_text(encoding='utf-8')}")
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    if code != -signal.SIGKILL:
        sys.exit(f"ended with {code} before it was killed")
    return Path("killed.txt").read_text(encoding="utf-8")


def finished(command: list[str]) -> dict:
    """Run the command to its end; return its report without times."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}: {done.stderr}")
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
    said = killed_once(command, lambda: len(list(states.glob("training/*.pt"))) == 3)
    check("training starts from the beginning" in said, "--resume without a checkpoint says so")
    steps = max(int(path.stem.split("-")[1]) for path in states.glob("training/*.pt"))
    check(0 < steps < 200 and not out.joinpath("flow.pt").exists(), "killed while training")
    killed_once(command, lambda: len(list(states.glob("latent/*.pt"))) == 3)
    check(not out.joinpath("report.json").exists(), "resumed, and killed while sampling")
    report = finished(command)
    whole = finished([sys.argv[1], "ising", *OPTIONS[:-5], "--out", "whole"])
    check(report == whole, "resumed: the report of a run that was never killed")
    check(finished(command) == report, "resumed when it was finished: the same report")
    samples = arviz.from_netcdf(str(out / "samples.nc"))
    check(samples.posterior["x"].shape == (4, 200, 4, 4), "samples.nc opens in ArviZ")
    mean = float(samples.posterior["structure_factor"].mean())
    found = report["sampling"]["latent"]["structure_factor"]
    check(abs(mean - found) < 1e-6, "with the structure factor of the report")


if __name__ == "__main__":
    main()
