"""Expiry: what is due goes, in due order, in bounded transactions that read each record again.

Three indexes say what is due: ``E`` for keys, ``W`` for versions that are too old. A sweep works on
what is due and on nothing else. It is driven by the daemon's schedule, by `Lifecycle.run`, by an
open watch, and by every commit that finds something due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvstate.clock import NS_MAX
from kvstate.codec import digest
from kvstate.errors import Conflict, StateError, Unavailable
from kvstate.history import drop_stale
from kvstate.journal import DUE
from kvstate.jsonview import text_of_value
from kvstate.keys import KeyWriter
from kvstate.keyspace import expiry_key, parse_expiry, parse_stale, stale_key
from kvstate.names import NAME_BYTES_MAX, file_name_of_key
from kvstate.records import open_envelope
from kvstate.state import expired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.journal import Change
    from kvstate.state import State

__all__ = ["Expiry"]

SWEEP_KEYS: Final = 1000
"""Keys removed in one transaction of a sweep."""
_IN_PASSING: Final = 100
_PAGE: Final = 512
_RESERVED: Final = frozenset('\\:*?"<>|')


class Archive(Protocol):
    """What stores an artifact."""

    def __call__(self, name: str, content: bytes, also: Callable[[Change], None], /) -> None:
        """Store the content, and do the other thing in the same commit."""
        ...


class Sweeping:
    """How far one sweep is."""

    def __init__(self) -> None:
        self.start = b"E"
        self.swept = 0
        self.archived: list[tuple[int, bytes]] = []
        """Keys that have to be archived: their namespace's identity, and they."""
        self.failures: list[tuple[str, str]] = []
        """What could not be archived, and why; it stays, hidden, for the next sweep."""


