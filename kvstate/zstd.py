"""Content as standard seekable zstd, packed and unpacked: the only door of the zstd library.

    frame 0 | frame 1 | ... | seek table

Every frame but the last holds `FRAME_BYTES` of content and decompresses alone. The seek table is a
skippable frame, which decompressors pass over (``zstd -d`` restores the content by hand):

    magic 184D2A5E (4)  bytes that follow (4)
    per frame: compressed bytes (4)  content bytes (4)  low half of the content's XXH64 (4)
    frames (4)  descriptor (1)  magic 8F92EAB1 (4)

Numbers are little-endian. The format is that of zstd's contrib/seekable_format, which others read.

The table is for others: kvstate keeps `Frames` in its records, with a checksum of every byte of the
file, so that a file is verified at the speed of memory, without decompressing. Descriptors are read
and written at offsets, nothing here opens, syncs or names a file, and an `OSError` passes as it is.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from array import array
from collections import deque
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from kvstate.codec import block_checksum
from kvstate.errors import InvalidValue
from kvstate.staging import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor
    from types import ModuleType

__all__ = [
    "FRAME_BYTES",
    "SIZE_MAX",
    "Corrupt",
    "Frames",
    "Table",
    "pack",
    "pack_verified",
    "read_table",
    "record_count",
    "unpack_frame",
    "verify_packed",
]

T = TypeVar("T")
R = TypeVar("R")

FRAME_BYTES = 1 << 20
"""Content per frame: what a read of one byte decompresses (docs/decisions/006)."""
_FRAMES_MAX = 1 << 27  # the format's, as is the next
_CONTENT_MAX = 1 << 30
SIZE_MAX = _FRAMES_MAX * FRAME_BYTES
"""Content that one packed file can hold, in bytes."""
_RECORD_FRAMES = 4096
_READ_BYTES = 1 << 20

_HEAD = struct.Struct("<II")
_FOOT = struct.Struct("<IBI")
_FACTS = struct.Struct("<IIQ")
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_WITH_CHECKSUMS = 0x80
_RESERVED = 0x7C
_FRAME_MIN = 8  # no frame, not even a skippable one, is smaller
_RATIO_MAX = 1 << 15  # a block of 128 KiB takes at least 4 bytes
_WINDOW_LOG = 23  # what the format asks of every decoder, and all that levels below 20 use
_WINDOW_LOG_MAX = 30


class Corrupt(ValueError):
    """Packed content that is not what it should be; ``frame`` is the number of the wrong frame.

    It is None where the seek table or the file as a whole is wrong.
    """

    def __init__(self, why: str, frame: int | None = None) -> None:
        """Say what was met and, if it is one frame's fault, in which."""
        super().__init__(why if frame is None else f"frame {frame}: {why}")
        self.frame = frame


class Frames(NamedTuple):
    """What a packed file consists of; together its checksums cover every byte of the file."""

    sizes: array[int]
    """Compressed bytes of each frame (``array("I")``)."""
    checksums: array[int]
    """xxh3-64 of the compressed bytes of each frame (``array("Q")``)."""
    table_size: int
    table_checksum: int

    @property
    def size(self) -> int:
        """The bytes of the packed file."""
        return sum(self.sizes) + self.table_size

    def offsets(self) -> array[int]:
        """Give where each frame begins in the file, and last where the seek table does."""
        return array("Q", accumulate(self.sizes, initial=0))

    def to_records(self) -> list[bytes]:
        """Give the bytes to keep: one record per 4096 frames (48 KiB), at least one.

        Each is ``compressed size (4), ... | checksum (8), ...``; before the first stands
        ``frames (4) | bytes of the seek table (4) | its checksum (8)``.
        """
        facts = _FACTS.pack(len(self.sizes), self.table_size, self.table_checksum)
        parts = [
            _little(self.sizes[first : first + _RECORD_FRAMES])
            + _little(self.checksums[first : first + _RECORD_FRAMES])
            for first in range(0, len(self.sizes), _RECORD_FRAMES)
        ]
        return [facts + b"".join(parts[:1]), *parts[1:]]

    @classmethod
    def from_records(cls, records: Iterable[bytes]) -> Self:
        """Give what was kept; `Corrupt` when a record is missing or of another length."""
        data = iter(records)
        first = next(data, b"")
        if len(first) < _FACTS.size:
            raise Corrupt("the record of the frames is too short")
        count, table_size, table_checksum = _FACTS.unpack_from(first)
        sizes, checksums = array("I"), array("Q")
        part = first[_FACTS.size :]
        while True:
            expected = min(_RECORD_FRAMES, count - len(sizes))
            if len(part) != expected * 12:
                raise Corrupt(f"the record of the frames from {len(sizes)} has {len(part)} bytes")
            sizes.extend(_array("I", part[: expected * 4]))
            checksums.extend(_array("Q", part[expected * 4 :]))
            if len(sizes) == count:
                return cls(sizes, checksums, table_size, table_checksum)
            part = next(data, b"")


