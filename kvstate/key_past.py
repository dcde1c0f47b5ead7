"""What keys were: reading as of a revision or a moment, history, rollback."""

from __future__ import annotations

import heapq
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from kvstate.clock import time_to_ns
from kvstate.errors import InvalidValue, NotFound
from kvstate.history import AsOf, Version, as_of, check_reach, followed, versioned_keys
from kvstate.journal import Spilled
from kvstate.key_base import KeyBase
from kvstate.keyspace import after_prefix
from kvstate.names import check_key
from kvstate.records import GONE, Envelope, open_envelope
from kvstate.state import expired, journal_value
from kvstate.typed import converted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from kvstate.codec import Value
    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.keys import KeyWriter

__all__ = ["KeyPast", "bounds", "check_limit", "point_in_time"]

_PAGE = 512
_NEXT = b"\1"
"""What makes of a key something behind it and its versions: no key has a control character."""


class KeyPast(KeyBase):
    """The past of a namespace's keys."""

    def _bounds(self, prefix: str, start: str | None, *, reverse: bool) -> tuple[bytes, bytes]:
        return bounds(self._prefix, prefix, start, reverse=reverse)

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
        check_limit(limit)
        envelopes = self._kept(check_key(key))
        if limit is not None:
            envelopes = envelopes[max(0, len(envelopes) - limit) :]
        return [self._version(envelope) for envelope in envelopes]

    def history_marks(self, key: str) -> list[Version]:
        """Give the key's history without values (None each): these may be large, or in blobs."""
        return [self._mark(envelope) for envelope in self._kept(check_key(key))]

    def history_at(self, key: str, revision: int) -> Version | None:
        """Give what the key was set to in exactly this revision; None when that is not kept."""
        for envelope in reversed(self._kept(check_key(key))):
            if envelope.revision == revision and not envelope.form & GONE:
                return self._version(envelope)
        return None

    def known_keys(self, after: str = "", limit: int = _PAGE) -> list[str]:
        """Give a page of the keys of which anything is known, now or in the past, in byte order."""
        if not self._find_prefix():
            return []
        number, skip = self._number or 0, len(self._prefix)
        now_ns = self._state.clock.now_ns()
        low, high = self._bounds("", after or None, reverse=False)
        low += _NEXT if after else b""

        def page(reader: Reader) -> list[str]:
            now = (
                full[skip:]
                for full, data in reader.scan(low, high)
                if not expired(open_envelope(full, data), now_ns)
            )
            before = versioned_keys(reader, number, low[skip:], b"", reverse=False)
            merged = (key for key, _ in groupby(heapq.merge(now, before)))
            return [key.decode() for key in islice(merged, limit)]

        return self._state.engine.read(page)

    def _kept(self, data: bytes) -> list[Envelope]:
        """Give the records of a key's history, oldest first, the present last."""
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
        space = self._space()
        kept = max(1, 0 if space is None else space.settings.history)  # it may have been more
        return envelopes[max(0, len(envelopes) - kept) :]

    @staticmethod
    def _settle(change: Change, writer: KeyWriter | None, data: bytes) -> None:
        """Carry out an expiry that is due, as a sweep would."""
        found = None if writer is None else writer.record(data)
        if writer is not None and found is not None and expired(found, change.at_ns):
            writer.remove_expired(data, found)

    def _version(self, envelope: Envelope) -> Version:
        mark = self._mark(envelope)
        return mark if mark.kind != "set" else mark._replace(value=self._state.value(envelope))

    @staticmethod
    def _mark(envelope: Envelope) -> Version:
        return Version(
            envelope.revision,
            envelope.updated_ns,
            envelope.payload.decode() if envelope.form & GONE else "set",
            None,
            envelope.expires_ns,
        )

    def rollback(
        self, key: str, revision: int | None = None, *, at: datetime | float | None = None
    ) -> int:
        """Set the key to what it was then: a new revision, which is given.

        `NotFound` when it was absent then, `Compacted` when that is not known any more.
        """
        data = check_key(key)
        point = point_in_time(revision, at)

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


def point_in_time(revision: int | None, at: datetime | float | None) -> AsOf:
    """Give the point in the past that one of the two says; `InvalidValue` otherwise."""
    if (revision is None) == (at is None):
        raise InvalidValue("revision", "give revision or at, one of them")
    if revision is not None:
        if isinstance(revision, bool) or not isinstance(revision, int) or revision < 0:
            raise InvalidValue("revision", f"{revision!r} is no revision")
        return AsOf(revision, None)
    assert at is not None
    return AsOf(None, time_to_ns(at, "at"))


def check_limit(limit: object) -> None:
    """Raise `InvalidValue` unless this is a number of entries, or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise InvalidValue("limit", f"{limit!r} is no number of entries")


def bounds(space: bytes, prefix: str, start: str | None, *, reverse: bool) -> tuple[bytes, bytes]:
    """Give the first record wanted of a namespace, and the first not wanted."""
    low = space + prefix.encode()
    high = after_prefix(low)
    if start is not None:
        edge = space + start.encode()
        low, high = (low, min(high, edge + _NEXT)) if reverse else (max(low, edge), high)
    return low, high
