"""Waking up when a file is written to, by anyone: inotify(7) through the C library.

The standard library has no binding, and the few calls that are needed fit one screen. One watch has
a descriptor of its own; many threads may wait on it in turn.
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
            error = OSError(ctypes.get_errno(), "inotify_add_watch")
            os.close(self._fd)
            raise error

    def wait(self, timeout: float) -> bool:
        """Wait for an event for at most so many seconds; empty the queue; say if there was one."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0, timeout) * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass
        return True

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._fd)
