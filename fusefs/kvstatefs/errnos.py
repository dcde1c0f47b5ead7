"""The one table from the store's errors to the numbers that programs know (errno)."""

from __future__ import annotations

import errno
from typing import Final

from kvstate.errors import (
    Compacted,
    Conflict,
    Damaged,
    Denied,
    Exists,
    Full,
    Incompatible,
    InvalidName,
    InvalidValue,
    NotFound,
    QuotaExceeded,
    StateError,
    Unavailable,
)
from kvstate.names import NAME_BYTES_MAX, PATH_BYTES_MAX

__all__ = ["TABLE", "errno_of"]

TABLE: Final[dict[type[BaseException], int]] = {
    NotFound: errno.ENOENT,
    Exists: errno.EEXIST,
    Conflict: errno.ENOTEMPTY,
    InvalidName: errno.EINVAL,
    InvalidValue: errno.EINVAL,
    Full: errno.ENOSPC,
    QuotaExceeded: errno.EDQUOT,
    Damaged: errno.EIO,
    Incompatible: errno.EIO,
    Compacted: errno.ESTALE,
    Denied: errno.EPERM,
    Unavailable: errno.EIO,
    StateError: errno.EIO,
    UnicodeError: errno.EILSEQ,
    MemoryError: errno.ENOMEM,
    RecursionError: errno.ENAMETOOLONG,
    Exception: errno.EIO,
}
"""The nearest class in an error's own order of classes decides; an `OSError` has its number."""


def errno_of(error: BaseException) -> int:
    """Give the number for an error."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, InvalidName):
        return _of_name(error)
    if isinstance(error, Unavailable) and error.retry:
        return errno.EAGAIN
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return errno.EIO


def _of_name(error: InvalidName) -> int:
    """Tell a name that is too long, or not UTF-8, from one with characters that are not allowed."""
    why = str(error.facts[2]) if len(error.facts) > 2 else ""
    if "UTF-8" in why:
        return errno.EILSEQ
    if f"{NAME_BYTES_MAX} are allowed" in why or f"more than {PATH_BYTES_MAX}" in why:
        return errno.ENAMETOOLONG
    return errno.EINVAL
