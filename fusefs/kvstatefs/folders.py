"""`hot/`, `warm/`, `cold/` and `all/`: the folders of the artifacts, by tier and all together.

In a tier's view a folder is listed when something below it is in that tier, or when it was made
there and is still empty. It is found by name in any case: or `mv cold/t/w/a hot/t/w/a` would have
nowhere to go. A folder that was removed from a tier's view while other tiers have something in it
is not found there for a minute, or until it is made again: so `rm -r` and the copying `mv` work.

A name lives in one tier. Writing it in the view of another tier replaces it there and moves it when
the file is closed; removing a folder from a tier's view removes it if nothing is left in any tier.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from kvstate.errors import Exists
from kvstate.names import check_segment
from kvstate.nodes import File, Folder
from kvstatefs.attributes import user_attribute
from kvstatefs.folder_moving import FolderMoving
from kvstatefs.nodes import (
    Attributes,
    Caller,
    Changes,
    identity_of,
    refuse,
)

if TYPE_CHECKING:
    from kvstatefs.nodes import Handle, Node

__all__ = ["FolderView"]


class FolderView(FolderMoving):
    """The folders of one tier (0 hot, 1 warm, 2 cold), or of all (None)."""

    # Making

    def open(self, node: Node, flags: int) -> Handle:
        """Refuse: a folder."""
        del node, flags
        refuse(errno.EISDIR)

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a file, or open the one that is there; stored when it is closed."""
        folder = self.folder_for_files(parent, name)
        node = self._catalog.lookup(folder.id, name)
        if isinstance(node, Folder):
            refuse(errno.EISDIR)
        place = (folder.id, name)
        there = self._copies.find(place, node.id if node else None)
        visible = there.visible_in(self.tier, node) if there else node and self._is_here(node)
        if visible and flags & os.O_EXCL:
            refuse(errno.EEXIST)
        if visible and node is not None and flags & os.O_ACCMODE == os.O_RDONLY:
            return self._attributes(node), self._files.open(node.id, flags)

        copy, made = self._files.share(
            place,
            node,
            tier=None if visible else self.tier,
            mode=mode,
            caller=self._owner(folder, caller),
            fresh=not visible,
            emptied=bool(flags & os.O_TRUNC),
        )
        if not made and not visible and self.tier is not None:
            copy.begin_in(self.tier)
        elif not made and flags & os.O_EXCL:
            self._copies.let_go(copy)
            refuse(errno.EEXIST)
        elif flags & os.O_EXCL and node is None:
            copy.exclusive = True
        return copy.attributes(), self._files.writing(copy, flags)

    def _is_here(self, node: File) -> bool:
        return self.tier in {None, node.tier}

    def _owner(self, folder: Folder, caller: Caller) -> Caller:
        return Caller(caller.uid, folder.gid) if folder.mode & stat.S_ISGID else caller

    def mkdir(self, parent: Node, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a folder; one that was removed here and is still elsewhere is there again."""
        folder = self._folder(parent)
        check_segment(name)
        if self._copies.find((folder.id, name)) is not None:
            refuse(errno.EEXIST)
        uid, gid = self._owner(folder, caller)
        mode = stat.S_IMODE(mode) | folder.mode & stat.S_ISGID
        try:
            made = self._catalog.make_folder(
                folder.id, name, tier=self.tier or 0, mode=mode, uid=uid, gid=gid
            )
        except Exists:
            there = self._catalog.lookup(folder.id, name)
            if not isinstance(there, Folder) or self._finds(there):
                raise
            made = there
            self._dropped.pop(made.id, None)
        return self._attributes(made)

    def symlink(self, parent: Node, name: str, target: str, caller: Caller) -> Attributes:
        """Make a symbolic link: an artifact whose content is what the link says."""
        folder = self.folder_for_files(parent, name)
        if self._copies.find((folder.id, name)) is not None:
            refuse(errno.EEXIST)
        uid, gid = self._owner(folder, caller)
        tier = self.tier or 0
        staged = self._store.blobs.staging(tier)
        try:
            staged.write(0, target.encode("utf-8", "surrogateescape"))
            file = self._store.artifacts.commit_file(
                folder.id,
                name,
                staged,
                tier=tier,
                mode=stat.S_IFLNK | 0o777,
                uid=uid,
                gid=gid,
                replace=False,
            )
        finally:
            staged.discard()
        return self._attributes(file)

    # Removing

    def unlink(self, parent: Node, name: str) -> None:
        """Remove a file from the store; who has it open keeps the bytes."""
        node = self._child(parent, name)
        if isinstance(node, Folder):
            refuse(errno.EISDIR)
        if isinstance(node, File):
            self._remove(node)
            return
        with node.lock:
            stored = node.base or node.shadows
            if stored is not None:
                self._remove(self._records.fetch(stored.id) or stored)
            self._copies.unlink(node)

    def rmdir(self, parent: Node, name: str) -> None:
        """Remove a folder that is empty here; what other tiers have in it stays, and so does it."""
        node = self._child(parent, name)
        if not isinstance(node, Folder):
            refuse(errno.ENOTDIR)
        if any(True for _ in self._unstored(node.id)):
            refuse(errno.ENOTEMPTY)
        if self.tier is not None and not node.empty:
            if node.shown_in(self.tier):
                refuse(errno.ENOTEMPTY)
            self._drop(node.id)
        else:
            self._catalog.remove_folder(node.parent, name)

    # Attributes

    def setattr(self, node: Node, changes: Changes) -> Attributes:
        """Change a folder's attributes."""
        if changes.size is not None:
            refuse(errno.EISDIR)
        wanted = {
            name: value
            for name, value in changes._asdict().items()
            if value is not None and name != "accessed_ns"
        }
        if wanted:
            return self._attributes(self._catalog.set_attributes(self._folder(node).id, **wanted))
        return self.getattr(node)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give a folder's own attributes."""
        return dict(self._folder(node).xattrs)

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> None:
        """Set or remove one of a folder's own attributes."""
        user_attribute(name, value, self.xattrs(node), flags)
        self._catalog.set_xattr(identity_of(node), name, value)
