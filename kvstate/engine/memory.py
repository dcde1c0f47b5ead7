"""The engine in memory: for tests, for throw-away stores, and as the second witness of the seam.

A sorted list of keys beside a dictionary. One lock; transactions write to an overlay that is merged
on commit, so a function that raises leaves nothing behind.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any, TypeVar

from kvstate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.engine import Reader, Transaction

__all__ = ["MemoryEngine"]

T = TypeVar("T")
_MEMO_MAX = 10_000


class _Overlay:
    """Committed pairs with a transaction's own writes above them."""

    def __init__(self, keys: list[bytes], pairs: dict[bytes, bytes]) -> None:
        self._keys = keys
        self._pairs = pairs
        self.written: dict[bytes, bytes | None] = {}
        self.memo: dict[object, Any] = {}

    def get(self, key: bytes) -> bytes | None:
        if key in self.written:
            return self.written[key]
        return self._pairs.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.written[key] = value

    def delete(self, key: bytes) -> bool:
        there = self.get(key) is not None
        if there:
            self.written[key] = None
        return there

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        found = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, stop)]
        if self.written:
            own = {key for key in self.written if start <= key < stop}
            found = sorted(own.union(found))
        if reverse:
            found = found[::-1]
        for key in found:
            value = self.get(key)
            if value is not None:
                yield key, value


class MemoryEngine:
    """Ordered bytes in this process alone; gone when it ends."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._pairs: dict[bytes, bytes] = {}
        self._revision = 0
        self._memo: dict[object, Any] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("store", "it was closed")

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._pairs.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        with self._changed:
            self._check_open()
            pairs = _Overlay(self._keys, self._pairs).scan(start, stop, reverse=reverse)
            return [pair for _, pair in zip(range(limit), pairs, strict=False)]

    def read(self, function: Callable[[Reader], T]) -> T:
        with self._changed:
            self._check_open()
            return function(_Overlay(self._keys, self._pairs))

    def txn(self, function: Callable[[Transaction], T]) -> T:
        with self._changed:
            self._check_open()
            overlay = _Overlay(self._keys, self._pairs)
            overlay.memo, self._memo = self._memo if len(self._memo) < _MEMO_MAX else {}, {}
            result = function(overlay)
            self._memo = overlay.memo
            if overlay.written:
                self._merge(overlay.written)
                self._revision += 1
                self._changed.notify_all()
            return result

    def _merge(self, written: dict[bytes, bytes | None]) -> None:
        for key, value in written.items():
            if value is None:
                if self._pairs.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._pairs:
                    insort(self._keys, key)
                self._pairs[key] = value

    def revision(self) -> int:
        return self._revision

    def watch(self, since: int, timeout: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._revision > since or self._closed, timeout)
            return self._revision

    def stats(self) -> dict[str, int]:
        with self._changed:
            used = sum(len(key) + len(value) for key, value in self._pairs.items())
            sizes = ("free_bytes", "page_bytes", "map_bytes", "readers", "readers_max")
            return {"used_bytes": used, **dict.fromkeys(sizes, 0)}

    def failure(self) -> str:
        return ""

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
