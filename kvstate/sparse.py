"""Holes in files: making them, finding them, and room that is asked for ahead.

For content on its way in and for what is stored of it; plain system calls, and what is done where
a file system, or a system, has none of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KEEP_SIZE", "PUNCH_HOLE", "ZERO_RANGE", "next_data", "next_hole", "punch", "reserve"]

KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16
"""The modes of fallocate(2)."""

_ZEROS: Final = bytes(1 << 20)
_UNABLE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of a file, which ends within it, a hole, or else write zeros there."""
    try:
        _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        end = offset + length
        while offset < end:
            offset += os.pwrite(fd, _ZEROS[: end - offset], offset)


def reserve(fd: int, mode: int, offset: int, length: int) -> None:
    """Have room for a range: mode 0 lets the file grow to its end, `KEEP_SIZE` does not.

    Where the file system cannot, nothing is reserved.
    """
    try:
        _fallocate(fd, mode, offset, length)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        if not mode & KEEP_SIZE and os.fstat(fd).st_size < offset + length:
            os.ftruncate(fd, offset + length)


def next_data(fd: int, offset: int, size: int) -> int:
    """Give where the next data of a file of this size is; its size when there is none."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        return _all_data(error, offset)


def next_hole(fd: int, offset: int, size: int) -> int:
    """Give where the next hole of a file of this size is; its end is one."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_HOLE), size)
    except OSError as error:
        return _all_data(error, size)


def _all_data(error: OSError, answer: int) -> int:
    if error.errno not in _UNABLE:
        raise error
    return answer


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    call = _call()
    while call is None or call(fd, mode, offset, length):
        number = errno.EOPNOTSUPP if call is None else ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


@lru_cache(maxsize=1)
def _call() -> Callable[[int, int, int, int], int] | None:
    """Give the system's fallocate, if it has one."""
    library = ctypes.CDLL(None, use_errno=True)
    for name in ("fallocate64", "fallocate"):
        call = getattr(library, name, None)
        if call is not None:
            call.restype = ctypes.c_int
            call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            return call  # type: ignore[no-any-return]
    return None
