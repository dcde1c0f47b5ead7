"""What is known of an artifact, and an artifact as a binary file."""

from __future__ import annotations

import io
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self, TypeAlias

from kvstate.clock import datetime_of
from kvstate.errors import InvalidValue
from kvstate.places import raise_os_error
from kvstate.policy import TIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from typing_extensions import Buffer

    from kvstate.blob_reader import BlobReader
    from kvstate.codec import Value
    from kvstate.staging import Staging

__all__ = [
    "Artifact",
    "ArtifactReader",
    "ArtifactWriter",
    "Content",
    "copy_in",
    "tier_index",
]

_READ_BYTES = 1 << 20

Content: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO"
"""What `Artifacts.put` takes: bytes, the path of a file (a PathLike), or a binary file."""


class Artifact(NamedTuple):
    """What is known of an artifact. Sizes are bytes, times nanoseconds since 1970 UTC (0: never).

    ``modified_at_ns`` is what tools set it to, ``written_at_ns`` when content was last written by
    the store's own clock. ``problem`` is why it could not be moved, ``returns_at_ns`` when a
    restoration for a time ends; ``sha256`` is empty unless its tenant asks for one.
    """

    name: str
    tenant: str
    workflow: str
    artifact: str
    tier: str
    size: int
    digest: str
    created_at_ns: int
    modified_at_ns: int
    accessed_at_ns: int
    due_at_ns: int
    metadata: dict[str, Value]
    holds: dict[str, Value]
    revision: int
    written_at_ns: int
    sha256: str
    problem: str
    returns_at_ns: int

    @property
    def created_at(self) -> datetime:
        """When it was first stored, in UTC."""
        return datetime_of(self.created_at_ns)

    @property
    def modified_at(self) -> datetime:
        """When its content was last written, in UTC."""
        return datetime_of(self.modified_at_ns)

    @property
    def accessed_at(self) -> datetime:
        """When it was last known to be read, in UTC."""
        return datetime_of(self.accessed_at_ns)

    @property
    def due_at(self) -> datetime | None:
        """When it leaves its tier, in UTC; None for never."""
        return datetime_of(self.due_at_ns) if self.due_at_ns else None


def tier_index(tier: object) -> int:
    """Give a tier's number; `InvalidValue` for another word."""
    if tier not in TIERS:
        raise InvalidValue("tier", f"{tier!r} is none of {', '.join(TIERS)}")
    return TIERS.index(str(tier))


class ArtifactReader(io.RawIOBase):
    """An artifact opened for reading: a seekable binary file, verified as it is read."""

    def __init__(self, name: str, reader: BlobReader) -> None:
        super().__init__()
        self.name = name
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer as far as there are bytes; give their number."""
        view = memoryview(buffer).cast("B")
        data = self._reader.pread(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Give all that is left."""
        data = self._reader.pread(self._at, max(0, self._reader.size - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to an offset from the start, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.size}
        if whence not in base:
            raise InvalidValue("whence", f"{whence!r} is none of 0, 1, 2")
        at = base[whence] + offset
        if at < 0:
            raise InvalidValue("offset", f"{at} lies before the start")
        self._at = at
        return at

    def tell(self) -> int:
        """Give the offset."""
        return self._at

    def close(self) -> None:
        """Let go of the content."""
        self._reader.close()
        super().close()


class ArtifactWriter(io.RawIOBase):
    """An artifact opened for writing: stored on close, and not at all after an exception."""

    def __init__(self, store: Callable[[Staging], Artifact], staging: Staging) -> None:
        super().__init__()
        self._store = store
        self._staging = staging
        self._done = False
        self.artifact: Artifact | None = None
        """What was stored, after close."""

    def writable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Give the bytes written so far."""
        return self._staging.size

    def write(self, data: Buffer, /) -> int:
        """Take all of the data."""
        if self._done:
            raise InvalidValue("writer", "it is closed")
        return self._staging.write(self._staging.size, memoryview(data).cast("B"))

    def take_file(self, fd: int) -> None:
        """Take all of a file that is open, by the kernel's own copying where it can.

        A pipe, and what a file grows meanwhile, is left to be read.
        """
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and not self._staging.size:
            self._staging.take(fd, info.st_size)
            os.lseek(fd, info.st_size, os.SEEK_SET)

    def discard(self) -> None:
        """Forget what was written: nothing is stored."""
        if not self._done:
            self._done = True
            self._staging.discard()
        super().close()

    def close(self) -> None:
        """Store what was written; durable when this returns."""
        if not self._done:
            self._done = True
            try:
                self.artifact = self._store(self._staging)
            finally:
                self._staging.discard()
        super().close()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let somebody else store, or discard, what is written meanwhile."""
        yield
        self._done = True
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # Forgotten without close: an exception may have been the reason, so nothing is stored.
        if not getattr(self, "_done", True):
            self._done = True
            self._staging.discard()


def copy_in(content: Content, writer: ArtifactWriter) -> None:
    """Write bytes, the file at a path, or what a binary file gives."""
    if isinstance(content, bytes | bytearray | memoryview):
        writer.write(content)
    elif isinstance(content, str | os.PathLike):
        _copy_path(content, writer)
    elif hasattr(content, "read"):
        _copy_file(content, writer)
    else:
        kind = type(content).__name__
        raise InvalidValue("content", f"{kind} is neither bytes, a path nor a binary file")


def _copy_path(path: str | os.PathLike[str], writer: ArtifactWriter) -> None:
    try:
        with Path(path).open("rb", buffering=0) as source:
            writer.take_file(source.fileno())
            _copy_file(source, writer)
    except OSError as error:
        raise_os_error(error, str(path))


def _copy_file(source: BinaryIO, writer: ArtifactWriter) -> None:
    while data := source.read(_READ_BYTES):
        if not isinstance(data, bytes):
            raise InvalidValue("content", "the file gives text, not bytes: open it with 'rb'")
        writer.write(data)
