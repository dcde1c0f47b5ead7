"""Renaming and moving in the view of one tier, or of all, and from one into another."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from kvstate.errors import NotFound
from kvstate.names import check_segment
from kvstate.nodes import File, Folder
from kvstatefs.folder_looking import FolderLooking
from kvstatefs.nodes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    identity_of,
    node_number,
    refuse,
)

if TYPE_CHECKING:
    from kvstatefs.artifact_copy import ArtifactCopy
    from kvstatefs.nodes import Node

__all__ = ["FolderMoving"]


class FolderMoving(FolderLooking):
    """The folders of one tier, or of all: what has another name then."""

    def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int = 0
    ) -> None:
        """Rename within this view."""
        self.move(parent, name, self, new_parent, new_name, flags)

    def move(
        self,
        parent: Node,
        name: str,
        target_view: FolderLooking,
        new_parent: Node,
        new_name: str,
        flags: int = 0,
    ) -> None:
        """Rename a file, also into another tier's view: then it moves to that tier.

        A folder can only be renamed in `all/`; elsewhere EXDEV makes `mv` move what is there.
        """
        if flags not in {0, RENAME_NOREPLACE, RENAME_EXCHANGE}:
            refuse(errno.EINVAL)
        if flags == RENAME_EXCHANGE:
            self._exchange(parent, name, target_view, new_parent, new_name)
            return
        replace = not flags
        source = self._child(parent, name)
        check_segment(new_name)
        if not replace and target_view.has(new_parent, new_name):
            refuse(errno.EEXIST)
        if isinstance(source, Folder):
            self._move_folder(source, target_view, new_parent, new_name, replace=replace)
            return
        target_view.folder_for_files(new_parent, new_name)
        place = (identity_of(new_parent), new_name)
        target = self._catalog.lookup(*place)
        if isinstance(target, Folder):
            refuse(errno.EISDIR)
        if target is not None and not replace:
            stored = source if isinstance(source, File) else source.base
            if stored is None or stored.id != target.id:
                # The name is taken, in a tier that this view does not show. EEXIST would have `mv`
                # look at what is not there; so it is told to look for itself, and to go on.
                refuse(errno.EINVAL)
        if isinstance(source, File):
            self._move_file(source, target_view, place, target, replace=replace)
            return
        with source.lock:
            if source.base is not None:
                base = self._records.fetch(source.base.id) or source.base
                self._move_file(base, target_view, place, target, replace=replace)
                source.parent, source.name = place
                if target_view.tier is not None:
                    source.tier = None
            else:
                self._move_unstored(source, target_view, place, target)

    def _move_folder(
        self,
        source: Folder,
        target_view: FolderLooking,
        new_parent: Node,
        new_name: str,
        *,
        replace: bool,
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
        self._catalog.rename(source.parent, source.name, parent, new_name, replace=replace)

    def _exchange(
        self, parent: Node, name: str, target_view: FolderLooking, new_parent: Node, new_name: str
    ) -> None:
        """Let two files or folders of one view have each other's names, in one step.

        What is not stored yet is stored before: until then it has no name to give.
        """
        if target_view is not self:
            refuse(errno.EXDEV)
        for node in (self._child(parent, name), self._child(new_parent, new_name)):
            if isinstance(node, Folder):
                if self.tier is not None:
                    refuse(errno.EXDEV)
            elif not isinstance(node, File) and node.base is None:
                node.flush(lambda: False)
        places = (identity_of(parent), name), (identity_of(new_parent), new_name)
        self._catalog.exchange(*places[0], *places[1])
        for place in places:
            stored = self._catalog.lookup(*place)
            copy = None if stored is None else self._copies.find(stored.id)
            if copy is not None:
                copy.parent, copy.name = place

    def _move_contents(self, folder: Folder, target_view: FolderLooking) -> None:
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
        self,
        source: File,
        target_view: FolderLooking,
        place: tuple[int, str],
        target: File | None,
        *,
        replace: bool,
    ) -> None:
        tier = target_view.tier if target_view.tier != source.tier else None
        if tier is None:
            self._catalog.rename(source.parent, source.name, *place, replace=replace)
        else:
            self._store.moving.rename_into_tier(
                source.parent, source.name, *place, tier, replace=replace
            )
        if place == (source.parent, source.name):
            return
        for key in (place, target.id if target else None):
            gone = self._copies.find(key)
            if gone is not None and gone is not self._copies.find(source.id):
                self._copies.unlink(gone)

    def _move_unstored(
        self,
        source: ArtifactCopy,
        target_view: FolderLooking,
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