class Expiry:
    """Removes expired keys and old versions."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.archive: Archive | None = None
        """Stores an artifact, and runs a function in the same commit."""
        state.sweep_some = self._in_passing
        state.archive = self._archive_now

    def next_due_ns(self) -> int | None:
        """Give the earliest moment at which a key expires or a version is too old."""
        moments = []
        for start, stop in ((b"E", b"F"), (b"W", b"X")):
            page = self._state.engine.scan(start, stop, limit=1)
            moments += [parse_expiry(key)[0] for key, _ in page]
        return min(moments, default=None)

    def sweep(self, *, dry_run: bool = False) -> Sweeping:
        """Remove what has expired."""
        sweeping = Sweeping()
        if dry_run:
            sweeping.swept = sum(1 for _ in self._due())
            return sweeping
        more = True
        while more:
            step, more = self._state.journal.commit(lambda change: self._step(change, sweeping))
            sweeping.start = step.start
            sweeping.swept += step.swept
            sweeping.archived += step.archived
        for number, data in sweeping.archived:
            self._archive(number, data, sweeping)
        return sweeping

    def _due(self) -> Iterator[bytes]:
        start, stop = b"E", expiry_key(self._state.clock.now_ns() + 1, 0, b"")
        while page := self._state.engine.scan(start, stop, limit=_PAGE):
            for key, _ in page:
                yield key
            start = page[-1][0] + b"\0"

    def _step(self, change: Change, sweeping: Sweeping) -> tuple[Sweeping, bool]:
        """Remove up to `SWEEP_KEYS`; say whether there may be more."""
        step = Sweeping()
        step.start = sweeping.start
        return step, self._some(change, step, SWEEP_KEYS)

    def _in_passing(self, change: Change) -> None:
        """Within somebody's commit, remove a bounded part of what is due."""
        self._some(change, Sweeping(), _IN_PASSING)

    def _some(self, change: Change, sweeping: Sweeping, limit: int) -> bool:
        """Remove up to so many; say whether there may be more."""
        looked = self._some_keys(change, sweeping, limit)
        if looked < limit:
            looked += self._some_versions(change, limit - looked)
        more = looked >= limit
        change.tx.memo[DUE] = change.at_ns if more else _next_due_ns(change)
        return more

    def _some_keys(self, change: Change, sweeping: Sweeping, limit: int) -> int:
        state, looked = self._state, 0
        writers: dict[int, KeyWriter] = {}
        scan = change.tx.scan(sweeping.start, expiry_key(change.at_ns + 1, 0, b""))
        for index_key, _ in [pair for _, pair in zip(range(limit), scan, strict=False)]:
            looked += 1
            sweeping.start = index_key + b"\0"
            expires_ns, number, data = parse_expiry(index_key)
            space = state.by_number(change, number)
            if space is None:
                change.tx.delete(index_key)
                continue
            writer = writers.get(number)
            if writer is None:
                writer = writers[number] = KeyWriter(state, change, space)
            envelope = writer.record(data)
            if envelope is None or envelope.expires_ns != expires_ns:
                change.tx.delete(index_key)
            elif writer.remove_expired(data, envelope):
                sweeping.swept += 1
            else:
                sweeping.archived.append((number, data))
        for writer in writers.values():
            writer.finish()
        return looked

    def _archive_now(self, number: int, data: bytes) -> None:
        """Archive one key; `Conflict` when that cannot be done."""
        sweeping = Sweeping()
        self._archive(number, data, sweeping)
        for name, why in sweeping.failures:
            raise Conflict(data.decode(), f"what it was cannot be archived as {name!r}: {why}")

    def _archive(self, number: int, data: bytes, sweeping: Sweeping) -> None:
        """Let a key's last value become an artifact in the commit that removes the key."""
        state = self._state
        assert self.archive is not None
        space = state.engine.read(lambda reader: state.numbered(reader, number))
        if space is None:
            return
        record = state.engine.get(space.prefix + data)
        if record is None:
            return
        seen = open_envelope(space.prefix + data, record)

        def run(change: Change) -> None:
            writer = KeyWriter(state, change, space)
            envelope = writer.record(data)
            if envelope is None or envelope != seen or not expired(envelope, change.at_ns):
                raise Conflict(data.decode(), "it was set again meanwhile")
            writer.remove(data, envelope, "expire")
            writer.finish()

        name = archived_name(space.name, data.decode())
        try:
            self.archive(name, text_of_value(state.value(seen)), run)
            sweeping.swept += 1
        except Conflict as error:
            if state.engine.get(space.prefix + data) == record:
                sweeping.failures.append((name, str(error)))
        except Unavailable:
            raise
        except StateError as error:
            sweeping.failures.append((name, str(error)))

    def _some_versions(self, change: Change, limit: int) -> int:
        state, looked = self._state, 0
        scan = change.tx.scan(b"W", stale_key(change.at_ns + 1, 0, b""))
        for index_key, _ in [pair for _, pair in zip(range(limit), scan, strict=False)]:
            looked += 1
            number = parse_stale(index_key)[1]
            space = state.by_number(change, number)
            gone = drop_stale(change, index_key, space, change.open, state.shifter(change))
            if gone is not None:
                used = state.used(number, change)
                if gone[0] > used.floor_revision:
                    usage = used._replace(floor_revision=gone[0], floor_ns=gone[1])
                    state.put_usage(change, number, usage)
        return looked


def archived_name(namespace: str, key: str) -> str:
    """Give the name of the artifact that an expired key becomes: ``NAMESPACE/expired/KEY``.

    What no artifact's name can hold is percent-encoded as in the name of the key's file; a name
    that gets too long ends in a digest instead.
    """
    name = "".join(f"%{ord(c):02X}" if c in _RESERVED else c for c in file_name_of_key(key))
    if len(name.encode()) > NAME_BYTES_MAX:
        end = "~" + digest(key.encode()).hex()
        head = name.encode()[: NAME_BYTES_MAX - len(end)].decode(errors="ignore")
        name = head + end
    return f"{namespace.replace(':', '%3A')}/expired/{name}"


def _next_due_ns(change: Change) -> int:
    """Give the earliest moment at which something is due, as of this commit."""
    due_ns = NS_MAX
    for start, stop in ((b"E", b"F"), (b"W", b"X")):
        for key, _ in change.tx.scan(start, stop):
            due_ns = min(due_ns, parse_expiry(key)[0])
            break
    return due_ns
