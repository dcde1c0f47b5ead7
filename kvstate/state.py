"""Namespaces: mutable mappings of keys to values that may expire.

A key that has expired is hidden from the moment it expires, by every reader; the sweep that removes
its record (and writes the journal's ``expire``) comes later, in due order, from an index. The index
is a hint: the record decides.

Values up to ``inline_bytes_max`` lie in the record, larger ones in a blob, unseen by the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvstate.clock import NEVER, datetime_of
from kvstate.codec import Value, decode, encode
from kvstate.errors import Conflict
from kvstate.journal import Spilled
from kvstate.keyspace import (
    after_prefix,
    expiry_key,
    namespace_key,
    parse_expiry,
    state_prefix,
)
from kvstate.names import check_namespace
from kvstate.records import (
    SPILLED,
    Envelope,
    open_envelope,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from kvstate.blobs import Blobs
    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal

__all__ = ["Entry", "State", "expired", "journal_value"]

_PAGE = 512
SWEEP_KEYS = 1000
"""Keys removed in one transaction of a sweep."""


class Entry(NamedTuple):
    """A key with its value, as of one commit. Times are nanoseconds since 1970 UTC."""

    key: str
    value: Value
    revision: int
    created_at_ns: int
    updated_at_ns: int
    expires_at_ns: int

    @property
    def created_at(self) -> datetime:
        """When the key was first set, in UTC."""
        return datetime_of(self.created_at_ns)

    @property
    def updated_at(self) -> datetime:
        """When the key was last set, in UTC."""
        return datetime_of(self.updated_at_ns)

    @property
    def expires_at(self) -> datetime | None:
        """When the key expires, in UTC; None if never."""
        return datetime_of(self.expires_at_ns) if self.expires_at_ns else None


class State:
    """All namespaces of a store, and the expiry of their keys."""

    def __init__(
        self, engine: Engine, journal: Journal, blobs: Blobs, clock: Clock, inline_bytes_max: int
    ) -> None:
        self.engine = engine
        self.journal = journal
        self.blobs = blobs
        self.clock = clock
        self.inline_bytes_max = inline_bytes_max

    def names(self) -> Iterator[str]:
        """Give the namespaces' names in byte order."""
        start, stop = namespace_key(b""), after_prefix(namespace_key(b""))
        while page := self.engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                yield key[1:].decode()
            start = page[-1][0] + b"\0"

    def identity(self, name: bytes, reader: Reader | Engine | None = None) -> int | None:
        """Give a namespace's identity; None when there is none of this name."""
        key = namespace_key(name)
        data = (reader or self.engine).get(key)
        if data is None:
            return None
        number: int = decode(open_envelope(key, data).payload)[0]
        return number

    def make(self, name: str, change: Change) -> int:
        """Give a namespace's identity; make the namespace if there is none of this name."""
        data = check_namespace(name)
        found = self.identity(data, change.tx)
        if found is not None:
            return found
        number = change.new_id()
        change.seal(namespace_key(data), encode([number]))
        return number

    def remove(self, name: str) -> bool:
        """Remove an empty namespace; `Conflict` when it has keys; say whether it was there."""
        data = check_namespace(name)

        def run(change: Change) -> bool:
            number = self.identity(data, change.tx)
            if number is None:
                return False
            prefix = state_prefix(number)
            for key, record in change.tx.scan(prefix, after_prefix(prefix)):
                envelope = open_envelope(key, record)
                if not expired(envelope, change.at_ns):
                    raise Conflict(name, "the namespace still has keys")
                self.expire_record(change, name, number, key, envelope)
            change.tx.delete(namespace_key(data))
            change.say("rmspace", name, "")
            return True

        return self.journal.commit(run)

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which a key expires."""
        page = self.engine.scan(b"E", b"F", limit=1)
        return parse_expiry(page[0][0])[0] if page else None

    def sweep(self, *, dry_run: bool = False) -> int:
        """Remove what has expired, in due order, in bounded transactions; say how many keys."""
        if dry_run:
            due = expiry_key(self.clock.now_ns() + 1, 0, b"")
            return sum(1 for _ in self._due(due))
        swept = 0
        while count := self.journal.commit(self._sweep_some):
            swept += count
            if count < SWEEP_KEYS:
                break
        return swept

    def _due(self, stop: bytes) -> Iterator[bytes]:
        start = b"E"
        while page := self.engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                yield key
            start = page[-1][0] + b"\0"

    def _sweep_some(self, change: Change) -> int:
        stop = expiry_key(change.at_ns + 1, 0, b"")
        names: dict[int, str] = {}
        swept = 0
        scan = change.tx.scan(b"E", stop)
        for index_key, _ in [pair for _, pair in zip(range(SWEEP_KEYS), scan, strict=False)]:
            expires_ns, number, key = parse_expiry(index_key)
            full = state_prefix(number) + key
            envelope = change.open(full)
            if envelope is None or envelope.expires_ns != expires_ns:
                change.tx.delete(index_key)
                continue
            if number not in names:
                names.update(self._names_by_identity(change.tx))
            self.expire_record(change, names.get(number, f"#{number}"), number, full, envelope)
            swept += 1
        return swept

    def _names_by_identity(self, reader: Reader) -> dict[int, str]:
        pairs = reader.scan(b"N", b"O")
        return {decode(open_envelope(k, data).payload)[0]: k[1:].decode() for k, data in pairs}

    def expire_record(
        self, change: Change, name: str, number: int, full: bytes, envelope: Envelope
    ) -> None:
        """Remove an expired record; the journal's ``expire`` carries the last value."""
        key = full[9:]
        change.tx.delete(full)
        change.tx.delete(expiry_key(envelope.expires_ns, number, key))
        change.say("expire", name, key.decode(), None, journal_value(envelope))

    def value(self, envelope: Envelope) -> Value:
        """Give the value that a record holds, wherever it lies."""
        if envelope.form & SPILLED:
            return decode(self.blobs.load(envelope.payload))
        return decode(envelope.payload)


def journal_value(envelope: Envelope) -> bytes | Spilled:
    """Give a record's value for the journal; a spilled value's reference goes over to it."""
    return Spilled(envelope.payload) if envelope.form & SPILLED else envelope.payload


def expired(envelope: Envelope, now_ns: int) -> bool:
    """Say whether a key is hidden by now."""
    return envelope.expires_ns != NEVER and envelope.expires_ns <= now_ns
