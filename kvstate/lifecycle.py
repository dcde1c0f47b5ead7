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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from kvstate.assessing import Assessing
from kvstate.clock import SECOND
from kvstate.codec import decode, encode
from kvstate.errors import Conflict, NotFound, StateError, Unavailable
from kvstate.filing import LOOK_AT_ONCE
from kvstate.keyspace import ROOT_ID, due_key, meta_key, parse_due
from kvstate.names import artifact_path
from kvstate.nodes import File, facts_of
from kvstate.pacing import Pace
from kvstate.policy import PURGE, TIERS
from kvstate.records import open_envelope, seal_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from kvstate.blobs import Blobs
    from kvstate.catalog import Catalog
    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader
    from kvstate.expiry import Expiry
    from kvstate.journal import Change, Journal
    from kvstate.moving import Moving
    from kvstate.nodes import Trashed
    from kvstate.policy import Policy, Verdict
    from kvstate.reads import Reads
    from kvstate.tally import Totals

__all__ = ["Explanation", "Lifecycle", "Move", "Outcome"]

_PAGE: Final = 512
_FAILURES_KEPT: Final = 100
_LAST_RUN: Final = meta_key("lifecycle")
_LATER_NS: Final = 3600 * SECOND
_JOBS_MAX: Final = 64


class Move(NamedTuple):
    """One step that is due: an artifact goes to another tier, or is purged, and by which rule.

    ``revision`` is that of the artifact: a saved plan is refused where it has changed.
    """

    name: str
    source: str
    target: str
    due_at_ns: int
    size: int
    id: int
    rule: str
    revision: int


class Outcome(NamedTuple):
    """What a run did (or, with ``dry_run``, would have done).

    ``expired`` counts keys; ``purged`` what is gone or, where there is a trash, in it; ``emptied``
    what left the trash; ``refused`` what a saved plan named and has changed since.
    """

    promoted_to_warm: int
    promoted_to_cold: int
    purged: int
    expired: int
    errors: int
    seconds: float
    dry_run: bool
    at_ns: int
    failures: tuple[tuple[str, str], ...]
    moved_bytes: int = 0
    emptied: int = 0
    refused: int = 0


class Explanation(NamedTuple):
    """Why an artifact is where it is: ``steps`` are (tier or purge, moment), ``why`` is for people.

    ``action`` is what is due now, None for nothing.
    """

    name: str
    tier: str
    rule: str
    action: str | None
    steps: tuple[tuple[str, int], ...]
    why: tuple[str, ...]


class _Look(NamedTuple):
    """An artifact that was looked at: what is to be done with it."""

    file: File
    path: str
    verdict: Verdict
    action: str | None
    look_ns: int


