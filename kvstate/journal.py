"""The journal: every commit has a revision and says who changed what, when and why.

It is written in the same transaction as the change, and it is the only bookkeeping of changes:
watch, history, audit and cache invalidation read it. Its last record *is* the store's revision, so
trimming always leaves that one.

A record (key ``J revision chunk``) holds up to `CHUNK_ENTRIES` entries of one revision:

    start(8)  link(32)  [actor, [[kind, scope, name, value, previous, why], ...]]

``start`` counts the journal's bytes before this record since the store was made; so the size of
what is left is known from its first and last record. ``link`` chains the record to those before it
(`kvstate.chain`). ``value`` and ``previous`` are CBOR bytes, or
None, or ``[blob]`` for a value that spilled; the journal holds a reference to such a blob until it
is trimmed.
"""

from __future__ import annotations

import getpass
import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar, cast

from kvstate.chain import BODY, NO_LINK, TRIMMED_KEY, link_record, open_link, pack_link
from kvstate.clock import SECOND, datetime_of
from kvstate.codec import Value, decode, encode_plain
from kvstate.errors import Compacted, StateError
from kvstate.faults import point
from kvstate.keyspace import journal_key, parse_journal
from kvstate.records import open_envelope, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader, Transaction
    from kvstate.records import Envelope
    from kvstate.settings import StoreSettings

__all__ = [
    "DUE",
    "Change",
    "Event",
    "Journal",
    "Later",
    "Named",
    "Spilled",
    "chosen",
    "unpack_entries",
]

log = logging.getLogger("kvstate")

T = TypeVar("T")

CHUNK_ENTRIES = 128
IDS_PER_REVISION = 4096
_TRIM_EVERY = 64
_JUMP_NS = 5 * SECOND
_steady_ns = time.clock_gettime_ns
_STEADY = time.CLOCK_BOOTTIME  # goes on while the machine sleeps, as the wall clock does
_TRIM_RECORDS = 256
_PAGE = 256
DUE: Final = "due"
"""What a transaction's memo calls the moment before which nothing is due."""
_TIP: Final = "journal"
_FIRST = journal_key(0)
_LAST = journal_key(2**64 - 1, 2**16 - 1)


class Event(NamedTuple):
    """One change: what `Store.journal` and `Store.watch` give.

    ``kind`` is set, delete, expire for keys (``scope`` is the namespace); put, update, remove,
    rename, move, restore, purge, mkdir, rmdir for artifacts (``scope`` is empty, ``name`` the
    path). ``value`` and ``previous`` are a key's values, or mappings that describe the artifact.
    """

    revision: int
    at_ns: int
    kind: str
    scope: str
    name: str
    value: Value
    previous: Value
    actor: str
    why: str

    @property
    def at(self) -> datetime:
        """When it was committed, in UTC."""
        return datetime_of(self.at_ns)


class Named(NamedTuple):
    """What a change was about, without its values; ``to`` is the new name of what was renamed."""

    revision: int
    kind: str
    scope: str
    name: str
    to: str = ""


class Spilled(NamedTuple):
    """A value that lies in a blob instead of in the record."""

    blob: bytes


Raw = bytes | Spilled | None
Entry = tuple[str, str, str, Raw, Raw, str]


class Later(Protocol):
    """Writes that a change gathers, so that many of them to one record become one."""

    def write(self, change: Change) -> None:
        """Write what was gathered, and be empty."""
        ...


L = TypeVar("L", bound=Later)


class Change:
    """One commit in the making: the transaction, its revision, its time, and what it will say."""

    __slots__ = ("_ids", "_later", "actor", "at_ns", "entries", "revision", "tx")

    def __init__(self, tx: Transaction, revision: int, at_ns: int, actor: str) -> None:
        self.tx = tx
        self.revision = revision
        self.at_ns = at_ns
        self.actor = actor
        self.entries: list[Entry] = []
        self._ids = 0
        self._later: dict[object, Later] = {}

    def later(self, key: object, make: Callable[[], L]) -> L:
        """Give what gathers, in this change, writes of one kind; it writes them at its end."""
        found = self._later.get(key)
        if found is None:
            found = self._later[key] = make()
        return cast("L", found)

    def finish(self) -> None:
        """Write what was put off."""
        for later in self._later.values():
            later.write(self)

    def new_id(self) -> int:
        """Give an identity that was never given before: revisions are not, either."""
        self._ids += 1
        if self._ids >= IDS_PER_REVISION:
            raise StateError("one commit makes too many folders and artifacts")
        return self.revision * IDS_PER_REVISION + self._ids

    def say(
        self,
        kind: str,
        scope: str,
        name: str,
        value: Raw = None,
        previous: Raw = None,
        why: str = "",
    ) -> None:
        """Add an entry to the journal of this commit."""
        self.entries.append((kind, scope, name, value, previous, why))

    def due(self, at_ns: int) -> None:
        """Take note that something is due then."""
        known_ns = self.tx.memo.get(DUE)
        if known_ns is not None and at_ns < known_ns:
            self.tx.memo[DUE] = at_ns

    def open(self, key: bytes) -> Envelope | None:
        """Read and verify a record."""
        data = self.tx.get(key)
        return None if data is None else open_envelope(key, data)

    def seal(self, key: bytes, payload: bytes, *, created_ns: int | None = None) -> None:
        """Write a record of this revision and time."""
        at_ns = self.at_ns
        times = (at_ns if created_ns is None else created_ns, at_ns, 0)
        self.tx.put(key, sealed(key, payload, self.revision, 1, times, 0))


