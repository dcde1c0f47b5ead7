"""The store as a tree of files: what an adapter shows, thought in nodes and handles.

    hot/ warm/ cold/  <tenant>/<workflow>/<artifact...>   what is in that tier    `folders.py`
    all/              <tenant>/<workflow>/<artifact...>   whatever the tier       `folders.py`
    state/            <namespace>/<file name of a key>                            `state_view.py`
    pipelines/                                            (empty for now)         `control_view.py`
    .kvstate/         stats.json, journal.jsonl, config.toml, metrics, health     `control_view.py`
    .kvstate/history/ <namespace>/<file name of a key>/<revision>                 `history_view.py`
    .kvstate/trash/   <tenant>/<workflow>/<artifact...>~<when>-<identity>         `trash_view.py`
    .kvstate/meta/    a twin of each tree: JSON about each file                   `meta_view.py`

The tree sends each operation to the part that has the node. It knows no FUSE and no paths; it
raises the store's errors or `OSError`, and `errnos.py` says which number each of them is.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from kvstate.errors import NotFound
from kvstate.keyspace import ROOT_ID
from kvstatefs.artifact_records import Version
from kvstatefs.control_view import ControlView
from kvstatefs.files import Files
from kvstatefs.folders import FolderView
from kvstatefs.history_view import HISTORY, HistoryView
from kvstatefs.meta_view import META, MetaView
from kvstatefs.nodes import (
    ALL,
    COLD,
    CONTROL,
    FILE,
    HOT,
    ROOT,
    STATE,
    WARM,
    Attributes,
    Caller,
    Changes,
    Handle,
    Node,
    identity_of,
    node_number,
    refuse,
    tag_of,
)
from kvstatefs.operation_counts import OperationCounts
from kvstatefs.presence import Presence
from kvstatefs.room import Room
from kvstatefs.state_view import TOP, StateView
from kvstatefs.trash_view import TRASH, TrashView

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
        self._presence = Presence(store)
        self._room = Room(store)
        self.files = Files(store, self.version, self._presence)
        self.state = StateView(store, self.version, self._presence)
        tiers = {HOT: 0, WARM: 1, COLD: 2, ALL: None}
        self._folders: dict[int | str, FolderView] = {
            tag: FolderView(self.files, tag, tier) for tag, tier in tiers.items()
        }
        parts: dict[str, Node] = {
            name: node_number(tag, ROOT_ID)
            for name, tag in (("hot", HOT), ("warm", WARM), ("cold", COLD), ("all", ALL))
        }
        self.counts = OperationCounts()
        """What adapters count of what they do: shown in `.kvstate/metrics`."""
        self._trash = TrashView(self.files)
        own: dict[str, Node] = {name: (name,) for name in (HISTORY, TRASH, META)}
        control = ControlView(store, {**parts, "state": TOP}, own, self.counts)
        self._control = control
        self._views: dict[int | str, View] = {
            **self._folders,
            FILE: self.files,
            STATE: self.state,
            CONTROL: control,
            HISTORY: HistoryView(store, self.state),
            TRASH: self._trash,
            META: MetaView(store, self, self.state.keys),
        }

    def _view(self, node: Node) -> View:
        view = self._views.get(tag_of(node))
        if view is None:
            refuse(errno.ENOENT)
        return view

    def _changing(self, node: Node) -> View:
        if self.read_only:
            refuse(errno.EROFS)
        self._presence.check()
        return self._view(node)

    # Looking

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in this folder."""
        if tag_of(parent) == CONTROL:
            child = self._control.child(parent, name)
            if child is not None:
                return self.getattr(child)
        return self._view(parent).lookup(parent, name)

    def getattr(self, node: Node) -> Attributes:
        """Give a node's attributes."""
        return self._view(node).getattr(node)

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        return self._view(node).listing(node)

    def readlink(self, node: Node) -> str:
        """Give what a symbolic link says."""
        return self._view(node).readlink(node)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give a node's extended attributes, own and computed."""
        return self._view(node).xattrs(node)

    def stored(self, node: Node) -> Attributes:
        """Give the attributes of what is stored, whatever is being written; ENOENT if nothing."""
        view = self._view(node)
        return view.stored(node) if isinstance(view, Files | StateView) else view.getattr(node)

    def statfs(self, node: Node = ROOT) -> os.statvfs_result:
        """Give the truth about the room there is: of a node's tier, within its quotas."""
        if isinstance(node, tuple):
            return self._room.of_namespace(node[1] if node[0] == STATE and len(node) > 1 else None)
        tag, identity = tag_of(node), identity_of(node)
        if tag == FILE:
            return self._room.of_artifact(*self.files.tier_and_folder(node))
        if tag in self._folders:
            return self._room.of_artifact(self._folders[tag].tier or 0, identity)
        return self._room.of_artifact(0, ROOT_ID)

    def lasting_absence(self, parent: Node) -> bool:
        """Whether a name that is absent in a folder stays so until something is committed."""
        view = self._folders.get(tag_of(parent))
        return view is None or not view.drops

    # Opening

    def open(self, node: Node, flags: int) -> Handle:
        """Open a file, with the flags that the system call takes."""
        view = self._changing(node) if flags & _WRITING else self._view(node)
        return view.open(node, flags)

    def open_written(self, node: Node) -> Handle | None:
        """Open what is being written for reading, for the one who writes it; None if nobody does.

        As long as it is open, the file has a writer.
        """
        view = self._view(node)
        return view.open_written(node) if isinstance(view, Files | StateView) else None

    def has_writers(self, node: Node) -> bool:
        """Whether somebody in this mount has the file open for writing."""
        view = self._view(node)
        return isinstance(view, Files | StateView) and view.has_writers(node)

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a file, or open the one that is there; it is stored when it is closed."""
        return self._changing(parent).create(parent, name, flags, mode, caller)

    # Changing

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a folder."""
        return self._changing(parent).mkdir(parent, name, mode, caller)

    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        return self._changing(parent).symlink(parent, name, target, caller)

    def unlink(self, parent: Node, name: str) -> None:
        """Remove a file; who has it open keeps its bytes."""
        self._changing(parent).unlink(parent, name)

    def rmdir(self, parent: Node, name: str) -> None:
        """Remove an empty folder."""
        self._changing(parent).rmdir(parent, name)

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Give a file or a folder another place; EXDEV between parts that cannot share it.

        ``flags`` are those of renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE.
        """
        view = self._changing(parent)
        source = self._folders.get(tag_of(parent))
        target = self._folders.get(tag_of(new_parent))
        if source is not None and target is not None:
            source.move(parent, name, target, new_parent, new_name, flags)
        elif view is self._trash and target is not None:
            self._trash.bring_back(parent, name, target, new_parent, new_name, flags)
        elif view is self._view(new_parent):
            view.rename(parent, name, new_parent, new_name, flags)
        else:
            refuse(errno.EXDEV)

    def setattr(self, node: Node, changes: Changes, handle: Handle | None = None) -> Attributes:
        """Change attributes or size; of a file that is gone, for the one who has it open."""
        view = self._changing(node)
        if handle is None:
            return view.setattr(node, changes)
        if changes.size is not None:
            handle.truncate(changes.size)
            changes = changes._replace(size=None)
        try:
            return view.setattr(node, changes)
        except (FileNotFoundError, NotFound):
            handle.keep(changes)
            return handle.attributes()

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int = 0) -> None:
        """Set an extended attribute, or remove it (None)."""
        self._changing(node).setxattr(node, name, value, flags)
