"""Moving artifacts between tiers: copy, verify, flip, sweep.

What has a file is copied to the target, read back, published; one transaction lets the records name
it. Small content lies among the records whatever its tier: many such moves are one transaction. A
crash at any point leaves every artifact readable where it was, or where it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstate.errors import Conflict
from kvstate.filing import as_file
from kvstate.nodes import File, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blobs import Blobs, Copy
    from kvstate.catalog import Catalog
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal
    from kvstate.nodes import Node

__all__ = ["Moving"]


class Moving:
    """Moves the artifacts of a store."""

    def __init__(self, engine: Engine, journal: Journal, catalog: Catalog, blobs: Blobs) -> None:
        self._engine = engine
        self._journal = journal
        self._catalog = catalog
        self._blobs = blobs

    def move(
        self,
        find: Callable[[Reader], Node | None],
        tier: int,
        *,
        kind: str = "move",
        why: str = "",
        back: tuple[int, int] | None = None,
        then: Callable[[Change, File], File] | None = None,
        expect: File | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> File:
        """Move an artifact to another tier.

        ``find`` looks it up; ``then`` may change its record in the same transaction; ``back`` is
        the tier and the moment that it goes back to. `Conflict` when it is no longer ``expect``.
        """
        while True:
            file = as_file(self._engine.read(find))
            copy = self.copied(file, tier, progress)
            outcome: list[File | None] = [None]

            def run(
                change: Change,
                seen: File = file,
                copy: Copy | None = copy,
                outcome: list[File | None] = outcome,
            ) -> bool:
                now = as_file(find(change.tx))
                outcome[0] = None
                if (now.id, now.blob, now.tier) != (seen.id, seen.blob, seen.tier):
                    return False
                if expect is not None and now.revision != expect.revision:
                    raise Conflict(now.name, "it has changed meanwhile")
                moved = self.flip(change, now, tier, kind, why, back)
                outcome[0] = then(change, moved) if then else moved
                return copy is not None and self._blobs.switch(change, now.blob, copy)

            if copy is None:
                self._journal.commit(run)
            else:
                self._blobs.with_copy(self._journal, copy, run)
            self._blobs.sweep()
            if outcome[0] is not None:
                return outcome[0]

    def copied(
        self, file: File, tier: int, progress: Callable[[int, int], None] | None = None
    ) -> Copy | None:
        """Copy the content to where it would belong after a move; None if it need not be copied."""
        record = self._blobs.record(self._engine, file.blob) if file.blob else None
        if record is None or file.tier == tier:
            return None
        return self._blobs.copy(file.blob, record.shifted({file.tier: -1, tier: 1}), progress)

    def flip(
        self,
        change: Change,
        now: File,
        tier: int,
        kind: str,
        why: str,
        back: tuple[int, int] | None = None,
    ) -> File:
        """Let the records say that an artifact is in another tier."""
        if now.tier == tier:
            return (
                now
                if back == now.back
                else self._catalog.put_file(change, now._replace(back=back), now)
            )
        moved = now._replace(
            tier=tier,
            aged_from_ns=change.at_ns if tier < now.tier else now.aged_from_ns,
            changed_ns=change.at_ns,
            revision=change.revision,
            back=back,
            failure=None,
        )
        self._blobs.shift(change, now.blob, {now.tier: -1, tier: 1})
        moved = self._catalog.put_file(change, moved, now)
        path = self._catalog.lineage(now.parent, change).path(now.name)
        change.say(kind, "", path, described(moved), described(now), why)
        return moved

    def rename_into_tier(
        self,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        tier: int,
        *,
        replace: bool = True,
    ) -> File:
        """Give an artifact another name and move it to a tier, in one step."""

        def run(change: Change, file: File) -> File:
            if (parent_id, name) == (new_parent_id, new_name):
                return file
            moved = self._catalog.rename_in(
                change, parent_id, name, new_parent_id, new_name, replace=replace
            )
            return as_file(moved)

        return self.move(
            lambda reader: self._catalog.lookup(parent_id, name, reader), tier, then=run
        )
