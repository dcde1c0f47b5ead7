"""`.kvstate/journal.jsonl`: the journal as a file that grows, one JSON object a line.

The text is made as it is read. An index remembers, every so many bytes, which revision begins
there, so that any offset is found without beginning at the front. Who has the file open keeps the
index, and so the offsets, that were there; when the journal's front was trimmed, the next open
begins at what is left.
"""

from __future__ import annotations

import bisect
import errno
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.clock import datetime_of
from kvstate.errors import Compacted
from kvstate.jsonview import to_json
from kvstatefs.handles import ReadingHandle
from kvstatefs.nodes import refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.journal import Event
    from kvstate.store import Store
    from kvstatefs.nodes import Attributes

__all__ = ["JournalHandle", "JournalIndex", "line_of"]

_MARK_BYTES: Final = 64 * 1024


def line_of(event: Event) -> bytes:
    """Give an event's line."""
    facts = {
        "revision": event.revision,
        "at": datetime_of(event.at_ns).isoformat(),
        "kind": event.kind,
        "scope": event.scope,
        "name": event.name,
        "value": event.value,
        "previous": event.previous,
        "actor": event.actor,
        "why": event.why,
    }
    return to_json(facts).encode() + b"\n"


class Mark(NamedTuple):
    """Where a revision's first line begins."""

    offset: int
    revision: int


class JournalIndex:
    """Where in the text which revision is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._marks: list[Mark] = []
        self._newest = 0
        self._size = 0
        self._lost = False
        self._chunk: tuple[int, bytes] = (-1, b"")

    def size(self) -> int:
        """Give the text's size as of now."""
        with self._lock:
            self._extend()
            return self._size

    def _extend(self) -> None:
        try:
            for event in self._store.journal(self._newest):
                self._add(event)
        except Compacted:
            self._lost = True  # what came next was trimmed before anybody looked

    def _add(self, event: Event) -> None:
        if event.revision != self._newest:
            self._newest = event.revision
            if not self._marks or self._size - self._marks[-1].offset >= _MARK_BYTES:
                self._marks.append(Mark(self._size, event.revision))
        self._size += len(line_of(event))

    def current(self) -> JournalIndex:
        """Give this index if the journal still has all that it covers, else one of what is left."""
        with self._lock:
            if not self._marks:
                return self
            oldest = next(iter(self._store.journal(0, 1)))
            if not self._lost and oldest.revision <= self._marks[0].revision:
                return self
            later = [mark for mark in self._marks if mark.revision > oldest.revision]
            if self._lost or not later:
                return JournalIndex(self._store)
            index = JournalIndex(self._store)
            index._marks.append(Mark(0, oldest.revision))
            index._newest = self._newest
            front = len(index._render(oldest.revision, later[0].revision))
            shift = later[0].offset - front
            index._marks += [mark._replace(offset=mark.offset - shift) for mark in later]
            index._size = self._size - shift
            return index

    def read(self, offset: int, size: int) -> bytes:
        """Give up to ``size`` bytes from there; ESTALE when they were trimmed meanwhile."""
        with self._lock:
            if offset + size > self._size:
                self._extend()
            end = min(offset + size, self._size)
            data = bytearray()
            while offset < end:
                start, chunk = self._chunk_at(offset)
                part = chunk[offset - start : end - start]
                if not part:
                    break
                data += part
                offset += len(part)
            return bytes(data)

    def _chunk_at(self, offset: int) -> tuple[int, bytes]:
        """Give the text between the marks around an offset, and where it begins."""
        if not self._marks:
            refuse(errno.ESTALE)
        start, chunk = self._chunk
        if start <= offset < start + len(chunk):
            return self._chunk
        number = bisect.bisect_right(self._marks, offset, key=lambda mark: mark.offset) - 1
        mark = self._marks[number]
        stop = self._marks[number + 1].revision if number + 1 < len(self._marks) else None
        self._chunk = (mark.offset, self._render(mark.revision, stop))
        return self._chunk

    def _render(self, first: int, stop: int | None) -> bytes:
        lines: list[bytes] = []
        try:
            for event in self._store.journal(first - 1):
                if (not lines and event.revision != first) or event.revision > self._newest:
                    break
                if stop is not None and event.revision >= stop:
                    break
                lines.append(line_of(event))
        except Compacted:
            lines.clear()
        if not lines:
            refuse(errno.ESTALE, "the journal was trimmed: open it again")
        return b"".join(lines)


class JournalHandle(ReadingHandle):
    """The journal's file open for reading.

    Who is told that the file was truncated (`tail -f`) reads it anew from its beginning.
    """

    slow = True
    waits = True
    """Whether `blocks` may ever say yes: a read may wait until there is more."""

    def __init__(
        self,
        index: JournalIndex,
        current: Callable[[], JournalIndex],
        attributes: Callable[[int], Attributes],
    ) -> None:
        """Read an index; ``current`` gives the one that is now, ``attributes`` those of a size."""
        self._index = index
        self._current = current
        self._attributes = attributes
        self._ended_at = -1

    def attributes(self) -> Attributes:
        """Give the file's attributes, with the size that this handle may read."""
        return self._attributes(self._index.size())

    def at_end(self, offset: int) -> bool:
        """Whether nothing is there to read from this offset on, so far."""
        return offset >= self._index.size()

    def blocks(self, offset: int) -> bool:
        """Whether a read there had better wait for the next commit than say that this is the end.

        The first read at an end is told so: `cat` is done then. One who reads there again follows.
        """
        if not self.at_end(offset):
            self._ended_at = -1
            return False
        if self._ended_at == offset:
            return True
        self._ended_at = offset
        return False

    def read(self, offset: int, size: int) -> bytes:
        """Read lines; ESTALE for what was trimmed, but at the beginning: that is what is left."""
        try:
            return self._index.read(offset, size)
        except OSError:
            if offset or self._current() is self._index:
                raise
        self._index = self._current()
        return self._index.read(offset, size)
