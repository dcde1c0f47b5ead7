"""What supervisor and worker say to one another: packets over a socket pair, with descriptors.

A packet is one letter and what belongs to it; none is longer than `PACKET_BYTES`. The supervisor
may be older than the worker (`kvstatefs --upgrade` changes the worker alone): letters are added,
and one that is not known is passed over.

    to the worker                                to the supervisor
    B  begin: settings as JSON                   O  the store is open: pid and version as JSON
    H  held: a name, one descriptor              R  ready: the mount answers; 1 when another
    M  serve the mount: 1 when it is taken          worker could take over, else 0; then the
       over; /dev/fuse, the ledger's                number of the thread that receives
    U  make way for an upgrade within seconds    H  hold a descriptor under a name
    C  the upgrade is called off                 D  drop what is held under a name
    S  settle within seconds, and end            W  wait: no upgrade now, and why
    L  leave the terminal                        E  ended: the status to end with
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import Final, NamedTuple

__all__ = [
    "BEGIN",
    "CALLED_OFF",
    "DROP",
    "ENDED",
    "HANDED_OVER",
    "HELD",
    "LEAVE_TERMINAL",
    "NOTHING_TO_RESUME",
    "OPENED",
    "PACKET_BYTES",
    "READY",
    "SECONDS",
    "SERVE",
    "SETTLE",
    "UPGRADE",
    "WAIT",
    "Packet",
    "receive",
    "send",
    "socket_pair",
]

BEGIN, HELD, SERVE, UPGRADE = b"B", b"H", b"M", b"U"
CALLED_OFF, SETTLE, LEAVE_TERMINAL = b"C", b"S", b"L"
OPENED, READY, DROP, WAIT, ENDED = b"O", b"R", b"D", b"W", b"E"

SECONDS: Final = struct.Struct("=d")
"""How U and S say how many seconds there are."""

HANDED_OVER: Final = 3
"""A worker's exit status: another is to go on, with other code."""
NOTHING_TO_RESUME: Final = 4
"""A worker's exit status: the ledger does not say what the kernel knows; mount anew."""

PACKET_BYTES: Final = 1 << 16
_DESCRIPTORS_MAX: Final = 8


class Packet(NamedTuple):
    """One packet. Its descriptors belong to whoever received it."""

    letter: bytes
    text: bytes
    descriptors: tuple[int, ...] = ()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Give both ends of a new connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, packet: Packet) -> None:
    """Send one packet; `BrokenPipeError` when the other is gone."""
    rights = array.array("i", packet.descriptors)
    connection.sendmsg(
        [packet.letter, packet.text],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [],
        socket.MSG_NOSIGNAL,
    )


def receive(connection: socket.socket) -> Packet | None:
    """Receive one packet; None when the other is gone."""
    rights = array.array("i")
    try:
        data, ancillary, _, _ = connection.recvmsg(
            PACKET_BYTES,
            socket.CMSG_SPACE(_DESCRIPTORS_MAX * rights.itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
    except ConnectionResetError:
        return None
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            rights.frombytes(content[: len(content) // rights.itemsize * rights.itemsize])
    if not data:
        for descriptor in rights:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return None
    return Packet(data[:1], data[1:], tuple(rights))
