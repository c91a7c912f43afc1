# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, one line per error and an exit code out.

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
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from pyro_neuralrg import __version__
from pyro_neuralrg.app.ising import FAILURES, QUICK, Experiment, Settings, in_words
from pyro_neuralrg.app.report import FILES, UNFINISHED, Output, table
from pyro_neuralrg.files import CheckpointError, Record
from pyro_neuralrg.runtime.console import deferred_interrupts
from pyro_neuralrg.runtime.memory import MemoryLimitError
from pyro_neuralrg.runtime.processes import joined, processes

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
AFTER_HELP = """\
In the table ESS is the effective number of independent draws, MCSE the statistical error, and R-hat
close to 1 where all chains agree; k-hat below 0.7 says that importance weights can be trusted.

Exit codes: 0 done; 1 stopped early, what there was is saved, or a checkpoint could not be written;
2 bad input, nothing is written; 130 interrupted by Ctrl-C (with checkpoints also by SIGTERM), what
there was is saved."""
RECORD_OPTIONS: dict[str, dict[str, Any]] = {
    "checkpoint": {"metavar": "DIR", "help": "folder for checkpoints, from which a run can go on"},
    "every": {"type": float, "help": "seconds from one checkpoint to the next (default: 60)"},
    "keep": {"type": int, "help": "how many checkpoints of each stage to keep (default: 3)"},
    "resume": {"action": "store_true", "help": "go on from the newest intact checkpoint, if any"},
    "history": {"action": "store_true", "help": "write each step to DIR/training/history.csv"},
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``neuralrg``."""
    parser = _Parser(
        prog="neuralrg",
        description=(
            "Neural network renormalization group: flows that generate the configurations of a "
            "lattice model from coarse to fine. Help on a command: neuralrg COMMAND --help."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ising = commands.add_parser(
        "ising",
        help="train a flow on the Ising model, compute its free energy, and sample it",
        description=(
            "Train a flow on the Ising model in its continuous form: a real field x whose spins "
            "s_i = +-1 follow the Ising model exactly. Compute the free energy -ln Z of x, and the "
            "structure factor <(sum_i s_i)^2>/N^2 by two Monte Carlo runs: with the flow, from its "
            "draws, and without it, by HMC from white noise. Both stand beside their exact "
            f"values in a table. Writes {', '.join(FILES)} (the draws of the latent run are in "
            "samples.nc). Files of an earlier run stay until all the new ones are there; if this "
            f"run fails, its own are in the folder {UNFINISHED}. Ctrl-C ends it and saves what "
            "there is."
        ),
        epilog=AFTER_HELP,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for entry in fields(Settings):
        if entry.metadata:
            told = dict(entry.metadata)
            if not (entry.default is False or "(default: " in told["help"]):
                told["help"] += f" (default: {entry.default})"
            ising.add_argument(f"--{entry.name}", **told)
    for name, told in RECORD_OPTIONS.items():
        ising.add_argument(f"--{name}", **told)
    few = " and ".join(f"{number} {name}" for name, number in QUICK.items())
    quick = f"a shorter run, for a first look: {few}, unless given; within a minute for 8 x 8"
    ising.add_argument("--quick", action="store_true", help=quick)
    folder = "folder for the results (default: neuralrg-output)"
    ising.add_argument("--out", type=Path, default=Path("neuralrg-output"), help=folder)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, of the process if none is given, and return the exit code."""
    with joined() as world, contextlib.ExitStack() as stack:
        if not world.is_first:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    del options["command"]
    out: Path = options.pop("out")
    try:
        experiment = Experiment.prepare(_read_settings(options))
        output = Output.prepare(out) if processes().is_first else None
    except FAILURES as error:
        parser.error(in_words(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return _run(experiment, output)


def _read_settings(options: dict[str, Any]) -> Settings:
    """The settings that options of the command stand for."""
    if options.pop("quick", False):
        options = {**QUICK, **options}
    given = {name: options.pop(name) for name in RECORD_OPTIONS if name in options}
    if "checkpoint" in given:
        options["record"] = Record(given.pop("checkpoint"), **given)
    elif given:
        raise ValueError(f"--{next(iter(given))} needs --checkpoint DIR")
    if "shape" in options:
        options["shape"] = tuple(options["shape"])
    return Settings(**options)


def _run(experiment: Experiment, output: Output | None) -> int:
    """Run the stages, save what there is however they end, and print the table."""
    pressed: list[int] = []
    try:
        if output is None:
            results = experiment.run()
        else:
            results = experiment.run(on_trained=output.write_training)
            with deferred_interrupts() as pressed:
                output.write(results)
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except (CheckpointError, MemoryLimitError) as error:
        return _end(f"error: {in_words(error)}", BAD_INPUT)
    except FAILURES as error:
        saved = f"; {output.told()}" if output and output.written else ""
        return _end(f"error: {in_words(error)}{saved}", FAILED)
    if output is not None:
        sys.stdout.write(f"{table(results)}\n\n{output.told()}\n")
    if results.unsaved:
        _end(f"not written: {'; '.join(results.unsaved)}", FAILED)
    if results.stopped == "interrupted" or pressed:
        return _end("interrupted; what was there is saved", INTERRUPTED)
    if results.stopped:
        return _end(f"stopped early: {results.stopped}; what was there is saved", FAILED)
    return FAILED if results.unsaved else DONE


def _end(line: str, code: int) -> int:
    """Write a line to stderr, and return the exit code."""
    sys.stderr.write(f"neuralrg: {line}\n")
    return code


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"neuralrg: warning: {in_words(message)}\n")
