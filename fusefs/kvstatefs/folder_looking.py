"""What a folder shows in the view of one tier, or of all."""

from __future__ import annotations

import errno
import stat
import time
from typing import TYPE_CHECKING, Final

from kvstate.keyspace import ROOT_ID
from kvstate.names import NAME_BYTES_MAX, check_segment
from kvstate.nodes import File, Folder
from kvstatefs.artifact_copy import ArtifactCopy
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    Attributes,
    identity_of,
    node_number,
    os_error,
    refuse,
)
from kvstatefs.views import PlainView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstate.nodes import Node as Record
    from kvstatefs.files import Files
    from kvstatefs.nodes import Node

__all__ = ["FolderLooking"]

_PAGE: Final = 256
_DROPPED_SECONDS: Final = 60.0


class FolderLooking(PlainView):
    """The folders of one tier (0 hot, 1 warm, 2 cold), or of all (None), looked at."""

    def __init__(self, files: Files, tag: int, tier: int | None) -> None:
        self._files = files
        self._store = files.store
        self._catalog = files.store.catalog
        self._records = files.records
        self._copies = files.copies
        self._tag = tag
        self.tier = tier
        self._dropped: dict[int, float] = {}
        """Folders that were removed here and are still elsewhere, and until when they count so."""

    @property
    def drops(self) -> bool:
        """Whether a folder is hidden here for a while."""
        return bool(self._dropped)

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give what has this name in this folder, as far as this view shows it."""
        node = self._child(parent, name)
        if isinstance(node, ArtifactCopy):
            return node.attributes()
        return self._attributes(node)

    def _child(self, parent: Node, name: str) -> Record | ArtifactCopy:
        """Give a stored node, or the working copy that stands for it here; ENOENT if none."""
        identity = identity_of(parent)
        version = self._records.version()
        node = self._catalog.lookup(identity, name)
        if isinstance(node, Folder):
            if self._finds(node):
                return node
        elif node is not None:
            copy = self._copies.find((identity, name), node.id)
            if copy is not None and copy.visible_in(self.tier, node):
                return copy
            if self.tier in {None, node.tier}:
                self._records.remember(node, version)
                return node
        else:
            copy = self._copies.find((identity, name))
            if copy is not None and copy.visible_in(self.tier):
                return copy
        if len(name) > NAME_BYTES_MAX // 4 and len(name.encode()) > NAME_BYTES_MAX:
            refuse(errno.ENAMETOOLONG)
        raise os_error(errno.ENOENT)

    def has(self, parent: Node, name: str) -> bool:
        """Whether something has this name in this folder, as far as this view shows it."""
        try:
            self._child(parent, name)
        except FileNotFoundError:
            return False
        return True

    def _shows(self, folder: Folder) -> bool:
        """Whether the folder is listed."""
        return self.tier is None or folder.shown_in(self.tier)

    def _finds(self, folder: Folder) -> bool:
        """Whether the folder is found by name."""
        if not self._dropped or self._shows(folder):
            return True
        return self._dropped.get(folder.id, 0.0) < time.monotonic()

    def _attributes(self, node: Record) -> Attributes:
        if isinstance(node, File):
            return self._records.attributes(node)
        number = node_number(self._tag, node.id)
        mode = stat.S_IFDIR | node.mode
        times = (node.modified_ns, node.modified_ns, node.changed_ns)
        return Attributes(
            number,
            number,
            mode,
            0,
            node.uid,
            node.gid,
            *times,
            links=2,
            lasting=node.id not in self._dropped,
        )

    def _folder(self, node: Node) -> Folder:
        folder = self._catalog.node(identity_of(node))
        if not isinstance(folder, Folder):
            refuse(errno.ENOENT)
        return folder

    def getattr(self, node: Node) -> Attributes:
        """Give a folder's attributes."""
        return self._attributes(self._folder(node))

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing: what is stored, and what is being written."""
        folder_id = identity_of(node)
        return Listing(lambda after: self._page(folder_id, after))

    def _page(self, folder_id: int, after: str) -> Page:
        version = self._records.version()
        nodes = self._catalog.children(folder_id, after, _PAGE)
        last = nodes[-1].name if len(nodes) == _PAGE else None
        entries = {}
        for node in nodes:
            copy = self._copies.find((folder_id, node.name), node.id)
            if copy is not None and isinstance(node, File):
                if copy.visible_in(self.tier, node):
                    entries[node.name] = self._listed_copy(copy)
            elif isinstance(node, Folder):
                if self._shows(node):
                    entries[node.name] = self._listed(node)
            elif self.tier in {None, node.tier}:
                self._records.remember(node, version)
                entries[node.name] = self._listed(node)
        for copy in self._unstored(folder_id):
            if copy.name > after and (last is None or copy.name <= last):
                entries.setdefault(copy.name, self._listed_copy(copy))
        return Page([entries[name] for name in sorted(entries)], last)

    def _unstored(self, folder_id: int) -> Iterable[ArtifactCopy]:
        """Give the files of a folder that are not stored yet."""
        if not self._copies:
            return ()
        return [
            copy
            for copy in self._copies
            if copy.parent == folder_id and copy.base is None and copy.visible_in(self.tier)
        ]

    def _listed(self, node: Record) -> Listed:
        attributes = self._attributes(node)
        return Listed(node.name, attributes.inode, attributes.mode, attributes)

    def _listed_copy(self, copy: ArtifactCopy) -> Listed:
        attributes = copy.attributes()
        return Listed(copy.name, attributes.inode, attributes.mode, attributes)

    def _drop(self, folder_id: int) -> None:
        now = time.monotonic()
        self._dropped = {key: end for key, end in list(self._dropped.items()) if end > now}
        self._dropped[folder_id] = now + _DROPPED_SECONDS
        self._records.version.touch()

    def folder_for_files(self, parent: Node, name: str) -> Folder:
        """Check that a file may be made here: below a workflow, under a good name."""
        folder = self._folder(parent)
        check_segment(name)
        if ROOT_ID in {folder.id, folder.parent}:
            refuse(errno.EPERM, "files live below tenant/workflow/")
        return folder

    def _remove(self, file: File) -> None:
        self._catalog.remove_file(file.parent, file.name)
        copy = self._copies.find(file.id)
        if copy is not None:
            self._copies.unlink(copy)
