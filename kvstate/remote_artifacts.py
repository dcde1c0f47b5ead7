"""Artifacts over the daemon's socket: the methods of `kvstate.artifacts.Artifacts`."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kvstate.artifact_files import Artifact, Content
from kvstate.artifact_reading import TrashedArtifact, Verified
from kvstate.artifacts import Stored
from kvstate.drill import Drill, drill
from kvstate.errors import Exists, InvalidValue, NotFound, StateError
from kvstate.places import raise_os_error
from kvstate.tally import Totals, Usage
from kvstate.transfer import RemoteReader, RemoteWriter
from kvstate.wire import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from kvstate.client import Client
    from kvstate.codec import Value

__all__ = ["RemoteArtifacts"]

_BATCH = 1000
_ITEM_SPARE_BYTES = 1024


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
        options = _given(
            tier=tier,
            older_than=_seconds(older_than),
            newer_than=_seconds(newer_than),
            size_min=size_min or None,
            size_max=size_max,
            metadata=None if metadata is None else dict(metadata),
            held=held,
            newest=newest or None,
            after=after,
            limit=limit,
        )
        return (Artifact(*row) for row in self._client.listing("artifact_list", prefix, options))

    def parts(self, name: str) -> Sequence[Artifact]:
        """Give the artifacts of a folder in order: ``2.jpg`` comes before ``10.jpg``."""
        return [Artifact(*row) for row in self._client.listing("artifact_parts", name)]

    def usage(self, path: str = "") -> Totals:
        """Give what the store, a tenant or a workflow holds: one record, whatever it holds."""
        return _totals(self._call("artifact_usage", path))

    def usages(self, tenant: str = "") -> Iterator[tuple[str, Totals]]:
        """Give each tenant, or each workflow of a tenant, with what it holds."""
        rows = self._client.listing("artifact_usages", tenant)
        return ((name, _totals(row)) for name, row in rows)

    def trash(self, prefix: str = "") -> Iterator[TrashedArtifact]:
        """Give what is in the trash, in the order in which it goes for good."""
        return (TrashedArtifact(*row) for row in self._client.listing("artifact_trash", prefix))

    def verify(self, name: str) -> Artifact:
        """Read all of an artifact and compare its checksums; `Damaged` when one does not match."""
        return Artifact(*self._call("artifact_verify", name))

    def verify_all(
        self, prefix: str = "", *, progress: Callable[[int, int, str], None] | None = None
    ) -> Iterator[Verified]:
        """Read everything below a folder; give each with what is wrong with it, if anything is."""
        done = 0
        for row in self._client.listing("artifact_verify_all", prefix):
            verified = Verified(*row)
            done += verified.size
            if progress is not None:
                progress(done, 0, verified.name)
            yield verified

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
        options = _put_options(metadata, tier, reason, replace=replace)
        if unless_same:
            options["unless_same"] = True
        if isinstance(content, bytes | bytearray | memoryview):
            return self._put_file(name, io.BytesIO(content), options)
        if isinstance(content, str | os.PathLike):
            try:
                with Path(content).open("rb") as source:
                    return self._put_file(name, source, options)
            except OSError as error:
                raise_os_error(error, str(content))
        if hasattr(content, "read"):
            return self._put_file(name, content, options)
        kind = type(content).__name__
        raise InvalidValue("content", f"{kind} is neither bytes, a path nor a binary file")

    def _room(self) -> int:
        return min(CHUNK_BYTES, int(self._client.greeting["frame_bytes_max"]) // 2)

    def _put_file(self, name: str, source: BinaryIO, options: dict[str, Any]) -> Artifact:
        """Store it in one frame if it fits, or else by chunks."""
        room = self._room()
        first = _read(source, room)
        rest = _read(source, room) if len(first) == room else b""
        if not rest:
            return Artifact(*self._call("artifact_put", name, first, options))
        with self._writer(name, options) as writer:
            writer.write(first)
            while rest:
                writer.write(rest)
                rest = _read(source, room)
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
        """Store many artifacts, as many in one commit as fit a frame; durable on return.

        What is stored already, with these bytes and this metadata, is left as it is and counted;
        what does not fit a frame, or has to be read, is sent by itself.
        """
        options = _put_options(metadata, tier, reason, replace=True)
        options.pop("replace", None)
        counts = dict.fromkeys(Stored._fields, 0)
        batch: list[tuple[str, bytes]] = []
        size = 0
        for name, content in items.items() if isinstance(items, Mapping) else items:
            data = _small(content, self._room())
            if data is None:
                self._put_large(name, content, metadata, tier, reason, counts)
                continue
            cost = len(data) + len(name) * 4 + _ITEM_SPARE_BYTES
            if batch and (len(batch) >= _BATCH or size + cost > self._room()):
                self._put_batch(batch, options, counts)
                batch, size = [], 0
                if progress is not None:
                    progress(counts["total"], 0, name)
            batch.append((name, data))
            size += cost
        self._put_batch(batch, options, counts)
        return Stored(**counts)

    def _put_batch(
        self, batch: Sequence[tuple[str, bytes]], options: dict[str, Any], counts: dict[str, int]
    ) -> None:
        if batch:
            stored = self._call("artifact_put_many", batch, options)
            for kind, count in zip(Stored._fields, stored, strict=True):
                counts[kind] += count

    def _put_large(
        self,
        name: str,
        content: Content,
        metadata: Mapping[str, Value] | None,
        tier: str,
        reason: str,
        counts: dict[str, int],
    ) -> None:
        try:
            before = self.stat(name)
        except NotFound:
            before = None
        stored = self.put(
            name, content, metadata=metadata, tier=tier, unless_same=True, reason=reason
        )
        counts["total"] += 1
        if before is None:
            counts["new"] += 1
        elif before.revision == stored.revision:
            counts["unchanged"] += 1
        else:
            counts["changed"] += 1

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

        When one fails, none of them stays.
        """
        if self.exists(name) or any(True for _ in self.list(name, limit=1)):
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

    def writer(
        self,
        name: str,
        *,
        metadata: Mapping[str, Value] | None = None,
        tier: str = "hot",
        replace: bool = True,
        reason: str = "",
    ) -> RemoteWriter:
        """Open a writer that stores on close, and nothing at all after an exception."""
        return self._writer(name, _put_options(metadata, tier, reason, replace=replace))

    def _writer(self, name: str, options: dict[str, Any]) -> RemoteWriter:
        connection, _ = self._client.ask("artifact_upload", (name, options))
        return RemoteWriter(self._client, connection, name)

    # Changing

    def update(self, name: str, metadata: Mapping[str, Value], *, reason: str = "") -> Artifact:
        """Replace an artifact's metadata."""
        return Artifact(*self._call("artifact_update", name, dict(metadata), reason))

    def delete(self, name: str, *, reason: str = "", trash: bool = True) -> bool:
        """Delete an artifact, and the folders that were made for it; say whether it was there."""
        return bool(self._call("artifact_delete", name, {"reason": reason, "trash": trash}))

    def undelete(self, name: str) -> Artifact:
        """Bring back from the trash what was deleted or purged last under this name."""
        return Artifact(*self._call("artifact_undelete", name))

    def empty_trash(self, prefix: str = "", *, reason: str = "") -> int:
        """Let what is in the trash under names with this prefix go now; say how many."""
        return int(self._call("artifact_empty_trash", prefix, reason))

    def rename(
        self, old: str, new: str, *, replace: bool = False, reason: str = ""
    ) -> Artifact | None:
        """Give an artifact, or a whole folder, another name, in one step; None for a folder."""
        row = self._call("artifact_rename", old, new, {"replace": replace, "reason": reason})
        return None if row is None else Artifact(*row)

    def hold(self, name: str, case: str, *, reason: str = "") -> Artifact:
        """Hold an artifact for a case: no purge, overwrite, rename or delete before its release."""
        return Artifact(*self._call("artifact_hold", name, case, reason))

    def release(self, name: str, case: str, *, reason: str = "") -> Artifact:
        """Release an artifact's hold for a case; `NotFound` when there is none."""
        return Artifact(*self._call("artifact_release", name, case, reason))

    # Tiers

    def move(
        self,
        name: str,
        tier: str,
        *,
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Move an artifact to another tier; its age goes on, unless it moves to a hotter one."""
        arguments = (name, tier, reason, progress is not None)
        return Artifact(*self._client.told("artifact_move", arguments, progress))

    def restore(
        self,
        name: str,
        tier: str = "hot",
        *,
        for_seconds: float | timedelta | None = None,
        reason: str = "",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Artifact:
        """Bring an artifact back to a hotter tier, where it begins to age anew."""
        options = _given(for_seconds=_seconds(for_seconds), reason=reason)
        arguments = (name, tier, options, progress is not None)
        return Artifact(*self._client.told("artifact_restore", arguments, progress))

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
        """Bring back what lies below a folder (or has this name) in a colder tier."""
        options = _given(
            from_tier=from_tier,
            limit=limit,
            for_seconds=_seconds(for_seconds),
            dry_run=dry_run,
            reason=reason,
        )
        restored = []
        for row in self._client.listing("artifact_restore_all", prefix, tier, options):
            restored.append(Artifact(*row))
            if progress is not None:
                progress(len(restored), 0, restored[-1].name)
        return restored

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


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _seconds(age: Any) -> Any:
    return age.total_seconds() if isinstance(age, timedelta) else age


def _put_options(
    metadata: Mapping[str, Value] | None, tier: str, reason: str, *, replace: bool
) -> dict[str, Any]:
    facts = None if metadata is None else dict(metadata)
    return _given(metadata=facts, tier=tier, replace=replace, reason=reason)


def _totals(row: list[Any]) -> Totals:
    hot, warm, cold, held, failed = row
    return Totals(Usage(*hot), Usage(*warm), Usage(*cold), held, failed)


def _small(content: Content, room: int) -> bytes | None:
    """Give bytes that are at hand and fit; None for what has to be read, or does not."""
    if isinstance(content, bytes | bytearray | memoryview):
        data = bytes(content)
        return data if len(data) + 2 * _ITEM_SPARE_BYTES < room else None
    return None


def _read(source: BinaryIO, size: int) -> bytes:
    """Give ``size`` bytes, or fewer at the end: a pipe gives what it has."""
    parts: list[bytes] = []
    while size > 0 and (data := source.read(size)):
        if not isinstance(data, bytes):
            raise InvalidValue("content", "the file gives text, not bytes: open it with 'rb'")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
