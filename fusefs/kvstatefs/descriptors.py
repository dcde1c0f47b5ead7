"""Whether a process still has a file open for writing by another descriptor.

A shell that redirects opens the file, duplicates the descriptor and closes the first one; the close
says "store what you have", which is nothing yet. Only the process itself knows that it goes on.

To ask is to wait for the kernel, which answers nothing about a process that is in the middle of an
exec; and one that waits there for its close to be answered would wait for ever. So a thread asks,
and who does not get an answer soon goes on without.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from typing import Final

__all__ = ["has_open", "thread_group"]

_PATIENCE_SECONDS: Final = 0.25
_DESCRIPTORS_MAX: Final = 10_000
_asking = threading.BoundedSemaphore(16)


def has_open(pid: int, path: str, patience_seconds: float = _PATIENCE_SECONDS) -> bool:
    """Whether the process may write this path by a descriptor; False when it cannot be known."""
    if not _asking.acquire(blocking=False):
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_has_open(f"/proc/{pid}/fd", path))
        finally:
            _asking.release()

    try:
        threading.Thread(target=ask, name="has-open", daemon=True).start()
    except RuntimeError:  # no more threads
        _asking.release()
        return False
    try:
        return answers.get(timeout=patience_seconds)
    except queue.Empty:
        return False


def _has_open(folder: str, path: str) -> bool:
    try:
        names = os.listdir(folder)  # noqa: PTH208  (names are wanted, not paths)
    except OSError:
        return False
    return any(_writes(f"{folder}/{name}", path) for name in names[:_DESCRIPTORS_MAX])


def _writes(link: str, path: str) -> bool:
    """Whether a descriptor, by its link in /proc, is for writing this path."""
    try:
        if os.readlink(link) != path:  # noqa: PTH115
            return False
        return os.lstat(link).st_mode & stat.S_IWUSR != 0
    except OSError:
        return False


def thread_group(pid: int) -> int | None:
    """Give the process that a thread belongs to; None when it cannot be known.

    The status of a thread is told without waiting for an exec.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
