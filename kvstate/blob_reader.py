"""Reading a blob: every byte is verified before it is given."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, Self

from kvstate.codec import block_checksum
from kvstate.errors import Damaged
from kvstate.places import copy_between, raise_os_error
from kvstate.sparse import next_data, next_hole
from kvstate.staging import BLOCK_BYTES
from kvstate.zstd import FRAME_BYTES, Corrupt, Frames, unpack_frame, verify_packed

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

__all__ = ["BlobReader", "PackedReader"]

_READ_BYTES = 1 << 20
_ZEROS = bytes(_READ_BYTES)


class BlobReader:
    """The bytes of one blob, verified as they are read; right whatever happens to its name."""

    def __init__(
        self, size: int, content: bytes | None, fd: int, sums: array[int], what: str
    ) -> None:
        self.size = size
        self.sums = sums
        """The xxh3-64 of each block of 64 KiB."""
        self._content = content
        self._fd = fd
        self._what = what
        self._last: tuple[int, bytes] = (-1, b"")
        self.on_damage: Callable[[str], None] | None = None
        """What to call with what is wrong, before `Damaged` is raised."""

    def pread(self, offset: int, size: int) -> bytes:
        """Give up to ``size`` bytes from there; fewer at the end. `Damaged` when they are wrong."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self._content is not None:
            return self._content[offset : offset + size]
        first, start = divmod(offset, BLOCK_BYTES)
        last = (offset + size - 1) // BLOCK_BYTES
        number, block = self._last
        if first == last == number:
            return block[start : start + size]
        data = self._blocks(first, last)
        if first == last:
            self._last = (first, data)
        if start == 0 and len(data) == size:
            return data
        return data[start : start + size]

    def _blocks(self, first: int, last: int) -> bytes:
        begin = first * BLOCK_BYTES
        wanted = min((last + 1) * BLOCK_BYTES, self.size) - begin
        data = self._bytes(wanted, begin)
        if len(data) != wanted:
            self.damaged(f"it ends at {begin + len(data)} of {self.size} bytes")
        self._verify(data, first)
        return data

    def _bytes(self, size: int, offset: int) -> bytes:
        """Read the file; less at its end only: an error on the way says nothing of the bytes."""
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise_os_error(error, self._what)
        return data

    def _verify(self, data: bytes, first: int) -> None:
        view = memoryview(data)
        for number, at in enumerate(range(0, len(data), BLOCK_BYTES), first):
            if block_checksum(view[at : at + BLOCK_BYTES]) != self.sums[number]:
                self.damaged(f"block {number} fails its checksum")

    def damaged(self, why: str) -> NoReturn:
        """Raise `Damaged`, after whoever wants to know was told."""
        if self.on_damage is not None:
            self.on_damage(why)
        raise Damaged(self._what, why)

    def verify_file(self, told: Callable[[int], None] | None = None) -> None:
        """Compare the checksums of every byte of the file as it lies there, its size included."""
        if self._content is not None:
            return
        found = self.file_size()
        if found != self.size:
            self.damaged(f"it has {found} bytes, {self.size} were written")
        buffer = memoryview(bytearray(_READ_BYTES))
        for begin in range(0, self.size, _READ_BYTES):
            view = buffer[: min(_READ_BYTES, self.size - begin)]
            self._fill(view, begin)
            for at in range(0, len(view), BLOCK_BYTES):
                number = (begin + at) // BLOCK_BYTES
                if block_checksum(view[at : at + BLOCK_BYTES]) != self.sums[number]:
                    self.damaged(f"block {number} fails its checksum")
            if told is not None:
                told(len(view))

    def _fill(self, view: memoryview, offset: int) -> None:
        try:
            while view:
                count = os.preadv(self._fd, [view], offset)
                if not count:
                    self.damaged(f"it ends at {offset} of {self.size} bytes")
                view = view[count:]
                offset += count
        except OSError as error:
            raise_os_error(error, self._what)

    def seek(self, offset: int, *, data: bool) -> int:
        """Give where the next data, or else the next hole, is; the size when there is none.

        A hole is believed when there were zeros: `Damaged` where something else was written.
        """
        if self._fd < 0 or self.frames is not None:
            return offset if data else self.size
        try:
            found = (next_data if data else next_hole)(self._fd, offset, self.size)
        except OSError as error:
            raise_os_error(error, self._what)
        if data and found > offset:
            self._verify_hole(offset, found)
        return found

    def _verify_hole(self, offset: int, end: int) -> None:
        for number in range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            begin = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, self.size - begin)
            if begin >= offset and begin + size <= end:
                if self.sums[number] != _checksum_of_zeros(size):
                    self.damaged(f"block {number} is a hole, and was not written so")
            else:
                self.pread(begin, size)

    def file_size(self) -> int:
        """Give the size of the file as it is."""
        return self.size if self._fd < 0 else os.fstat(self._fd).st_size

    @property
    def name(self) -> str:
        """What it is, for people."""
        return self._what

    @property
    def fd(self) -> int:
        """The file; -1 for small content."""
        return self._fd

    @property
    def frames(self) -> Frames | None:
        """What a packed file consists of; None for others."""
        return None

    def copy_to(self, target: int, told: Callable[[int], None] | None = None) -> None:
        """Copy the file as it is, unverified, to a descriptor; ``told`` of the bytes as they go."""
        copy_between(self._fd, target, self.size, told)

    def write_to(self, target: int, told: Callable[[int], None] | None = None) -> None:
        """Write the content, verified, to a new file; ``told`` of the bytes as they go.

        What is nothing but zeros becomes a hole.
        """
        os.ftruncate(target, self.size)
        for offset in range(0, self.size, _READ_BYTES):
            data = self.pread(offset, _READ_BYTES)
            if data != _ZEROS[: len(data)]:
                view, at = memoryview(data), offset
                while view:
                    count = os.pwrite(target, view, at)
                    view = view[count:]
                    at += count
            if told is not None:
                told(len(data))

    def twin(self, fd: int, what: str) -> BlobReader:
        """Give a reader that expects the same content, as it is, of another file."""
        return BlobReader(self.size, None, fd, self.sums, what)

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@lru_cache(maxsize=16)
def _checksum_of_zeros(size: int) -> int:
    return block_checksum(_ZEROS[:size])


