"""One namespace: a mutable mapping of keys to values, and all that a mapping has no word for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstate.clock import NEVER, SECOND, deadline_ns
from kvstate.codec import Value, decode, encode, unseal
from kvstate.errors import Conflict, Exists, InvalidName, InvalidValue, NotFound
from kvstate.journal import Spilled
from kvstate.key_mapping import KeyMapping
from kvstate.keyspace import after_prefix, expiry_key, namespace_key, state_prefix
from kvstate.names import check_key, check_namespace
from kvstate.records import (
    HEADER_BYTES,
    PLAIN,
    SPILLED,
    Envelope,
    open_envelope,
    seal_envelope,
)
from kvstate.state import Entry, expired, journal_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime, timedelta

    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.state import State

__all__ = ["Namespace"]

_PAGE = 512


class Namespace(KeyMapping):
    """A mutable mapping of keys to values; also all that a mapping has no word for."""

    def __init__(self, state: State, name: str) -> None:
        self.name = name
        self._state = state
        self._name_bytes = check_namespace(name)
        self._get = state.engine.get
        self._number: int | None = None
        self._prefix = b""
        self._record_key = namespace_key(self._name_bytes)
        self._record: tuple[bytes, int] = b"", 0

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    # Reading

    def get(self, key: str, default: Any = None) -> Value:
        """Give the key's value; the default when it is absent or has expired."""
        try:
            full = self._prefix + key.encode()
            data = self._get(full) if self._prefix else None
        except (AttributeError, TypeError, UnicodeEncodeError, InvalidName):
            data = None  # no key at all: `check_key` will say why
        if data is None:
            return self._get_slowly(key, default)
        body = unseal(full, data)
        if body[0] == PLAIN:
            return decode(data[HEADER_BYTES:])
        envelope = open_envelope(full, data)
        if expired(envelope, self._state.clock.now_ns()):
            return default
        return self._value(key, envelope, default)

    def _get_slowly(self, key: str, default: Value) -> Value:
        """Look again: the namespace may have been made, or made anew, since the last look."""
        check_key(key)
        if not self._find_prefix():
            return default
        envelope = self._envelope(key)
        return default if envelope is None else self._value(key, envelope, default)

    def _value(self, key: str, envelope: Envelope, default: Value) -> Value:
        """Give the value; a spilled one may have been replaced meanwhile: look again then."""
        found: Envelope | None = envelope
        while found is not None:
            try:
                return self._state.value(found)
            except NotFound:
                newer = self._envelope(key)
                if newer == found:
                    raise
                found = newer
        return default

    def _find_prefix(self) -> bool:
        number = self._state.identity(self._name_bytes)
        if number != self._number:
            self._prefix = b"" if number is None else state_prefix(number)
            self._number = number
        return number is not None

    def _envelope(self, key: str) -> Envelope | None:
        name = check_key(key)
        if not self._prefix and not self._find_prefix():
            return None
        full = self._prefix + name
        data = self._get(full)
        if data is None:
            return None
        envelope = open_envelope(full, data)
        return None if expired(envelope, self._state.clock.now_ns()) else envelope

    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired."""
        self._find_prefix()
        envelope = self._envelope(key)
        if envelope is None:
            return None
        return self._entry(key, envelope)

    def _entry(self, key: str, envelope: Envelope) -> Entry:
        return Entry(key, self._state.value(envelope), *envelope[1:5])

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there, all as of one moment."""
        wanted = [(key, check_key(key)) for key in keys]
        if not self._find_prefix():
            return {}
        prefix, now_ns = self._prefix, self._state.clock.now_ns()

        def run(reader: Reader) -> dict[str, Envelope]:
            found = {}
            for key, data in wanted:
                record = reader.get(prefix + data)
                if record is not None:
                    envelope = open_envelope(prefix + data, record)
                    if not expired(envelope, now_ns):
                        found[key] = envelope
            return found

        envelopes = self._state.engine.read(run)
        return {key: self._state.value(envelope) for key, envelope in envelopes.items()}

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, in the byte order of the keys.

        ``start`` is the first key wanted (the last, in reverse); ``limit`` how many at most. Pages
        are read as they are wanted; each page is one consistent moment.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise InvalidValue("limit", f"{limit!r} is no number of entries")
        for full, envelope in self._live_records(prefix, start, limit, reverse=reverse):
            yield self._entry(full[9:].decode(), envelope)

    def _live_records(
        self, prefix: str, start: str | None, limit: int | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, Envelope]]:
        """Give the records of a scan that have not expired, opened but not decoded."""
        if not self._find_prefix():
            return
        begin = self._prefix + prefix.encode()
        low, high = begin, after_prefix(begin)
        if start is not None:
            edge = self._prefix + start.encode()
            low, high = (low, min(high, edge + b"\0")) if reverse else (max(low, edge), high)
        left = limit
        while left is None or left > 0:
            wanted = _PAGE if left is None else min(_PAGE, left)
            page = self._state.engine.scan(low, high, limit=wanted, reverse=reverse)
            now_ns = self._state.clock.now_ns()
            for full, data in page:
                envelope = open_envelope(full, data)
                if not expired(envelope, now_ns):
                    left = None if left is None else left - 1
                    yield full, envelope
            if len(page) < wanted:
                return
            low, high = (low, page[-1][0]) if reverse else (page[-1][0] + b"\0", high)

    def ttl(self, key: str) -> float | None:
        """Give the seconds until the key expires; None if never; `NotFound` when it is absent."""
        self._find_prefix()
        envelope = self._envelope(key)
        if envelope is None:
            raise NotFound("key", key)
        if not envelope.expires_ns:
            return None
        return (envelope.expires_ns - self._state.clock.now_ns()) / SECOND

    # Writing

    def set(
        self,
        key: str,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_revision: int | None = None,
        keep_ttl: bool = False,
    ) -> int:
        """Set the key; give the revision. Without ``ttl`` or ``expires_at`` it never expires.

        `Exists` with ``if_absent`` when the key is there, `NotFound` with ``if_present`` when it is
        not, `Conflict` when its revision is not ``if_revision``. Durable when this returns.
        """
        data = check_key(key)
        payload = encode(value)
        state = self._state
        if ttl is not None or expires_at is not None:
            deadline_ns(
                state.clock.now_ns(), ttl, expires_at
            )  # refuse it before anything is written

        def run(change: Change, stored: bytes | Spilled) -> int:
            number = self._made(change)
            found = change.open(state_prefix(number) + data)
            old = None if found is None or expired(found, change.at_ns) else found
            _check_conditions(key, old, if_revision, if_absent=if_absent, if_present=if_present)
            expires_ns = deadline_ns(change.at_ns, ttl, expires_at)
            if keep_ttl and not expires_ns and old is not None:
                expires_ns = old.expires_ns
            self._put(change, number, key, data, stored, expires_ns, found)
            return change.revision

        if len(payload) <= state.inline_bytes_max:
            return state.journal.commit(lambda change: run(change, payload))
        return self._set_spilled(payload, run)

    def _set_spilled(self, payload: bytes, run: Callable[[Change, bytes | Spilled], int]) -> int:
        """Store a large value as a blob: the record and the journal each refer to it."""
        blobs = self._state.blobs
        staging = blobs.staging(0)
        try:
            staging.write(0, payload)
            return blobs.commit(
                self._state.journal,
                staging,
                0,
                lambda change, _content, blob: run(change, Spilled(blob)),
                references=2,
            )
        finally:
            staging.discard()

    def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision.

        A value of more than ``inline_bytes_max`` has to be set by itself: `InvalidValue`.
        """
        state = self._state
        payloads = {key: encode(value) for key, value in mapping.items()}
        for key, payload in payloads.items():
            check_key(key)
            if len(payload) > state.inline_bytes_max:
                raise InvalidValue(f"value of {key!r}", "too large for a batch: set it by itself")
        deadline_ns(state.clock.now_ns(), ttl, expires_at)

        def run(change: Change) -> int:
            number = self._made(change)
            prefix = state_prefix(number)
            expires_ns = deadline_ns(change.at_ns, ttl, expires_at)
            for key, payload in payloads.items():
                data = key.encode()
                found = change.open(prefix + data)
                self._put(change, number, key, data, payload, expires_ns, found)
            return change.revision

        return state.journal.commit(run) if payloads else state.journal.revision()

    def _made(self, change: Change) -> int:
        """Give the namespace's identity within a change; make the namespace if it is not there."""
        record = change.tx.get(self._record_key)
        if record is not None and record == self._record[0]:
            return self._record[1]
        number = self._state.make(self.name, change)
        if record is not None:
            self._record = record, number
        return number

    def _put(
        self,
        change: Change,
        number: int,
        key: str,
        data: bytes,
        value: bytes | Spilled,
        expires_ns: int,
        old: Envelope | None,
    ) -> None:
        """Write a key's record, its expiry and its journal entry; ``old`` is what was there."""
        full = state_prefix(number) + data
        created_ns = change.at_ns
        previous: bytes | Spilled | None = None
        if old is not None:
            if old.expires_ns and old.expires_ns != expires_ns:
                change.tx.delete(expiry_key(old.expires_ns, number, data))
            previous = journal_value(old)
            if expired(old, change.at_ns):
                change.say("expire", self.name, key, None, previous)
                previous = None
            else:
                created_ns = old.created_ns
        change.tx.put(
            full,
            seal_envelope(
                full,
                value.blob if isinstance(value, Spilled) else value,
                revision=change.revision,
                created_ns=created_ns,
                updated_ns=change.at_ns,
                expires_ns=expires_ns,
                spilled=isinstance(value, Spilled),
            ),
        )
        if expires_ns and (old is None or old.expires_ns != expires_ns):
            change.tx.put(expiry_key(expires_ns, number, data), b"")
        change.say("set", self.name, key, value, previous)

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        data = check_key(key)
        state = self._state

        def run(change: Change) -> bool:
            number = state.identity(self._name_bytes, change.tx)
            if number is None:
                return False
            full = state_prefix(number) + data
            old = _live(change, full)
            if if_revision is not None and (old is None or old.revision != if_revision):
                found = "it is absent" if old is None else f"its revision is {old.revision}"
                raise Conflict(key, f"expected revision {if_revision}, {found}")
            if old is None:
                return False
            change.tx.delete(full)
            if old.expires_ns:
                change.tx.delete(expiry_key(old.expires_ns, number, data))
            change.say("delete", self.name, key, None, journal_value(old))
            return True

        return state.journal.commit(run)

    def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> bool:
        """Let the key expire after so many seconds, or at a moment; say whether it was there."""
        if ttl is None and expires_at is None:
            raise InvalidValue("expire", "give ttl or expires_at")
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)
        return self._set_expiry(key, lambda now_ns: deadline_ns(now_ns, ttl, expires_at))

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return self._set_expiry(key, lambda _now_ns: NEVER)

    def _set_expiry(self, key: str, deadline: Any) -> bool:
        data = check_key(key)

        def run(change: Change) -> bool:
            number = self._state.identity(self._name_bytes, change.tx)
            if number is None:
                return False
            full = state_prefix(number) + data
            old = _live(change, full)
            if old is None:
                return False
            expires_ns: int = deadline(change.at_ns)
            if expires_ns == old.expires_ns:
                return True
            _replace(change, full, old, expires_ns)
            if old.expires_ns:
                change.tx.delete(expiry_key(old.expires_ns, number, data))
            if expires_ns:
                change.tx.put(expiry_key(expires_ns, number, data), b"")
            change.say("ttl", self.name, key, encode(expires_ns), encode(old.expires_ns))
            return True

        return self._state.journal.commit(run)

    def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL and creation time go with it. The revision is given.

        `NotFound` when it is absent; `Exists` when the new name is taken, unless ``replace``.
        """
        source, target = check_key(old), check_key(new)
        state = self._state

        def run(change: Change) -> int:
            number = state.identity(self._name_bytes, change.tx)
            found = None if number is None else _live(change, state_prefix(number) + source)
            if number is None or found is None:
                raise NotFound("key", old)
            if source == target:
                return found.revision
            full = state_prefix(number) + target
            taken = change.open(full)
            previous = None
            if taken is not None:
                if not replace and not expired(taken, change.at_ns):
                    raise Exists("key", new)
                previous = journal_value(taken)
                change.tx.delete(expiry_key(taken.expires_ns, number, target))
            change.tx.delete(state_prefix(number) + source)
            change.tx.delete(expiry_key(found.expires_ns, number, source))
            _replace(change, full, found, found.expires_ns)
            if found.expires_ns:
                change.tx.put(expiry_key(found.expires_ns, number, target), b"")
            change.say("rename", self.name, old, encode({"to": new}), previous)
            return change.revision

        return state.journal.commit(run)

    # The mapping

    def __iter__(self) -> Iterator[str]:
        return (full[9:].decode() for full, _ in self._live_records("", None, None, reverse=False))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _live(change: Change, full: bytes) -> Envelope | None:
    envelope = change.open(full)
    return None if envelope is None or expired(envelope, change.at_ns) else envelope


def _replace(change: Change, full: bytes, old: Envelope, expires_ns: int) -> None:
    """Write the same value again with another expiry, or under another key."""
    change.tx.put(
        full,
        seal_envelope(
            full,
            old.payload,
            revision=change.revision,
            created_ns=old.created_ns,
            updated_ns=old.updated_ns,
            expires_ns=expires_ns,
            spilled=bool(old.form & SPILLED),
        ),
    )


def _check_conditions(
    key: str,
    old: Envelope | None,
    if_revision: int | None,
    *,
    if_absent: bool,
    if_present: bool,
) -> None:
    if if_absent and old is not None:
        raise Exists("key", key)
    if if_present and old is None:
        raise NotFound("key", key)
    if if_revision is not None and (old.revision if old else 0) != if_revision:
        found = f"its revision is {old.revision}" if old else "it is absent"
        raise Conflict(key, f"expected revision {if_revision}, {found}")
