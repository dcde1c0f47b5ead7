"""What goes over a connection in pieces: listings by pages, content by chunks.

Both take the memory of one piece, whatever the size of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstate.codec import decode, encode
from kvstate.errors import InvalidValue, StateError, Unavailable
from kvstate.wire import CHUNK_BYTES, Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FRAME_SPARE_BYTES", "ROWS_MAX", "Listing", "Upload"]

ROWS_MAX: Final = 1000
FRAME_SPARE_BYTES: Final = 1024
"""What an answer needs beside the content or the rows that it carries."""


class Listing:
    """An iterator of rows, given page by page."""

    def __init__(self, rows: Iterator[object], frame_bytes_max: int) -> None:
        self._rows = rows
        self._row_bytes_max = frame_bytes_max - FRAME_SPARE_BYTES
        self._page_bytes = min(CHUNK_BYTES, self._row_bytes_max)
        self._left_over: bytes | None = None
        self.at_end = False

    def page(self) -> list[bytes]:
        """Give the next rows, each encoded; an error ends the listing."""
        page = [] if self._left_over is None else [self._left_over]
        size = len(self._left_over or b"")
        self._left_over = None
        at_end, self.at_end = self.at_end, True
        for row in () if at_end else self._rows:
            encoded = self._encode(row)
            size += len(encoded)
            if page and size > self._page_bytes:
                self._left_over = encoded
            else:
                page.append(encoded)
            if size > self._page_bytes or len(page) >= ROWS_MAX:
                self.at_end = False
                break
        return page

    def _encode(self, row: object) -> bytes:
        encoded = encode(row)
        if len(encoded) > self._row_bytes_max:
            raise InvalidValue(
                "row of a listing",
                f"its {len(encoded)} bytes do not fit into a frame: raise frame_bytes_max, or "
                f"open the store in-process",
            )
        return encoded

    def close(self) -> None:
        """Let go of the rows that nobody will ask for."""
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()


class Upload:
    """A binary file to read from, whose bytes a client sends in frames of one byte string each.

    The first read tells the client to begin: by then its request has been found to be in order. An
    empty byte string is the end; null means that the client wants none of it to be stored.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rest = b""
        self._begun = False
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        """Give at most ``size`` bytes; nothing at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))
        if not self._begun:
            self._channel.send(encode([None]))
            self._begun = True
        if not self._rest and not self._ended:
            self._rest = self._next()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _next(self) -> bytes:
        body = self._channel.receive()
        if body is None:
            self._channel.broken = True
            raise Unavailable("upload", "the client went away before its end")
        chunk = decode(body)
        if chunk is None:
            self._ended = True
            raise StateError("the upload was dropped by the client")
        if not isinstance(chunk, bytes):
            raise InvalidValue("upload", f"{type(chunk).__name__} came where bytes were due")
        self._ended = not chunk
        return chunk

    def skip(self) -> None:
        """Read up to the end what will not be stored."""
        while self._begun and not self._ended:
            body = self._channel.receive()
            if body is None:
                self._channel.broken = True
                return
            # The ends are known by their bytes: nothing else needs to be looked into.
            self._ended = body in {b"\x40", b"\xf6"}
