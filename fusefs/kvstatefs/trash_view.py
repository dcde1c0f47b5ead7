"""`.kvstate/trash/<tenant>/<workflow>/<artifact...>~<when>-<identity>`: what was deleted.

Its files can be read, like the artifacts that they were. `mv` to a name in `all/`, or in the view
of the tier that the artifact was in, brings it back; `rm` lets it go for good. All else is refused.
A folder has the owner and the mode of the tenant's, or workflow's, that has this name now; where
there is none any more, only who mounted the store may enter.

Nodes: ``("trash", tenant, workflow, ..., name)``.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from kvstate.clock import datetime_of
from kvstate.keyspace import ROOT_ID
from kvstate.names import check_segment
from kvstate.nodes import Folder
from kvstate.policy import TIERS
from kvstatefs.attributes import COMPUTED
from kvstatefs.computed import (
    FOLDER_MODE,
    ComputedView,
    check_length,
    check_reading,
    read_only_mode,
)
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    RENAME_NOREPLACE,
    Attributes,
    identity_of,
    inode_of,
    os_error,
    refuse,
)
from kvstatefs.reading import ReadHandle
from kvstatefs.trash_index import Buried, TrashIndex

if TYPE_CHECKING:
    from kvstate.nodes import Trashed
    from kvstatefs.files import Files
    from kvstatefs.folders import FolderView
    from kvstatefs.nodes import Handle, Node

__all__ = ["TRASH", "TrashView"]

TRASH: Final = "trash"
_PAGE: Final = 1024
_LEFT_SECONDS: Final = 60.0
_LEFT_MAX: Final = 10_000
_OWNER_ONLY: Final = stat.S_IFDIR | 0o700


class TrashHandle(ReadHandle):
    """An artifact in the trash open for reading."""

    def __init__(self, files: Files, trashed: Trashed, attributes: Attributes) -> None:
        super().__init__(files.records, trashed.file)
        self.content = None
        self._attributes = attributes

    def _grew(self) -> bool:
        return False

    def attributes(self) -> Attributes:
        """Give the attributes that it had when it was opened."""
        return self._attributes


class TrashView(ComputedView):
    """What is in the trash."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._store = files.store
        self._catalog = files.store.catalog
        self._index = TrashIndex(files.store)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._began_ns = files.store.clock.now_ns()
        self._left: dict[tuple[str, ...], float] = {}
        """Folders that became empty here, and until when they are found: `rm -r` looks for them."""

    # Looking

    def lookup(self, parent: Node, name: str) -> Attributes:
        """Give a folder, or an artifact in the trash."""
        check_length(name)
        path = _path(parent)
        if self._children(path) is None:
            refuse(errno.ENOENT)
        return self.getattr((TRASH, *path, name))

    def getattr(self, node: Node) -> Attributes:
        """Give a folder's or an artifact's attributes."""
        path = _path(node)
        if self._children(path) is not None:
            return self._of_folder(node, path)
        return self._of_file(node, self._trashed(path))

    def _children(self, path: tuple[str, ...]) -> dict[str, Buried | None] | None:
        """Give what is in a folder; None when there is no such folder."""
        found = self._index.children(path)
        if found is None and self._left.get(path, 0.0) > time.monotonic():
            return {}
        return found

    def _trashed(self, path: tuple[str, ...]) -> Trashed:
        """Give the artifact at this path; ENOENT, or EISDIR for a folder."""
        if not path or self._children(path) is not None:
            refuse(errno.EISDIR)
        *above, name = path
        buried = (self._index.children(tuple(above)) or {}).get(name)
        trashed = None if buried is None else self._catalog.trashed_at(*buried)
        if trashed is None:
            raise os_error(errno.ENOENT)
        return trashed

    def _of_folder(self, node: Node, path: tuple[str, ...]) -> Attributes:
        mode, uid, gid, at_ns = FOLDER_MODE, self._uid, self._gid, self._began_ns
        if path:
            folder = self._catalog.walk_path(path)
            mode = _OWNER_ONLY
            if isinstance(folder, Folder):
                mode, uid, gid = stat.S_IFDIR | folder.mode, folder.uid, folder.gid
                at_ns = folder.modified_ns
        times = (at_ns, at_ns, at_ns)
        inode = inode_of(node)
        return Attributes(node, inode, mode, 0, uid, gid, *times, links=2, lasting=not path)

    @staticmethod
    def _of_file(node: Node, trashed: Trashed) -> Attributes:
        file = trashed.file
        return Attributes(
            node,
            inode_of(node),
            read_only_mode(file.mode),
            file.size,
            file.uid,
            file.gid,
            file.accessed_ns,
            file.modified_ns,
            trashed.trashed_ns,
            lasting=False,
        )

    def listing(self, node: Node) -> Listing:
        """Open a folder for listing."""
        path = _path(node)
        if self._children(path) is None:
            self._trashed(path)
            refuse(errno.ENOTDIR)
        return Listing(lambda after: self._page(path, after))

    def _page(self, path: tuple[str, ...], after: str) -> Page:
        children = self._children(path) or {}
        names = self._index.names_after(path, after, _PAGE)
        entries = [self._listed((TRASH, *path, name), children.get(name)) for name in names]
        return Page(entries, names[-1] if len(names) == _PAGE else None)

    @staticmethod
    def _listed(node: tuple[str, ...], buried: Buried | None) -> Listed:
        mode = stat.S_IFDIR if buried is None else stat.S_IFREG
        return Listed(node[-1], inode_of(node), mode)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give an artifact's own attributes, and what is known of its deletion."""
        path = _path(node)
        if self._children(path) is not None:
            return {}
        trashed = self._trashed(path)
        facts = {
            "name": trashed.name,
            "tier": TIERS[trashed.file.tier],
            "digest": f"xxh3:{trashed.file.digest.hex()}",
            "size": str(trashed.file.size),
            "deleted": datetime_of(trashed.trashed_ns).isoformat(),
            "until": datetime_of(trashed.gone_ns).isoformat(),
            "why": trashed.why,
            "actor": trashed.actor,
        }
        computed = {COMPUTED + name: value.encode() for name, value in facts.items()}
        return {**trashed.file.xattrs, **computed}

    # Reading

    def open(self, node: Node, flags: int) -> Handle:
        """Open what is in the trash for reading; every byte is verified."""
        trashed = self._trashed(_path(node))
        check_reading(flags)
        return TrashHandle(self._files, trashed, self._of_file(node, trashed))

    def readlink(self, node: Node) -> str:
        """Give what a symbolic link said."""
        trashed = self._trashed(_path(node))
        if not stat.S_ISLNK(trashed.file.mode):
            refuse(errno.EINVAL)
        handle = TrashHandle(self._files, trashed, self._of_file(node, trashed))
        return handle.read(0, trashed.file.size).decode("utf-8", "surrogateescape")

    # Going for good, and coming back

    def unlink(self, parent: Node, name: str) -> None:
        """Let an artifact go for good; who has it open keeps the bytes."""
        path = _path(parent)
        trashed = self._trashed((*path, name))
        if not self._catalog.purge_trashed(trashed, why="removed from the trash"):
            refuse(errno.ENOENT)
        self._leave(path)

    def rmdir(self, parent: Node, name: str) -> None:
        """Let go of a folder from which everything was removed."""
        path = (*_path(parent), name)
        children = self._children(path)
        if children is None:
            self._trashed(path)
            refuse(errno.ENOTDIR)
        if children:
            refuse(errno.ENOTEMPTY)
        self._left.pop(path, None)

    def _leave(self, path: tuple[str, ...]) -> None:
        """Let folders that have become empty be found for a while: they are removed next."""
        now = time.monotonic()
        if len(self._left) >= _LEFT_MAX:
            self._left = {}
        for depth in range(len(path), 0, -1):
            if self._index.children(path[:depth]) is not None:
                return
            self._left[path[:depth]] = now + _LEFT_SECONDS

    def bring_back(
        self,
        parent: Node,
        name: str,
        target: FolderView,
        new_parent: Node,
        new_name: str,
        flags: int,
    ) -> None:
        """Bring an artifact back from the trash, under a name in a folder of the artifacts.

        What has that name goes into the trash in its place. EXDEV for the view of another tier than
        its own: `mv` copies it then.
        """
        if flags & ~RENAME_NOREPLACE:
            refuse(errno.EINVAL)
        path = (*_path(parent), name)
        if self._children(path) is not None:
            refuse(errno.EPERM, "a folder of the trash stays: bring back what is in it")
        trashed = self._trashed(path)
        check_segment(new_name)
        if target.tier not in {None, trashed.file.tier}:
            refuse(errno.EXDEV)
        folder = self._catalog.node(identity_of(new_parent))
        if not isinstance(folder, Folder):
            refuse(errno.ENOENT)
        if ROOT_ID in {folder.id, folder.parent}:
            refuse(errno.EPERM, "files live below tenant/workflow/")
        there = self._catalog.lookup(folder.id, new_name)
        if isinstance(there, Folder):
            refuse(errno.EISDIR)
        copies = self._files.copies
        gone = copies.find((folder.id, new_name), there.id if there else None)
        if gone is not None and flags & RENAME_NOREPLACE:
            refuse(errno.EEXIST)
        self._catalog.undelete_into(
            trashed, folder.id, new_name, replace=not flags & RENAME_NOREPLACE
        )
        if gone is not None:
            copies.unlink(gone)


def _path(node: Node) -> tuple[str, ...]:
    if not isinstance(node, tuple):
        raise os_error(errno.ENOENT)
    return node[1:]
