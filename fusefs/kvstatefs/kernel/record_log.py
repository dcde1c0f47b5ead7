"""Two memory files used in turns as a log of checksummed records; whoever dies leaves it readable.

A log is a header and records. What follows the first record whose check is wrong was never written.

    header   magic (8)  generation (8)  check (4)                                    records from 64
    short    check (4)  kind (4)  number (8)  count (8)                              24 bytes
    long     check (4)  kind (4)  number (8)  count (8)  length (8)  facts, padded to 8

A check is CRC-32 of what follows it, beginning with the generation, so that nothing of an earlier
use of the file is taken for a record. To drop what is out of date, what is still true is written
into the other file, and its header last: the file with the higher generation counts, and the other
is emptied.

This knows nothing of what the records mean. It is not for several threads: its owner has the lock.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Final, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["LONG_BYTES", "SHORT_BYTES", "SMALLEST", "Record", "RecordLog", "long_bytes"]

Record: TypeAlias = tuple[int, int, int, bytes]
"""Kind, number, count, facts. Kinds below 16 are short: they have no facts."""

SHORT_BYTES: Final = 24
LONG_BYTES: Final = 32
SMALLEST: Final = 1 << 20
_START: Final = 64
_SHORT_KINDS: Final = 16
_MAGIC: Final = b"kvledger"
_HEADER = struct.Struct("=8sQ")
_HEADER_BYTES: Final = 20
_CHECK = struct.Struct("=I")
_SHORT = struct.Struct("=IIQq")
_SHORT_BODY = struct.Struct("=IQq")
_LONG_BODY = struct.Struct("=IQqQ")


def long_bytes(facts: int) -> int:
    """Give what a long record with so many bytes of facts takes."""
    return LONG_BYTES + (facts + 7 & -8)


class RecordLog:
    """The log that counts, and the file that is the next one."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = tuple(descriptors)
        found = [_generation_of(descriptor) for descriptor in self._descriptors]
        self._active = found.index(max(found))
        self.generation = found[self._active]
        self.end = _START
        """Where the next record goes."""
        self.size = 0
        """Where the log would have to grow."""
        self._map = mmap.mmap(-1, 1)
        if self.generation:
            self._use(self._active, os.fstat(self._descriptors[self._active]).st_size)

    def records(self) -> Iterator[Record]:
        """Read from the beginning; what is written next goes behind the last good record."""
        self.end = _START
        while (record := self._record_at(self.end)) is not None:
            short = record[0] < _SHORT_KINDS
            self.end += SHORT_BYTES if short else long_bytes(len(record[3]))
            yield record

    def write_short(self, kind: int, number: int, count: int) -> None:
        """Write a record without facts; there must be room for `SHORT_BYTES`."""
        check = crc32(_SHORT_BODY.pack(kind, number, count), self.generation)
        _SHORT.pack_into(self._map, self.end, check, kind, number, count)
        self.end += SHORT_BYTES

    def write_long(self, kind: int, number: int, count: int, facts: bytes) -> None:
        """Write a record with facts; there must be room for its `long_bytes`."""
        body = _LONG_BODY.pack(kind, number, count, len(facts)) + facts
        record = _CHECK.pack(crc32(body, self.generation)) + body
        self._map[self.end : self.end + len(record)] = record
        self.end += long_bytes(len(facts))

    def grow(self, wanted: int) -> None:
        """Make room for so many bytes more; OSError when there is none."""
        size = max(self.size, SMALLEST)
        while size < self.end + wanted:
            size *= 2
        os.ftruncate(self._descriptors[self._active], size)
        self._use(self._active, size)

    def rewrite(self, records: Iterable[Record], size: int) -> None:
        """Let these long records be all there is, in the other file, which has this size then.

        OSError when there is no room: only `erase` is left to do then.
        """
        old = self._active
        new = 1 - old
        os.ftruncate(self._descriptors[new], 0)  # so that all behind the end is zero
        os.ftruncate(self._descriptors[new], size)
        self._use(new, size)
        self.generation += 1
        self.end = _START
        for record in records:
            self.write_long(*record)
        head = _HEADER.pack(_MAGIC, self.generation)
        self._map[:_HEADER_BYTES] = head + _CHECK.pack(crc32(head))
        os.ftruncate(self._descriptors[old], 0)

    def erase(self) -> None:
        """Leave nothing that could be read."""
        for descriptor in self._descriptors:
            os.pwrite(descriptor, bytes(_HEADER_BYTES), 0)

    def close(self) -> None:
        """Let go of the memory, not of the descriptors."""
        self._map.close()
        self.size = 0

    def _use(self, which: int, size: int) -> None:
        """Map a file; the old mapping goes with the last reference to it."""
        try:
            self._map = mmap.mmap(self._descriptors[which], size)
        except (ValueError, OverflowError):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
        self._active = which
        self.size = size

    def _record_at(self, at: int) -> Record | None:
        if at + SHORT_BYTES > self.size:
            return None
        check, kind, number, count = _SHORT.unpack_from(self._map, at)
        if not kind:
            return None
        end, facts = at + SHORT_BYTES, b""
        if kind >= _SHORT_KINDS:
            if at + LONG_BYTES > self.size:
                return None
            end = at + LONG_BYTES + int.from_bytes(self._map[end : at + LONG_BYTES], sys.byteorder)
            if end > self.size:
                return None
            facts = self._map[at + LONG_BYTES : end]
        if crc32(self._map[at + _CHECK.size : end], self.generation) != check:
            return None
        return kind, number, count, facts


def _generation_of(descriptor: int) -> int:
    """Give the generation of a log whose header is whole; 0 for anything else."""
    head = os.pread(descriptor, _HEADER_BYTES, 0)
    if len(head) < _HEADER_BYTES:
        return 0
    magic, generation = _HEADER.unpack_from(head)
    whole = head[_HEADER.size :] == _CHECK.pack(crc32(head[: _HEADER.size]))
    return generation if whole and magic == _MAGIC else 0
