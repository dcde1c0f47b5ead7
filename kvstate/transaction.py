"""Several changes as one: reads are remembered, writes are kept back, `commit` checks and applies.

The same over both doors. Nothing is locked while a transaction is open. At the end one commit
verifies that every key that was read still has the revision that was seen, and every range the same
keys, and writes all or nothing: `Conflict` when somebody came in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

from kvstate.clock import deadline_ns
from kvstate.errors import Conflict, InvalidValue, NotFound, StateError
from kvstate.key_mapping import KeyMapping
from kvstate.keys import KeyWriter, increased
from kvstate.keyspace import after_prefix
from kvstate.names import check_key, check_namespace
from kvstate.records import open_envelope
from kvstate.state import Entry, expired
from kvstate.typed import converted, encode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime, timedelta
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
    limit: int | None
    found: list[tuple[str, int]]


class Write(NamedTuple):
    """What a key is to become; ``delete`` leaves out the rest."""

    namespace: str
    key: str
    delete: bool
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
        if write is not None:
            value = _MISSING if write.delete else write.value
        else:
            entry = self._read(key)
            value = _MISSING if entry is None else entry.value
        if value is _MISSING:
            return default
        return value if as_type is None else converted(value, as_type, key)

    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times, as it was before this transaction."""
        return self._read(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there."""
        found = {key: self.get(key, _MISSING) for key in keys}
        return {key: value for key, value in found.items() if value is not _MISSING}

    def scan(self, prefix: str = "", *, limit: int | None = None) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, with what this transaction wrote.

        What it wrote has the revision 0 and no times.
        """
        self._transaction.check_open()
        own = sorted(k for k in self.writes if k.startswith(prefix))
        more = None if limit is None else limit + len(own)
        real = list(self._real.scan(prefix, limit=more))
        pairs = [(entry.key, entry.revision) for entry in real]
        self.ranges.append(SeenRange(self.name, prefix, more, pairs))
        found = {entry.key: entry for entry in real}
        for key in own:
            write = self.writes[key]
            found.pop(key, None)
            if not write.delete:
                found[key] = Entry(key, write.value, 0, 0, 0, 0)
        ordered = sorted(found, key=str.encode)
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
            raise Conflict(key, "it is there")
        if if_present and key not in self:
            raise NotFound("key", key)
        _, value = encode_value(value)
        seconds = ttl if ttl is None or isinstance(ttl, int | float) else ttl.total_seconds()
        self.writes[key] = Write(self.name, key, False, value, seconds, expires_at, keep_ttl)
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
            self.writes[key] = Write(self.name, key, True)
        return there

    def expire(self, key: str, ttl: float | timedelta) -> bool:
        """Let the key expire so many seconds after the commit; say whether it is there."""
        value = self.get(key, _MISSING)
        if value is _MISSING:
            return False
        self.set(key, value, ttl=ttl)
        return True

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
            if write.delete:
                writer.delete(key)
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
        if not write.delete:
            deadline_ns(state.clock.now_ns(), write.ttl, write.expires_at)
            payload, _ = encode_value(write.value)
            if len(payload) > state.inline_bytes_max:
                large.append(payload)
                payload = len(large) - 1
        prepared.append((name, key, payload, write))
    return prepared, large


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
        start = space.prefix + read.prefix.encode()
        for full, record in change.tx.scan(start, after_prefix(start)):
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
            [SeenRange(n, p, m, [(k, r) for k, r in found]) for n, p, m, found in ranges],
            [Write(*row) for row in writes],
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, StateError):
            raise
        raise InvalidValue("transaction", f"not of the form that it needs: {error}") from None
