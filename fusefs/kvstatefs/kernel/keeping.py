"""What of the open files outlives this process: enough for the next one to go on with them.

A reader's record says which content it reads. Small content is kept beside it (`Ledger.pin`), of
large content the descriptor (`Link.hold`), since the store may have let go of it by the time that
another process takes over. A writer's record says whether anything was written that is not stored:
then that is lost, and its close will say so.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from array import array
from typing import TYPE_CHECKING, Final

from kvstate.blob_reader import BlobReader
from kvstatefs.handles import ReadingHandle
from kvstatefs.nodes import Attributes, never, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.link import Link
    from kvstatefs.kernel.opening import OpenFile
    from kvstatefs.kernel.table import Known
    from kvstatefs.nodes import Handle
    from kvstatefs.tree import Tree

__all__ = [
    "DIRECT_KIND",
    "FACTS",
    "READER_KIND",
    "WRITER_KIND",
    "Keeping",
    "LostHandle",
    "PinnedHandle",
    "Restorer",
]

log = logging.getLogger("kvstatefs")

DIRECT_KIND, READER_KIND, WRITER_KIND, DIRTY_KIND = 0, 1, 2, 3
FACTS = struct.Struct("=BQiI")
"""Kind, number of the node, backing, flags; then the content's name."""
SMALL_BYTES: Final = 64 * 1024


class Keeping:
    """Writes down which files are open, for whoever takes over."""

    def __init__(self, ledger: Ledger, link: Link) -> None:
        self._ledger = ledger
        self._link = link
        self._lock = threading.Lock()
        self._held: dict[bytes, int] = {}
        self._of: dict[int, bytes] = {}
        self._dirty: set[int] = set()
        self._writers: dict[int, tuple[Known, int]] = {}

    def reader(self, number: int, known: Known, handle: Handle, backing: int) -> None:
        """Write down who reads a content, and keep the content."""
        content = handle.content or b""
        self._ledger.handle(number, FACTS.pack(READER_KIND, known.number, backing, 0) + content)
        if known.size <= SMALL_BYTES:
            self._ledger.pin(content, handle.read(0, SMALL_BYTES))
            return
        reader = handle.file()
        if reader is None:
            return
        with self._lock:
            self._of[number] = content
            self._held[content] = self._held.get(content, 0) + 1
            first = self._held[content] == 1
        if first:
            self._ledger.pin(b"sums" + content, reader.sums.tobytes())
            self._link.hold(content, reader.fd)

    def direct(self, number: int, known: Known) -> None:
        """Write down who reads past the kernel's pages."""
        self._ledger.handle(number, FACTS.pack(DIRECT_KIND, known.number, 0, 0))

    def writer(self, number: int, known: Known, flags: int, *, lost: bool = False) -> None:
        """Write down who writes; ``lost`` when what was written already is lost."""
        self._writers[number] = (known, flags)
        if lost:
            self._dirty.add(known.number)
        kind = DIRTY_KIND if known.number in self._dirty else WRITER_KIND
        self._ledger.handle(number, FACTS.pack(kind, known.number, 0, flags & 0xFFFF_FFFF))

    def wrote(self, file: OpenFile) -> None:
        """Write down that a node's writers have what is not stored."""
        if file.known.number in self._dirty:
            return
        self._dirty.add(file.known.number)
        self._mark(file.known, DIRTY_KIND)

    def stored(self, known: Known) -> None:
        """Write down that all that was written to a node is stored."""
        if known.number in self._dirty:
            self._dirty.discard(known.number)
            self._mark(known, WRITER_KIND)

    def _mark(self, known: Known, kind: int) -> None:
        for number, (written, flags) in list(self._writers.items()):
            if written is known:
                facts = FACTS.pack(kind, known.number, 0, flags & 0xFFFF_FFFF)
                self._ledger.handle(number, facts)

    def released(self, number: int) -> None:
        """Write down that a file was closed."""
        self._ledger.released(number)
        written = self._writers.pop(number, None)
        if written is not None:
            known = written[0]
            if not any(other is known for other, _ in list(self._writers.values())):
                self._dirty.discard(known.number)
        with self._lock:
            content = self._of.pop(number, None)
            if content is None:
                return
            self._held[content] -= 1
            if self._held[content]:
                return
            del self._held[content]
        self._link.release(content)


