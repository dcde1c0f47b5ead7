"""What makes a namespace a mutable mapping, whatever door it is behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any

from kvstate.codec import Value
from kvstate.errors import InvalidName, NotFound

if TYPE_CHECKING:
    from kvstate.state import Entry

__all__ = ["KeyMapping"]

_MISSING = object()


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

    def clear(self) -> None:
        """Delete every key, one by one."""
        for key in list(self):
            self.delete(key)


class _Items(ItemsView[str, Value]):
    _mapping: KeyMapping

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return ((entry.key, entry.value) for entry in self._mapping.scan())


class _Values(ValuesView[Value]):
    _mapping: KeyMapping

    def __iter__(self) -> Iterator[Value]:
        return (entry.value for entry in self._mapping.scan())
