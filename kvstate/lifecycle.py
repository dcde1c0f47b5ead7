"""The lifecycle: what is due, why, and carrying it out.

The due index (key ``D``) says when to look at which artifact; the rules (`kvstate.policy`) say what
is to become of it. A run first expires keys, then looks at what is due: moves and purges of small
content by the hundred in one transaction, copies in parallel threads under one rate limit. What
fails is recorded in the artifact with its reason and left where it is, and the rest goes on. A run
never overlaps another (a lock file in the store).
"""

from __future__ import annotations

import fcntl
import heapq
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.assessing import Assessing
from kvstate.clock import SECOND
from kvstate.codec import decode, encode
from kvstate.copy_workers import Workers
from kvstate.errors import Conflict, NotFound, StateError, Unavailable
from kvstate.filing import LOOK_AT_ONCE
from kvstate.keyspace import ROOT_ID, due_key, meta_key, parse_due
from kvstate.names import artifact_path
from kvstate.nodes import File, facts_of
from kvstate.outcomes import Counts, Explanation, Move, Outcome, outcome_of, tiers_of
from kvstate.policy import PURGE, TIERS
from kvstate.records import open_envelope, seal_envelope
from kvstate.tally import TRASH_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from kvstate.blobs import Blobs
    from kvstate.catalog import Catalog
    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader
    from kvstate.expiry import Expiry
    from kvstate.journal import Change, Journal
    from kvstate.moving import Moving
    from kvstate.nodes import Trashed
    from kvstate.pacing import Pace
    from kvstate.policy import Policy, Verdict
    from kvstate.reads import Reads

__all__ = ["Lifecycle"]

_PAGE: Final = 512
_LAST_RUN: Final = meta_key("lifecycle")
_LATER_NS: Final = 3600 * SECOND


class _Look(NamedTuple):
    """An artifact that was looked at: what is to be done with it."""

    file: File
    path: str
    verdict: Verdict
    action: str | None
    look_ns: int


