"""The working copy of an artifact: an existing one, or one that is to be made."""

from __future__ import annotations

import errno
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kvstate.errors import Exists, NotFound, StateError
from kvstate.staging import Staging
from kvstatefs.artifact_records import changed, content_name
from kvstatefs.copies import WorkingCopy
from kvstatefs.nodes import Attributes, Caller, Changes, refuse
from kvstatefs.reading import ReadHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.nodes import File
    from kvstatefs.artifact_records import ArtifactRecords

__all__ = ["ArtifactCopy", "Making"]

_COPY_BYTES: Final = 1 << 20


class Making:
    """What a file is made with: its mode, its owner, its attributes."""

    def __init__(self, mode: int, caller: Caller) -> None:
        self.mode = stat.S_IFREG | stat.S_IMODE(mode)
        self.uid, self.gid = caller
        self.accessed_ns = 0
        self.xattrs: dict[str, bytes] = {}


class ArtifactCopy(WorkingCopy[Staging]):
    """The content of an artifact while it is being written."""

    def __init__(
        self,
        records: ArtifactRecords,
        place: tuple[int, str],
        identity: int,
        base: File | None,
        making: Making,
        *,
        tier: int | None,
        fresh: bool,
        emptied: bool,
        stored: Callable[[ArtifactCopy, File], None],
    ) -> None:
        """Be the copy of ``base``, or (None) of a file that is to be made with this identity.

        ``emptied`` says that its content is of no use: it is about to be emptied. ``tier`` is where
        it is to be stored; None leaves it where it is. ``stored`` is called when it has a record
        for the first time.
        """
        self.parent, self.name = place
        self.identity = identity
        self.base = base
        """What is stored of it, as far as is known."""
        self.making = making
        self.tier = tier
        self.shadows: File | None = None
        """What it was renamed over before it was stored, and replaces when it is."""
        self.exclusive = False
        """Whether it was made as a new file (O_EXCL): another's of that name is not replaced."""
        self._records = records
        self._on_stored = stored
        # What is stored is held on to: it may be gone by the time that it is loaded.
        self._pinned: ReadHandle | None = None
        if base is not None and not fresh and not emptied:
            with suppress(StateError):  # who overwrites what is damaged need not read it
                self._pinned = ReadHandle(records, base)
        self._kept: bytes | None = None
        super().__init__(records.store.clock, fresh=fresh)

    def visible_in(self, tier: int | None, stored: File | None = None) -> bool:
        """Whether a tier's view (None: `all/`) shows the file on behalf of its writers.

        ``stored`` is its record as it is now, for who knows it. What could not be stored, and never
        was, is not there.
        """
        if self.failed and self.base is None and stored is None:
            return False
        if tier is None or self.tier == tier:
            return True
        stored = stored or self.base
        return stored.tier == tier if stored else self.tier is None and tier == 0

    def begin_in(self, tier: int) -> None:
        """Begin anew, empty, in another tier."""
        with self.lock:
            self.tier = tier
            self.discard()
            self.empty()

    def _stage(self) -> Staging:
        tier = self.tier if self.tier is not None else (self.base.tier if self.base else 0)
        return self._records.store.blobs.staging(tier)

    def _load(self, staged: Staging) -> None:
        assert self.base is not None
        newer = self._records.fetch(self.base.id)
        if newer is None or newer.blob == self.base.blob:
            if self._kept is not None:
                staged.write(0, self._kept)
                return
            newer = self.base
        pinned = self._pinned
        same = pinned is not None and pinned.content == content_name(newer)
        handle = pinned if pinned and same else ReadHandle(self._records, newer)
        self._pinned = None
        while data := handle.read(staged.size, _COPY_BYTES):
            staged.extend(data)
        self.base = handle.record

    def _outdated(self) -> bool:
        if self.base is None:
            return False
        newer = self._records.fetch(self.base.id)
        return newer is not None and newer.blob != self.base.blob

    def _stored_size(self) -> int:
        if self.base is None:
            return 0
        newer = None if self._staged else self._records.fetch(self.base.id)
        return (newer or self.base).size

    def _keeps(self, staged: Staging) -> bool:
        # The next version of small content must be a blob of its own.
        self._pinned = None
        keeps = staged.size > self._records.inline_bytes_max
        self._kept = None if keeps else staged.read(0, staged.size)
        return keeps

    def _store(self, staged: Staging) -> bytes:
        base = self.base
        known = None if base is None else self._records.fetch(base.id)
        append = self.appended and known is not None and known.blob == (base and base.blob)
        try:
            file = self._commit(staged, expect=base.id if base else None, append=append)
        except NotFound:
            if base is None:
                raise
            # Another process removed it meanwhile: what was written here is not lost with it.
            try:
                file = self._commit(staged, expect=None)
            except Exists:
                refuse(errno.ESTALE, "another file has taken the name")
        self._stored(file)
        return content_name(file)

    def _commit(self, staged: Staging, *, expect: int | None, append: bool = False) -> File:
        is_new = self.base is None
        return self._records.store.artifacts.commit_file(
            self.parent,
            self.name,
            staged,
            tier=self.tier,
            mode=self.making.mode,
            uid=self.making.uid,
            gid=self.making.gid,
            append=append,
            replace=expect is not None or (is_new and not self.exclusive),
            expect=expect,
            identity=self.identity if is_new else None,
            evict=is_new and self.shadows is not None,
            modified_ns=self.modified_ns,
        )

    def _stored(self, file: File) -> None:
        """Take note of the new record, and apply what was set while there was none."""
        making, catalog = self.making, self._records.catalog
        is_new = self.base is None or self.base.id != file.id
        accessed_ns, making.accessed_ns = making.accessed_ns, 0
        self.base, self.tier, self.shadows = file, None, None
        self.parent, self.name = file.parent, file.name
        if is_new:
            self._on_stored(self, file)
        if accessed_ns:
            catalog.set_attributes(file.id, accessed_ns=accessed_ns)
        while making.xattrs:
            name, value = making.xattrs.popitem()
            catalog.set_xattr(file.id, name, value)

    def set(self, changes: Changes) -> Changes:
        """Change what waits for the file to be stored; give what is left to change at once."""
        with self.lock:
            if self.dirty and changes.modified_ns is not None:
                self.modified_ns = changes.modified_ns
                changes = changes._replace(modified_ns=None)
            if self.base is not None:
                return changes
            making = self.making
            if changes.mode is not None:
                making.mode = stat.S_IFREG | stat.S_IMODE(changes.mode)
            if changes.uid is not None:
                making.uid = changes.uid
            if changes.gid is not None:
                making.gid = changes.gid
            if changes.accessed_ns is not None:
                making.accessed_ns = changes.accessed_ns
            return Changes()

    def keep(self, changes: Changes) -> None:
        """Change what is shown of a file that is gone."""
        with self.lock:
            left = self.set(changes)
            if self.base is not None:
                self.base = changed(self.base, left)

    def attributes(self) -> Attributes:
        """Give the attributes of the file as its writers see it."""
        with self.lock:
            base, making = self.base, self.making
            links = 0 if self.unlinked else 1
            if base is not None:
                found = self._records.attributes(self._records.fetch(base.id) or base)
                if self.dirty:
                    now_ns = self.modified_ns
                    found = found._replace(modified_ns=now_ns, changed_ns=now_ns)
                return found._replace(size=self.size, content=None, links=links, lasting=False)
            return Attributes(
                self.identity,
                self.identity,
                making.mode,
                self.size,
                making.uid,
                making.gid,
                making.accessed_ns or self.modified_ns,
                self.modified_ns,
                self.modified_ns,
                links=links,
                lasting=False,
            )
