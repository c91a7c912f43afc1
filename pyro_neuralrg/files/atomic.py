# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and what killed writers leave."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file by name: at the end of the block it takes the place of ``path``.

    Yields:
        Another name in the same folder, of no file yet. If the block raises, it is removed, and
        ``path`` is what it was.

    Raises:
        OSError: if ``path`` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write bytes, which are ``path`` at the end of the block, and on the disk.

    Opened as any other file, not by ``tempfile``, so that it gets the permissions of one.

    Yields:
        A binary stream.

    Raises:
        OSError: if ``path`` cannot be written; it is what it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers.txt")
        ...     with writing(path) as stream:
        ...         _ = stream.write(b"1 2 3")
        ...         there = path.exists()
        ...     there, path.read_text()
        (False, '1 2 3')
    """
    with replacing(path) as temporary, temporary.open("x+b") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(folder: Path, names: str, older_than: float = math.inf) -> None:
    """Remove what processes left that were killed while they wrote.

    Args:
        folder: where to look.
        names: pattern of the files that were to be written, as for ``Path.glob``.
        older_than: seconds since the epoch; what was written later stays.
    """
    for left in folder.glob(f".{names}.*.tmp"):
        with suppress(OSError):  # it does no harm
            if left.stat().st_mtime < older_than:
                left.unlink()
