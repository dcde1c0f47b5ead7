"""Answers to those who list folders.

A folder that was listed whole is remembered as long as nothing in the store has changed, so that to
list it again costs no reading of records. The kernel itself keeps listings of artifacts' folders
(FOPEN_CACHE_DIR): the feed takes them back, and so does whoever answered while it moved.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstatefs.kernel.known import OPENED
from kvstatefs.kernel.wire import NO_ENTRY, Open, dirent
from kvstatefs.nodes import ALL, COLD, HOT, WARM, inode_of, tag_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstatefs.kernel.known import Known
    from kvstatefs.kernel.mounted import Asker, Mounted
    from kvstatefs.listing import Listed, Listing
    from kvstatefs.nodes import Attributes, Node

__all__ = ["Listings"]

_READ = struct.Struct("=QQI")
_FOLDER: Final = 0o040000
_DOTS: Final = ((1, b"."), (2, b".."))
_KEPT: Final = frozenset({HOT, WARM, COLD, ALL})
_NAMES_MAX: Final = 100_000
"""Of how many names the listings are remembered, all folders together."""


class Given(NamedTuple):
    """One name as it is given: its bytes, and what a lookup of it would say, if that is known."""

    entry: bytes
    name: str
    attributes: Attributes | None


class Whole(NamedTuple):
    """A folder as it was when the store had this version."""

    version: int
    names: list[Given]


class OpenFolder:
    """A folder that is open for listing."""

    __slots__ = ("known", "listing", "names", "version", "whole")

    def __init__(self, known: Known, listing: Listing, version: int, whole: Whole | None) -> None:
        self.known = known
        self.listing = listing
        self.version = version
        self.whole = whole
        self.names: list[Given] = []

    def entries(self, offset: int) -> Iterator[Given]:
        """Give the entries from an offset on."""
        if self.whole is not None:
            yield from itertools.islice(self.whole.names, offset, None)
            return
        for after, listed in self.listing.entries(offset):
            given = _given(listed, after)
            if after == len(self.names) + 1:
                self.names.append(given)
            yield given


def _given(listed: Listed, after: int) -> Given:
    entry = dirent(listed.inode, after + 2, listed.mode, os.fsencode(listed.name))
    return Given(entry, listed.name, listed.attributes)


class Listings:
    """The folders that are open for listing."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted
        self._tree = mounted.tree
        self._table = mounted.table
        self._feed = mounted.feed
        self._open: dict[int, OpenFolder] = {}
        # Those that a process before this one gave out are in use still, and nobody noted them.
        self._numbers = itertools.count(time.monotonic_ns())
        self._whole: OrderedDict[Node, Whole] = OrderedDict()
        self._names = 0

    def opendir(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> bytes:
        """Answer OPENDIR."""
        del unique, data, size, asker
        known = self._table.get(number)
        handle = next(self._numbers)
        self._open[handle] = self._folder(known)
        keeps = (
            tag_of(known.node) in _KEPT
            and self._feed.coherent
            and self._tree.lasting_absence(known.node)
        )
        return OPENED.pack(handle, Open.CACHE_DIR | Open.KEEP_CACHE if keeps else 0, 0)

    def _folder(self, known: Known) -> OpenFolder:
        version = self._tree.version()
        whole = self._whole.get(known.node)
        if whole is not None and whole.version != version:
            self._forget(known.node)
            whole = None
        return OpenFolder(known, self._tree.listing(known.node), version, whole)

    def releasedir(
        self, unique: int, number: int, data: bytearray, size: int, asker: Asker
    ) -> bytes:
        """Answer RELEASEDIR."""
        del unique, number, size, asker
        self._open.pop(int.from_bytes(data[40:48], "little"), None)
        return b""

    def _find(self, handle: int, number: int, offset: int) -> OpenFolder:
        folder = self._open.get(handle)
        if folder is None:  # opened by a process that is gone
            folder = self._open[handle] = self._folder(self._table.get(number))
        elif not offset and (folder.names or folder.whole):
            folder = self._open[handle] = self._folder(folder.known)  # rewinddir looks again
        return folder

    def readdir(self, unique: int, number: int, data: bytearray, size: int, asker: Asker) -> None:
        """Answer READDIR: names alone."""
        del size, asker
        handle, offset, room = _READ.unpack_from(data, 40)
        folder = self._find(handle, number, offset)
        position = self._begin(folder)
        parts = _dots(folder, offset, room, b"")
        room -= sum(map(len, parts))
        for given in folder.entries(max(0, offset - 2)):
            room -= len(given.entry)
            if room < 0:
                break
            parts.append(given.entry)
        else:
            self._keep(folder)
        self._mounted.answer(unique, b"".join(parts))
        self._feed.listed(position, folder.known)

    def readdirplus(
        self, unique: int, number: int, data: bytearray, size: int, asker: Asker
    ) -> None:
        """Answer READDIRPLUS: names with what a lookup of each would say."""
        del size, asker
        handle, offset, room = _READ.unpack_from(data, 40)
        folder = self._find(handle, number, offset)
        position = self._begin(folder)
        parts = _dots(folder, offset, room, NO_ENTRY)
        room -= sum(map(len, parts))
        told: dict[str, Known] = {}
        for given in folder.entries(max(0, offset - 2)):
            room -= len(NO_ENTRY) + len(given.entry)
            if room < 0:
                break
            found = given.attributes
            if found is None or (self._mounted.read_only and found.content is not None):
                parts.append(NO_ENTRY + given.entry)
                continue
            known = told[given.name] = self._table.tell(found, folder.known, given.name)
            parts.append(self._mounted.entry(known, found) + given.entry)
        else:
            self._keep(folder)
        if not self._mounted.answer(unique, b"".join(parts)):
            for known in told.values():
                self._table.forget(known.number, 1)
        self._feed.behind(position, folder.known, told)
        self._feed.listed(position, folder.known)

    def _begin(self, folder: OpenFolder) -> int:
        """Take note that the kernel may keep what it is going to be told."""
        position = self._feed.position
        folder.known.listed = True
        return position

    def _keep(self, folder: OpenFolder) -> None:
        """Remember a folder that was listed to its end, if nothing has changed meanwhile."""
        names, node = folder.names, folder.known.node
        if tag_of(node) not in _KEPT:
            return  # keys expire without a change
        if folder.whole is not None or len(names) > _NAMES_MAX or node in self._whole:
            return
        if self._tree.version() != folder.version or any(
            given.attributes is not None and not given.attributes.lasting for given in names
        ):
            return
        self._whole[node] = Whole(folder.version, names)
        self._names += len(names)
        while self._names > _NAMES_MAX:
            self._forget(next(iter(self._whole)))

    def _forget(self, node: Node) -> None:
        whole = self._whole.pop(node, None)
        if whole is not None:
            self._names -= len(whole.names)


def _dots(folder: OpenFolder, offset: int, room: int, before: bytes) -> list[bytes]:
    """Give the two entries that every listing begins with, as far as there is room for them."""
    inode = inode_of(folder.known.node)
    parts = [
        before + dirent(inode, after, _FOLDER, name) for after, name in _DOTS if offset < after
    ]
    return parts[: room // len(parts[0])] if parts else parts