class PinnedHandle(ReadingHandle):
    """A content that the process before this one had open, from what was kept of it."""

    slow = False

    def __init__(
        self, content: bytes, size: int, data: bytes | None, file: BlobReader | None
    ) -> None:
        self.content: bytes | None = content
        self._size = size
        self._data = data
        self._file = file
        self.slow = file is not None

    @classmethod
    def of(cls, content: bytes, size: int, ledger: Ledger, link: Link) -> PinnedHandle | None:
        """Give what was kept of a content, if anything was."""
        if size <= SMALL_BYTES:
            data = ledger.pinned(content)
            return None if data is None or len(data) != size else cls(content, size, data, None)
        fd = link.held().get(content)
        sums = ledger.pinned(b"sums" + content)
        if fd is None or sums is None:
            return None
        numbers = array("Q")
        numbers.frombytes(sums)
        return cls(content, size, None, BlobReader(size, None, os.dup(fd), numbers, "open content"))

    def read(self, offset: int, size: int) -> bytes:
        """Read what was kept."""
        if self._data is not None:
            return self._data[offset : offset + size]
        assert self._file is not None
        return self._file.pread(offset, size)

    def file(self) -> BlobReader | None:
        """Give the file, if it was one."""
        return self._file

    def attributes(self) -> Attributes:
        """Refuse: the node's own are told."""
        refuse(errno.ESTALE)


class Restorer:
    """Opens again what the process before this one had open."""

    def __init__(self, tree: Tree, ledger: Ledger, link: Link) -> None:
        self._tree = tree
        self._ledger = ledger
        self._link = link

    def reader(self, known: Known, content: bytes) -> Handle:
        """Give the content that was being read; a `LostHandle` if nothing is left of it."""
        try:
            handle = self._tree.open(known.node, os.O_RDONLY)
        except Exception as error:  # noqa: BLE001  (then it is gone from the store)
            log.debug("what was open: %s", error)
        else:
            if handle.content == content:
                return handle
            handle.release()
        kept = PinnedHandle.of(content, known.size, self._ledger, self._link)
        return LostHandle() if kept is None else kept

    def direct(self, known: Known) -> Handle:
        """Open what is computed anew."""
        try:
            return self._tree.open(known.node, os.O_RDONLY)
        except Exception as error:  # noqa: BLE001  (then it is gone from the store)
            log.debug("what was open: %s", error)
            return LostHandle()

    def writer(self, known: Known, flags: int, *, clean: bool) -> Handle:
        """Open for writing what had nothing that was not stored; all else is lost."""
        if clean:
            try:
                return self._tree.open(known.node, flags & (os.O_ACCMODE | os.O_APPEND))
            except Exception as error:  # noqa: BLE001  (then it is gone from the store)
                log.debug("what was being written: %s", error)
        return LostHandle()


class LostHandle(ReadingHandle):
    """A file that was being written by a process that is gone: nothing of it is left."""

    content: bytes | None = None
    slow = False

    def read(self, offset: int, size: int) -> bytes:
        """Refuse."""
        del offset, size
        refuse(errno.EIO)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Refuse."""
        del offset, data
        refuse(errno.EIO)

    def truncate(self, size: int, *, opening: bool = False) -> None:
        """Refuse."""
        del size, opening
        refuse(errno.EIO)

    def flush(self, held: Callable[[], bool] = never) -> bytes | None:
        """Refuse: what was written is lost, and who closes has to know."""
        del held
        refuse(errno.EIO)

    def attributes(self) -> Attributes:
        """Refuse."""
        refuse(errno.EIO)
