"""Artifacts by name, looked at: what is there, what it holds, what a folder of them holds."""

from __future__ import annotations

import heapq
import os
import re
from copy import deepcopy
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from kvstate.artifact_files import Artifact, ArtifactReader, tier_index
from kvstate.clock import SECOND, time_to_ns
from kvstate.errors import Conflict, InvalidValue, NotFound, StateError
from kvstate.folders import FILE_DEPTH
from kvstate.keyspace import ROOT_ID
from kvstate.names import artifact_path, segments
from kvstate.nodes import File, Folder, facts_of
from kvstate.policy import TIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kvstate.blob_reader import BlobReader
    from kvstate.blobs import Blobs
    from kvstate.catalog import Catalog
    from kvstate.clock import Clock
    from kvstate.codec import Value
    from kvstate.engine import Engine
    from kvstate.journal import Journal
    from kvstate.moving import Moving
    from kvstate.nodes import Node
    from kvstate.reads import Reads
    from kvstate.tally import Totals

__all__ = ["ArtifactReading", "Filter", "TrashedArtifact", "Verified", "filter_of"]

_PAGE = 500


class TrashedArtifact(NamedTuple):
    """An artifact in the trash. Times are nanoseconds since 1970 UTC, sizes bytes."""

    name: str
    tier: str
    size: int
    trashed_at_ns: int
    gone_at_ns: int
    why: str
    actor: str


class Verified(NamedTuple):
    """What verifying one artifact found: ``problem`` is empty when nothing is wrong."""

    name: str
    size: int
    problem: str


class Filter(NamedTuple):
    """Which artifacts a listing gives. Times are nanoseconds since 1970 UTC."""

    tier: int | None = None
    written_before_ns: int | None = None
    written_after_ns: int | None = None
    size_min: int = 0
    size_max: int | None = None
    metadata: Mapping[str, Value] | None = None
    held: bool | None = None

    def fits(self, file: File) -> bool:
        """Say whether an artifact is one of those."""
        return (
            self.tier in {None, file.tier}
            and (self.written_before_ns is None or file.written_ns < self.written_before_ns)
            and (self.written_after_ns is None or file.written_ns >= self.written_after_ns)
            and file.size >= self.size_min
            and (self.size_max is None or file.size <= self.size_max)
            and self.held in {None, bool(file.holds)}
            and all(
                key in file.metadata and file.metadata[key] == value
                for key, value in (self.metadata or {}).items()
            )
        )


def filter_of(
    now_ns: int,
    *,
    tier: str | None = None,
    older_than: float | timedelta | datetime | None = None,
    newer_than: float | timedelta | datetime | None = None,
    size_min: int = 0,
    size_max: int | None = None,
    metadata: Mapping[str, Value] | None = None,
    held: bool | None = None,
) -> Filter:
    """Make a filter of what a listing takes; ages are seconds, a timedelta, or a moment."""
    return Filter(
        None if tier is None else tier_index(tier),
        _moment(older_than, now_ns, "older_than"),
        _moment(newer_than, now_ns, "newer_than"),
        size_min,
        size_max,
        metadata,
        held,
    )


def _moment(age: float | timedelta | datetime | None, now_ns: int, what: str) -> int | None:
    if age is None:
        return None
    if isinstance(age, datetime):
        return time_to_ns(age, what)
    if isinstance(age, timedelta):
        age = age.total_seconds()
    if isinstance(age, bool) or not isinstance(age, int | float) or not abs(age) < 2**33:
        raise InvalidValue(what, f"{age!r} is neither seconds, a timedelta nor a datetime")
    return now_ns - round(age * SECOND)


