"""Answers to those who look: names, attributes, links, extended attributes, room."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from kvstate.errors import NotFound, StateError
from kvstatefs.errnos import errno_of
from kvstatefs.kernel.known import is_file
from kvstatefs.kernel.wire import (
    attributes_answer,
    attributes_bytes,
    negative_answer,
    owned,
    statfs_answer,
    text,
)
from kvstatefs.nodes import Attributes, refuse

if TYPE_CHECKING:
    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.mounted import Asker, Grace, Mounted
    from kvstatefs.kernel.opening import Opening

__all__ = ["Looking"]

_READ = struct.Struct("=QQI")
_SIZE = struct.Struct("=I")
_OPENED = struct.Struct("=QIi")
_LINKS_AT: Final = 64
_NO_LINKS: Final = bytes(4)
_FOLDER: Final = 0o040000
_DOTS: Final = ((1, b"."), (2, b".."))


class Looking:
    """The operations that change nothing."""

    def __init__(self, mounted: Mounted, opening: Opening) -> None:
        self._mounted = mounted
        self._tree = mounted.tree
        self._table = mounted.table
        self._feed = mounted.feed
        self._opening = opening

    # Names

    def lookup(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer LOOKUP."""
        parent = self._table.get(number)
        name = text(bytes(data[40 : size - 1]))
        position = self._feed.position
        grace = self._mounted.grace(asker.pid)
        try:
            found = self._tree.lookup(parent.node, name)
            if grace is not None:
                known, found, body = self._again(grace, found)
                self._table.named(known, parent, name)
            else:
                if self._mounted.opens_alone:
                    known, found = self._opening.readers.pin_unasked(parent.node, name, found)
                    self._table.named(known, parent, name)
                else:
                    known = self._table.tell(found, parent, name)
                body = self._mounted.entry(known, found)
        except (NotFound, OSError, StateError, UnicodeError) as error:
            if errno_of(error) != errno.ENOENT:
                raise
            self._table.absent(parent, name)
            self._tree.counts.failed("lookup", errno.ENOENT)
            lasts = not parent.computed and self._tree.lasting_absence(parent.node)
            valid_ns = self._feed.absent_ns() if lasts else 0
            self._mounted.answer(unique, negative_answer(valid_ns))
        else:
            if not self._mounted.answer(unique, body):
                self._table.forget(known.number, 1)
        self._feed.behind(position, parent, (name,))

    def _again(self, grace: Grace, found: Attributes) -> tuple[Known, Attributes, bytes]:
        """Give the node for one whose `open` was answered ESTALE a moment ago."""
        if found.content is None and not is_file(found.node):
            known = self._table.take(found)
        elif grace.writes:
            known = self._opening.writers.for_writer(grace, found)
        else:
            known, found = self._opening.readers.pin(grace, found)
        packed = attributes_bytes(found, found.inode)
        with self._table.lock:
            known.packed = packed
        return known, found, self._mounted.entry(known, found._replace(lasting=False))

    # Attributes

    def getattr(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer GETATTR."""
        del unique, data, size, asker
        packed, valid_ns = self.attributes(self._table.get(number))
        return attributes_answer(packed, valid_ns)

    def attributes(self, known: Known) -> tuple[bytes, int]:
        """Give a node's attributes, and for how long they hold.

        Of a node whose content is not the name's any more: as they were, but for owner and mode.
        """
        handle = self._opening.files.writer_of(known)
        if handle is not None:
            try:
                found, valid_ns = handle.attributes(), 0
            except OSError:  # what was written is lost (`restoring.LostHandle`)
                return known.packed, 0
        else:
            try:
                found = self._tree.getattr(known.node)
                valid_ns = self._feed.valid_ns(found)
            except (StateError, OSError) as error:
                if errno_of(error) not in {errno.ENOENT, errno.ESTALE} or not known.packed:
                    raise
                return self._without_name(known), 0
            if known.is_file and found.content != known.content:
                if known.content is None:  # its last writer is about to be gone
                    valid_ns = 0
                elif known.grows_to(found):
                    known.content = found.content
                else:
                    return owned(known.packed, found), 0
        packed = attributes_bytes(found, found.inode)
        known.packed = packed
        return (self._without_name(known) if known.unlinked else packed), valid_ns

    @staticmethod
    def _without_name(known: Known) -> bytes:
        return known.packed[:_LINKS_AT] + _NO_LINKS + known.packed[_LINKS_AT + 4 :]

    def readlink(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer READLINK."""
        del unique, data, size, asker
        node = self._table.get(number).node
        return self._tree.readlink(node).encode("utf-8", "surrogateescape")

    def statfs(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer STATFS."""
        del unique, data, size, asker
        known = self._table.find(number) or self._table.root
        room = self._tree.statfs(known.node)
        return statfs_answer(
            room.f_blocks, room.f_bfree, room.f_bavail, room.f_files, room.f_ffree, room.f_frsize
        )

    # Extended attributes

    def getxattr(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer GETXATTR."""
        del unique, asker
        (room,) = _SIZE.unpack_from(data, 40)
        name = text(bytes(data[48 : size - 1]))
        if not name.startswith("user."):
            refuse(errno.ENOTSUP)  # some programs then never ask again (`ls` for SELinux labels)
        value = self._tree.xattrs(self._table.get(number).node).get(name)
        if value is None:
            refuse(errno.ENODATA)
        return _sized(value, room)

    def listxattr(
        self, unique: int, number: int, data: bytearray, size: int, asker: Asker
    ) -> bytes:
        """Answer LISTXATTR."""
        del unique, size, asker
        (room,) = _SIZE.unpack_from(data, 40)
        names = self._tree.xattrs(self._table.get(number).node)
        return _sized(b"".join(name.encode() + b"\0" for name in names), room)


def _sized(value: bytes, room: int) -> bytes:
    """Answer as extended attributes want it: the size alone, or the value if there is room."""
    if not room:
        return struct.pack("=II", len(value), 0)
    if len(value) > room:
        refuse(errno.ERANGE)
    return value
