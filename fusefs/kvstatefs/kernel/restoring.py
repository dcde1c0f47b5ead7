"""Going on with the files that the process before this one had open."""

from __future__ import annotations

import errno
import logging
import os
from array import array
from typing import TYPE_CHECKING, Final

from kvstate.blob_reader import BlobReader
from kvstatefs.handles import ReadingHandle
from kvstatefs.kernel.keeping import DIRECT_KIND, FACTS, READER_KIND, SMALL_BYTES, WRITER_KIND
from kvstatefs.kernel.known import DIRECT, READER, WRITER, Fast, Known, OpenFile
from kvstatefs.nodes import Attributes, never, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.link import Link
    from kvstatefs.kernel.open_files import OpenFiles
    from kvstatefs.nodes import Handle

__all__ = ["LostHandle", "PinnedHandle", "Restorer"]

log = logging.getLogger("kvstatefs")

_MANY: Final = 1 << 40
"""How many share a reader that was open before a takeover: nobody knows."""


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
    def of(
        cls, content: bytes, size: int, ledger: Ledger, held: dict[bytes, int]
    ) -> PinnedHandle | None:
        """Give what was kept of a content, if anything was; ``held`` are the files by content."""
        if size <= SMALL_BYTES:
            data = ledger.pinned(content)
            return None if data is None or len(data) != size else cls(content, size, data, None)
        fd = held.get(content)
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

    def __init__(self, files: OpenFiles, ledger: Ledger, link: Link) -> None:
        self._files = files
        self._tree = files.tree
        self._ledger = ledger
        self._link = link
        self._held: dict[bytes, int] = {}

    def restore(self, handles: dict[int, bytes]) -> None:
        """Know again the files that are open, from what was left in the ledger."""
        self._held = self._link.held()
        read: set[bytes] = set()
        for number, facts in handles.items():
            kind, node, backing, flags = FACTS.unpack_from(facts)
            known = self._files.table.find(node)
            if known is None:
                self._files.keeping.released(number)
            elif kind == READER_KIND:
                content = facts[FACTS.size :]
                self._restore_reader(number, known, content, backing)
                if content in self._held:
                    read.add(content)
                    self._files.keeping.resumed(number, content)
            elif kind == DIRECT_KIND:
                self._files.add(OpenFile(self._direct(known), known, DIRECT), number)
            else:
                self._restore_writer(number, known, flags, clean=kind == WRITER_KIND)
        self._files.number_from(max(handles, default=0) + 1)
        for content, descriptor in self._held.items():
            os.close(descriptor)
            if content not in read:
                self._link.release(content)

    def _restore_reader(self, number: int, known: Known, content: bytes, backing: int) -> None:
        """Let a reader go on. How many share it is not known: it stays until the node goes."""
        handle = self._reader(known, content)
        file = OpenFile(handle, known, READER)
        self._files.add(file, number)
        file.count = known.cached = _MANY
        known.restored = True
        if handle.content is not None and known.fast is None:
            known.fast = Fast(number, file, backing, -1)

    def _restore_writer(self, number: int, known: Known, flags: int, *, clean: bool) -> None:
        self._files.add(OpenFile(self._writer(known, flags, clean=clean), known, WRITER), number)
        known.writers += 1
        known.content = None
        self._files.keeping.writer(number, known, flags, lost=not clean)

    def _reader(self, known: Known, content: bytes) -> Handle:
        """Give the content that was being read; a `LostHandle` if nothing is left of it."""
        try:
            handle = self._tree.open(known.node, os.O_RDONLY)
        except Exception as error:  # noqa: BLE001  (then it is gone from the store)
            log.debug("what was open: %s", error)
        else:
            if handle.content == content:
                return handle
            handle.release()
        kept = PinnedHandle.of(content, known.size, self._ledger, self._held)
        return LostHandle() if kept is None else kept

    def _direct(self, known: Known) -> Handle:
        """Open what is computed anew."""
        try:
            return self._tree.open(known.node, os.O_RDONLY)
        except Exception as error:  # noqa: BLE001  (then it is gone from the store)
            log.debug("what was open: %s", error)
            return LostHandle()

    def _writer(self, known: Known, flags: int, *, clean: bool) -> Handle:
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
