# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Files of tensors and plain data: written whole or not at all, checked, never executed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_neuralrg.files.atomic import writing

__all__ = [
    "DamagedFileError",
    "FileFormat",
    "OtherRunError",
    "VersionError",
    "checksum",
    "differences",
    "named",
    "one_line",
]


TORCH = b"PK"
"""That a file of torch.save begins with, which is an archive."""


class DamagedFileError(ValueError):
    """A file that is not as it was written."""


class VersionError(ValueError):
    """A file that is whole, but of another version."""


class OtherRunError(ValueError):
    """A file of a run with other settings.

    Attributes:
        differing: see :func:`differences`.
    """

    def __init__(self, message: str, differing: Mapping[str, tuple[Any, Any]] | None = None):
        super().__init__(message)
        self.differing = differing or {}


@dataclass(frozen=True)
class FileFormat:
    """One kind of file.

    Attributes:
        name: that the file begins with.
        version: that is written and read.
        writer: who writes it, for messages.
        entries: what a file holds, and of which types.
        sealed: the file begins with a line of its name, its version and the SHA-256 of both and of
            all that follows, which is checked before anything is parsed: no changed bit passes.
    """

    name: str
    version: int
    writer: str
    entries: Mapping[str, tuple[type, ...]]
    sealed: bool = False

    @property
    def accepted(self) -> str:
        """What messages say is accepted."""
        return f"accepted: a file of {self.writer}, version {self.version}"

    def write(
        self,
        path: Path,
        contents: Mapping[str, Any],
        before: Callable[[], object] | None = None,
    ) -> None:
        """Write the file whole or not at all, see :func:`~pyro_neuralrg.files.atomic.writing`.

        Raises:
            OSError: if ``path`` cannot be written.
        """
        head = {"format": self.name, "version": self.version}
        payload = {**head, **contents, "sha256": checksum(contents)}
        data = _bytes(payload)
        with writing(path, before) as stream:
            stream.write(self._seal(data) if self.sealed else data)

    def read(self, path: Path) -> dict[str, Any]:
        """The contents, checked for format, version, types and checksum.

        Raises:
            FileNotFoundError, OSError: if there is no such file, or it cannot be read; the message
                names it.
            VersionError: if it is of another version (a ValueError).
            DamagedFileError: if it is corrupt, or holds anything but tensors and plain data (a
                ValueError).
            ValueError: if it is of another format.
        """
        accepted = self.accepted
        try:
            data = path.read_bytes()
        except OSError as error:  # reading does not name the file, opening does
            raise OSError(error.errno, error.strerror, str(path)) from None
        stream = self._unseal(path, data) if self.sealed else io.BytesIO(data)
        try:
            payload = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DamagedFileError(
                f"{path} is corrupt or holds more than tensors and plain data "
                f"({one_line(error)}); {accepted}"
            ) from None
        known = payload.get("format") if isinstance(payload, dict) else None
        if not isinstance(known, str) or known != self.name:
            raise ValueError(f"{path} is not a {self.name.split('.')[-1]} file; {accepted}")
        version = payload.get("version")
        if type(version) is not int or version != self.version:
            raise VersionError(f"{path} has version {str(version)[:40]}; {accepted}")
        missing = set(self.entries) - set(payload)
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; {accepted}")
        for name, types in self.entries.items():
            if not isinstance(payload[name], types):
                seen = type(payload[name]).__name__
                raise DamagedFileError(f"{path} is corrupt: its {name} is a {seen}; {accepted}")
        contents = {name: payload[name] for name in self.entries}
        if payload.get("sha256") != checksum(contents):
            raise DamagedFileError(
                f"{path} is corrupt: its checksum is not that of its contents; {accepted}"
            )
        return contents

    def _seal(self, data: bytes) -> bytes:
        """The data behind the line that vouches for them."""
        head = f"{self.name} {self.version}"
        return f"{head} {_digest(head, data)}\n".encode() + data

    def _unseal(self, path: Path, sealed: bytes) -> io.BytesIO:
        """The data, if the line before them holds."""
        if sealed.startswith(TORCH):
            raise VersionError(
                f"{path} has no seal: it is of an earlier version, or another file of torch; "
                f"{self.accepted}"
            )
        line, _, data = sealed.partition(b"\n")
        head, _, digest = line.decode("ascii", "replace").rpartition(" ")
        name, _, version = head.rpartition(" ")
        if digest != _digest(head, data):
            raise DamagedFileError(
                f"{path} is corrupt: its checksum is not that of its contents; {self.accepted}"
            )
        if name != self.name:
            raise ValueError(f"{path} is not a {self.name.split('.')[-1]} file; {self.accepted}")
        if version != str(self.version):
            raise VersionError(f"{path} has version {version[:40]}; {self.accepted}")
        return io.BytesIO(data)


def _bytes(payload: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(payload, stream)
    return stream.getvalue()


def _digest(head: str, data: bytes) -> str:
    return hashlib.sha256(head.encode() + b"\n" + data).hexdigest()


def checksum(value: Any) -> str:
    """SHA-256 over plain data and tensors, down to their bytes.

    Torch's own reader does not check those.
    """
    found = hashlib.sha256()
    if isinstance(value, Mapping):
        for key, entry in value.items():
            found.update(f"{key!r}: {checksum(entry)}".encode())
    elif isinstance(value, list | tuple):
        for entry in value:
            found.update(checksum(entry).encode())
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(f"{type(value).__name__} {value!r}".encode())
    return found.hexdigest()


def differences(saved: str, present: str) -> dict[str, tuple[Any, Any]]:
    """Every setting of a file, as JSON, which is not that of now: its value there, and here.

    Example:
        >>> differences('{"steps": 3, "shape": [4]}', '{"steps": 5, "shape": [4]}')
        {'steps': (3, 5)}
    """
    theirs, ours = dict(_flat(json.loads(saved))), dict(_flat(json.loads(present)))
    return {
        name: (theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    }


def named(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """The :func:`differences` in words.

    Example:
        >>> named({"steps": (3, 5), "seed": (0, 1)})
        'steps 3 (here 5); seed 0 (here 1)'
    """
    return "; ".join(
        f"{name} {saved!r} (here {ours!r})" for name, (saved, ours) in differing.items()
    )


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def one_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
