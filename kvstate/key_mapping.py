"""What makes a namespace a mutable mapping, whatever door it is behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kvstate.codec import Value
from kvstate.errors import Conflict, Exists, InvalidName, InvalidValue, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from kvstate.series import Series
    from kvstate.state import Entry

__all__ = ["KeyMapping"]

_MISSING: Any = object()
TRIES = 1000


class KeyMapping(MutableMapping[str, Value]):
    """The mapping's own methods, in terms of get, set, delete and scan."""

    @abstractmethod
    def get(self, key: str, default: Any = None) -> Value:
        """Give the key's value; the default when it is absent or has expired."""

    @abstractmethod
    def set(self, key: str, value: Value) -> int:
        """Set the key; give the revision."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Delete the key; say whether it was there."""

    @abstractmethod
    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired."""

    @abstractmethod
    def set_many(self, mapping: dict[str, Value]) -> int:
        """Set all these keys in one transaction; give the revision."""

    @abstractmethod
    def scan(self) -> Iterator[Entry]:
        """Give the entries in the byte order of the keys."""

    def __getitem__(self, key: str) -> Value:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise NotFound("key", key)
        return value

    def __setitem__(self, key: str, value: Value) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise NotFound("key", key)

    def __contains__(self, key: object) -> bool:
        try:
            return self.get(key, _MISSING) is not _MISSING  # type: ignore[arg-type]
        except InvalidName:
            return False

    def items(self) -> ItemsView[str, Value]:
        """Give a view of the pairs that reads many at a time."""
        return _Items(self)

    def values(self) -> ValuesView[Value]:
        """Give a view of the values that reads many at a time."""
        return _Values(self)

    def update(self, first: Any = (), second: Any = None, /, **keys: Value) -> Any:
        """Change one key by a function, atomically; or, as mappings do, set many.

        ``update(key, function)`` sets the key to ``function(value)`` (None for an absent one),
        which may be called more than once, and gives the new value; the expiry stays.
        """
        if callable(second):
            return self._changed(first, second)
        if second is not None:
            raise InvalidValue("update", f"{second!r} is no function")
        self.set_many({**dict(first), **keys})
        return None

    def _changed(self, key: str, function: Callable[[Value], Value]) -> Value:
        for last in (*[False] * (TRIES - 1), True):
            before = self.entry(key)
            value = function(None if before is None else before.value)
            try:
                self._replace(key, value, before)
            except Conflict:
                if last:
                    raise
                continue
            return value
        raise AssertionError

    def _replace(self, key: str, value: Value, before: Entry | None) -> None:
        """Set the key if it is still as it was before."""
        revision = 0 if before is None else before.revision
        self.set(key, value, if_revision=revision, keep_ttl=True)  # type: ignore[call-arg]

    def setdefault(self, key: str, default: Value = None) -> Value:
        """Give the key's value; set it to the default, atomically, when it is absent."""
        while True:
            value = self.get(key, _MISSING)
            if value is not _MISSING:
                return value
            try:
                self.set(key, default, if_absent=True)  # type: ignore[call-arg]
            except Exists:
                continue
            return default

    def pop(self, key: str, default: Any = _MISSING) -> Value:
        """Remove the key and give its value, atomically; the default, or `NotFound`, without it."""
        while True:
            entry = self.entry(key)
            if entry is None:
                if default is _MISSING:
                    raise NotFound("key", key)
                return default
            try:
                self.delete(key, if_revision=entry.revision)  # type: ignore[call-arg]
            except Conflict:
                continue
            return entry.value

    def now(self) -> datetime:
        """Give the time that a point of a series has without another, in UTC."""
        return datetime.now(UTC)

    def series(
        self,
        key: str,
        *,
        max_count: int | None = None,
        max_age: float | timedelta | None = None,
    ) -> Series:
        """Give the series of numbers under this key."""
        from kvstate.series import Series  # noqa: PLC0415  (it stands above)

        return Series(self, key, max_count=max_count, max_age=max_age)


class _Items(ItemsView[str, Value]):
    _mapping: KeyMapping

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return ((entry.key, entry.value) for entry in self._mapping.scan())


class _Values(ValuesView[Value]):
    _mapping: KeyMapping

    def __iter__(self) -> Iterator[Value]:
        return (entry.value for entry in self._mapping.scan())
