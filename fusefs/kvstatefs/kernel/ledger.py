"""What the kernel knows of a mount, written where the death of the process does not reach it.

A worker that serves a mount may be killed between any two instructions; the next one must know
which node numbers the kernel holds and how often it was told each, which handles are open, and what
INIT agreed on. This is kept in memory files (memfd) whose descriptors the supervisor holds. It
survives every death of a process and no restart of the machine, which unmounts anyway: so nothing
is synced.

Write first, answer the kernel then. Who dies between the two has counted a lookup that the kernel
may ask for again, so that a node may stay known until the unmount; the other order would lose
nodes.

The log (see `RecordLog`) takes at most about four times what is true: 56 bytes and its facts for
each node and handle, and no less than 1 MiB. When memory cannot be had the ledger is given up: the
mount goes on, `whole` is False, and the next worker finds nothing to take over.
"""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstatefs.kernel.pins import PINS_BYTES, Pins
from kvstatefs.kernel.record_log import LONG_BYTES, SHORT_BYTES, SMALLEST, RecordLog, long_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstatefs.kernel.record_log import Record

__all__ = ["Ledger", "Replayed", "create_descriptors"]

_LOOKUPS, _RELEASED = 1, 2
_NODE, _HANDLE, _INIT, _NODES, _HANDLES = 16, 17, 18, 19, 20
_EACH_BYTES: Final = LONG_BYTES + SHORT_BYTES
"""What a node or a handle takes beside its facts, about: a record of each length."""
_REWRITE_MARGIN: Final = 1 << 16


class Replayed(NamedTuple):
    """What the kernel knows: INIT's agreement, nodes with their lookups and facts, handles."""

    init: bytes
    nodes: dict[int, tuple[int, bytes]]
    handles: dict[int, bytes]


def create_descriptors(pins_bytes: int = PINS_BYTES) -> tuple[int, int, int]:
    """Make the memory files of a new ledger, for whoever is to hold them."""
    first, second, pins = map(os.memfd_create, ("kvstatefs-a", "kvstatefs-b", "kvstatefs-pins"))
    os.ftruncate(pins, pins_bytes)
    return first, second, pins


