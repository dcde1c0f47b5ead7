"""One namespace: a mutable mapping of keys to values, and all that a mapping has no word for."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate.clock import NEVER, SECOND, deadline_ns, time_to_ns
from kvstate.codec import Value, decode, unseal
from kvstate.errors import Conflict, InvalidName, InvalidValue, NotFound
from kvstate.history import AsOf, Version, as_of, check_reach, followed, versioned_keys
from kvstate.indexes import Place, Search, key_of_entry
from kvstate.journal import Spilled
from kvstate.key_mapping import KeyMapping
from kvstate.keys import Conditions, KeyWriter, check_only_if, increased
from kvstate.keyspace import after_prefix, expiry_key, namespace_key, parse_expiry
from kvstate.names import check_key, check_namespace
from kvstate.records import GONE, HEADER_BYTES, PLAIN, SPILLED, Envelope, open_envelope
from kvstate.space import NamespaceSettings, Space, open_space
from kvstate.state import Entry, expired, journal_value
from kvstate.typed import converted, encode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.state import State

__all__ = ["Namespace", "Upserted", "Used"]

_PAGE = 512
_SLIDE_PARTS = 10
_NEXT = b"\1"
"""What makes of a key something behind it and its versions: no key has a control character."""


class Upserted(NamedTuple):
    """What `upsert_many` found: how many keys it was given, made, changed and left alone."""

    total: int
    new: int
    changed: int
    unchanged: int


class Used(NamedTuple):
    """How much a namespace holds: keys, and bytes of keys and values."""

    keys: int
    bytes: int


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
        self._known: tuple[bytes, Space] | None = None

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    # Reading

    def get(
        self,
        key: str,
        default: Any = None,
        *,
        as_type: Any = None,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> Value:
        """Give the key's value; the default when it is absent or has expired.

        With ``revision`` or ``at``, as it was then: `Compacted` when that is not known any more.
        With ``as_type`` as an instance of that dataclass or msgspec struct.
        """
        if revision is not None or at is not None:
            return self._get_past(key, default, _point(revision, at), as_type)
        try:
            full = self._prefix + key.encode()
            data = self._get(full) if self._prefix else None
        except (AttributeError, TypeError, UnicodeEncodeError, InvalidName):
            data = None  # no key at all: `check_key` will say why
        if data is None:
            found = self._get_slowly(key, default)
        else:
            body = unseal(full, data)
            if body[0] == PLAIN:
                found = decode(data[HEADER_BYTES:])
            else:
                envelope = open_envelope(full, data)
                if expired(envelope, self._state.clock.now_ns()):
                    return default
                found = self._value(key, envelope, default)
        if as_type is None or found is default:
            return found
        return converted(found, as_type, key)

    def _get_slowly(self, key: str, default: Value) -> Value:
        """Look again: the namespace may have been made, or made anew, since the last look."""
        check_key(key)
        if not self._find_prefix():
            return default
        envelope = self._envelope(key)
        return default if envelope is None else self._value(key, envelope, default)

    def _value(self, key: str, envelope: Envelope, default: Value) -> Value:
        """Give the value; a spilled one may have been replaced meanwhile: look again then."""
        if envelope.expires_ns:
            self._slide(key, envelope)
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

    def _slide(self, key: str, envelope: Envelope) -> None:
        """Let the key live for its TTL again, where it says so; not more often than it must."""
        space = self._space()
        if space is None or not space.settings.sliding or not self._state.writable:
            return
        ttl_ns = space.ttl_ns or 0
        left_ns = envelope.expires_ns - self._state.clock.now_ns()
        if left_ns >= ttl_ns - ttl_ns // _SLIDE_PARTS:
            return
        data = check_key(key)

        def run(_: Change, writer: KeyWriter | None) -> None:
            if writer is not None:
                writer.expire(data, lambda now_ns: now_ns + ttl_ns, only_if="longer")

        self._change_if_there(run)

    def _space(self) -> Space | None:
        record = self._get(self._record_key)
        if record is None:
            return None
        if self._known is None or self._known[0] != record:
            self._known = record, open_space(self._record_key, record)
        return self._known[1]

    def _find_prefix(self) -> bool:
        space = self._space()
        number = None if space is None else space.number
        if number != self._number:
            self._prefix = b"" if space is None else space.prefix
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

    def entry(self, key: str, *, peek: bool = False) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired.

        With ``peek`` this does not count as reading: a sliding TTL is left as it is.
        """
        self._find_prefix()
        envelope = self._envelope(key)
        if envelope is None:
            return None
        if envelope.expires_ns and not peek:
            self._slide(key, envelope)
        while True:
            try:
                return self._entry(key, envelope)
            except NotFound:
                newer = self._envelope(key)
                if newer is None:
                    return None
                if newer == envelope:
                    raise
                envelope = newer

    def _entry(self, key: str, envelope: Envelope) -> Entry:
        _, revision, _, created_ns, updated_ns, expires_ns, _ = envelope
        return Entry(key, self._state.value(envelope), revision, created_ns, updated_ns, expires_ns)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there, all as of one revision."""
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

        while True:
            envelopes = self._state.engine.read(run)
            try:
                return {key: self._state.value(found) for key, found in envelopes.items()}
            except NotFound:  # a spilled value was replaced meanwhile: all again, of one revision
                if self._state.engine.read(run) == envelopes:
                    raise

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, in the byte order of the keys.

        ``start`` is the first key wanted (the last, in reverse); ``limit`` how many at most. Pages
        are read as they are wanted; each page is one consistent moment. With ``revision`` or
        ``at``, as they were then: `Compacted` when that is not known of all of them any more.
        """
        _check_limit(limit)
        if revision is None and at is None:
            records = self._live_records(prefix, start, limit, reverse=reverse)
        else:
            past = self._past_records(prefix, start, _point(revision, at), reverse=reverse)
            records = islice(past, limit)
        for full, envelope in records:
            yield self._entry(full[9:].decode(), envelope)

    def _bounds(self, prefix: str, start: str | None, *, reverse: bool) -> tuple[bytes, bytes]:
        """Give the first record wanted, and the first not wanted."""
        begin = self._prefix + prefix.encode()
        low, high = begin, after_prefix(begin)
        if start is not None:
            edge = self._prefix + start.encode()
            low, high = (low, min(high, edge + _NEXT)) if reverse else (max(low, edge), high)
        return low, high

    def _live_records(
        self, prefix: str, start: str | None, limit: int | None, *, reverse: bool
    ) -> Iterator[tuple[bytes, Envelope]]:
        """Give the records of a scan that have not expired, opened but not decoded."""
        if not self._find_prefix():
            return
        low, high = self._bounds(prefix, start, reverse=reverse)
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

    def used(self) -> Used:
        """Give how much the namespace holds; what has expired counts until it is swept."""
        space = self._space()
        if space is None:
            return Used(0, 0)
        return Used(*self._state.usage(space.number)[:2])

    # The past

    def _floor(self, reader: Reader) -> tuple[int, int]:
        used = self._state.usage(self._number or 0, reader)
        return used.floor_revision, used.floor_ns

    def _get_past(self, key: str, default: Value, point: AsOf, as_type: Any) -> Value:
        data = check_key(key)
        if not self._find_prefix():
            return default
        number = self._number or 0
        while True:
            found = self._state.engine.read(
                lambda reader: as_of(
                    reader, number, data, self._timed(reader, point), self._floor(reader)
                )
            )
            if found is None:
                return default
            try:
                value = self._state.value(found)
            except NotFound:
                continue  # the version was dropped meanwhile
            return value if as_type is None else converted(value, as_type, key)

    def _timed(self, reader: Reader, point: AsOf) -> AsOf:
        """Add to a revision when it was committed, if that is still known."""
        if point.revision is None:
            return point
        return AsOf(point.revision, self._state.journal.moment_ns(reader, point.revision))

    def _past_records(
        self, prefix: str, start: str | None, point: AsOf, *, reverse: bool
    ) -> Iterator[tuple[bytes, Envelope]]:
        if not self._find_prefix():
            return
        number, skip = self._number or 0, len(self._prefix)
        low, high = self._bounds(prefix, start, reverse=reverse)

        def page(reader: Reader) -> tuple[list[tuple[bytes, Envelope]], bytes | None]:
            now = (full for full, _ in reader.scan(low, high, reverse=reverse))
            stop = b"" if high == after_prefix(self._prefix) else high[skip:]
            before = versioned_keys(reader, number, low[skip:], stop, reverse=reverse)
            merged = heapq.merge(now, (self._prefix + key for key in before), reverse=reverse)
            found: list[tuple[bytes, Envelope]] = []
            last, seen = None, 0
            timed, floor = self._timed(reader, point), self._floor(reader)
            check_reach(point, floor)
            for full in merged:
                if full == last:
                    continue
                if seen >= _PAGE:
                    return found, last
                last, seen = full, seen + 1
                envelope = as_of(reader, number, full[skip:], timed, floor)
                if envelope is not None:
                    found.append((full, envelope))
            return found, None

        last: bytes | None = b""
        while last is not None:
            records, last = self._state.engine.read(page)
            yield from records
            if last is not None:
                low, high = (low, last) if reverse else (last + _NEXT, high)

    def history(self, key: str, limit: int | None = None) -> list[Version]:
        """Give what is kept of the key's past, oldest first, the present last.

        ``limit`` gives only the newest. `configure` says how many versions are kept. A key that
        has expired is swept first, so that this is in it, too.
        """
        data = check_key(key)
        _check_limit(limit)
        if not self._find_prefix():
            return []
        number, full = self._number or 0, self._prefix + data
        record = self._get(full)
        if record is not None and self._state.writable:
            now_ns = self._state.clock.now_ns()
            if expired(open_envelope(full, record), now_ns):
                self._change_if_there(lambda change, writer: self._settle(change, writer, data))

        def run(reader: Reader) -> list[Envelope]:
            found = followed(reader, number, data)
            data_now = reader.get(full)
            return found if data_now is None else [*found, open_envelope(full, data_now)]

        envelopes = self._state.engine.read(run)
        if limit is not None:
            envelopes = envelopes[max(0, len(envelopes) - limit) :]
        return [self._version(envelope) for envelope in envelopes]

    @staticmethod
    def _settle(change: Change, writer: KeyWriter | None, data: bytes) -> None:
        """Carry out an expiry that is due, as a sweep would."""
        found = None if writer is None else writer.record(data)
        if writer is not None and found is not None and expired(found, change.at_ns):
            writer.remove_expired(data, found)

    def _version(self, envelope: Envelope) -> Version:
        gone = bool(envelope.form & GONE)
        return Version(
            envelope.revision,
            envelope.updated_ns,
            envelope.payload.decode() if gone else "set",
            None if gone else self._state.value(envelope),
            envelope.expires_ns,
        )

    def rollback(
        self, key: str, revision: int | None = None, *, at: datetime | float | None = None
    ) -> int:
        """Set the key to what it was then: a new revision, which is given.

        `NotFound` when it was absent then, `Compacted` when that is not known any more.
        """
        data = check_key(key)
        point = _point(revision, at)

        def run(change: Change, writer: KeyWriter | None) -> int:
            found = None
            if writer is not None:
                space = self._state.found(self._name_bytes, change)
                assert space is not None
                used = self._state.used(space.number, change)
                floor = used.floor_revision, used.floor_ns
                found = as_of(change.tx, space.number, data, self._timed(change.tx, point), floor)
            if found is None or writer is None:
                raise NotFound("key", f"{key} as of then")
            stored = journal_value(found)
            if isinstance(stored, Spilled):
                self._state.blobs.shift(change, stored.blob, {0: 2})
            return writer.set(data, stored, self._state.value(found))

        return int(self._change_if_there(run))

    # Writing

    def _change(
        self,
        function: Callable[[KeyWriter, Change, list[Spilled]], Any],
        large: Sequence[bytes] = (),
    ) -> Any:
        """Run the function with a writer in one commit; the namespace is made if need be."""
        state, name = self._state, self._name_bytes

        def run(change: Change, blobs: list[Spilled]) -> Any:
            writer = KeyWriter(state, change, state.made(name, change))
            result = function(writer, change, blobs)
            writer.finish()
            return result

        return state.commit(run, large)

    def _change_if_there(self, function: Callable[[Change, KeyWriter | None], Any]) -> Any:
        """Run the function in one commit, with a writer if there is such a namespace."""
        state, name = self._state, self._name_bytes

        def run(change: Change, _: list[Spilled]) -> Any:
            space = state.found(name, change)
            writer = None if space is None else KeyWriter(state, change, space)
            result = function(change, writer)
            if writer is not None:
                writer.finish()
            return result

        return state.commit(run)

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
        """Set the key; give the revision. Durable when this returns.

        Without ``ttl`` or ``expires_at`` it lives as long as the namespace's settings say, by
        default for ever; ``ttl=math.inf`` is for ever, ``keep_ttl`` as long as it did anyway.
        `Exists` with ``if_absent`` when the key is there, `NotFound` with ``if_present`` when it is
        not, `Conflict` when its revision is not ``if_revision`` (0: absent).
        """
        data = check_key(key)
        payload, value = encode_value(value)
        state, name = self._state, self._name_bytes
        if ttl is not None or expires_at is not None:  # refuse it before anything is written
            deadline_ns(state.clock.now_ns(), ttl, expires_at)
        conditions = None
        if if_absent or if_present or if_revision is not None:
            conditions = Conditions(absent=if_absent, present=if_present, revision=if_revision)

        def run(change: Change, blobs: list[Spilled]) -> int:
            writer = KeyWriter(state, change, state.made(name, change))
            revision = writer.set(
                data,
                blobs[0] if blobs else payload,
                value,
                ttl=ttl,
                expires_at=expires_at,
                keep_ttl=keep_ttl,
                conditions=conditions,
            )
            writer.finish()
            return revision

        return state.commit(run, (payload,) if len(payload) > state.inline_bytes_max else ())

    def _encoded(
        self, mapping: Mapping[str, Value]
    ) -> tuple[list[tuple[bytes, bytes | int, Value]], list[bytes]]:
        """Give (key, payload or number of a large one, value) each, and the large ones."""
        large: list[bytes] = []
        pairs: list[tuple[bytes, bytes | int, Value]] = []
        limit = self._state.inline_bytes_max
        for key, given in mapping.items():
            data = check_key(key)
            payload, value = encode_value(given)
            if len(payload) > limit:
                pairs.append((data, len(large), value))
                large.append(payload)
            else:
                pairs.append((data, payload, value))
        return pairs, large

    def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision."""
        pairs, large = self._encoded(mapping)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(writer: KeyWriter, change: Change, blobs: list[Spilled]) -> int:
            for data, payload, value in pairs:
                stored = blobs[payload] if isinstance(payload, int) else payload
                writer.set(data, stored, value, ttl=ttl, expires_at=expires_at)
            return change.revision

        if not pairs:
            return self._state.journal.revision()
        revision: int = self._change(run, large)
        return revision

    def upsert_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> Upserted:
        """Set those of these keys that are absent or have another value, in one transaction.

        A key that has this value already costs no write, no revision and keeps its expiry.
        """
        pairs, large = self._encoded(mapping)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(writer: KeyWriter, change: Change, blobs: list[Spilled]) -> Upserted:
            counts = {"new": 0, "changed": 0, "unchanged": 0}
            for data, payload, value in pairs:
                stored = blobs[payload] if isinstance(payload, int) else payload
                old = writer.live(data)
                if old is not None and self._is(old, stored, value):
                    counts["unchanged"] += 1
                    if isinstance(stored, Spilled):
                        self._state.blobs.shift(change, stored.blob, {0: -2})
                    continue
                writer.set(data, stored, value, ttl=ttl, expires_at=expires_at)
                counts["new" if old is None else "changed"] += 1
            return Upserted(len(pairs), **counts)

        upserted: Upserted = self._change(run, large)
        return upserted

    def _is(self, old: Envelope, stored: bytes | Spilled, value: Value) -> bool:
        if isinstance(stored, bytes) and not old.form & SPILLED:
            if stored == old.payload:
                return True
            if len(stored) != len(old.payload):
                return False
        found = self._state.value(old)
        return bool(found == value) and encode_value(found)[0] == _canonical(found, value)

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        data = check_key(key)

        def run(_: Change, writer: KeyWriter | None) -> bool:
            if writer is None:
                if if_revision:
                    raise Conflict(key, f"expected revision {if_revision}, it is absent")
                return False
            return writer.delete(data, if_revision)

        return bool(self._change_if_there(run))

    def delete_prefix(self, prefix: str) -> int:
        """Delete the keys that begin with ``prefix``, in one transaction; say how many."""
        data = _prefix_bytes(prefix)

        def run(_: Change, writer: KeyWriter | None) -> int:
            return 0 if writer is None else writer.delete_prefix(data)

        return int(self._change_if_there(run))

    def clear(self) -> None:
        """Delete every key, in one transaction."""
        self.delete_prefix("")

    def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        """Let the key expire after so many seconds, or at a moment; say whether that is so now.

        False when the key is absent, or not as ``only_if`` wants: ``absent`` or ``present`` (an
        expiry), ``longer`` or ``shorter`` (than it would live anyway). The key's value, revision
        and modification time stay.
        """
        if ttl is None and expires_at is None:
            raise InvalidValue("expire", "give ttl or expires_at")
        check_only_if(only_if)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)
        return self._set_expiry(
            key, lambda now_ns: deadline_ns(now_ns, ttl, expires_at), only_if, if_revision
        )

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return self._set_expiry(key, lambda _now_ns: NEVER)

    def touch(self, key: str, ttl: float | timedelta | None = None) -> bool:
        """Let the key live for ``ttl``, or the namespace's TTL, from now on; say if it was there.

        Without either it keeps the expiry that it has.
        """
        if ttl is None:
            space = self._space()
            ttl = None if space is None else space.settings.ttl
        if ttl is None:
            return self._is_there(key)
        return self.expire(key, ttl)

    def _is_there(self, key: str) -> bool:
        """Say whether the key is there."""
        self._find_prefix()
        return self._envelope(key) is not None

    def _set_expiry(
        self,
        key: str,
        deadline: Callable[[int], int],
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        data = check_key(key)

        def run(_: Change, writer: KeyWriter | None) -> bool:
            if writer is None:
                return False
            return writer.expire(data, deadline, only_if=only_if, if_revision=if_revision)

        return bool(self._change_if_there(run))

    def expire_prefix(
        self,
        prefix: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Let all keys that begin with ``prefix`` expire then, in one transaction; say how many."""
        if ttl is None and expires_at is None:
            raise InvalidValue("expire_prefix", "give ttl or expires_at")
        data = _prefix_bytes(prefix)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(_: Change, writer: KeyWriter | None) -> int:
            if writer is None:
                return 0
            return writer.expire_prefix(data, lambda now_ns: deadline_ns(now_ns, ttl, expires_at))

        return int(self._change_if_there(run))

    def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL and creation time go with it. The revision is given.

        `NotFound` when it is absent; `Exists` when the new name is taken, unless ``replace``.
        """
        source, target = check_key(old), check_key(new)

        def run(_: Change, writer: KeyWriter | None) -> int:
            if writer is None:
                raise NotFound("key", old)
            return writer.rename(source, target, replace=replace)

        return int(self._change_if_there(run))

    def increment(
        self, key: str, by: Any = 1, *, default: Any = 0, ttl: float | timedelta | None = None
    ) -> Any:
        """Add to the number under the key, atomically; give the new one.

        An absent key counts from ``default`` and lives for ``ttl``, or as its namespace says; the
        expiry of one that is there stays. `InvalidValue` when there is no number.
        """
        data = check_key(key)
        increased(key, default, by)
        deadline_ns(self._state.clock.now_ns(), ttl, None)

        def run(writer: KeyWriter, _change: Change, _blobs: list[Spilled]) -> Any:
            old = writer.live(data)
            value = increased(key, default if old is None else writer.value(old), by)
            payload, value = encode_value(value)
            _check_inline(key, payload, self._state.inline_bytes_max)
            kept = old is not None
            writer.set(data, payload, value, ttl=None if kept else ttl, keep_ttl=kept)
            return value

        return self._change(run)

    def append(self, key: str, *items: Value, limit: int | None = None) -> int:
        """Append to the list under the key, atomically; give its length.

        An absent key is an empty list; ``limit`` keeps only the last so many. `InvalidValue` when
        there is no list, or it gets too large for one record: set it as a whole then.
        """
        data = check_key(key)
        _check_limit(limit)

        def run(writer: KeyWriter, _change: Change, _blobs: list[Spilled]) -> int:
            old = writer.live(data)
            value = [] if old is None else writer.value(old)
            if not isinstance(value, list):
                raise InvalidValue(f"value of {key!r}", f"{type(value).__name__} is no list")
            value += items
            if limit is not None:
                value = value[max(0, len(value) - limit) :]
            payload, value = encode_value(value)
            _check_inline(key, payload, self._state.inline_bytes_max)
            writer.set(data, payload, value, keep_ttl=True)
            return len(value)

        return int(self._change(run))

    # Finding

    def find(
        self,
        *,
        limit: int | None = None,
        after: Entry | Place | None = None,
        reverse: bool = False,
        where: Mapping[str, Value] | None = None,
        **fields: Value,
    ) -> Iterator[Entry]:
        """Give the entries with these values in indexed fields, in the order of the first index.

        ``find(stage="failed")``, ``find(where={"meta.owner": "ada"})``; a `Range` is in the order
        of its values. ``after`` is the entry after which to go on: the last of the page before.
        """
        _check_limit(limit)
        space = self._space()
        if space is None:
            return
        search = Search(space, {**(where or {}), **fields})
        low, high = search.start, search.stop
        if after is not None:
            edge = search.place(check_key(after.key), after.value)
            low, high = (low, edge) if reverse else (edge + b"\0", high)
        left = limit
        while left is None or left > 0:
            found, last = self._found(space, low, high, reverse=reverse)
            for entry, envelope in found:
                key = key_of_entry(entry)[1].decode()
                shown = self._entry(key, envelope)
                if search.fits(entry, shown.value):
                    yield shown
                    left = None if left is None else left - 1
                    if left == 0:
                        return
            if last is None:
                return
            low, high = (low, last) if reverse else (last + b"\0", high)

    def _found(
        self, space: Space, low: bytes, high: bytes, *, reverse: bool
    ) -> tuple[list[tuple[bytes, Envelope]], bytes | None]:
        """Give one page of index entries with their live records, and where it ended."""
        return self._state.engine.read(
            lambda reader: self._found_in(reader, space, low, high, reverse=reverse)
        )

    def _found_in(
        self, reader: Reader, space: Space, low: bytes, high: bytes, *, reverse: bool
    ) -> tuple[list[tuple[bytes, Envelope]], bytes | None]:
        now_ns = self._state.clock.now_ns()
        found: list[tuple[bytes, Envelope]] = []
        count, entry = 0, None
        for entry, _ in islice(reader.scan(low, high, reverse=reverse), _PAGE):
            count += 1
            full = space.prefix + key_of_entry(entry)[1]
            record = reader.get(full)
            if record is not None:
                envelope = open_envelope(full, record)
                if not expired(envelope, now_ns):
                    found.append((entry, envelope))
        return found, entry if count == _PAGE else None

    # Settings

    def settings(self) -> NamespaceSettings:
        """Give the namespace's settings: what `configure` of the store changes."""
        space = self._space()
        return NamespaceSettings() if space is None else space.settings

    # The mapping

    def __iter__(self) -> Iterator[str]:
        return (full[9:].decode() for full, _ in self._live_records("", None, None, reverse=False))

    def __len__(self) -> int:
        """Count: what is kept, less what has expired and was not swept yet."""
        space = self._space()
        if space is None:
            return 0

        def run(reader: Reader) -> int:
            keys = self._state.usage(space.number, reader).keys
            stop = expiry_key(self._state.clock.now_ns() + 1, 0, b"")
            due = (parse_expiry(key) for key, _ in reader.scan(b"E", stop))
            return keys - sum(1 for _, number, _ in due if number == space.number)

        return self._state.engine.read(run)


