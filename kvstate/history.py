"""What keys were before: their versions, kept as long as the namespace's settings say.

A version is a key's former record under ``V namespace-id key 0 version``; a deletion or an expiry
is a version, too, with the flag GONE. Versions count up from 1 for as long as anything is known of
the key, so that a gap says that older ones were dropped. Of each key with versions there is one
entry in the index ``W`` (or more: they are hints) that says when to look for some that are too old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvstate.clock import SECOND, datetime_of
from kvstate.errors import Compacted
from kvstate.keyspace import (
    after_prefix,
    parse_stale,
    parse_version,
    stale_key,
    version_key,
    versions_prefix,
)
from kvstate.records import GONE, SPILLED, Envelope, open_envelope, seal_envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from kvstate.codec import Value
    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.space import Space

__all__ = [
    "AsOf",
    "Version",
    "as_of",
    "check_reach",
    "drop_stale",
    "drop_versions",
    "followed",
    "keep_gone",
    "keep_version",
    "renamed_from",
    "versioned_keys",
    "versions",
]


class Version(NamedTuple):
    """One entry of a key's history: from this revision on the key was like this.

    ``kind`` is set, delete or expire; ``value`` is None for the latter two.
    """

    revision: int
    at_ns: int
    kind: str
    value: Value
    expires_at_ns: int

    @property
    def at(self) -> datetime:
        """When it was committed, in UTC."""
        return datetime_of(self.at_ns)


class AsOf(NamedTuple):
    """A point in the past: of a revision, or of a time."""

    revision: int | None
    at_ns: int | None

    def reaches(self, envelope: Envelope) -> bool:
        """Whether a record had been written by then."""
        if self.revision is not None:
            return envelope.revision <= self.revision
        assert self.at_ns is not None
        return envelope.updated_ns <= self.at_ns

    def hides(self, envelope: Envelope) -> bool:
        """Whether a record was gone or had expired by then."""
        if envelope.form & GONE:
            return True
        expires_ns = envelope.expires_ns
        return bool(expires_ns) and self.at_ns is not None and expires_ns <= self.at_ns


# Writing


def keep_version(
    change: Change, space: Space, key: bytes, old: Envelope, release: Callable[[bytes, int], None]
) -> None:
    """Keep a record that is about to be replaced; ``release`` shifts a blob's references."""
    full = version_key(space.number, key, old.version)
    change.tx.put(
        full,
        seal_envelope(
            full,
            old.payload,
            revision=old.revision,
            created_ns=old.created_ns,
            updated_ns=old.updated_ns,
            expires_ns=old.expires_ns,
            version=old.version,
            flags=old.form & SPILLED,
        ),
    )
    if old.form & SPILLED:
        release(old.payload, 1)
    _trim(change, space, key, old.version + 1, release)


def keep_gone(
    change: Change,
    space: Space,
    key: bytes,
    version: int,
    kind: str,
    release: Callable[[bytes, int], None],
) -> None:
    """Keep that a key was deleted or has expired."""
    full = version_key(space.number, key, version)
    record = seal_envelope(
        full,
        kind.encode(),
        revision=change.revision,
        created_ns=change.at_ns,
        updated_ns=change.at_ns,
        version=version,
        flags=GONE,
    )
    change.tx.put(full, record)
    _trim(change, space, key, version, release)


def _trim(
    change: Change, space: Space, key: bytes, newest: int, release: Callable[[bytes, int], None]
) -> None:
    """Drop the versions that are too many; see to it that the rest is looked at in time."""
    first = versions_prefix(space.number, key)
    oldest_kept = newest - space.settings.history + 1
    if oldest_kept > 1:
        stop = version_key(space.number, key, oldest_kept)
        for full, data in list(change.tx.scan(first, stop)):
            _drop(change, full, open_envelope(full, data), release)
    due_ns = change.at_ns + round(space.settings.history_age * SECOND)
    kept = list(zip(range(2), change.tx.scan(first, after_prefix(first)), strict=False))
    if len(kept) == 1:  # the first version of this key
        change.tx.put(stale_key(due_ns, space.number, key), b"")
        change.due(due_ns)


def _drop(
    change: Change, full: bytes, envelope: Envelope, release: Callable[[bytes, int], None]
) -> None:
    change.tx.delete(full)
    if envelope.form & SPILLED:
        release(envelope.payload, -1)


