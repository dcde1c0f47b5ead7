"""Telling the kernel, without having been asked, that what it keeps is no longer so.

The kernel takes a folder's lock for a notice about a name in it. Whoever looks a name up there
holds that lock until we have answered; so a notice may wait, and must never be sent by a thread
that somebody waits for. Notices are sent by threads of their own: those about one folder in order
and one at a time, those about different folders independently, so that one folder whose lock is
held keeps only its own notices waiting (and, in numbers of `_THREADS`, those of others).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import deque
from typing import Final

from kvstatefs.kernel.wire import name_notice, node_notice

__all__ = ["Notices"]

log = logging.getLogger("kvstatefs")

_THREADS: Final = 16
_FORGOTTEN: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN})
"""The kernel does not know the name or the node, or the mount is gone: nothing is stale."""


class Notices:
    """What is to be told, by the folder (or node) that it is about."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._state = threading.Condition()
        self._waiting: dict[int, dict[str | None, bytes]] = {}
        self._ready: deque[int] = deque()
        self._held: set[int] = set()
        self._idle = 0
        self._threads = 0

    def start(self) -> None:
        """Have one thread from the beginning: later there may be none to be had."""
        with self._state:
            if not self._threads:
                self._grow()

    def _grow(self) -> None:
        name = f"notices-{self._threads + 1}"
        threading.Thread(target=self._send, name=name, daemon=True).start()
        self._threads += 1

    def name(self, parent: int, name: str) -> None:
        """Tell that a name leads elsewhere."""
        data = name.encode("utf-8", "surrogateescape")
        self._put(parent, name, name_notice(parent, data))

    def attributes(self, number: int) -> None:
        """Tell that a node's attributes changed; its pages stay."""
        self._put(number, None, node_notice(number, -1))

    def pages(self, number: int) -> None:
        """Tell that a node's attributes and its pages changed."""
        self._put(number, None, node_notice(number, 0))

    def _put(self, about: int, key: str | None, message: bytes) -> None:
        with self._state:
            waiting = self._waiting.get(about)
            if waiting is None:
                self._waiting[about] = {key: message}
                self._ready.append(about)
                if self._idle:
                    self._state.notify()
                elif self._threads < _THREADS:
                    # Without another thread one of those that are there tells it.
                    with contextlib.suppress(RuntimeError):
                        self._grow()
            elif key is not None or waiting.get(key, message)[24:32] == message[24:32]:
                waiting[key] = message
            else:
                waiting[key] = node_notice(about, 0)  # one of the two is about pages

    def _send(self) -> None:
        while True:
            with self._state:
                self._idle += 1
                self._state.wait_for(lambda: self._ready)
                self._idle -= 1
                about = self._ready.popleft()
                messages = self._waiting[about]
                self._waiting[about] = {}
            for message in messages.values():
                self._write(message)
            with self._state:
                if self._waiting[about]:
                    self._ready.append(about)
                else:
                    del self._waiting[about]
                    if not self._waiting:
                        self._state.notify_all()

    def _write(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as error:
            if error.errno not in _FORGOTTEN:
                log.warning("a notice to the kernel failed: %s", error)

    def settle(self, seconds: float) -> bool:
        """Wait until all has been told; say whether that came."""
        with self._state:
            return self._state.wait_for(lambda: not self._waiting, seconds)
