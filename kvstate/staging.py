"""Content on its way into the store: in memory while it is small, then in a staging file.

It takes writes at any offset. Content that comes in order is hashed as it passes by; anything else
is read once more when it is sealed. What was published is never written again: a later write first
makes a copy of its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from kvstate.codec import Hasher, block_checksum, digest
from kvstate.errors import InvalidValue
from kvstate.faults import point
from kvstate.places import copy_between, raise_os_error, start_writing
from kvstate.sparse import (
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    next_data,
    next_hole,
    punch,
    reserve,
)

if TYPE_CHECKING:
    from kvstate.places import Place

__all__ = ["BLOCK_BYTES", "SIZE_MAX", "Content", "Staging", "Sums", "file_name", "new_blob"]

BLOCK_BYTES = 64 * 1024
"""What one checksum of a blob file covers."""
SIZE_MAX = 1 << 56
_READ_BYTES = 1 << 20
_CLAIM_BYTES = 16 << 20
_CLAIM_SHARE = 4
_START_BYTES = 8 << 20
_ZEROS = bytes(BLOCK_BYTES)


def new_blob() -> bytes:
    """Give a blob's identity.

    48 bits of milliseconds, so that neighbours in time are neighbours on disk, and 80 random bits.
    """
    return (time.time_ns() // 1_000_000).to_bytes(8, "big")[2:] + secrets.token_bytes(10)


def file_name(blob: bytes, generation: int) -> str:
    """Give the name of a blob's file in the generation."""
    return f"{blob.hex()}{generation:04x}"


class Content(NamedTuple):
    """Sealed content: what a blob's records will say."""

    size: int
    digest: bytes
    inline: bytes | None
    blob: bytes
    checksums: tuple[int, ...]
    sha256: bytes


class Sums:
    """Whole digest and block checksums of content that passes by in order."""

    def __init__(self) -> None:
        self._hasher = Hasher()
        self._tail = bytearray()
        self._checksums: list[int] = []
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hasher.update(data)
        self.size += len(data)
        view = memoryview(data)
        if self._tail:
            missing = BLOCK_BYTES - len(self._tail)
            self._tail += view[:missing]
            view = view[missing:]
            if len(self._tail) < BLOCK_BYTES:
                return
            self._checksums.append(block_checksum(bytes(self._tail)))
            self._tail.clear()
        while len(view) >= BLOCK_BYTES:
            self._checksums.append(block_checksum(view[:BLOCK_BYTES]))
            view = view[BLOCK_BYTES:]
        self._tail += view

    def finish(self) -> tuple[bytes, tuple[int, ...]]:
        """Give the digest and the checksums of the blocks."""
        tail = (block_checksum(bytes(self._tail)),) if self._tail else ()
        return self._hasher.digest(), (*self._checksums, *tail)


