"""The process that a mount belongs to: small, idle, alive while those that serve it come and go.

It mounts, holds what must outlive a worker (the descriptor of the mount, the ledger, descriptors of
content that is being read), starts a worker, and the next one when that dies: readers notice a
pause. It opens no store. When it dies itself, so do its worker and the mount; whoever starts the
next one finds a dead mount and heals it.

    starting ── the store is open: mount, hand over ── ready ─┬─ died: the next one, later each time
                                                              ├─ unmounted: status 0
                                                              └─ signal: unmount, settle, status 0
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from kvstate.errors import InvalidConfig, StateError
from kvstate.process import make_room_for_descriptors
from kvstatefs import mountpoint as mountpoints
from kvstatefs.kernel import mounting, packets, system_log
from kvstatefs.kernel.control import Control
from kvstatefs.kernel.events import Events
from kvstatefs.kernel.ledger import create_descriptors
from kvstatefs.kernel.packets import SECONDS, Packet
from kvstatefs.kernel.restarts import Restarts
from kvstatefs.kernel.worker_process import KILLED, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kvstatefs.options import MountOptions

__all__ = ["SETTLE_SECONDS", "WORKER", "Supervisor"]

WORKER: Final = ("-m", "kvstatefs.kernel.worker")
SETTLE_SECONDS: Final = 8.0
"""What a worker has for bringing to an end what is under way."""
_MARGIN_SECONDS: Final = 2.0
_EXIT_SECONDS: Final = 10.0
"""What a worker that has said all may take to be gone."""
_RESEND_SECONDS: Final = 0.02
_OWN_DESCRIPTORS: Final = 64
"""How many are kept for what the supervisor does itself, whatever it is asked to hold."""


class Supervisor:
    """Keeps a store mounted, from `run` to its end."""

    def __init__(
        self,
        store: Path,
        mountpoint: Path,
        options: MountOptions,
        texts: Sequence[str],
        *,
        worker: Sequence[str] = WORKER,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """Take absolute paths, the options and the texts that they were parsed from.

        ``worker`` is what Python is told to run; its last word will be the connection's number.
        """
        self._store = store
        self._mountpoint = mountpoint
        self._options = options
        self._texts = list(texts)
        self._words = tuple(worker)
        self._settle_seconds = settle_seconds
        self._python = sys.executable
        self._events = Events()
        self._restarts = Restarts()
        self._worker: WorkerProcess | None = None
        self._dying: list[WorkerProcess] = []
        self._fuse = -1
        self._device = ""
        self._ledger: tuple[int, ...] = ()
        self._held: dict[bytes, int] = {}
        self._held_max = 0
        self._handed = False
        self._resumable = False
        self._was_ready = False
        self._in_background = False
        self._stopping = False
        self._status: int | None = None
        self._when_ready: Callable[[], bool] = lambda: False
        self._control = Control(self._events, self._state, self._upgrade, self._call_off)

    def run(self, ready: Callable[[], bool]) -> int:
        """Mount and serve until a signal or an unmount; give the exit status.

        ``ready`` is called when the mount answers, and says whether the terminal was left.
        """
        self._when_ready = ready
        self._held_max = max(0, make_room_for_descriptors() - _OWN_DESCRIPTORS)
        with self._events, self._events.signals(self._stop, self._reap):
            try:
                self._start()
                while self._status is None:
                    self._events.wait(self._longest())
                return self._status
            finally:
                self._leave()

    def _longest(self) -> float | None:
        """Give how long to wait at most: there may be something left to send."""
        worker = self._worker
        return None if worker is None or worker.flush() else _RESEND_SECONDS

    # --- a worker's life --------------------------------------------------------------------------

    def _start(self) -> None:
        self._events.unwatch(self._fuse)
        try:
            worker = WorkerProcess([self._python, *self._words])
        except OSError as error:
            self._say(f"{self._python} cannot be started: {error.strerror}")
            self._go_on(None, 1)
            return
        self._worker = worker
        self._events.watch(worker.connection.fileno(), self._hear)
        self._events.watch(worker.deaths[0], self._bury)
        settings = {
            "store": str(self._store),
            "mountpoint": str(self._mountpoint),
            "options": self._texts,
            # A store that was moved away is not to be followed by an empty one.
            "create": not (self._was_ready or self._options.read_only),
            "background": self._in_background,
        }
        worker.send(Packet(packets.BEGIN, json.dumps(settings).encode()))

    def _hear(self) -> None:
        worker = self._worker
        assert worker is not None
        for packet in worker.received():
            self._heard(worker, packet)
        if worker.hung_up:
            self._events.unwatch(worker.connection.fileno())
            self._events.call_at(time.monotonic() + _EXIT_SECONDS, worker.kill)

    def _heard(self, worker: WorkerProcess, packet: Packet) -> None:
        letter, text, descriptors = packet
        if letter == packets.OPENED:
            worker.version = str(json.loads(text)["version"])
            self._hand_over(worker)
        elif letter == packets.READY:
            death = worker.listens_in(int(text[1:]))
            if death >= 0:
                self._events.watch(death, self._bury)
            self._is_ready(worker, resumable=text[:1] == b"1")
        elif letter == packets.HELD and descriptors:
            self._hold(text, descriptors[0])
        elif letter == packets.DROP:
            self._drop(text)
        elif letter == packets.WAIT:
            self._control.refused(text.decode(errors="replace"))
        elif letter == packets.ENDED:
            worker.ended = int(text)

    def _hand_over(self, worker: WorkerProcess) -> None:
        """Give a worker, whose store is open, the mount: a new one, or the one that there is."""
        if self._stopping and not self._was_ready:
            return
        try:
            if self._fuse < 0:
                self._mount()
        except (StateError, OSError) as error:
            self._say(str(error))
            self._status = 2 if isinstance(error, InvalidConfig) else 1
            return
        for name, descriptor in self._held.items():
            worker.send(Packet(packets.HELD, name, (descriptor,)))
        resumed = b"1" if self._handed else b"0"
        worker.send(Packet(packets.SERVE, resumed, (self._fuse, *self._ledger)))
        self._handed = True

    def _mount(self) -> None:
        self._ledger = create_descriptors()
        with mountpoints.claimed(self._mountpoint, self._store):
            self._fuse = mounting.mount(self._mountpoint, self._options)
            mount = mountpoints.top_mount(self._mountpoint)
        self._device = mount.device if mount is not None else ""
        self._control.listen(self._device)

    def _is_ready(self, worker: WorkerProcess, *, resumable: bool) -> None:
        worker.ready_at = time.monotonic()
        self._resumable = resumable
        if not self._was_ready:
            self._was_ready = True
            self._in_background = self._when_ready()
            if self._in_background:
                worker.send(Packet(packets.LEAVE_TERMINAL, b""))
        if self._stopping:
            self._settle(worker)
        self._control.is_ready(worker.version)

    def _bury(self) -> None:
        worker = self._worker
        assert worker is not None
        for packet in worker.received():
            self._heard(worker, packet)
        self._events.unwatch(worker.connection.fileno())
        for descriptor in worker.deaths:
            self._events.unwatch(descriptor)
        self._worker = None
        status = worker.close()
        if not worker.reaped:
            self._dying.append(worker)
        self._go_on(worker, status if worker.ended is None else worker.ended)

    def _go_on(self, worker: WorkerProcess | None, status: int) -> None:
        """Do what follows the death of a worker."""
        if self._status is not None:
            return
        if status == 0 or self._stopping:
            self._status = 0
        elif not self._was_ready:
            self._status = status if status in {1, 2} else 1
            if status not in {1, 2}:
                self._say(f"the worker {_described(status)} before the mount answered")
        elif status == packets.HANDED_OVER and self._control.upgrading:
            self._python = self._control.handed_over()
            self._start()
        else:
            if self._control.upgrading:
                self._python = self._control.failed(f"a worker {_described(status)}")
            self._start_again(worker, status)

    def _start_again(self, worker: WorkerProcess | None, status: int) -> None:
        served = time.monotonic() - worker.ready_at if worker and worker.ready_at else 0.0
        pause = self._restarts.died(served, killed=status == KILLED and served > 0)
        if pause is None:
            count = self._restarts.failures
            self._say(f"the worker {_described(status)}, as did {count - 1} before: giving up")
            self._status = 1
            return
        self._say(f"the worker {_described(status)}: the next one begins in {pause:g} s")
        if not self._resumable or status == packets.NOTHING_TO_RESUME:
            self._forget_mount()
        if not pause:
            self._start()
            return
        self._events.call_at(time.monotonic() + pause, self._start)
        if self._fuse >= 0:
            # Nobody reads it now: an unmount would go unnoticed. (While a worker reads, this would
            # wake us for each request.)
            self._events.watch(self._fuse, self._unmounted, events=0)

    def _unmounted(self) -> None:
        self._status = 0

    def _forget_mount(self) -> None:
        """Let the mount die, since nobody can go on with it: the next worker's is a new one."""
        self._events.unwatch(self._fuse)
        self._control.close()
        for descriptor in (self._fuse, *self._ledger, *self._held.values()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._fuse, self._ledger = -1, ()
        self._held.clear()
        self._handed = self._resumable = False

    def _hold(self, name: bytes, descriptor: int) -> None:
        """Hold a descriptor, if there is room: without it, its content is lost to the next one."""
        self._drop(name)
        if len(self._held) < self._held_max:
            self._held[name] = descriptor
        else:
            os.close(descriptor)

    def _drop(self, name: bytes) -> None:
        descriptor = self._held.pop(name, -1)
        if descriptor >= 0:
            os.close(descriptor)

    def _reap(self) -> None:
        self._dying = [worker for worker in self._dying if worker.reap() is None]

    # --- upgrades ---------------------------------------------------------------------------------

    def _state(self) -> dict[str, object]:
        worker = self._worker
        ready = worker is not None and bool(worker.ready_at)
        return {
            "supervisor": os.getpid(),
            "worker": worker.pid if worker is not None else None,
            "version": worker.version if worker is not None else "",
            "ready": ready and not self._stopping,
            "python": self._python,
            "store": str(self._store),
        }

    def _upgrade(self, seconds: float) -> None:
        assert self._worker is not None
        self._worker.send(Packet(packets.UPGRADE, SECONDS.pack(seconds)))

    def _call_off(self) -> None:
        if self._worker is not None:
            self._worker.send(Packet(packets.CALLED_OFF, b""))

    # --- ending -----------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Unmount, and let the worker bring what is under way to an end."""
        if self._stopping:
            return
        self._stopping = True
        worker = self._worker
        self._unmount()
        if worker is None:
            self._status = 0
        elif not self._was_ready:
            worker.kill()
        else:
            if worker.ready_at:
                self._settle(worker)
            deadline = time.monotonic() + self._settle_seconds + _MARGIN_SECONDS
            self._events.call_at(deadline, worker.kill)

    def _settle(self, worker: WorkerProcess) -> None:
        worker.send(Packet(packets.SETTLE, SECONDS.pack(self._settle_seconds)))

    def _unmount(self) -> None:
        if not self._device:
            return
        how = mountpoints.unmount_ours(self._mountpoint, self._device)
        if how == "busy":
            self._say(
                f"{self._mountpoint} is busy: it is unmounted all the same, and what is still"
                " open there fails from now on"
            )
        elif how == "failed":
            self._say(f"{self._mountpoint} cannot be unmounted: a dead mount is left there")

    def _leave(self) -> None:
        """Leave nothing behind."""
        if self._worker is not None:
            self._worker.kill()
        self._unmount()
        self._control.close()
        self._forget_mount()
        if self._worker is not None:
            self._worker.close()

    def _say(self, text: str) -> None:
        if self._in_background:
            system_log.say(text)
            return
        with contextlib.suppress(OSError):
            sys.stderr.write(f"kvstatefs: {text}\n")
            sys.stderr.flush()


def _described(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"
