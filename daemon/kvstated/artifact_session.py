"""A client's requests about artifacts and their lifecycle: the half of a session that has them."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from kvstate.codec import encode
from kvstate.errors import InvalidValue, NotFound
from kvstate.operations import checked_options
from kvstate.outcomes import Move
from kvstate.wire import CHUNK_BYTES, Channel
from kvstated.streams import FRAME_SPARE_BYTES, Listing, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kvstate.artifacts import Artifacts
    from kvstate.codec import Value
    from kvstate.store import Store

__all__ = ["ArtifactRequests", "result"]

Options = dict[str, Any] | None
_PUT = ("metadata", "tier", "replace", "unless_same", "reason")
_LIST = (
    "tier",
    "older_than",
    "newer_than",
    "size_min",
    "size_max",
    "metadata",
    "held",
    "newest",
    "after",
    "limit",
)


def result(value: Value) -> bytes:
    """Give the body of an answer: ``[value]``."""
    return b"\x81" + encode(value)


class ArtifactRequests:
    """What a session does on the artifacts of its store."""

    _store: Store
    _channel: Channel
    _handles: dict[int, Any]
    _upload: Upload | None

    @abstractmethod
    def _listing(self, rows: Iterator[Any]) -> bytes: ...

    @abstractmethod
    def _keep(self, kept: Any) -> int: ...

    @abstractmethod
    def _teller(self, *, told: bool | None) -> Callable[[int, int, str], None] | None: ...

    @property
    def _artifacts(self) -> Artifacts:
        return self._store.artifacts

    # Content

    def _artifact_put(self, name: str, content: bytes, options: Options = None) -> bytes:
        return result(self._artifacts.put(name, content, **checked_options(options, *_PUT)))

    def _artifact_upload(self, name: str, options: Options = None) -> bytes:
        given = checked_options(options, *_PUT)
        self._upload = upload = Upload(self._channel)
        return result(self._artifacts.put(name, upload, **given))  # type: ignore[arg-type]

    def _artifact_put_many(self, items: list[Any], options: Options = None) -> bytes:
        for item in items:
            if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], bytes):
                raise InvalidValue("items", "each needs the form [name, bytes]")
        given = checked_options(options, "metadata", "tier", "reason")
        pairs: Iterable[Any] = items
        return result(self._artifacts.put_many(pairs, **given))

    def _artifact_get(self, name: str) -> bytes:
        reader, size = self._opened(name)
        if size > min(CHUNK_BYTES, self._channel.frame_bytes_max - FRAME_SPARE_BYTES):
            return result([self._keep(reader), size])
        with reader:
            reader.seek(0)
            return result(reader.read(size))

    def _artifact_open(self, name: str) -> bytes:
        reader, size = self._opened(name)
        return result([self._keep(reader), size])

    def _opened(self, name: str) -> tuple[Any, int]:
        reader: Any = self._artifacts.open(name)
        return reader, reader.seek(0, os.SEEK_END)

    def _artifact_read(self, handle: int, offset: int, size: int) -> bytes:
        reader = self._handles.get(handle)
        if reader is None or isinstance(reader, Listing):
            raise NotFound("open artifact", str(handle))
        if offset < 0 or size < 0:
            raise InvalidValue("offset, size", "neither may be negative")
        reader.seek(offset)
        limit = self._channel.frame_bytes_max - FRAME_SPARE_BYTES
        return result(reader.read(min(size, limit)))

    # Looking

    def _artifact_stat(self, name: str) -> bytes:
        return result(self._artifacts.stat(name))

    def _artifact_exists(self, name: str) -> bytes:
        return result(self._artifacts.exists(name))

    def _artifact_list(self, prefix: str | None = None, options: Options = None) -> bytes:
        given = checked_options(options, *_LIST)
        return self._listing(self._artifacts.list(prefix or "", **given))

    def _artifact_parts(self, name: str) -> bytes:
        return self._listing(iter(self._artifacts.parts(name)))

    def _artifact_usage(self, path: str | None = None) -> bytes:
        return result(self._artifacts.usage(path or ""))

    def _artifact_usages(self, tenant: str | None = None) -> bytes:
        return self._listing(self._artifacts.usages(tenant or ""))

    def _artifact_trash(self, prefix: str | None = None) -> bytes:
        return self._listing(self._artifacts.trash(prefix or ""))

    def _artifact_verify(self, name: str) -> bytes:
        return result(self._artifacts.verify(name))

    def _artifact_verify_all(self, prefix: str | None = None) -> bytes:
        return self._listing(self._artifacts.verify_all(prefix or ""))

    # Changing

    def _artifact_delete(self, name: str, options: Options = None) -> bytes:
        given = checked_options(options, "reason", "trash")
        return result(self._artifacts.delete(name, **given))

    def _artifact_undelete(self, name: str) -> bytes:
        return result(self._artifacts.undelete(name))

    def _artifact_empty_trash(self, prefix: str | None = None, reason: str | None = None) -> bytes:
        return result(self._artifacts.empty_trash(prefix or "", reason=reason or ""))

    def _artifact_rename(self, old: str, new: str, options: Options = None) -> bytes:
        given = checked_options(options, "replace", "reason")
        return result(self._artifacts.rename(old, new, **given))

    def _artifact_hold(self, name: str, case: str, reason: str | None = None) -> bytes:
        return result(self._artifacts.hold(name, case, reason=reason or ""))

    def _artifact_release(self, name: str, case: str, reason: str | None = None) -> bytes:
        return result(self._artifacts.release(name, case, reason=reason or ""))

    def _artifact_move(
        self,
        name: str,
        tier: str,
        reason: str | None = None,
        progress: bool | None = None,  # noqa: FBT001  (the table's order)
    ) -> bytes:
        told = self._teller(told=progress)
        return result(self._artifacts.move(name, tier, reason=reason or "", progress=told))

    def _artifact_restore(
        self,
        name: str,
        tier: str | None = None,
        options: Options = None,
        progress: bool | None = None,  # noqa: FBT001  (the table's order)
    ) -> bytes:
        given = checked_options(options, "for_seconds", "reason")
        told = self._teller(told=progress)
        return result(self._artifacts.restore(name, _or_hot(tier), progress=told, **given))

    def _artifact_restore_all(
        self, prefix: str | None = None, tier: str | None = None, options: Options = None
    ) -> bytes:
        given = checked_options(options, "from_tier", "limit", "for_seconds", "dry_run", "reason")
        restored = self._artifacts.restore_all(prefix or "", _or_hot(tier), **given)
        return self._listing(iter(restored))

    def _artifact_update(
        self, name: str, metadata: Mapping[str, Value], reason: str | None = None
    ) -> bytes:
        return result(self._artifacts.update(name, metadata, reason=reason or ""))

    # The lifecycle

    def _scrub(self, options: Options = None, progress: bool | None = None) -> bytes:  # noqa: FBT001
        given = checked_options(options, "bytes_max", "rate", "restart")
        return result(self._store.scrub(progress=self._teller(told=progress), **given))

    def _lifecycle_plan(
        self, limit: int | None = None, until: int | None = None, after: list[Any] | None = None
    ) -> bytes:
        page = None if after is None else (_number(after, 0), _number(after, 1))
        return self._listing(self._store.lifecycle.plan(limit, until_ns=until, after=page))

    def _lifecycle_explain(self, name: str) -> bytes:
        return result(self._store.lifecycle.explain(name))

    def _lifecycle_run(
        self,
        dry_run: bool | None = None,  # noqa: FBT001  (the table's order)
        plan: list[Any] | None = None,
        progress: bool | None = None,  # noqa: FBT001
    ) -> bytes:
        run = self._store.lifecycle.run
        moves = None if plan is None else [_move(row) for row in plan]
        told = self._teller(told=progress)
        return result(run(dry_run=bool(dry_run), plan=moves, progress=told))

    def _lifecycle_next_due(self) -> bytes:
        return result(self._store.lifecycle.next_due_ns())

    def _lifecycle_last(self) -> bytes:
        return result(self._store.lifecycle.last())

    def _lifecycle_summary(self) -> bytes:
        return result(self._store.lifecycle.summary())

    def _lifecycle_policy(self) -> bytes:
        return result(self._store.lifecycle.policy())

    def _lifecycle_configure(self, settings: dict[str, Any]) -> bytes:
        return result(self._store.lifecycle.configure(**_texts(settings)))


def _or_hot(tier: str | None) -> str:
    return "hot" if tier is None else tier


def _texts(settings: dict[Any, Any]) -> dict[str, Any]:
    for name in settings:
        if not isinstance(name, str):
            raise InvalidValue("settings", f"{name!r} is no name of a setting")
    return settings


def _number(row: list[Any], at: int) -> int:
    if len(row) != 2 or isinstance(row[at], bool) or not isinstance(row[at], int):
        raise InvalidValue("after", "it needs the form [due_at, id]")
    return int(row[at])


def _move(row: Any) -> Move:
    kinds = (str, str, str, int, int, int, str, int)
    if not isinstance(row, list) or [type(part) for part in row] != list(kinds):
        raise InvalidValue("plan", "each needs the form of a planned move")
    return Move(*row)
