"""The catalog: which folders and artifacts there are, by identity and by name.

A folder or an artifact is one record under its parent's identity and its name (key ``T``), so a
listing is one scan, with all attributes, and renaming a folder moves one record: what is below it
refers to its identity. The way back from an identity to its place is a record of its own (``I``).

A folder counts, per tier, its children that are visible in that tier. An artifact is visible in its
tier; a folder where it has visible children, or, while it is empty, in its home. When a folder's
visibility changes, its parent's count does; so ``hot/`` lists exactly the folders that lead to
something hot, without looking further. Invariants: an artifact's parent is at depth 2 or more
(tenant, workflow); counts equal what a walk would count; every record has its ``I`` and back.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from kvstate.codec import decode, encode, seal, unseal
from kvstate.errors import Conflict, Damaged, Exists, InvalidName, InvalidValue, NotFound
from kvstate.keyspace import ROOT_ID, after_prefix, due_key, entry_key, identity_key, meta_key
from kvstate.names import check_segment
from kvstate.nodes import FILE_KIND, FOLDER_KIND, File, Folder, Node, Usage, described, unpack
from kvstate.records import open_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.blobs import Blobs
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal

__all__ = ["Catalog"]

FILE_DEPTH = 2
"""Artifacts live in folders of at least this depth: tenant is 1, workflow 2."""
_DEPTH_MAX = 2048


class Catalog:
    """The folders and artifacts of a store."""

    def __init__(self, engine: Engine, journal: Journal, blobs: Blobs, tiers: int) -> None:
        self._engine = engine
        self._journal = journal
        self._blobs = blobs
        self._tiers = tiers

    # Looking up

    def lookup(self, parent_id: int, name: str, reader: Reader | None = None) -> Node | None:
        """Give what has this name in this folder."""
        key = entry_key(parent_id, name.encode("utf-8", "surrogateescape"))
        if len(key) > 9 + 255:
            return None
        data = (reader or self._engine).get(key)
        return None if data is None else unpack(key, data)

    def node(self, node_id: int, reader: Reader | None = None) -> Node | None:
        """Give what has this identity."""
        if reader is None:
            return self._engine.read(lambda found: self.node(node_id, found))
        key = identity_key(node_id)
        data = reader.get(key)
        if data is None:
            return None
        place = unseal(key, data)
        entry = entry_key(int.from_bytes(place[:8], "big"), place[8:])
        record = reader.get(entry)
        if record is None:
            raise Damaged(f"identity {node_id}", "it leads to no record")
        return unpack(entry, record)

    def children(self, folder_id: int, after: str = "", limit: int = 1000) -> list[Node]:
        """Give one page of what is in a folder, in the byte order of names, after a name."""
        prefix = entry_key(folder_id)
        start = prefix + after.encode() + b"\0" if after else prefix + b"\0"
        page = self._engine.scan(start, after_prefix(prefix), limit=limit)
        return [unpack(key, data) for key, data in page]

    def walk_path(self, parts: tuple[str, ...], reader: Reader | None = None) -> Node | None:
        """Give what is at this path below the root."""
        found: Node | None = None
        parent = ROOT_ID
        for part in parts:
            found = self.lookup(parent, part, reader)
            if found is None or (isinstance(found, File) and part is not parts[-1]):
                return None
            parent = found.id
        return found

    def path(self, node_id: int, reader: Reader | None = None) -> str:
        """Give the path of an identity; empty for the root, `NotFound` when it is gone."""
        if reader is None:
            return self._engine.read(lambda found: self.path(node_id, found))
        parts = [node.name for node in self._upwards(node_id, reader)]
        return "/".join(reversed(parts))

    def depth(self, folder_id: int, reader: Reader | None = None) -> int:
        """Give a folder's depth: the root has 0, a tenant 1, a workflow 2."""
        if reader is None:
            return self._engine.read(lambda found: self.depth(folder_id, found))
        return sum(1 for _ in self._upwards(folder_id, reader))

    def _upwards(self, node_id: int, reader: Reader) -> Iterator[Node]:
        """Give a node and its folders, up to but without the root."""
        for _ in range(_DEPTH_MAX):
            if node_id == ROOT_ID:
                return
            node = self.node(node_id, reader)
            if node is None:
                raise NotFound("folder", f"#{node_id}")
            yield node
            node_id = node.parent
        raise Damaged(f"folder {node_id}", "its path has no end")

    def usage(self, reader: Reader | None = None) -> tuple[Usage, ...]:
        """Give the number and size of the artifacts in each tier."""
        key = meta_key("usage")
        data = (reader or self._engine).get(key)
        if data is None:
            return tuple(Usage(0, 0) for _ in range(self._tiers))
        return tuple(Usage(*pair) for pair in decode(open_envelope(key, data).payload))

    # Folders

    def make_root(self, change: Change, uid: int, gid: int) -> None:
        """Make the root's record, once, when the store is made."""
        now = change.at_ns
        zeros = (0,) * self._tiers
        root = Folder(ROOT_ID, 0, "", 0, False, zeros, now, now, now, 0o755, uid, gid, {})
        self._write(change, root)
        self._place(change, ROOT_ID, 0, b"")

    def make_folder(
        self, parent_id: int, name: str, *, tier: int = 0, mode: int = 0o755, uid: int, gid: int
    ) -> Folder:
        """Make a folder; `Exists` when the name is taken, `NotFound` when the parent is gone."""
        check_segment(name)

        def run(change: Change) -> Folder:
            folder = self.add_folder(change, parent_id, name, tier, mode, uid, gid, implicit=False)
            change.say("mkdir", "", self.path(folder.id, change.tx))
            return folder

        return self._journal.commit(run)

    def add_folder(
        self,
        change: Change,
        parent_id: int,
        name: str,
        tier: int,
        mode: int,
        uid: int,
        gid: int,
        *,
        implicit: bool,
    ) -> Folder:
        """Make a folder within a change."""
        parent = self._folder(change, parent_id)
        if self.lookup(parent_id, name, change.tx) is not None:
            raise Exists("folder", name)
        now = change.at_ns
        zeros = (0,) * self._tiers
        folder = Folder(
            change.new_id(),
            parent.id,
            name,
            tier,
            implicit,
            zeros,
            now,
            now,
            now,
            mode,
            uid,
            gid,
            {},
        )
        self._write(change, folder)
        self._place(change, folder.id, parent.id, name.encode())
        self._count(change, parent.id, {tier: 1}, touched=True)
        return folder

    def remove_folder(self, parent_id: int, name: str) -> None:
        """Remove an empty folder; `NotFound`, or `Conflict` when something is in it."""

        def run(change: Change) -> None:
            folder = self._child_folder(change, parent_id, name)
            if not folder.empty:
                raise Conflict(name, "the folder is not empty")
            path = self.path(folder.id, change.tx)
            self._erase_folder(change, folder)
            change.say("rmdir", "", path)

        self._journal.commit(run)

    def _erase_folder(self, change: Change, folder: Folder) -> None:
        change.tx.delete(entry_key(folder.parent, folder.name.encode()))
        change.tx.delete(identity_key(folder.id))
        self._count(change, folder.parent, {folder.home: -1}, touched=True)

    def prune(self, change: Change, folder_id: int) -> None:
        """Remove a folder that became empty, and those above it, if they were made in passing."""
        while folder_id != ROOT_ID:
            folder = self._folder(change, folder_id)
            if not folder.empty or not folder.implicit:
                return
            self._erase_folder(change, folder)
            folder_id = folder.parent

    def ensure_folders(
        self, change: Change, parts: tuple[str, ...], tier: int, uid: int, gid: int
    ) -> int:
        """Give the identity of the folder at this path; make what is missing."""
        parent = ROOT_ID
        for part in parts:
            found = self.lookup(parent, part, change.tx)
            if isinstance(found, File):
                raise Conflict("/".join(parts), f"{part!r} is an artifact, not a folder")
            if found is None:
                found = self.add_folder(change, parent, part, tier, 0o755, uid, gid, implicit=True)
            parent = found.id
        return parent

    def _folder(self, change: Change, folder_id: int) -> Folder:
        node = self.node(folder_id, change.tx)
        if not isinstance(node, Folder):
            raise NotFound("folder", f"#{folder_id}")
        return node

    def _child_folder(self, change: Change, parent_id: int, name: str) -> Folder:
        node = self.lookup(parent_id, name, change.tx)
        if node is None:
            raise NotFound("folder", name)
        if isinstance(node, File):
            raise Conflict(name, "it is an artifact, not a folder")
        return node

    # Files

    def put_file(self, change: Change, file: File, old: File | None) -> None:
        """Write an artifact's record, new or in the place of its old state."""
        if old is None:
            parent = self._folder(change, file.parent)
            if self.depth(parent.id, change.tx) < FILE_DEPTH:
                raise InvalidName("artifact", file.name, "artifacts live below tenant/workflow/")
            self._place(change, file.id, file.parent, file.name.encode())
        self._write(change, file)
        self._index(change, old, file)
        if old is None or old.tier != file.tier:
            shift = {file.tier: 1} if old is None else {old.tier: -1, file.tier: 1}
            self._count(change, file.parent, shift, touched=old is None)

    def erase_file(self, change: Change, file: File) -> None:
        """Remove an artifact's record, its index entries and its reference to its content."""
        change.tx.delete(entry_key(file.parent, file.name.encode()))
        change.tx.delete(identity_key(file.id))
        self._index(change, file, None)
        self._blobs.shift(change, file.blob, {file.tier: -1})
        self._count(change, file.parent, {file.tier: -1}, touched=True)

    def remove_file(self, parent_id: int, name: str) -> File:
        """Delete an artifact, leaving its folder, even an empty one; give what it was."""

        def run(change: Change) -> File:
            file = self.lookup(parent_id, name, change.tx)
            if file is None:
                raise NotFound("artifact", name)
            if isinstance(file, Folder):
                raise Conflict(name, "it is a folder, not an artifact")
            path = self.path(file.id, change.tx)
            self._make_explicit(change, parent_id)
            self.erase_file(change, file)
            change.say("remove", "", path, None, described(file))
            return file

        removed = self._journal.commit(run)
        self._blobs.sweep()
        return removed

    def _make_explicit(self, change: Change, folder_id: int) -> None:
        """Let a folder stay when it becomes empty, as files' users expect."""
        folder = self._folder(change, folder_id)
        if folder.implicit:
            self._write(change, folder._replace(implicit=False))

    def _index(self, change: Change, old: File | None, new: File | None) -> None:
        """Keep the due index and the usage counts in step with a record."""
        if (old and (old.tier, old.aged_from_ns)) != (new and (new.tier, new.aged_from_ns)):
            if old is not None:
                change.tx.delete(due_key(old.tier, old.aged_from_ns, old.id))
            if new is not None:
                change.tx.put(due_key(new.tier, new.aged_from_ns, new.id), b"")
        if (old and (old.tier, old.size)) == (new and (new.tier, new.size)):
            return
        counts = [list(usage) for usage in self.usage(change.tx)]
        for file, sign in ((old, -1), (new, 1)):
            if file is not None:
                counts[file.tier][0] += sign
                counts[file.tier][1] += sign * file.size
        change.seal(meta_key("usage"), encode(counts))

    # Renaming and attributes

    def rename(
        self,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        *,
        tier: int | None = None,
        replace: bool = True,
    ) -> Node:
        """Give a folder or an artifact another name or folder, in one step.

        What has the new name is replaced, if it is of the same kind (a folder must be empty) and
        ``replace`` is on; else `Exists` or `Conflict`. With ``tier`` an artifact also moves there.
        """
        check_segment(new_name)
        if tier is not None:
            return self._rename_into_tier(
                parent_id, name, new_parent_id, new_name, tier, replace=replace
            )

        def run(change: Change) -> Node:
            return self._rename(change, parent_id, name, new_parent_id, new_name, replace=replace)

        moved = self._journal.commit(run)
        self._blobs.sweep()
        return moved

    def rename_under(
        self, node: Node, folders: Callable[[Change], int], new_name: str, *, replace: bool
    ) -> Node:
        """Rename what was found into a folder that is made when it is missing; prune behind it."""
        check_segment(new_name)

        def run(change: Change) -> Node:
            now = self.node(node.id, change.tx)
            if now is None:
                raise NotFound("artifact", node.name)
            target = folders(change)
            moved = self._rename(change, now.parent, now.name, target, new_name, replace=replace)
            if now.parent != target:
                self.prune(change, now.parent)
            return moved

        moved = self._journal.commit(run)
        self._blobs.sweep()
        return moved

    def _rename(
        self,
        change: Change,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        *,
        replace: bool,
    ) -> Node:
        node = self.lookup(parent_id, name, change.tx)
        if node is None:
            raise NotFound("artifact", name)
        target = self.lookup(new_parent_id, new_name, change.tx)
        if target is not None and target.id == node.id:
            return node
        old_path = self.path(node.id, change.tx)
        self._check_target(change, node, new_parent_id)
        if target is not None:
            self._make_way(change, node, target, replace=replace)
        change.tx.delete(entry_key(parent_id, name.encode()))
        shift = _visible(node, self._tiers)
        self._count(change, parent_id, {t: -n for t, n in shift.items()}, touched=True)
        moved = node._replace(parent=new_parent_id, name=new_name, changed_ns=change.at_ns)
        self._write(change, moved)
        self._place(change, node.id, new_parent_id, new_name.encode())
        self._count(change, new_parent_id, shift, touched=True)
        to = self.path(node.id, change.tx)
        change.say("rename", "", old_path, encode({"to": to}), described(target))
        return moved

    def _check_target(self, change: Change, node: Node, new_parent_id: int) -> None:
        above = [folder.id for folder in self._upwards(new_parent_id, change.tx)]
        if node.id in above:
            raise InvalidValue("rename", "a folder cannot move below itself")
        if isinstance(node, File) and len(above) < FILE_DEPTH:
            raise InvalidName("artifact", node.name, "artifacts live below tenant/workflow/")
        if (
            isinstance(node, Folder)
            and len(above) + 1 < FILE_DEPTH
            and self._has_files(change, node)
        ):
            raise InvalidName("folder", node.name, "its artifacts would not lie below a workflow")

    def _has_files(self, change: Change, folder: Folder) -> bool:
        prefix = entry_key(folder.id)
        pairs = change.tx.scan(prefix + b"\0", after_prefix(prefix))
        return any(isinstance(unpack(key, data), File) for key, data in pairs)

    def _make_way(self, change: Change, node: Node, target: Node, *, replace: bool) -> None:
        if not replace:
            raise Exists("artifact", target.name)
        if isinstance(node, File) != isinstance(target, File):
            kind = "an artifact" if isinstance(target, File) else "a folder"
            raise Conflict(target.name, f"{kind} has this name")
        if isinstance(target, File):
            self.erase_file(change, target)
        elif not target.empty:
            raise Conflict(target.name, "the folder is not empty")
        else:
            self._erase_folder(change, target)

    def _rename_into_tier(
        self,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        tier: int,
        *,
        replace: bool,
    ) -> Node:
        def run(change: Change, file: File) -> File:
            if (parent_id, name) == (new_parent_id, new_name):
                return file
            moved = self._rename(change, parent_id, name, new_parent_id, new_name, replace=replace)
            assert isinstance(moved, File)
            return moved

        return self.move(lambda reader: self.lookup(parent_id, name, reader), tier, then=run)

    def move(
        self,
        find: Callable[[Reader], Node | None],
        tier: int,
        *,
        kind: str = "move",
        why: str = "",
        then: Callable[[Change, File], File] | None = None,
        expect: File | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> File:
        """Move an artifact to another tier: copy, verify, flip, sweep.

        ``find`` looks it up; ``then`` may change its record in the same transaction. `Conflict`
        when it is no longer as ``expect``. A crash at any point leaves it readable.
        """
        while True:
            file = _as_file(self._engine.read(find))
            wanted = self._blobs.record(self._engine, file.blob) if file.blob else None
            copy = None
            if wanted is not None and file.tier != tier:
                after = wanted.shifted({file.tier: -1, tier: 1}).wanted()
                copy = self._blobs.copy(file.blob, after, progress)
            outcome: list[File | None] = [None]

            def run(change: Change, seen: File = file, copy=copy, outcome=outcome) -> bool:  # type: ignore[no-untyped-def]  # noqa: ANN001
                now = _as_file(find(change.tx))
                outcome[0] = None
                if (now.id, now.blob, now.tier) != (seen.id, seen.blob, seen.tier):
                    return False
                if expect is not None and now != expect:
                    raise Conflict(now.name, "it has changed meanwhile")
                moved = now
                if now.tier != tier:
                    aged_from_ns = change.at_ns if tier < now.tier else now.aged_from_ns
                    moved = now._replace(
                        tier=tier,
                        aged_from_ns=aged_from_ns,
                        changed_ns=change.at_ns,
                        revision=change.revision,
                    )
                    self._blobs.shift(change, now.blob, {now.tier: -1, tier: 1})
                    self.put_file(change, moved, now)
                    path = self.path(now.id, change.tx)
                    change.say(kind, "", path, described(moved), described(now), why)
                outcome[0] = then(change, moved) if then else moved
                return copy is not None and self._blobs.switch(change, now.blob, copy)

            if copy is None:
                self._journal.commit(run)
            else:
                self._blobs.with_copy(self._journal, copy, run)
            self._blobs.sweep()
            if outcome[0] is not None:
                return outcome[0]

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
            if sum(len(key) + len(item) for key, item in xattrs.items()) > 65536:
                raise InvalidValue("attributes", "all of one file may have 64 KiB together")
            return node._replace(xattrs=xattrs, changed_ns=change.at_ns)

        return self.edit(node_id, edit, "xattr")

    def edit(self, node_id: int, function: Callable[[Node, Change], Node], why: str) -> Node:
        """Change a record by a function; say so in the journal."""

        def run(change: Change) -> Node:
            node = self.node(node_id, change.tx)
            if node is None:
                raise NotFound("node", f"#{node_id}")
            edited = function(node, change)
            self._write(change, edited)
            change.say("update", "", self.path(node_id, change.tx), described(edited), None, why)
            return edited

        return self._journal.commit(run)

    # Records

    def _write(self, change: Change, node: Node) -> None:
        kind = FOLDER_KIND if isinstance(node, Folder) else FILE_KIND
        fields = [kind, node.id, *node[3:]]
        key = entry_key(node.parent, node.name.encode())
        change.seal(key, encode(fields), created_ns=node.created_ns)

    def _place(self, change: Change, node_id: int, parent_id: int, name: bytes) -> None:
        key = identity_key(node_id)
        change.tx.put(key, seal(key, parent_id.to_bytes(8, "big") + name))

    def _count(
        self, change: Change, folder_id: int, shift: dict[int, int], *, touched: bool
    ) -> None:
        """Change a folder's counts; carry a change of its visibility on to its parent."""
        while shift or touched:
            folder = self._folder(change, folder_id)
            shown = tuple(n + shift.get(tier, 0) for tier, n in enumerate(folder.shown))
            if min(shown) < 0:
                raise Damaged(f"folder {folder.name!r}", "it counts fewer children than it has")
            counted = folder._replace(shown=shown)
            if touched:
                counted = counted._replace(modified_ns=change.at_ns, changed_ns=change.at_ns)
            self._write(change, counted)
            if folder_id == ROOT_ID:
                return
            shift = {
                tier: counted.shown_in(tier) - folder.shown_in(tier)
                for tier in range(self._tiers)
                if counted.shown_in(tier) != folder.shown_in(tier)
            }
            folder_id, touched = folder.parent, False


def _as_file(node: Node | None) -> File:
    if node is None:
        raise NotFound("artifact", "it")
    if isinstance(node, Folder):
        raise Conflict(node.name, "it is a folder, not an artifact")
    return node


def _visible(node: Node, tiers: int) -> dict[int, int]:
    return {tier: 1 for tier in range(tiers) if node.shown_in(tier)}
