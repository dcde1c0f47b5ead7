"""One client's requests: what each operation of the table does on the store.

A session belongs to one connection and one thread. Its *handles* are what a client may come back
to: listings that are not at their end, and content open for reading. They end with the session.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from kvstate.codec import Value, decode, encode
from kvstate.errors import Full, Incompatible, InvalidValue, NotFound
from kvstate.indexes import after_of, where_of
from kvstate.operations import OPERATIONS, PROTOCOL, Check
from kvstate.transaction import checked
from kvstate.version import __version__
from kvstate.wire import Channel, encode_rows
from kvstated.artifact_session import ArtifactRequests
from kvstated.streams import Listing, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.namespace import Namespace
    from kvstate.store import Store
    from kvstated.revisions import Revisions

__all__ = ["Session"]

HANDLES_MAX: Final = 256
WAIT_SECONDS_MAX: Final = 60.0
PROGRESS_SECONDS: Final = 0.1
SPACES_KEPT: Final = 256
PROBLEMS_MAX: Final = 10_000
_MISSING: Final = object()
_NULL: Final = encode([None])
_CHECKS: Final = {name: Check(operation) for name, operation in OPERATIONS.items()}


def _result(result: Value) -> bytes:
    return b"\x81" + encode(result)  # [result]


class Session(ArtifactRequests):
    """Answers requests, one after the other."""

    def __init__(self, store: Store, channel: Channel, revisions: Revisions) -> None:
        self._store = store
        self._channel = channel
        self._revisions = revisions
        self._handles: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._spaces: dict[str, Namespace] = {}
        self._upload: Upload | None = None
        self._run: dict[str, tuple[Check, Callable[..., bytes]]] = {
            name: (check, getattr(self, "_" + name)) for name, check in _CHECKS.items()
        }

    def answer(self, body: bytes) -> bytes:
        """Do what this request says; give the body of the answer, or raise a `StateError`."""
        request = decode(body)
        if not isinstance(request, list) or not request or not isinstance(request[0], str):
            raise InvalidValue("request", "it needs the form [operation, argument, ...]")
        name, *arguments = request
        found = self._run.get(name)
        if found is None:
            raise InvalidValue("operation", f"{name[:80]!r} is none of protocol {PROTOCOL}")
        check, run = found
        check(arguments)
        answer = run(*arguments)
        if len(answer) > self._channel.frame_bytes_max:
            raise InvalidValue(
                f"answer to {name!r}",
                f"{len(answer)} bytes are more than frame_bytes_max, "
                f"{self._channel.frame_bytes_max}: raise it, or open the store in-process",
            )
        return answer

    def settle(self) -> None:
        """Skip what the client still sends of an upload that was answered with an error."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.skip()

    def close(self) -> None:
        """Let go of all handles."""
        for handle in list(self._handles):
            self._close(handle)

    # The connection and the store as a whole

    def _hello(self, protocol: int) -> bytes:
        if protocol != PROTOCOL:
            raise Incompatible(
                "the daemon's socket", f"the client speaks protocol {protocol}, not {PROTOCOL}"
            )
        return _result(
            {
                "protocol": PROTOCOL,
                "version": __version__,
                "store": str(self._store.path),
                "pid": os.getpid(),
                "frame_bytes_max": self._channel.frame_bytes_max,
            }
        )

    def _revision(self) -> bytes:
        return _result(self._store.revision())

    def _wait(self, revision: int, timeout: float) -> bytes:
        # A further request, or the end of the connection, ends the wait.
        seconds = 0.0 if self._channel.buffered else min(timeout, WAIT_SECONDS_MAX)
        return _result(self._revisions.wait(revision, seconds, self._channel.socket.fileno()))

    def _stats(self) -> bytes:
        return _result(self._store.stats())

    def _check(self, verify: bool | None = None, progress: bool | None = None) -> bytes:  # noqa: FBT001  (the table's order)
        report = self._store.check(verify=bool(verify), progress=self._teller(told=progress))
        return _result([list(report.problems[:PROBLEMS_MAX]), report.counts])

    def _repair(self, verify: bool | None = None, progress: bool | None = None) -> bytes:  # noqa: FBT001
        told = self._teller(told=progress)
        report = self._store.check(verify=bool(verify), repair=True, progress=told)
        left, repaired = report.problems[:PROBLEMS_MAX], report.repaired[:PROBLEMS_MAX]
        return _result([list(left), report.counts, list(repaired)])

    def _journal(
        self,
        since: int | None = None,
        limit: int | None = None,
        namespace: str | None = None,
        prefix: str | None = None,
        strict: bool | None = None,  # noqa: FBT001  (the table's order)
    ) -> bytes:
        events = self._store.journal(
            since or 0, limit, namespace=namespace, prefix=prefix or "", strict=bool(strict)
        )
        return self._listing(events)

    def _journal_verify(self, expect: str | None = None) -> bytes:
        return _result(self._store.verify_journal(expect))

    def _teller(self, *, told: bool | None) -> Callable[[int, int, str], None] | None:
        """Give what sends progress to the client, now and then; None if it does not want any."""
        said = time.monotonic()

        def tell(done: int, total: int, name: str) -> None:
            nonlocal said
            if time.monotonic() - said >= PROGRESS_SECONDS:
                said = time.monotonic()
                self._channel.send(encode([done, total, name]))

        return tell if told else None

    # Listings

    def _listing(self, rows: Iterator[Any]) -> bytes:
        """Give the first page; keep the listing under a handle unless that was all."""
        listing = Listing(rows, self._channel.frame_bytes_max)
        page = listing.page()
        return encode_rows(page, None if listing.at_end else self._keep(listing))

    def _more(self, handle: int) -> bytes:
        listing = self._handles.get(handle)
        if not isinstance(listing, Listing):
            raise NotFound("listing", str(handle))
        try:
            page = listing.page()
        finally:
            if listing.at_end:
                self._close(handle)
        return encode_rows(page, None if listing.at_end else handle)

    def _close(self, handle: int) -> bytes:
        kept = self._handles.pop(handle, None)
        if kept is not None:
            kept.close()
        return _NULL

    def _keep(self, kept: Any) -> int:
        if len(self._handles) >= HANDLES_MAX:
            kept.close()
            raise Full("connection", f"it has {HANDLES_MAX} handles: close some")
        handle = next(self._numbers)
        self._handles[handle] = kept
        return handle

    # Namespaces and keys

    def _space(self, name: str) -> Namespace:
        found = self._spaces.get(name) if isinstance(name, str) else None
        if found is None:
            found = self._store.namespace(name)
            if len(self._spaces) >= SPACES_KEPT:
                self._spaces.clear()
            self._spaces[name] = found
        return found

    def _namespaces(self) -> bytes:
        return self._listing(self._store.namespaces())

    def _make_namespace(self, namespace: str) -> bytes:
        self._store.make_namespace(namespace)
        return _NULL

    def _remove_namespace(self, namespace: str) -> bytes:
        return _result(self._store.remove_namespace(namespace))

    def _get(self, namespace: str, key: str, revision: int | None = None, at: Any = None) -> bytes:
        value = self._space(namespace).get(key, _MISSING, revision=revision, at=at)
        return _NULL if value is _MISSING else b"\x81\x81" + encode(value)  # [[value]]

    def _entry(self, namespace: str, key: str) -> bytes:
        return _result(self._space(namespace).entry(key))

    def _count(self, namespace: str) -> bytes:
        return _result(len(self._space(namespace)))

    def _set(
        self,
        namespace: str,
        key: str,
        value: Value,
        ttl: Any = None,
        expires_at: Any = None,
        if_absent: bool | None = None,  # noqa: FBT001  (the table's order)
        if_present: bool | None = None,  # noqa: FBT001
        if_revision: int | None = None,
        keep_ttl: bool | None = None,  # noqa: FBT001
    ) -> bytes:
        revision = self._space(namespace).set(
            key,
            value,
            ttl=ttl,
            expires_at=expires_at,
            if_absent=bool(if_absent),
            if_present=bool(if_present),
            if_revision=if_revision,
            keep_ttl=bool(keep_ttl),
        )
        return _result(revision)

    def _delete(self, namespace: str, key: str, if_revision: int | None = None) -> bytes:
        return _result(self._space(namespace).delete(key, if_revision=if_revision))

    def _scan(
        self,
        namespace: str,
        prefix: str | None = None,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool | None = None,  # noqa: FBT001  (the table's order)
        revision: int | None = None,
        at: Any = None,
    ) -> bytes:
        rows = self._space(namespace).scan(
            prefix or "", start=start, limit=limit, reverse=bool(reverse), revision=revision, at=at
        )
        return self._listing(rows)

    def _configure(self, namespace: str, options: dict[str, Any]) -> bytes:
        if not all(isinstance(name, str) for name in options):
            raise InvalidValue("options", "the names of settings are text")
        return _result(asdict(self._store.configure(namespace, **options)))

    def _settings(self, namespace: str) -> bytes:
        return _result(asdict(self._space(namespace).settings()))

    def _used(self, namespace: str) -> bytes:
        return _result(self._space(namespace).used())

    def _history(self, namespace: str, key: str, limit: int | None = None) -> bytes:
        return _result(self._space(namespace).history(key, limit))

    def _rollback(
        self, namespace: str, key: str, revision: int | None = None, at: Any = None
    ) -> bytes:
        return _result(self._space(namespace).rollback(key, revision, at=at))

    def _find(
        self,
        namespace: str,
        where: list[list[Any]],
        limit: int | None = None,
        after: list[Any] | None = None,
        reverse: bool | None = None,  # noqa: FBT001  (the table's order)
    ) -> bytes:
        rows = self._space(namespace).find(
            where=where_of(where), limit=limit, after=after_of(after), reverse=bool(reverse)
        )
        return self._listing(rows)

    def _transact(self, seen: list[Any], ranges: list[Any], writes: list[Any]) -> bytes:
        return _result(self._store.apply(*checked(seen, ranges, writes)))

    def _keys(self, namespace: str) -> bytes:
        return self._listing(iter(self._space(namespace)))

    def _get_many(self, namespace: str, keys: list[str]) -> bytes:
        return self._listing(iter(self._space(namespace).get_many(keys).items()))

    def _set_many(
        self, namespace: str, values: dict[str, Value], ttl: Any = None, expires_at: Any = None
    ) -> bytes:
        return _result(self._space(namespace).set_many(values, ttl=ttl, expires_at=expires_at))

    def _upsert_many(
        self, namespace: str, values: dict[str, Value], ttl: Any = None, expires_at: Any = None
    ) -> bytes:
        return _result(self._space(namespace).upsert_many(values, ttl=ttl, expires_at=expires_at))

    def _delete_prefix(self, namespace: str, prefix: str) -> bytes:
        return _result(self._space(namespace).delete_prefix(prefix))

    def _expire_prefix(
        self, namespace: str, prefix: str, ttl: Any = None, expires_at: Any = None
    ) -> bytes:
        space = self._space(namespace)
        return _result(space.expire_prefix(prefix, ttl, expires_at=expires_at))

    def _increment(
        self, namespace: str, key: str, by: Any = None, default: Any = None, ttl: Any = None
    ) -> bytes:
        by, default = 1 if by is None else by, 0 if default is None else default
        return _result(self._space(namespace).increment(key, by, default=default, ttl=ttl))

    def _append(
        self, namespace: str, key: str, items: list[Value], limit: int | None = None
    ) -> bytes:
        return _result(self._space(namespace).append(key, *items, limit=limit))

    def _touch(self, namespace: str, key: str, ttl: Any = None) -> bytes:
        return _result(self._space(namespace).touch(key, ttl))

    def _ttl(self, namespace: str, key: str) -> bytes:
        return _result(self._space(namespace).ttl(key))

    def _expire(
        self,
        namespace: str,
        key: str,
        ttl: Any = None,
        expires_at: Any = None,
        only_if: Any = None,
        if_revision: int | None = None,
    ) -> bytes:
        kept = self._space(namespace).expire(
            key, ttl, expires_at=expires_at, only_if=only_if, if_revision=if_revision
        )
        return _result(kept)

    def _persist(self, namespace: str, key: str) -> bytes:
        return _result(self._space(namespace).persist(key))

    def _rename(self, namespace: str, old: str, new: str, replace: bool | None = None) -> bytes:  # noqa: FBT001
        return _result(self._space(namespace).rename(old, new, replace=bool(replace)))
