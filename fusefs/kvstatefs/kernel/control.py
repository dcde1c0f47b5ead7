"""How another command finds the supervisor of a mount, and asks it for its state or an upgrade.

A supervisor listens on an abstract socket that is named by the device number of its mount, which
anybody reads in /proc/self/mountinfo without asking the mount. A request and its answer are one
packet of JSON each. Only root and the user whose mount it is are listened to, and believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from kvstate.errors import InvalidConfig, Unavailable
from kvstate.version import __version__
from kvstatefs import mountpoint as mountpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvstatefs.kernel.events import Events

__all__ = ["UPGRADE_SECONDS", "Control", "ask", "upgrade"]

UPGRADE_SECONDS: Final = 30.0
"""How long a worker may wait for files that are open for writing."""
_ANSWER_MARGIN_SECONDS: Final = 60.0
_PACKET_BYTES: Final = 1 << 16
_CLIENTS_MAX: Final = 8
_LATE_SECONDS: Final = 3.0
_CREDENTIALS = struct.Struct("=iII")


def _address(device: str) -> str:
    return f"\0kvstatefs-{device}"


class Control:
    """The supervisor's side: listens, answers, and knows how far an upgrade is."""

    def __init__(
        self,
        events: Events,
        state: Callable[[], dict[str, object]],
        begin: Callable[[float], None],
        call_off: Callable[[], None],
    ) -> None:
        """Take what gives the supervisor's state, begins an upgrade, and calls it off."""
        self._events = events
        self._state = state
        self._begin = begin
        self._call_off = call_off
        self._listener: socket.socket | None = None
        self._upgrade: _Upgrade | None = None

    def listen(self, device: str) -> None:
        """Listen for this mount; if somebody has its name, it has no upgrades, and that is all."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            listener.bind(_address(device))
            listener.listen(_CLIENTS_MAX)
        except OSError:
            listener.close()
            return
        self._listener = listener
        self._events.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """Listen no longer."""
        if self._listener is not None:
            self._events.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None

    @property
    def upgrading(self) -> bool:
        """Whether a worker was asked to make way for another."""
        return self._upgrade is not None

    def handed_over(self) -> str:
        """Take note that the worker made way; give the interpreter of the next one."""
        assert self._upgrade is not None
        self._events.forget(self._too_late)
        self._upgrade.handed = True
        return self._upgrade.python

    def refused(self, why: str) -> None:
        """Take note that the worker does not make way."""
        self._end({"error": why})

    def failed(self, why: str) -> str:
        """Take note that a worker died in an upgrade; give the interpreter to go on with."""
        assert self._upgrade is not None
        before = self._upgrade.before
        self._end({"error": f"{why}, and {before} goes on"})
        return before

    def is_ready(self, version: str) -> None:
        """Take note that a worker is ready."""
        if self._upgrade is not None and self._upgrade.handed:
            self._end({"from": self._upgrade.version, "to": version})

    def _too_late(self) -> None:
        self._call_off()
        self._end({"error": "the worker did not make way in time"})

    def _end(self, answer: dict[str, object]) -> None:
        upgrade, self._upgrade = self._upgrade, None
        self._events.forget(self._too_late)
        if upgrade is not None:
            _answer(upgrade.client, answer)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            if may_ask(client):
                client.setblocking(False)
                self._events.watch(client.fileno(), lambda: self._hear(client))
            else:
                client.close()

    def _hear(self, client: socket.socket) -> None:
        self._events.unwatch(client.fileno())
        try:
            request = json.loads(client.recv(_PACKET_BYTES))
            asked = request["ask"]
            if asked == "state":
                _answer(client, self._state())
            elif asked == "upgrade":
                self._wanted(client, str(request["python"]), _within(request["seconds"]))
            else:
                _answer(client, {"error": f"this supervisor does not know {asked!r}"})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            client.close()

    def _wanted(self, client: socket.socket, python: str, seconds: float) -> None:
        state = self._state()
        if self._upgrade is not None:
            _answer(client, {"error": "another upgrade is under way"})
        elif not state["ready"]:
            _answer(client, {"error": "no worker is ready: try again"})
        elif not os.path.isabs(python) or not os.access(python, os.X_OK, effective_ids=True):  # noqa: PTH117
            _answer(client, {"error": f"{python!r} cannot be run by the supervisor"})
        else:
            before, version = str(state["python"]), str(state["version"])
            self._upgrade = _Upgrade(client, python, before, version)
            late = time.monotonic() + seconds + _LATE_SECONDS
            self._events.call_at(late, self._too_late)
            self._begin(seconds)


class _Upgrade:
    """One upgrade: who waits for it, from which interpreter to which, from which version."""

    def __init__(self, client: socket.socket, python: str, before: str, version: str) -> None:
        self.client = client
        self.python = python
        self.before = before
        self.version = version
        self.handed = False


def _answer(client: socket.socket, answer: dict[str, object]) -> None:
    with client, contextlib.suppress(OSError):
        client.send(json.dumps(answer).encode())


def may_ask(connection: socket.socket) -> bool:
    """Whether root or the user that we are is at the other end."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(peer)
    return uid in {0, os.geteuid()}


def _within(seconds: object) -> float:
    """Give the time that an upgrade may take: whatever was asked for, an hour at most."""
    return max(0.0, min(float(str(seconds)), 3600.0))


def ask(mountpoint: Path, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ask the supervisor of a mount; `InvalidConfig` without a mount, else `Unavailable`."""
    what = f"mount point {str(mountpoint)!r}"
    mount = mountpoints.top_mount(mountpoint)
    if mount is None or mount.kind != mountpoints.KIND:
        raise InvalidConfig(what, "no store is mounted there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(_address(mount.device))
            believed = may_ask(connection) or os.geteuid() == 0
            if believed:
                connection.send(json.dumps(request).encode())
                packet = connection.recv(_PACKET_BYTES)
        except TimeoutError:
            raise Unavailable(what, f"its supervisor gave no answer in {seconds:g} s") from None
        except OSError:
            why = "no supervisor answers: the fusepy adapter has none, or it was killed"
            raise Unavailable(what, why) from None
    if not believed or not packet:
        raise Unavailable(what, "it is another user's mount")
    answer: dict[str, Any] = json.loads(packet)
    return answer


def upgrade(mountpoint: Path, seconds: float = UPGRADE_SECONDS) -> str:
    """Let a live mount be served by this interpreter and its code; say from what to what."""
    request = {
        "ask": "upgrade",
        "python": sys.executable,
        "version": __version__,
        "seconds": seconds,
    }
    answer = ask(mountpoint, request, seconds + _ANSWER_MARGIN_SECONDS)
    if "error" in answer:
        raise Unavailable(f"an upgrade of {str(mountpoint)!r}", str(answer["error"]))
    return f"{mountpoint}: kvstatefs {answer['from']} -> {answer['to']}"
