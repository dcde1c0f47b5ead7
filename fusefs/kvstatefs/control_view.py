"""The root of the tree, `pipelines/`, and what the store says of itself below `.kvstate/`."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from kvstate.jsonview import to_json
from kvstatefs.handles import ReadingHandle
from kvstatefs.journal_file import JournalIndex
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    CONTROL,
    ROOT,
    Attributes,
    inode_of,
    node_number,
    os_error,
    refuse,
)
from kvstatefs.views import PlainView

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.store import Store
    from kvstatefs.nodes import Handle, Node

__all__ = ["ControlView"]

PIPELINES: Final = node_number(CONTROL, 2)
OWN: Final = node_number(CONTROL, 3)
STATS: Final = node_number(CONTROL, 4)
JOURNAL: Final = node_number(CONTROL, 5)

_STATS_SECONDS: Final = 1.0
_FOLDER: Final = stat.S_IFDIR | 0o555
_FILE: Final = stat.S_IFREG | 0o444


class ComputedHandle(ReadingHandle):
    """A file of `.kvstate/` open for reading."""

    slow = True

    def __init__(
        self, read: Callable[[int, int], bytes], attributes: Callable[[], Attributes]
    ) -> None:
        self._reads = read
        self._found = attributes

    def read(self, offset: int, size: int) -> bytes:
        """Read what was computed."""
        return self._reads(offset, size)

    def attributes(self) -> Attributes:
        """Give the file's attributes."""
        return self._found()


class JournalHandle(ComputedHandle):
    """The journal's file open for reading.

    Who is told that the file was truncated (`tail -f`) reads it anew from its beginning.
    """

    def __init__(
        self,
        index: JournalIndex,
        current: Callable[[], JournalIndex],
        attributes: Callable[[int], Attributes],
    ) -> None:
        self._index = index
        self._current = current
        super().__init__(self._text, lambda: attributes(self._index.size()))

    def _text(self, offset: int, size: int) -> bytes:
        try:
            return self._index.read(offset, size)
        except OSError:
            if offset or self._current() is self._index:
                raise
        self._index = self._current()
        return self._index.read(offset, size)


class ControlView(PlainView):
    """The fixed folders, and the files that the store computes."""

    def __init__(self, store: Store, parts: dict[str, Node]) -> None:
        """Take the folders of the root that other views have."""
        self._store = store
        self._names: dict[Node, dict[str, Node]] = {
            ROOT: {**parts, "pipelines": PIPELINES, ".kvstate": OWN},
            PIPELINES: {},
            OWN: {"stats.json": STATS, "journal.jsonl": JOURNAL},
        }
        self._uid, self._gid = os.getuid(), os.getgid()
        self._started_ns = store.clock.now_ns()
        self._index: JournalIndex | None = None
        self._stats: tuple[float, bytes] = (0.0, b"")

    def child(self, parent: Node, name: str) -> Node | None:
        """Give the node of a fixed name, if there is one; another view may have it."""
        return self._names.get(parent, {}).get(name)

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in a fixed folder."""
        if parent not in self._names:
            refuse(errno.ENOTDIR)
        node = self.child(parent, name)
        if node is None:
            refuse(errno.ENAMETOOLONG if len(name.encode()) > 255 else errno.ENOENT)
        return self.getattr(node)

    def getattr(self, node: Node) -> Attributes:
        """Give a node's attributes."""
        if node in self._names:
            return self._attributes(node, _FOLDER, 0, links=2)
        return self._attributes(node, _FILE, self._size(node), lasting=False)

    def _attributes(
        self, node: Node, mode: int, size: int, *, links: int = 1, lasting: bool = True
    ) -> Attributes:
        now_ns = self._started_ns if lasting else self._store.clock.now_ns()
        times = (now_ns, now_ns, now_ns)
        return Attributes(
            node,
            inode_of(node),
            mode,
            size,
            self._uid,
            self._gid,
            *times,
            links=links,
            lasting=lasting,
        )

    def _size(self, node: Node) -> int:
        if node == STATS:
            return len(self._stats_text())
        if node == JOURNAL:
            return self._journal().size()
        raise os_error(errno.ENOENT)

    def _stats_text(self) -> bytes:
        made, text = self._stats
        now = time.monotonic()
        if not text or now - made > _STATS_SECONDS:
            text = to_json(self._store.stats(), indent=2).encode() + b"\n"
            self._stats = (now, text)
        return text

    def _journal(self) -> JournalIndex:
        if self._index is None:
            self._index = JournalIndex(self._store)
        return self._index

    def _journal_attributes(self, size: int) -> Attributes:
        return self._attributes(JOURNAL, _FILE, size, lasting=False)

    def listing(self, node: Node) -> Listing:
        """Open a fixed folder for listing."""
        if node not in self._names:
            refuse(errno.ENOTDIR)
        entries = [
            Listed(name, inode_of(child), _FILE if child in {STATS, JOURNAL} else _FOLDER)
            for name, child in sorted(self._names[node].items())
        ]
        return Listing(lambda _: Page(entries, None))

    def open(self, node: Node, flags: int) -> Handle:
        """Open a computed file for reading."""
        if node in self._names:
            refuse(errno.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            refuse(errno.EACCES)
        if node == JOURNAL:
            self._index = self._journal().current()
            return JournalHandle(self._index, self._journal, self._journal_attributes)
        text = self._stats_text()
        return ComputedHandle(
            lambda offset, size: text[offset : offset + size],
            lambda: self._attributes(node, _FILE, len(text), lasting=False),
        )