class Staging:
    """Content that can still change. Not for several threads at once: its owner locks."""

    def __init__(self, place: Place, inline_bytes_max: int, content: bytes = b"") -> None:
        """Begin empty, or with content that is at hand."""
        self.place = place
        self._inline_max = inline_bytes_max
        self._memory: bytearray | None = bytearray()
        self._fd = -1
        self._size = 0
        self._sums: Sums | None = None  # what is in memory is hashed when it is sealed
        self._whole: bytes | None = None
        self._claimed = 0
        self._reserved = False
        self._run = (0, 0)
        self.blob = new_blob()
        self.published = False
        self.proven = False
        """Whether a SHA-256 is made of the content when it is sealed."""
        if content and len(content) <= inline_bytes_max:
            self._whole, self._size = content, len(content)  # not copied before it changes
        elif content:
            self.write(0, content)

    @property
    def name(self) -> str:
        """The file's name: a new blob is in its generation 0."""
        return file_name(self.blob, 0)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of the data there; `Full` when there is no room for it."""
        end = offset + len(data)
        if end > SIZE_MAX:
            raise InvalidValue("content", f"it would have {end} bytes, {SIZE_MAX} are possible")
        self._open_up()
        if self._memory is not None and end > self._inline_max:
            self._spill()
        if self._sums is not None:
            if offset == self._sums.size == self._size:
                self._sums.update(data)
            else:
                self._sums = None
        if self._memory is not None:
            if offset > self._size:
                self._memory += bytes(offset - self._size)
            self._memory[offset:end] = data
        else:
            self.unshare()
            self._write_file(offset, data)
        self._size = max(self._size, end)
        return len(data)

    def _open_up(self) -> None:
        """Let content that was given whole be changed."""
        if self._whole is not None:
            self._memory = bytearray(self._whole)
            self._whole = None

    def _write_file(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                self._claim(len(view))
                count = os.pwrite(self._fd, view[:_CLAIM_BYTES], offset)
                view = view[count:]
                self._wrote(offset, count)
                offset += count
                self._claimed -= count
        except OSError as error:
            raise_os_error(error, str(self.place.path))

    def _wrote(self, offset: int, size: int) -> None:
        """Let the disk begin once much was written in order."""
        begin, end = self._run
        if offset != end:
            begin = offset
        end = offset + size
        if end - begin >= _START_BYTES:
            start_writing(self._fd, begin, end - begin)
            begin = end
        self._run = begin, end

    def _claim(self, size: int) -> None:
        """Ask for room, for more than the next write while there is plenty.

        A share of what there is, so that several writers that asked at once stay above the floor.
        """
        if self._claimed >= min(size, _CLAIM_BYTES):
            return
        room = self.place.claim(size)
        self._claimed = min(_CLAIM_BYTES, size + room // _CLAIM_SHARE)

    def read(self, offset: int, size: int) -> bytes:
        """Read what is there: shorter at the end, empty past it."""
        self._open_up()
        if self._memory is not None:
            return bytes(self._memory[offset : offset + size])
        try:
            return os.pread(self._fd, max(0, min(size, self._size - offset)), offset)
        except OSError as error:
            raise_os_error(error, str(self.place.path))

    def truncate(self, size: int) -> None:
        """Cut the content, or extend it with zeros."""
        if size > SIZE_MAX:
            raise InvalidValue("content", f"{size} bytes are more than {SIZE_MAX}")
        if size == self._size:
            return
        self._open_up()
        if self._memory is not None and size > self._inline_max:
            self._spill()
        self._sums = Sums() if size == 0 and self._memory is None else None
        if self._memory is not None:
            del self._memory[size:]
            self._memory += bytes(max(0, size - len(self._memory)))
        else:
            self.unshare()
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                raise_os_error(error, str(self.place.path))
        self._size = size

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """Reserve room, make a hole or zeros, as fallocate(2) does with these modes."""
        end = offset + length
        grows = end if not mode & KEEP_SIZE and end > self._size else self._size
        if grows > SIZE_MAX:
            raise InvalidValue("content", f"{grows} bytes are more than {SIZE_MAX}")
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self._clear(offset, min(end, self._size))
            self.truncate(grows)
            return
        self.place.claim(length)  # all of it, though some may be there: a refusal leaves nothing
        self.truncate(grows)
        if self._memory is None and self._whole is None:
            self.unshare()
            try:
                reserve(self._fd, mode, offset, length)
            except OSError as error:
                raise_os_error(error, str(self.place.path))
            self._reserved = self._reserved or end > self._size

    def _clear(self, offset: int, end: int) -> None:
        """Let a range within the content be zeros, and no blocks on the disk."""
        if offset >= end:
            return
        self._open_up()
        self._sums = None
        if self._memory is not None:
            self._memory[offset:end] = bytes(end - offset)
            return
        self.unshare()
        try:
            punch(self._fd, offset, end - offset)
        except OSError as error:
            raise_os_error(error, str(self.place.path))

    def seek(self, offset: int, *, data: bool) -> int:
        """Give where the next data, or else the next hole, is; the size when there is none."""
        if self._memory is not None or self._whole is not None:
            return offset if data else self._size
        find = next_data if data else next_hole
        return find(self._fd, offset, self._size)

    def extend(self, data: bytes) -> None:
        """Write data at the end; blocks of nothing but zeros become holes."""
        for at in range(0, len(data), BLOCK_BYTES):
            block = data[at : at + BLOCK_BYTES]
            if self._memory is None and block == _ZEROS[: len(block)]:
                sums, self._sums = self._sums, None
                self.truncate(self._size + len(block))
                if sums is not None:
                    sums.update(block)
                    self._sums = sums
            else:
                self.write(self._size, block)

    def take(self, source: int, size: int) -> None:
        """Take so many bytes of a file that is open, as all there is: shared blocks where it can.

        Holes stay holes. They are read again when the content is sealed.
        """
        if size <= self._inline_max:
            self.write(0, os.pread(source, size, 0) if size else b"")
            return
        if size > SIZE_MAX:
            raise InvalidValue("content", f"{size} bytes are more than {SIZE_MAX}")
        self._open_up()
        self._spill()
        self._sums = None
        try:
            copy_between(source, self._fd, size)
        except OSError as error:
            raise_os_error(error, str(self.place.path))
        self._size = size

    @property
    def in_file(self) -> bool:
        """Whether the content is in a file."""
        return self._memory is None

    def _spill(self) -> None:
        assert self._memory is not None
        data = bytes(self._memory)
        self._fd = self.place.create(self.name)
        try:
            self._write_file(0, data)
        except BaseException:
            self.place.settle(self.name)  # what was written so far stays in memory, whole
            os.close(self._fd)
            self._fd = -1
            raise
        self._memory = None
        self._sums = Sums()
        self._sums.update(data)
        point("staged")

    def unshare(self) -> None:
        """Have a file of its own, under a new name: a published one is never written again."""
        if not self.published:
            return
        self.place.claim(self._size)
        blob = new_blob()
        name = file_name(blob, 0)
        fd = self.place.create(name)
        try:
            copy_between(self._fd, fd, self._size)
        except BaseException as error:
            self.place.settle(name)
            os.close(fd)
            if isinstance(error, OSError):
                raise_os_error(error, str(self.place.path))
            raise
        os.close(self._fd)
        self._fd, self.blob, self.published, self._claimed = fd, blob, False, 0

    def seal(self) -> Content:
        """Give size, digest and checksums of the content as it is now."""
        if self._memory is not None or not self._size:
            # What was cut to nothing has no file, either.
            data = bytes(self._memory or b"") if self._whole is None else self._whole
            proof = hashlib.sha256(data).digest() if self.proven else b""
            return Content(len(data), digest(data), data, self.blob, (), proof)
        sums = self._sums
        if sums is None or sums.size != self._size:
            sums = Sums()
            while data := self.read(sums.size, _READ_BYTES):
                sums.update(data)
            self._sums = None
        whole, checksums = sums.finish()
        return Content(self._size, whole, None, self.blob, checksums, self._proof())

    def _proof(self) -> bytes:
        """Give the SHA-256 of a file's content, if it is wanted."""
        if not self.proven:
            return b""
        proof = hashlib.sha256()
        offset = 0
        while data := self.read(offset, _READ_BYTES):
            proof.update(data)
            offset += len(data)
        return proof.digest()

    def publish(self) -> None:
        """Make the file durable under its final name."""
        if not self.published:
            if self._reserved:
                os.ftruncate(self._fd, self._size)  # lets go of the room that was not used
                self._reserved = False
            self.place.publish(self.name, self._fd)
            self.published = True

    def settle(self) -> None:
        """Drop the note in the staging folder: the records name the file now."""
        if self.published:
            self.place.settle(self.name)

    def unpublish(self) -> None:
        """Take the final name back: no record names it, and nobody ever saw it."""
        if self.published:
            self.place.remove(self.name)
            self.published = False

    def discard(self) -> None:
        """Let go of memory and descriptor, and of a file that was not published."""
        if self._fd >= 0:
            if not self.published:
                self.place.withdraw(self.name)  # publishing may have failed half-way
            os.close(self._fd)
            self._fd = -1
        self._memory = bytearray()
        self._whole = None
        self._size = 0
        self.published = False