class ArtifactReading:
    """The artifacts of a store, looked at."""

    def __init__(
        self,
        catalog: Catalog,
        moving: Moving,
        blobs: Blobs,
        journal: Journal,
        reads: Reads,
        engine: Engine,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._moving = moving
        self._blobs = blobs
        self._journal = journal
        self._reads = reads
        self._engine = engine
        self._clock = clock
        self._uid = os.getuid()
        self._gid = os.getgid()

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

    def open_reader(self, name: str) -> ArtifactReader:
        """Open an artifact for reading: it stays what it was, whatever happens to the name."""
        return ArtifactReader(name, self._reader(name))

    # Listing

    def list(
        self,
        prefix: str = "",
        *,
        tier: str | None = None,
        older_than: float | timedelta | datetime | None = None,
        newer_than: float | timedelta | datetime | None = None,
        size_min: int = 0,
        size_max: int | None = None,
        metadata: Mapping[str, Value] | None = None,
        held: bool | None = None,
        newest: bool = False,
        after: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Artifact]:
        """Give the artifacts below a folder (or the one of this name), in the order of names.

        Those of a tier, written longer or less long ago (seconds, a timedelta, a moment), of some
        size (bytes), with this metadata, held or not. ``newest``: the last written first. ``after``
        is the last name of a page: the next one begins there.
        """
        wanted = filter_of(
            self._clock.now_ns(),
            tier=tier,
            older_than=older_than,
            newer_than=newer_than,
            size_min=size_min,
            size_max=size_max,
            metadata=metadata,
            held=held,
        )
        parts = segments(prefix.rstrip("/"), kind="folder") if prefix.strip("/") else ()
        found = (
            self._newest(parts, wanted, after) if newest else self._named(parts, wanted.tier, after)
        )
        chosen = (self._described(name, file) for name, file in found if wanted.fits(file))
        return islice(chosen, limit)

    def _named(
        self, parts: tuple[str, ...], tier: int | None, after: str | None
    ) -> Iterator[tuple[str, File]]:
        rest = () if after is None else segments(after)
        if rest and rest[: len(parts)] != parts:
            raise InvalidValue("after", f"{after!r} does not lie below {'/'.join(parts)!r}")
        if not parts:
            yield from self._below(ROOT_ID, "", tier, rest)
            return
        found = self._find(parts)
        name = "/".join(parts)
        if isinstance(found, Folder):
            yield from self._below(found.id, name + "/", tier, rest[len(parts) :])
        elif found is not None and not rest:
            yield name, found

    def _below(
        self, folder_id: int, path: str, tier: int | None, after: tuple[str, ...]
    ) -> Iterator[tuple[str, File]]:
        if after:
            # What lies in the folder that the page ended in comes before what follows it.
            node = self._catalog.lookup(folder_id, after[0])
            if isinstance(node, Folder):
                yield from self._below(node.id, f"{path}{node.name}/", tier, after[1:])
        last = after[0] if after else ""
        while page := self._catalog.children(folder_id, last, _PAGE):
            for node in page:
                if isinstance(node, File):
                    yield path + node.name, node
                elif tier is None or node.shown_in(tier):
                    yield from self._below(node.id, f"{path}{node.name}/", tier, ())
            last = page[-1].name

    def _newest(
        self, parts: tuple[str, ...], wanted: Filter, after: str | None
    ) -> Iterator[tuple[str, File]]:
        """Give what lies below a folder, the last written first: each workflow has its order."""
        place = None
        if after is not None:
            last = self._file(after)
            place = (last.written_ns, last.id)
        inside = "/".join(parts) + "/" if len(parts) > 2 else ""
        orders = [self._newest_of(folder, place) for folder in self._workflows(parts)]
        for written_ns, _, path, file in heapq.merge(*orders, reverse=True):
            if wanted.written_after_ns is not None and written_ns < wanted.written_after_ns:
                return  # and so is all that follows
            if path.startswith(inside):
                yield path, file

    def _workflows(self, parts: tuple[str, ...]) -> Iterator[int]:
        if len(parts) >= FILE_DEPTH:
            folder = self._find(parts[:FILE_DEPTH])
            if isinstance(folder, Folder):
                yield folder.id
            return
        names = [parts[0]] if parts else [name for name, _ in self.usages()]
        for name in names:
            tenant = self._find((name,))
            after = ""
            while isinstance(tenant, Folder) and (
                page := self._catalog.children(tenant.id, after, _PAGE)
            ):
                yield from (node.id for node in page if isinstance(node, Folder))
                after = page[-1].name

    def _newest_of(
        self, workflow: int, place: tuple[int, int] | None
    ) -> Iterator[tuple[int, int, str, File]]:
        size = 16  # few are enough where many workflows are merged
        while page := self._catalog.newest_page(workflow, place, size):
            for path, file in page:
                yield file.written_ns, file.id, path, file
            place = (page[-1][1].written_ns, page[-1][1].id)
            size = min(2 * size, _PAGE)

    def parts(self, name: str) -> Sequence[Artifact]:
        """Give the artifacts of a folder in order: ``2.jpg`` comes before ``10.jpg``.

        `NotFound` when there is no folder of this name.
        """
        parts = segments(name)
        folder = self._find(parts)
        if not isinstance(folder, Folder):
            raise NotFound("folder", name)
        found = [
            (each, node)
            for each, node in self._below(folder.id, name + "/", None, ())
            if node.parent == folder.id
        ]
        return [self._described(*each) for each in sorted(found, key=lambda each: _order(each[0]))]

    # Counts

    def usage(self, path: str = "") -> Totals:
        """Give what the store, a tenant or a workflow holds: one record, whatever it holds."""
        parts = segments(path.rstrip("/"), kind="folder") if path.strip("/") else ()
        if len(parts) > 2:
            raise InvalidValue("usage", f"{path!r} is neither a tenant nor a workflow")
        if not parts:
            return self._catalog.totals(ROOT_ID)
        folder = self._find(parts)
        if not isinstance(folder, Folder):
            raise NotFound("folder", path)
        return self._catalog.totals(folder.id)

    def usages(self, tenant: str = "") -> Iterator[tuple[str, Totals]]:
        """Give each tenant, or each workflow of a tenant, with what it holds."""
        folder_id = ROOT_ID
        if tenant:
            folder = self._find(segments(tenant, kind="tenant"))
            if not isinstance(folder, Folder) or folder.parent != ROOT_ID:
                raise NotFound("tenant", tenant)
            folder_id = folder.id
        after = ""
        while page := self._catalog.holders(folder_id, after):
            for node, totals in page:
                yield node.name, totals
            after = page[-1][0].name

    # The trash

    def trash(self, prefix: str = "") -> Iterator[TrashedArtifact]:
        """Give what is in the trash, in the order in which it goes for good."""
        for each in self._catalog.trashed():
            if each.name.startswith(prefix):
                yield TrashedArtifact(
                    each.name,
                    TIERS[each.file.tier],
                    each.file.size,
                    each.trashed_ns,
                    each.gone_ns,
                    each.why,
                    each.actor,
                )

    # Verifying

    def verify(self, name: str, *, progress: Callable[[int], None] | None = None) -> Artifact:
        """Read all of an artifact and compare its checksums; `Damaged` when one does not match."""
        file = self._file(name)
        if file.blob:
            self._blobs.verify(file.blob, file.sha256, progress)
        return self._described(name, file)

    def verify_all(
        self, prefix: str = "", *, progress: Callable[[int, int, str], None] | None = None
    ) -> Iterator[Verified]:
        """Read everything below a folder; give each with what is wrong with it, if anything is.

        Equal content is read once. ``progress`` gets bytes done, the total (or 0) and the name.
        """
        total = self.usage(prefix).bytes if prefix.strip("/").count("/") < 2 else 0
        done = 0
        known: dict[bytes, str] = {}
        for artifact in self.list(prefix):
            file = self._find(artifact_path(artifact.name))
            if not isinstance(file, File):
                continue
            if file.blob and (file.blob not in known or file.sha256):
                try:
                    self._blobs.verify(file.blob, file.sha256)
                    known[file.blob] = ""
                except NotFound:
                    continue  # replaced or deleted since it was listed
                except StateError as error:
                    known[file.blob] = str(error)
            done += file.size
            if progress is not None:
                progress(done, max(total, done) if total else 0, artifact.name)
            yield Verified(artifact.name, file.size, known.get(file.blob, ""))

    # Inside

    def _find(self, parts: tuple[str, ...]) -> Node | None:
        return self._engine.read(lambda reader: self._catalog.walk_path(parts, reader))

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
                reader = self._blobs.reader(file.blob)
            except NotFound:
                if self._file(name).blob == file.blob:
                    raise
            else:
                self._reads.note(file)
                return reader

    def _described(self, name: str, file: File) -> Artifact:
        tenant, workflow, artifact = (*name.split("/", 2), "", "")[:3]
        policy = self._catalog.policies.ruling().policy
        verdict = policy.verdict(facts_of(name, file), self._clock.now_ns())
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
            verdict.due_ns or 0,
            deepcopy(file.metadata),
            deepcopy(file.holds),
            file.revision,
            file.written_ns,
            file.sha256.hex(),
            "" if file.failure is None else file.failure.why,
            0 if file.back is None else file.back[1],
        )


def _order(name: str) -> list[tuple[int, str]]:
    """Order numbers in names by what they are worth."""
    found = re.split(r"(\d+)", name)
    return [(int(text), text) if text.isdecimal() else (-1, text) for text in found if text]
