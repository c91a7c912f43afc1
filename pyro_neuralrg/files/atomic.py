# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, what killed writers have left, and folders in use."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["also_named", "held", "remove_leftovers", "replacing", "writing"]


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
def writing(path: Path, before: Callable[[], object] | None = None) -> Iterator[BinaryIO]:
    """Write bytes, which are ``path`` at the end of the block, and on the disk.

    Opened as any other file, not by ``tempfile``, so that it gets the permissions of one. A lock
    says that its writer is alive, see :func:`remove_leftovers`.

    Args:
        path: the file.
        before: called when the bytes are on the disk, just before they take the place of what
            ``path`` was.

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
    with ExitStack() as stack, replacing(path) as temporary, temporary.open("x+b") as stream:
        stack.enter_context(_locked(stream.fileno()))  # until it has its place
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        if before is not None:
            before()


def also_named(path: Path, other: Path) -> None:
    """Let ``other`` be the file ``path``, too; whatever ``other`` was is replaced.

    Raises:
        OSError: if that cannot be done; ``other`` is what it was.
    """
    with path.open("rb") as present, _locked(present.fileno()):
        try:
            with replacing(other) as temporary:
                os.link(path, temporary)
        except OSError:  # a file system without links
            with writing(other) as stream:
                shutil.copyfileobj(present, stream)


def remove_leftovers(folder: Path, names: str, older_than: float = math.inf) -> None:
    """Remove what processes left that were killed while they wrote.

    What a process that is alive writes at this moment stays: it holds a lock, which ends with it.
    So does everything where the file system knows no locks.

    Args:
        folder: where to look.
        names: pattern of the files that were to be written, as for ``Path.glob``.
        older_than: what was last written since this time, in seconds since the epoch, stays, too:
            nothing is locked in :func:`replacing`.
    """
    for left in folder.glob(f".{names}.*.tmp"):
        with suppress(OSError):  # it does no harm
            if left.stat().st_mtime < older_than and not _is_locked(left):
                left.unlink()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let nobody else hold ``path``, a file of no other use, in the block.

    It ends with the process, too, however that ends. Where there are no locks, or the file cannot
    be made, nothing is held.

    Raises:
        BlockingIOError: if somebody else does.
    """
    fcntl = _locks()
    stream = None if fcntl is None else _exclusive(path, fcntl)
    try:
        yield
    finally:
        if stream is not None:
            with suppress(OSError):
                if _is_at(stream, path):
                    path.unlink()  # before the lock ends: see _exclusive
            stream.close()


def _exclusive(path: Path, fcntl: Any) -> BinaryIO | None:
    """The file, open and locked; None where that cannot be."""
    while True:
        try:
            stream = path.open("ab")  # network file systems want it open for writing
        except OSError:
            return None
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(stream, path):
                return stream
        except BlockingIOError:
            stream.close()
            raise
        except OSError:
            stream.close()
            return None
        stream.close()  # who held it has just removed it: what is locked is no longer there


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold a lock on an open file, also after it is closed; where there are none, do nothing."""
    fcntl = _locks()
    if fcntl is None:
        yield
        return
    held = os.dup(descriptor)
    try:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


def _is_locked(path: Path) -> bool:
    """Whether a living process writes it, or nobody can tell."""
    fcntl = _locks()
    if fcntl is None:  # Windows, where no open file can be removed
        return False
    with path.open("r+b") as stream:  # network file systems want it open for writing
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _locks() -> Any:
    """The module of locks; None where there is none."""
    try:
        return import_module("fcntl")
    except ImportError:  # of Unix only
        return None
