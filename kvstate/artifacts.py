"""Artifacts by name: ``tenant/workflow/artifact[/...]``, stored whole, read verified, in tiers."""

from __future__ import annotations

import os
import stat
from copy import deepcopy
from typing import TYPE_CHECKING

from kvstate.artifact_files import (
    Artifact,
    ArtifactReader,
    ArtifactWriter,
    Content,
    copy_in,
    tier_index,
)
from kvstate.blobs import TIERS
from kvstate.codec import Value, encode
from kvstate.errors import Conflict, Exists, InvalidValue, NotFound
from kvstate.names import artifact_path, segments
from kvstate.nodes import File, Folder, described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kvstate.blob_reader import BlobReader
    from kvstate.blobs import Blobs
    from kvstate.catalog import Catalog
    from kvstate.engine import Reader
    from kvstate.journal import Change, Journal
    from kvstate.nodes import Node
    from kvstate.staging import Content as SealedContent
    from kvstate.staging import Staging

__all__ = ["Artifacts"]

_PAGE = 500


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
            copy_in(content, writer)
        return self.stat(name)

    def put_with(self, name: str, content: bytes, also: Callable[[Change], None]) -> None:
        """Store bytes, and do something else in the same commit: both, or neither."""
        parts = artifact_path(name)

        def run(change: Change, stored: SealedContent, blob: bytes) -> None:
            also(change)
            folders = parts[:-1]
            parent = self._catalog.ensure_folders(change, folders, 0, self._uid, self._gid)
            self._write(change, parent, parts[-1], stored, blob, 0)

        staging = self._blobs.staging(0)
        try:
            staging.write(0, content)
            self._blobs.commit(self._journal, staging, 0, run)
        finally:
            staging.discard()

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

    def move(
        self, name: str, tier: str, *, progress: Callable[[int, int, str], None] | None = None
    ) -> Artifact:
        """Move an artifact to another tier; its age goes on, unless it moves to a hotter one.

        ``progress`` gets the bytes done, their total (each is copied, and read again) and the name.
        """
        return self._move(name, tier, "move", progress)

    def restore(
        self,
        name: str,
        tier: str = "hot",
        *,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Bring an artifact back to a hotter tier, where it begins to age anew."""
        return self._move(name, tier, "restore", progress)

    def _move(
        self, name: str, tier: str, kind: str, progress: Callable[[int, int, str], None] | None
    ) -> Artifact:
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

        told = None if progress is None else lambda done, total: progress(done, total, name)
        return self._described(name, self._catalog.move(find, index, kind=kind, progress=told))

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
