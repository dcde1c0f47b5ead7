"""Reading an artifact: the content that it had when it was opened, and what was appended since.

A reader keeps the bytes that were there, whatever happens to the name. At the end of the file it
looks again: when the same file has only grown (`origin` says so), it goes on in the new content; so
`tail -f` follows a file that is appended to.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from kvstate.errors import NotFound
from kvstatefs.artifact_records import changed, content_name
from kvstatefs.handles import ReadingHandle, found_by

if TYPE_CHECKING:
    from kvstate.blob_reader import BlobReader
    from kvstate.nodes import File
    from kvstatefs.artifact_records import ArtifactRecords, Opened
    from kvstatefs.nodes import Attributes, Changes

__all__ = ["ReadHandle"]


class Unstored(Protocol):
    """A file that is being written for the first time."""

    base: File | None

    def attributes(self) -> Attributes:
        """Give its attributes."""
        ...


class ReadHandle(ReadingHandle):
    """A file open for reading. Several who open the same content may share one."""

    def __init__(
        self, records: ArtifactRecords, file: File | None, unstored: Unstored | None = None
    ) -> None:
        """Pin the file's content; a file that is not stored yet is empty so far."""
        self._records = records
        self._unstored = unstored
        self._lock = threading.Lock()
        self._seen = records.version()
        self._opened: Opened | None = None
        self.record = file
        if file is not None:
            self._pin(file)

    def _pin(self, file: File) -> None:
        while True:
            try:
                self._take(file)
            except NotFound:
                newer = self._records.fetch(file.id)
                if newer is None or newer.blob == file.blob:
                    raise
                file = newer
            else:
                return

    def _take(self, file: File) -> None:
        self._opened = self._records.readers.take(file.blob)
        self.record = file
        self.content = content_name(file)
        self.slow = file.size > self._records.inline_bytes_max

    def read(self, offset: int, size: int) -> bytes:
        """Read what is pinned; at its end, look whether the file has grown."""
        opened = self._opened
        data = b"" if opened is None else opened.reader.pread(offset, size)
        if len(data) < size and self._grew():
            assert self._opened is not None
            data += self._opened.reader.pread(offset + len(data), size - len(data))
        return data

    def _grew(self) -> bool:
        version = self._records.version()
        with self._lock:
            if version == self._seen:
                return False
            self._seen = version
            return self._grow()

    def _grow(self) -> bool:
        """Go on with what begins with what is pinned, if there is such a thing; say so."""
        newer = self._newer()
        while newer is not None:
            try:
                self._take(newer)
            except NotFound:  # it is gone again, perhaps for what begins otherwise
                gone, newer = newer, self._newer()
                if newer is not None and newer.blob == gone.blob:
                    return False
            else:
                return True
        return False

    def _newer(self) -> File | None:
        """Give the file's state when it begins with what is pinned and goes on."""
        if self.record is None:
            base = self._unstored.base if self._unstored else None
            return base and (self._records.fetch(base.id) or base)
        newer = self._records.fetch(self.record.id)
        if newer is None or newer.origin != self.record.origin or newer.size <= self.record.size:
            return None
        return newer

    def seek(self, offset: int, whence: int) -> int:
        """Give where the next data or hole of the pinned content is."""
        self._grew()
        opened = self._opened
        if opened is None or opened.reader.fd < 0:
            return super().seek(offset, whence)
        return found_by(opened.reader.seek, opened.reader.size, offset, whence)

    def file(self) -> BlobReader | None:
        """Give the reader of the pinned content when it lies in a file as it is."""
        reader = None if self._opened is None else self._opened.reader
        return reader if reader is not None and reader.fd >= 0 and reader.frames is None else None

    def attributes(self) -> Attributes:
        """Give the file's attributes with the size of the content that is read here."""
        self._grew()
        if self.record is None:
            assert self._unstored is not None
            return self._unstored.attributes()._replace(size=0)
        newer = self._records.fetch(self.record.id)
        if newer is None:
            return self._records.attributes(self.record)._replace(links=0)
        return self._records.attributes(
            self.record._replace(mode=newer.mode, uid=newer.uid, gid=newer.gid)
        )

    def keep(self, changes: Changes) -> None:
        """Change what is shown of a file that is gone."""
        with self._lock:
            if self.record is not None:
                self.record = changed(self.record, changes)
