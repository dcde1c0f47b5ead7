"""`state/`: namespaces as folders, keys as files. What their contents mean is said in `keys.py`."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from typing import TYPE_CHECKING, Final

from kvstate.clock import SECOND
from kvstate.errors import InvalidName
from kvstate.keyspace import namespace_key
from kvstate.names import NAME_BYTES_MAX, check_namespace, file_name_of_key, key_of_file_name
from kvstatefs.attributes import TTL, computed_of_entry, user_attribute
from kvstatefs.copies import Copies, WriteHandle
from kvstatefs.key_copy import KeyCopy, TextHandle
from kvstatefs.keys import Keys, Place
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import KEY, NAMESPACE, Attributes, Caller, Changes, node_number, refuse
from kvstatefs.views import PlainView

if TYPE_CHECKING:
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstatefs.artifact_records import Version
    from kvstatefs.nodes import Handle

__all__ = ["STATE", "StateView"]

STATE: Final = node_number(NAMESPACE, 0)
"""The folder of the namespaces."""

_PAGE: Final = 256
_NOW_NS: Final = 2 * SECOND
_NODES_KEPT: Final = 200_000
_FOLDER_MODE: Final = stat.S_IFDIR | 0o755
_FILE_MODE: Final = stat.S_IFREG | 0o644


class StateView(PlainView):
    """The namespaces and their keys."""

    def __init__(self, store: Store, version: Version) -> None:
        self.keys = Keys(store)
        self.copies: Copies[KeyCopy] = Copies(version.touch)
        self._store = store
        self._names: dict[int, tuple[str, ...]] = {}
        self._uid, self._gid = os.getuid(), os.getgid()
        self._began_ns = store.clock.now_ns()

    # Names and nodes: a node is a digest of its names, which are remembered

    def _node(self, tag: int, *names: str) -> int:
        digest = hashlib.blake2b("\0".join(names).encode(), digest_size=7).digest()
        node = node_number(tag, int.from_bytes(digest, "big") or 1)
        if node not in self._names:
            while len(self._names) >= _NODES_KEPT:
                self._names.pop(next(iter(self._names)), None)
            self._names[node] = names
        return node

    def forget(self, node: int) -> None:
        """Forget what a node is called: nobody will ask for it again before looking it up."""
        self._names.pop(node, None)

    def _namespace(self, node: int) -> str:
        names = self._names.get(node)
        if names is None or not self._has_namespace(names[0]):
            refuse(errno.ENOENT)
        return names[0]

    def _place(self, node: int) -> Place:
        names = self._names.get(node)
        if names is None:
            refuse(errno.ENOENT)
        return Place(*names)

    def _is_key(self, node: int) -> bool:
        return len(self._names.get(node, ())) == len(Place._fields)

    def _has_namespace(self, name: str) -> bool:
        key = namespace_key(name.encode("utf-8", "surrogateescape"))
        return self._store.engine.get(key) is not None

    def _key_place(self, parent: int, name: str) -> Place:
        """Give the place that a file name in a namespace means; `InvalidName` if none."""
        if parent == STATE:
            refuse(errno.EPERM, "keys live in namespaces")
        return Place(self._namespace(parent), key_of_file_name(name))

    # Attributes

    def _folder(self, node: int) -> Attributes:
        times = (self._began_ns, self._began_ns, self._began_ns)
        return Attributes(node, node, _FOLDER_MODE, 0, self._uid, self._gid, *times, links=2)

    def _file(self, place: Place, size: int, modified_ns: int) -> Attributes:
        """Give the attributes of a key's file while it is being written."""
        node = self._node(KEY, *place)
        times = (modified_ns, modified_ns, modified_ns)
        return Attributes(node, node, _FILE_MODE, size, self._uid, self._gid, *times, lasting=False)

    def _stored_file(self, place: Place, entry: Entry) -> Attributes:
        size = len(self.keys.text(place, entry))
        return self._file(place, size, entry.updated_at_ns)._replace(
            content=str(entry.revision).encode(), lasting=not entry.expires_at_ns
        )

    # Looking

    def lookup(self, parent: int, name: str) -> Attributes:
        """Give a namespace's folder or a key's file."""
        if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
            refuse(errno.ENAMETOOLONG)
        if parent == STATE:
            if not self._has_namespace(name):
                refuse(errno.ENOENT)
            return self._folder(self._node(NAMESPACE, name))
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

    def getattr(self, node: int) -> Attributes:
        """Give a folder's or a file's attributes."""
        if node == STATE:
            return self._folder(node)
        if self._is_key(node):
            return self._found(self._place(node))
        self._namespace(node)
        return self._folder(node)

    def listing(self, node: int) -> Listing:
        """Open `state/` or a namespace for listing."""
        if node == STATE:
            return Listing(self._namespaces_page)
        if self._is_key(node):
            refuse(errno.ENOTDIR)
        namespace = self._namespace(node)
        return Listing(lambda after: self._keys_page(namespace, after))

    def _namespaces_page(self, after: str) -> Page:
        later = (name for name in self._store.namespaces() if name > after)
        names = list(itertools.islice(later, _PAGE))
        entries = [Listed(name, self._node(NAMESPACE, name), _FOLDER_MODE) for name in names]
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
            Listed(file_name_of_key(key), self._node(KEY, namespace, key), _FILE_MODE)
            for key in sorted(wanted)
        ]
        return Page(entries, last)

    # Reading and writing

    def has_writers(self, node: int) -> bool:
        """Whether somebody has the key's file open for writing."""
        return bool(self.copies) and self.copies.find(self._place(node)) is not None

    def open(self, node: int, flags: int) -> Handle:
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
        self, parent: int, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a key when the file is closed, or open the one that is there."""
        del mode, caller
        handle = self._join(self._key_place(parent, name), flags)
        return handle.attributes(), handle

    # Making, removing, renaming

    def mkdir(self, parent: int, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a namespace."""
        del mode, caller
        if parent != STATE:
            refuse(errno.EPERM, "a namespace holds keys, not folders")
        check_namespace(name)
        if self._has_namespace(name):
            refuse(errno.EEXIST)
        self._store.make_namespace(name)
        return self._folder(self._node(NAMESPACE, name))

    def rmdir(self, parent: int, name: str) -> None:
        """Remove an empty namespace."""
        self.lookup(parent, name)
        if parent != STATE:
            refuse(errno.ENOTDIR)
        if any(copy.place.namespace == name for copy in self.copies):
            refuse(errno.ENOTEMPTY)
        if not self._store.remove_namespace(name):
            refuse(errno.ENOENT)

    def unlink(self, parent: int, name: str) -> None:
        """Delete a key."""
        if parent == STATE:
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

    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        """Rename a key in its namespace; over another key, it replaces that one's value."""
        if STATE in {parent, new_parent}:
            self.lookup(parent, name)
            refuse(errno.EPERM, "a namespace keeps its name")
        if parent != new_parent:
            refuse(errno.EXDEV)
        source, target = self._key_place(parent, name), self._key_place(new_parent, new_name)
        if source == target:
            return
        copy = self.copies.find(source)
        if copy is None:
            self.keys.rename(source, target)
            gone = self.copies.find(target)
            if gone is not None:
                self.copies.unlink(gone)
            return
        with copy.lock:
            if self.keys.entry(source) is not None:
                self.keys.rename(source, target)
            copy.place = target
            copy.base = self.keys.entry(target)
            self.copies.rekey(copy, target)

    # Attributes that keys do not have are taken and forgotten, so that `cp -p` and editors work.

    def setattr(self, node: int, changes: Changes) -> Attributes:
        """Truncate a key's file; owners, modes and times are not kept.

        What sets the time to now (`touch`) lets the key live for its namespace's TTL again.
        """
        now_ns = self._store.clock.now_ns()
        if (
            changes.modified_ns is not None
            and abs(changes.modified_ns - now_ns) < _NOW_NS
            and self._is_key(node)
        ):
            self.keys.touch(self._place(node))
        if changes.size is not None:
            handle = self.open(node, os.O_WRONLY)
            try:
                handle.truncate(changes.size)
                handle.flush()
            finally:
                handle.release()
        return self.getattr(node)

    def xattrs(self, node: int) -> dict[str, bytes]:
        """Give what is computed for a key."""
        entry = self.keys.entry(self._place(node)) if self._is_key(node) else None
        return {} if entry is None else computed_of_entry(entry, self._store.clock.now_ns())

    def setxattr(self, node: int, name: str, value: bytes | None, flags: int) -> None:
        """Change a key's TTL; refuse all else: a key has no attributes of its own."""
        if name == TTL and self._is_key(node):
            self.keys.set_ttl(self._place(node), value)
            return
        user_attribute(name, value, self.xattrs(node), flags)
        refuse(errno.ENOTSUP)
