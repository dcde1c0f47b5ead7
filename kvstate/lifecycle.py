"""The lifecycle: what is due, decided purely from an index; and carrying it out.

An artifact ages from its last write, or its restoration. It leaves the hot tier at ``hot_days``,
the warm tier at ``warm_days``, and is purged at ``cold_days``. The index (key ``D``) is ordered by
tier and by the moment from which an artifact ages, so that what is due is found without looking at
anything that is not, whatever the ages are set to.

A run first expires keys, then moves and purges in due order. What fails is counted with its reason
and left where it is; the rest goes on. A run never overlaps another (a lock file in the store).
"""

from __future__ import annotations

import fcntl
import heapq
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from kvstate.blobs import TIERS
from kvstate.clock import SECOND
from kvstate.codec import decode, encode
from kvstate.errors import Conflict, NotFound, StateError, Unavailable
from kvstate.keyspace import due_key, meta_key, parse_due
from kvstate.nodes import File, described
from kvstate.records import open_envelope, seal_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvstate.blobs import Blobs
    from kvstate.catalog import Catalog
    from kvstate.clock import Clock
    from kvstate.engine import Engine
    from kvstate.expiry import Expiry
    from kvstate.journal import Change, Journal
    from kvstate.settings import StoreSettings

__all__ = ["Ages", "Lifecycle", "Move", "Outcome"]

DAY = 86400 * SECOND
PURGE = "purge"
_PAGE = 256
_FAILURES_KEPT = 100
_LAST_RUN = meta_key("lifecycle")


class Move(NamedTuple):
    """One step that is due: an artifact goes from a tier to the next, or is purged."""

    name: str
    source: str
    target: str
    due_at_ns: int
    size: int
    id: int


class Outcome(NamedTuple):
    """What a run did (or, with ``dry_run``, would have done)."""

    promoted_to_warm: int
    promoted_to_cold: int
    purged: int
    expired: int
    errors: int
    seconds: float
    dry_run: bool
    at_ns: int
    failures: tuple[tuple[str, str], ...]


class Ages:
    """The ages at which artifacts leave their tiers: pure arithmetic."""

    def __init__(self, settings: StoreSettings) -> None:
        days = (settings.hot_days, settings.warm_days, settings.cold_days)
        self.limits_ns = tuple(round(limit * DAY) for limit in days)

    def due_at_ns(self, file: File) -> int:
        """Give the moment at which this artifact leaves its tier."""
        return file.aged_from_ns + self.limits_ns[file.tier]

    def next_tier(self, tier: int, aged_from_ns: int, now_ns: int) -> int | None:
        """Give the tier that an artifact of this age belongs in; None for none: purge."""
        age_ns = now_ns - aged_from_ns
        for later in range(tier, len(self.limits_ns)):
            if age_ns < self.limits_ns[later]:
                return later
        return None


