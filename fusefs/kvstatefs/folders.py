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
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kvstate.errors import Exists, NotFound
from kvstate.keyspace import ROOT_ID
from kvstate.names import NAME_BYTES_MAX, check_segment
from kvstate.nodes import File, Folder
from kvstatefs.artifact_copy import ArtifactCopy
from kvstatefs.attributes import user_attribute
from kvstatefs.listing import Listed, Listing, Page
from kvstatefs.nodes import (
    RENAME_NOREPLACE,
    Attributes,
    Caller,
    Changes,
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
    from kvstatefs.nodes import Handle, Node

__all__ = ["FolderView"]

_PAGE: Final = 256
_DROPPED_SECONDS: Final = 60.0


class FolderView(PlainView):
    """The folders of one tier (0 hot, 1 warm, 2 cold), or of all (None)."""

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

    # Looking

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

    # Making

    def open(self, node: Node, flags: int) -> Handle:
        """Refuse: a folder."""
        del node, flags
        refuse(errno.EISDIR)

    def create(
        self, parent: Node, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Attributes, Handle]:
        """Make a file, or open the one that is there; stored when it is closed."""
        folder = self._folder_for_files(parent, name)
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
        )
        if not made and not visible and self.tier is not None:
            copy.begin_in(self.tier)
        elif not made and flags & os.O_EXCL:
            self._copies.let_go(copy)
            refuse(errno.EEXIST)
        return copy.attributes(), self._files.writing(copy, flags)

    def _is_here(self, node: File) -> bool:
        return self.tier in {None, node.tier}

    def _folder_for_files(self, parent: Node, name: str) -> Folder:
        """Check that a file may be made here: below a workflow, under a good name."""
        folder = self._folder(parent)
        check_segment(name)
        if ROOT_ID in {folder.id, folder.parent}:
            refuse(errno.EPERM, "files live below tenant/workflow/")
        return folder

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
        folder = self._folder_for_files(parent, name)
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

    def _remove(self, file: File) -> None:
        self._catalog.remove_file(file.parent, file.name)
        copy = self._copies.find(file.id)
        if copy is not None:
            self._copies.unlink(copy)

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

    def _drop(self, folder_id: int) -> None:
        now = time.monotonic()
        self._dropped = {key: end for key, end in self._dropped.items() if end > now}
        self._dropped[folder_id] = now + _DROPPED_SECONDS
        self._records.version.touch()

    # Renaming

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Rename within this view."""
        self.move(parent, name, self, new_parent, new_name, flags)

    def move(
        self,
        parent: Node,
        name: str,
        target_view: FolderView,
        new_parent: Node,
        new_name: str,
        flags: int = 0,
    ) -> None:
        """Rename a file, also into another tier's view: then it moves to that tier.

        A folder can only be renamed in `all/`; elsewhere EXDEV makes `mv` move what is there.
        """
        if flags & ~RENAME_NOREPLACE:
            refuse(errno.EINVAL)
        if flags & RENAME_NOREPLACE and target_view.has(new_parent, new_name):
            refuse(errno.EEXIST)
        source = self._child(parent, name)
        check_segment(new_name)
        if isinstance(source, Folder):
            self._move_folder(source, target_view, new_parent, new_name)
            return
        target_view._folder_for_files(new_parent, new_name)
        place = (identity_of(new_parent), new_name)
        target = self._catalog.lookup(*place)
        if isinstance(target, Folder):
            refuse(errno.EISDIR)
        if isinstance(source, File):
            self._move_file(source, target_view, place, target)
            return
        with source.lock:
            if source.base is not None:
                base = self._records.fetch(source.base.id) or source.base
                self._move_file(base, target_view, place, target)
                source.parent, source.name = place
                if target_view.tier is not None:
                    source.tier = None
            else:
                self._move_unstored(source, target_view, place, target)

    def _move_folder(
        self, source: Folder, target_view: FolderView, new_parent: Node, new_name: str
    ) -> None:
        parent = identity_of(new_parent)
        if parent == source.id and source.name == new_name and target_view is not self:
            self._move_contents(source, target_view)
            return
        if self.tier is not None or target_view.tier is not None:
            refuse(errno.EXDEV)
        if (source.parent, source.name) == (parent, new_name):
            return
        target = self._catalog.lookup(parent, new_name)
        if isinstance(target, File) or self._copies.find((parent, new_name)) is not None:
            refuse(errno.ENOTDIR)
        if target is not None and any(True for _ in self._unstored(target.id)):
            refuse(errno.ENOTEMPTY)
        self._catalog.rename(source.parent, source.name, parent, new_name)

    def _move_contents(self, folder: Folder, target_view: FolderView) -> None:
        """Move what a folder shows here to the tier of another view of the same folder.

        `mv hot/t/w/logs cold/t/w/logs` asks to rename the folder into itself, since it is there.
        """
        for _, listed in self.listing(node_number(self._tag, folder.id)).entries():
            child = self._child(folder.id, listed.name)
            if isinstance(child, Folder):
                self._move_contents(child, target_view)
            elif target_view.tier is not None:
                place = node_number(self._tag, folder.id), listed.name
                self.move(*place, target_view, *place)
        if self.tier is not None:
            self._drop(folder.id)

    def _move_file(
        self, source: File, target_view: FolderView, place: tuple[int, str], target: File | None
    ) -> None:
        tier = target_view.tier if target_view.tier != source.tier else None
        if tier is None:
            self._catalog.rename(source.parent, source.name, *place)
        else:
            self._store.moving.rename_into_tier(source.parent, source.name, *place, tier)
        if place == (source.parent, source.name):
            return
        for key in (place, target.id if target else None):
            gone = self._copies.find(key)
            if gone is not None and gone is not self._copies.find(source.id):
                self._copies.unlink(gone)

    def _move_unstored(
        self,
        source: ArtifactCopy,
        target_view: FolderView,
        place: tuple[int, str],
        target: File | None,
    ) -> None:
        """Give a file another name before it is stored; over another, it replaces it when it is."""
        if target_view.tier is not None:
            source.tier = target_view.tier
        if self._copies.find(place) is source:
            return
        if target is not None:
            self._catalog.guard("replacing", target.name, target)
            written = self._copies.find(target.id)
            if written is not None:
                self._copies.unlink(written)
        if source.shadows is not None:
            with suppress(NotFound):  # it was replaced, and what replaced it goes on
                self._remove(source.shadows)
        source.parent, source.name = place
        source.shadows = target
        self._copies.rekey(source, place)

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
