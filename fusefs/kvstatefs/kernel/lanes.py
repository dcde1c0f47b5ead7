"""Which requests may have to wait, and for what: the lanes of a mount (`loop.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.known import WRITER
from kvstatefs.kernel.loop import Lane, Request
from kvstatefs.kernel.wire import Code
from kvstatefs.nodes import FILE, identity_of, tag_of

if TYPE_CHECKING:
    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.mounted import Mounted
    from kvstatefs.kernel.opening import Opening
    from kvstatefs.nodes import Handle

__all__ = ["Lanes"]

_QUICK_BYTES: Final = 64 * 1024
_COMMITTING: Final = frozenset({
    Code.SETATTR, Code.SYMLINK, Code.MKNOD, Code.MKDIR, Code.UNLINK, Code.RMDIR, Code.RENAME,
    Code.RENAME2, Code.FSYNC, Code.SETXATTR, Code.REMOVEXATTR,
})  # fmt: skip
_LOOKING: Final = frozenset({Code.READDIR, Code.READDIRPLUS, Code.STATFS, Code.LISTXATTR})
_OF_NODES: Final = frozenset({Code.LOOKUP, Code.GETATTR, Code.GETXATTR, Code.OPEN})
_OF_FILES: Final = frozenset({Code.READ, Code.WRITE, Code.FLUSH, Code.RELEASE})
_MOVING_BYTES: Final = frozenset(
    {Code.FALLOCATE, Code.COPY_FILE_RANGE, Code.COPY_FILE_RANGE_64, Code.LSEEK}
)


class Lanes:
    """The kinds of waiting: commits, folders, the disk of each tier, and others."""

    def __init__(self, mounted: Mounted, opening: Opening) -> None:
        self._mounted = mounted
        self._node = mounted.table.find
        self._find = opening.find
        self._writer_of = opening.files.writer_of
        self._keeping = opening.files.keeping
        self.commits = Lane("commits", 8)
        self.folders = Lane("folders", 4)
        self.others = Lane("others", 4)
        self.tiers = [Lane(name, 6) for name in ("hot", "warm", "cold")]
        self.all = [self.commits, self.folders, self.others, *self.tiers]

    def of(self, request: Request) -> Lane | None:
        """Say which requests may have to wait, and for what."""
        data = request.data
        code = data[4]
        if code in _COMMITTING:
            return self.commits
        if code in _LOOKING:
            return self.folders
        if code in _OF_NODES:
            known = self._node(int.from_bytes(data[16:24], "little"))
            return self._of_look(code, known, request)
        if code in _OF_FILES:
            return self._of_use(code, data)
        return self.others if code in _MOVING_BYTES else None

    def _of_look(self, code: int, known: Known | None, request: Request) -> Lane | None:
        """Let what is computed, and an open of large content, step aside: they may have to wait.

        So may who looks at a file that is just being stored, or loaded.
        """
        if known is None:
            return None
        if known.computed:
            return self.others
        written = known
        if code == Code.LOOKUP and known.children and self._keeping.has_writers:
            name = request.data[40 : request.size - 1].decode("utf-8", "surrogateescape")
            written = known.children.get(name) or known
        if written.writers and _is_busy(self._writer_of(written)):
            return self._of_node(written)
        if code == Code.OPEN and known.fast is None and known.size > _QUICK_BYTES:
            return self._of_node(known)
        return None

    def _of_use(self, code: int, data: bytearray) -> Lane | None:
        """Let large content, which needs a disk, and what commits step aside."""
        file = self._find(int.from_bytes(data[40:48], "little"))
        if code == Code.READ:
            if file is None and self._mounted.opens_alone:
                known = self._node(int.from_bytes(data[16:24], "little"))
                slow = known is not None and (known.size > _QUICK_BYTES or known.computed)
                return self._of_node(known) if known is not None and slow else None
            return self._of_node(file.known) if file and file.handle.slow else None
        if code == Code.WRITE:
            end = int.from_bytes(data[48:56], "little") + int.from_bytes(data[56:60], "little")
            quick = end <= _QUICK_BYTES and (file is None or file.known.size <= _QUICK_BYTES)
            busy = file is not None and _is_busy(file.handle)
            return None if quick and not busy else self.others
        return None if file is None or file.kind != WRITER else self.commits

    def _of_node(self, known: Known) -> Lane:
        if tag_of(known.node) == FILE:
            file = self._mounted.tree.files.records.fetch(identity_of(known.node))
            if file is not None:
                return self.tiers[file.tier]
        return self.others


def _is_busy(handle: Handle | None) -> bool:
    """Whether what a handle writes to is just being stored, or loaded, by somebody."""
    copy = getattr(handle, "copy", None)
    if copy is None:
        return False
    if copy.lock.acquire(blocking=False):
        copy.lock.release()
        return False
    return True