class Lifecycle:
    """Plans, explains and runs what is due."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        expiry: Expiry,
        catalog: Catalog,
        moving: Moving,
        blobs: Blobs,
        clock: Clock,
        reads: Reads,
        folder: Path,
        *,
        rate: float = 0,
        threads: int = 2,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._expiry = expiry
        self._catalog = catalog
        self._moving = moving
        self._blobs = blobs
        self._clock = clock
        self._reads = reads
        self._lock_path = folder / "lifecycle.lock"
        self._rate = rate
        self._threads = threads
        self._policies = catalog.policies
        self._assessing = Assessing(engine, journal, catalog)

    # Rules

    def policy(self) -> dict[str, Any]:
        """Give the rules in force, as plain data in the shape of the settings file."""
        return dict(self._policies.ruling().settings)

    def configure(self, **options: Any) -> dict[str, Any]:
        """Change some of the rules, for every process, from now on; give all in force.

        The names are those of ``[lifecycle]``, and ``tenants`` for ``[tenants]``; None takes a
        change back, so that what the settings file says holds again. `InvalidValue` names what is
        wrong, and nothing is changed. Everything is looked at again by the next run.
        """
        ruling = self._journal.commit(lambda change: self._policies.change(change, options))
        return dict(ruling.settings)

    # Looking

    def _look(
        self,
        reader: Reader,
        node_id: int,
        policy: Policy,
        now_ns: int,
        folders: dict[int, str],
    ) -> _Look | None:
        """Look at an artifact; None when there is none of this identity.

        ``folders`` remembers the paths of folders, for as long as the reader sees one state.
        """
        file = self._catalog.node(node_id, reader)
        if not isinstance(file, File):
            return None
        folder = folders.get(file.parent)
        if folder is None:
            folder = folders[file.parent] = self._catalog.path(file.parent, reader)
        return self._judge(reader, file, f"{folder}/{file.name}", policy, now_ns)

    def _judge(self, reader: Reader, file: File, path: str, policy: Policy, now_ns: int) -> _Look:
        facts = facts_of(path, file)
        verdict = policy.verdict(facts, now_ns)
        action, look_ns = verdict.action, verdict.look_ns or 0
        if action == PURGE and verdict.keep_newest:
            rule = policy.rule(facts)
            if rule is not None and self._catalog.kept_newest(reader, file, rule):
                kept = f"among the newest {verdict.keep_newest} of its workflow, which stay"
                # What stays still ages: the step before the purge is due as well.
                action = verdict.steps[-2].action if len(verdict.steps) > 1 else None
                verdict = verdict._replace(action=action, blocks=(*verdict.blocks, kept))
                look_ns = now_ns + _LATER_NS
        return _Look(file, path, verdict, action, look_ns)

    # Planning

    def plan(
        self,
        limit: int | None = None,
        *,
        until_ns: int | None = None,
        after: tuple[int, int] | None = None,
    ) -> Iterator[Move]:
        """Give what is due now, or until a moment, in due order; nothing is changed.

        ``after`` is the ``(due_at_ns, id)`` of a page's last move: the next page begins there.
        """
        now_ns = max(self._clock.now_ns(), until_ns or 0)
        policy = self._policies.ruling().policy
        found = (
            (move.due_at_ns, move.id, move)
            for node_id in self._candidates(now_ns)
            if (move := self._move_of(node_id, policy, now_ns)) is not None
            and (after is None or (move.due_at_ns, move.id) > after)
        )
        ordered = sorted(found) if limit is None else heapq.nsmallest(limit, found)
        return iter([move for _, _, move in ordered])

    def _candidates(self, now_ns: int) -> Iterator[int]:
        """Give the identities to look at: what is due, or all while the rules are new."""
        ruling = self._policies.ruling()
        if self._assessing.pending() or not self._policies.assessed(self._engine, ruling):
            yield from self._assessing.every()
            return
        for _, node_id in self._due_entries(now_ns):
            yield node_id

    def _due_entries(self, now_ns: int) -> Iterator[tuple[int, int]]:
        start, stop = due_key(0, 0), due_key(now_ns + 1, 0)
        while page := self._engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                yield parse_due(key)
            start = page[-1][0] + b"\0"

    def _move_of(self, node_id: int, policy: Policy, now_ns: int) -> Move | None:
        def look(reader: Reader) -> _Look | None:
            with suppress(NotFound):
                return self._look(reader, node_id, policy, now_ns, {})
            return None

        found = self._engine.read(look)
        if found is None or found.action is None:
            return None
        file, verdict = found.file, found.verdict
        due_ns = verdict.due_ns or now_ns
        return Move(
            found.path,
            TIERS[file.tier],
            found.action,
            due_ns,
            file.size,
            file.id,
            verdict.rule,
            file.revision,
        )

    def explain(self, name: str) -> Explanation:
        """Say which rule decides over an artifact, what is due when, and what is in the way.

        `NotFound` when there is none of this name.
        """
        parts = artifact_path(name)
        now_ns = self._clock.now_ns()
        policy = self._policies.ruling().policy

        def look(reader: Reader) -> _Look:
            file = self._catalog.walk_path(parts, reader)
            if not isinstance(file, File):
                raise NotFound("artifact", name)
            return self._judge(reader, file, name, policy, now_ns)

        found = self._engine.read(look)
        return Explanation(
            name,
            TIERS[found.file.tier],
            found.verdict.rule,
            found.action,
            tuple((step.action, step.due_ns) for step in found.verdict.steps),
            tuple(self._reasons(found, now_ns)),
        )

    def _reasons(self, look: _Look, now_ns: int) -> Iterator[str]:
        file, verdict = look.file, look.verdict
        failure = file.failure
        if failure is not None:
            yield (
                f"moving it to {TIERS[failure.tier]} failed {failure.tries} times, at last because:"
                f" {failure.why}"
            )
        for case, about in sorted(file.holds.items()):
            why = f", {about['reason']}" if about.get("reason") else ""
            yield f"held for {case!r} by {about.get('by')}{why}: it is not purged"
        if failure is None:
            yield from (block for block in verdict.blocks if not block.startswith("held"))
        if not verdict.steps:
            yield "nothing is ever due: its rule says never"
        elif look.action is not None:
            last = self.last()
            when = "there was no run yet" if last is None else "the next run does it"
            yield f"{look.action} is due: {when}"
        elif verdict.due_ns is not None and verdict.due_ns > now_ns:
            yield f"{verdict.steps[0].action} is not due yet"

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which there is something to do; it may be past."""
        if self._assessing.pending() or not self._policies.assessed(
            self._engine, self._policies.ruling()
        ):
            return LOOK_AT_ONCE
        moments = [self._expiry.next_due_ns()]
        for page in (
            self._engine.scan(due_key(0, 0), b"E", limit=1),
            self._engine.scan(b"Z", b"[", limit=1),
        ):
            moments += [int.from_bytes(key[1:9], "big") for key, _ in page]
        return min((moment for moment in moments if moment is not None), default=None)

    # Running

    def expire(self) -> int:
        """Remove the keys that have expired, and versions that are too old; say how many keys."""
        return self._expiry.sweep().swept

    def run(
        self,
        *,
        dry_run: bool = False,
        plan: Iterable[Move] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Outcome:
        """Do all that is due; with ``dry_run`` only count it. `Conflict` while another run goes on.

        With ``plan`` do just those moves, as far as nothing about them has changed since they were
        planned; what has changed is refused and counted. ``progress`` is called with (steps done,
        0 for not known, name) after each.
        """
        counts = Counts(progress)
        began, at_ns = time.monotonic(), self._clock.now_ns()
        if dry_run:
            expired = self._count_due(counts, plan)
            return self._outcome(counts, expired, began, at_ns, dry_run=True)
        fd = self._lock()
        try:
            expired = self._run(counts, plan)
            outcome = self._outcome(counts, expired, began, at_ns, dry_run=False)
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

    def _count_due(self, counts: Counts, plan: Iterable[Move] | None) -> int:
        expired = 0
        if plan is None:
            expired = self._expiry.sweep(dry_run=True).swept
            moves = self.plan()
        else:
            moves = self._accepted(counts, plan)
        for move in moves:
            counts.did(move.name, move.target, move.size)
        return expired

    def _outcome(
        self, counts: Counts, expired: int, began: float, at_ns: int, *, dry_run: bool
    ) -> Outcome:
        return Outcome(
            counts.by["warm"],
            counts.by["cold"],
            counts.by[PURGE],
            expired,
            counts.errors,
            time.monotonic() - began,
            dry_run,
            at_ns,
            tuple(counts.failures),
            counts.bytes,
            counts.emptied,
            counts.refused,
        )

    def _run(self, counts: Counts, plan: Iterable[Move] | None) -> int:
        self._reads.flush()
        if plan is not None:
            self._apply_plan(counts, plan)
            return 0
        sweeping = self._expiry.sweep()
        for name, why in sweeping.failures:
            counts.failed(name, why)
        self._assessing.run(counts.tell)
        self._apply_due(counts)
        self._empty_trash(counts)
        self._blobs.recover()
        for blob in self._blobs.misplaced_blobs():
            self._settle(blob)
        self._blobs.sweep(all_notes=True)
        return sweeping.swept

    def _apply_due(self, counts: Counts) -> None:
        stop = due_key(self._clock.now_ns() + 1, 0)
        start = due_key(0, 0)
        with self._workers(counts) as workers:
            while page := self._engine.scan(start, stop, limit=_PAGE):
                self._apply(counts, [parse_due(key)[1] for key, _ in page], workers)
                start = page[-1][0] + b"\0"

    def _accepted(self, counts: Counts, plan: Iterable[Move]) -> Iterator[Move]:
        """Give the moves of a plan about which nothing has changed; refuse the others."""
        policy = self._policies.ruling().policy
        now_ns = self._clock.now_ns()
        for move in plan:
            found = self._move_of(move.id, policy, now_ns) if 0 <= move.id < 2**63 else None
            if found is None or found._replace(due_at_ns=0, rule="") != move._replace(
                due_at_ns=0, rule=""
            ):
                counts.refused += 1
                counts.tell(move.name)
            else:
                yield move

    def _apply_plan(self, counts: Counts, plan: Iterable[Move]) -> None:
        accepted = [move.id for move in self._accepted(counts, plan)]
        with self._workers(counts) as workers:
            for first in range(0, len(accepted), _PAGE):
                self._apply(counts, accepted[first : first + _PAGE], workers)

    def _apply(self, counts: Counts, ids: Sequence[int], workers: Workers) -> None:
        """Look at artifacts, and do what is due with each."""
        policy = self._policies.ruling().policy
        now_ns = self._clock.now_ns()

        def look_all(reader: Reader) -> list[_Look]:
            folders: dict[int, str] = {}
            looks = [self._look(reader, node_id, policy, now_ns, folders) for node_id in ids]
            return [look for look in looks if look is not None]

        at_once = []
        for look in self._engine.read(look_all):
            if look.action in TIERS and self._must_copy(look):
                workers.submit(look)
            else:
                at_once.append(look)
        self._commit(counts, at_once)

    def _must_copy(self, look: _Look) -> bool:
        if look.file.size <= 0:
            return False
        return self._blobs.must_copy(look.file.blob, look.file.tier, _tier(look.action))

    def _commit(self, counts: Counts, looks: list[_Look]) -> None:
        """Do what needs no copy in one transaction; if that fails, one by one."""
        if not looks:
            return
        try:
            done = self._journal.commit(lambda change: [self._step(change, each) for each in looks])
        except Unavailable:
            raise
        except (StateError, OSError) as error:
            if len(looks) > 1:
                for look in looks:
                    self._commit(counts, [look])
            else:
                self._failed(counts, looks[0], error)
            return
        self._blobs.sweep()
        for look, did in zip(looks, done, strict=True):
            if did and look.action is not None:
                counts.did(look.path, look.action, look.file.size)

    def _step(self, change: Change, look: _Look) -> bool:
        """Do one thing within a change, if the artifact is still as it was looked at."""
        now = self._catalog.node(look.file.id, change.tx)
        if now != look.file:
            return False  # its change has put it where it belongs in the due index
        if look.action is None:
            self._catalog.look(change, look.file, look.look_ns)
        elif look.action == PURGE:
            self._catalog.discard(change, look.file, look.path, kind="purge", why=look.verdict.why)
            self._catalog.prune(change, look.file.parent)
        else:
            tier = _tier(look.action)
            self._moving.flip(change, look.file, tier, "move", look.verdict.why)
        return True

    def _workers(self, counts: Counts) -> Workers:
        """Give threads that copy; what they did is counted when they are collected."""

        def done(look: _Look, error: Exception | None, *, did: bool) -> None:
            if error is not None:
                self._failed(counts, look, error)
            elif did:
                counts.did(look.path, str(look.action), look.file.size)

        return Workers(self._copy, done, self._journal, self._rate, self._threads)

    def _copy(self, look: _Look, pace: Pace) -> bool:
        """Move one artifact whose content has to be copied; say whether it was moved."""
        before = 0

        def told(done: int, _total: int) -> None:
            nonlocal before
            pace.take(done - before)
            before = done

        try:
            self._moving.move(
                lambda reader: self._catalog.node(look.file.id, reader),
                _tier(look.action),
                why=look.verdict.why,
                expect=look.file,
                progress=told if self._rate else None,
            )
        except (NotFound, Conflict):
            return False  # it was deleted, or written to: then it is not due any more
        return True

    def _failed(self, counts: Counts, look: _Look, error: Exception) -> None:
        """Count a failure, and record that of a move in the artifact."""
        counts.failed(look.path, str(error))
        if look.action in TIERS:
            with suppress(StateError):  # no room to say so: then it is tried at the next run
                self._catalog.note_failure(look.file, _tier(look.action), str(error))

    def _empty_trash(self, counts: Counts) -> None:
        now_ns = self._clock.now_ns()
        while True:
            page: list[Trashed] = []
            for trashed in self._catalog.trashed():
                if trashed.gone_ns > now_ns or len(page) >= _PAGE:
                    break
                page.append(trashed)
            if not page:
                return
            counts.emptied += sum(
                self._journal.commit(
                    lambda change, page=page: [  # type: ignore[misc]
                        self._catalog.empty_trash(change, each, "its time in the trash is up")
                        for each in page
                    ]
                )
            )
            self._blobs.sweep()

    def _settle(self, blob: bytes) -> None:
        with suppress(StateError):  # it stays readable where it is, and noted for the next run
            self._blobs.settle(self._journal, blob)

    # The last run

    def _keep(self, outcome: Outcome) -> None:
        self._engine.txn(lambda tx: tx.put(_LAST_RUN, _sealed(outcome)))

    def last(self) -> Outcome | None:
        """Give the outcome of the last run, as the store keeps it."""
        data = self._engine.get(_LAST_RUN)
        if data is None:
            return None
        fields = decode(open_envelope(_LAST_RUN, data).payload)
        return outcome_of(fields)

    def damaged(self, limit: int = 100) -> dict[str, object]:
        """Give how many contents are in quarantine, and the names of artifacts that have them."""
        blobs = {each.blob for each in self._blobs.quarantined()}
        names = self._assessing.users(blobs, limit) if blobs else []
        return {"blobs": len(blobs), "artifacts": names}

    def summary(self) -> dict[str, object]:
        """Give the tiers' contents, the last run and the next due time, as plain values."""
        last = self.last()
        totals = self._catalog.totals(ROOT_ID)
        trash = self._catalog.totals(TRASH_ID)
        return {
            "tiers": tiers_of(totals),
            "held": totals.held,
            "failed": totals.failed,
            "trash": {"artifacts": trash.artifacts, "bytes": trash.bytes},
            "last_run": None if last is None else last._asdict(),
            "next_due_ns": self.next_due_ns(),
        }


def _tier(action: str | None) -> int:
    return TIERS.index(str(action))


def _sealed(outcome: Outcome) -> bytes:
    at_ns = outcome.at_ns
    payload = encode(list(outcome))
    return seal_envelope(_LAST_RUN, payload, revision=0, created_ns=at_ns, updated_ns=at_ns)
