"""Serving a mount: from a descriptor of `/dev/fuse` that is mounted until it is not.

For whoever has mounted it: a worker process, new or a successor that goes on with what the one
before it left in the ledger, or a test.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel.restoring import Restorer
from kvstatefs.kernel.service import Service
from kvstatefs.kernel.wire import READ_AHEAD_BYTES, Agreed, Notice, notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.kernel.ledger import Ledger
    from kvstatefs.kernel.link import Link
    from kvstatefs.tree import Tree

__all__ = ["Serving", "serve"]

log = logging.getLogger("kvstatefs")

_SETTLE_SECONDS: Final = 8.0
_LOOK_SECONDS: Final = 0.01


class Serving:
    """One mount, served by this process."""

    def __init__(
        self,
        fd: int,
        tree: Tree,
        mountpoint: str,
        ledger: Ledger,
        link: Link,
        *,
        passthrough: bool = True,
    ) -> None:
        self._fd = fd
        self._tree = tree
        self._ledger = ledger
        self._link = link
        self._over = threading.Event()
        self.service = Service(
            fd, tree, mountpoint, ledger, link, passthrough=passthrough, ended=self._over.set
        )
        self._mountpoint = mountpoint
        self._called_off = threading.Event()
        self.service.ready = self._ready
        link.upgrade_wanted = self._upgrade_wanted
        link.upgrade_called_off = self._called_off.set
        link.stop_wanted = self._apart(self.stop)

    def start(self, *, resumed: bool) -> None:
        """Begin to answer; ``resumed`` when another process has served this mount before."""
        service = self.service
        if resumed:
            self._take_over()
        service.mounted.feed.start()
        service.loop.start()
        threading.Thread(target=self._read_ahead, name="read-ahead", daemon=True).start()
        if resumed:
            self._ready()
            threading.Thread(target=self._catch_up, name="catch-up", daemon=True).start()

    @staticmethod
    def _apart(function: Callable[[float], None]) -> Callable[[float], None]:
        """Let the link go on to listen while a wish of it is fulfilled."""

        def begin(seconds: float) -> None:
            threading.Thread(target=function, args=(seconds,), name="wish", daemon=True).start()

        return begin

    def _upgrade_wanted(self, seconds: float) -> None:
        self._called_off.clear()  # here: it may be called off before the thread has begun
        self._apart(self.hand_over)(seconds)

    def _ready(self) -> None:
        agreed = self.service.mounted.agreed
        if agreed is None:
            self._over.set()
        else:
            self._link.ready(resumable=agreed.resend)

    def _take_over(self) -> None:
        """Know what the kernel knows, and have it ask again what was not answered."""
        service = self.service
        left = self._ledger.replay()
        service.agree(Agreed.unpacked(left.init))
        service.mounted.table.restore(left.nodes)
        files = service.opening.files
        Restorer(files, self._ledger, self._link).restore(left.handles)
        os.write(self._fd, notice(Notice.RESEND))

    def _read_ahead(self) -> None:
        """Let the kernel ask for a megabyte ahead, where that may be set: it asks for 128 KiB."""
        with contextlib.suppress(OSError):
            device = os.stat(self._mountpoint).st_dev  # noqa: PTH116  (a question to ourselves)
            where = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
            with open(where, "w", encoding="ascii") as setting:  # noqa: PTH123
                setting.write(str(READ_AHEAD_BYTES // 1024))

    def _catch_up(self) -> None:
        """Take back what may have changed while nobody followed, and what only that one knew."""
        table, notices = self.service.mounted.table, self.service.mounted.notices
        for name in ("hot", "warm", "cold", "all", "state", ".kvstate", "pipelines"):
            # With a folder's name the kernel forgets what it knows below: absent names, too.
            notices.name(table.root.number, name)
        with contextlib.suppress(Exception):
            self.service.mounted.feed.look_again_at_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the mount is gone; say whether it is."""
        return self._over.wait(seconds)

    def settle(self, seconds: float = _SETTLE_SECONDS) -> bool:
        """Bring what is under way to an end; say whether that came."""
        self.service.mounted.feed.stop()
        return self.service.loop.settle(seconds)

    def hand_over(self, seconds: float) -> None:
        """Leave the mount to a successor within so many seconds, or say why not.

        What was read and not answered the kernel asks again: the successor answers it.
        """
        deadline = time.monotonic() + seconds
        while not self._called_off.is_set():
            with self.service.mounted.table.lock:
                writers = self.service.opening.files.writers()
                if self._called_off.is_set():
                    return
                if not writers and self.service.loop.settle(0):
                    self.service.loop.leave()
                    self._link.hand_over()
                    self._over.set()
                    return
            if time.monotonic() > deadline:
                what = f"{writers} files are open for writing" if writers else "it is busy"
                self._link.refuse_upgrade(what)
                return
            self._called_off.wait(_LOOK_SECONDS)

    def stop(self, seconds: float) -> None:
        """Bring what is under way to an end, and serve no longer."""
        self.settle(seconds)
        self._over.set()


def serve(
    fd: int,
    tree: Tree,
    mountpoint: str,
    ledger: Ledger,
    link: Link,
    *,
    resumed: bool,
    passthrough: bool = True,
) -> str:
    """Serve a mount until it is gone, another process is to go on, or `Link.stop_wanted`.

    Give why the kernel cannot be served; empty if it could.
    """
    serving = Serving(fd, tree, mountpoint, ledger, link, passthrough=passthrough)
    serving.start(resumed=resumed)
    serving.wait()
    if not link.handed_over:
        serving.settle()
    return serving.service.refused
