"""Artifacts' records for the view: the newest state by identity, its attributes, its content."""

from __future__ import annotations

import stat
import threading
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from kvstate.nodes import File
from kvstatefs.nodes import Attributes

if TYPE_CHECKING:
    from kvstate.blob_reader import BlobReader
    from kvstate.blobs import Blobs
    from kvstate.store import Store
    from kvstatefs.nodes import Changes

__all__ = ["ArtifactRecords", "Opened", "Readers", "Version", "changed", "content_name"]

_RECENT_READERS: Final = 64
_RECENT_RECORDS: Final = 20_000


def content_name(file: File) -> bytes:
    """Give what names an artifact's content: the same name, the same bytes."""
    return file.blob or b"empty"


def changed(file: File, changes: Changes) -> File:
    """Give a record with attributes changed, its size aside: of a file that is gone."""
    return file._replace(
        mode=file.mode
        if changes.mode is None
        else stat.S_IFMT(file.mode) | stat.S_IMODE(changes.mode),
        uid=file.uid if changes.uid is None else changes.uid,
        gid=file.gid if changes.gid is None else changes.gid,
        accessed_ns=file.accessed_ns if changes.accessed_ns is None else changes.accessed_ns,
        modified_ns=file.modified_ns if changes.modified_ns is None else changes.modified_ns,
    )


class Version:
    """A number that changes with every change, by anybody, that a lookup could notice.

    It adds the engine's own number of commits to the number of changes that are only in this mount.
    """

    def __init__(self, store: Store) -> None:
        self._revision = store.engine.revision
        self._changes = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """Give the number."""
        return self._revision() + self._changes

    def touch(self) -> None:
        """Take note of a change that is not in the store."""
        with self._lock:
            self._changes += 1


class Opened:
    """A part in an opened content. The content is closed when nobody has a part or the reader.

    A reader has a finalizer, which closes it, and while that runs a weak reference still finds it.
    This has none, and so cannot be found any more before the reader begins to go.
    """

    __slots__ = ("__weakref__", "reader")

    def __init__(self, reader: BlobReader) -> None:
        self.reader = reader


class Readers:
    """Opened contents, shared by all who read the same bytes; a few are kept for the next one."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._open: WeakValueDictionary[bytes, Opened] = WeakValueDictionary()
        self._recent: dict[bytes, Opened] = {}

    def take(self, blob: bytes) -> Opened:
        """Give a part in a reader of this blob; `NotFound` when it is gone."""
        opened = self._open.get(blob)
        if opened is None:
            opened = self._open[blob] = Opened(self._blobs.reader(blob))
            if len(self._recent) >= _RECENT_READERS:
                self._recent = {}
            self._recent[blob] = opened
        return opened

    def forget_recent(self) -> None:
        """Let go of contents that nobody has open: they may have been deleted."""
        self._recent = {}


class ArtifactRecords:
    """The newest records of artifacts, kept until anything changes."""

    def __init__(self, store: Store, version: Version) -> None:
        self.store = store
        self.catalog = store.catalog
        self.version = version
        self.readers = Readers(store.blobs)
        self.inline_bytes_max = store.settings.inline_bytes_max
        # Swapped whole: a thread that is late writes to a memory of the past.
        self._memory: tuple[int, dict[int, File]] = (-1, {})

    def remember(self, file: File, version: int) -> None:
        """Keep a record that was read when the version was this."""
        known_version, known = self._memory
        if version != known_version or len(known) > _RECENT_RECORDS:
            known = {}
            self._memory = (version, known)
            self.readers.forget_recent()
        known[file.id] = file

    def fetch(self, identity: int) -> File | None:
        """Give the newest record of an artifact; None when it is gone."""
        version = self.version()
        known_version, known = self._memory
        if version == known_version:
            found = known.get(identity)
            if found is not None:
                return found
        node = self.catalog.node(identity)
        if not isinstance(node, File):
            return None
        self.remember(node, version)
        return node

    def attributes(self, file: File) -> Attributes:
        """Give an artifact's attributes as they are stored."""
        return Attributes(
            file.id,
            file.id,
            file.mode,
            file.size,
            file.uid,
            file.gid,
            file.accessed_ns,
            file.modified_ns,
            file.changed_ns,
            content_name(file),
            origin=file.origin,
        )
