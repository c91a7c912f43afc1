# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and a format for tensors and plain data."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import secrets
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

TORCH_ARCHIVE = b"PK"
"""First bytes of a file of torch.save."""


class VersionError(ValueError):
    """A file that is whole, but of another version."""


@dataclass(frozen=True)
class FileFormat:
    """One kind of file: a line with the name, the version and a checksum, then a torch archive.

    The SHA-256 is over name, version and all that follows. It is checked before anything is parsed,
    so that no changed bit passes: torch's own reader checks none.
    """

    name: str
    version: int
    writer: str  # the call that writes it, for messages

    @property
    def kind(self) -> str:
        """The last part of the name, such as "flow"."""
        return self.name.rpartition(".")[2]

    @property
    def accepted(self) -> str:
        """End of the messages."""
        return f"accepted: a file of {self.writer}, version {self.version}"

    def write(self, path: Path, contents: Mapping[str, Any]) -> None:
        """Write the file whole or, with an OSError, not at all."""
        stream = io.BytesIO()
        torch.save(dict(contents), stream)
        data = stream.getvalue()
        head = f"{self.name} {self.version}"
        with writing(path) as file:
            file.write(f"{head} {_digest(head, data)}\n".encode())
            file.write(data)

    def read(self, path: Path) -> dict[str, Any]:
        """The contents, checked for integrity, format and version.

        Raises:
            OSError: if there is no such file, or it cannot be read; the message names it.
            ValueError: if it is corrupt, of another format or version (a VersionError), or holds
                anything but tensors and plain data.
        """
        try:
            sealed = path.read_bytes()
        except OSError as error:  # reading does not name the file, opening does
            raise OSError(error.errno, error.strerror, str(path)) from None
        data = io.BytesIO(self._unseal(path, sealed))
        try:
            return torch.load(data, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} holds more than tensors and plain data ({one_line(error)}); "
                f"{self.accepted}"
            ) from None

    def _unseal(self, path: Path, sealed: bytes) -> bytes:
        """The data, if the line before them holds."""
        if sealed.startswith(TORCH_ARCHIVE):
            raise VersionError(
                f"{path} has no seal: it is of an earlier version, or another file of torch; "
                f"{self.accepted}"
            )
        line, _, data = sealed.partition(b"\n")
        head, _, digest = line.decode("ascii", "replace").rpartition(" ")
        if digest != _digest(head, data):
            raise ValueError(
                f"{path} is corrupt, or another kind of file: its checksum is wrong; "
                f"{self.accepted}"
            )
        name, _, version = head.rpartition(" ")
        if name != self.name:
            raise ValueError(f"{path} is not a {self.kind} file; {self.accepted}")
        if version != str(self.version):
            raise VersionError(f"{path} has version {version[:40]}; {self.accepted}")
        return data


def _digest(head: str, data: bytes) -> str:
    found = hashlib.sha256(head.encode() + b"\n")
    found.update(data)
    return found.hexdigest()


def one_line(error: BaseException) -> str:
    """The kind and the first line of an error's message."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {textwrap.shorten(lines[0], 160, placeholder=' ...')}" if lines else kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file by another name in the same folder: it takes the place of ``path`` at the end.

    If the block raises, it is removed, and ``path`` is what it was.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write bytes, which are ``path``, on the disk, at the end; an OSError leaves it as it was."""
    # opened as any other file, not by tempfile, so that it gets the permissions of one
    with replacing(path) as temporary, temporary.open("x+b") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(folder: Path, names: str, older_than: float = math.inf) -> None:
    """Remove what killed processes left of files such as ``names``, as for ``Path.glob``.

    Only what was written before ``older_than``, in seconds since the epoch.
    """
    for left in folder.glob(f".{names}.*.tmp"):
        with suppress(OSError):  # it does no harm
            if left.stat().st_mtime < older_than:
                left.unlink()
