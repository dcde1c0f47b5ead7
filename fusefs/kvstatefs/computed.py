"""Files that are computed: what they hold is made when somebody looks, and cannot be written.

Programs take the size that `stat` says for what a read gives right after (tar, cp). So what a stat
told of is what the next open gives, for a second; and who has a file open reads what it held then.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from kvstate.names import NAME_BYTES_MAX
from kvstatefs.attributes import user_attribute
from kvstatefs.handles import ReadingHandle
from kvstatefs.nodes import refuse
from kvstatefs.views import PlainView

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.clock import Clock
    from kvstatefs.nodes import Attributes, Changes, Node

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "ComputedHandle",
    "ComputedView",
    "Text",
    "check_length",
    "check_reading",
    "read_only_mode",
]

FOLDER_MODE: Final = stat.S_IFDIR | 0o555
FILE_MODE: Final = stat.S_IFREG | 0o444
_WRITE_BITS: Final = 0o222
_FRESH_SECONDS: Final = 1.0


class Made(NamedTuple):
    """A computed text, and since when it has been this one (nanoseconds since 1970 UTC)."""

    text: bytes
    since_ns: int


class Text:
    """A computed text, made anew when it is a second old."""

    def __init__(
        self,
        make: Callable[[], bytes],
        clock: Clock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._last = Made(b"", 0)
        self._made = self._told = -_FRESH_SECONDS

    def told(self) -> Made:
        """Give the text to one who says its size to somebody."""
        with self._lock:
            now = self._now()
            if now - self._made >= _FRESH_SECONDS:
                text = self._make()
                if text != self._last.text:
                    self._last = Made(text, self._clock.now_ns())
                self._made = now
            self._told = now
            return self._last

    def opened(self) -> Made:
        """Give the text to one who opens it: that of which the size was just told, if it was."""
        with self._lock:
            if self._now() - self._told < _FRESH_SECONDS:
                return self._last
        return self.told()


class ComputedHandle(ReadingHandle):
    """A computed text open for reading: what it was when it was opened."""

    def __init__(self, text: bytes, attributes: Attributes) -> None:
        self._text = text
        self._attributes = attributes._replace(size=len(text))

    def read(self, offset: int, size: int) -> bytes:
        """Read what was computed."""
        return self._text[offset : offset + size]

    def attributes(self) -> Attributes:
        """Give the file's attributes as they were when it was opened."""
        return self._attributes


class ComputedView(PlainView):
    """A part of the tree that is computed: nothing in it can be changed."""

    def setattr(self, node: Node, changes: Changes) -> NoReturn:
        """Refuse: EACCES for writing, EPERM for attributes."""
        del node
        refuse(errno.EPERM if changes.size is None else errno.EACCES)

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> NoReturn:
        """Refuse: ENOTSUP for what nobody can set, EPERM for the rest."""
        user_attribute(name, value, self.xattrs(node), flags)
        refuse(errno.EPERM)


def check_reading(flags: int) -> None:
    """Refuse to open a computed file for writing."""
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        refuse(errno.EACCES)


def check_length(name: str) -> None:
    """Refuse a name that no file can have."""
    if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        refuse(errno.ENAMETOOLONG)


def read_only_mode(mode: int) -> int:
    """Give a mode without the permissions to write."""
    return mode & ~_WRITE_BITS
