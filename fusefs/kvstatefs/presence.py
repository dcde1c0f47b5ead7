"""Whether the store's path still leads to the store that is open.

Whoever renames the store's folder, or puts another in its place (a backup that is brought back),
leaves the mount with a store that nobody will look into any more. What was written there would be
lost without a word; so a change is refused (EIO), and the log says why, until the store is back.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Final

from kvstatefs.nodes import refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.store import Store

__all__ = ["Presence"]

_LOOK_SECONDS: Final = 1.0

log = logging.getLogger("kvstatefs")


class Presence:
    """The record file that is open, and what its path leads to: looked at once a second."""

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        """Take note of the record file; records in memory have none, and are always there."""
        self._path = str(store.path / "records" / "data.mdb")
        self._where = str(store.path)
        self._now = now
        self._looked_at = now()
        self._missing = False
        self._known = self._found()

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116  (for speed)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check(self) -> None:
        """Refuse a change while the store is not where it was."""
        now = self._now()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look()
        if self._missing:
            refuse(errno.EIO, f"the store is not at {self._where!r} any more")

    def _look(self) -> None:
        missing = self._known is not None and self._found() != self._known
        if missing and not self._missing:
            log.error(
                "the store that is mounted is not at %r any more: it was moved, or another was put "
                "there. Nothing is written until it is back; or unmount, and mount what is there",
                self._where,
            )
        elif self._missing and not missing:
            log.warning("the store is back at %r", self._where)
        self._missing = missing
