"""The store as a tree of files: what an adapter shows, thought in nodes and handles.

    hot/ warm/ cold/  <tenant>/<workflow>/<artifact...>   what is in that tier    `folders.py`
    all/              <tenant>/<workflow>/<artifact...>   whatever the tier       `folders.py`
    state/            <namespace>/<file name of a key>                            `state_view.py`
    pipelines/                                            (empty for now)         `control_view.py`
    .kvstate/         stats.json, journal.jsonl                                   `control_view.py`

The tree sends each operation to the part that has the node. It knows no FUSE and no paths; it
raises the store's errors or `OSError`, and `errnos.py` says which number each of them is.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from kvstate.keyspace import ROOT_ID
from kvstatefs.artifact_records import Version
from kvstatefs.control_view import ControlView
from kvstatefs.files import Files
from kvstatefs.folders import FolderView
from kvstatefs.nodes import (
    ALL,
    COLD,
    CONTROL,
    FILE,
    HOT,
    KEY,
    NAMESPACE,
    PENDING,
    ROOT,
    WARM,
    Attributes,
    Caller,
    Changes,
    Handle,
    node_number,
    refuse,
    tag_of,
)
from kvstatefs.state_view import STATE, StateView

if TYPE_CHECKING:
    from kvstate.store import Store
    from kvstatefs.listing import Listing
    from kvstatefs.views import View

__all__ = ["Tree"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT


class Tree:
    """The view of one open store."""

    root = ROOT

    def __init__(self, store: Store, *, read_only: bool = False) -> None:
        """Show a store; with ``read_only``, or a store opened so, EROFS for every change."""
        self.store = store
        self.read_only = read_only or store.read_only
        self.version = Version(store)
        """Changes whenever what a lookup or a getattr said may have changed.

        But for what is not ``lasting`` (`Attributes`): that may change at any time.
        """
        self.files = Files(store, self.version)
        self.state = StateView(store, self.version)
        tiers = {HOT: 0, WARM: 1, COLD: 2, ALL: None}
        self._folders = {tag: FolderView(self.files, tag, tier) for tag, tier in tiers.items()}
        parts = {
            name: node_number(tag, ROOT_ID)
            for name, tag in (("hot", HOT), ("warm", WARM), ("cold", COLD), ("all", ALL))
        }
        control = ControlView(store, {**parts, "state": STATE})
        self._control = control
        self._views: dict[int, View] = {
            **self._folders,
            FILE: self.files,
            PENDING: self.files,
            NAMESPACE: self.state,
            KEY: self.state,
            CONTROL: control,
        }

    def _view(self, node: int) -> View:
        view = self._views.get(tag_of(node))
        if view is None:
            refuse(errno.ENOENT)
        return view

    def _changing(self, node: int) -> View:
        if self.read_only:
            refuse(errno.EROFS)
        return self._view(node)

    # Looking

    def lookup(self, parent: int, name: str) -> Attributes:
        """Give what has this name in this folder."""
        if parent == ROOT:
            child = self._control.child(parent, name)
            if child is not None:
                return self.getattr(child)
        return self._view(parent).lookup(parent, name)

    def getattr(self, node: int) -> Attributes:
        """Give a node's attributes."""
        return self._view(node).getattr(node)

    def listing(self, node: int) -> Listing:
        """Open a folder for listing."""
        return self._view(node).listing(node)

    def readlink(self, node: int) -> str:
        """Give what a symbolic link says."""
        return self._view(node).readlink(node)

    def xattrs(self, node: int) -> dict[str, bytes]:
        """Give a node's extended attributes, own and computed."""
        return self._view(node).xattrs(node)

    def statfs(self) -> os.statvfs_result:
        """Give the truth about the disk below the store."""
        return os.statvfs(self.store.path)

    def forget(self, node: int) -> None:
        """Take note that nobody will use this node before looking it up again."""
        if tag_of(node) in {NAMESPACE, KEY}:
            self.state.forget(node)

    # Opening

    def open(self, node: int, flags: int) -> Handle:
        """Open a file, with the flags that the system call takes."""
        if flags & _WRITING and self.read_only:
            refuse(errno.EROFS)
        return self._view(node).open(node, flags)

    def has_writers(self, node: int) -> bool:
        """Whether somebody in this mount has the file open for writing."""
        if tag_of(node) in {FILE, PENDING}:
            return self.files.has_writers(node)
        return tag_of(node) == KEY and self.state.has_writers(node)

    def create(
        self, parent: int, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a file, or open the one that is there; it is stored when it is closed."""
        return self._changing(parent).create(parent, name, flags, mode, caller)

    # Changing

    def mkdir(self, parent: int, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a folder."""
        return self._changing(parent).mkdir(parent, name, mode, caller)

    def symlink(self, parent: int, name: str, target: str, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        return self._changing(parent).symlink(parent, name, target, caller)

    def unlink(self, parent: int, name: str) -> None:
        """Remove a file; who has it open keeps its bytes."""
        self._changing(parent).unlink(parent, name)

    def rmdir(self, parent: int, name: str) -> None:
        """Remove an empty folder."""
        self._changing(parent).rmdir(parent, name)

    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        """Give a file or a folder another place; EXDEV between parts that cannot share it."""
        view = self._changing(parent)
        source = self._folders.get(tag_of(parent))
        target = self._folders.get(tag_of(new_parent))
        if source is not None and target is not None:
            source.move(parent, name, target, new_parent, new_name)
        elif view is self._view(new_parent):
            view.rename(parent, name, new_parent, new_name)
        else:
            refuse(errno.EXDEV)

    def setattr(self, node: int, changes: Changes) -> Attributes:
        """Change attributes or size."""
        return self._changing(node).setattr(node, changes)

    def setxattr(self, node: int, name: str, value: bytes | None, flags: int = 0) -> None:
        """Set an extended attribute, or remove it (None)."""
        self._changing(node).setxattr(node, name, value, flags)
