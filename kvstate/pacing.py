"""A limit on bytes a second, shared by the threads that work under it."""

from __future__ import annotations

import threading
import time

__all__ = ["Pace"]


class Pace:
    """Lets so many bytes a second pass; 0 is no limit."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def take(self, count: int) -> None:
        """Wait until so many more bytes may pass; at once after `end`."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            wait = self._free_at - now
            self._free_at = max(self._free_at, now) + count / self._rate
        if wait > 0:
            self._ended.wait(wait)

    def end(self) -> None:
        """Let all who wait go on."""
        self._ended.set()
