"""Reading a namespace: values, entries, scans, finding by a field, counts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate.clock import SECOND
from kvstate.codec import Value, decode, unseal
from kvstate.errors import InvalidName, NotFound
from kvstate.indexes import Place, Search, key_of_entry
from kvstate.key_past import KeyPast, check_limit, point_in_time
from kvstate.keyspace import expiry_key, parse_expiry
from kvstate.names import check_key
from kvstate.records import HEADER_BYTES, PLAIN, Envelope, open_envelope
from kvstate.space import NamespaceSettings, Space
from kvstate.state import Entry, expired
from kvstate.typed import converted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.keys import KeyWriter

__all__ = ["KeyReading", "Used"]

_PAGE = 512
_SLIDE_PARTS = 10


class Used(NamedTuple):
    """How much a namespace holds: keys, and bytes of keys and values."""

    keys: int
    bytes: int


class KeyReading(KeyPast):
    """What a namespace gives."""

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
            return self._get_past(key, default, point_in_time(revision, at), as_type)
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
        check_limit(limit)
        if revision is None and at is None:
            records = self._live_records(prefix, start, limit, reverse=reverse)
        else:
            past = self._past_records(prefix, start, point_in_time(revision, at), reverse=reverse)
            records = islice(past, limit)
        for full, envelope in records:
            yield self._entry(full[9:].decode(), envelope)

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
        check_limit(limit)
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