class _Counts:
    """What a run has done so far."""

    def __init__(self, progress: Callable[[int, int, str], None] | None) -> None:
        self.by = dict.fromkeys((*TIERS, PURGE), 0)
        self.failures: list[tuple[str, str]] = []
        self.errors = 0
        self.bytes = 0
        self.emptied = 0
        self.refused = 0
        self.done = 0
        self._progress = progress

    def did(self, name: str, target: str, size: int) -> None:
        """Count a step."""
        self.by[target] += 1
        self.bytes += size if target != PURGE else 0
        self.tell(name)

    def failed(self, name: str, why: str) -> None:
        """Count a failure."""
        self.errors += 1
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append((name, why))
        self.tell(name)

    def tell(self, name: str) -> None:
        """Say that something was done; whoever listens may end the run by an exception."""
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, 0, name)


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

    def _look(self, reader: Reader, node_id: int, policy: Policy, now_ns: int) -> _Look | None:
        """Look at an artifact; None when there is none of this identity."""
        file = self._catalog.node(node_id, reader)
        if not isinstance(file, File):
            return None
        return self._judge(reader, file, self._catalog.path(node_id, reader), policy, now_ns)

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
                return self._look(reader, node_id, policy, now_ns)
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
        counts = _Counts(progress)
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

    def _count_due(self, counts: _Counts, plan: Iterable[Move] | None) -> int:
        expired = 0
        if plan is None:
            expired = self._expiry.sweep(dry_run=True).swept
            plan = self.plan()
        for move in plan:
            counts.did(move.name, move.target, move.size)
        return expired

    def _outcome(
        self, counts: _Counts, expired: int, began: float, at_ns: int, *, dry_run: bool
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

    def _run(self, counts: _Counts, plan: Iterable[Move] | None) -> int:
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

    def _apply_due(self, counts: _Counts) -> None:
        stop = due_key(self._clock.now_ns() + 1, 0)
        start = due_key(0, 0)
        with _Workers(self, counts) as workers:
            while page := self._engine.scan(start, stop, limit=_PAGE):
                self._apply(counts, [parse_due(key)[1] for key, _ in page], workers)
                start = page[-1][0] + b"\0"

    def _apply_plan(self, counts: _Counts, plan: Iterable[Move]) -> None:
        policy = self._policies.ruling().policy
        now_ns = self._clock.now_ns()
        accepted = []
        for move in plan:
            found = self._move_of(move.id, policy, now_ns)
            if found is None or found._replace(due_at_ns=0, rule="") != move._replace(
                due_at_ns=0, rule=""
            ):
                counts.refused += 1
                counts.tell(move.name)
            else:
                accepted.append(move.id)
        with _Workers(self, counts) as workers:
            for first in range(0, len(accepted), _PAGE):
                self._apply(counts, accepted[first : first + _PAGE], workers)

    def _apply(self, counts: _Counts, ids: Sequence[int], workers: _Workers) -> None:
        """Look at artifacts, and do what is due with each."""
        policy = self._policies.ruling().policy
        now_ns = self._clock.now_ns()

        def look_all(reader: Reader) -> list[_Look]:
            looks = [self._look(reader, node_id, policy, now_ns) for node_id in ids]
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

    def _commit(self, counts: _Counts, looks: list[_Look]) -> None:
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
                self.failed(counts, looks[0], error)
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

    def copy(self, look: _Look, pace: Pace) -> bool:
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

    def failed(self, counts: _Counts, look: _Look, error: Exception) -> None:
        """Count a failure, and record that of a move in the artifact."""
        counts.failed(look.path, str(error))
        if look.action in TIERS:
            with suppress(StateError):  # no room to say so: then it is tried at the next run
                self._catalog.note_failure(look.file, _tier(look.action), str(error))

    def _empty_trash(self, counts: _Counts) -> None:
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

    def summary(self) -> dict[str, object]:
        """Give the tiers' contents, the last run and the next due time, as plain values."""
        last = self.last()
        return {
            "tiers": tiers_of(self._catalog.totals(ROOT_ID)),
            "last_run": None if last is None else last._asdict(),
            "next_due_ns": self.next_due_ns(),
        }


class _Workers:
    """The threads that copy, and what they have under way."""

    def __init__(self, lifecycle: Lifecycle, counts: _Counts) -> None:
        self._lifecycle = lifecycle
        self._counts = counts
        self._pace = Pace(lifecycle._rate)  # noqa: SLF001  (its other half)
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[tuple[_Look, Future[bool]]] = []

    def submit(self, look: _Look) -> None:
        """Let an artifact be moved."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._lifecycle._threads, "kvstate-move")  # noqa: SLF001
        actor = self._lifecycle._journal.actor  # noqa: SLF001
        self._jobs.append((look, self._pool.submit(self._work, look, actor)))
        if len(self._jobs) >= _JOBS_MAX:
            self._collect()

    def _work(self, look: _Look, actor: str) -> bool:
        with self._lifecycle._journal.acting(actor):  # noqa: SLF001
            return self._lifecycle.copy(look, self._pace)

    def _collect(self) -> None:
        jobs, self._jobs = self._jobs, []
        for look, job in jobs:
            try:
                if job.result():
                    assert look.action is not None
                    self._counts.did(look.path, look.action, look.file.size)
            except (StateError, OSError) as error:
                self._lifecycle.failed(self._counts, look, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._collect()
        finally:
            self._pace.end()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _tier(action: str | None) -> int:
    return TIERS.index(str(action))


def tiers_of(totals: Totals) -> dict[str, dict[str, int]]:
    """Give what each tier holds, as plain values."""
    return {
        tier: {"artifacts": usage.artifacts, "bytes": usage.bytes}
        for tier, usage in zip(TIERS, totals.tiers, strict=True)
    }


def outcome_of(fields: Sequence[Any]) -> Outcome:
    """Give an outcome from its fields, as a record or a wire has them."""
    outcome = Outcome(*fields)
    return outcome._replace(failures=tuple((name, why) for name, why in outcome.failures))


def move_of(fields: Mapping[str, Any]) -> Move:
    """Give a planned move from a mapping, as a saved plan has it."""
    return Move(**{name: fields[name] for name in Move._fields})


def _sealed(outcome: Outcome) -> bytes:
    at_ns = outcome.at_ns
    payload = encode(list(outcome))
    return seal_envelope(_LAST_RUN, payload, revision=0, created_ns=at_ns, updated_ns=at_ns)
