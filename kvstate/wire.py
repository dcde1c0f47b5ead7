"""Frames on a socket: what the daemon and its clients agree on below the operations.

    frame     length (4 bytes, big-endian, of the body alone) | body (CBOR, of the store's model)
    request   [operation, argument, ...]                as `kvstate.operations` says
    answer    [result]                                  it was done
              [code, message, facts, retry]             it was not: `kvstate.errors`
              [done, total, name]                       not yet: progress of a long request

Answers come in the order of the requests, one each, but for progress. No body is longer than the
limit of the side that receives it. The full protocol is in docs/protocol.md.

A `Channel` costs one system call for a frame in each direction, as long as frames come one by one.
Not here: who connects, what is asked, what is done.
"""

from __future__ import annotations

import contextlib
import os
import socket
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NoReturn

from kvstate.codec import Value, encode
from kvstate.errors import InvalidValue, StateError, Unavailable, from_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CHUNK_BYTES",
    "FRAME_BYTES_MAX",
    "SOCKET_PATH_BYTES_MAX",
    "Channel",
    "default_socket",
    "encode_error",
    "encode_request",
    "encode_rows",
    "error_of",
]

FRAME_BYTES_MAX: Final = 8 << 20
"""The default limit of a body. What a hostile frame can cost in memory grows with it."""
CHUNK_BYTES: Final = 512 << 10
"""How much content goes into one frame of a stream, and how many bytes of rows into a page."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""What the kernel takes (``sun_path`` without its end)."""
STALL_SECONDS: Final = 30
"""How long the other side may leave a frame half sent, or an answer unread."""

_LENGTH = Struct(">I")
_RECEIVE_BYTES = 64 << 10
_LARGE_BYTES = 256 << 10
_TIMEVAL = Struct("@ll")


def default_socket(environ: Mapping[str, str]) -> str:
    """Give the path of the daemon's socket when nobody named one.

    ``$KVSTATE_SOCKET``; else ``$XDG_RUNTIME_DIR/kvstate.sock``; else, and for clients also when
    there is no such file, ``/run/kvstate/kvstate.sock``.
    """
    named = environ.get("KVSTATE_SOCKET")
    if named:
        return named
    runtime = environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/kvstate.sock" if runtime else "/run/kvstate/kvstate.sock"


class Channel:
    """Sends and receives whole frames on a connected socket, for one thread at a time."""

    __slots__ = ("_buffer", "_receive", "_send", "broken", "frame_bytes_max", "socket")

    def __init__(self, connected: socket.socket, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        """Take over a blocking socket; ``frame_bytes_max`` limits what is received."""
        self.socket = connected
        self.frame_bytes_max = frame_bytes_max
        self._buffer = b""
        self._send = connected.sendall
        self._receive = connected.recv
        self.broken = False
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(STALL_SECONDS, 0))

    def send(self, body: bytes) -> None:
        """Send one frame; `Unavailable` when the other side is gone or reads nothing."""
        self.broken = True
        try:
            if len(body) < _LARGE_BYTES:
                self._send(_LENGTH.pack(len(body)) + body, socket.MSG_NOSIGNAL)
            else:
                self._send(_LENGTH.pack(len(body)), socket.MSG_NOSIGNAL | socket.MSG_MORE)
                self._send(body, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Unavailable("connection", f"nothing was read for {STALL_SECONDS} s") from None
        except OSError as error:
            raise Unavailable("connection", os.strerror(error.errno or 0)) from None
        self.broken = False

    def receive(self) -> bytes | None:
        """Give the next body, or None when the other side closed between two frames.

        `InvalidValue` for a frame over the limit, `Unavailable` for one that ends too early or
        stalls; the connection is of no more use then, and says so as ``broken``.
        """
        try:
            data = self._buffer or self._receive(_RECEIVE_BYTES)
            if len(data) >= 4:
                end = 4 + _LENGTH.unpack_from(data)[0]
                if end - 4 > self.frame_bytes_max:
                    self._refuse(end - 4)
                if end <= len(data):  # as nearly always: one frame, and nothing else
                    self._buffer = data[end:]
                    return data[4:end]
            return self._receive_parts(data) if data else None
        except BlockingIOError:
            self.broken = True
            raise Unavailable("connection", f"a frame stalled for {STALL_SECONDS} s") from None
        except OSError as error:
            self.broken = True
            raise Unavailable("connection", os.strerror(error.errno or 0)) from None

    def _refuse(self, size: int) -> NoReturn:
        self.broken = True
        raise InvalidValue(
            "frame", f"{size} bytes are more than frame_bytes_max, {self.frame_bytes_max}"
        )

    def _receive_parts(self, data: bytes) -> bytes:
        """Put a frame together from what comes; keep what comes after it."""
        self.broken = True  # until it is whole
        self._limit_stall(STALL_SECONDS)
        while len(data) < 4:
            data += self._receive_some(_RECEIVE_BYTES)
        size = _LENGTH.unpack_from(data)[0]
        if size > self.frame_bytes_max:
            self._refuse(size)
        parts = [data[4:]]
        missing = size - len(parts[0])
        while missing > 0:  # memory grows with what really came, not with what was announced
            parts.append(self._receive_some(min(max(missing, _RECEIVE_BYTES), _LARGE_BYTES)))
            missing -= len(parts[-1])
        self._limit_stall(0)
        self.broken = False
        body = b"".join(parts)
        self._buffer = body[size:]
        return body[:size] if self._buffer else body

    def _receive_some(self, size: int) -> bytes:
        data = self._receive(size)
        if not data:
            raise Unavailable("connection", "it ended within a frame")
        return data

    def _limit_stall(self, seconds: int) -> None:
        # The kernel's own timeout, since Python's costs another system call for each receive.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, 0))

    @property
    def buffered(self) -> bool:
        """Whether a further frame, or its beginning, has been received already."""
        return bool(self._buffer)

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self.socket.close()


def encode_request(operation: str, arguments: tuple[object, ...]) -> bytes:
    """Give the body of a request."""
    return _head(operation, len(arguments)) + b"".join(map(encode, arguments))


@cache
def _head(operation: str, arguments: int) -> bytes:
    """Give how a request begins: an array, and the operation as its first item."""
    return bytes((0x81 + arguments,)) + encode(operation)


def encode_error(error: StateError) -> bytes:
    """Give the body of an answer that says what went wrong."""
    facts = [fact if isinstance(fact, str | int | float) else repr(fact) for fact in error.facts]
    try:
        return encode([error.code, error.message, facts, getattr(error, "retry", False)])
    except InvalidValue:  # text that no UTF-8 can hold
        plain = str(error).encode(errors="backslashreplace").decode()
        return encode([error.code, plain, [], getattr(error, "retry", False)])


def error_of(answer: list[Value]) -> StateError:
    """Give the error that an answer carries."""
    code, message, facts, retry = answer
    error = from_facts(code, message, tuple(facts))
    if isinstance(error, Unavailable):
        error.retry = bool(retry)
    return error


def encode_rows(rows: list[bytes], handle: int | None) -> bytes:
    """Give the body of an answer with one page of a listing, whose rows are encoded already."""
    count = len(rows)
    head = bytes([0x80 | count]) if count < 24 else b"\x99" + count.to_bytes(2, "big")
    return b"".join((b"\x81\x82", head, *rows, encode(handle)))  # [[ [row, ...], handle ]]
