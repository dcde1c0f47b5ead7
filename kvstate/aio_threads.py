"""What the asynchronous client does in worker threads: content, transactions, series.

Content of artifacts comes from files and goes to files. Transactions and series are many small
steps of one piece of work; they use the blocking client, a call after the other, off the event
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import IOBase
from typing import TYPE_CHECKING, Any, TypeVar

from kvstate.remote_artifacts import RemoteArtifacts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime, timedelta
    from types import TracebackType
    from typing import Self

    from kvstate.codec import Value
    from kvstate.remote import RemoteStore
    from kvstate.series import Point, Series
    from kvstate.state import Entry
    from kvstate.transaction import Transaction, TransactionNamespace

__all__ = ["AsyncArtifacts", "AsyncSeries", "AsyncTransaction", "AsyncTransactionNamespace"]

T = TypeVar("T")


class AsyncArtifacts:
    """The artifacts of the store; each call runs in a worker thread."""

    def __init__(self, in_thread: Callable[[Callable[[RemoteStore], Any]], Awaitable[Any]]) -> None:
        self._in_thread = in_thread

    async def _run(self, method: str, *arguments: Any, **options: Any) -> Any:
        def run(store: RemoteStore) -> Any:
            result = getattr(store.artifacts, method)(*arguments, **options)
            plain = isinstance(result, IOBase) or not isinstance(result, Iterator)
            return result if plain else list(result)

        return await self._in_thread(run)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Give a method of `kvstate.artifacts.Artifacts`, awaitable; a listing comes as a list."""
        if name.startswith("_") or not hasattr(RemoteArtifacts, name):
            raise AttributeError(f"artifacts have no method {name!r}")

        def call(*arguments: Any, **options: Any) -> Awaitable[Any]:
            return self._run(name, *arguments, **options)

        return call


class AsyncTransaction:
    """`kvstate.transaction.Transaction`: all or nothing at the end of the ``async with`` block."""

    def __init__(self, begin: Callable[[], Awaitable[Transaction]]) -> None:
        self._begin = begin
        self._real: Transaction | None = None

    @property
    def revision(self) -> int | None:
        """The revision of the commit, afterwards; None if there was nothing to write."""
        return None if self._real is None else self._real.revision

    def namespace(self, name: str) -> AsyncTransactionNamespace:
        """Give a namespace as this transaction sees it."""
        if self._real is None:
            raise RuntimeError("begin the transaction with `async with`")
        return AsyncTransactionNamespace(self._real.namespace(name))

    async def __aenter__(self) -> Self:
        self._real = await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._real is None:
            return
        if kind is None:
            await asyncio.to_thread(self._real.commit)
        else:
            self._real.rollback()


class AsyncTransactionNamespace:
    """A namespace within a transaction: it reads what the transaction writes."""

    def __init__(self, real: TransactionNamespace) -> None:
        self.name = real.name
        self._real = real

    async def get(self, key: str, default: Any = None, *, as_type: Any = None) -> Value:
        """Give the key's value; the default when it is absent."""
        return await asyncio.to_thread(self._real.get, key, default, as_type=as_type)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there."""
        return await asyncio.to_thread(self._real.get_many, keys)

    async def scan(self, prefix: str = "", **options: Any) -> list[Entry]:
        """Give the entries whose keys begin with ``prefix``, with what this transaction wrote."""
        return list(await asyncio.to_thread(self._real.scan, prefix, **options))

    async def set(self, key: str, value: Value, **options: Any) -> None:
        """Set the key when the transaction commits."""
        await asyncio.to_thread(self._real.set, key, value, **options)

    async def delete(self, key: str) -> bool:
        """Delete the key when the transaction commits; say whether it is there."""
        return await asyncio.to_thread(self._real.delete, key)

    async def expire(self, key: str, ttl: float | timedelta | None = None, **options: Any) -> bool:
        """Let the key expire so many seconds after the commit; say whether it is there."""
        return await asyncio.to_thread(self._real.expire, key, ttl, **options)

    async def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it is there."""
        return await asyncio.to_thread(self._real.persist, key)

    async def increment(self, key: str, by: Any = 1, *, default: Any = 0) -> Any:
        """Add to the number under the key; give the new one."""
        return await asyncio.to_thread(self._real.increment, key, by, default=default)

    async def append(self, key: str, *items: Value) -> int:
        """Append to the list under the key; give its length."""
        return await asyncio.to_thread(self._real.append, key, *items)

    async def update(self, key: str, function: Callable[[Value], Value]) -> Value:
        """Set the key to ``function(value)``; give it."""
        return await asyncio.to_thread(self._real.update, key, function)


class AsyncSeries:
    """`kvstate.series.Series`, awaitable."""

    def __init__(self, make: Callable[[], Awaitable[Series]]) -> None:
        self._make = make
        self._real: Series | None = None

    async def _run(self, function: Callable[[Series], T]) -> T:
        if self._real is None:
            self._real = await self._make()
        return await asyncio.to_thread(function, self._real)

    async def append(self, value: Any, at: datetime | float | None = None) -> Point:
        """Add a number at a moment (now); one that is there at that moment is replaced."""
        return await self._run(lambda series: series.append(value, at))

    async def range(
        self, start: datetime | float | None = None, stop: datetime | float | None = None
    ) -> list[Point]:
        """Give the points from ``start`` on, before ``stop``."""
        return await self._run(lambda series: list(series.range(start, stop)))

    async def latest(self) -> Point | None:
        """Give the newest point; None when there is none."""
        return await self._run(lambda series: series.latest())

    async def at(self, moment: datetime | float) -> Point | None:
        """Give the newest point that is not after a moment; None when there is none."""
        return await self._run(lambda series: series.at(moment))

    async def change(self, over: float | timedelta) -> Any:
        """Give by how much the newest point differs from the one that held so long before it."""
        return await self._run(lambda series: series.change(over))
