"""The catalog: folders and artifacts, what names them and what changes them without new content.

Its ground is `kvstate.folders` (identities, listings, counts of what is visible), on which
`kvstate.filing` keeps artifacts' records, indexes, trash and totals. Here are renaming, attributes,
holds, and the notes that a read or a failed move leaves.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from kvstate.codec import encode
from kvstate.errors import Conflict, Exists, Held, InvalidName, InvalidValue, NotFound
from kvstate.filing import Filing, as_file
from kvstate.folders import FILE_DEPTH
from kvstate.keyspace import (
    after_prefix,
    entry_key,
    held_prefix,
    parse_held,
    queue_key,
)
from kvstate.names import check_segment
from kvstate.nodes import Failure, File, Folder, Node, described, unpack
from kvstate.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvstate.journal import Change

__all__ = ["Catalog"]

_ATTRIBUTES_BYTES_MAX = 65536
_RETRY_NS = 60 * 10**9
_RETRY_NS_MAX = 86400 * 10**9


class Catalog(Filing):
    """The folders and artifacts of a store."""

    # Renaming

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

    # Attributes

    def set_attributes(
        self,
        node_id: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        modified_ns: int | None = None,
        accessed_ns: int | None = None,
    ) -> Node:
        """Change what is given; `NotFound` when the identity is gone."""

        def edit(node: Node, change: Change) -> Node:
            if mode is not None:
                kind = stat.S_IFMT(node.mode)
                node = node._replace(mode=kind | stat.S_IMODE(mode))
            if modified_ns is not None:
                node = node._replace(modified_ns=modified_ns)
            if accessed_ns is not None and isinstance(node, File):
                node = node._replace(accessed_ns=accessed_ns)
            return node._replace(
                uid=node.uid if uid is None else uid,
                gid=node.gid if gid is None else gid,
                changed_ns=change.at_ns,
            )

        return self.edit(node_id, edit, "attributes")

    def set_xattr(self, node_id: int, name: str, value: bytes | None) -> Node:
        """Set or remove (None) an extended attribute; `NotFound` when there is none to remove."""

        def edit(node: Node, change: Change) -> Node:
            xattrs = dict(node.xattrs)
            if value is None:
                if name not in xattrs:
                    raise NotFound("attribute", name)
                del xattrs[name]
            else:
                xattrs[name] = value
            if sum(len(key) + len(item) for key, item in xattrs.items()) > _ATTRIBUTES_BYTES_MAX:
                raise InvalidValue("attributes", "all of one file may have 64 KiB together")
            return node._replace(xattrs=xattrs, changed_ns=change.at_ns)

        return self.edit(node_id, edit, "xattr")

    def edit(
        self,
        node_id: int,
        function: Callable[[Node, Change], Node],
        why: str,
        *,
        kind: str = "update",
    ) -> Node:
        """Change a record by a function; say so in the journal."""

        def run(change: Change) -> Node:
            node = self.node(node_id, change.tx)
            if node is None:
                raise NotFound("node", f"#{node_id}")
            edited = function(node, change)
            if isinstance(edited, File):
                edited = self.put_file(change, edited, as_file(node))
            else:
                self.write_node(change, edited)
            change.say(kind, "", self.path(node_id, change.tx), described(edited), None, why)
            return edited

        return self._journal.commit(run)

    # Holds

    def hold(self, file: File, case: str, why: str) -> File:
        """Hold an artifact for a case: who, when and why; a second time changes only the why."""
        if not case or not case.isprintable() or len(case.encode()) > 255:
            raise InvalidValue("case", f"{case!r} is no name of 1 to 255 bytes")

        def edit(node: Node, change: Change) -> Node:
            there = as_file(node)
            about = {"by": change.actor, "at_ns": change.at_ns, **there.holds.get(case, {})}
            holds = {**there.holds, case: {**about, "reason": why}}
            return there._replace(holds=holds, changed_ns=change.at_ns)

        return as_file(self.edit(file.id, edit, f"{case}: {why}" if why else case, kind="hold"))

    def release(self, file: File, case: str, why: str) -> File:
        """Release a hold; `NotFound` when there is none for this case."""

        def edit(node: Node, change: Change) -> Node:
            there = as_file(node)
            if case not in there.holds:
                raise NotFound("hold", case)
            holds = {name: about for name, about in there.holds.items() if name != case}
            return there._replace(holds=holds, changed_ns=change.at_ns)

        return as_file(self.edit(file.id, edit, f"{case}: {why}" if why else case, kind="release"))

    # What reads and failed moves leave

    def note_reads(self, reads: Iterable[tuple[int, int]]) -> None:
        """Record when artifacts (by identity) were last read; not a change that anybody is told."""

        def run(change: Change) -> None:
            for node_id, at_ns in known:
                node = self.node(node_id, change.tx)
                if isinstance(node, File) and node.accessed_ns < at_ns:
                    self.write_node(change, node._replace(accessed_ns=at_ns))

        known = list(reads)
        self._journal.commit(run)

    def note_failure(self, file: File, tier: int, why: str) -> None:
        """Record that a move failed, and when to try again: 1 minute, 2, 4, ... up to a day."""

        def run(change: Change) -> None:
            node = self.node(file.id, change.tx)
            if not isinstance(node, File) or node.revision != file.revision:
                return
            tries = 1 if node.failure is None else node.failure.tries + 1
            wait_ns = min(_RETRY_NS << min(tries - 1, 30), _RETRY_NS_MAX)
            failure = Failure(tier, why[:500], tries, change.at_ns, change.at_ns + wait_ns)
            failed = self.put_file(change, node._replace(failure=failure), node)
            path = self.path(file.id, change.tx)
            change.say("fail", "", path, described(failed), None, f"try {tries}: {failure.why}")

        self._journal.commit(run)