class Lifecycle:
    """Plans and runs what is due."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        expiry: Expiry,
        catalog: Catalog,
        blobs: Blobs,
        clock: Clock,
        ages: Ages,
        folder: Path,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._expiry = expiry
        self._catalog = catalog
        self._blobs = blobs
        self._clock = clock
        self._ages = ages
        self._lock_path = folder / "lifecycle.lock"

    # Planning

    def plan(self, limit: int | None = None) -> Iterator[Move]:
        """Give the moves that are due now, in due order; nothing is changed."""
        now_ns = self._clock.now_ns()
        for count, (due_ns, tier, aged_from_ns, node_id) in enumerate(self._due(now_ns)):
            if limit is not None and count >= limit:
                return
            node = self._catalog.node(node_id)
            if not isinstance(node, File) or (node.tier, node.aged_from_ns) != (tier, aged_from_ns):
                continue
            target = self._ages.next_tier(tier, aged_from_ns, now_ns)
            try:
                name = self._catalog.path(node_id)
            except NotFound:
                continue
            word = PURGE if target is None else TIERS[target]
            yield Move(name, TIERS[tier], word, due_ns, node.size, node_id)

    def _due(self, now_ns: int) -> Iterator[tuple[int, int, int, int]]:
        """Give (due, tier, aged_from, identity) of what is due, in due order: O(due)."""
        return heapq.merge(*(self._due_in(tier, now_ns) for tier in range(len(TIERS))))

    def _due_in(self, tier: int, now_ns: int) -> Iterator[tuple[int, int, int, int]]:
        limit_ns = self._ages.limits_ns[tier]
        start, stop = due_key(tier, 0, 0), due_key(tier, max(0, now_ns - limit_ns + 1), 0)
        while page := self._engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                _, aged_from_ns, node_id = parse_due(key)
                yield aged_from_ns + limit_ns, tier, aged_from_ns, node_id
            start = page[-1][0] + b"\0"

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which a key expires or an artifact is due."""
        moments = [self._expiry.next_due_ns()]
        for tier, limit_ns in enumerate(self._ages.limits_ns):
            page = self._engine.scan(due_key(tier, 0, 0), due_key(tier + 1, 0, 0), limit=1)
            moments += [parse_due(key)[1] + limit_ns for key, _ in page]
        return min((moment for moment in moments if moment is not None), default=None)

    # Running

    def expire(self) -> int:
        """Remove the keys that have expired, and versions that are too old; say how many keys."""
        return self._expiry.sweep().swept

    def run(
        self,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Outcome:
        """Do all that is due; with ``dry_run`` only count it. `Conflict` while another run goes on.

        ``progress`` is called with (moves done, 0 for not known, name) after each move.
        """
        if dry_run:
            return self._run(progress, dry_run=True)
        fd = self._lock()
        try:
            outcome = self._run(progress, dry_run=False)
            self._blobs.recover()
            for blob in self._blobs.misplaced():
                self._settle(blob)
            self._blobs.sweep(all_notes=True)
            self._keep(outcome)
        finally:
            os.close(fd)
        return outcome

    def _lock(self) -> int:
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise Conflict("lifecycle", "another run is going on") from None
        return fd

    def _run(self, progress: Callable[[int, int, str], None] | None, *, dry_run: bool) -> Outcome:
        began = time.monotonic()
        at_ns = self._clock.now_ns()
        sweeping = self._expiry.sweep(dry_run=dry_run)
        counts = dict.fromkeys((*TIERS, PURGE), 0)
        failures = list(sweeping.failures)
        for done, move in enumerate(list(self.plan())):
            try:
                if dry_run or self._apply(move):
                    counts[move.target] += 1
            except (StateError, OSError) as error:
                failures.append((move.name, str(error)))
            if progress is not None:
                progress(done + 1, 0, move.name)
        return Outcome(
            counts["warm"],
            counts["cold"],
            counts[PURGE],
            sweeping.swept,
            len(failures),
            time.monotonic() - began,
            dry_run,
            at_ns,
            tuple(failures[:_FAILURES_KEPT]),
        )

    def _apply(self, move: Move) -> bool:
        """Carry a move out, if the artifact is still as it was planned."""
        age = f"older than {self._ages.limits_ns[TIERS.index(move.source)] / DAY:g} days"
        if move.target == PURGE:
            return self._purge(move, age)
        node = self._catalog.node(move.id)
        if not isinstance(node, File) or TIERS[node.tier] != move.source:
            return False
        if self._ages.due_at_ns(node) > self._clock.now_ns():
            return False
        try:
            self._catalog.move(
                lambda reader: self._catalog.node(move.id, reader),
                TIERS.index(move.target),
                why=age,
                expect=node,
            )
        except (NotFound, Conflict):
            return False  # it was deleted, or written to: then it is not due any more
        return True

    def _purge(self, move: Move, age: str) -> bool:
        def run(change: Change) -> bool:
            file = self._catalog.node(move.id, change.tx)
            if not isinstance(file, File) or self._ages.due_at_ns(file) > change.at_ns:
                return False
            path = self._catalog.path(file.id, change.tx)
            self._catalog.erase_file(change, file)
            self._catalog.prune(change, file.parent)
            change.say("purge", "", path, None, described(file), age)
            return True

        purged = self._journal.commit(run)
        self._blobs.sweep()
        return purged

    def _settle(self, blob: bytes) -> None:
        try:
            self._blobs.settle(self._journal, blob)
        except Unavailable:
            raise
        except StateError:
            return  # it stays readable where it is, and noted for the next run

    # The last run

    def _keep(self, outcome: Outcome) -> None:
        self._engine.txn(
            lambda tx: tx.put(
                _LAST_RUN,
                _sealed(outcome),
            )
        )

    def last(self) -> Outcome | None:
        """Give the outcome of the last run, as the store keeps it."""
        data = self._engine.get(_LAST_RUN)
        if data is None:
            return None
        fields = decode(open_envelope(_LAST_RUN, data).payload)
        fields[-1] = tuple((name, why) for name, why in fields[-1])
        return Outcome(*fields)

    def summary(self) -> dict[str, object]:
        """Give the tiers' contents, the last run and the next due time, as plain values."""
        last = self.last()
        usage = self._catalog.usage()
        return {
            "tiers": {
                tier: {"artifacts": found.artifacts, "bytes": found.bytes}
                for tier, found in zip(TIERS, usage, strict=True)
            },
            "last_run": None if last is None else last._asdict(),
            "next_due_ns": self.next_due_ns(),
        }


def _sealed(outcome: Outcome) -> bytes:
    at_ns = outcome.at_ns
    payload = encode(list(outcome))
    return seal_envelope(_LAST_RUN, payload, revision=0, created_ns=at_ns, updated_ns=at_ns)
