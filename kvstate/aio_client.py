"""Requests over the daemon's socket for asyncio: many in flight on one connection.

A connection sends requests as they come and hands each answer to the oldest request without one:
that is the protocol's order. A request that is cancelled, or whose deadline has passed, only stops
waiting; its answer is dropped when it comes. A lost connection fails what was in flight on it; what
changes nothing is asked once more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from kvstate.client import ANSWER_BYTES_MAX, name_culprit
from kvstate.codec import decode
from kvstate.errors import InvalidValue, StateError, Unavailable
from kvstate.operations import OPERATIONS, PROTOCOL
from kvstate.wire import encode_request, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["AsyncClient"]

_LENGTH = Struct(">I")
_HELLO_BYTES_MAX: Final = 1 << 16
_BUSY: Final = 32


class _Connection:
    """One connection, and the requests on it that have no answer yet."""

    def __init__(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.path = path
        self.frame_bytes_max = _HELLO_BYTES_MAX
        self.broken = False
        self._reader = reader
        self._writer = writer
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._task = asyncio.ensure_future(self._receive())

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._waiting)

    async def call(self, operation: str, arguments: tuple[object, ...]) -> Any:
        """Ask, and wait for the answer."""
        body = encode_request(operation, arguments)
        if len(body) > self.frame_bytes_max:
            raise InvalidValue(
                "request",
                f"its {len(body)} bytes are more than the daemon takes, {self.frame_bytes_max}",
            )
        if self.broken:
            raise _lost(self.path, "the connection was lost", operation, sent=False)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._writer.write(_LENGTH.pack(len(body)) + body)
        with contextlib.suppress(OSError):  # the receiving end says what happened
            await self._writer.drain()
        try:
            return await future
        except _LostConnection as error:
            raise _lost(self.path, str(error), operation, sent=True) from None

    async def _receive(self) -> None:
        why = "it closed the connection"
        try:
            while True:
                (size,) = _LENGTH.unpack(await self._reader.readexactly(4))
                if size > ANSWER_BYTES_MAX:
                    why = f"it sent a frame of {size} bytes"
                    break
                self._hand_over(decode(await self._reader.readexactly(size)))
        except (OSError, asyncio.IncompleteReadError, StateError) as error:
            why = why if isinstance(error, asyncio.IncompleteReadError) else str(error)
        finally:
            self._end(why)

    def _hand_over(self, answer: list[Any]) -> None:
        if len(answer) == 3 or not self._waiting:
            return  # progress that nobody asked for
        future = self._waiting.popleft()
        if future.done():
            return  # cancelled meanwhile
        if len(answer) == 1:
            future.set_result(answer[0])
        else:
            future.set_exception(error_of(answer))

    def _end(self, why: str) -> None:
        self.broken = True
        self._writer.close()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(_LostConnection(why))

    async def close(self) -> None:
        """Close it; what is in flight fails."""
        self._end("the store was closed")
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _LostConnection(Exception):
    """Never leaves this module."""


def _lost(path: str, why: str, operation: str, *, sent: bool) -> Unavailable:
    if sent and OPERATIONS[operation].writes:
        why += f"; whether {operation!r} took effect is not known: read before you repeat it"
        return Unavailable(f"kvstated on {path!r}", why)
    return Unavailable(f"kvstated on {path!r}", why, retry=True)


class AsyncClient:
    """The connections of one store, in one event loop."""

    def __init__(self, path: str, *, timeout: float | None, connections: int) -> None:
        self.path = path
        self.greeting: dict[str, Any] = {}
        self._timeout = timeout
        self._most = connections
        self._open: list[_Connection] = []
        self._connecting = asyncio.Lock()
        self._closed = False

    async def call(self, operation: str, *arguments: object) -> Any:
        """Ask over any connection."""
        return (await self.ask(operation, arguments))[1]

    async def ask(
        self, operation: str, arguments: tuple[object, ...], timeout: float | None = None
    ) -> tuple[_Connection, Any]:
        """Ask over any connection; give it along with the answer."""
        limit = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                for last in (False, True):
                    connection = await self._connection()
                    try:
                        return connection, await connection.call(operation, arguments)
                    except InvalidValue:
                        name_culprit(operation, arguments)
                        raise
                    except Unavailable as error:
                        if last or not error.retry or not connection.broken:
                            raise
        except TimeoutError:
            why = f"no answer within {limit} s"
            if OPERATIONS[operation].writes:
                why += (
                    f"; whether {operation!r} took effect is not known: read before you repeat it"
                )
            raise Unavailable(f"kvstated on {self.path!r}", why) from None
        raise AssertionError

    async def listing(self, operation: str, *arguments: object) -> AsyncIterator[Any]:
        """Give the rows of a listing; pages are asked for as they are wanted."""
        connection, (rows, handle) = await self.ask(operation, arguments)
        try:
            while True:
                for row in rows:
                    yield row
                if handle is None:
                    return
                rows, handle = await connection.call("more", (handle,))
        finally:
            if handle is not None and not connection.broken:
                with contextlib.suppress(StateError):
                    await connection.call("close", (handle,))

    async def alone(self) -> _Connection:
        """Give a connection for somebody who waits on it; who takes it closes it."""
        return await self._connect()

    async def _connection(self) -> _Connection:
        """Give the connection with the least to do; another one when all are busy."""
        found = self._best()
        if found is not None:
            return found
        async with self._connecting:
            found = self._best()
            if found is None:
                found = await self._connect()
                self._open.append(found)
            return found

    def _best(self) -> _Connection | None:
        self._open = [connection for connection in self._open if not connection.broken]
        if not self._open:
            return None
        best = min(self._open, key=lambda connection: connection.in_flight)
        return None if best.in_flight >= _BUSY and len(self._open) < self._most else best

    async def _connect(self) -> _Connection:
        if self._closed:
            raise Unavailable(f"store over {self.path!r}", "it was closed")
        try:
            reader, writer = await asyncio.open_unix_connection(self.path)
        except OSError as error:
            raise Unavailable(
                f"kvstated on {self.path!r}",
                f"nobody answers ({error.strerror or error}): start it with "
                f"`kvstated --store DIR`, or name its socket",
                retry=True,
            ) from None
        connection = _Connection(self.path, reader, writer)
        try:
            self.greeting = await connection.call("hello", (PROTOCOL,))
        except BaseException:
            await connection.close()
            raise
        connection.frame_bytes_max = self.greeting["frame_bytes_max"]
        return connection

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        connections, self._open = self._open, []
        for connection in connections:
            await connection.close()