def drop_stale(
    change: Change,
    index_key: bytes,
    space: Space | None,
    current: Callable[[bytes], Envelope | None],
    release: Callable[[bytes, int], None],
) -> tuple[int, int] | None:
    """Drop the versions of one key that are too old; give (revision, at) if nothing is left of it.

    A version's age counts from when another took its place, that of a deletion from itself.
    """
    _, number, key = parse_stale(index_key)
    change.tx.delete(index_key)
    age_ns = 0 if space is None else round(space.settings.history_age * SECOND)
    first = versions_prefix(number, key)
    found = [(k, open_envelope(k, d)) for k, d in change.tx.scan(first, after_prefix(first))]
    now = current(state_key(number, key))
    ends = [envelope.updated_ns for _, envelope in found[1:]]
    if found:
        last = found[-1][1]
        ends.append(last.updated_ns if now is None else now.updated_ns)
    left = None
    for (full, envelope), end_ns in zip(found, ends, strict=True):
        if end_ns + age_ns > change.at_ns:
            left = end_ns + age_ns
            break
        _drop(change, full, envelope, release)
    if left is not None:
        change.tx.put(stale_key(left, number, key), b"")
        change.due(left)
        return None
    if found and now is None:
        return found[-1][1].revision, found[-1][1].updated_ns
    return None


def state_key(number: int, key: bytes) -> bytes:
    """Give the key of a key's record."""
    return b"S" + number.to_bytes(8, "big") + key


def drop_versions(
    change: Change, number: int, limit: int, release: Callable[[bytes, int], None]
) -> int:
    """Drop up to so many versions of a namespace, whatever their age; say how many."""
    prefix = versions_prefix(number)
    dropped = 0
    scan = change.tx.scan(prefix, after_prefix(prefix))
    for full, data in [pair for _, pair in zip(range(limit), scan, strict=False)]:
        _drop(change, full, open_envelope(full, data), release)
        dropped += 1
    return dropped


# Reading

_RENAMED = "renamed\0"


def renamed_from(source: bytes) -> str:
    """Give what a version says where a key got its value by being renamed."""
    return _RENAMED + source.decode()


def followed(reader: Reader, number: int, key: bytes, until: int | None = None) -> list[Envelope]:
    """Give the kept versions of a key and, before a rename, those under its former names."""
    found: list[Envelope] = []
    for envelope in versions(reader, number, key):
        if until is not None and envelope.revision >= until:
            break
        if envelope.form & GONE and envelope.payload.startswith(_RENAMED.encode()):
            source = envelope.payload[len(_RENAMED) :]
            found = followed(reader, number, source, envelope.revision)
        else:
            found.append(envelope)
    return found


def versions(
    reader: Reader, number: int, key: bytes, *, reverse: bool = False
) -> Iterator[Envelope]:
    """Give the kept versions of one key, oldest first."""
    first = versions_prefix(number, key)
    for full, data in reader.scan(first, after_prefix(first), reverse=reverse):
        yield open_envelope(full, data)


def as_of(
    reader: Reader,
    number: int,
    key: bytes,
    point: AsOf,
    floor: tuple[int, int],
) -> Envelope | None:
    """Give the record that a key had then; `Compacted` when that is not known any more."""
    full = state_key(number, key)
    data = reader.get(full)
    oldest = None if data is None else open_envelope(full, data)
    if oldest is None or not point.reaches(oldest):
        for envelope in versions(reader, number, key, reverse=True):
            oldest = envelope
            if point.reaches(envelope):
                break
    if oldest is not None and point.reaches(oldest):
        return None if point.hides(oldest) else oldest
    if oldest is None or oldest.version == 1:
        check_reach(point, floor)
    else:
        check_reach(point, (oldest.revision, oldest.updated_ns))
    return None


def check_reach(point: AsOf, known_from: tuple[int, int]) -> None:
    """Raise `Compacted` for a point before a revision and its time."""
    revision, at_ns = known_from
    if point.revision is not None:
        if point.revision < revision:
            raise Compacted(point.revision, revision)
    elif point.at_ns is not None and point.at_ns < at_ns:
        raise Compacted(0, revision)


def versioned_keys(
    reader: Reader, number: int, start: bytes, stop: bytes, *, reverse: bool
) -> Iterator[bytes]:
    """Give the keys in a range that have versions, each once, in order."""
    prefix = versions_prefix(number)
    low, high = prefix + start, prefix + stop if stop else after_prefix(prefix)
    while True:
        pair = next(iter(reader.scan(low, high, reverse=reverse)), None)
        if pair is None:
            return
        key = parse_version(pair[0])[1]
        yield key
        own = versions_prefix(number, key)
        low, high = (low, own) if reverse else (after_prefix(own), high)
