"""Waking up when a file is written to, by anyone: inotify(7) through the C library.

The standard library has no binding, and the few calls that are needed fit one screen. A watch
belongs to one thread: who reads an event takes it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select

__all__ = ["FileWatch"]

_IN_MODIFY = 0x2
_READ_BYTES = 4096


class FileWatch:
    """Wakes when the file is modified; `OSError` when the kernel has no watch left."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def wait(self, timeout: float, also: int) -> bool:
        """Wait for an event for at most so many seconds; empty the queue; say if there was one.

        Ends early, too, when the descriptor ``also`` can be read.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(also, select.POLLIN)
        if self._fd not in dict(poll.poll(max(0, timeout) * 1000)):
            return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass
        return True

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
