# SPDX-License-Identifier: Apache-2.0
"""Disks that break or are full, for some files."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_neuralrg.files.format import FileFormat


def break_reading(name: str, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Let files whose paths contain this be unreadable, after so many of them were read."""
    read, counter = Path.read_bytes, itertools.count()

    def broken(self: Path) -> bytes:
        if name in str(self) and self.exists() and next(counter) >= after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", broken)


def fill_disk(full: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file of tensors be written for which the disk is full."""
    write = FileFormat.write

    def crowded(self: FileFormat, path: Path, *others: Any) -> None:
        if full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, path, *others)

    monkeypatch.setattr(FileFormat, "write", crowded)
