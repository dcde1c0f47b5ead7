"""The scrub: reads everything that is stored, at a set rate, and remembers where it was.

It goes over the key space in order: of each record the checksum is compared, and at a blob's record
every byte of its file, too. What is damaged goes into quarantine and is healed if it can be. The
place that was reached is kept in the store (``M scrub``), so that a round goes on after a restart,
in any process; it is a hint, and a crash makes the scrub read something twice.

What it cannot see is a record that vanished without a trace: `check` sees that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.codec import decode, encode, unseal
from kvstate.errors import StateError
from kvstate.keyspace import meta_key
from kvstate.pacing import Pace
from kvstate.records import open_envelope, seal_envelope

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.blobs import Blobs
    from kvstate.clock import Clock
    from kvstate.engine import Engine
    from kvstate.journal import Journal

__all__ = ["Scrubbed", "Scrubbing", "scrubbed_of"]

_PAGE: Final = 256
_KEY: Final = meta_key("scrub")
_FAILURES_KEPT: Final = 100
_KEPT_SECONDS: Final = 5.0


class Scrubbed(NamedTuple):
    """What a scrub read and found: ``damaged`` holds (what, why) of this call.

    ``complete`` when it came to the end of a round, which began at ``started_at_ns``.
    """

    bytes: int
    records: int
    blobs: int
    damaged: tuple[tuple[str, str], ...]
    healed: int
    complete: bool
    started_at_ns: int


class _Round(NamedTuple):
    """Where the scrub is: since when, what it read up to, and when the last round was complete."""

    started_ns: int
    reached: bytes
    complete_ns: int


class Scrubbing:
    """Scrubs a store."""

    def __init__(self, engine: Engine, journal: Journal, blobs: Blobs, clock: Clock) -> None:
        self._engine = engine
        self._journal = journal
        self._blobs = blobs
        self._clock = clock

    def place(self) -> _Round:
        """Give where the scrub is."""
        data = self._engine.get(_KEY)
        if data is None:
            return _Round(0, b"", 0)
        try:
            return _Round(*decode(open_envelope(_KEY, data).payload))
        except StateError:
            return _Round(0, b"", 0)  # it begins anew

    def run(
        self,
        *,
        bytes_max: int | None = None,
        rate: float = 0,
        restart: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Scrubbed:
        """Go on with the round, for about so many bytes or to its end, at so many bytes a second.

        ``restart`` begins a new round. ``progress`` gets the bytes read, 0, and what is being read.
        """
        place = self.place()
        if restart or not place.started_ns:
            place = _Round(self._clock.now_ns(), b"", place.complete_ns)
        step = _Step(self._blobs, self._journal, Pace(rate), progress)
        reached = place.reached
        complete = False
        kept_at = time.monotonic()
        try:
            while not complete and not step.has_read(bytes_max):
                page = self._engine.scan(reached + b"\0", b"\xff" * 512, limit=_PAGE)
                complete = not page
                for key, data in page:
                    if step.has_read(bytes_max):
                        break
                    step.look(key, data)
                    reached = key
                if time.monotonic() - kept_at > _KEPT_SECONDS:
                    self._keep(place._replace(reached=reached))
                    kept_at = time.monotonic()
        finally:
            done_ns = self._clock.now_ns()
            self._keep(_Round(0, b"", done_ns) if complete else place._replace(reached=reached))
        return Scrubbed(
            step.bytes,
            step.records,
            step.blobs,
            tuple(step.damaged),
            step.healed,
            complete,
            place.started_ns,
        )

    def _keep(self, place: _Round) -> None:
        at_ns = self._clock.now_ns()
        payload = encode(list(place))
        record = seal_envelope(_KEY, payload, revision=0, created_ns=at_ns, updated_ns=at_ns)
        self._engine.txn(lambda tx: tx.put(_KEY, record))


class _Step:
    """What one call has read and found."""

    def __init__(
        self,
        blobs: Blobs,
        journal: Journal,
        pace: Pace,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._blobs = blobs
        self._journal = journal
        self._pace = pace
        self._progress = progress
        self.bytes = 0
        self.records = 0
        self.blobs = 0
        self.healed = 0
        self.damaged: list[tuple[str, str]] = []

    def has_read(self, bytes_max: int | None) -> bool:
        """Say whether it has read as much as it should."""
        return bytes_max is not None and self.bytes >= bytes_max

    def look(self, key: bytes, data: bytes) -> None:
        """Compare a record's checksum, and those of a blob's content."""
        self.records += 1
        self._read(len(key) + len(data), "records")
        if data:
            try:
                unseal(key, data)
            except StateError as error:
                self._found(f"record {key!r}", str(error))
                return
        if key[0] == ord("B"):
            self._look_at_blob(key[1:])

    def _look_at_blob(self, blob: bytes) -> None:
        self.blobs += 1
        what = f"blob {blob.hex()}"
        try:
            self._blobs.scrub(blob, lambda count: self._read(count, what))
        except StateError as error:
            self._found(what, str(error))
            self.healed += self._blobs.heal(self._journal, blob)

    def _read(self, count: int, what: str) -> None:
        self._pace.take(count)
        self.bytes += count
        if self._progress is not None:
            self._progress(self.bytes, 0, what)

    def _found(self, what: str, why: str) -> None:
        if len(self.damaged) < _FAILURES_KEPT:
            self.damaged.append((what, why))


def scrubbed_of(row: list[object]) -> Scrubbed:
    """Give what a scrub found from its fields, as a wire has them."""
    scrubbed = Scrubbed(*row)  # type: ignore[arg-type]
    return scrubbed._replace(damaged=tuple((what, why) for what, why in scrubbed.damaged))
