"""How another command finds the supervisor of a mount, and asks it something.

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
from typing import TYPE_CHECKING, Any, Final

from kvstate.errors import InvalidConfig, Unavailable
from kvstate.version import __version__
from kvstatefs import mountpoint as mountpoints

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["UPGRADE_SECONDS", "ask", "listen", "listens", "may_ask", "upgrade"]

UPGRADE_SECONDS: Final = 30.0
"""How long a worker may wait for files that are open for writing."""
_ANSWER_MARGIN_SECONDS: Final = 60.0
_PACKET_BYTES: Final = 1 << 16
_CREDENTIALS = struct.Struct("=iII")


def _address(device: str) -> str:
    return f"\0kvstatefs-{device}"


def listen(device: str) -> socket.socket | None:
    """Listen for this mount; None when somebody else has its name: it is not for upgrades then."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(_address(device))
        listener.listen(8)
    except OSError:
        listener.close()
        return None
    return listener


def listens(device: str) -> bool:
    """Whether a supervisor, or anybody, listens for this mount."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        with contextlib.suppress(OSError):
            connection.connect(_address(device))
            return True
    return False


def may_ask(connection: socket.socket) -> bool:
    """Whether root or the user that we are is at the other end."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(peer)
    return uid in {0, os.geteuid()}


def ask(mountpoint: Path, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Ask the supervisor of a mount; `InvalidConfig` if there is none, `Unavailable` if it fails."""
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
