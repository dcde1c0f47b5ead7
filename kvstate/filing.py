"""Artifacts' records, and all that is kept in step with them.

Beside its record an artifact has a place in the due index (``D``: when to look at it), in its
workflow's order of time (``R``), in the counts of store, tenant and workflow (``U``) and, while it
is held, in ``Y``. `put_file` and `erase_file` are the only ways in and out. What is deleted while
there is a trash goes there (``Z``, `kvstate.trashing`) with everything but its name.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from kvstate.codec import encode
from kvstate.errors import Conflict, Held, InvalidName, NotFound, QuotaExceeded
from kvstate.folders import FILE_DEPTH, Folders, Lineage
from kvstate.keyspace import (
    after_prefix,
    due_key,
    entry_key,
    held_key,
    identity_key,
    parse_recent,
    recent_key,
    recent_prefix,
    trash_key,
)
from kvstate.nodes import File, Folder, Node, described, facts_of
from kvstate.policy import DAY
from kvstate.sizes import format_size
from kvstate.tally import TRASH_ID, Tally, Totals, read_totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstate.blobs import Blobs
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal
    from kvstate.policy import Policy, Rule
    from kvstate.policy_record import Policies

__all__ = ["LOOK_AT_ONCE", "Filing", "as_file"]

LOOK_AT_ONCE: Final = 1
"""A moment in the due index that is always past."""


class Filing(Folders):
    """The artifacts of a store, by their records."""

    def __init__(
        self, engine: Engine, journal: Journal, blobs: Blobs, policies: Policies, tiers: int
    ) -> None:
        super().__init__(engine, journal, tiers)
        self._blobs = blobs
        self.policies = policies

    # Records

    def put_file(
        self, change: Change, file: File, old: File | None, *, grew: bool | None = None
    ) -> File:
        """Write an artifact's record, new or in the place of its old state; give it as written.

        `QuotaExceeded` when its tenant would have more than it may; ``grew`` says whether it has
        more now, if that is not plain.
        """
        lineage = self.lineage(file.parent, change)
        if old is None:
            if lineage.depth < FILE_DEPTH:
                raise InvalidName("artifact", file.name, "artifacts live below tenant/workflow/")
            self._place(change, file.id, file.parent, file.name.encode())
        policy, in_force = self.policies.in_force(change.tx)
        path = lineage.path(file.name)
        look_ns, keep_newest = policy.look_ns(facts_of(path, file), change.at_ns)
        if not in_force:
            look_ns = LOOK_AT_ONCE
        if look_ns != file.look_ns:
            file = file._replace(look_ns=look_ns)
        self._index(change, lineage, old, file)
        if grew is None:
            grew = old is None or file.size > old.size
        self._check_quota(change, policy, path, lineage, grew=grew)
        self.write_node(change, file)
        if old is None or old.tier != file.tier:
            shift = {file.tier: 1} if old is None else {old.tier: -1, file.tier: 1}
            self._count(change, file.parent, shift, touched=old is None)
        if keep_newest and (old is None or old.written_ns != file.written_ns):
            self._displace(change, lineage, policy, path, file)
        return file

    def erase_file(self, change: Change, file: File, *, keep_content: bool = False) -> None:
        """Remove an artifact's record, its index entries and its reference to its content."""
        change.tx.delete(entry_key(file.parent, file.name.encode()))
        change.tx.delete(identity_key(file.id))
        self._index(change, self.lineage(file.parent, change), file, None)
        if not keep_content:
            self._blobs.shift(change, file.blob, {file.tier: -1})
        self._count(change, file.parent, {file.tier: -1}, touched=True)

    def _index(self, change: Change, lineage: Lineage, old: File | None, new: File | None) -> None:
        """Keep the indexes and the counts in step with a record in one folder."""
        tx = change.tx
        if (old and old.look_ns) != (new and new.look_ns):
            self._index_look(change, old, new)
        if (old and old.written_ns) != (new and new.written_ns):
            if old is not None:
                tx.delete(recent_key(lineage.workflow, old.written_ns, old.id))
            if new is not None:
                tx.put(recent_key(lineage.workflow, new.written_ns, new.id), b"")
        tally = change.later(Tally, Tally)
        if _marked(old) or _marked(new):
            self._index_marks(change, lineage, old, new)
        if (old and (old.tier, old.size)) != (new and (new.tier, new.size)):
            for file, sign in ((old, -1), (new, 1)):
                if file is not None:
                    tally.add(lineage.counted, file.tier, sign, sign * file.size)

    @staticmethod
    def _index_look(change: Change, old: File | None, new: File | None) -> None:
        if old is not None and old.look_ns:
            change.tx.delete(due_key(old.look_ns, old.id))
        if new is not None and new.look_ns:
            change.tx.put(due_key(new.look_ns, new.id), b"")

    def _index_marks(
        self, change: Change, lineage: Lineage, old: File | None, new: File | None
    ) -> None:
        held = bool(new and new.holds) - bool(old and old.holds)
        failed = bool(new and new.failure) - bool(old and old.failure)
        if held > 0 and new is not None:
            change.tx.put(held_key(lineage.workflow, new.id), b"")
        elif held < 0 and old is not None:
            change.tx.delete(held_key(lineage.workflow, old.id))
        if held or failed:
            change.later(Tally, Tally).mark(lineage.counted, held, failed)

    def reindex(self, change: Change, file: File, lineage: Lineage, *, enter: bool) -> None:
        """Enter a file into what counts and orders it, or take it out: its folder has moved."""
        self._index(change, lineage, None if enter else file, file if enter else None)

    def _check_quota(
        self, change: Change, policy: Policy, path: str, lineage: Lineage, *, grew: bool
    ) -> None:
        section = policy.section(path)
        if not grew or (section.bytes_max is None and section.artifacts_max is None):
            return
        totals = change.later(Tally, Tally).totals(change.tx, lineage.ids[1])
        what = f"tenant {lineage.names[0]!r}"
        if section.artifacts_max is not None and totals.artifacts > section.artifacts_max:
            raise QuotaExceeded(what, f"{section.artifacts_max} artifacts", f"{totals.artifacts}")
        if section.bytes_max is not None and totals.bytes > section.bytes_max:
            raise QuotaExceeded(what, format_size(section.bytes_max), format_size(totals.bytes))

    # Holds

    def guard(self, act: str, path: str, file: File) -> None:
        """Raise `Held` when a hold forbids this act."""
        if file.holds:
            raise Held(act, path, ", ".join(map(repr, sorted(file.holds))))

    # The newest of a workflow

    def newest(self, reader: Reader, workflow: int, limit: int | None = None) -> Iterator[File]:
        """Give the artifacts of a workflow, the last written first."""
        prefix = recent_prefix(workflow)
        pairs = reader.scan(prefix, after_prefix(prefix), reverse=True)
        for count, (key, _) in enumerate(pairs):
            if limit is not None and count >= limit:
                return
            node = self.node(parse_recent(key)[2], reader)
            if isinstance(node, File):
                yield node

    def newest_page(
        self, workflow: int, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[str, File]]:
        """Give one page of a workflow's artifacts, the last written first, with their paths.

        ``after`` is the moment and the identity of a page's last.
        """
        prefix = recent_prefix(workflow)
        stop = after_prefix(prefix) if after is None else recent_key(workflow, *after)

        def page(reader: Reader) -> list[tuple[str, File]]:
            found = []
            folders: dict[int, str] = {}
            for key, _ in islice(reader.scan(prefix, stop, reverse=True), limit):
                node = self.node(parse_recent(key)[2], reader)
                if isinstance(node, File):
                    folder = folders.get(node.parent)
                    if folder is None:
                        folder = folders[node.parent] = self.path(node.parent, reader)
                    found.append((f"{folder}/{node.name}", node))
            return found

        return self._engine.read(page)

    def kept_newest(self, reader: Reader, file: File, rule: Rule) -> bool:
        """Say whether a file is among the newest of its workflow that a rule keeps."""
        workflow = [node.id for node in self._upwards(file.parent, reader)][-2]
        ahead = 0
        for node in self.newest(reader, workflow):
            if node.id == file.id:
                return True
            if rule.matches(self.path(node.id, reader), node.size, node.metadata):
                ahead += 1
                if ahead >= rule.keep_newest:
                    return False
        return True

    def _displace(
        self, change: Change, lineage: Lineage, policy: Policy, path: str, file: File
    ) -> None:
        """Let the first that is not among a rule's newest any more be looked at at once.

        The search is bounded: where few of a workflow match, the look that comes by itself finds
        it within the hour.
        """
        rule = policy.rule(facts_of(path, file))
        assert rule is not None
        seen = 0
        for node in self.newest(change.tx, lineage.workflow, 4 * rule.keep_newest + 64):
            where = self.path(node.id, change.tx)
            if not rule.matches(where, node.size, node.metadata):
                continue
            seen += 1
            if seen > rule.keep_newest:
                if (
                    node.id != file.id
                    and policy.verdict(facts_of(where, node), change.at_ns).action
                ):
                    self.look(change, node, LOOK_AT_ONCE)
                return

    def look(self, change: Change, file: File, look_ns: int) -> File:
        """Let a file be looked at then (0: not before something changes); give it as it is then."""
        if file.look_ns == look_ns:
            return file
        later = file._replace(look_ns=look_ns)
        self._index_look(change, file, later)
        self.write_node(change, later)
        return later

    # The trash

    def discard(
        self, change: Change, file: File, path: str, *, kind: str, why: str, trash: bool = True
    ) -> None:
        """Delete or purge an artifact, into the trash where there is one; say so.

        ``kind`` is what the journal calls it where there is none. `Held` when a hold forbids it.
        """
        self.guard("purging" if kind == "purge" else "deleting", path, file)
        days = self.policies.in_force(change.tx)[0].section(path).trash_days if trash else 0
        if not days:
            self.erase_file(change, file)
            change.say(kind, "", path, None, described(file), why)
            return
        gone_ns = change.at_ns + round(days * DAY)
        self.erase_file(change, file, keep_content=True)
        fields = [path, why, change.actor, file.id, file.parent, file.name, *file[3:]]
        change.seal(trash_key(gone_ns, file.id), encode(fields))
        change.later(Tally, Tally).add((TRASH_ID,), file.tier, 1, file.size)
        why = why or ("deleted" if kind == "remove" else "")
        change.say("trash", "", path, None, described(file), why)

    # Counts

    def totals(self, folder_id: int, reader: Reader | None = None) -> Totals:
        """Give what the store (the root), a tenant or a workflow holds."""
        return read_totals(reader or self._engine, folder_id)

    def tenants(self, after: str = "", limit: int = 1000) -> list[tuple[Folder, Totals]]:
        """Give one page of the tenants with what each holds, in the order of names."""
        return self.holders(1, after, limit)

    def holders(
        self, folder_id: int, after: str = "", limit: int = 1000
    ) -> list[tuple[Folder, Totals]]:
        """Give one page of a folder's folders with what each holds."""
        page = self.children(folder_id, after, limit)
        return [(node, self.totals(node.id)) for node in page if isinstance(node, Folder)]

    # Removing by place: the mount's way

    def remove_file(self, parent_id: int, name: str, *, why: str = "") -> File:
        """Delete an artifact, leaving its folder, even an empty one; give what it was."""

        def run(change: Change) -> File:
            file = self.lookup(parent_id, name, change.tx)
            if file is None:
                raise NotFound("artifact", name)
            if isinstance(file, Folder):
                raise Conflict(name, "it is a folder, not an artifact")
            self._make_explicit(change, parent_id)
            path = self.lineage(parent_id, change).path(name)
            self.discard(change, file, path, kind="remove", why=why)
            return file

        removed = self._journal.commit(run)
        self._blobs.sweep()
        return removed

    def _make_explicit(self, change: Change, folder_id: int) -> None:
        """Let a folder stay when it becomes empty, as files' users expect."""
        folder = self._folder(change, folder_id)
        if folder.implicit:
            self.write_node(change, folder._replace(implicit=False))


def _marked(file: File | None) -> bool:
    return file is not None and bool(file.holds or file.failure)


def as_file(node: Node | None) -> File:
    """Give an artifact; `NotFound` or `Conflict` when it is none."""
    if node is None:
        raise NotFound("artifact", "it")
    if isinstance(node, Folder):
        raise Conflict(node.name, "it is a folder, not an artifact")
    return node
