"""All namespaces of a store: their records, what they count, and how their keys are committed.

A key that has expired is hidden from the moment it expires, by every reader; the sweep that removes
its record (and writes the journal's ``expire``) comes later, in due order, from an index
(`kvstate.expiry`). The index is a hint: the record decides.

Values up to ``inline_bytes_max`` lie in the record, larger ones in a blob, unseen by the caller.
"""

from __future__ import annotations

from contextlib import ExitStack
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kvstate.clock import NEVER, datetime_of
from kvstate.codec import Value, decode, seal, unseal
from kvstate.journal import DUE, Spilled
from kvstate.keyspace import after_prefix, namespace_key, usage_key
from kvstate.names import check_namespace
from kvstate.records import SPILLED, Envelope
from kvstate.space import NamespaceSettings, Space, made_space, open_space, space_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from kvstate.blobs import Blobs
    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader
    from kvstate.journal import Change, Journal

__all__ = [
    "USAGE",
    "ArchiveFirst",
    "Entry",
    "State",
    "Usage",
    "expired",
    "journal_value",
    "unpack_usage",
]

T = TypeVar("T")

_PAGE = 512
USAGE = Struct(">QQQQ")


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


class Usage(NamedTuple):
    """What is counted of a namespace: keys (also expired ones until they are swept) and bytes.

    Before ``floor_revision`` (at ``floor_ns``) its history has gaps.
    """

    keys: int = 0
    bytes: int = 0
    floor_revision: int = 0
    floor_ns: int = 0


class ArchiveFirst(Exception):
    """An expired key is about to be written over, but its last value has to become an artifact.

    Raised within a commit, which is then rolled back; never leaves `State.commit`.
    """

    def __init__(self, number: int, data: bytes) -> None:
        super().__init__(number, data)
        self.number = number
        self.data = data


