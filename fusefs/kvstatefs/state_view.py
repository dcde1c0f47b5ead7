"""`state/`: namespaces as folders, keys as files. What their contents mean is said in `keys.py`."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from kvstate.clock import SECOND
from kvstate.errors import InvalidName
from kvstate.keyspace import namespace_key
from kvstate.names import NAME_BYTES_MAX, check_namespace, file_name_of_key, key_of_file_name
from kvstate.space import Owner, open_space
from kvstatefs.attributes import TTL, computed_of_entry, user_attribute
from kvstatefs.copies import Copies, WriteHandle
from kvstatefs.key_copy import KeyCopy, TextHandle
from kvstatefs.keys import Keys, Place
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    STATE,
    Attributes,
    Caller,
    Changes,
    inode_of,
    refuse,
)
from kvstatefs.views import PlainView

if TYPE_CHECKING:
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstatefs.artifact_records import Version
    from kvstatefs.nodes import Handle, Node
    from kvstatefs.presence import Presence

__all__ = ["TOP", "StateView"]

TOP: Final = (STATE,)
"""The folder of the namespaces."""
_NAMESPACE: Final = 2
_KEY: Final = 3

_PAGE: Final = 256
_NOW_NS: Final = 2 * SECOND
_FOLDER_MODE: Final = stat.S_IFDIR | 0o755
_FILE_MODE: Final = stat.S_IFREG | 0o644


class StateView(PlainView):
    """The namespaces and their keys."""

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

    # Reading and writing

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
        return None if copy is None else self.copies.reading(copy)

    def has_writers(self, node: Node) -> bool:
        """Whether somebody has the key's file open for writing."""
        if not self.copies or not self._is_key(node):
            return False
        return self.copies.find(self._place(node)) is not None

    def open(self, node: Node, flags: int) -> Handle:
        """Pin the value's text for a reader, or join the working copy for a writer."""
        if not self._is_key(node):
            refuse(errno.EISDIR)
        place = self._place(node)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            return self._join(place, flags)
        entry = self.keys.entry(place)
        if entry is not None:
            if entry.expires_at_ns:
                self.keys.read(place)
            return TextHandle(self.keys.text(place, entry), self._stored_file(place, entry))
        if self.copies.find(place) is None:
            refuse(errno.ENOENT)
        return TextHandle(b"", self._file(place, 0, 0))

    def _join(self, place: Place, flags: int) -> WriteHandle[KeyCopy]:
        entry = self.keys.entry(place)
        copy, made = self.copies.share(
            (place,),
            lambda: KeyCopy(self.keys, place, entry, self._file, fresh=entry is None),
        )
        handle = WriteHandle(self.copies, copy, append=bool(flags & os.O_APPEND))
        if flags & os.O_EXCL and (entry is not None or not made):
            handle.release()
            refuse(errno.EEXIST)
        if flags & os.O_TRUNC:
            copy.empty()
        return handle

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a key when the file is closed, or open the one that is there."""
        del mode, caller
        handle = self._join(self._key_place(parent, name), flags)
        return handle.attributes(), handle

    # Making, removing, renaming

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a namespace."""
        if parent != TOP:
            refuse(errno.EPERM, "a namespace holds keys, not folders")
        check_namespace(name)
        if self._has_namespace(name):
            refuse(errno.EEXIST)
        owner = Owner(stat.S_IMODE(mode), caller.uid, caller.gid)
        self._store.make_namespace(name, owner)
        return self._folder((STATE, name), owner)

    def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty namespace."""
        self.lookup(parent, name)
        if parent != TOP:
            refuse(errno.ENOTDIR)
        if any(copy.place.namespace == name for copy in self.copies):
            refuse(errno.ENOTEMPTY)
        if not self._store.remove_namespace(name):
            refuse(errno.ENOENT)

    def unlink(self, parent: Node, name: str) -> None:
        """Delete a key."""
        if parent == TOP:
            self.lookup(parent, name)
            refuse(errno.EISDIR)
        place = self._key_place(parent, name)
        namespace = self._store.namespace(place.namespace)
        copy = self.copies.find(place)
        if copy is None:
            if not namespace.delete(place.key):
                refuse(errno.ENOENT)
            return
        with copy.lock:
            namespace.delete(place.key)
            self.copies.unlink(copy)

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Rename a key in its namespace; over another key, it replaces that one's value."""
        if flags not in {0, RENAME_NOREPLACE, RENAME_EXCHANGE}:
            refuse(errno.EINVAL)
        if TOP in {parent, new_parent}:
            self.lookup(parent, name)
            refuse(errno.EPERM, "a namespace keeps its name")
        if parent != new_parent:
            refuse(errno.EXDEV)
        source, target = self._key_place(parent, name), self._key_place(new_parent, new_name)
        if flags == RENAME_EXCHANGE:
            self._exchange(source, target)
            return
        if flags == RENAME_NOREPLACE and self.has(new_parent, new_name):
            refuse(errno.EEXIST)
        if source == target:
            return
        replace = not flags
        copy = self.copies.find(source)
        if copy is None:
            self.keys.rename(source, target, replace=replace)
            gone = self.copies.find(target)
            if gone is not None:
                self.copies.unlink(gone)
            return
        with copy.lock:
            if self.keys.entry(source) is not None:
                self.keys.rename(source, target, replace=replace)
            copy.place = target
            copy.base = self.keys.entry(target)
            self.copies.rekey(copy, target)

    def _exchange(self, source: Place, target: Place) -> None:
        """Let two keys have each other's names; what is not stored yet is stored before."""
        for place in (source, target):
            copy = self.copies.find(place)
            if copy is not None:
                copy.flush(lambda: False)
        self.keys.exchange(source, target)

    # Attributes that keys do not have are taken and forgotten, so that `cp -p` and editors work.

    def setattr(self, node: Node, changes: Changes) -> Attributes:
        """Truncate a key's file, or change a namespace's owner and mode, which its keys have, too.

        A key's own owner, mode and times are not kept. What sets its time to now (`touch`) lets it
        live for its namespace's TTL again.
        """
        if not self._is_key(node):
            return self._own(node, changes)
        now_ns = self._store.clock.now_ns()
        if changes.modified_ns is not None and abs(changes.modified_ns - now_ns) < _NOW_NS:
            self.keys.touch(self._place(node))
        if changes.size is not None:
            handle = self.open(node, os.O_WRONLY)
            try:
                handle.truncate(changes.size)
                handle.flush()
            finally:
                handle.release()
        return self.getattr(node)

    def _own(self, node: Node, changes: Changes) -> Attributes:
        """Change a namespace's owner or mode; that of `state/` itself is the mount's."""
        if changes.size is not None:
            refuse(errno.EISDIR)
        wanted = (changes.mode, changes.uid, changes.gid)
        if wanted == (None, None, None):
            return self.getattr(node)
        if node == TOP:
            refuse(errno.EPERM)

        def changed(owner: Owner | None) -> Owner:
            owner = owner or self._nobody
            return Owner(
                owner.mode if changes.mode is None else stat.S_IMODE(changes.mode),
                owner.uid if changes.uid is None else changes.uid,
                owner.gid if changes.gid is None else changes.gid,
            )

        return self._folder(node, self._store.own_namespace(self._namespace(node), changed))

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give what is computed for a key."""
        entry = self.keys.entry(self._place(node)) if self._is_key(node) else None
        return {} if entry is None else computed_of_entry(entry, self._store.clock.now_ns())

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> None:
        """Change a key's TTL; refuse all else: a key has no attributes of its own."""
        if name == TTL and self._is_key(node):
            self.keys.set_ttl(self._place(node), value)
            return
        user_attribute(name, value, self.xattrs(node), flags)
        refuse(errno.ENOTSUP)


@lru_cache(maxsize=1024)
def _owner_of(key: bytes, data: bytes) -> Owner | None:
    """Give the owner from a namespace's record."""
    return open_space(key, data).owner
