"""One daemon for each store: a lock on ``kvstated.pid`` in its folder, which says who has it.

The lock (flock(2)) ends with the process, however that ends; what is left in the file then means
nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from kvstate.errors import Conflict, Denied

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PID_FILE", "PidFile"]

PID_FILE: Final = "kvstated.pid"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class PidFile:
    """Holds the lock from `take` to `release`."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store / PID_FILE
        self._fd = -1

    def take(self) -> None:
        """Take the lock and write our pid; `Conflict` says which pid has it."""
        while True:
            try:
                fd = os.open(self._path, _FLAGS, 0o644)
            except OSError as error:
                raise Denied(
                    f"locking {str(self._path)!r}", os.strerror(error.errno or 0)
                ) from None
            try:
                self._lock(fd)
            except BaseException:
                os.close(fd)
                raise
            if self._is_current(fd):
                break
            os.close(fd)  # its owner removed it while we waited for nothing: take the new one
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                str(self._store),
                f"a daemon with pid {pid} has this store already: use it, or stop it first",
            ) from None

    def _is_current(self, fd: int) -> bool:
        ours = os.fstat(fd)
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def release(self) -> None:
        """Remove the file, then let go of the lock."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._fd)
            self._fd = -1
