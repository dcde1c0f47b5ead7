"""Names of folders and artifacts: given, taken, exchanged, each in one step.

A folder or an artifact keeps its identity, and what lies below a folder is not touched, unless
another workflow counts and orders it from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstate.codec import encode
from kvstate.errors import Conflict, Exists, Held, InvalidName, InvalidValue, NotFound
from kvstate.folders import FILE_DEPTH
from kvstate.keyspace import (
    after_prefix,
    entry_key,
    held_prefix,
    parse_held,
    queue_key,
)
from kvstate.names import check_segment
from kvstate.nodes import File, Folder, Node, described, unpack
from kvstate.tally import Tally
from kvstate.trashing import Trashing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.journal import Change

__all__ = ["Renaming"]

_ASIDE: Final = "\0aside"
"""A name that nothing can have, for within a change."""


class Renaming(Trashing):
    """The folders and artifacts of a store, by their names."""

    def rename(
        self, parent_id: int, name: str, new_parent_id: int, new_name: str, *, replace: bool = True
    ) -> Node:
        """Give a folder or an artifact another name or folder, in one step.

        What has the new name is replaced, if it is of the same kind (a folder must be empty) and
        ``replace`` is on; else `Exists` or `Conflict`. `Held` when a hold forbids it.
        """
        check_segment(new_name)

        def run(change: Change) -> Node:
            return self.rename_in(change, parent_id, name, new_parent_id, new_name, replace=replace)

        moved = self._journal.commit(run)
        self._blobs.sweep()
        return moved

    def rename_under(
        self,
        node: Node,
        folders: Callable[[Change], int],
        new_name: str,
        *,
        replace: bool,
        why: str = "",
    ) -> Node:
        """Rename what was found into a folder that is made when it is missing; prune behind it."""
        check_segment(new_name)

        def run(change: Change) -> Node:
            now = self.node(node.id, change.tx)
            if now is None:
                raise NotFound("artifact", node.name)
            target = folders(change)
            moved = self.rename_in(
                change, now.parent, now.name, target, new_name, replace=replace, why=why
            )
            if now.parent != target:
                self.prune(change, now.parent)
            return moved

        moved = self._journal.commit(run)
        self._blobs.sweep()
        return moved

    def rename_in(
        self,
        change: Change,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        *,
        replace: bool,
        why: str = "",
    ) -> Node:
        """Rename within a change."""
        node = self.lookup(parent_id, name, change.tx)
        if node is None:
            raise NotFound("artifact", name)
        target = self.lookup(new_parent_id, new_name, change.tx)
        if target is not None and target.id == node.id:
            return node
        old_path = self.path(node.id, change.tx)
        self._check_target(change, node, new_parent_id)
        if isinstance(node, File):
            self.guard("renaming", old_path, node)
        else:
            node = self._folder(change, node.id)
            self._guard_below(change, node, old_path)
        if target is not None:
            self._make_way(change, node, target, replace=replace)
        if isinstance(node, File):
            moved: Node = self._rename_file(change, node, new_parent_id, new_name)
        else:
            moved = self._rename_folder(change, node, new_parent_id, new_name)
        to = self.path(node.id, change.tx)
        change.say("rename", "", old_path, encode({"to": to}), described(target), why)
        return moved

    def _rename_file(self, change: Change, file: File, parent_id: int, name: str) -> File:
        before = self.lineage(file.parent, change)
        self.erase_file(change, file, keep_content=True)
        grew = self.lineage(parent_id, change).names[0] != before.names[0]
        moved = file._replace(
            parent=parent_id, name=name, changed_ns=change.at_ns, revision=change.revision
        )
        return self.put_file(change, moved, None, grew=grew)

    def _rename_folder(self, change: Change, folder: Folder, parent_id: int, name: str) -> Folder:
        before = self.lineage(folder.id, change)
        above = self.lineage(parent_id, change)
        # What counts and orders the artifacts below changes only if another workflow has them then.
        after_ids = (*above.ids, folder.id)
        files = []
        if before.ids[2:3] != after_ids[2:3]:
            files = [
                (file, self.lineage(file.parent, change)) for file in self._below(change, folder)
            ]
            for file, lineage in files:
                self.reindex(change, file, lineage, enter=False)
        elif before.depth == FILE_DEPTH and before.ids[1] != after_ids[1]:
            tally = change.later(Tally, Tally)
            totals = tally.totals(change.tx, folder.id)
            tally.add_totals(before.ids[1], totals, -1)
            tally.add_totals(after_ids[1], totals, 1)
        change.tx.delete(entry_key(folder.parent, folder.name.encode()))
        shown = {tier: 1 for tier in range(self._tiers) if folder.shown_in(tier)}
        self._count(change, folder.parent, {t: -n for t, n in shown.items()}, touched=True)
        moved = folder._replace(parent=parent_id, name=name, changed_ns=change.at_ns)
        self.write_node(change, moved)
        self._place(change, folder.id, parent_id, name.encode())
        self._count(change, parent_id, shown, touched=True)
        self.forget_lineages(change)
        for file, _ in files:
            self.reindex(change, file, self.lineage(file.parent, change), enter=True)
        policy, _ = self.policies.in_force(change.tx)
        # Nor may a pass over all miss them, that is past the new name and has not come to the old.
        if policy.by_path or any(True for _ in change.tx.scan(b"A", b"B")):
            change.seal(queue_key(folder.id), encode([]))
        after = self.lineage(folder.id, change)
        grew = after.names[:1] != before.names[:1]
        self._check_quota(change, policy, after.path(""), after, grew=grew)
        return moved

    def _below(self, change: Change, folder: Folder) -> Iterator[File]:
        """Give all artifacts below a folder, as a change sees them."""
        prefix = entry_key(folder.id)
        for key, data in list(change.tx.scan(prefix + b"\0", after_prefix(prefix))):
            node = unpack(key, data)
            if isinstance(node, File):
                yield node
            else:
                yield from self._below(change, node)

    def _guard_below(self, change: Change, folder: Folder, path: str) -> None:
        """Raise `Held` when an artifact below a folder is held: its name would change."""
        lineage = self.lineage(folder.id, change)
        if not change.later(Tally, Tally).totals(change.tx, lineage.counted[-1]).held:
            return
        if lineage.depth <= FILE_DEPTH:
            raise Held("renaming", path, "holds on artifacts below it")
        prefix = held_prefix(lineage.workflow)
        for key, _ in change.tx.scan(prefix, after_prefix(prefix)):
            above = self._upwards(parse_held(key)[1], change.tx)
            if any(node.id == folder.id for node in above):
                raise Held("renaming", path, "holds on artifacts below it")

    def _check_target(self, change: Change, node: Node, new_parent_id: int) -> None:
        above = [folder.id for folder in self._upwards(new_parent_id, change.tx)]
        if node.id in above:
            raise InvalidValue("rename", "a folder cannot move below itself")
        if isinstance(node, File) and len(above) < FILE_DEPTH:
            raise InvalidName("artifact", node.name, "artifacts live below tenant/workflow/")
        if isinstance(node, Folder):
            self._check_depth_below(change, node, len(above) + 1)

    def _check_depth_below(self, change: Change, folder: Folder, depth: int) -> None:
        if depth < FILE_DEPTH and self._has_files(change, folder):
            raise InvalidName("folder", folder.name, "its artifacts would not lie below a workflow")

    def _has_files(self, change: Change, folder: Folder) -> bool:
        prefix = entry_key(folder.id)
        pairs = change.tx.scan(prefix + b"\0", after_prefix(prefix))
        return any(isinstance(unpack(key, data), File) for key, data in pairs)

    # Exchanging

    def exchange(
        self, parent_id: int, name: str, new_parent_id: int, new_name: str
    ) -> tuple[Node, Node]:
        """Let two folders or artifacts have each other's names, in one step; give both.

        `NotFound` unless both are there; `Held` when a hold forbids it.
        """

        def run(change: Change) -> tuple[Node, Node]:
            one = self.lookup(parent_id, name, change.tx)
            other = self.lookup(new_parent_id, new_name, change.tx)
            if one is None or other is None:
                raise NotFound("artifact", name if one is None else new_name)
            if one.id == other.id:
                return one, other
            paths = [self.path(node.id, change.tx) for node in (one, other)]
            self._check_target(change, one, new_parent_id)
            self._check_target(change, other, parent_id)
            for node, path in zip((one, other), paths, strict=True):
                if isinstance(node, File):
                    self.guard("renaming", path, node)
                else:
                    self._guard_below(change, self._folder(change, node.id), path)
            self._give_name(change, one.id, parent_id, _ASIDE)
            self._give_name(change, other.id, parent_id, name)
            self._give_name(change, one.id, new_parent_id, new_name)
            change.say("rename", "", paths[0], encode({"to": paths[1]}))
            change.say("rename", "", paths[1], encode({"to": paths[0]}))
            return self._by_id(change, one.id), self._by_id(change, other.id)

        return self._journal.commit(run)

    def _give_name(self, change: Change, node_id: int, parent_id: int, name: str) -> None:
        node = self._by_id(change, node_id)
        if isinstance(node, File):
            self._rename_file(change, node, parent_id, name)
        else:
            self._rename_folder(change, self._folder(change, node.id), parent_id, name)

    def _by_id(self, change: Change, node_id: int) -> Node:
        node = self.node(node_id, change.tx)
        if node is None:
            raise NotFound("node", f"#{node_id}")
        return node

    # Making way

    def evict(self, change: Change, parent_id: int, name: str) -> None:
        """Remove the artifact that has a name, if one has, as a rename over it does."""
        target = self.lookup(parent_id, name, change.tx)
        if isinstance(target, File):
            self.guard("replacing", self.path(target.id, change.tx), target)
            self.erase_file(change, target)

    def _make_way(self, change: Change, node: Node, target: Node, *, replace: bool) -> None:
        if not replace:
            raise Exists("artifact", target.name)
        if isinstance(node, File) != isinstance(target, File):
            kind = "an artifact" if isinstance(target, File) else "a folder"
            raise Conflict(target.name, f"{kind} has this name")
        if isinstance(target, File):
            self.guard("replacing", self.path(target.id, change.tx), target)
            self.erase_file(change, target)
            return
        target = self._folder(change, target.id)
        if not target.empty:
            raise Conflict(target.name, "the folder is not empty")
        self._erase_folder(change, target)
