"""Reading a blob: every byte is verified before it is given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from kvstate.codec import block_checksum
from kvstate.errors import Damaged
from kvstate.places import copy_between, raise_os_error
from kvstate.staging import BLOCK_BYTES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

__all__ = ["BlobReader"]


class BlobReader:
    """The bytes of one blob, verified as they are read; right whatever happens to its name."""

    def __init__(
        self, size: int, content: bytes | None, fd: int, sums: array[int], what: str
    ) -> None:
        self.size = size
        self._content = content
        self._fd = fd
        self._sums = sums
        self._what = what
        self._last: tuple[int, bytes] = (-1, b"")

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
        return data[start : start + size]

    def _blocks(self, first: int, last: int) -> bytes:
        begin = first * BLOCK_BYTES
        wanted = min((last + 1) * BLOCK_BYTES, self.size) - begin
        try:
            data = os.pread(self._fd, wanted, begin)
        except OSError as error:
            raise_os_error(error, self._what)
        if len(data) != wanted:
            raise Damaged(self._what, f"it ends at {begin + len(data)} of {self.size} bytes")
        view = memoryview(data)
        for number in range(first, last + 1):
            at = (number - first) * BLOCK_BYTES
            if block_checksum(view[at : at + BLOCK_BYTES]) != self._sums[number]:
                raise Damaged(self._what, f"block {number} fails its checksum")
        return data

    def file_size(self) -> int:
        """Give the size of the file as it is."""
        return self.size if self._fd < 0 else os.fstat(self._fd).st_size

    def copy_to(self, target: int, told: Callable[[int], None] | None = None) -> None:
        """Copy the file as it is, unverified, to a descriptor; ``told`` of the bytes as they go."""
        copy_between(self._fd, target, self.size, told)

    def twin(self, fd: int, what: str) -> BlobReader:
        """Give a reader that expects the same content of another file."""
        return BlobReader(self.size, None, fd, self._sums, what)

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
