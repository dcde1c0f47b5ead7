"""The trash of artifacts: what is in it, how it comes back, how it goes for good.

Its records (``Z``) are ordered by the moment at which each goes for good; one is named by that
moment and the artifact's identity. `kvstate.filing` puts in what is deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstate.codec import decode
from kvstate.errors import Compacted, Conflict, Exists, NotFound
from kvstate.filing import Filing
from kvstate.keyspace import parse_trash, trash_key
from kvstate.nodes import File, Folder, Trashed, described, open_trashed
from kvstate.policy import DAY
from kvstate.tally import TRASH_ID, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstate.engine import Reader
    from kvstate.journal import Change

__all__ = ["Trashing"]

SPARED_DAYS: Final = 7
"""What came out of the trash is not purged again for so long."""
_PAGE: Final = 256


class Trashing(Filing):
    """The artifacts of a store, by their records, and those in the trash."""

    def trashed(self, reader: Reader | None = None) -> Iterator[Trashed]:
        """Give what is in the trash, in the order in which it goes for good."""
        if reader is not None:
            for key, data in reader.scan(b"Z", b"["):
                yield open_trashed(key, data)
            return
        start = b"Z"
        while page := self._engine.scan(start, b"[", limit=_PAGE):
            for key, data in page:
                yield open_trashed(key, data)
            start = page[-1][0] + b"\0"

    def trashed_at(
        self, gone_ns: int, node_id: int, reader: Reader | None = None
    ) -> Trashed | None:
        """Give one artifact in the trash, by when it goes for good and its identity."""
        key = trash_key(gone_ns, node_id)
        data = (reader or self._engine).get(key)
        return None if data is None else open_trashed(key, data)

    def trash_places(self) -> Iterator[tuple[int, int]]:
        """Give where everything in the trash is: when it goes for good, and its identity."""
        start = b"Z"
        while page := self._engine.scan(start, b"[", limit=_PAGE):
            yield from (parse_trash(key) for key, _ in page)
            start = page[-1][0] + b"\0"

    def trash_changes(self, since: int) -> tuple[bool, set[int]]:
        """Say whether anything went into the trash after a revision, and what went out of it.

        The latter as identities, some of which may not have been in it. After a trim of the journal
        nothing is known: as if something went in.
        """
        gone: set[int] = set()
        try:
            for _, (kind, _scope, _name, value, previous, _why) in self._journal.entries_since(
                since
            ):
                if kind == "trash":
                    return True, gone
                described = {"undelete": value, "purge": previous}.get(kind)
                if described is not None:
                    gone.add(decode(described)["id"])
        except Compacted:
            return True, gone
        return False, gone

    def undelete(self, name: str, parts: tuple[str, ...], uid: int, gid: int) -> File:
        """Bring back what was put into the trash last under this name.

        `NotFound` when nothing was; `Exists` when the name is taken.
        """

        def run(change: Change) -> File:
            found = [each for each in self.trashed(change.tx) if each.name == name]
            if not found:
                raise NotFound("artifact in the trash", name)
            newest = max(found, key=lambda each: (each.trashed_ns, each.gone_ns))
            if self.walk_path(parts, change.tx) is not None:
                raise Exists("artifact", name)
            parent = self.ensure_folders(change, parts[:-1], newest.file.tier, uid, gid)
            return self._bring_back(change, newest, parent, parts[-1])

        return self._journal.commit(run)

    def undelete_into(
        self, trashed: Trashed, parent_id: int, name: str, *, replace: bool = True
    ) -> File:
        """Bring one artifact back from the trash, under a name in a folder: the mount's way.

        What has the name goes into the trash in its place, unless ``replace`` is off: `Exists`.
        `NotFound` when the artifact, or the folder, is gone; `Held` when a hold forbids it.
        """

        def run(change: Change) -> File:
            found = self.trashed_at(trashed.gone_ns, trashed.file.id, change.tx)
            if found is None:
                raise NotFound("artifact in the trash", trashed.name)
            there = self.lookup(parent_id, name, change.tx)
            if isinstance(there, Folder):
                raise Conflict(name, "it is a folder, not an artifact")
            if there is not None and not replace:
                raise Exists("artifact", name)
            if there is not None:
                path = self.lineage(parent_id, change).path(name)
                self.discard(change, there, path, kind="remove", why="replaced from the trash")
            return self._bring_back(change, found, parent_id, name)

        file = self._journal.commit(run)
        self._blobs.sweep()
        return file

    def _bring_back(self, change: Change, trashed: Trashed, parent: int, name: str) -> File:
        """Let an artifact in the trash be one of a folder's again."""
        file = trashed.file
        change.tx.delete(trash_key(trashed.gone_ns, file.id))
        change.later(Tally, Tally).add((TRASH_ID,), file.tier, -1, -file.size)
        back = file._replace(
            parent=parent,
            name=name,
            aged_from_ns=change.at_ns,
            changed_ns=change.at_ns,
            spared_ns=change.at_ns + SPARED_DAYS * DAY,
            revision=change.revision,
        )
        back = self.put_file(change, back, None)
        path = self.lineage(parent, change).path(name)
        change.say("undelete", "", path, described(back))
        return back

    def empty_trash(self, change: Change, trashed: Trashed, why: str) -> bool:
        """Let one artifact in the trash go for good; say whether it was there."""
        key = trash_key(trashed.gone_ns, trashed.file.id)
        if not change.tx.delete(key):
            return False
        file = trashed.file
        change.later(Tally, Tally).add((TRASH_ID,), file.tier, -1, -file.size)
        self._blobs.shift(change, trashed.file.blob, {trashed.file.tier: -1})
        change.say("purge", "", trashed.name, None, described(trashed.file), why)
        return True

    def purge_trashed(self, trashed: Trashed, *, why: str = "") -> bool:
        """Let one artifact in the trash go for good, now: the mount's way."""
        gone = self._journal.commit(lambda change: self.empty_trash(change, trashed, why))
        self._blobs.sweep()
        return gone
