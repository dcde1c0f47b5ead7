"""Artifacts by name: ``tenant/workflow/artifact[/...]``, stored whole, read verified, in tiers."""

from __future__ import annotations

import io
import os
import stat
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self, TypeAlias

from kvstate.blobs import TIERS
from kvstate.catalog import File, Folder, described
from kvstate.clock import datetime_of
from kvstate.codec import Value, encode
from kvstate.errors import Conflict, Exists, InvalidValue, NotFound
from kvstate.names import artifact_path, segments
from kvstate.places import raise_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from typing_extensions import Buffer

    from kvstate.blobs import BlobReader, Blobs
    from kvstate.catalog import Catalog, Node
    from kvstate.engine import Reader
    from kvstate.journal import Change, Journal
    from kvstate.staging import Content as SealedContent
    from kvstate.staging import Staging

__all__ = ["Artifact", "ArtifactReader", "ArtifactWriter", "Artifacts", "Content", "tier_index"]

_READ_BYTES = 1 << 20
_PAGE = 500

Content: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO"
"""What `Artifacts.put` takes: bytes, the path of a file (a PathLike), or a binary file."""


class Artifact(NamedTuple):
    """What is known of an artifact. Sizes are bytes, times nanoseconds since 1970 UTC."""

    name: str
    tenant: str
    workflow: str
    artifact: str
    tier: str
    size: int
    digest: str
    created_at_ns: int
    modified_at_ns: int
    accessed_at_ns: int
    due_at_ns: int
    metadata: dict[str, Value]
    holds: dict[str, Value]
    revision: int

    @property
    def created_at(self) -> datetime:
        """When it was first stored, in UTC."""
        return datetime_of(self.created_at_ns)

    @property
    def modified_at(self) -> datetime:
        """When its content was last written, in UTC."""
        return datetime_of(self.modified_at_ns)

    @property
    def accessed_at(self) -> datetime:
        """When it was last known to be read, in UTC."""
        return datetime_of(self.accessed_at_ns)

    @property
    def due_at(self) -> datetime:
        """When it leaves its tier, in UTC."""
        return datetime_of(self.due_at_ns)


def tier_index(tier: object) -> int:
    """Give a tier's number; `InvalidValue` for another word."""
    if tier not in TIERS:
        raise InvalidValue("tier", f"{tier!r} is none of {', '.join(TIERS)}")
    return TIERS.index(str(tier))


