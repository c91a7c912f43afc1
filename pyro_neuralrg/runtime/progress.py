# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The one progress bar of a run; lines of text where nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

BAR_SECONDS = 0.2
"""Seconds between two new figures of a bar: they may cost as much as a step."""

LINE_SECONDS = 30.0
"""Seconds between two lines."""

LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"


class Progress:
    """Progress of a run on stderr: a bar on a terminal or in a notebook, else a line now and then.

    Lines come with the first step, every half a minute, and with the last step.

    Args:
        total: steps.
        label: what the steps are of.
        shown: whether anything is.
        done: steps that were made before.

    Example:
        >>> import contextlib, io
        >>> with contextlib.redirect_stderr(io.StringIO()) as out, Progress(20, "fit") as progress:
        ...     for loss in range(20):
        ...         progress.step(lambda: f"F {loss}")
        >>> [line.split(",")[0] + line[-4:] for line in out.getvalue().splitlines()]
        ['fit: 1/20 (5 %) F 0', 'fit: 20/20 (100 %)F 19']
    """

    def __init__(self, total: int, label: str, shown: bool = True, done: int = 0) -> None:
        self._figures: Callable[[], str] | None = None
        self._shown_at = self._shown_n = -1.0
        options: dict[str, Any] = {}
        self._interval = BAR_SECONDS
        if "ipykernel" not in sys.modules and not sys.stderr.isatty():
            options = {"file": _Lines(), "bar_format": LINE, "delay": 1e-9}
            self._interval = LINE_SECONDS
        self._bar: Any = tqdm(total=total, initial=done, desc=label, disable=not shown, **options)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last figures."""
        if self._figures is not None and self._shown_n != self._bar.n:
            self._show()
        self._bar.leave = "ipykernel" in sys.modules or sys.stderr.isatty()
        self._bar.close()

    def step(self, figures: Callable[[], str], label: str | None = None) -> None:
        """Count a step.

        Args:
            figures: returns what is to be shown of it; called only if it is shown.
            label: of it, if it is another one from here on.
        """
        if self._bar.disable:
            return
        self._bar.n += 1
        self._figures = figures
        if label is not None:
            self._bar.set_description_str(label, refresh=False)
        if self._shown_n < 0 or time.monotonic() - self._shown_at > self._interval:
            self._show()

    def _show(self) -> None:
        assert self._figures is not None
        self._shown_at, self._shown_n = time.monotonic(), self._bar.n
        self._bar.set_postfix_str(self._figures())


class _Lines:
    """A stream in which a bar becomes lines, one each time that it is shown."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