class Table(NamedTuple):
    """What a file's own seek table says of it."""

    sizes: array[int]
    """Compressed bytes of each frame (``array("I")``)."""
    contents: array[int]
    """Content bytes of each frame; other writers' frames need not be `FRAME_BYTES`."""
    table_size: int


class _Part(NamedTuple):
    """One frame, where it was written."""

    number: int
    offset: int
    size: int
    checksum: int


def record_count(size: int) -> int:
    """Give how many records `Frames.to_records` makes for so many bytes of content."""
    return max(1, -(-size // (FRAME_BYTES * _RECORD_FRAMES)))


# Packing


def pack(
    source: int,
    size: int,
    target: int,
    level: int,
    *,
    told: Callable[[int], None] | None = None,
    threads: int = 1,
) -> Frames:
    """Write ``size`` bytes of one descriptor, packed, to another, which is empty; say what it has.

    Memory is a few MiB per thread. ``level`` is zstd's; `ValueError` where it has none such.
    ``told`` gets the count of content bytes of each frame that was written.
    """
    return _pack(source, size, target, level, None, told, threads)


def pack_verified(
    source: int,
    size: int,
    target: int,
    level: int,
    checksums: Sequence[int],
    *,
    told: Callable[[int], None] | None = None,
    threads: int = 1,
) -> Frames:
    """Pack, and read every frame back from ``target``, while later ones are compressed.

    What was read back is decompressed and compared with ``checksums``, the xxh3-64 of each block
    of 64 KiB of the content: `Corrupt` when it is something else, be it the fault of the source, of
    memory or of the target. ``told`` gets the count of content bytes that were verified.
    """
    if len(checksums) != -(-size // BLOCK_BYTES):
        raise InvalidValue("checksums", f"{len(checksums)} are not those of {size} bytes")
    return _pack(source, size, target, level, checksums, told, threads)


def _pack(
    source: int,
    size: int,
    target: int,
    level: int,
    checksums: Sequence[int] | None,
    told: Callable[[int], None] | None,
    threads: int,
) -> Frames:
    if size > SIZE_MAX:
        raise InvalidValue("content", f"{size} bytes are more than {SIZE_MAX}")
    zstd = _library()
    # Its checksum costs 2 %, is what `zstd -d` verifies, and is the seek table's, too.
    options = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    sizes, sums, entries = array("I"), array("Q"), array("I")

    def compress(number: int) -> bytes:
        plain = _read(source, _content(size, number), number * FRAME_BYTES)
        return bytes(zstd.compress(plain, options=options))

    def write(packed: Iterable[bytes]) -> Iterator[_Part]:
        offset = 0
        for number, data in enumerate(packed):
            _write(target, data, offset)
            part = _Part(number, offset, len(data), block_checksum(data))
            sizes.append(part.size)
            sums.append(part.checksum)
            own_checksum = int.from_bytes(data[-4:], "little")
            entries.extend((part.size, _content(size, number), own_checksum))
            yield part
            offset += part.size

    def verify(part: _Part) -> _Part:
        if checksums is not None:
            _verify_part(target, part, _content(size, part.number), checksums)
        return part

    with _pool(threads) as pool:
        packed = _in_order(pool, compress, range(-(-size // FRAME_BYTES)), threads)
        written = write(packed)
        for part in written if checksums is None else _in_order(pool, verify, written, threads):
            if told is not None:
                told(_content(size, part.number))
    table = _seek_table(entries)
    _write(target, table, sum(sizes))
    if checksums is not None and _read(target, len(table), sum(sizes)) != table:
        raise Corrupt("the seek table was written, and something else is read")
    return Frames(sizes, sums, len(table), block_checksum(table))


def _verify_part(target: int, part: _Part, size: int, checksums: Sequence[int]) -> None:
    data = _read(target, part.size, part.offset)
    if block_checksum(data) != part.checksum:
        raise Corrupt("it was written, and something else is read", part.number)
    view = memoryview(unpack_frame(data, size, part.number))
    first = part.number * (FRAME_BYTES // BLOCK_BYTES)
    for block, begin in enumerate(range(0, size, BLOCK_BYTES), first):
        if block_checksum(view[begin : begin + BLOCK_BYTES]) != checksums[block]:
            raise Corrupt(f"block {block} of the content fails its checksum", part.number)


def _seek_table(entries: array[int]) -> bytes:
    head = _HEAD.pack(_SKIPPABLE, len(entries) * 4 + _FOOT.size)
    return head + _little(entries) + _FOOT.pack(len(entries) // 3, _WITH_CHECKSUMS, _SEEKABLE)


def _content(size: int, number: int) -> int:
    return min(FRAME_BYTES, size - number * FRAME_BYTES)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor | None]:
    """Give so many threads, or none for one; after it, none of them touches a descriptor."""
    if threads <= 1:
        yield None
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  (costs 5 ms)

    pool = ThreadPoolExecutor(threads, "kvstate-zstd")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor | None, function: Callable[[T], R], items: Iterable[T], threads: int
) -> Iterator[R]:
    """Give the results in order, with at most two items per thread under way."""
    if pool is None:
        yield from map(function, items)
        return
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > 2 * threads:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


# Unpacking


def unpack_frame(data: bytes | memoryview, size: int, frame: int | None = None) -> bytes:
    """Give the content of one frame; `Corrupt`, which names ``frame``, if it is not ``size`` bytes.

    Whatever ``data`` is, no more is allocated than 3 times ``size``, and 8 MiB.
    """
    zstd = _library()
    window = min(max(_WINDOW_LOG, size.bit_length()), _WINDOW_LOG_MAX)
    one = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window})
    try:
        content = bytes(one.decompress(data, size + 1))
    except zstd.ZstdError as error:
        if "Allocation error" in str(error):  # then nothing is known of the frame
            raise MemoryError(str(error)) from None
        raise Corrupt(str(error), frame) from None
    if len(content) > size:
        raise Corrupt(f"it holds more than {size} bytes", frame)
    if not one.eof:
        raise Corrupt("it ends early", frame)
    if len(content) != size:
        raise Corrupt(f"it holds {len(content)} bytes, not {size}", frame)
    if one.unused_data:
        raise Corrupt(f"{len(one.unused_data)} bytes follow it", frame)
    return content


def verify_packed(fd: int, frames: Frames, told: Callable[[int], None] | None = None) -> None:
    """Read a packed file and compare every byte's checksum; `Corrupt` names the first wrong frame.

    Nothing is decompressed. ``told`` gets the counts of the file's bytes as they are read.
    """
    file_size = os.fstat(fd).st_size
    if file_size != frames.size:
        raise Corrupt(f"the file has {file_size} bytes, {frames.size} were written")
    sizes = frames.sizes + array("I", [frames.table_size])
    checksums = frames.checksums + array("Q", [frames.table_checksum])
    buffer = memoryview(bytearray(max(_READ_BYTES, *sizes)))
    first = offset = 0
    while first < len(sizes):
        last, length = first, 0
        while last < len(sizes) and length + sizes[last] <= len(buffer):
            length += sizes[last]
            last += 1
        _read_into(fd, buffer[:length], offset)
        begin = 0
        for number in range(first, last):
            end = begin + sizes[number]
            if block_checksum(buffer[begin:end]) != checksums[number]:
                if number == len(frames.sizes):
                    raise Corrupt("the seek table fails its checksum")
                raise Corrupt("it fails its checksum", number)
            begin = end
        first, offset = last, offset + length
        if told is not None:
            told(length)


def read_table(fd: int) -> Table:
    """Read the seek table of a file that no record describes; `Corrupt` when it has none.

    Counts and sizes are compared with the file's size before memory is taken for them. Frames are
    not read: what they hold is known when `unpack_frame` was asked for as much as the table says.
    """
    file_size = os.fstat(fd).st_size
    if file_size < _HEAD.size + _FOOT.size:
        raise Corrupt(f"{file_size} bytes are too few for a seek table")
    foot = _read(fd, _FOOT.size, file_size - _FOOT.size)
    count, descriptor, magic = _FOOT.unpack(foot)
    if magic != _SEEKABLE or descriptor & _RESERVED:
        raise Corrupt("it does not end as a seek table does")
    words = 3 if descriptor & _WITH_CHECKSUMS else 2
    length = count * words * 4
    table_size = _HEAD.size + length + _FOOT.size
    packed = file_size - table_size
    if count > _FRAMES_MAX or packed < count * _FRAME_MIN:
        raise Corrupt(f"a seek table of {count} frames does not fit {file_size} bytes")
    if _HEAD.unpack(_read(fd, _HEAD.size, packed)) != (_SKIPPABLE, table_size - _HEAD.size):
        raise Corrupt("the seek table does not begin where it should")
    entries = _array("I", _read(fd, length, packed + _HEAD.size))
    table = Table(entries[::words], entries[1::words], table_size)
    if sum(table.sizes) != packed:
        raise Corrupt(f"the frames of the seek table have {sum(table.sizes)} bytes, not {packed}")
    for number, (size, content) in enumerate(zip(table.sizes, table.contents, strict=True)):
        if size < _FRAME_MIN or content > min(_CONTENT_MAX, size * _RATIO_MAX):
            raise Corrupt(f"{size} bytes cannot hold {content}", number)
    return table


# Bytes


def _library() -> ModuleType:
    """Load zstd when it is needed: a store without packed content does not pay for it."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415
    else:
        from backports import zstd  # noqa: PLC0415
    return zstd


def _read_into(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise OSError(errno.EIO, "the file ended early")
        view = view[count:]
        offset += count


def _read(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file ended early")
        data += more
    return data


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _array(code: str, data: bytes) -> array[int]:
    numbers: array[int] = array(code)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
