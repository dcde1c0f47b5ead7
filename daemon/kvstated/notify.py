"""Tells systemd how the daemon is, by the protocol of sd_notify(3): a datagram, no library."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["notify"]


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send ``READY=1``, ``STOPPING=1`` or other lines; say whether somebody wants to know.

    A service manager that does not listen is no reason to fail.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1)
        with contextlib.suppress(OSError):
            sender.sendto(state.encode(), address)
            return True
    return False
