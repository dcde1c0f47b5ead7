"""`.kvstate/history/<namespace>/<key's file name>/<revision>`: what keys were, and are.

A version is a file of the name of its revision, with the content that the key's own file had then,
and the time at which it was set. What took a key away is an empty file: `41.delete`, `42.expire`.
There is a folder for each key of which anything is known; the newest version is the present one.
What has expired is past: it is here for as long as the namespace keeps versions.

Nodes: ``("history", namespace, key, name)``, or fewer of these.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from kvstate.clock import datetime_of
from kvstate.errors import InvalidName, NotFound
from kvstate.jsonview import text_of_value
from kvstate.keyspace import after_prefix, namespace_key
from kvstate.names import file_name_of_key, key_of_file_name
from kvstatefs.attributes import COMPUTED
from kvstatefs.computed import (
    FILE_MODE,
    FOLDER_MODE,
    ComputedHandle,
    ComputedView,
    check_length,
    check_reading,
    read_only_mode,
)
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import STATE, Attributes, inode_of, os_error, refuse

if TYPE_CHECKING:
    from kvstate.history import Version
    from kvstate.store import Store
    from kvstatefs.nodes import Handle, Node
    from kvstatefs.views import View

__all__ = ["HISTORY", "HistoryView"]

HISTORY: Final = "history"
_TOP_DEPTH, _NAMESPACE_DEPTH, _KEY_DEPTH, _VERSION_DEPTH = 1, 2, 3, 4
_PAGE: Final = 256
_SIZES_KEPT: Final = 4096
_READ_BITS: Final = 0o444


class HistoryView(ComputedView):
    """The versions of all keys. Who may see a namespace may see its past."""

    def __init__(self, store: Store, state: View) -> None:
        """Show a store's versions; ``state`` says whose the namespaces are."""
        self._store = store
        self._state = state
        self._sizes: dict[Node, int] = {}
        """Of versions that were looked at: they do not change."""

    # Looking

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give a namespace's or a key's folder, or a version."""
        check_length(name)
        names = _names(parent)
        if len(names) == _NAMESPACE_DEPTH:
            try:
                name = key_of_file_name(name)
            except InvalidName:
                refuse(errno.ENOENT)
        elif len(names) == _VERSION_DEPTH:
            refuse(errno.ENOTDIR)
        return self.getattr((*names, name))

    def getattr(self, node: Node) -> Attributes:
        """Give a folder's or a version's attributes."""
        names = _names(node)
        if len(names) == _VERSION_DEPTH:
            return self._of_version(node, self._mark(names))
        above = self._state.getattr((STATE, *names[1:_NAMESPACE_DEPTH]))
        found = above._replace(
            node=node,
            inode=inode_of(node),
            mode=read_only_mode(above.mode),
            lasting=len(names) == _TOP_DEPTH,
        )
        if len(names) == _TOP_DEPTH:
            return found._replace(mode=FOLDER_MODE)
        if len(names) == _NAMESPACE_DEPTH:
            return found
        at_ns = self._marks(names)[-1].at_ns
        return found._replace(accessed_ns=at_ns, modified_ns=at_ns, changed_ns=at_ns)

    def _marks(self, names: tuple[str, ...]) -> list[Version]:
        """Give a key's versions, oldest first; ENOENT if there is none."""
        self._state.getattr((STATE, names[1]))  # ENOENT where there is no such namespace
        found = self._store.namespace(names[1]).history_marks(names[2])
        if not found:
            refuse(errno.ENOENT)
        return found

    def _mark(self, names: tuple[str, ...]) -> Version:
        for mark in reversed(self._marks(names)):
            if _name_of(mark) == names[3]:
                return mark
        raise os_error(errno.ENOENT)

    def _value(self, names: tuple[str, ...], mark: Version) -> bytes:
        if mark.kind != "set":
            return b""
        try:
            found = self._store.namespace(names[1]).history_at(names[2], mark.revision)
        except NotFound:
            found = None
        if found is None or found.kind != "set":
            refuse(errno.ENOENT)  # it was dropped meanwhile
        return text_of_value(found.value)

    def _of_version(self, node: Node, mark: Version, text: bytes | None = None) -> Attributes:
        names = _names(node)
        above = self._state.getattr((STATE, names[1]))
        size = self._sizes.get(node) if text is None else len(text)
        if size is None:
            size = len(self._value(names, mark))
        if len(self._sizes) >= _SIZES_KEPT:
            self._sizes = {}
        self._sizes[node] = size
        mode = stat.S_IFREG | above.mode & _READ_BITS
        times = (mark.at_ns, mark.at_ns, mark.at_ns)
        return Attributes(
            node, inode_of(node), mode, size, above.uid, above.gid, *times, lasting=False
        )

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give what is computed for a version."""
        names = _names(node)
        if len(names) != _VERSION_DEPTH:
            return {}
        mark = self._mark(names)
        facts = {
            "revision": str(mark.revision),
            "kind": mark.kind,
            "at": datetime_of(mark.at_ns).isoformat(),
        }
        if mark.expires_at_ns:
            facts["expires"] = datetime_of(mark.expires_at_ns).isoformat()
        return {COMPUTED + name: value.encode() for name, value in facts.items()}

    # Listing

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        names = _names(node)
        if len(names) == _VERSION_DEPTH:
            refuse(errno.ENOTDIR)
        self.getattr(node)
        if len(names) == _TOP_DEPTH:
            return Listing(self._namespaces_page)
        if len(names) == _NAMESPACE_DEPTH:
            return Listing(lambda after: self._keys_page(names, after))
        return Listing(lambda _: self._versions_page(names))

    def _namespaces_page(self, after: str) -> Page:
        prefix = namespace_key(b"")
        start = namespace_key(after.encode()) + b"\0" if after else prefix
        found = self._store.engine.scan(start, after_prefix(prefix), limit=_PAGE)
        names = [key[len(prefix) :].decode() for key, _ in found]
        return _page(
            [Listed(name, inode_of((HISTORY, name)), FOLDER_MODE) for name in names], names
        )

    def _keys_page(self, names: tuple[str, ...], after: str) -> Page:
        keys = self._store.namespace(names[1]).known_keys(after, _PAGE)
        entries = [
            Listed(file_name_of_key(key), inode_of((*names, key)), FOLDER_MODE) for key in keys
        ]
        return _page(entries, keys)

    def _versions_page(self, names: tuple[str, ...]) -> Page:
        shown = dict.fromkeys(_name_of(mark) for mark in self._marks(names))
        entries = [Listed(name, inode_of((*names, name)), FILE_MODE) for name in shown]
        return Page(entries, None)

    # Reading

    def open(self, node: Node, flags: int) -> Handle:
        """Open a version for reading."""
        names = _names(node)
        if len(names) != _VERSION_DEPTH:
            refuse(errno.EISDIR)
        check_reading(flags)
        mark = self._mark(names)
        text = self._value(names, mark)
        return ComputedHandle(text, self._of_version(node, mark, text))


def _names(node: Node) -> tuple[str, ...]:
    if not isinstance(node, tuple) or len(node) > _VERSION_DEPTH:
        raise os_error(errno.ENOENT)
    return node


def _name_of(mark: Version) -> str:
    return str(mark.revision) if mark.kind == "set" else f"{mark.revision}.{mark.kind}"


def _page(entries: list[Listed], markers: list[str]) -> Page:
    return Page(entries, markers[-1] if len(entries) == _PAGE else None)
