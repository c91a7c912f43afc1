# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, one line per error and an exit code out.

Exit codes: 0 done; 1 stopped early by a failure, with what there was saved, or done but for the
last checkpoint of a stage, which could not be written; 2 bad input, nothing written; 130
interrupted (Ctrl-C, or SIGTERM with checkpoints), with what there was saved.

Under ``torchrun`` the processes train and sample together; the first one alone prints, estimates
and writes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from pyro_neuralrg import __version__
from pyro_neuralrg.app.experiment import (
    FAILURES,
    CheckpointError,
    Experiment,
    MemoryLimitError,
    one_line,
)
from pyro_neuralrg.app.job import Settings
from pyro_neuralrg.app.report import Output, table
from pyro_neuralrg.runtime.interrupts import deferred_interrupts
from pyro_neuralrg.runtime.processes import joined, processes

__all__ = ["build_parser", "main"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``neuralrg``."""
    parser = _Parser(
        prog="neuralrg",
        description="Neural network renormalization group: free energies and samples of lattices.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ising(commands)
    return parser


def _add_ising(commands: argparse._SubParsersAction[_Parser]) -> None:
    ising = commands.add_parser(
        "ising",
        help="train on the Ising model, estimate its free energy, sample it in the latent space",
        description=(
            "Train a flow on the dual field of the Ising model, estimate -ln Z, and sample the "
            "structure factor in the latent and in the physical space from the same start, each "
            "beside the exact value. Writes report.json, flow.pt, samples.nc (the latent sampler's "
            "run), free_energy.png, structure_factor.png and configurations.png, and removes those "
            "of an earlier run. Ctrl-C ends with what is there, saved."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    new = Settings()
    add = ising.add_argument
    add("--shape", type=int, nargs="+", default=list(new.shape), metavar="L",
        help="sides of the periodic lattice, one to three")  # fmt: skip
    add("--temperature", type=float, default=new.temperature, metavar="T",
        help="in J/k_B; the default is the critical temperature of the square lattice")  # fmt: skip
    add("--steps", type=int, metavar="N", help="training steps (default: from the shape)")
    add("--batch", type=int, metavar="N", help="fields per training step (default: from the shape)")
    add("--seed", type=int, default=new.seed, help="of training and sampling")
    add("--chains", type=int, metavar="N", default=new.chains,
        help="chains of each sampler")  # fmt: skip
    add("--draws", type=int, metavar="N", default=new.draws,
        help="kept draws per chain, after as many for warm-up, at most 200")  # fmt: skip
    add("--compile", action="store_true", help="train through torch.compile, on an accelerator")
    add("--device", default=new.device, help="where torch computes: auto, cpu, cuda, cuda:1, ...")
    add("--dtype", default=new.dtype, choices=["float32", "float64"],
        help="of the flow and of the fields")  # fmt: skip
    add("--checkpoint", metavar="DIR",
        help="folder for checkpoints of training and sampling (default: none)")  # fmt: skip
    add("--every", type=float, metavar="SECONDS",
        help="between checkpoints; Ctrl-C and SIGTERM save one first (default: 60)")  # fmt: skip
    add("--keep", type=int, metavar="K",
        help="newest checkpoints that stay (default: 3)")  # fmt: skip
    add("--resume", action="store_true",
        help="go on from the newest intact checkpoint, if there is one")  # fmt: skip
    add(
        "--history",
        action="store_true",
        help="keep a table of the training steps beside the checkpoints, training/history.csv",
    )
    add("--out", type=Path, default=Path("neuralrg-output"), metavar="DIR",
        help="folder for what is written; made if it is missing")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code, as the module says.
    """
    with joined() as world:
        if world.is_first:
            return _main(arguments)
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    del options["command"]
    out = options.pop("out")
    options["shape"] = tuple(options["shape"])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            experiment = Experiment.prepare(Settings(**options))
            output = Output.prepare(out) if processes().is_first else None
        except FAILURES as error:
            parser.error(one_line(error))
        except KeyboardInterrupt:
            return INTERRUPTED
        return _follow(experiment) if output is None else _run(experiment, output)


def _follow(experiment: Experiment) -> int:
    """Train and sample as part of a group, and leave the rest to its first process."""
    try:
        results = experiment.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CheckpointError, MemoryLimitError):
        return BAD_INPUT
    except FAILURES:
        return FAILED
    if results.stopped == "interrupted":
        return INTERRUPTED
    return FAILED if results.stopped or results.unsaved else DONE


def _run(experiment: Experiment, output: Output) -> int:
    """Run the stages, save what there is however they end, and print the table."""
    try:
        results = experiment.run(on_trained=output.write_training)
        with deferred_interrupts() as pressed:
            output.write(results)
    except KeyboardInterrupt:
        sys.stderr.write("neuralrg: interrupted\n")
        return INTERRUPTED
    except (CheckpointError, MemoryLimitError) as error:
        sys.stderr.write(f"neuralrg: error: {one_line(error)}\n")
        return BAD_INPUT
    except FAILURES as error:
        sys.stderr.write(f"neuralrg: error: {one_line(error)}{_kept(output)}\n")
        return FAILED
    sys.stdout.write(f"{table(results)}\n\nwritten to {output.folder}: {output.names()}\n")
    if results.unsaved:
        sys.stderr.write(f"neuralrg: not written: {'; '.join(results.unsaved)}\n")
    if results.stopped == "interrupted" or pressed:
        sys.stderr.write("neuralrg: interrupted; what was there is saved\n")
        return INTERRUPTED
    if results.stopped:
        sys.stderr.write(f"neuralrg: stopped early: {results.stopped}; what was there is saved\n")
        return FAILED
    return FAILED if results.unsaved else DONE


def _kept(output: Output) -> str:
    return f"; saved: {output.names()}" if output.written else ""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"neuralrg: warning: {' '.join(str(message).split())}\n")
