"""The last mebibytes of small contents that were opened, in a memory file that outlives a worker.

A reader keeps what it opened, also when the name has other content by now and the worker that knew
the old one is gone. Large content is a file whose descriptor the supervisor holds; small content,
which the store keeps in its records, is copied here.

The file is cut into segments that are filled in turns: the oldest is emptied for what is new.
Each is

    sequence (8)  check (4)                                                    contents from 16 on
    check (4)  name's length (4)  data's length (8)  name  data, padded to 8   for each content

A check is CRC-32 of what follows it, beginning with the segment's sequence. A content that would
fill more than a segment is not kept.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import Final
from zlib import crc32

__all__ = ["PINS_BYTES", "Pins"]

PINS_BYTES: Final = 16 << 20
_SEGMENTS: Final = 8
_START: Final = 16
_SEQUENCE = struct.Struct("=Q")
_CHECK = struct.Struct("=I")
_LENGTHS = struct.Struct("=IQ")
_HEAD_BYTES: Final = 16


class Pins:
    """A ring of contents by name. For any thread."""

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        self._map = mmap.mmap(descriptor, size)
        self._segment_bytes = size // _SEGMENTS & -8
        self._lock = threading.Lock()
        self._found: dict[bytes, tuple[int, int, int]] = {}  # sequence, where, length
        self._sequence = 0
        self._end = self._segment_bytes
        for sequence, segment in sorted(map(self._sequence_of, range(_SEGMENTS))):
            if sequence:
                self._read(sequence, segment)

    def pin(self, name: bytes, data: bytes) -> None:
        """Keep a content, unless it is kept already and not about to be pushed out.

        A name stands for one content, and is not empty.
        """
        assert name
        with self._lock:
            found = self._found.get(name)
            if found and self._sequence - found[0] < _SEGMENTS // 2:
                return
            length = _HEAD_BYTES + len(name) + len(data)
            if length > self._segment_bytes - _START:
                return
            if self._end + length > self._segment_bytes:
                self._begin_segment()
            body = _LENGTHS.pack(len(name), len(data)) + name + data
            at = self._segment * self._segment_bytes + self._end
            self._map[at : at + length] = _CHECK.pack(crc32(body, self._sequence)) + body
            self._found[name] = self._sequence, at + length - len(data), len(data)
            self._end += length + 7 & -8

    def pinned(self, name: bytes) -> bytes | None:
        """Give a content that is still kept."""
        with self._lock:
            found = self._found.get(name)
            return found and self._map[found[1] : found[1] + found[2]]

    def close(self) -> None:
        """Let go of the memory, not of the descriptor."""
        self._map.close()

    @property
    def _segment(self) -> int:
        return self._sequence % _SEGMENTS

    def _begin_segment(self) -> None:
        """Empty the oldest segment: its sequence goes first and the new one comes last."""
        self._sequence += 1
        begin = self._segment * self._segment_bytes
        self._map[begin : begin + _START] = bytes(_START)
        oldest = self._sequence - _SEGMENTS
        self._found = {name: at for name, at in self._found.items() if at[0] > oldest}
        self._map[begin + _START : begin + _START + _HEAD_BYTES] = bytes(_HEAD_BYTES)
        head = _SEQUENCE.pack(self._sequence)
        self._map[begin : begin + 12] = head + _CHECK.pack(crc32(head))
        self._end = _START

    def _sequence_of(self, segment: int) -> tuple[int, int]:
        """Give the sequence of a segment, 0 if it has none, and the segment."""
        begin = segment * self._segment_bytes
        head = self._map[begin : begin + _SEQUENCE.size]
        whole = self._map[begin + 8 : begin + 12] == _CHECK.pack(crc32(head))
        (sequence,) = _SEQUENCE.unpack(head)
        return sequence if whole and sequence % _SEGMENTS == segment else 0, segment

    def _read(self, sequence: int, segment: int) -> None:
        begin = segment * self._segment_bytes
        at, last = begin + _START, begin + self._segment_bytes
        while at + _HEAD_BYTES <= last:
            check = self._map[at : at + _CHECK.size]
            name_bytes, data_bytes = _LENGTHS.unpack_from(self._map, at + _CHECK.size)
            end = at + _HEAD_BYTES + name_bytes + data_bytes
            if end > last or not name_bytes:
                break
            body = self._map[at + _CHECK.size : end]
            if check != _CHECK.pack(crc32(body, sequence)):
                break
            name = body[_LENGTHS.size : _LENGTHS.size + name_bytes]
            self._found[name] = sequence, end - data_bytes, data_bytes
            at = end + 7 & -8
        self._sequence, self._end = sequence, at - begin
