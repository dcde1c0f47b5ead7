"""Artifacts by name: ``tenant/workflow/artifact[/...]``, stored whole, read verified, in tiers."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvstate.artifact_files import (
    Artifact,
    ArtifactReader,
    ArtifactWriter,
    Content,
    copy_in,
    tier_index,
)
from kvstate.artifact_reading import ArtifactReading
from kvstate.clock import seconds_to_ns
from kvstate.codec import Value, encode
from kvstate.drill import Drill, drill
from kvstate.errors import Conflict, Exists, InvalidValue, NotFound, StateError
from kvstate.filing import as_file
from kvstate.names import artifact_path, segments
from kvstate.nodes import File, Folder, described
from kvstate.policy import OVERRIDE, TIERS, override_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from kvstate.engine import Reader
    from kvstate.journal import Change
    from kvstate.nodes import Node
    from kvstate.staging import Content as SealedContent
    from kvstate.staging import Staging

__all__ = ["Artifacts", "Stored"]

_BATCH = 1000
_BATCH_BYTES = 32 << 20
_BATCH_FILES = 16


class Stored(NamedTuple):
    """What `Artifacts.put_many` did; ``unchanged`` were stored already, and are not again."""

    total: int
    new: int
    changed: int
    unchanged: int


class _Item(NamedTuple):
    """One artifact of a batch."""

    name: str
    parts: tuple[str, ...]
    staging: Staging
    facts: dict[str, Value] | None


class Artifacts(ArtifactReading):
    """The artifacts of a store."""

    def open(self, name: str, mode: str = "r") -> ArtifactReader | ArtifactWriter:
        """Open an artifact: "r" gives a seekable binary file, "w" a writer that stores on close.

        Who reads keeps the bytes that were there when it was opened, whatever happens to the name.
        """
        if mode in {"r", "rb"}:
            return self.open_reader(name)
        if mode in {"w", "wb"}:
            return self.writer(name)
        raise InvalidValue("mode", f"{mode!r} is neither 'r' nor 'w'")

    # Writing

    def put(
        self,
        name: str,
        content: Content,
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        replace: bool = True,
        unless_same: bool = False,
        reason: str = "",
    ) -> Artifact:
        """Store bytes, a file (by its path) or what a binary file gives; durable on return.

        `Exists` when the name is taken and ``replace`` is off; `Held` when a hold forbids it.
        ``metadata=None`` keeps what an older version had. With ``unless_same`` what is there is
        left as it is (its age, its tier) if it has these bytes and this metadata.
        """
        writer = self.writer(
            name,
            metadata=metadata,
            tier=tier,
            replace=replace,
            unless_same=unless_same,
            reason=reason,
        )
        with writer:
            copy_in(content, writer)
        assert writer.artifact is not None
        return writer.artifact

    def put_many(
        self,
        items: Mapping[str, Content] | Iterable[tuple[str, Content]],
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Stored:
        """Store many artifacts, a thousand in one commit; durable on return.

        What is stored already, with these bytes and this metadata, is left as it is and counted.
        After an error the commits before it stay. ``progress`` gets artifacts done, 0, the name.
        """
        index = tier_index(tier)
        facts = None if metadata is None else _checked_metadata(metadata)
        policy = self._catalog.policies.ruling().policy
        pairs = items.items() if isinstance(items, Mapping) else items
        counts = [0, 0, 0]
        batch: list[_Item] = []
        files = size = 0
        try:
            for name, content in pairs:
                parts = artifact_path(name)
                staging = self._blobs.staging(index, content if isinstance(content, bytes) else b"")
                staging.proven = policy.section(name).sha256
                batch.append(_Item(name, parts, staging, facts))
                if not isinstance(content, bytes):
                    writer = ArtifactWriter(_no_store, staging)
                    with writer.kept():
                        copy_in(content, writer)
                files += staging.in_file
                size += 0 if staging.in_file else staging.size
                if len(batch) >= _BATCH or files >= _BATCH_FILES or size >= _BATCH_BYTES:
                    self._put_batch(batch, index, reason, counts)
                    files = size = 0
                    if progress is not None:
                        progress(sum(counts), 0, name)
            self._put_batch(batch, index, reason, counts)
        finally:
            for item in batch:
                item.staging.discard()
        return Stored(sum(counts), *counts)

    def _put_batch(self, batch: list[_Item], tier: int, reason: str, counts: list[int]) -> None:
        def run(change: Change, stored: list[tuple[SealedContent, bytes]]) -> list[int]:
            return [
                self._put_item(change, item, *content, tier, reason)
                for item, content in zip(batch, stored, strict=True)
            ]

        if not batch:
            return
        stagings = [item.staging for item in batch]
        for kind in self._blobs.commit_many(self._journal, stagings, tier, run):
            counts[kind] += 1
        for staging in stagings:
            staging.discard()
        batch.clear()

    def _put_item(
        self,
        change: Change,
        item: _Item,
        content: SealedContent,
        blob: bytes,
        tier: int,
        reason: str,
    ) -> int:
        """Store one artifact of a batch; say whether it was new (0), changed (1), the same (2)."""
        parent = self._catalog.ensure_folders(change, item.parts[:-1], tier, self._uid, self._gid)
        name = item.parts[-1]
        old = self._catalog.lookup(parent, name, change.tx)
        if _is_same(old, content, blob, item.facts):
            self._blobs.shift(change, blob, {tier: -1})
            return 2
        self._write(change, parent, name, content, blob, tier, facts=item.facts, why=reason)
        return 0 if old is None else 1

    def put_parts(
        self,
        name: str,
        contents: Sequence[Content],
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        reason: str = "",
    ) -> Sequence[Artifact]:
        """Store several contents under one name, in order: ``NAME/1``, ``NAME/2``, ...

        A content that is given by a path keeps that file's ending. `parts` gives them in order.
        `Exists` when something lies under the name already. When one fails, none of them stays.
        """
        if self._find(segments(name)) is not None:
            raise Exists("artifact", name)
        named = []
        for number, content in enumerate(contents, 1):
            ending = Path(content).suffix if isinstance(content, str | os.PathLike) else ""
            named.append((f"{name}/{number}{ending}", content))
        try:
            self.put_many(named, metadata=metadata, tier=tier, reason=reason)
        except BaseException:
            for each, _ in named:
                with suppress(StateError):
                    self.delete(each, reason="another part was not stored", trash=False)
            raise
        return self.parts(name)

    def put_with(self, name: str, content: bytes, also: Callable[[Change], None]) -> None:
        """Store bytes, and do something else in the same commit: both, or neither."""
        parts = artifact_path(name)

        def run(change: Change, stored: SealedContent, blob: bytes) -> None:
            also(change)
            folders = parts[:-1]
            parent = self._catalog.ensure_folders(change, folders, 0, self._uid, self._gid)
            self._write(change, parent, parts[-1], stored, blob, 0)

        staging = self._staging(0, parts)
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
        unless_same: bool = False,
        reason: str = "",
    ) -> ArtifactWriter:
        """Open a writer that stores on close, and nothing at all after an exception."""
        parts = artifact_path(name)
        index = tier_index(tier)
        facts = None if metadata is None else _checked_metadata(metadata)
        there = self._find(parts)
        if isinstance(there, File):
            if not replace:
                raise Exists("artifact", name)
            if not unless_same:
                self._catalog.guard("overwriting", name, there)

        def store(staging: Staging) -> Artifact:
            def run(change: Change, content: SealedContent, blob: bytes) -> File:
                if unless_same:
                    old = self._catalog.walk_path(parts, change.tx)
                    if _is_same(old, content, blob, facts):
                        self._blobs.shift(change, blob, {index: -1})
                        return as_file(old)
                parent = self._catalog.ensure_folders(
                    change, parts[:-1], index, self._uid, self._gid
                )
                return self._write(
                    change,
                    parent,
                    parts[-1],
                    content,
                    blob,
                    index,
                    facts=facts,
                    replace=replace,
                    why=reason,
                )

            file = self._blobs.commit(self._journal, staging, index, run)
            return self._described(name, file)

        return ArtifactWriter(store, self._staging(index, parts))

    def _staging(self, tier: int, parts: tuple[str, ...]) -> Staging:
        staging = self._blobs.staging(tier)
        staging.proven = self._catalog.policies.ruling().policy.section(parts[0]).sha256
        return staging

    def commit_file(
        self,
        parent_id: int,
        name: str,
        staging: Staging,
        *,
        tier: int | None = None,
        mode: int = 0o644,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        replace: bool = True,
        expect: int | None = None,
        identity: int | None = None,
        evict: bool = False,
        modified_ns: int | None = None,
    ) -> File:
        """Store staged content under a name in a folder: the mount's way in.

        What is there keeps its identity and attributes, and moves to ``tier``; with None it stays
        in its tier, and what is new goes where it was staged. ``append`` says that
        the old content is a prefix of the new. With ``expect`` only the artifact of this identity
        is written to, wherever it was renamed to (`NotFound` when it is gone). A new one gets
        ``identity``, which `Identities` gave; with ``evict`` it is a new one, and what had the name
        goes, as if another were renamed over it.
        """
        policy = self._catalog.policies.ruling().policy
        if policy.tenants or policy.common.sha256:
            staging.proven = policy.section(self._catalog.path(parent_id)).sha256
        counted = self._blobs.places.index(staging.place) if tier is None else tier

        def run(change: Change, content: SealedContent, blob: bytes) -> File:
            parent, own_name = parent_id, name
            if expect is not None:
                node = self._catalog.node(expect, change.tx)
                if node is None:
                    raise NotFound("artifact", name)
                parent, own_name = node.parent, node.name
            there = self._catalog.lookup(parent, own_name, change.tx) if tier is None else None
            where = there.tier if isinstance(there, File) and not evict else counted
            if where != counted:
                self._blobs.shift(change, blob, {counted: -1, where: 1})
            if evict:
                self._catalog.evict(change, parent, own_name)
            return self._write(
                change,
                parent,
                own_name,
                content,
                blob,
                where,
                mode=mode,
                uid=uid,
                gid=gid,
                append=append,
                replace=replace,
                identity=identity,
                modified_ns=modified_ns,
            )

        return self._blobs.commit(self._journal, staging, counted, run)

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
        identity: int | None = None,
        modified_ns: int | None = None,
        why: str = "",
    ) -> File:
        """Write the record of new content, in the place of an old one or as a new artifact."""
        old = self._catalog.lookup(parent, name, change.tx)
        if isinstance(old, Folder):
            raise Conflict(name, "it is a folder, not an artifact")
        if old is not None and not replace:
            raise Exists("artifact", name)
        path = self._catalog.lineage(parent, change).path(name)
        now = change.at_ns
        if old is None:
            file = File(
                id=identity or change.new_id(),
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
                written_ns=now,
                look_ns=0,
                sha256=content.sha256,
                back=None,
                failure=None,
                spared_ns=0,
            )
        else:
            self._catalog.guard("overwriting", path, old)
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
                written_ns=now,
                sha256=content.sha256,
                back=None,
                failure=None,
                spared_ns=0,
            )
        if modified_ns is not None:
            file = file._replace(modified_ns=modified_ns)
        file = self._catalog.put_file(change, file, old)
        change.say("put", "", path, described(file), described(old), why)
        return file

    # Changing

    def update(self, name: str, metadata: Mapping[str, Value], *, reason: str = "") -> Artifact:
        """Replace an artifact's metadata."""
        facts = _checked_metadata(metadata)
        file = self._file(name)

        def edit(node: Node, change: Change) -> Node:
            if isinstance(node, Folder):
                raise Conflict(name, "it is a folder, not an artifact")
            return node._replace(metadata=facts, changed_ns=change.at_ns)

        edited = self._catalog.edit(file.id, edit, reason or "metadata")
        assert isinstance(edited, File)
        return self._described(name, edited)

    def delete(self, name: str, *, reason: str = "", trash: bool = True) -> bool:
        """Delete an artifact, and the folders that were made for it; say whether it was there.

        It goes into the trash, if its tenant has one and ``trash`` is on. `Held` when a hold
        forbids it.
        """
        parts = artifact_path(name)

        def run(change: Change) -> bool:
            file = self._catalog.walk_path(parts, change.tx)
            if not isinstance(file, File):
                return False
            self._catalog.discard(change, file, name, kind="remove", why=reason, trash=trash)
            self._catalog.prune(change, file.parent)
            return True

        deleted = self._journal.commit(run)
        self._blobs.sweep()
        return deleted

    def undelete(self, name: str) -> Artifact:
        """Bring back from the trash what was deleted or purged last under this name.

        It begins to age anew, and is not purged for a week. `NotFound`, or `Exists`.
        """
        parts = artifact_path(name)
        return self._described(name, self._catalog.undelete(name, parts, self._uid, self._gid))

    def empty_trash(self, prefix: str = "", *, reason: str = "") -> int:
        """Let what is in the trash under names with this prefix go now; say how many."""
        gone = 0
        for each in [each for each in self._catalog.trashed() if each.name.startswith(prefix)]:
            why = reason or "the trash was emptied"
            gone += self._journal.commit(
                lambda change, each=each, why=why: self._catalog.empty_trash(change, each, why)  # type: ignore[misc]
            )
        self._blobs.sweep()
        return gone

    def rename(
        self, old: str, new: str, *, replace: bool = False, reason: str = ""
    ) -> Artifact | None:
        """Give an artifact, or a whole folder, another name, in one step; None for a folder.

        `Exists` when the new name is taken, unless ``replace``; `Held` when a hold forbids it.
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

        moved = self._catalog.rename_under(node, folders, target[-1], replace=replace, why=reason)
        return self._described(new, moved) if isinstance(moved, File) else None

    def hold(self, name: str, case: str, *, reason: str = "") -> Artifact:
        """Hold an artifact for a case: no purge, overwrite, rename or delete before its release."""
        return self._described(name, self._catalog.hold(self._file(name), case, reason))

    def release(self, name: str, case: str, *, reason: str = "") -> Artifact:
        """Release an artifact's hold for a case; `NotFound` when there is none."""
        return self._described(name, self._catalog.release(self._file(name), case, reason))

    # Tiers

    def move(
        self,
        name: str,
        tier: str,
        *,
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Move an artifact to another tier; its age goes on, unless it moves to a hotter one.

        ``progress`` gets the bytes done, their total (each is copied, and read again) and the name.
        """
        return self._move(name, tier, "move", reason, None, progress)

    def restore(
        self,
        name: str,
        tier: str = "hot",
        *,
        for_seconds: float | timedelta | None = None,
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Bring an artifact back to a hotter tier, where it begins to age anew.

        With ``for_seconds`` it goes back by itself to where it was when that time is up.
        """
        return self._move(name, tier, "restore", reason, for_seconds, progress)

    def restore_all(
        self,
        prefix: str = "",
        tier: str = "hot",
        *,
        from_tier: str | None = None,
        limit: int | None = None,
        for_seconds: float | timedelta | None = None,
        dry_run: bool = False,
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Sequence[Artifact]:
        """Bring back what lies below a folder (or has this name) in a colder tier; give it.

        ``limit=1`` brings the first that is found. With ``dry_run`` only say which.
        """
        index = tier_index(tier)
        sources = TIERS[index + 1 :] if from_tier is None else (from_tier,)
        found = [
            artifact
            for source in sources
            if tier_index(source) > index
            for artifact in islice(self.list(prefix, tier=source), limit)
        ][:limit]
        if dry_run:
            return found
        return [
            self.restore(
                artifact.name, tier, for_seconds=for_seconds, reason=reason, progress=progress
            )
            for artifact in found
        ]

    def drill(
        self,
        target: str | os.PathLike[str],
        *,
        count: int = 5,
        prefix: str = "",
        from_tier: str = "cold",
        seed: int | None = None,
    ) -> Drill:
        """Restore a random sample of a tier into a folder and verify it; the store is unchanged."""
        return drill(self, target, count=count, prefix=prefix, from_tier=from_tier, seed=seed)

    def _move(
        self,
        name: str,
        tier: str,
        kind: str,
        reason: str,
        for_seconds: float | timedelta | None,
        progress: Callable[[int, int, str], None] | None,
    ) -> Artifact:
        parts = artifact_path(name)
        index = tier_index(tier)
        before = self._file(name)
        if kind == "restore" and index > before.tier:
            raise InvalidValue("tier", f"{name!r} is {TIERS[before.tier]}, hotter than {tier}")
        back = None
        if for_seconds is not None:
            until_ns = self._clock.now_ns() + seconds_to_ns(for_seconds, "for_seconds")
            # What is back already, for a time, has another time then, and the same way to go.
            source = before.back[0] if before.back and before.tier == index else before.tier
            back = (source, until_ns) if source > index else None

        def find(reader: Reader) -> File:
            node = self._catalog.walk_path(parts, reader)
            if not isinstance(node, File):
                raise NotFound("artifact", name)
            return node

        told = None if progress is None else lambda done, total: progress(done, total, name)
        moved = self._moving.move(find, index, kind=kind, why=reason, back=back, progress=told)
        return self._described(name, moved)


def _is_same(
    old: Node | None, content: SealedContent, blob: bytes, facts: dict[str, Value] | None
) -> bool:
    return (
        isinstance(old, File)
        and old.blob == blob
        and old.size == content.size
        and facts in (None, old.metadata)
    )


def _no_store(staging: Staging) -> Artifact:
    del staging
    raise AssertionError("a batch stores its contents itself")


def _checked_metadata(metadata: Mapping[str, Value]) -> dict[str, Value]:
    facts = dict(metadata)
    for key in facts:
        if not isinstance(key, str):
            raise InvalidValue("metadata", f"{key!r} is no text")
    if OVERRIDE in facts:
        override_ns(facts[OVERRIDE], 0)
    if len(encode(facts)) > 65536:
        raise InvalidValue("metadata", "it may have 64 KiB together")
    return facts
