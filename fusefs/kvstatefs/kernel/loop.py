"""The loop that reads requests from `/dev/fuse`: one thread leads, what may wait steps aside.

The leader reads a request and answers it before it reads the next: what is quick costs no change of
threads. A request that may have to wait (a commit, a disk) belongs to a *lane*: its thread hands
the lead to another one first. A lane has a number of threads that it may keep busy; what comes
beyond waits in the lane's queue, without a thread, so a tier that hangs holds up its own readers
and nobody else. The kernel never has more requests under way than there are callers, which bounds
the queues.

A request that waits in a queue and is interrupted is answered at once. This knows how requests
begin and which of them are interrupts, and nothing of files.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from kvstatefs.kernel.wire import REQUEST_BYTES_MAX, failure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lane", "Loop", "Request"]

log = logging.getLogger("kvstatefs")

_OVER: Final = frozenset({errno.ENODEV, errno.EBADF, errno.ECONNABORTED, errno.ENOTCONN})
_AGAIN: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})


class Request:
    """A request as it was read: valid until its thread reads the next one."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytearray, size: int) -> None:
        self.data = data
        self.size = size

    def kept(self) -> Request:
        """Give a copy that stays."""
        return Request(self.data[: self.size], self.size)

    @property
    def unique(self) -> int:
        """The number to answer to."""
        return int.from_bytes(self.data[8:16], "little")


class Lane:
    """One kind of waiting: how many threads it may keep, and what waits for one of them."""

    __slots__ = ("busy", "name", "threads", "waiting")

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.busy = 0
        self.waiting: deque[Request] = deque()


class Choice(Protocol):
    """What says which lane a request belongs to."""

    all: list[Lane]

    def of(self, request: Request) -> Lane | None:
        """Give the lane; None when nothing can make it wait."""
        ...


class Loop:
    """Reads requests, and hands each to a function in the thread and the lane that it belongs to.

    ``quick`` answers what is asked most, and says whether it did. ``lanes.of`` says, quickly, which
    lane a request belongs to (None: the leader answers it); ``serve`` answers it, raising nothing.
    """

    def __init__(
        self,
        fd: int,
        quick: Callable[[Request], bool],
        lanes: Choice,
        serve: Callable[[Request], None],
        ended: Callable[[], None],
    ) -> None:
        self._fd = fd
        self._quick = quick
        self._lanes = lanes
        self._serve = serve
        self._ended = ended
        self._lead = threading.Lock()
        self._state = threading.Condition()
        self._idle = 0
        self._under_way = 0
        self._threads = 0
        self._over = False
        self._told = False
        self._leaving = False

    def start(self) -> None:
        """Begin to read requests."""
        self._grow()

    def _grow(self) -> None:
        name = f"fuse-{self._threads + 1}"
        threading.Thread(target=self._work, name=name, daemon=True).start()
        with self._state:
            self._threads += 1

    def _work(self) -> None:
        request = Request(bytearray(REQUEST_BYTES_MAX), 0)
        while True:
            with self._state:
                self._idle += 1
            self._lead.acquire()
            with self._state:
                self._idle -= 1
            lane = self._lead_on(request)
            if lane is None:
                self._lead.release()
                self._end()
                return
            self._aside(lane, request)

    def _lead_on(self, request: Request) -> Lane | None:
        """Read and answer requests until one belongs to a lane; None when the mount is gone."""
        fd, readv, lane_of, serve = self._fd, os.readv, self._lanes.of, self._serve
        quick, buffers = self._quick, [request.data]
        while not self._over:
            try:
                request.size = readv(fd, buffers)
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno not in _OVER:
                    log.error("reading requests: %s", error)  # noqa: TRY400  (it says all)
                self._over = True
                break
            if self._leaving:
                return None  # whoever follows is given this request again
            try:
                if quick(request):
                    continue
                lane = lane_of(request)
            except Exception:  # noqa: BLE001  (whoever leads must not die: nobody else would)
                lane = None  # the one who serves it meets the same, and answers it
            if lane is None:
                serve(request)
            elif self._enter(lane, request):
                return lane
        return None

    def _enter(self, lane: Lane, request: Request) -> bool:
        """Take one of the lane's threads for this one, or let the request wait for one."""
        with self._state:
            if lane.busy < lane.threads:
                lane.busy += 1
                self._under_way += 1
                return True
            lane.waiting.append(request.kept())
            self._under_way += 1
            return False

    def _aside(self, lane: Lane, request: Request) -> None:
        """Let another thread lead, serve this request, and what else waits in its lane."""
        with self._state:
            alone = self._idle == 0
        if alone:
            with contextlib.suppress(RuntimeError):  # no more threads: this one leads on afterwards
                self._grow()
        self._lead.release()
        following: Request | None = request
        while following is not None:
            self._serve(following)
            with self._state:
                self._under_way -= 1
                following = lane.waiting.popleft() if lane.waiting else None
                if following is None:
                    lane.busy -= 1
                if not self._under_way:
                    self._state.notify_all()

    def interrupt(self, unique: int) -> bool:
        """Answer EINTR to a request that waits in a lane; say whether it did."""
        with self._state:
            for lane in self._lanes.all:
                for request in lane.waiting:
                    if request.unique == unique:
                        lane.waiting.remove(request)
                        self._under_way -= 1
                        break
                else:
                    continue
                break
            else:
                return False
        os.write(self._fd, failure(unique, errno.EINTR))
        return True

    def leave(self) -> None:
        """Answer no more: another process goes on."""
        self._leaving = True

    def settle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is under way that stepped aside; say whether that came."""
        with self._state:
            return self._state.wait_for(lambda: not self._under_way, timeout_seconds)

    def _end(self) -> None:
        with self._state:
            first, self._told = not self._told, True
        if first:
            self._ended()
