"""`state/`: namespaces as folders, keys as files. What their contents mean is said in `keys.py`."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from kvstate.clock import SECOND
from kvstate.names import check_namespace
from kvstate.space import Owner
from kvstatefs.attributes import TTL, computed_of_entry, user_attribute
from kvstatefs.key_copy import KeyCopy, TextHandle
from kvstatefs.nodes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    STATE,
    Attributes,
    Caller,
    Changes,
    refuse,
)
from kvstatefs.state_looking import TOP, StateLooking
from kvstatefs.write_handles import WriteHandle

if TYPE_CHECKING:
    from kvstatefs.keys import Place
    from kvstatefs.nodes import Handle, Node

__all__ = ["TOP", "StateView"]

_NOW_NS: Final = 2 * SECOND


class StateView(StateLooking):
    """The namespaces and their keys."""

    # Reading and writing

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
