"""All artifacts by their identity, whatever folder and tier they are in, and the unstored ones."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NoReturn
from weakref import WeakValueDictionary

from kvstate.nodes import File
from kvstatefs.artifact_copy import ArtifactCopy, Making
from kvstatefs.artifact_records import ArtifactRecords
from kvstatefs.attributes import (
    HOLD,
    TIER,
    computed_of_file,
    set_hold,
    set_tier,
    user_attribute,
)
from kvstatefs.copies import Copies
from kvstatefs.nodes import (
    Attributes,
    Caller,
    Changes,
    identity_of,
    refuse,
)
from kvstatefs.reading import ReadHandle
from kvstatefs.views import PlainView
from kvstatefs.write_handles import WriteHandle, WrittenHandle

if TYPE_CHECKING:
    from kvstate.store import Store
    from kvstatefs.artifact_records import Version
    from kvstatefs.nodes import Handle, Node
    from kvstatefs.presence import Presence

__all__ = ["Files"]

_BECAME_KEPT: Final = 4096


class Files(PlainView):
    """The artifacts, and the files that are not stored yet."""

    def __init__(self, store: Store, version: Version, presence: Presence) -> None:
        self.store = store
        self.records = ArtifactRecords(store, version)
        self.copies: Copies[ArtifactCopy] = Copies(version.touch, presence.check)
        self._unstored: WeakValueDictionary[int, ArtifactCopy] = WeakValueDictionary()
        self._became: dict[int, int] = {}
        """The identities under which files were stored, where another process was first."""

    # Working copies

    def share(
        self,
        place: tuple[int, str],
        base: File | None,
        *,
        tier: int | None = None,
        mode: int = 0o644,
        caller: Caller | None = None,
        fresh: bool,
        emptied: bool = False,
    ) -> tuple[ArtifactCopy, bool]:
        """Let one more writer write to an artifact, or to a file that is to be made at a place.

        Give the working copy, and whether it is new. `Held` already here, since many a program
        does not look at what a close answers.
        """
        if base is not None:
            self.store.catalog.guard("writing", base.name, base)

        def make() -> ArtifactCopy:
            identity = self.store.identities.take() if base is None else base.id
            making = Making(mode, caller or Caller(0, 0))
            copy = ArtifactCopy(
                self.records,
                place,
                identity,
                base,
                making,
                tier=tier,
                fresh=fresh,
                emptied=emptied,
                stored=self._adopt,
            )
            if base is None:
                self._unstored[identity] = copy
            return copy

        keys = (place,) if base is None else (place, base.id)
        return self.copies.share(keys, make)

    def _adopt(self, copy: ArtifactCopy, file: File) -> None:
        """Let a working copy belong to its first record; another process may have made that."""
        if file.id != copy.identity:
            while len(self._became) >= _BECAME_KEPT:
                self._became.pop(next(iter(self._became)), None)
            self._became[copy.identity] = file.id
            copy.identity = file.id
        if not copy.unlinked:
            self.copies.rekey(copy, file.id)

    def writing(self, copy: ArtifactCopy, flags: int) -> WriteHandle[ArtifactCopy]:
        """Give a handle to a writer that has joined a working copy."""
        handle = WriteHandle(self.copies, copy, append=bool(flags & os.O_APPEND))
        if flags & os.O_TRUNC:
            try:
                copy.empty()
            except BaseException:
                handle.release()
                raise
        return handle

    def _file(self, node: Node) -> File | ArtifactCopy:
        """Give the record behind a node, or the working copy when there is no record yet."""
        identity = identity_of(node)
        file = self.records.fetch(identity)
        if file is None:
            copy = self._unstored.get(identity)
            if copy is not None and copy.base is None:
                return copy
            file = self.records.fetch(self._became.get(identity, identity))
        if file is None:
            refuse(errno.ENOENT)
        return file

    def _shadow(self, copy: ArtifactCopy) -> File | None:
        """Give what has a file's name until it is stored, if that is there still."""
        known = None if copy.shadows is None else self.records.fetch(copy.shadows.id)
        if known is None or (known.parent, known.name) != (copy.parent, copy.name):
            return None
        return known

    def _copy(self, file: File | ArtifactCopy) -> ArtifactCopy | None:
        return file if isinstance(file, ArtifactCopy) else self.copies.find(file.id)

    def stored(self, node: Node) -> Attributes:
        """Give the attributes of what is stored, whatever is being written."""
        file = self._file(node)
        if not isinstance(file, ArtifactCopy):
            return self.records.attributes(file)
        shadow = self._shadow(file)
        if shadow is None:
            refuse(errno.ENOENT)
        found = self.records.attributes(shadow)
        return found._replace(node=file.identity, inode=file.identity)

    def open_written(self, node: Node) -> Handle | None:
        """Open the working copy for reading; None when nobody writes the file."""
        copy = self._copy(self._file(node)) if self.copies else None
        return None if copy is None else WrittenHandle(self.copies, copy)

    def tier_and_folder(self, node: Node) -> tuple[int, int]:
        """Give the tier that a file is in, or is to be in, and its folder's identity."""
        file = self._file(node)
        return file.tier or 0, file.parent

    def has_writers(self, node: Node) -> bool:
        """Whether somebody has the file open for writing."""
        return bool(self.copies) and self._copy(self._file(node)) is not None

    # The operations

    def lookup(self, parent: Node, name: str) -> NoReturn:
        """Refuse: a file has nothing below it."""
        del parent, name
        refuse(errno.ENOTDIR)

    def listing(self, node: Node) -> NoReturn:
        """Refuse: a file is no folder."""
        del node
        refuse(errno.ENOTDIR)

    def getattr(self, node: Node) -> Attributes:
        """Give a file's attributes; while it is being written, the size of the working copy."""
        file = self._file(node)
        copy = self._copy(file)
        if copy is not None:
            return copy.attributes()
        assert isinstance(file, File)
        return self.records.attributes(file)

    def open(self, node: Node, flags: int) -> Handle:
        """Pin the content for a reader, or join the working copy for a writer."""
        file = self._file(node)
        reads = flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC
        if isinstance(file, ArtifactCopy):
            if reads:
                return ReadHandle(self.records, self._shadow(file), file)
            copy = self.copies.join(file)
        else:
            if reads:
                self.store.reads.note(file)
                return ReadHandle(self.records, file)
            place, emptied = (file.parent, file.name), bool(flags & os.O_TRUNC)
            copy, _ = self.share(place, file, fresh=False, emptied=emptied)
        return self.writing(copy, flags)

    def setattr(self, node: Node, changes: Changes) -> Attributes:
        """Change attributes; of a file that is not stored yet, when it is."""
        if changes.size is not None:
            handle = self.open(node, os.O_WRONLY)
            try:
                handle.truncate(changes.size)
                handle.flush()
            finally:
                handle.release()
            changes = changes._replace(size=None)
        copy = self._copy(self._file(node))
        if copy is not None:
            changes = copy.set(changes)
        wanted = {name: value for name, value in changes._asdict().items() if value is not None}
        file = self._file(node)
        if wanted and isinstance(file, File):
            self.store.catalog.set_attributes(file.id, **wanted)
        return self.getattr(node)

    def readlink(self, node: Node) -> str:
        """Give what a symbolic link says."""
        file = self._file(node)
        if isinstance(file, ArtifactCopy) or not stat.S_ISLNK(file.mode):
            refuse(errno.EINVAL)
        handle = ReadHandle(self.records, file)
        return handle.read(0, file.size).decode("utf-8", "surrogateescape")

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Give a file's own attributes and those that are computed."""
        file = self._file(node)
        if isinstance(file, ArtifactCopy):
            return dict(file.making.xattrs)
        return {**file.xattrs, **computed_of_file(self.store, file)}

    def setxattr(self, node: Node, name: str, value: bytes | None, flags: int) -> None:
        """Set or remove one of a file's own attributes, its tier or a hold.

        Not while something is written that is not stored: who copies attributes, too (`cp -a`,
        `mv`), means the file's own, and not to move the copy to where the original is.
        """
        file = self._file(node)
        copy = self._copy(file)
        written = copy is not None and copy.dirty
        if name in {TIER, HOLD} and isinstance(file, File) and not written:
            if name == TIER:
                set_tier(self.store, file, value)
            else:
                set_hold(self.store, file, value, flags)
            return
        user_attribute(name, value, self.xattrs(node), flags)
        if not isinstance(file, ArtifactCopy):
            self.store.catalog.set_xattr(file.id, name, value)
        elif value is None:
            del file.making.xattrs[name]
        else:
            file.making.xattrs[name] = value
