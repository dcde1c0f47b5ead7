"""A worker as its supervisor sees it: started, spoken to without waiting, found dead, reaped.

A process that was killed may take its time to be gone: a thread of it may wait inside the kernel
for a lock of somebody who waits for an answer, which only the next worker can give. So a worker
counts as dead when the thread that listens to us is (PIDFD_THREAD, Linux 6.9), not when the last
one is; it is reaped whenever that is possible.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from kvstatefs.kernel import packets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvstatefs.kernel.packets import Packet

__all__ = ["KILLED", "WorkerProcess"]

KILLED: Final = -int(signal.SIGKILL)
_PIDFD_THREAD: Final = os.O_EXCL
_EXIT_SECONDS: Final = 0.2
_REAP_SECONDS: Final = 0.3


class WorkerProcess:
    """One process that serves the mount, or is about to."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it; the last word of its command is the number of its end of the connection."""
        self.connection, theirs = packets.socket_pair()
        self.command = tuple(command)
        self.version = ""
        self.started = time.monotonic()
        self.ready_at = 0.0
        """When it was ready; 0 before."""
        self.ended: int | None = None
        """The status that it said it would end with."""
        self.hung_up = False
        self.reaped = False
        with theirs:
            theirs.set_inheritable(True)
            words = [*command, str(theirs.fileno())]
            # A group of its own: Ctrl-C in a terminal is for the supervisor, which brings the
            # worker to its end in order.
            self.pid = os.posix_spawn(
                words[0], words, os.environ, setpgroup=0, setsigmask=[], setsigdef=[signal.SIGPIPE]
            )
        self.connection.setblocking(False)
        self.deaths = [os.pidfd_open(self.pid)]
        """Descriptors, each of which can be read when it is dead."""
        self._unsent: deque[Packet] = deque()

    def send(self, packet: Packet) -> None:
        """Send, or keep for `flush` what cannot be sent yet; descriptors must stay open so long."""
        self._unsent.append(packet)
        self.flush()

    def flush(self) -> bool:
        """Send what was kept; say whether nothing is left."""
        while self._unsent:
            try:
                packets.send(self.connection, self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:  # it is dead: `death` says so
                self._unsent.clear()
                break
            self._unsent.popleft()
        return True

    def received(self) -> Iterator[Packet]:
        """Give what it has said so far."""
        try:
            while (packet := packets.receive(self.connection)) is not None:
                yield packet
        except BlockingIOError:
            return
        except OSError:
            pass
        self.hung_up = True

    def listens_in(self, thread: int) -> int:
        """Give a descriptor for the death of this thread of it, which is added; -1 without one."""
        try:
            self.deaths.append(os.pidfd_open(thread, _PIDFD_THREAD))
        except OSError:  # before Linux 6.9, or it is dead
            return -1
        return self.deaths[-1]

    def kill(self) -> None:
        """Kill it, if it still is."""
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> int:
        """Let go of a dead one, or one that dies now; give its status.

        `KILLED` while it is not quite gone; `reaped` says whether it is.
        """
        self.connection.close()
        for descriptor in self.deaths:
            os.close(descriptor)
        for seconds in (_EXIT_SECONDS, _REAP_SECONDS):
            deadline = time.monotonic() + seconds
            while (status := self.reap()) is None and time.monotonic() < deadline:
                time.sleep(0.002)
            if status is not None:
                return status
            self.kill()  # what its other threads do is over, too
        return KILLED

    def reap(self) -> int | None:
        """Give its exit status, the negative signal that ended it, or None: not gone yet."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            self.reaped = True
            return KILLED
        self.reaped = bool(pid)
        return os.waitstatus_to_exitcode(status) if pid else None
