# SPDX-License-Identifier: Apache-2.0
"""Two processes that talk, by gloo, for tests of what they do together."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

__all__ = ["together"]

# Both processes are forked from one that has imported everything but computed nothing.
GROUP = """
import os, signal, sys, warnings
from pathlib import Path
import torch
from torch import distributed
import pyro_neuralrg

folder = Path(sys.argv[1])

def join(rank):
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group(
        sys.argv[2], init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    body(rank)
    distributed.destroy_process_group()

def group():
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                join(rank)
                code = 0
            except RuntimeError as error:
                sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\\n")
            except (ValueError, OSError) as error:
                sys.stderr.write(f"{error}\\n")
            sys.stderr.flush()
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""


def together(
    folder: Path, setting: str, body: str, backend: str = "gloo"
) -> subprocess.CompletedProcess[str]:
    """Run code on both processes, which knows ``rank`` and ``folder``; print their exit codes.

    Args:
        folder: theirs.
        setting: code that both begin with, in which names are made.
        body: what is done then.
        backend: of the group.
    """
    (folder / "meeting").unlink(missing_ok=True)
    lines = textwrap.dedent(setting) + textwrap.dedent(body)
    code = f"{GROUP}\ndef body(rank):\n{textwrap.indent(lines, '    ')}\nprint(group())\n"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), backend],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
