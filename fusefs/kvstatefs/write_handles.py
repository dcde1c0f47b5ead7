"""Handles on working copies: of those who write, and of those who read what they write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from kvstatefs.copies import WorkingCopy
from kvstatefs.handles import ReadingHandle
from kvstatefs.nodes import never

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blob_reader import BlobReader
    from kvstatefs.copies import Copies
    from kvstatefs.nodes import Attributes, Changes, Handle

__all__ = ["WriteHandle", "WrittenHandle"]

_COPY_BYTES: Final = 4 << 20

C = TypeVar("C", bound=WorkingCopy)  # type: ignore[type-arg]


class WriteHandle(Generic[C]):
    """A file open for writing."""

    content: bytes | None = None
    slow = True

    def __init__(self, copies: Copies[C], copy: C, *, append: bool) -> None:
        """Belong to one more writer of the working copy."""
        self.copy = copy
        self._copies = copies
        self._append = append

    def read(self, offset: int, size: int) -> bytes:
        """Read what was written."""
        return self.copy.read(offset, size)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write; a handle opened for appending writes at the end, wherever the kernel thinks."""
        return self.copy.write(offset, data, append=self._append)

    def write_back(self, offset: int, data: bytes | memoryview) -> int:
        """Write there what a mapping was given, also where the handle appends."""
        return self.copy.write(offset, data, append=False)

    def truncate(self, size: int, *, opening: bool = False) -> None:
        """Cut or extend."""
        if opening:
            self.copy.empty()
        else:
            self.copy.truncate(size)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Make room, or a hole, or zeros."""
        self.copy.allocate(mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data or hole is."""
        return self.copy.seek(offset, whence)

    def copy_from(self, source: Handle, offset: int, target_offset: int, size: int) -> int:
        """Copy bytes of another handle to here."""
        data = source.read(offset, min(size, _COPY_BYTES))
        return self.copy.write(target_offset, data, append=False) if data else 0

    def file(self) -> BlobReader | None:
        """Say that there is none: what is written has no final content."""
        return None

    def flush(self, held: Callable[[], bool] = never) -> bytes | None:
        """Store what is not stored yet."""
        if self.copy.dirty:
            self._copies.check()
        return self.copy.flush(held)

    def release(self) -> None:
        """Let go of the working copy."""
        self._copies.let_go(self.copy)

    def attributes(self) -> Attributes:
        """Give the attributes with the working copy's size."""
        return self.copy.attributes()

    def keep(self, changes: Changes) -> None:
        """Change attributes of a file that is gone."""
        self.copy.keep(changes)


class WrittenHandle(ReadingHandle, Generic[C]):
    """A reader of what is being written: for a process that reads back what it writes."""

    slow = True

    def __init__(self, copies: Copies[C], copy: C) -> None:
        """Belong to one more who holds the working copy; ENOENT when the last has just gone."""
        self.copy = copies.join(copy)
        self._copies = copies

    def read(self, offset: int, size: int) -> bytes:
        """Read what was written so far."""
        return self.copy.read(offset, size)

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data or hole is."""
        return self.copy.seek(offset, whence)

    def release(self) -> None:
        """Let go of the working copy."""
        self._copies.let_go(self.copy)

    def attributes(self) -> Attributes:
        """Give the attributes with the working copy's size."""
        return self.copy.attributes()