class Journal:
    """Commits changes with their journal, and reads it."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        settings: StoreSettings,
        *,
        actor: str | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._bytes_max = settings.journal_bytes_max
        self._age_ns = round(settings.journal_age_seconds * SECOND)
        self._default_actor = actor or f"{_user()}[{os.getpid()}]"
        self._local = threading.local()
        self._drift_ns = clock.now_ns() - _steady_ns(_STEADY)
        self.release: Callable[[Change, bytes], None] = lambda _change, _blob: None
        """What to call when the last entry that mentions a spilled value's blob is trimmed."""
        self.load: Callable[[bytes], bytes] = lambda _blob: b"\xf6"
        """How to read a spilled value's bytes."""

    @property
    def actor(self) -> str:
        """Who this thread's commits name."""
        return getattr(self._local, "actor", None) or self._default_actor

    @contextmanager
    def acting(self, actor: str) -> Iterator[None]:
        """Let this thread's commits carry another actor."""
        before = getattr(self._local, "actor", None)
        self._local.actor = actor
        try:
            yield
        finally:
            self._local.actor = before

    def commit(self, function: Callable[[Change], T]) -> T:
        """Run the function in a transaction; what it says is the journal of one new revision.

        It may run more than once. Without an entry there is no new revision.
        """
        actor = self.actor
        now_ns = self._clock.now_ns

        def run(tx: Transaction) -> T:
            newest, end, link = tx.memo.get(_TIP) or _tip(tx)
            revision = newest + 1
            at_ns = now_ns()
            drift_ns = at_ns - _steady_ns(_STEADY)
            if abs(drift_ns - self._drift_ns) > _JUMP_NS:
                self._clock_jumped(drift_ns)
            change = Change(tx, revision, at_ns, actor)
            result = function(change)
            change.finish()
            if change.entries:
                end, link = self._write(change, end, link)
                tx.memo[_TIP] = revision, end, link
                if revision % _TRIM_EVERY == 0:
                    self.trim(change, end)
            point("changing")
            return result

        result = self._engine.txn(run)
        point("committed")
        return result

    def _clock_jumped(self, drift_ns: int) -> None:
        """Say that the wall clock did not go on as time did: what is due goes by it."""
        seconds = (drift_ns - self._drift_ns) / SECOND
        self._drift_ns = drift_ns
        if seconds > 0:
            log.warning("the clock jumped %.0f s forward: what is due by it expires", seconds)
        else:
            log.warning("the clock jumped %.0f s back: what was due expires later", -seconds)

    def _write(self, change: Change, start: int, link: bytes) -> tuple[int, bytes]:
        """Write what the change says, after this byte and this link; give those after it."""
        entries = change.entries
        for chunk, first in enumerate(range(0, len(entries), CHUNK_ENTRIES)):
            part = entries[first : first + CHUNK_ENTRIES]
            key = journal_key(change.revision, chunk)
            body = encode_plain([change.actor, [_packed(entry) for entry in part]])
            record, link = link_record(link, key, change.at_ns, change.revision, start, body)
            change.tx.put(key, record)
            start += len(key) + BODY + len(body)
        return start, link

    def trim(self, change: Change, end: int, records_max: int = _TRIM_RECORDS) -> int:
        """Remove the oldest records that are too old or too much; say how many.

        ``end`` is the byte after the journal's last; the change's own records stay.
        """
        oldest_ns = change.at_ns - self._age_ns
        trimmed, last = 0, None
        while trimmed < records_max:
            key, data = next(change.tx.scan(_FIRST, _LAST))
            envelope = open_envelope(key, data)
            start, _, entries = unpack_entries(envelope.payload)
            if parse_journal(key)[0] >= change.revision:
                break
            if end - start <= self._bytes_max and envelope.updated_ns >= oldest_ns:
                break
            change.tx.delete(key)
            trimmed, last = trimmed + 1, (key, envelope.payload)
            for _kind, _scope, _name, value, previous, _why in entries:
                for raw in (value, previous):
                    if isinstance(raw, list):
                        self.release(change, raw[0])
        if last:
            change.seal(TRIMMED_KEY, pack_link(*last))
        return trimmed

    @staticmethod
    def moment_ns(reader: Reader, revision: int) -> int | None:
        """Give when a revision was committed; None when the journal does not have it (any more)."""
        key = journal_key(revision)
        data = reader.get(key)
        return None if data is None else open_envelope(key, data).updated_ns

    def revision(self) -> int:
        """Give the newest revision; 0 in a store that never changed."""
        page = self._engine.scan(_FIRST, _LAST, limit=1, reverse=True)
        return parse_journal(page[0][0])[0] if page else 0

    def oldest(self) -> int:
        """Give the oldest revision that the journal still has; 0 when it is empty."""
        page = self._engine.scan(_FIRST, _LAST, limit=1)
        return parse_journal(page[0][0])[0] if page else 0

    def size(self) -> int:
        """Give how many bytes the journal has, as its own limit counts them."""

        def run(reader: Reader) -> int:
            for key, data in reader.scan(_FIRST, _LAST):
                return _tip(reader)[1] - open_link(open_envelope(key, data).payload)[0]
            return 0

        return self._engine.read(run)

    def events(
        self, since: int = 0, limit: int | None = None, *, strict: bool = False
    ) -> Iterator[Event]:
        """Give the events after this revision, in order, up to the newest.

        `Compacted` when some of them were trimmed (``since=0`` asks for what there is, unless
        ``strict``).
        """
        start = journal_key(since + 1)
        if since or strict:
            oldest = self.oldest()
            if since + 1 < oldest:
                raise Compacted(since + 1, oldest)
        given = 0
        while True:
            page = self._engine.scan(start, _LAST, limit=_PAGE)
            for key, data in page:
                for event in self._events_of(key, data):
                    if limit is not None and given >= limit:
                        return
                    given += 1
                    yield event
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\0"

    def entries_since(self, since: int) -> Iterator[tuple[int, list[Any]]]:
        """Give revisions and entries after a revision as they are stored: spilled values unread.

        An entry is ``[kind, scope, name, value, previous, why]``. `Compacted` when some were
        trimmed.
        """
        oldest = self.oldest()
        if since + 1 < oldest:
            raise Compacted(since + 1, oldest)
        start = journal_key(since + 1)
        while page := self._engine.scan(start, _LAST, limit=_PAGE):
            for key, data in page:
                revision = parse_journal(key)[0]
                for entry in unpack_entries(open_envelope(key, data).payload)[2]:
                    yield revision, entry
            start = page[-1][0] + b"\0"

    def names(self, since: int) -> Iterator[Named]:
        """Give what each change after this revision was about, in order; `Compacted` as above."""
        for revision, (kind, scope, name, value, *_) in self.entries_since(since):
            to = self._value(value)["to"] if kind == "rename" else ""
            yield Named(revision, kind, scope, name, to)

    def watch(
        self,
        since: int | None,
        timeout: float | None,
        when_due: Callable[[], float | None] = lambda: None,
    ) -> Iterator[Event]:
        """Give events as they are committed, by anyone; end after ``timeout`` quiet seconds.

        ``when_due`` is called before each wait; it may say for how long to wait at most before it
        is called again.
        """
        return self._watch(self.revision() if since is None else since, timeout, when_due)

    def _watch(
        self, seen: int, timeout: float | None, when_due: Callable[[], float | None]
    ) -> Iterator[Event]:
        while True:
            for event in self.events(seen, strict=True):
                seen = event.revision
                yield event
            if self.wait(seen, timeout, when_due) <= seen:
                return

    def wait(
        self,
        revision: int,
        timeout: float | None,
        when_due: Callable[[], float | None] = lambda: None,
    ) -> int:
        """Wait until the store is past this revision, or the time is up; give its revision."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            token = self._engine.revision()
            current = self.revision()
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if current > revision or left <= 0:
                return current
            due = when_due()
            self._engine.watch(token, left if due is None else min(left, due))

    def _events_of(self, key: bytes, data: bytes) -> Iterator[Event]:
        envelope = open_envelope(key, data)
        _, actor, entries = unpack_entries(envelope.payload)
        for kind, scope, name, value, previous, why in entries:
            yield Event(
                parse_journal(key)[0],
                envelope.updated_ns,
                kind,
                scope,
                name,
                self._value(value),
                self._value(previous),
                actor,
                why,
            )

    def _value(self, raw: bytes | list[bytes] | None) -> Value:
        if raw is None:
            return None
        return decode(self.load(raw[0]) if isinstance(raw, list) else raw)


def chosen(events: Iterator[Event], namespace: str | None, prefix: str) -> Iterator[Event]:
    """Give the events of one namespace, if any is given, whose names begin with the prefix."""
    for event in events:
        if (namespace is None or event.scope == namespace) and event.name.startswith(prefix):
            yield event


def _packed(entry: Entry) -> Sequence[Any]:
    value, previous = entry[3], entry[4]
    if isinstance(value, Spilled) or isinstance(previous, Spilled):
        return [list(part) if isinstance(part, Spilled) else part for part in entry]
    return entry


def unpack_entries(payload: bytes) -> tuple[int, str, list[list[Any]]]:
    """Give a record's start, actor and entries."""
    actor, entries = decode(payload[BODY:])
    return open_link(payload)[0], actor, entries


def _tip(tx: Reader) -> tuple[int, int, bytes]:
    """Give the newest revision, the journal's bytes up to its end, and the link to follow."""
    for key, data in tx.scan(_FIRST, _LAST, reverse=True):
        payload = open_envelope(key, data).payload
        start, link = open_link(payload)
        return parse_journal(key)[0], start + len(key) + len(payload), link
    return 0, 0, NO_LINK


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid:{os.getuid()}"
