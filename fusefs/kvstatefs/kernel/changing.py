"""Answers to those who change the tree: making, removing, renaming, attributes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from kvstatefs.errnos import errno_of
from kvstatefs.kernel.wire import RESENT, Malformed, attributes_answer, attributes_bytes, text
from kvstatefs.nodes import RENAME_EXCHANGE, Attributes, Caller, Changes, refuse

if TYPE_CHECKING:
    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.looking import Looking
    from kvstatefs.kernel.mounted import Asker, Mounted
    from kvstatefs.kernel.opening import Opening

__all__ = ["Changing"]

_SETATTR = struct.Struct("=IIQQQqqqIIIIIII")
_MKNOD = struct.Struct("=IIII")
_MKDIR = struct.Struct("=II")
_CREATE = struct.Struct("=IIII")
_RENAME = struct.Struct("=QII")
_SETXATTR = struct.Struct("=II")
_SECOND: Final = 1_000_000_000
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _FH = (1 << bit for bit in range(7))
_ATIME_NOW, _MTIME_NOW = 1 << 7, 1 << 8
_KILL_SET_ID: Final = 1 << 11


class Changing:
    """The operations that change names and attributes."""

    def __init__(self, mounted: Mounted, opening: Opening, looking: Looking) -> None:
        self._mounted = mounted
        self._tree = mounted.tree
        self._table = mounted.table
        self._feed = mounted.feed
        self._opening = opening
        self._looking = looking

    # Making

    def _made(
        self,
        unique: int,
        parent: Known,
        name: str,
        found: Attributes,
        position: int,
        opened: bytes = b"",
    ) -> None:
        known = self._table.tell(found, parent, name)
        self._answer_made(unique, parent, name, known, found, position, opened)

    def _answer_made(
        self,
        unique: int,
        parent: Known,
        name: str,
        known: Known,
        found: Attributes,
        position: int,
        opened: bytes,
    ) -> None:
        known.unlinked = False
        if not self._mounted.answer(unique, self._mounted.entry(known, found) + opened):
            self._table.forget(known.number, 1)
        self._feed.behind(position, parent, (name,))

    def mkdir(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer MKDIR."""
        mode, _ = _MKDIR.unpack_from(data, 40)
        parent, name = self._table.get(number), text(bytes(data[48 : size - 1]))
        position = self._feed.position
        try:
            found = self._tree.mkdir(parent.node, name, mode, Caller(asker.uid, asker.gid))
        except Exception as error:
            if not _was_done(unique, error, errno.EEXIST):
                raise
            found = self._tree.lookup(parent.node, name)
        self._made(unique, parent, name, found, position)

    def symlink(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer SYMLINK."""
        words = bytes(data[40 : size - 1]).split(b"\0")
        if len(words) != 2:
            raise Malformed("SYMLINK")
        parent, name, target = self._table.get(number), text(words[0]), text(words[1])
        position = self._feed.position
        caller = Caller(asker.uid, asker.gid)
        try:
            found = self._tree.symlink(parent.node, name, target, caller)
        except Exception as error:
            if not _was_done(unique, error, errno.EEXIST):
                raise
            found = self._tree.lookup(parent.node, name)
        self._made(unique, parent, name, found, position)

    def mknod(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer MKNOD: files only."""
        mode = _MKNOD.unpack_from(data, 40)[0]
        if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
            refuse(errno.EPERM)
        parent, name = self._table.get(number), text(bytes(data[56 : size - 1]))
        position = self._feed.position
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        caller = Caller(asker.uid, asker.gid)
        _, handle = self._tree.create(parent.node, name, flags, mode, caller)
        try:
            handle.flush()
        finally:
            handle.release()
        self._made(unique, parent, name, self._tree.lookup(parent.node, name), position)

    def create(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer CREATE: make a file and open it."""
        flags, mode = _CREATE.unpack_from(data, 40)[:2]
        parent, name = self._table.get(number), text(bytes(data[56 : size - 1]))
        position = self._feed.position
        caller = Caller(asker.uid, asker.gid)
        found, handle = self._tree.create(parent.node, name, flags, mode, caller)
        if handle.content is not None:  # another process has made it meanwhile
            handle.release()
            known = self._table.tell(found, parent, name)
            opened = self._opening.open(known.number, flags, asker)
        else:
            known = self._table.tell(found, parent, name)
            opened = self._opening.writers.created(known, handle, flags, asker)
        self._answer_made(unique, parent, name, known, found, position, opened)

    # Removing and renaming

    def unlink(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer UNLINK."""
        del asker
        parent, name = self._table.get(number), text(bytes(data[40 : size - 1]))
        try:
            self._tree.unlink(parent.node, name)
        except Exception as error:
            if not _was_done(unique, error, errno.ENOENT):
                raise
        self._lost(parent, name)
        return b""

    def rmdir(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer RMDIR."""
        del asker
        parent, name = self._table.get(number), text(bytes(data[40 : size - 1]))
        try:
            self._tree.rmdir(parent.node, name)
        except Exception as error:
            if not _was_done(unique, error, errno.ENOENT):
                raise
        self._lost(parent, name)
        return b""

    def _lost(self, parent: Known, name: str) -> None:
        """Take note that the kernel knows that a name is gone."""
        with self._table.lock:
            known = (parent.children or {}).get(name)
            self._table.untell(parent, name)
        if known is not None:
            self._unlinked(known)

    def _unlinked(self, known: Known) -> None:
        """Take note that a file, whichever of its contents is open, has no name any more."""
        with self._table.lock:
            for each in self._table.of(known.node):
                each.unlinked = True
        self._opening.stale(known)

    def rename(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer RENAME."""
        del asker
        target = int.from_bytes(data[40:48], "little")
        self._rename(unique, number, target, 0, bytes(data[48:size]))

    def rename2(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer RENAME2: with flags."""
        del asker
        target, flags, _ = _RENAME.unpack_from(data, 40)
        self._rename(unique, number, target, flags, bytes(data[56:size]))

    def _rename(self, unique: int, number: int, target: int, flags: int, names: bytes) -> None:
        words = names.split(b"\0")
        if len(words) < 2:
            raise Malformed("RENAME")
        parent, new_parent = self._table.get(number), self._table.get(target)
        name, new_name = text(words[0]), text(words[1])
        position = self._feed.position
        try:
            self._tree.rename(parent.node, name, new_parent.node, new_name, flags)
        except Exception as error:
            if not _was_done(unique, error, errno.ENOENT):
                raise
        with self._table.lock:
            if flags & RENAME_EXCHANGE:
                self._exchanged(parent, name, new_parent, new_name)
            elif (parent, name) != (new_parent, new_name):
                replaced = (new_parent.children or {}).get(new_name)
                moved = (parent.children or {}).get(name)
                if replaced is not None and (moved is None or replaced.node != moved.node):
                    self._unlinked(replaced)
                self._table.renamed(parent, name, new_parent, new_name)
        self._mounted.answer(unique, b"")
        self._feed.behind(position, parent, (name,))
        self._feed.behind(position, new_parent, (new_name,))

    def _exchanged(self, parent: Known, name: str, other: Known, other_name: str) -> None:
        first = (parent.children or {}).get(name)
        second = (other.children or {}).get(other_name)
        self._table.untell(parent, name)
        self._table.untell(other, other_name)
        if first is not None:
            self._table.named(first, other, other_name)
        if second is not None:
            self._table.named(second, parent, name)

    # Attributes

    def setattr(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer SETATTR."""
        del unique, size
        (
            valid, _, handle, length, _, accessed, modified, _,
            accessed_ns, modified_ns, _, mode, _, uid, gid,
        ) = _SETATTR.unpack_from(data, 40)  # fmt: skip
        known = self._table.get(number)
        if self._tree.read_only:
            refuse(errno.EROFS)
        if valid & _SIZE:
            self._truncate(known, handle if valid & _FH else 0, length, asker)
        now_ns = self._tree.store.clock.now_ns()
        changes = Changes(
            mode=stat.S_IMODE(mode) if valid & _MODE else None,
            uid=uid if valid & _UID else None,
            gid=gid if valid & _GID else None,
            accessed_ns=_moment(valid, _ATIME, _ATIME_NOW, accessed, accessed_ns, now_ns),
            modified_ns=_moment(valid, _MTIME, _MTIME_NOW, modified, modified_ns, now_ns),
        )
        if valid & _SIZE and not valid & (_ATIME_NOW | _MTIME_NOW | _ATIME):
            changes = changes._replace(modified_ns=None, accessed_ns=None)
        if valid & _KILL_SET_ID and changes.mode is None:
            changes = changes._replace(mode=self._without_set_id(known))
        if any(value is not None for value in changes):
            self._set(known, changes)
        return attributes_answer(*self._looking.attributes(known))

    def _set(self, known: Known, changes: Changes) -> None:
        try:
            found = self._tree.setattr(known.node, changes)
        except Exception as error:
            if errno_of(error) != errno.ENOENT or not known.handles:
                raise
            for number in list(known.handles):  # removed, and still open: its holders see it
                file = self._opening.find(number)
                if file is not None:
                    file.handle.keep(changes)
            return
        if not known.writers and found.content == known.content:
            with self._table.lock:
                known.packed = attributes_bytes(found, found.inode)
                self._table.note(known)

    def _without_set_id(self, known: Known) -> int | None:
        mode = self._tree.getattr(known.node).mode
        kept = stat.S_IMODE(mode) & ~_SET_IDS
        return kept if mode & _SET_IDS else None

    def _truncate(self, known: Known, number: int, length: int, asker: Asker) -> None:
        file = self._opening.find(number)
        if file is not None and file.known is known:
            self._opening.writers.wrote(file)
            file.handle.truncate(length)
            self._opening.writers.wrote(file)
            return
        opened = self._opening.open(known.number, os.O_WRONLY, asker)
        number = int.from_bytes(opened[:8], "little")
        try:
            file = self._opening.get(number)
            self._opening.writers.wrote(file)
            file.handle.truncate(length)
            self._opening.writers.wrote(file)
            self._opening.writers.flush(file, None)
        finally:
            self._opening.release(number)
        self._mounted.notices.pages(known.number)

    def wrote_with_set_id(self, known: Known) -> None:
        """Clear set-id bits, as a write by somebody else does."""
        mode = self._without_set_id(known)
        if mode is not None:
            self._set(known, Changes(mode=mode))

    def setxattr(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer SETXATTR."""
        del unique, asker
        length, flags = _SETXATTR.unpack_from(data, 40)
        name, _, value = bytes(data[48:size]).partition(b"\0")
        if len(value) < length:
            raise Malformed("SETXATTR")
        self._tree.setxattr(self._table.get(number).node, text(name), value[:length], flags)
        return b""

    def removexattr(
        self, unique: int, number: int, data: bytearray, size: int, asker: Asker
    ) -> bytes:
        """Answer REMOVEXATTR."""
        del unique, asker
        self._tree.setxattr(self._table.get(number).node, text(bytes(data[40 : size - 1])), None)
        return b""


def _moment(valid: int, given: int, now: int, seconds: int, rest: int, now_ns: int) -> int | None:
    if valid & now:
        return now_ns
    return seconds * _SECOND + rest if valid & given else None


def _was_done(unique: int, error: Exception, number: int) -> bool:
    """Whether a request that is given a second time was done by the process that is gone."""
    return bool(unique & RESENT) and errno_of(error) == number
