"""The catalog's ground: which folders and artifacts there are, by identity and by name.

A folder or an artifact is one record under its parent's identity and its name (key ``T``), so a
listing is one scan, with all attributes, and renaming a folder moves one record: what is below it
refers to its identity. The way back from an identity to its place is a record of its own (``I``).

A folder counts, per tier, its children that are visible in that tier. An artifact is visible in its
tier; a folder where it has visible children, or, while it is empty, in its home. When a folder's
visibility changes, its parent's count does; so ``hot/`` lists exactly the folders that lead to
something hot, without looking further. What one change counts is gathered and written at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.codec import encode_known, encode_plain, seal, unseal
from kvstate.errors import Conflict, Damaged, Exists, NotFound
from kvstate.keyspace import ROOT_ID, after_prefix, entry_key, identity_key
from kvstate.names import check_segment
from kvstate.nodes import FILE_KIND, FOLDER_KIND, File, Folder, Node, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal

__all__ = ["FILE_DEPTH", "Folders", "Lineage"]

FILE_DEPTH: Final = 2
"""Artifacts live in folders of at least this depth: tenant is 1, workflow 2."""
_DEPTH_MAX: Final = 2048
_LINEAGE: Final = "lineage"


class Lineage(NamedTuple):
    """A folder's place: the names, and the identities from the root on, down to itself."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @property
    def depth(self) -> int:
        """How deep the folder is: the root has 0, a tenant 1, a workflow 2."""
        return len(self.names)

    @property
    def counted(self) -> tuple[int, ...]:
        """Give the identities of what counts its artifacts: store, tenant, workflow."""
        return self.ids[:3]

    @property
    def workflow(self) -> int:
        """Give the workflow's identity."""
        return self.ids[2]

    def path(self, name: str) -> str:
        """Give the path of what has this name in the folder."""
        return "/".join((*self.names, name))


class _Shown:
    """What one change adds to the folders' counts of what is visible in them."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._shifts: dict[int, dict[int, int]] = {}
        self._touched: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._shifts)

    def add(self, folder_id: int, shift: dict[int, int], *, touched: bool) -> None:
        known = self._shifts.setdefault(folder_id, {})
        for tier, count in shift.items():
            known[tier] = known.get(tier, 0) + count
        if touched:
            self._touched.add(folder_id)

    def write(self, change: Change) -> None:
        """Write the counts; carry a change of a folder's visibility on to its parent."""
        while self._shifts:
            folder_id, shift = self._shifts.popitem()
            touched = folder_id in self._touched
            self._touched.discard(folder_id)
            folder = self._folders.stored_folder(change, folder_id)
            shown = tuple(n + shift.get(tier, 0) for tier, n in enumerate(folder.shown))
            if shown == folder.shown and not touched:
                continue
            if min(shown) < 0:
                raise Damaged(f"folder {folder.name!r}", "it counts fewer children than it has")
            counted = folder._replace(shown=shown)
            if touched:
                counted = counted._replace(modified_ns=change.at_ns, changed_ns=change.at_ns)
            self._folders.write_node(change, counted)
            if folder_id == ROOT_ID:
                continue
            carried = {
                tier: counted.shown_in(tier) - folder.shown_in(tier)
                for tier in range(len(shown))
                if counted.shown_in(tier) != folder.shown_in(tier)
            }
            if carried:
                self.add(folder.parent, carried, touched=False)


class Folders:
    """The folders of a store, and what lies in them."""

    def __init__(self, engine: Engine, journal: Journal, tiers: int) -> None:
        self._engine = engine
        self._journal = journal
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

    def lineage(self, folder_id: int, change: Change) -> Lineage:
        """Give a folder's place, as the change sees it; remembered until a folder moves."""
        key = (_LINEAGE, folder_id)
        found: Lineage | None = change.tx.memo.get(key)
        if found is None:
            nodes = list(self._upwards(folder_id, change.tx))
            nodes.reverse()
            names = tuple(node.name for node in nodes)
            found = Lineage(names, (ROOT_ID, *(node.id for node in nodes)))
            change.tx.memo[key] = found
        return found

    @staticmethod
    def forget_lineages(change: Change) -> None:
        """Forget where folders are: one has moved, or is gone."""
        memo = change.tx.memo
        for key in [key for key in memo if isinstance(key, tuple) and key[0] == _LINEAGE]:
            del memo[key]

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

    # Folders

    def make_root(self, change: Change, uid: int, gid: int) -> None:
        """Make the root's record, once, when the store is made."""
        now = change.at_ns
        zeros = (0,) * self._tiers
        root = Folder(ROOT_ID, 0, "", 0, False, zeros, now, now, now, 0o755, uid, gid, {})
        self.write_node(change, root)
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
        self.write_node(change, folder)
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
        self.forget_lineages(change)
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
        key = (_LINEAGE, parts)
        known: int | None = change.tx.memo.get(key)
        if known is not None:
            return known
        parent = ROOT_ID
        for part in parts:
            found = self.lookup(parent, part, change.tx)
            if isinstance(found, File):
                raise Conflict("/".join(parts), f"{part!r} is an artifact, not a folder")
            if found is None:
                found = self.add_folder(change, parent, part, tier, 0o755, uid, gid, implicit=True)
            parent = found.id
        change.tx.memo[key] = parent
        return parent

    def _folder(self, change: Change, folder_id: int) -> Folder:
        """Give a folder with all that this change has counted so far."""
        shown = self._shown(change)
        if shown:
            shown.write(change)
        return self.stored_folder(change, folder_id)

    def stored_folder(self, change: Change, folder_id: int) -> Folder:
        """Give a folder as its record has it."""
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
        return self._folder(change, node.id)

    # Records

    def write_node(self, change: Change, node: Node) -> None:
        """Write the record of a folder or an artifact."""
        kind = FOLDER_KIND if isinstance(node, Folder) else FILE_KIND
        fields = [kind, node.id, *node[3:]]
        key = entry_key(node.parent, node.name.encode())
        # Nothing but metadata may hold what takes an encoder of its own.
        rich = isinstance(node, File) and node.metadata
        payload = encode_known(fields) if rich else encode_plain(fields)
        change.seal(key, payload, created_ns=node.created_ns)

    def _place(self, change: Change, node_id: int, parent_id: int, name: bytes) -> None:
        key = identity_key(node_id)
        change.tx.put(key, seal(key, parent_id.to_bytes(8, "big") + name))

    def _shown(self, change: Change) -> _Shown:
        return change.later(_Shown, lambda: _Shown(self))

    def _count(
        self, change: Change, folder_id: int, shift: dict[int, int], *, touched: bool
    ) -> None:
        """Change a folder's counts, at the end of the change; ``touched``: its times, too."""
        self._shown(change).add(folder_id, shift, touched=touched)