class State:
    """All namespaces of a store."""

    def __init__(
        self, engine: Engine, journal: Journal, blobs: Blobs, clock: Clock, inline_bytes_max: int
    ) -> None:
        self.engine = engine
        self.journal = journal
        self.blobs = blobs
        self.clock = clock
        self.inline_bytes_max = inline_bytes_max
        self.writable = True
        self.sweep_some: Callable[[Change], object] = lambda _change: None
        """What to call within a commit when some keys have expired."""
        self.archive: Callable[[int, bytes], None] = lambda _number, _data: None
        """What to call before an expired key is written over that has to be archived."""

    # Committing

    def commit(
        self,
        function: Callable[[Change, list[Spilled]], T],
        large: Sequence[bytes] = (),
    ) -> T:
        """Run the function in a commit, with a blob for each large value.

        A blob comes with two references: one for the record, one for the journal. What has expired
        goes in the same commit.
        """
        while True:
            try:
                return self._commit(function, large)
            except ArchiveFirst as error:
                self.archive(error.number, error.data)

    def _commit(self, function: Callable[[Change, list[Spilled]], T], large: Sequence[bytes]) -> T:
        sweep_some = self.sweep_some
        if not large:

            def run(change: Change) -> T:
                result = function(change, [])
                if change.tx.memo.get(DUE, 0) <= change.at_ns:
                    sweep_some(change)
                return result

            return self.journal.commit(run)
        with ExitStack() as stack:
            stagings = []
            for payload in large:
                staging = self.blobs.staging(0)
                stack.callback(staging.discard)
                staging.write(0, payload)
                stagings.append(staging)
            return self.blobs.commit_many(
                self.journal,
                stagings,
                0,
                lambda change, stored: function(change, [Spilled(blob) for _, blob in stored]),
                references=2,
            )

    # Namespaces

    def names(self) -> Iterator[str]:
        """Give the namespaces' names in byte order."""
        start, stop = namespace_key(b""), after_prefix(namespace_key(b""))
        while page := self.engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                yield key[1:].decode()
            start = page[-1][0] + b"\0"

    def space(self, name: bytes, reader: Reader | Engine | None = None) -> Space | None:
        """Give a namespace; None when there is none of this name."""
        key = namespace_key(name)
        data = (reader or self.engine).get(key)
        return None if data is None else open_space(key, data)

    def found(self, name: bytes, change: Change) -> Space | None:
        """Give a namespace within a change; None when there is none of this name."""
        memo = change.tx.memo
        space: Space | None = memo.get(name)
        if space is None:
            space = memo[name] = self.space(name, change.tx)
        return space

    def made(self, name: bytes, change: Change) -> Space:
        """Give a namespace within a change; make it if there is none of this name."""
        space = self.found(name, change)
        if space is None:
            text = check_namespace(name.decode()).decode()
            space = made_space(text, change.new_id(), NamespaceSettings(), ())
            self.put_space(change, space)
        return space

    def put_space(self, change: Change, space: Space) -> None:
        """Write a namespace's record."""
        name = space.name.encode()
        change.seal(namespace_key(name), space_payload(space))
        change.tx.memo[name] = space

    def numbered(self, reader: Reader, number: int) -> Space | None:
        """Give the namespace with this identity; None when there is none."""
        for key, data in reader.scan(b"N", b"O"):
            space = open_space(key, data)
            if space.number == number:
                return space
        return None

    def by_number(self, change: Change, number: int) -> Space | None:
        """Give the namespace with this identity, within a change."""
        memo = change.tx.memo
        name = memo.get(number)
        if name is None:
            for key, data in change.tx.scan(b"N", b"O"):
                memo[open_space(key, data).number] = key[1:]
            name = memo.get(number)
        return None if name is None else self.found(name, change)

    # What is counted

    def totals(self) -> tuple[int, int]:
        """Give how many keys all namespaces have together, and how many bytes."""
        keys = size = 0
        start = usage_key(0)
        while page := self.engine.scan(start, after_prefix(start[:1]), limit=_PAGE):
            for key, data in page:
                used = unpack_usage(key, data)
                keys, size = keys + used.keys, size + used.bytes
            start = page[-1][0] + b"\0"
        return keys, size

    def usage(self, number: int, reader: Reader | Engine | None = None) -> Usage:
        """Give what is counted of a namespace."""
        key = usage_key(number)
        data = (reader or self.engine).get(key)
        return Usage() if data is None else unpack_usage(key, data)

    def used(self, number: int, change: Change) -> Usage:
        """Give what is counted of a namespace, within a change."""
        memo = change.tx.memo
        found: Usage | None = memo.get(("usage", number))
        if found is None:
            found = memo["usage", number] = self.usage(number, change.tx)
        return found

    def put_usage(self, change: Change, number: int, usage: Usage) -> None:
        """Write what is counted of a namespace."""
        key = usage_key(number)
        change.tx.put(key, seal(key, USAGE.pack(*usage)))
        change.tx.memo["usage", number] = usage

    # Values

    def value(self, envelope: Envelope) -> Value:
        """Give the value that a record holds, wherever it lies."""
        if envelope.form & SPILLED:
            return decode(self.blobs.load(envelope.payload))
        return decode(envelope.payload)

    def size(self, change: Change, key: bytes, value: bytes | Spilled) -> int:
        """Give the bytes that a key counts for: its own, and those of its value."""
        if isinstance(value, Spilled):
            record = self.blobs.record(change.tx, value.blob)
            return len(key) + (0 if record is None else record.size)
        return len(key) + len(value)

    def shifter(self, change: Change) -> Callable[[bytes, int], None]:
        """Give what changes a blob's references on behalf of keys."""
        return lambda blob, by: self.blobs.shift(change, blob, {0: by})


def unpack_usage(key: bytes, data: bytes) -> Usage:
    """Open the record of what is counted of a namespace."""
    return Usage(*USAGE.unpack(unseal(key, data)))


def journal_value(envelope: Envelope) -> bytes | Spilled:
    """Give a record's value for the journal; a spilled value's reference goes over to it."""
    return Spilled(envelope.payload) if envelope.form & SPILLED else envelope.payload


def expired(envelope: Envelope, now_ns: int) -> bool:
    """Say whether a key is hidden by now."""
    return envelope.expires_ns != NEVER and envelope.expires_ns <= now_ns
