"""Where a mount without a terminal says what it has to say: the system's log, without ever waiting.

syslog(3) waits for a log daemon that is stuck; a supervisor must not. What cannot be taken is lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

__all__ = ["say"]

_LOG: Final = "/dev/log"
_DAEMON_WARNING: Final = 3 << 3 | 4  # facility and severity of RFC 3164


def say(text: str) -> None:
    """Write one line."""
    line = f"<{_DAEMON_WARNING}>kvstatefs[{os.getpid()}]: {text}"
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log,
    ):
        log.sendto(line.encode(errors="replace"), _LOG)
