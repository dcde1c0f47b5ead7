"""What working copies ask of staged content, and such content that stays in memory.

That of artifacts is `kvstate.staging.Staging`.
"""

from __future__ import annotations

import errno
from typing import Protocol

from kvstate.sparse import KEEP_SIZE
from kvstatefs.nodes import refuse

__all__ = ["MemoryStaging", "StagedContent"]


class StagedContent(Protocol):
    """Bytes that can still change (`kvstate.staging.Staging`, or memory)."""

    @property
    def size(self) -> int:
        """Bytes so far."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Read what is there."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of the data there."""
        ...

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros."""
        ...

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Reserve room, make a hole or zeros."""
        ...

    def seek(self, offset: int, *, data: bool) -> int:
        """Give where the next data, or else the next hole, is; the size when there is none."""
        ...

    def discard(self) -> None:
        """Let go."""
        ...


class MemoryStaging:
    """Staged content that stays in memory: a key's value."""

    def __init__(self, bytes_max: int) -> None:
        self._data = bytearray()
        self._bytes_max = bytes_max

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        """Read what is there."""
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of the data there; EFBIG past what a value may have."""
        end = offset + len(data)
        if end > self._bytes_max:
            refuse(errno.EFBIG, "a value that large is an artifact")
        if offset > len(self._data):
            self._data += bytes(offset - len(self._data))
        self._data[offset:end] = data
        return len(data)

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros."""
        if size > self._bytes_max:
            refuse(errno.EFBIG, "a value that large is an artifact")
        del self._data[size:]
        self._data += bytes(size - len(self._data))

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Let a range be zeros, if the mode says so, and the content grow to its end."""
        end = offset + length
        if mode & ~KEEP_SIZE:
            stop = min(end, len(self._data))
            self._data[offset:stop] = bytes(max(0, stop - offset))
        if end > len(self._data) and not mode & KEEP_SIZE:
            self.truncate(end)

    def seek(self, offset: int, *, data: bool) -> int:
        """Say that all is data."""
        return offset if data else len(self._data)

    def discard(self) -> None:
        """Let go."""
        self._data = bytearray()
