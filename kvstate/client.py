"""Requests over pooled connections: what `kvstate.remote` and `kvstate.transfer` stand on.

A `Connection` is for one thread at a time. The pool is a stack: the connection that was used last
is used next, so that few stay warm, and taking one costs no lock. When a connection turns out to be
dead (the daemon was restarted), a request that it did not get, or that changes nothing, is sent
once more over a new one; one that may have changed the store is not, and `Unavailable` says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

from kvstate.codec import decode
from kvstate.errors import InvalidName, InvalidValue, StateError, Unavailable
from kvstate.operations import OPERATIONS, PROTOCOL
from kvstate.wire import Channel, encode_request, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Client", "Connection", "name_culprit"]

ANSWER_BYTES_MAX = 1 << 30
"""The daemon is trusted with more than its clients are."""
_HELLO_BYTES_MAX = 1 << 16
_IDLE_MAX = 64

Told: TypeAlias = "Callable[[int, int, str], None] | None"
"""Who is told of the progress of a long request."""


class _Lost(Exception):
    """The connection is dead; ``sent`` says whether the daemon may have got the request.

    Never leaves this module: it becomes another try, or `Unavailable`.
    """

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Connection:
    """One connection to the daemon."""

    def __init__(self, path: str) -> None:
        """Connect and say hello; `Unavailable` when nobody answers, `Incompatible` as it says."""
        self.path = path
        self.channel = Channel(_connected(path), ANSWER_BYTES_MAX)
        self.frame_bytes_max = _HELLO_BYTES_MAX  # until the daemon says more
        try:
            self.greeting: dict[str, Any] = self.call("hello", (PROTOCOL,))
        except BaseException as error:
            self.close()
            if isinstance(error, _Lost):
                raise self.unavailable(error, "hello") from None
            raise
        self.frame_bytes_max = self.greeting["frame_bytes_max"]

    def call(self, operation: str, arguments: tuple[object, ...], told: Told = None) -> Any:
        """Ask and wait for the answer; raise the error that it carries, or `_Lost`."""
        self.send(encode_request(operation, arguments))
        answer = self.receive()
        while len(answer) == 3:
            if told is not None:
                told(*answer)
            answer = self.receive()
        if len(answer) == 1:
            return answer[0]
        raise error_of(answer)

    def send(self, body: bytes) -> None:
        """Send a frame, or raise `_Lost`, or the error that the daemon gave as its last word."""
        if len(body) > self.frame_bytes_max:
            raise InvalidValue(
                "request",
                f"its {len(body)} bytes are more than the daemon takes, {self.frame_bytes_max}: "
                f"send less at once, or raise frame_bytes_max",
            )
        try:
            self.channel.send(body)
        except Unavailable as error:
            self._raise_last_word()
            raise _Lost(error.message, sent=False) from None

    def _raise_last_word(self) -> None:
        with contextlib.suppress(_Lost):
            answer = self.receive()
            self.channel.broken = True
            if len(answer) == 4:
                raise error_of(answer)

    def receive(self) -> list[Any]:
        """Give the next answer, or raise `_Lost`."""
        try:
            body = self.channel.receive()
        except StateError as error:
            raise _Lost(error.message, sent=True) from None
        if body is None:
            self.channel.broken = True
            raise _Lost("it closed the connection", sent=True)
        answer: list[Any] = decode(body)
        return answer

    def unavailable(self, lost: _Lost, operation: str) -> Unavailable:
        """Give the error for a request whose answer will not come."""
        why = str(lost)
        if lost.sent and OPERATIONS[operation].writes:
            why += f"; whether {operation!r} took effect is not known: read before you repeat it"
        return Unavailable(f"kvstated on {self.path!r}", why, retry=True)

    def close(self) -> None:
        """Close the socket; whoever waits for an answer is told at once."""
        self.channel.broken = True
        with contextlib.suppress(OSError):
            self.channel.socket.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def __del__(self) -> None:
        if hasattr(self, "channel"):
            self.channel.close()


def _connected(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connected.connect(path)
    except OSError as error:
        connected.close()
        why = os.strerror(error.errno) if error.errno else str(error)
        raise Unavailable(
            f"kvstated on {path!r}",
            f"nobody answers ({why}): start it with `kvstated --store DIR`, or name its socket",
            retry=True,
        ) from None
    return connected


class Client:
    """The connections of one `RemoteStore`, for any number of threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._closed = False
        first = self._connect()
        self.greeting = first.greeting
        self._idle.append(first)
        _clients.add(self)

    def call(self, operation: str, *arguments: object) -> Any:
        """Ask over any connection."""
        connection, answer = self.ask(operation, arguments)
        self._idle.append(connection)
        return answer

    def told(self, operation: str, arguments: tuple[object, ...], told: Told) -> Any:
        """Ask for something that takes long, and tell how far it is."""
        connection, answer = self.ask(operation, arguments, told)
        self.give_back(connection)
        return answer

    def ask(
        self, operation: str, arguments: tuple[object, ...], told: Told = None
    ) -> tuple[Connection, Any]:
        """Ask over any connection; give it along with the answer, to `give_back`."""
        connection = self._take()
        for last in (False, True):
            try:
                return connection, connection.call(operation, arguments, told)
            except _Lost as lost:
                connection.close()
                if last or (lost.sent and OPERATIONS[operation].writes) or self._closed:
                    raise connection.unavailable(lost, operation) from None
                self._forget_idle()
                connection = self._connect()
            except InvalidValue:
                self.give_back(connection)
                name_culprit(operation, arguments)
                raise
            except BaseException as error:
                if not isinstance(error, StateError):
                    connection.close()  # interrupted: its answer may still come
                self.give_back(connection)
                raise
        raise AssertionError

    def listing(self, operation: str, *arguments: object) -> Iterator[Any]:
        """Give the rows of a listing; pages are asked for as they are wanted."""
        connection, (rows, handle) = self.ask(operation, arguments)
        try:
            yield from rows
            while handle is not None:
                rows, handle = self.go_on(connection, "more", handle)
                yield from rows
        finally:
            if handle is not None and not connection.channel.broken:
                self.go_on(connection, "close", handle)
            self.give_back(connection)

    def go_on(self, connection: Connection, operation: str, *arguments: object) -> Any:
        """Ask over the connection that has what the request is about."""
        try:
            return connection.call(operation, arguments)
        except _Lost as lost:
            connection.close()
            raise connection.unavailable(lost, operation) from None

    def send(self, connection: Connection, operation: str, body: bytes) -> None:
        """Send a frame that belongs to a request under way."""
        try:
            connection.send(body)
        except _Lost as lost:
            connection.close()
            raise connection.unavailable(lost, operation) from None

    def receive(self, connection: Connection, operation: str) -> list[Any]:
        """Give the next answer to a request under way."""
        try:
            return connection.receive()
        except _Lost as lost:
            connection.close()
            raise connection.unavailable(lost, operation) from None

    def _connect(self) -> Connection:
        if self._closed:
            raise Unavailable(f"store over {self.path!r}", "it was closed")
        connection = Connection(self.path)
        self._open.add(connection)
        return connection

    def _take(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def give_back(self, connection: Connection) -> None:
        """Take a connection back, unless it is of no more use."""
        if connection.channel.broken or self._closed or len(self._idle) >= _IDLE_MAX:
            connection.close()
        else:
            self._idle.append(connection)

    def _forget_idle(self) -> None:
        """Close what is idle: when one connection is dead, the daemon was restarted."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close all connections, also those that are in use."""
        self._closed = True
        for connection in list(self._open):
            connection.close()
        self._idle.clear()

    def leave_to_parent(self) -> None:
        """Forget the connections after a fork: they are the parent's."""
        for connection in list(self._open):
            connection.channel.broken = True
            connection.channel.close()
        self._idle.clear()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def name_culprit(operation: str, arguments: tuple[object, ...]) -> None:
    """Raise `InvalidName` when what could not be sent is a name, as the store itself would."""
    for argument, given in zip(OPERATIONS[operation].arguments, arguments, strict=False):
        if argument.kind.startswith("name"):
            names = given if argument.kind == "names" and isinstance(given, list) else [given]
            for name in names:
                if isinstance(name, str) and not name.isascii():
                    try:
                        name.encode()
                    except UnicodeEncodeError:
                        raise InvalidName(argument.name, name, "it is not valid UTF-8") from None
