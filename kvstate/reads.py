"""When artifacts were last read: noted at most once a day for each, recorded in batches.

A note waits in memory until there are `BATCH` of them, the oldest is a minute old, a lifecycle run
begins or the store is closed. A reader that is killed loses its notes: the last access is a hint to
rules, not a record of who read what.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from kvstate.clock import SECOND
from kvstate.errors import StateError
from kvstate.policy import DAY

if TYPE_CHECKING:
    from kvstate.catalog import Catalog
    from kvstate.clock import Clock
    from kvstate.nodes import File

__all__ = ["Reads"]

BATCH: Final = 256
_WAIT_NS: Final = 60 * SECOND

log = logging.getLogger("kvstate")


class Reads:
    """The notes of one process."""

    def __init__(self, catalog: Catalog, clock: Clock, *, read_only: bool) -> None:
        self._catalog = catalog
        self._now_ns = clock.now_ns
        self._read_only = read_only
        self._noted: dict[int, int] = {}
        self._first_ns = 0
        # Another process' lifecycle run cannot ask for these notes: they go by themselves.
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def note(self, file: File) -> None:
        """Take note that an artifact is being read."""
        now_ns = self._now_ns()
        if now_ns - file.accessed_ns < DAY or self._read_only:
            return
        with self._lock:
            if not self._noted:
                self._first_ns = now_ns
                self._timer = threading.Timer(_WAIT_NS / SECOND, self.flush)
                self._timer.daemon = True
                self._timer.start()
            self._noted.setdefault(file.id, now_ns)
            if len(self._noted) < BATCH and 0 <= now_ns - self._first_ns < _WAIT_NS:
                return
        self.flush()

    def flush(self) -> None:
        """Record what was noted; what cannot be recorded is forgotten: a read must not fail."""
        with self._lock:
            noted, self._noted = self._noted, {}
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if not noted:
            return
        try:
            self._catalog.note_reads(noted.items())
        except StateError as error:
            log.warning("last reads of %d artifacts are not recorded: %s", len(noted), error)
