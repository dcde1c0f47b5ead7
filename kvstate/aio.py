"""The store over the daemon's socket, for asyncio: the same methods, awaitable.

    async with kvstate.aio.connect() as store:
        await store.namespace("prs").set("9fceb02", 1287, ttl=3600)
        async for event in store.watch("prs"):
            ...

What gives an iterator elsewhere gives an asynchronous one here. Every call may be cancelled, and
has the deadline that `connect` was given; `asyncio.timeout` works as well. Artifacts, transactions
and series go through worker threads (`kvstate.aio_threads`).
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kvstate.aio_client import AsyncClient
from kvstate.aio_threads import AsyncArtifacts, AsyncSeries, AsyncTransaction
from kvstate.clock import seconds_to_ns
from kvstate.errors import Conflict, Exists, NotFound, StateError, Unavailable
from kvstate.history import Version
from kvstate.indexes import rows_of
from kvstate.journal import Event
from kvstate.locks import LOCKS
from kvstate.names import check_key, check_namespace
from kvstate.namespace import Upserted, Used
from kvstate.remote import connect as connect_blocking
from kvstate.space import settings_of
from kvstate.state import Entry
from kvstate.typed import converted, encode_value
from kvstate.wire import default_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from kvstate.chain import ChainReport
    from kvstate.check import Report
    from kvstate.codec import Value
    from kvstate.indexes import Place
    from kvstate.remote import RemoteStore
    from kvstate.scrubbing import Scrubbed
    from kvstate.space import NamespaceSettings
    from kvstate.transaction import Transaction

__all__ = ["AsyncArtifacts", "AsyncLock", "AsyncNamespace", "AsyncStore", "connect"]

T = TypeVar("T")
_WAIT_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 0.1
_TRIES = 1000
_MISSING: Any = object()


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    timeout: float | None = 30.0,
    connections: int = 4,
) -> AsyncStore:
    """Give the store of the daemon that answers on this socket: an asynchronous context manager.

    ``socket`` as for `kvstate.connect`. ``timeout`` is the deadline of each call in seconds, after
    which it raises `Unavailable`. Up to so many ``connections`` carry the requests; a further one
    is made when all have some dozens in flight.
    """
    if socket is None:
        socket = default_socket(os.environ)
        if not os.environ.get("KVSTATE_SOCKET") and not os.path.exists(socket):  # noqa: PTH110
            socket = default_socket({})
    return AsyncStore(os.fspath(socket), timeout=timeout, connections=connections)


class AsyncStore:
    """A store in another process. The methods of `kvstate.remote.RemoteStore`, awaitable."""

    def __init__(self, socket: str, *, timeout: float | None, connections: int) -> None:
        self._socket = socket
        self._client = AsyncClient(socket, timeout=timeout, connections=connections)
        self._blocking: RemoteStore | None = None
        self.artifacts = AsyncArtifacts(self._in_thread)

    @property
    def path(self) -> Path:
        """The store's folder, once connected."""
        return Path(self._client.greeting["store"])

    async def __aenter__(self) -> Self:
        await self.revision()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; using the store afterwards raises `Unavailable`."""
        await self._client.close()
        if self._blocking is not None:
            self._blocking.close()

    async def _in_thread(self, function: Callable[[RemoteStore], T]) -> T:
        """Run what blocks in a worker thread."""

        def run() -> T:
            if self._blocking is None:
                self._blocking = connect_blocking(self._socket)
            return function(self._blocking)

        return await asyncio.to_thread(run)

    def namespace(self, name: str) -> AsyncNamespace:
        """Give the namespace; it comes into being with its first key."""
        return AsyncNamespace(self._client, name, self._in_thread)

    async def namespaces(self) -> list[str]:
        """Give the names of all namespaces in byte order."""
        return [name async for name in self._client.listing("namespaces")]

    async def make_namespace(self, name: str) -> None:
        """Make an empty namespace; nothing happens when it is there."""
        await self._client.call("make_namespace", name)

    async def remove_namespace(self, name: str) -> bool:
        """Remove an empty namespace; `Conflict` when it has keys; say whether it was there."""
        return bool(await self._client.call("remove_namespace", name))

    async def configure(self, namespace: str, **options: Any) -> NamespaceSettings:
        """Change some settings of a namespace, kept in the store; give all of them."""
        given = {
            name: value.total_seconds() if isinstance(value, timedelta) else value
            for name, value in options.items()
        }
        return settings_of(await self._client.call("configure", namespace, given))

    async def revision(self) -> int:
        """Give the number of the newest commit."""
        return int(await self._client.call("revision"))

    async def wait(self, revision: int, timeout: float | None = None) -> int:
        """Wait until the store is past this revision, or the time is up; give its revision."""
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = await self._client.alone()
        try:
            while True:
                left = _WAIT_SECONDS if deadline is None else deadline - time.monotonic()
                seconds = max(0.0, min(left, _WAIT_SECONDS))
                current = int(await connection.call("wait", (revision, seconds)))
                if current > revision or (deadline is not None and time.monotonic() >= deadline):
                    return current
        finally:
            await connection.close()

    async def journal(
        self,
        since: int = 0,
        limit: int | None = None,
        *,
        namespace: str | None = None,
        prefix: str = "",
        strict: bool = False,
    ) -> AsyncIterator[Event]:
        """Give the events after this revision, in order, up to the newest."""
        arguments = (since, limit, namespace, prefix, strict)
        async for row in self._client.listing("journal", *arguments):
            yield Event(*row)

    async def watch(
        self,
        namespace: str | None = None,
        since: int | None = None,
        timeout: float | None = None,
        *,
        prefix: str = "",
    ) -> AsyncIterator[Event]:
        """Give events as they are committed, by anyone; end after ``timeout`` quiet seconds.

        When the daemon goes away, it is waited for up to a minute; what happened meanwhile is given
        then, nothing twice and nothing left out. `Compacted` when it was trimmed.
        """
        if namespace is not None:
            check_namespace(namespace)
        seen = await self.revision() if since is None else since
        given = 0
        patience: float | None = None
        while True:
            try:
                newest = await self.revision()
                skip, current = given, 0
                events = self.journal(seen, namespace=namespace, prefix=prefix, strict=True)
                async for event in events:
                    if event.revision != current:
                        if current:
                            seen, given = event.revision - 1, 0
                        current = event.revision
                    if skip:
                        skip -= 1
                        continue
                    given += 1
                    yield event
                seen, given, patience = max(seen, newest, current), 0, None
                if await self.wait(seen, timeout) <= seen:
                    return
            except Unavailable as error:
                patience = patience or time.monotonic() + _PATIENCE_SECONDS
                if not error.retry or self._client.closed or time.monotonic() > patience:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    def transaction(self) -> AsyncTransaction:
        """Begin a transaction over any namespaces: an asynchronous context manager."""
        return AsyncTransaction(lambda: self._in_thread(lambda store: store.transaction()))

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        """Run an ordinary function in a transaction, in a worker thread; again after a conflict."""
        return await self._in_thread(lambda store: store.transact(function))

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta = 30.0,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> AsyncLock:
        """Give a lock among all processes of the store: a context manager with a lease."""
        return AsyncLock(self, name, ttl=ttl, owner=owner, timeout=timeout)

    async def stats(self) -> dict[str, object]:
        """Give what is stored, in numbers."""
        return dict(await self._client.call("stats"))

    async def check(self, *, verify: bool = False, repair: bool = False) -> Report:
        """Walk over everything and name every inconsistency; ``verify`` reads every byte, too."""
        return await self._in_thread(lambda store: store.check(verify=verify, repair=repair))

    async def scrub(self, **options: Any) -> Scrubbed:
        """Read everything that is stored and compare checksums, from where the last scrub ended."""
        return await self._in_thread(lambda store: store.scrub(**options))

    async def audit(self, **options: Any) -> list[dict[str, Any]]:
        """Give what was done to artifacts, oldest first."""
        return await self._in_thread(lambda store: list(store.audit(**options)))

    async def verify_journal(self, expect: str | None = None) -> ChainReport:
        """Follow the journal's hash chain; say where it was altered, if it was."""
        return await self._in_thread(lambda store: store.verify_journal(expect))

    async def lifecycle(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the lifecycle (plan, run, summary, ...) in a worker thread."""

        def run(store: RemoteStore) -> Any:
            result = getattr(store.lifecycle, method)(*arguments, **options)
            return list(result) if method == "plan" else result

        return await self._in_thread(run)


class AsyncNamespace:
    """A namespace in another process. The methods of `kvstate.namespace.Namespace`, awaitable."""

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        in_thread: Callable[[Callable[[RemoteStore], Any]], Awaitable[Any]],
    ) -> None:
        check_namespace(name)
        self.name = name
        self._client = client
        self._in_thread = in_thread

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    async def _call(self, operation: str, *arguments: object) -> Any:
        return await self._client.call(operation, self.name, *arguments)

    async def get(
        self,
        key: str,
        default: Any = None,
        *,
        as_type: Any = None,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> Value:
        """Give the key's value, now, as of a revision or at a moment; the default when absent."""
        past = () if revision is None and at is None else (revision, at)
        found = await self._call("get", key, *past)
        if found is None:
            return default
        return found[0] if as_type is None else converted(found[0], as_type, key)

    async def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired."""
        row = await self._call("entry", key)
        return None if row is None else Entry(*row)

    async def contains(self, key: str) -> bool:
        """Say whether the key is there."""
        return await self._call("get", key) is not None

    async def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there, all as of one revision."""
        rows = self._client.listing("get_many", self.name, list(keys))
        return {key: value async for key, value in rows}

    async def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> AsyncIterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, in the byte order of the keys."""
        arguments = (self.name, prefix, start, limit, reverse, revision, at)
        async for row in self._client.listing("scan", *arguments):
            yield Entry(*row)

    async def keys(self) -> list[str]:
        """Give the keys, in byte order."""
        return [key async for key in self._client.listing("keys", self.name)]

    async def count(self) -> int:
        """Give how many keys there are."""
        return int(await self._call("count"))

    async def find(
        self,
        *,
        limit: int | None = None,
        after: Entry | Place | None = None,
        reverse: bool = False,
        where: Mapping[str, Value] | None = None,
        **fields: Value,
    ) -> AsyncIterator[Entry]:
        """Give the entries with these values in indexed fields, in the order of the first index."""
        rows = rows_of({**(where or {}), **fields})
        place = None if after is None else [after.key, after.value]
        async for row in self._client.listing("find", self.name, rows, limit, place, reverse):
            yield Entry(*row)

    async def ttl(self, key: str) -> float | None:
        """Give the seconds until the key expires; None if never; `NotFound` when it is absent."""
        left: float | None = await self._call("ttl", key)
        return left

    async def set(
        self,
        key: str,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_revision: int | None = None,
        keep_ttl: bool = False,
    ) -> int:
        """Set the key; give the revision. Durable when this returns."""
        value = encode_value(value)[1]
        conditions = (if_absent, if_present, if_revision, keep_ttl)
        return int(await self._call("set", key, value, _seconds(ttl), expires_at, *conditions))

    async def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision. They must fit one frame."""
        for key in mapping:
            check_key(key)
        return int(await self._call("set_many", _plain(mapping), _seconds(ttl), expires_at))

    async def upsert_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> Upserted:
        """Set those of these keys that are absent or have another value, in one transaction."""
        arguments = (_plain(mapping), _seconds(ttl), expires_at)
        return Upserted(*await self._call("upsert_many", *arguments))

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        return bool(await self._call("delete", key, if_revision))

    async def delete_prefix(self, prefix: str) -> int:
        """Delete the keys that begin with ``prefix``, in one transaction; say how many."""
        return int(await self._call("delete_prefix", prefix))

    async def clear(self) -> None:
        """Delete every key, in one transaction."""
        await self.delete_prefix("")

    async def pop(self, key: str, default: Any = _MISSING) -> Value:
        """Remove the key and give its value, atomically; the default, or `NotFound`, without it."""
        while True:
            entry = await self.entry(key)
            if entry is None:
                if default is _MISSING:
                    raise NotFound("key", key)
                return default
            try:
                await self.delete(key, if_revision=entry.revision)
            except Conflict:
                continue
            return entry.value

    async def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        """Let the key expire after so many seconds, or at a moment; say whether that is so now."""
        arguments = (_seconds(ttl), expires_at, only_if, if_revision)
        return bool(await self._call("expire", key, *arguments))

    async def expire_prefix(
        self,
        prefix: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Let all keys that begin with ``prefix`` expire then, in one transaction; say how many."""
        return int(await self._call("expire_prefix", prefix, _seconds(ttl), expires_at))

    async def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return bool(await self._call("persist", key))

    async def touch(self, key: str, ttl: float | timedelta | None = None) -> bool:
        """Let the key live for ``ttl``, or the namespace's TTL, again; say if it was there."""
        return bool(await self._call("touch", key, _seconds(ttl)))

    async def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL goes with it."""
        return int(await self._call("rename", old, new, replace))

    async def increment(
        self, key: str, by: Any = 1, *, default: Any = 0, ttl: float | timedelta | None = None
    ) -> Any:
        """Add to the number under the key, atomically; give the new one."""
        return await self._call("increment", key, by, default, _seconds(ttl))

    async def append(self, key: str, *items: Value, limit: int | None = None) -> int:
        """Append to the list under the key, atomically; give its length."""
        return int(await self._call("append", key, list(items), limit))

    async def update(self, key: str, function: Callable[[Value], Value]) -> Value:
        """Set the key to ``function(value)`` (None for an absent one), atomically; give it.

        The function may be called more than once; the expiry stays.
        """
        for last in (*[False] * (_TRIES - 1), True):
            before = await self.entry(key)
            value = function(None if before is None else before.value)
            revision = 0 if before is None else before.revision
            try:
                await self.set(key, value, if_revision=revision, keep_ttl=True)
            except Conflict:
                if last:
                    raise
                continue
            return value
        raise AssertionError

    async def history(self, key: str, limit: int | None = None) -> list[Version]:
        """Give what is kept of the key's past, oldest first, the present last."""
        return [Version(*row) for row in await self._call("history", key, limit)]

    async def rollback(
        self, key: str, revision: int | None = None, *, at: datetime | float | None = None
    ) -> int:
        """Set the key to what it was then: a new revision, which is given."""
        return int(await self._call("rollback", key, revision, at))

    def series(
        self,
        key: str,
        *,
        max_count: int | None = None,
        max_age: float | timedelta | None = None,
    ) -> AsyncSeries:
        """Give the series of numbers under this key."""
        return AsyncSeries(
            lambda: self._in_thread(
                lambda store: store.namespace(self.name).series(
                    key, max_count=max_count, max_age=max_age
                )
            )
        )

    async def settings(self) -> NamespaceSettings:
        """Give the namespace's settings: what `configure` of the store changes."""
        return settings_of(await self._call("settings"))

    async def used(self) -> Used:
        """Give how much the namespace holds."""
        return Used(*await self._call("used"))


class AsyncLock:
    """`kvstate.locks.Lock` for asyncio; a task renews the lease."""

    def __init__(
        self,
        store: AsyncStore,
        name: str,
        *,
        ttl: float | timedelta,
        owner: str | None,
        timeout: float | None,
    ) -> None:
        check_key(name)
        self.name = name
        self.owner = owner or f"{os.getpid()}:{id(self):x}"
        self.token: int | None = None
        self._ttl = seconds_to_ns(ttl, "ttl") / 1e9
        self._timeout = timeout
        self._store = store
        self._keys = store.namespace(LOCKS)
        self._renewal: asyncio.Task[None] | None = None

    async def acquire(self, timeout: float | None = None) -> int:
        """Wait until the lock is ours; give the token. `Conflict` when the time is up first."""
        if self.token is not None:
            raise Conflict(self.name, "this lock is held already, by us")
        wait = self._timeout if timeout is None else timeout
        deadline = None if wait is None else time.monotonic() + wait
        while True:
            seen = await self._store.revision()
            try:
                self.token = await self._keys.set(
                    self.name, self.owner, ttl=self._ttl, if_absent=True
                )
            except Exists:
                left = _WAIT_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    holder = await self._keys.get(self.name)
                    raise Conflict(self.name, f"it is held by {holder!r}") from None
                await self._store.wait(seen, min(left, await self._lease_left()))
            else:
                break
        self._renewal = asyncio.ensure_future(self._renew(self.token))
        return self.token

    async def _lease_left(self) -> float:
        try:
            return (await self._keys.ttl(self.name) or _WAIT_SECONDS) + 0.001
        except NotFound:
            return 0.0

    async def _renew(self, token: int) -> None:
        while True:
            await asyncio.sleep(self._ttl / 3)
            try:
                if not await self._keys.expire(self.name, self._ttl, if_revision=token):
                    return
            except Unavailable:
                continue
            except StateError:
                return

    async def held(self) -> bool:
        """Whether the lock is still ours, as the store sees it."""
        entry = await self._keys.entry(self.name)
        return entry is not None and entry.revision == self.token

    async def release(self) -> bool:
        """Free the lock; False when it was not ours any more."""
        token, self.token = self.token, None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if token is None:
            return False
        try:
            return await self._keys.delete(self.name, if_revision=token)
        except Conflict:
            return False

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.release()


def _plain(mapping: Mapping[str, Value]) -> dict[str, Value]:
    return {key: encode_value(value)[1] for key, value in mapping.items()}


def _seconds(ttl: float | timedelta | None) -> float | None:
    return ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