def _point(revision: int | None, at: datetime | float | None) -> AsOf:
    if (revision is None) == (at is None):
        raise InvalidValue("revision", "give revision or at, one of them")
    if revision is not None:
        if isinstance(revision, bool) or not isinstance(revision, int) or revision < 0:
            raise InvalidValue("revision", f"{revision!r} is no revision")
        return AsOf(revision, None)
    assert at is not None
    return AsOf(None, time_to_ns(at, "at"))


def _check_limit(limit: object) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise InvalidValue("limit", f"{limit!r} is no number of entries")


def _check_inline(key: str, payload: bytes, limit: int) -> None:
    if len(payload) > limit:
        raise InvalidValue(
            f"value of {key!r}", f"it would have {len(payload)} bytes, {limit} fit: set it whole"
        )


def _prefix_bytes(prefix: object) -> bytes:
    if not isinstance(prefix, str):
        raise InvalidName("key prefix", prefix, f"it is {type(prefix).__name__}, not text")
    try:
        return prefix.encode()
    except UnicodeEncodeError:
        raise InvalidName("key prefix", prefix, "it is not valid UTF-8") from None


def _canonical(found: Value, value: Value) -> bytes:
    """Give the bytes of ``value`` with its mappings in the order of ``found``: 1 is not 1.0."""
    return encode_value(_reordered(found, value))[0]


def _reordered(found: Value, value: Value) -> Value:
    if isinstance(found, dict) and isinstance(value, dict):
        return {key: _reordered(found[key], value[key]) for key in found if key in value}
    if isinstance(found, list) and isinstance(value, list | tuple):
        return [_reordered(*pair) for pair in zip(found, value, strict=True)]
    return value