class Ledger:
    """Writes down what the kernel is told; reads what it had been told. For any thread."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.fds: Final = tuple(descriptors)
        self.whole = True
        self._lock = threading.Lock()
        self._init = b""
        self._lookups: dict[int, int] = {}
        self._facts: dict[int, bytes] = {}
        self._handles: dict[int, bytes] = {}
        self._true_bytes = 0
        self._log = RecordLog(self.fds[:2])
        self._pins = Pins(self.fds[2])
        if self._log.generation:
            for record in self._log.records():
                self._take(*record)
        else:
            self._rewrite(0)

    @classmethod
    def create(cls, pins_bytes: int = PINS_BYTES) -> Ledger:
        """Make one that knows nothing."""
        return cls(create_descriptors(pins_bytes))

    @classmethod
    def attach(cls, fds: Sequence[int]) -> Ledger:
        """Read what another process wrote, and go on from there."""
        return cls(fds)

    def close(self) -> None:
        """Let go of memory and descriptors; who else holds the descriptors keeps what is there."""
        with self._lock:
            self.whole = False
            self._log.close()
        self._pins.close()
        for descriptor in self.fds:
            os.close(descriptor)

    def replay(self) -> Replayed:
        """Give what is true; after `attach`, what was when the writer died."""
        with self._lock:
            facts = self._facts
            nodes = {
                number: (count, facts.get(number, b"")) for number, count in self._lookups.items()
            }
            return Replayed(self._init, nodes, dict(self._handles))

    def init(self, data: bytes) -> None:
        """Write down what INIT agreed on."""
        with self._lock:
            self._write(_INIT, 0, 0, data)

    def node(self, number: int, facts: bytes, lookups: int = 0) -> None:
        """Write down that a node is new or has other facts, and, in one, that it is looked up."""
        with self._lock:
            self._write(_NODE, number, lookups, facts)

    def looked_up(self, number: int, count: int = 1) -> None:
        """Write down that the kernel is told of a node so often more."""
        with self._lock:
            self._write_short(_LOOKUPS, number, count)
            self._lookups[number] = self._lookups.get(number, 0) + count

    def forgot(self, number: int, count: int) -> None:
        """Write down that the kernel forgot so many lookups; without any, the node is dropped."""
        with self._lock:
            if number in self._lookups:
                self._write_short(_LOOKUPS, number, -count)
                self._count(number, -count)

    def handle(self, number: int, facts: bytes) -> None:
        """Write down that a handle is open, or has other facts."""
        with self._lock:
            self._write(_HANDLE, number, 0, facts)

    def released(self, number: int) -> None:
        """Write down that a handle is closed."""
        with self._lock:
            if number in self._handles:
                self._write_short(_RELEASED, number, 0)
                self._drop_handle(number)

    def pin(self, name: bytes, data: bytes) -> None:
        """Keep a small content that was opened, for as long as the ring has room (see `Pins`)."""
        self._pins.pin(name, data)

    def pinned(self, name: bytes) -> bytes | None:
        """Give a content that was pinned; None when others pushed it out."""
        return self._pins.pinned(name)

    # --- what a record means, when it is written and when it is read ------------------------------

    def _take(self, kind: int, number: int, count: int, facts: bytes) -> None:
        if kind == _LOOKUPS:
            self._count(number, count)
        elif kind == _RELEASED:
            self._drop_handle(number)
        elif kind == _NODE:
            self._set_node(number, count, facts)
        elif kind == _HANDLE:
            self._set_handle(number, facts)
        elif kind == _INIT:
            self._init = facts
        elif kind == _NODES:
            for each, lookups, known in _unpacked(number, facts):
                self._set_node(each, lookups, known)
        elif kind == _HANDLES:
            for each, _, known in _unpacked(number, facts):
                self._set_handle(each, known)

    def _count(self, number: int, count: int) -> None:
        left = self._lookups.get(number, 0) + count
        if count >= 0 or left > 0:
            self._lookups[number] = left
        elif number in self._lookups:
            del self._lookups[number]
            facts = self._facts.pop(number, None)
            if facts is not None:
                self._true_bytes -= _EACH_BYTES + len(facts)

    def _set_node(self, number: int, lookups: int, facts: bytes) -> None:
        known = self._facts.get(number)
        self._true_bytes += len(facts) + _EACH_BYTES if known is None else len(facts) - len(known)
        self._facts[number] = facts
        self._count(number, lookups)

    def _set_handle(self, number: int, facts: bytes) -> None:
        self._drop_handle(number)
        self._handles[number] = facts
        self._true_bytes += _EACH_BYTES + len(facts)

    def _drop_handle(self, number: int) -> None:
        facts = self._handles.pop(number, None)
        if facts is not None:
            self._true_bytes -= _EACH_BYTES + len(facts)

    # --- writing ----------------------------------------------------------------------------------

    def _write_short(self, kind: int, number: int, count: int) -> None:
        log = self._log
        if log.end + SHORT_BYTES <= log.size or self._has_room(SHORT_BYTES):
            log.write_short(kind, number, count)

    def _write(self, kind: int, number: int, count: int, facts: bytes) -> None:
        length = long_bytes(len(facts))
        if self._log.end + length <= self._log.size or self._has_room(length):
            self._log.write_long(kind, number, count, facts)
        self._take(kind, number, count, facts)

    def _has_room(self, wanted: int) -> bool:
        """Drop what is out of date, or grow; False when the ledger is given up."""
        if not self.whole:
            return False
        try:
            if self._log.end > 2 * self._true_bytes + _REWRITE_MARGIN:
                self._rewrite(wanted)
            else:
                self._log.grow(wanted)
        except (OSError, MemoryError):
            self.whole = False
            with contextlib.suppress(OSError):
                self._log.erase()
            self._log.close()
        return self.whole

    def _rewrite(self, wanted: int) -> None:
        lookups = self._lookups
        known = [self._facts.get(number, b"") for number in lookups]
        records: list[Record] = [
            (_INIT, 0, 0, self._init),
            (_NODES, len(lookups), 0, _packed(lookups, lookups.values(), known)),
            (
                _HANDLES,
                len(self._handles),
                0,
                _packed(self._handles, repeat(0, len(self._handles)), self._handles.values()),
            ),
        ]
        needed = 2 * (wanted + sum(long_bytes(len(record[3])) for record in records))
        size = SMALLEST
        while size < needed:
            size *= 2
        self._log.rewrite(records, size)


def _packed(numbers: Iterable[int], counts: Iterable[int], facts: Iterable[bytes]) -> bytes:
    """Lay many out: all numbers, all counts, all lengths, all facts."""
    known = list(facts)
    lengths = array("Q", map(len, known))
    return b"".join((array("Q", numbers), array("q", counts), lengths, *known))


def _unpacked(many: int, packed: bytes) -> Iterable[tuple[int, int, bytes]]:
    numbers, counts, lengths = array("Q"), array("q"), array("Q")
    for place, column in enumerate((numbers, counts, lengths)):
        column.frombytes(packed[8 * many * place : 8 * many * (place + 1)])
    at = 24 * many
    for number, count, length in zip(numbers, counts, lengths, strict=True):
        yield number, count, packed[at : at + length]
        at += length
