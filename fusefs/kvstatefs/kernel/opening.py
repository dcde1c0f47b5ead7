"""Opening files, and what the kernel may do with those that are open.

One node shows one content (`table.py`), so an open for reading is answered in one of three ways:

    through the kernel's pages   the node's content is the newest: pages that are there hold
    handed over (passthrough)    large plain content that was verified: the kernel reads the file
    past the pages (direct)      what is computed, and what is not stored yet

All readers of a node share one handle and one answer, made by the first of them. An open of a node
whose content is no longer the newest is answered ESTALE: the kernel looks the name up again, once,
and gets the node of the new content. That is pinned (`Grace`), so it cannot fail again.

Writers share one node, in which pages are those of their working copy. The first writer takes the
node that is there, unless others read it: then the name gets a new node (by ESTALE, too), and the
readers keep theirs. Others who open a file for reading while it is written get the stored content,
as another node; the process that writes it reads what it wrote.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.known import OPENED, READER, WRITER
from kvstatefs.kernel.open_files import OpenFiles
from kvstatefs.kernel.readers import Readers
from kvstatefs.kernel.wire import Code
from kvstatefs.kernel.writers import Writers

if TYPE_CHECKING:
    from kvstatefs.kernel.keeping import Keeping
    from kvstatefs.kernel.loop import Request
    from kvstatefs.kernel.mounted import Asker, Mounted
    from kvstatefs.kernel.passthrough import Passthrough

__all__ = ["Opening"]

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_OPEN, _RELEASE = Code.OPEN.value, Code.RELEASE.value  # plain numbers compare quicker
_NOT_READING: Final = os.O_ACCMODE
_TRUNCATES: Final = os.O_TRUNC >> 8
_OPEN_BYTES: Final = 48
_RELEASE_BYTES: Final = 64
_OPENED_HEAD: Final = struct.pack("=Ii", 16 + OPENED.size, 0)
_DONE_HEAD: Final = struct.pack("=Ii", 16, 0)
_u64 = struct.Struct("=Q").unpack_from


class Opening:
    """Opens and closes files, for readers and for writers."""

    def __init__(self, mounted: Mounted, passthrough: Passthrough, keeping: Keeping) -> None:
        self.files = OpenFiles(mounted, passthrough, keeping)
        self.writers = Writers(self.files)
        self.readers = Readers(self.files, self.writers)
        self.find = self.files.find
        self.get = self.files.get
        self.stale = self.files.stale
        self._find_node = mounted.table.find
        self._version = mounted.tree.version
        self._done = mounted.tree.counts.done

    def quick(self, request: Request) -> bool:
        """Answer what is asked most: a reader's open of what is known, and its last close."""
        data = request.data
        code = data[4]
        if code == _OPEN and request.size == _OPEN_BYTES:
            (number,) = _u64(data, 16)
            known = self._find_node(number)
            if known is None or data[40] & _NOT_READING or data[41] & _TRUNCATES:
                return False
            fast = known.fast
            if fast is None or fast.version != self._version():
                return False
            with self.files.table.lock:
                if known.fast is not fast or known.writers:
                    return False
                known.cached += 1
                fast.file.count += 1
            self._done["open"] += 1
            if not self._answer(_OPENED_HEAD + data[8:16] + fast.answer):
                self.release(fast.number)
            return True
        if code == _RELEASE and request.size == _RELEASE_BYTES:
            (number,) = _u64(data, 40)
            file = self.files.find(number)
            if file is None or file.kind != READER:
                return False
            self._done["release"] += 1
            self._answer(_DONE_HEAD + data[8:16])
            self.release(number)
            return True
        return False

    def _answer(self, message: bytes | bytearray) -> bool:
        try:
            os.write(self.files.mounted.fd, message)
        except OSError:  # who asked is gone
            return False
        return True

    def open(self, number: int, flags: int, asker: Asker) -> bytes:
        """Answer OPEN."""
        known = self.files.table.get(number)
        if flags & _WRITING:
            return self.writers.open(known, flags, asker)
        fast = known.fast
        if fast is not None and fast.version == self._version():
            with self.files.table.lock:
                if known.fast is fast and not known.writers:
                    known.cached += 1
                    fast.file.count += 1
                    return fast.answer
        return self.readers.open(known, flags, asker)

    def release(self, number: int) -> None:
        """Answer RELEASE: the last close of an open file."""
        file = self.files.find(number)
        if file is None:
            return
        known = file.known
        if file.kind == READER:
            with self.files.table.lock:
                known.cached -= 1
                file.count -= 1
                if not file.count:
                    self.files.rest(known, number)
            return
        with self.files.table.lock:
            self.files.leave(number)
            self.files.keeping.released(number)
        if file.kind == WRITER:
            self.writers.close(known, file)
        else:
            file.handle.release()
        self.files.gone(known)