class PackedReader(BlobReader):
    """The bytes of a packed blob: whole frames are read, verified, unpacked, verified again."""

    def __init__(self, size: int, fd: int, sums: array[int], frames: Frames, what: str) -> None:
        super().__init__(size, None, fd, sums, what)
        self._frames = frames
        self._offsets = frames.offsets()
        self._unpacked: tuple[int, bytes] = (-1, b"")

    @property
    def frames(self) -> Frames | None:
        """What the file consists of."""
        return self._frames

    def _blocks(self, first: int, last: int) -> bytes:
        begin = first * BLOCK_BYTES
        end = min((last + 1) * BLOCK_BYTES, self.size)
        parts = []
        for number in range(begin // FRAME_BYTES, (end - 1) // FRAME_BYTES + 1):
            at = number * FRAME_BYTES
            content = self._frame(number)
            parts.append(content[max(0, begin - at) : end - at])
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._verify(data, first)
        return data

    def _frame(self, number: int) -> bytes:
        known, content = self._unpacked
        if known == number:
            return content
        size = self._frames.sizes[number]
        data = self._bytes(size, self._offsets[number])
        if len(data) != size or block_checksum(data) != self._frames.checksums[number]:
            self.damaged(f"frame {number} fails its checksum")
        try:
            expected = min(FRAME_BYTES, self.size - number * FRAME_BYTES)
            content = unpack_frame(data, expected, number)
        except Corrupt as error:
            self.damaged(str(error))
        self._unpacked = (number, content)
        return content

    def verify_file(self, told: Callable[[int], None] | None = None) -> None:
        """Compare the checksums of every byte of the file as it lies there, unpacking nothing."""
        try:
            verify_packed(self._fd, self._frames, told)
        except Corrupt as error:
            self.damaged(str(error))
        except OSError as error:
            raise_os_error(error, self._what)

    def copy_to(self, target: int, told: Callable[[int], None] | None = None) -> None:
        """Copy the file as it is, unverified, to a descriptor; ``told`` of the bytes as they go."""
        copy_between(self._fd, target, self._frames.size, told)

    def twin(self, fd: int, what: str) -> BlobReader:
        """Give a reader that expects the same content, as it is, of another file."""
        return PackedReader(self.size, fd, self.sums, self._frames, what)
