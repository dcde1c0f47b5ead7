"""Artifacts over the daemon's socket: whole ones in a frame, large ones by chunks.

A stream has a connection of its own from open to close, and holds one chunk in memory, whatever the
size of the content.
"""

from __future__ import annotations

import io
import select
from typing import TYPE_CHECKING, Self

from kvstate.artifact_files import Artifact
from kvstate.codec import encode
from kvstate.errors import InvalidValue, StateError, Unavailable
from kvstate.wire import CHUNK_BYTES, error_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from kvstate.client import Client, Connection

__all__ = ["RemoteReader", "RemoteWriter"]

_FRAME_SPARE_BYTES = 1024
_JUMP_BYTES = 64 << 10


class RemoteReader(io.RawIOBase):
    """An artifact opened for reading: a seekable binary file, verified by the daemon."""

    def __init__(
        self, client: Client, connection: Connection, name: str, handle: int, size: int
    ) -> None:
        super().__init__()
        self.name = name
        self._client = client
        self._connection = connection
        self._handle = handle
        self._size = size
        self._at = 0
        self._chunk = b""
        self._chunk_at = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer as far as there are bytes; give their number."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            data = self._next(len(view) - filled)
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def readall(self) -> bytes:
        """Give all that is left."""
        return b"".join(iter(lambda: bytes(self._next(CHUNK_BYTES)), b""))

    def _next(self, size: int) -> memoryview | bytes:
        """Give some of the bytes that come next, at most ``size``; nothing at the end."""
        if self.closed:
            raise InvalidValue("reader", "it is closed")
        if self._at >= self._size:
            return b""
        skip = self._at - self._chunk_at
        if not 0 <= skip < len(self._chunk):
            self._fetch(size)
            skip = 0
        data = memoryview(self._chunk)[skip : skip + size]
        self._at += len(data)
        return data

    def _fetch(self, size: int) -> None:
        """Ask for the chunk that begins here: a large one when reading goes straight on."""
        straight = self._at == self._chunk_at + len(self._chunk)
        wanted = CHUNK_BYTES if straight else min(CHUNK_BYTES, max(size, _JUMP_BYTES))
        self._chunk = self._client.go_on(
            self._connection, "artifact_read", self._handle, self._at, wanted
        )
        self._chunk_at = self._at
        if not self._chunk:
            raise Unavailable(f"artifact {self.name!r}", "the daemon sent nothing")

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to an offset from the start, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if whence not in base:
            raise InvalidValue("whence", f"{whence!r} is none of 0, 1, 2")
        at = base[whence] + offset
        if at < 0:
            raise InvalidValue("offset", f"{at} lies before the start")
        self._at = at
        return at

    def tell(self) -> int:
        """Give the offset."""
        return self._at

    def close(self) -> None:
        """Let go of the content."""
        if not self.closed:
            super().close()
            self._chunk = b""
            if not self._connection.channel.broken:
                try:
                    self._client.go_on(self._connection, "close", self._handle)
                except StateError:
                    self._connection.close()
            self._client.give_back(self._connection)


class RemoteWriter(io.RawIOBase):
    """An artifact opened for writing: stored on close, and not at all after an exception."""

    def __init__(self, client: Client, connection: Connection, name: str) -> None:
        super().__init__()
        self.name = name
        self._client = client
        self._connection = connection
        self._chunk_bytes = min(CHUNK_BYTES, connection.frame_bytes_max - _FRAME_SPARE_BYTES)
        self._buffer = bytearray()
        self._written = 0
        self._done = False
        self.artifact: Artifact | None = None
        """What was stored, after close."""

    def writable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Give the bytes written so far."""
        return self._written

    def write(self, data: Buffer, /) -> int:
        """Take all of the data."""
        if self._done:
            raise InvalidValue("writer", "it is closed")
        view = memoryview(data).cast("B")
        if self._buffer or len(view) < self._chunk_bytes:
            self._buffer += view
            if len(self._buffer) >= self._chunk_bytes:
                pending, self._buffer = self._buffer, bytearray()
                self._send_all(memoryview(pending))
        else:
            self._send_all(view)
        self._written += len(view)
        return len(view)

    def _send_all(self, view: memoryview) -> None:
        for start in range(0, len(view), self._chunk_bytes):
            self._send(bytes(view[start : start + self._chunk_bytes]))

    def _send(self, chunk: bytes | None) -> None:
        """Send a chunk, unless the daemon has said meanwhile why it takes no more."""
        try:
            self._raise_early_answer()
            self._client.send(self._connection, "artifact_upload", encode(chunk))
        except BaseException:
            self._abandon()
            raise

    def _raise_early_answer(self) -> None:
        poll = select.poll()
        poll.register(self._connection.channel.socket, select.POLLIN)
        if poll.poll(0):
            raise error_of(self._client.receive(self._connection, "artifact_upload"))

    def _abandon(self) -> None:
        self._done = True
        self._connection.close()
        self._client.give_back(self._connection)

    def discard(self) -> None:
        """Forget what was written: nothing is stored."""
        if not self._done:
            self._done = True
            try:
                self._client.send(self._connection, "artifact_upload", encode(None))
                self._client.receive(self._connection, "artifact_upload")
            except StateError:
                self._connection.close()
            self._client.give_back(self._connection)
        super().close()

    def close(self) -> None:
        """Store what was written; durable when this returns."""
        if not self._done:
            try:
                if self._buffer:
                    self._send(bytes(self._buffer))
                self._send(b"")
                self._done = True
                answer = self._client.receive(self._connection, "artifact_upload")
                self._client.give_back(self._connection)
                if len(answer) != 1:
                    raise error_of(answer)
                self.artifact = Artifact(*answer[0])
            finally:
                super().close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # Forgotten without close: an exception may have been the reason, so nothing is stored.
        if not getattr(self, "_done", True):
            self._abandon()
