"""The supervisor's loop: descriptors, times and signals, each with the function that it calls."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Events"]

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Events:
    """Calls functions when something happens. For one thread, the main one."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._new: set[int] = set()
        self._times: list[tuple[float, Callable[[], None]]] = []

    def watch(
        self, descriptor: int, call: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        """Call when the descriptor can be read; with ``events=0``, only when it is broken."""
        self._calls[descriptor] = call
        self._new.add(descriptor)
        self._epoll.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Call no longer; nothing if it was not watched. Before the descriptor is closed."""
        if self._calls.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_at(self, monotonic: float, call: Callable[[], None]) -> None:
        """Call once at a time of `time.monotonic`."""
        self._times.append((monotonic, call))

    def forget(self, call: Callable[[], None]) -> None:
        """Call this at no time."""
        self._times = [each for each in self._times if each[1] != call]

    def wait(self, longest: float | None = None) -> None:
        """Wait for something, no longer than so many seconds, and call what is due."""
        waits = [at - time.monotonic() for at, _ in self._times]
        if longest is not None:
            waits.append(longest)
        happened = self._epoll.poll(max(min(waits), 0) if waits else None)
        self._new.clear()
        for descriptor, _ in happened:
            call = self._calls.get(descriptor)
            # What was called before may have unwatched it, and its number may be another's now.
            if call is not None and descriptor not in self._new:
                call()
        now = time.monotonic()
        due = [each for each in self._times if each[0] <= now]
        self._times = [each for each in self._times if each[0] > now]
        for _, call in due:
            call()

    @contextlib.contextmanager
    def signals(self, stop: Callable[[], None], child: Callable[[], None]) -> Iterator[None]:
        """Meanwhile, call for the signals that end a process, and when a child has ended."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def read() -> None:
            numbers = os.read(reading, 4096)
            if signal.SIGCHLD in numbers:
                child()
            if any(number in numbers for number in _STOPPING):
                stop()

        watched = (*_STOPPING, signal.SIGCHLD)
        old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        before = {number: signal.signal(number, _nothing) for number in watched}
        self.watch(reading, read)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old)
            self.unwatch(reading)
            os.close(reading)
            os.close(writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()


def _nothing(_number: int, _frame: object) -> None:
    """Take note of a signal: the wake-up descriptor tells."""
