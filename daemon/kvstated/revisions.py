"""Who waits for the next commit: one thread watches the store for all of them.

A waiter has a descriptor (eventfd(2)) that becomes readable, so that it can wait for a commit, for
its client and for the end of the daemon in one poll(2). Commits that come thick are seen together:
after each look the watcher pauses `PAUSE_SECONDS`, so that it never takes the time of the writers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING

from kvstate.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.store import Store

__all__ = ["Revisions"]

PAUSE_SECONDS = 0.005
SETTLE_SECONDS = 0.05
"""In this time after `stop` a watcher that was awake has come to its end, or sleeps."""
_SLICE_SECONDS = 5.0
"""How long the watcher may sleep on after the end was said; closing the store wakes it, too."""

log = logging.getLogger(__name__)


class Revisions:
    """Watches the store for commits by anyone, and wakes who waits for one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: set[int] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="revisions", daemon=True)
        self._callbacks: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def call(self, callback: Callable[[], None]) -> None:
        """Call this after each look that saw commits; it must be quick and raise nothing."""
        self._callbacks.append(callback)

    def stop(self) -> None:
        """Wake all waiters for the last time."""
        self._stopping.set()
        self._wake()

    def join(self, timeout: float = SETTLE_SECONDS) -> bool:
        """Wait for the watcher's end; say whether it came (or else it sleeps)."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def wait(self, revision: int, timeout: float, *others: int) -> int:
        """Wait until the store is past this revision; give its revision.

        It may be an older one: when the time is up, when one of the other descriptors became
        readable, or when the daemon ends.
        """
        deadline = time.monotonic() + timeout
        with self._waiter() as wake:
            poll = select.poll()
            for descriptor in (wake, *others):
                poll.register(descriptor, select.POLLIN)
            while True:
                current = self._store.revision()
                left = deadline - time.monotonic()
                if current > revision or left <= 0 or self._stopping.is_set():
                    return current
                ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
                if ready - {wake}:
                    return self._store.revision()
                if ready:
                    os.eventfd_read(wake)

    @contextlib.contextmanager
    def _waiter(self) -> Iterator[int]:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._lock:
            self._waiters.add(wake)
        try:
            yield wake
        finally:
            with self._lock:
                self._waiters.discard(wake)
            os.close(wake)

    def _wake(self) -> None:
        with self._lock:
            for wake in self._waiters:
                os.eventfd_write(wake, 1)

    def _watch(self) -> None:
        seen = -1
        while not self._stopping.is_set():
            try:
                current = self._store.wait(seen, _SLICE_SECONDS)
            except StateError as error:
                if not self._stopping.is_set():
                    log.warning("watching the store: %s", error)
                self._stopping.wait(1)
                continue
            if current > seen:
                seen = current
                self._wake()
                for callback in self._callbacks:
                    callback()
                self._stopping.wait(PAUSE_SECONDS)
