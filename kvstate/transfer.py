"""Artifacts over the daemon's socket: whole ones in a frame, large ones by chunks.

A stream has a connection of its own from open to close, and holds one chunk in memory, whatever the
size of the content.
"""

from __future__ import annotations

import io
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from kvstate.artifact_files import Artifact, Content
from kvstate.codec import Value, encode
from kvstate.errors import InvalidValue, StateError, Unavailable
from kvstate.places import raise_os_error
from kvstate.wire import CHUNK_BYTES, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Buffer

    from kvstate.client import Client, Connection

__all__ = ["RemoteArtifacts", "RemoteReader", "RemoteWriter"]

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


class RemoteArtifacts:
    """The artifacts in another process. The same methods as `kvstate.artifacts.Artifacts`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._call = client.call

    # Reading

    def stat(self, name: str) -> Artifact:
        """Give what is known of an artifact; `NotFound` when there is none of this name."""
        return Artifact(*self._call("artifact_stat", name))

    def exists(self, name: str) -> bool:
        """Say whether there is an artifact of this name."""
        return bool(self._call("artifact_exists", name))

    def get(self, name: str) -> bytes:
        """Give all bytes of an artifact; `Damaged` rather than a byte that was not written."""
        connection, found = self._client.ask("artifact_get", (name,))
        if isinstance(found, bytes):
            self._client.give_back(connection)
            return found
        with RemoteReader(self._client, connection, name, *found) as reader:
            return reader.readall()

    def open(self, name: str, mode: str = "r") -> RemoteReader | RemoteWriter:
        """Open an artifact: "r" gives a seekable binary file, "w" a writer that stores on close.

        Who reads keeps the bytes that were there when it was opened, whatever happens to the name.
        """
        if mode in {"r", "rb"}:
            connection, (handle, size) = self._client.ask("artifact_open", (name,))
            return RemoteReader(self._client, connection, name, handle, size)
        if mode in {"w", "wb"}:
            return self.writer(name)
        raise InvalidValue("mode", f"{mode!r} is neither 'r' nor 'w'")

    def list(self, prefix: str = "", *, tier: str | None = None) -> Iterator[Artifact]:
        """Give the artifacts below a folder (or the one of this name), in the order of names."""
        return (Artifact(*row) for row in self._client.listing("artifact_list", prefix, tier))

    def verify(self, name: str) -> Artifact:
        """Read all of an artifact and compare its checksums; `Damaged` when one does not match."""
        return Artifact(*self._call("artifact_verify", name))

    # Writing

    def put(
        self,
        name: str,
        content: Content,
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        replace: bool = True,
    ) -> Artifact:
        """Store bytes, a file (by its path) or what a binary file gives; durable on return.

        `Exists` when the name is taken and ``replace`` is off. ``metadata=None`` keeps what an
        older version had.
        """
        facts = None if metadata is None else dict(metadata)
        if isinstance(content, bytes | bytearray | memoryview):
            return self._put_file(name, io.BytesIO(content), facts, tier, replace=replace)
        if isinstance(content, str | os.PathLike):
            try:
                with Path(content).open("rb") as source:
                    return self._put_file(name, source, facts, tier, replace=replace)
            except OSError as error:
                raise_os_error(error, str(content))
        if hasattr(content, "read"):
            return self._put_file(name, content, facts, tier, replace=replace)
        kind = type(content).__name__
        raise InvalidValue("content", f"{kind} is neither bytes, a path nor a binary file")

    def _put_file(
        self,
        name: str,
        source: BinaryIO,
        metadata: dict[str, Value] | None,
        tier: str,
        *,
        replace: bool,
    ) -> Artifact:
        """Store it in one frame if it fits, or else by chunks."""
        room = min(CHUNK_BYTES, self._client.greeting["frame_bytes_max"] // 2)
        first = _read(source, room)
        rest = _read(source, room) if len(first) == room else b""
        if not rest:
            row = self._call("artifact_put", name, first, metadata, tier, replace)
            return Artifact(*row)
        with self.writer(name, metadata=metadata, tier=tier, replace=replace) as writer:
            writer.write(first)
            while rest:
                writer.write(rest)
                rest = _read(source, room)
        assert writer.artifact is not None
        return writer.artifact

    def writer(
        self,
        name: str,
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        replace: bool = True,
    ) -> RemoteWriter:
        """Open a writer that stores on close, and nothing at all after an exception."""
        facts = None if metadata is None else dict(metadata)
        connection, _ = self._client.ask("artifact_upload", (name, facts, tier, replace))
        return RemoteWriter(self._client, connection, name)

    def update(self, name: str, metadata: Mapping[str, Value]) -> Artifact:
        """Replace an artifact's metadata."""
        return Artifact(*self._call("artifact_update", name, dict(metadata)))

    def delete(self, name: str) -> bool:
        """Delete an artifact, and the folders that were made for it; say whether it was there."""
        return bool(self._call("artifact_delete", name))

    def rename(self, old: str, new: str, *, replace: bool = False) -> Artifact | None:
        """Give an artifact, or a whole folder, another name, in one step; None for a folder."""
        row = self._call("artifact_rename", old, new, replace)
        return None if row is None else Artifact(*row)

    def move(
        self, name: str, tier: str, *, progress: Callable[[int, int, str], None] | None = None
    ) -> Artifact:
        """Move an artifact to another tier; its age goes on, unless it moves to a hotter one."""
        arguments = (name, tier, progress is not None)
        return Artifact(*self._client.told("artifact_move", arguments, progress))

    def restore(
        self,
        name: str,
        tier: str = "hot",
        *,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Bring an artifact back to a hotter tier, where it begins to age anew."""
        arguments = (name, tier, progress is not None)
        return Artifact(*self._client.told("artifact_restore", arguments, progress))


def _read(source: BinaryIO, size: int) -> bytes:
    """Give ``size`` bytes, or fewer at the end: a pipe gives what it has."""
    parts: list[bytes] = []
    while size > 0 and (data := source.read(size)):
        if not isinstance(data, bytes):
            raise InvalidValue("content", "the file gives text, not bytes: open it with 'rb'")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
