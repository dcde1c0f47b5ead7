"""What a handle does when nothing else is said: it reads, and refuses to write."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from kvstatefs.nodes import SEEK_DATA, SEEK_HOLE, never, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blob_reader import BlobReader
    from kvstatefs.nodes import Attributes, Changes, Handle

__all__ = ["Finder", "ReadingHandle", "found_by"]


class Finder(Protocol):
    """What finds the next data, or else the next hole; the size when there is none."""

    def __call__(self, offset: int, *, data: bool) -> int:
        """Give where that is."""
        ...


def found_by(find: Finder, size: int, offset: int, whence: int) -> int:
    """Answer lseek(2) for SEEK_DATA and SEEK_HOLE in content of a size."""
    if whence not in {SEEK_DATA, SEEK_HOLE}:
        refuse(errno.EINVAL)
    if not 0 <= offset < size:
        refuse(errno.ENXIO)
    found = find(offset, data=whence == SEEK_DATA)
    if whence == SEEK_DATA and found >= size:
        refuse(errno.ENXIO)
    return found


class ReadingHandle:
    """A file open for reading; `read` and `attributes` are those of the kinds below."""

    content: bytes | None = None
    slow = False

    def attributes(self) -> Attributes:
        """Give the attributes of what is read."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Refuse."""
        del offset, data
        refuse(errno.EBADF)

    def truncate(self, size: int, *, opening: bool = False) -> None:
        """Refuse."""
        del size, opening
        refuse(errno.EBADF)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Refuse."""
        del mode, offset, length
        refuse(errno.EBADF)

    def copy_from(self, source: Handle, offset: int, target_offset: int, size: int) -> int:
        """Refuse."""
        del source, offset, target_offset, size
        refuse(errno.EBADF)

    def keep(self, changes: Changes) -> None:
        """Take it, and forget it."""
        del changes

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data or hole is: data all along, and a hole at the end."""
        size = self.attributes().size
        return found_by(lambda at, *, data: at if data else size, size, offset, whence)

    def file(self) -> BlobReader | None:
        """Say that there is no file with just these bytes."""
        return None

    def flush(self, held: Callable[[], bool] = never) -> bytes | None:
        """Do nothing: nothing was written."""
        del held
        return None

    def release(self) -> None:
        """Let go."""
