"""`state/`, looked at: namespaces as folders, keys as files, who owns them."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from kvstate.errors import InvalidName
from kvstate.keyspace import namespace_key
from kvstate.names import NAME_BYTES_MAX, file_name_of_key, key_of_file_name
from kvstate.space import Owner, open_space
from kvstatefs.copies import Copies
from kvstatefs.keys import Keys, Place
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    STATE,
    Attributes,
    inode_of,
    refuse,
)
from kvstatefs.views import PlainView
from kvstatefs.write_handles import WrittenHandle

if TYPE_CHECKING:
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstatefs.artifact_records import Version
    from kvstatefs.key_copy import KeyCopy
    from kvstatefs.nodes import Handle, Node
    from kvstatefs.presence import Presence

__all__ = ["TOP", "StateLooking"]

TOP: Final = (STATE,)
"""The folder of the namespaces."""
_NAMESPACE: Final = 2
_KEY: Final = 3

_PAGE: Final = 256
_FOLDER_MODE: Final = stat.S_IFDIR | 0o755
_FILE_MODE: Final = stat.S_IFREG | 0o644


class StateLooking(PlainView):
    """The namespaces and their keys, looked at."""

    def __init__(self, store: Store, version: Version, presence: Presence) -> None:
        self.keys = Keys(store)
        self.copies: Copies[KeyCopy] = Copies(version.touch, presence.check)
        self._store = store
        self._nobody = Owner(0o755, os.getuid(), os.getgid())
        """Who owns a namespace that nobody has given an owner."""
        self._began_ns = store.clock.now_ns()

    # Names and nodes: a node is its names

    def _namespace(self, node: Node) -> str:
        if (
            not isinstance(node, tuple)
            or len(node) != _NAMESPACE
            or not self._has_namespace(node[1])
        ):
            refuse(errno.ENOENT)
        return node[1]

    @staticmethod
    def _place(node: Node) -> Place:
        if not isinstance(node, tuple):
            refuse(errno.ENOENT)
        return Place(*node[1:])

    @staticmethod
    def _is_key(node: Node) -> bool:
        return isinstance(node, tuple) and len(node) == _KEY

    def _has_namespace(self, name: str) -> bool:
        key = namespace_key(name.encode("utf-8", "surrogateescape"))
        return self._store.engine.get(key) is not None

    def _key_place(self, parent: Node, name: str) -> Place:
        """Give the place that a file name in a namespace means; `InvalidName` if none."""
        if parent == TOP:
            refuse(errno.EPERM, "keys live in namespaces")
        return Place(self._namespace(parent), key_of_file_name(name))

    # Attributes

    def _owner(self, namespace: str) -> Owner | None:
        """Give who owns a namespace; None when there is none."""
        key = namespace_key(namespace.encode("utf-8", "surrogateescape"))
        data = self._store.engine.get(key)
        return None if data is None else _owner_of(key, data) or self._nobody

    def _folder(self, node: Node, owner: Owner) -> Attributes:
        times = (self._began_ns, self._began_ns, self._began_ns)
        mode = stat.S_IFDIR | owner.mode
        return Attributes(node, inode_of(node), mode, 0, owner.uid, owner.gid, *times, links=2)

    def _file(self, place: Place, size: int, modified_ns: int) -> Attributes:
        """Give the attributes of a key's file while it is being written."""
        node = (STATE, *place)
        times = (modified_ns, modified_ns, modified_ns)
        owner = self._owner(place.namespace) or self._nobody
        mode = stat.S_IFREG | 0o666 & owner.mode
        return Attributes(
            node, inode_of(node), mode, size, owner.uid, owner.gid, *times, lasting=False
        )

    def _stored_file(self, place: Place, entry: Entry) -> Attributes:
        size = len(self.keys.text(place, entry))
        return self._file(place, size, entry.updated_at_ns)._replace(
            content=str(entry.revision).encode(), lasting=True, until_ns=entry.expires_at_ns
        )

    # Looking

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give a namespace's folder or a key's file."""
        if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
            refuse(errno.ENAMETOOLONG)
        if parent == TOP:
            owner = self._owner(name)
            if owner is None:
                refuse(errno.ENOENT)
            return self._folder((STATE, name), owner)
        try:
            place = self._key_place(parent, name)
        except InvalidName:
            refuse(errno.ENOENT)
        return self._found(place)

    def _found(self, place: Place) -> Attributes:
        copy = self.copies.find(place)
        if copy is not None:
            return copy.attributes()
        entry = self.keys.entry(place)
        if entry is None:
            refuse(errno.ENOENT)
        return self._stored_file(place, entry)

    def getattr(self, node: Node) -> Attributes:
        """Give a folder's or a file's attributes."""
        if node == TOP:
            return self._folder(node, self._nobody)
        if self._is_key(node):
            return self._found(self._place(node))
        namespace = self._namespace(node)
        return self._folder(node, self._owner(namespace) or self._nobody)

    def listing(self, node: Node) -> Listing:
        """Open `state/` or a namespace for listing."""
        if node == TOP:
            return Listing(self._namespaces_page)
        if self._is_key(node):
            refuse(errno.ENOTDIR)
        namespace = self._namespace(node)
        return Listing(lambda after: self._keys_page(namespace, after))

    def _namespaces_page(self, after: str) -> Page:
        later = (name for name in self._store.namespaces() if name > after)
        names = list(itertools.islice(later, _PAGE))
        entries = [Listed(name, inode_of((STATE, name)), _FOLDER_MODE) for name in names]
        return Page(entries, names[-1] if len(names) == _PAGE else None)

    def _keys_page(self, namespace: str, after: str) -> Page:
        found = self._store.namespace(namespace).scan(start=after or None, limit=_PAGE + 1)
        keys = [entry.key for entry in found]
        last = keys[-1] if len(keys) > _PAGE else None
        wanted = {key for key in keys if key != after}
        for copy in self.copies:
            key = copy.place.key
            if copy.place.namespace == namespace and key > after and (last is None or key <= last):
                wanted.add(key)
        entries = [
            Listed(file_name_of_key(key), inode_of((STATE, namespace, key)), _FILE_MODE)
            for key in sorted(wanted)
        ]
        return Page(entries, last)

    def has(self, parent: Node, name: str) -> bool:
        """Whether a namespace or a key has this name."""
        try:
            self.lookup(parent, name)
        except FileNotFoundError:
            return False
        return True

    def stored(self, node: Node) -> Attributes:
        """Give the attributes of what is stored, whatever is being written."""
        if not self._is_key(node):
            return self.getattr(node)
        place = self._place(node)
        entry = self.keys.entry(place)
        if entry is None:
            refuse(errno.ENOENT)
        return self._stored_file(place, entry)

    def open_written(self, node: Node) -> Handle | None:
        """Open the working copy for reading; None when nobody writes the key's file."""
        copy = self.copies.find(self._place(node)) if self._is_key(node) else None
        return None if copy is None else WrittenHandle(self.copies, copy)

    def has_writers(self, node: Node) -> bool:
        """Whether somebody has the key's file open for writing."""
        if not self.copies or not self._is_key(node):
            return False
        return self.copies.find(self._place(node)) is not None


@lru_cache(maxsize=1024)
def _owner_of(key: bytes, data: bytes) -> Owner | None:
    """Give the owner from a namespace's record."""
    return open_space(key, data).owner