class ArtifactReader(io.RawIOBase):
    """An artifact opened for reading: a seekable binary file, verified as it is read."""

    def __init__(self, name: str, reader: BlobReader) -> None:
        super().__init__()
        self.name = name
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer as far as there are bytes; give their number."""
        view = memoryview(buffer).cast("B")
        data = self._reader.pread(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Give all that is left."""
        data = self._reader.pread(self._at, max(0, self._reader.size - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to an offset from the start, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.size}
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
        self._reader.close()
        super().close()


class ArtifactWriter(io.RawIOBase):
    """An artifact opened for writing: stored on close, and not at all after an exception."""

    def __init__(self, store: Callable[[Staging], Artifact], staging: Staging) -> None:
        super().__init__()
        self._store = store
        self._staging = staging
        self._done = False

    def writable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Give the bytes written so far."""
        return self._staging.size

    def write(self, data: Buffer, /) -> int:
        """Take all of the data."""
        if self._done:
            raise InvalidValue("writer", "it is closed")
        return self._staging.write(self._staging.size, memoryview(data).cast("B"))

    def discard(self) -> None:
        """Forget what was written: nothing is stored."""
        if not self._done:
            self._done = True
            self._staging.discard()
        super().close()

    def close(self) -> None:
        """Store what was written; durable when this returns."""
        if not self._done:
            self._done = True
            try:
                self._store(self._staging)
            finally:
                self._staging.discard()
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
            self._done = True
            self._staging.discard()


class Artifacts:
    """The artifacts of a store."""

    def __init__(
        self,
        catalog: Catalog,
        blobs: Blobs,
        journal: Journal,
        due_at_ns: Callable[[File], int],
        reader: Callable[[Callable[[Reader], Node | None]], Node | None],
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._journal = journal
        self._due_at_ns = due_at_ns
        self._read = reader
        self._uid = os.getuid()
        self._gid = os.getgid()

    # Reading

    def stat(self, name: str) -> Artifact:
        """Give what is known of an artifact; `NotFound` when there is none of this name."""
        return self._described(name, self._file(name))

    def exists(self, name: str) -> bool:
        """Say whether there is an artifact of this name."""
        return isinstance(self._find(artifact_path(name)), File)

    def get(self, name: str) -> bytes:
        """Give all bytes of an artifact; `Damaged` rather than a byte that was not written."""
        with self._reader(name) as reader:
            return reader.pread(0, reader.size)

    def open(self, name: str, mode: str = "r") -> ArtifactReader | ArtifactWriter:
        """Open an artifact: "r" gives a seekable binary file, "w" a writer that stores on close.

        Who reads keeps the bytes that were there when it was opened, whatever happens to the name.
        """
        if mode in {"r", "rb"}:
            return ArtifactReader(name, self._reader(name))
        if mode in {"w", "wb"}:
            return self.writer(name)
        raise InvalidValue("mode", f"{mode!r} is neither 'r' nor 'w'")

    def list(self, prefix: str = "", *, tier: str | None = None) -> Iterator[Artifact]:
        """Give the artifacts below a folder (or the one of this name), in the order of names."""
        index = None if tier is None else tier_index(tier)
        parts = segments(prefix.rstrip("/"), kind="folder") if prefix.strip("/") else ()
        if not parts:
            yield from self._below(1, "", index)
            return
        found = self._find(parts)
        name = "/".join(parts)
        if isinstance(found, Folder):
            yield from self._below(found.id, name + "/", index)
        elif found is not None and index in {None, found.tier}:
            yield self._described(name, found)

    def _below(self, folder_id: int, path: str, tier: int | None) -> Iterator[Artifact]:
        after = ""
        while page := self._catalog.children(folder_id, after, _PAGE):
            for node in page:
                if isinstance(node, File):
                    if tier in {None, node.tier}:
                        yield self._described(path + node.name, node)
                elif tier is None or node.shown_in(tier):
                    yield from self._below(node.id, f"{path}{node.name}/", tier)
            after = page[-1].name

    def verify(self, name: str) -> Artifact:
        """Read all of an artifact and compare its checksums; `Damaged` when one does not match."""
        file = self._file(name)
        if file.blob:
            self._blobs.verify(file.blob)
        return self._described(name, file)

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
        writer = self.writer(name, metadata=metadata, tier=tier, replace=replace)
        with writer:
            if isinstance(content, bytes | bytearray | memoryview):
                writer.write(content)
            elif isinstance(content, str | os.PathLike):
                _copy_path(content, writer)
            elif hasattr(content, "read"):
                _copy_file(content, writer)
            else:
                kind = type(content).__name__
                raise InvalidValue("content", f"{kind} is neither bytes, a path nor a binary file")
        return self.stat(name)

    def writer(
        self,
        name: str,
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        replace: bool = True,
    ) -> ArtifactWriter:
        """Open a writer that stores on close, and nothing at all after an exception."""
        parts = artifact_path(name)
        index = tier_index(tier)
        facts = None if metadata is None else _checked_metadata(metadata)
        if not replace and isinstance(self._find(parts), File):
            raise Exists("artifact", name)

        def store(staging: Staging) -> Artifact:
            def run(change: Change, content: SealedContent, blob: bytes) -> File:
                parent = self._catalog.ensure_folders(
                    change, parts[:-1], index, self._uid, self._gid
                )
                return self._write(
                    change, parent, parts[-1], content, blob, index, facts=facts, replace=replace
                )

            file = self._blobs.commit(self._journal, staging, index, run)
            return self._described(name, file)

        return ArtifactWriter(store, self._blobs.staging(index))

    def commit_file(
        self,
        parent_id: int,
        name: str,
        staging: Staging,
        *,
        tier: int,
        mode: int = 0o644,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        replace: bool = True,
        expect: int | None = None,
        modified_ns: int | None = None,
    ) -> File:
        """Store staged content under a name in a folder: the mount's way in.

        What is there keeps its identity and attributes, and moves to ``tier``. ``append`` says that
        the old content is a prefix of the new. With ``expect`` only the artifact of this identity
        is written to, wherever it was renamed to (`NotFound` when it is gone).
        """

        def run(change: Change, content: SealedContent, blob: bytes) -> File:
            parent, own_name = parent_id, name
            if expect is not None:
                node = self._catalog.node(expect, change.tx)
                if node is None:
                    raise NotFound("artifact", name)
                parent, own_name = node.parent, node.name
            return self._write(
                change,
                parent,
                own_name,
                content,
                blob,
                tier,
                mode=mode,
                uid=uid,
                gid=gid,
                append=append,
                replace=replace,
                modified_ns=modified_ns,
            )

        return self._blobs.commit(self._journal, staging, tier, run)

    def _write(
        self,
        change: Change,
        parent: int,
        name: str,
        content: SealedContent,
        blob: bytes,
        tier: int,
        *,
        facts: dict[str, Value] | None = None,
        mode: int = 0o644,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        replace: bool = True,
        modified_ns: int | None = None,
    ) -> File:
        """Write the record of new content, in the place of an old one or as a new artifact."""
        old = self._catalog.lookup(parent, name, change.tx)
        if isinstance(old, Folder):
            raise Conflict(name, "it is a folder, not an artifact")
        if old is not None and not replace:
            raise Exists("artifact", name)
        now = change.at_ns
        if old is None:
            file = File(
                id=change.new_id(),
                parent=parent,
                name=name,
                tier=tier,
                size=content.size,
                digest=content.digest,
                blob=blob,
                created_ns=now,
                modified_ns=now,
                changed_ns=now,
                accessed_ns=now,
                aged_from_ns=now,
                revision=change.revision,
                origin=change.revision,
                mode=mode if stat.S_IFMT(mode) else stat.S_IFREG | mode,
                uid=self._uid if uid is None else uid,
                gid=self._gid if gid is None else gid,
                metadata=facts or {},
                xattrs={},
                holds={},
            )
        else:
            self._blobs.shift(change, old.blob, {old.tier: -1})
            file = old._replace(
                tier=tier,
                size=content.size,
                digest=content.digest,
                blob=blob,
                modified_ns=now,
                changed_ns=now,
                aged_from_ns=now,
                revision=change.revision,
                origin=old.origin if append else change.revision,
                metadata=old.metadata if facts is None else facts,
            )
        if modified_ns is not None:
            file = file._replace(modified_ns=modified_ns)
        self._catalog.put_file(change, file, old)
        path = self._catalog.path(file.id, change.tx)
        change.say("put", "", path, described(file), described(old))
        return file

    def update(self, name: str, metadata: Mapping[str, Value]) -> Artifact:
        """Replace an artifact's metadata."""
        facts = _checked_metadata(metadata)
        file = self._file(name)

        def edit(node: Node, change: Change) -> Node:
            if isinstance(node, Folder):
                raise Conflict(name, "it is a folder, not an artifact")
            return node._replace(metadata=facts, changed_ns=change.at_ns)

        edited = self._catalog.edit(file.id, edit, "metadata")
        assert isinstance(edited, File)
        return self._described(name, edited)

    def delete(self, name: str) -> bool:
        """Delete an artifact, and the folders that were made for it; say whether it was there."""
        parts = artifact_path(name)

        def run(change: Change) -> bool:
            file = self._catalog.walk_path(parts, change.tx)
            if not isinstance(file, File):
                return False
            self._catalog.erase_file(change, file)
            self._catalog.prune(change, file.parent)
            change.say("remove", "", name, None, described(file))
            return True

        deleted = self._journal.commit(run)
        self._blobs.sweep()
        return deleted

    def rename(self, old: str, new: str, *, replace: bool = False) -> Artifact | None:
        """Give an artifact, or a whole folder, another name, in one step; None for a folder.

        `Exists` when the new name is taken, unless ``replace``.
        """
        source = segments(old)
        target = segments(new)
        node = self._find(source)
        if node is None:
            raise NotFound("artifact", old)
        if isinstance(node, File):
            artifact_path(new)
        tier = node.tier if isinstance(node, File) else node.home

        def folders(change: Change) -> int:
            return self._catalog.ensure_folders(change, target[:-1], tier, self._uid, self._gid)

        moved = self._catalog.rename_under(node, folders, target[-1], replace=replace)
        return self._described(new, moved) if isinstance(moved, File) else None

    def move(self, name: str, tier: str) -> Artifact:
        """Move an artifact to another tier; its age goes on, unless it moves to a hotter one."""
        return self._move(name, tier, "move")

    def restore(self, name: str, tier: str = "hot") -> Artifact:
        """Bring an artifact back to a hotter tier, where it begins to age anew."""
        return self._move(name, tier, "restore")

    def _move(self, name: str, tier: str, kind: str) -> Artifact:
        parts = artifact_path(name)
        index = tier_index(tier)
        before = self._file(name)
        if kind == "restore" and index > before.tier:
            raise InvalidValue("tier", f"{name!r} is {TIERS[before.tier]}, hotter than {tier}")

        def find(reader: Reader) -> File:
            node = self._catalog.walk_path(parts, reader)
            if not isinstance(node, File):
                raise NotFound("artifact", name)
            return node

        return self._described(name, self._catalog.move(find, index, kind=kind))

    # Inside

    def _find(self, parts: tuple[str, ...]) -> Node | None:
        return self._read(lambda reader: self._catalog.walk_path(parts, reader))

    def _file(self, name: str) -> File:
        node = self._find(artifact_path(name))
        if node is None:
            raise NotFound("artifact", name)
        if isinstance(node, Folder):
            raise Conflict(name, "it is a folder, not an artifact")
        return node

    def _reader(self, name: str) -> BlobReader:
        """Open the content; when it was replaced between looking and opening, look again."""
        while True:
            file = self._file(name)
            try:
                return self._blobs.reader(file.blob)
            except NotFound:
                if self._file(name).blob == file.blob:
                    raise

    def _described(self, name: str, file: File) -> Artifact:
        tenant, workflow, artifact = (*name.split("/", 2), "", "")[:3]
        return Artifact(
            name,
            tenant,
            workflow,
            artifact,
            TIERS[file.tier],
            file.size,
            f"xxh3:{file.digest.hex()}",
            file.created_ns,
            file.modified_ns,
            file.accessed_ns,
            self._due_at_ns(file),
            deepcopy(file.metadata),
            deepcopy(file.holds),
            file.revision,
        )


def _checked_metadata(metadata: Mapping[str, Value]) -> dict[str, Value]:
    facts = dict(metadata)
    for key in facts:
        if not isinstance(key, str):
            raise InvalidValue("metadata", f"{key!r} is no text")
    if len(encode(facts)) > 65536:
        raise InvalidValue("metadata", "it may have 64 KiB together")
    return facts


def _copy_path(path: str | os.PathLike[str], writer: ArtifactWriter) -> None:
    try:
        with Path(path).open("rb") as source:
            _copy_file(source, writer)
    except OSError as error:
        raise_os_error(error, str(path))


def _copy_file(source: BinaryIO, writer: ArtifactWriter) -> None:
    while data := source.read(_READ_BYTES):
        if not isinstance(data, bytes):
            raise InvalidValue("content", "the file gives text, not bytes: open it with 'rb'")
        writer.write(data)
