"""Several changes as one: reads are remembered, writes are kept back, `commit` checks and applies.

The same over both doors. Nothing is locked while a transaction is open. At the end one commit
verifies that every key that was read still has the revision that was seen, and every range the same
keys, and writes all or nothing: `Conflict` when somebody came in between.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

from kvstate.clock import deadline_ns
from kvstate.codec import decode
from kvstate.errors import Conflict, Exists, InvalidValue, NotFound, StateError
from kvstate.key_mapping import KeyMapping
from kvstate.key_past import bounds
from kvstate.keys import KeyWriter, increased
from kvstate.names import check_key, check_namespace
from kvstate.records import open_envelope
from kvstate.state import Entry, expired
from kvstate.typed import converted, encode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from types import TracebackType

    from kvstate.codec import Value
    from kvstate.journal import Change, Spilled
    from kvstate.state import State

__all__ = ["Seen", "SeenRange", "Transaction", "TransactionNamespace", "Write", "apply", "transact"]

T = TypeVar("T")
TRIES = 100
_MISSING: Any = object()


class Seen(NamedTuple):
    """A key that was read: its revision then, 0 when it was absent."""

    namespace: str
    key: str
    revision: int


class SeenRange(NamedTuple):
    """A range that was read: the keys that were there, in order, with their revisions."""

    namespace: str
    prefix: str
    start: str | None
    limit: int | None
    reverse: bool
    found: list[tuple[str, int]]


SET, DELETE, EXPIRE = "set", "delete", "expire"


class Write(NamedTuple):
    """What a key is to become: ``kind`` is set, delete, or expire (which leaves the value)."""

    namespace: str
    key: str
    kind: str
    value: Value = None
    ttl: float | None = None
    expires_at: datetime | float | None = None
    keep_ttl: bool = False


class Transaction:
    """Reads and writes that take effect together, when the ``with`` block ends, or not at all."""

    def __init__(
        self,
        namespace: Callable[[str], Any],
        commit: Callable[[list[Seen], list[SeenRange], list[Write]], int],
    ) -> None:
        self._namespace = namespace
        self._commit = commit
        self._spaces: dict[str, TransactionNamespace] = {}
        self._done = False
        self.revision: int | None = None
        """The revision of the commit, afterwards; None if there was nothing to write."""

    def namespace(self, name: str) -> TransactionNamespace:
        """Give a namespace as this transaction sees it."""
        check_namespace(name)
        found = self._spaces.get(name)
        if found is None:
            found = self._spaces[name] = TransactionNamespace(name, self._namespace(name), self)
        return found

    def check_open(self) -> None:
        """Raise `Conflict` when the transaction is over."""
        if self._done:
            raise Conflict("transaction", "it is over: begin another")

    def commit(self) -> None:
        """Check what was read, and write what is to be written."""
        self.check_open()
        self._done = True
        spaces = self._spaces.values()
        writes = [write for space in spaces for write in space.writes.values()]
        seen = [read for space in spaces for read in space.seen.values()]
        ranges = [read for space in spaces for read in space.ranges]
        if writes:
            self.revision = self._commit(seen, ranges, writes)

    def rollback(self) -> None:
        """Forget it all."""
        self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._done:
            self.commit()
        self._done = True


class TransactionNamespace(KeyMapping):
    """A namespace within a transaction: it reads what the transaction writes."""

    def __init__(self, name: str, real: Any, transaction: Transaction) -> None:
        self.name = name
        self._real = real
        self._transaction = transaction
        self.seen: dict[str, Seen] = {}
        self.ranges: list[SeenRange] = []
        self.writes: dict[str, Write] = {}

    def _read(self, key: str) -> Entry | None:
        self._transaction.check_open()
        entry: Entry | None = self._real.entry(key)
        revision = 0 if entry is None else entry.revision
        before = self.seen.setdefault(key, Seen(self.name, key, revision))
        if before.revision != revision:
            raise Conflict(key, "it was changed since this transaction read it")
        return entry

    def get(self, key: str, default: Any = None, *, as_type: Any = None) -> Value:
        """Give the key's value; the default when it is absent."""
        write = self.writes.get(key)
        if write is None or write.kind == EXPIRE:
            entry = self._read(key)
            value = _MISSING if entry is None else entry.value
        elif write.kind == DELETE:
            value = _MISSING
        else:
            value = _copy(write.value)
        if value is _MISSING:
            return default
        return value if as_type is None else converted(value, as_type, key)

    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times, as it was before this transaction."""
        return self._read(key)

    def now(self) -> datetime:
        """Give the time by the store's clock, in UTC."""
        now: datetime = self._real.now()
        return now

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there."""
        found = {key: self.get(key, _MISSING) for key in keys}
        return {key: value for key, value in found.items() if value is not _MISSING}

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, with what this transaction wrote.

        What it wrote has the revision 0 and no times.
        """
        self._transaction.check_open()
        own = [w for k, w in self.writes.items() if k.startswith(prefix) and w.kind != EXPIRE]
        more = None if limit is None else limit + len(own)
        real = list(self._real.scan(prefix, start=start, limit=more, reverse=reverse))
        pairs = [(entry.key, entry.revision) for entry in real]
        self.ranges.append(SeenRange(self.name, prefix, start, more, reverse, pairs))
        found = {entry.key: entry for entry in real}
        for write in own:
            found.pop(write.key, None)
            within = start is None or (
                write.key.encode() <= start.encode()
                if reverse
                else write.key.encode() >= start.encode()
            )
            if write.kind == SET and within:
                found[write.key] = Entry(write.key, _copy(write.value), 0, 0, 0, 0)
        ordered = sorted(found, key=str.encode, reverse=reverse)
        return iter([found[key] for key in ordered[:limit]])

    def set(
        self,
        key: str,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        keep_ttl: bool = False,
    ) -> int:
        """Set the key when the transaction commits; 0 stands for the revision that it will have."""
        self._transaction.check_open()
        check_key(key)
        deadline_ns(1, ttl, expires_at)
        if if_absent and key in self:
            raise Exists("key", key)
        if if_present and key not in self:
            raise NotFound("key", key)
        value = _copy(value)
        write = Write(self.name, key, SET, value, _seconds(ttl), expires_at, keep_ttl)
        before = self.writes.get(key)
        if keep_ttl and ttl is None and expires_at is None and before is not None:
            write = write._replace(
                ttl=before.ttl, expires_at=before.expires_at, keep_ttl=before.keep_ttl
            )
        self.writes[key] = write
        return 0

    def set_many(self, mapping: dict[str, Value], *, ttl: float | None = None) -> int:
        """Set all these keys when the transaction commits."""
        for key, value in mapping.items():
            self.set(key, value, ttl=ttl)
        return 0

    def delete(self, key: str) -> bool:
        """Delete the key when the transaction commits; say whether it is there."""
        there = key in self
        if there:
            self.writes[key] = Write(self.name, key, DELETE)
        return there

    def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> bool:
        """Let the key expire so many seconds after the commit, or then; say if it is there."""
        if ttl is None and expires_at is None:
            raise InvalidValue("expire", "give ttl or expires_at")
        deadline_ns(1, ttl, expires_at)
        if key not in self:
            return False
        before = self.writes.get(key) or Write(self.name, key, EXPIRE)
        self.writes[key] = before._replace(ttl=_seconds(ttl), expires_at=expires_at, keep_ttl=False)
        return True

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it is there."""
        return self.expire(key, math.inf)

    def increment(self, key: str, by: Any = 1, *, default: Any = 0) -> Any:
        """Add to the number under the key; give the new one."""
        value = increased(key, self.get(key, default), by)
        self.set(key, value, keep_ttl=True)
        return value

    def append(self, key: str, *items: Value) -> int:
        """Append to the list under the key; give its length."""
        value = self.get(key, [])
        if not isinstance(value, list):
            raise InvalidValue(f"value of {key!r}", f"{type(value).__name__} is no list")
        self.set(key, [*value, *items], keep_ttl=True)
        return len(value) + len(items)

    def _changed(self, key: str, function: Callable[[Value], Value]) -> Value:
        value = function(self.get(key))
        self.set(key, value, keep_ttl=True)
        return value

    def pop(self, key: str, default: Any = _MISSING) -> Value:
        """Remove the key and give its value."""
        value = self.get(key, default)
        if value is _MISSING:
            raise NotFound("key", key)
        self.delete(key)
        return value

    def clear(self) -> None:
        """Delete every key."""
        for key in list(self):
            self.delete(key)

    def __iter__(self) -> Iterator[str]:
        return (entry.key for entry in self.scan())

    def __len__(self) -> int:
        return sum(1 for _ in self.scan())


def transact(begin: Callable[[], Transaction], function: Callable[[Transaction], T]) -> T:
    """Run the function in a transaction, again when it met a conflict; give its result.

    It may run many times: it has no effect but through the transaction.
    """
    for _ in range(TRIES - 1):
        transaction = begin()
        try:
            with transaction:
                return function(transaction)
        except Exists:
            raise  # somebody has the name: that will not change by itself
        except Conflict:
            continue
    with begin() as transaction:
        return function(transaction)


# Applying


def apply(state: State, seen: list[Seen], ranges: list[SeenRange], writes: list[Write]) -> int:
    """Check what was seen, and carry the writes out, in one commit; give its revision."""
    prepared, large = _prepared(state, writes)

    def run(change: Change, blobs: list[Spilled]) -> int:
        for read in seen:
            _check_seen(state, change, read)
        for covered in ranges:
            _check_range(state, change, covered)
        writers: dict[bytes, KeyWriter] = {}
        for name, key, payload, write in prepared:
            writer = writers.get(name)
            if writer is None:
                writer = writers[name] = KeyWriter(state, change, state.made(name, change))
            if write.kind == DELETE:
                writer.delete(key)
                continue
            if write.kind == EXPIRE:
                _expire(writer, key, write)
                continue
            stored = blobs[payload] if isinstance(payload, int) else payload
            writer.set(
                key,
                stored,
                write.value,
                ttl=write.ttl,
                expires_at=write.expires_at,
                keep_ttl=write.keep_ttl,
            )
        for writer in writers.values():
            writer.finish()
        return change.revision

    return state.commit(run, large)


Prepared: TypeAlias = "tuple[bytes, bytes, bytes | int, Write]"
"""A write, its namespace's and key's bytes, and its payload or the number of a large one."""


def _prepared(state: State, writes: list[Write]) -> tuple[list[Prepared], list[bytes]]:
    """Check the writes, and encode their values; give them, and the large values."""
    large: list[bytes] = []
    prepared: list[Prepared] = []
    for write in writes:
        name, key = check_namespace(write.namespace), check_key(write.key)
        payload: bytes | int = b""
        if write.kind not in {SET, DELETE, EXPIRE}:
            raise InvalidValue("transaction", f"{write.kind!r} is no kind of write")
        deadline_ns(state.clock.now_ns(), write.ttl, write.expires_at)
        if write.kind == SET:
            payload, _ = encode_value(write.value)
            if len(payload) > state.inline_bytes_max:
                large.append(payload)
                payload = len(large) - 1
        prepared.append((name, key, payload, write))
    return prepared, large


def _expire(writer: KeyWriter, key: bytes, write: Write) -> None:
    writer.expire(key, lambda now_ns: deadline_ns(now_ns, write.ttl, write.expires_at))


def _copy(value: Value) -> Value:
    """Give a value as it would be read: what its owner does with it later changes nothing."""
    return decode(encode_value(value)[0])


def _seconds(ttl: float | timedelta | None) -> float | None:
    return ttl.total_seconds() if isinstance(ttl, timedelta) else ttl


def _check_seen(state: State, change: Change, read: Seen) -> None:
    space = state.found(check_namespace(read.namespace), change)
    envelope = None if space is None else change.open(space.prefix + check_key(read.key))
    if envelope is not None and expired(envelope, change.at_ns):
        envelope = None
    revision = 0 if envelope is None else envelope.revision
    if revision != read.revision:
        raise Conflict(read.key, "it was changed since this transaction read it")


def _check_range(state: State, change: Change, read: SeenRange) -> None:
    space = state.found(check_namespace(read.namespace), change)
    found: list[tuple[str, int]] = []
    if space is not None:
        low, high = bounds(space.prefix, read.prefix, read.start, reverse=read.reverse)
        for full, record in change.tx.scan(low, high, reverse=read.reverse):
            if read.limit is not None and len(found) >= read.limit:
                break
            envelope = open_envelope(full, record)
            if not expired(envelope, change.at_ns):
                found.append((full[len(space.prefix) :].decode(), envelope.revision))
    if found != [(key, revision) for key, revision in read.found]:
        raise Conflict(
            f"{read.namespace}/{read.prefix}*", "keys there were changed since they were read"
        )


def checked(seen: Any, ranges: Any, writes: Any) -> tuple[list[Seen], list[SeenRange], list[Write]]:
    """Give what came over a wire in its own form; `InvalidValue` when it has another."""
    try:
        return (
            [Seen(*row) for row in seen],
            [_range_of(*row) for row in ranges],
            [Write(*row) for row in writes],
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, StateError):
            raise
        raise InvalidValue("transaction", f"not of the form that it needs: {error}") from None


def _range_of(
    namespace: str,
    prefix: str,
    start: str | None,
    limit: int | None,
    reverse: bool,  # noqa: FBT001  (as on the wire)
    found: Any,
) -> SeenRange:
    return SeenRange(namespace, prefix, start, limit, reverse, [(k, r) for k, r in found])
