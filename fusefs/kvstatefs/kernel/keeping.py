"""What of the open files outlives this process: enough for the next one to go on with them.

A reader's record says which content it reads. Small content is kept beside it (`Ledger.pin`), of
large content the descriptor (`Link.hold`), since the store may have let go of it by the time that
another process takes over. A writer's record says whether anything was written that is not stored:
then that is lost, and its close will say so.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvstatefs.kernel.known import Known, OpenFile
    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.link import Link
    from kvstatefs.nodes import Handle

__all__ = ["DIRECT_KIND", "FACTS", "READER_KIND", "WRITER_KIND", "Keeping"]

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

    @property
    def has_writers(self) -> bool:
        """Whether any file is open for writing."""
        return bool(self._writers)

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

    def resumed(self, number: int, content: bytes) -> None:
        """Take note of a reader of before, whose large content is held already."""
        with self._lock:
            self._of[number] = content
            self._held[content] = self._held.get(content, 0) + 1

    def direct(self, number: int, known: Known) -> None:
        """Write down who reads past the kernel's pages."""
        self._ledger.handle(number, FACTS.pack(DIRECT_KIND, known.number, 0, 0))

    def writer(self, number: int, known: Known, flags: int, *, lost: bool = False) -> None:
        """Write down who writes; ``lost`` when what was written already is lost."""
        with self._lock:
            self._writers[number] = (known, flags)
            if lost:
                self._dirty.add(known.number)
            kind = DIRTY_KIND if known.number in self._dirty else WRITER_KIND
            self._ledger.handle(number, FACTS.pack(kind, known.number, 0, flags & 0xFFFF_FFFF))

    def wrote(self, file: OpenFile) -> None:
        """Write down that a node's writers have what is not stored."""
        number = file.known.number
        if number in self._dirty:
            return
        with self._lock:
            self._dirty.add(number)
            self._mark(file.known, DIRTY_KIND)

    def stored(self, known: Known) -> None:
        """Write down that all that was written to a node is stored."""
        with self._lock:
            if known.number in self._dirty:
                self._dirty.discard(known.number)
                self._mark(known, WRITER_KIND)

    def _mark(self, known: Known, kind: int) -> None:
        for number, (written, flags) in self._writers.items():
            if written is known:
                facts = FACTS.pack(kind, known.number, 0, flags & 0xFFFF_FFFF)
                self._ledger.handle(number, facts)

    def released(self, number: int) -> None:
        """Write down that a file was closed."""
        self._ledger.released(number)
        with self._lock:
            written = self._writers.pop(number, None)
            if written is not None:
                known = written[0]
                if not any(other is known for other, _ in self._writers.values()):
                    self._dirty.discard(known.number)
            content = self._of.pop(number, None)
            if content is None:
                return
            self._held[content] -= 1
            if self._held[content]:
                return
            del self._held[content]
        self._link.release(content)
