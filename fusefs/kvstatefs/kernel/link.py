"""The worker's end of its connection to the supervisor.

What the supervisor holds for a worker outlives it: the mount's own descriptor, the ledger, and
those of content that readers have open (`hold`). When the supervisor is gone, so is the mount: its
worker ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstatefs.kernel import packets
from kvstatefs.kernel.packets import SECONDS, Packet

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Link", "MountHanded", "leave_terminal"]

_ORPHAN: Final = 1


class MountHanded(NamedTuple):
    """What a worker is given to serve."""

    fuse: int
    ledger: tuple[int, ...]
    resumed: bool
    """Whether another worker served the mount before."""


class Link:
    """Says to the supervisor what happens here, and is told what is wanted. For any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held: dict[bytes, int] = {}
        self.upgrade_wanted: Callable[[float], None] | None = None
        """Called in a thread of the link: within these seconds, take no more requests, wait until
        all are answered and no file is open for writing, then `hand_over` and let `serve` return;
        or `refuse_upgrade` and go on."""
        self.upgrade_called_off: Callable[[], None] | None = None
        """Called when the supervisor waits no longer: go on as before."""
        self.stop_wanted: Callable[[float], None] | None = None
        """Called in a thread of the link when the mount point is free: bring what is under way to
        an end within these seconds, then let `serve` return."""
        self.terminal_left: Callable[[], None] | None = None
        """Called when what is written to stderr reaches nobody any more."""
        self.handed_over = False

    def begin(self) -> dict[str, Any]:
        """Wait for what is to be done: store, mount point, options."""
        packet = self._receive()
        assert packet.letter == packets.BEGIN
        settings: dict[str, Any] = json.loads(packet.text)
        return settings

    def opened(self, version: str) -> MountHanded:
        """Say that the store is open; come back with the mount to serve."""
        said = json.dumps({"pid": os.getpid(), "version": version}).encode()
        self._send(packets.OPENED, said)
        while (packet := self._receive()).letter != packets.SERVE:
            if packet.letter == packets.HELD:
                (self._held[packet.text],) = packet.descriptors
        fuse, *ledger = packet.descriptors
        return MountHanded(fuse, tuple(ledger), packet.text == b"1")

    def ready(self, *, resumable: bool = True) -> None:
        """Say that the mount answers, and whether another worker could take it over (RESEND).

        From now on the callbacks are called: set them before.
        """
        listening = threading.Thread(target=self._listen, name="link", daemon=True)
        listening.start()
        # By the end of this thread, which waits for nothing in the kernel, the supervisor knows
        # that this process was killed.
        self._send(packets.READY, b"%d%d" % (resumable, listening.native_id or 0))

    def held(self) -> dict[bytes, int]:
        """Give the descriptors that earlier workers had held, by name; they are the caller's."""
        return dict(self._held)

    def hold(self, name: bytes, descriptor: int) -> None:
        """Let the supervisor hold a descriptor for the next worker; the caller keeps its own."""
        self._send(packets.HELD, name, descriptor)

    def release(self, name: bytes) -> None:
        """Let the supervisor close what it holds under a name."""
        self._send(packets.DROP, name)

    def refuse_upgrade(self, why: str) -> None:
        """Answer `upgrade_wanted`: not now. Serving goes on."""
        self._send(packets.WAIT, why.encode())

    def hand_over(self) -> None:
        """Answer `upgrade_wanted`: nothing is under way; this worker ends when `serve` returns."""
        self.handed_over = True

    def ended(self, status: int) -> None:
        """Say that the mount is over, and with which status: 0 when it was unmounted."""
        self._send(packets.ENDED, b"%d" % status)

    def _send(self, letter: bytes, text: bytes = b"", *descriptors: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_listen` sees it, too
            packets.send(self._connection, Packet(letter, text, descriptors))

    def _receive(self) -> Packet:
        packet = packets.receive(self._connection)
        if packet is None:
            os._exit(_ORPHAN)
        return packet

    def _listen(self) -> None:
        while True:
            packet = self._receive()
            if packet.letter == packets.SETTLE:
                if self.stop_wanted is None:
                    os._exit(0)
                self.stop_wanted(*SECONDS.unpack(packet.text))
            elif packet.letter == packets.UPGRADE:
                if self.upgrade_wanted is None:
                    self.refuse_upgrade("this worker cannot be replaced")
                else:
                    self.upgrade_wanted(*SECONDS.unpack(packet.text))
            elif packet.letter == packets.CALLED_OFF and self.upgrade_called_off is not None:
                self.upgrade_called_off()
            elif packet.letter == packets.LEAVE_TERMINAL:
                leave_terminal()
                if self.terminal_left is not None:
                    self.terminal_left()


def leave_terminal() -> None:
    """Let go of the terminal, or of the pipes, that the command was started with."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
