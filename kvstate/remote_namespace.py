"""A namespace over the daemon's socket: the methods of `kvstate.namespace.Namespace`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from kvstate.errors import InvalidName, InvalidValue
from kvstate.history import Version
from kvstate.indexes import rows_of
from kvstate.key_mapping import KeyMapping
from kvstate.names import check_key, check_namespace
from kvstate.namespace import Upserted, Used
from kvstate.space import settings_of
from kvstate.state import Entry
from kvstate.typed import converted, encode_value, is_instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from kvstate.client import Client
    from kvstate.codec import Value
    from kvstate.indexes import Place
    from kvstate.space import NamespaceSettings

__all__ = ["RemoteNamespace"]


class RemoteNamespace(KeyMapping):
    """A namespace in another process. The same methods as `kvstate.namespace.Namespace`."""

    def __init__(self, client: Client, name: str) -> None:
        check_namespace(name)
        self.name = name
        self._client = client
        self._call = client.call

    def __repr__(self) -> str:
        return f"<kvstate namespace {self.name!r}>"

    # Reading

    def get(
        self,
        key: str,
        default: Any = None,
        *,
        as_type: Any = None,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> Value:
        """Give the key's value, now, as of a revision or at a moment; the default when absent."""
        if revision is None and at is None:
            found = self._call("get", self.name, key)
        else:
            found = self._call("get", self.name, key, revision, at)
        if found is None:
            return default
        return found[0] if as_type is None else converted(found[0], as_type, key)

    def entry(self, key: str) -> Entry | None:
        """Give the key with its revision and times; None when it is absent or has expired."""
        row = self._call("entry", self.name, key)
        return None if row is None else Entry(*row)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Give the values of those keys that are there, all as of one revision."""
        return dict(self._client.listing("get_many", self.name, list(keys)))

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        revision: int | None = None,
        at: datetime | float | None = None,
    ) -> Iterator[Entry]:
        """Give the entries whose keys begin with ``prefix``, in the byte order of the keys."""
        arguments = (prefix, start, limit, reverse, revision, at)
        rows = self._client.listing("scan", self.name, *arguments)
        return (Entry(*row) for row in rows)

    def ttl(self, key: str) -> float | None:
        """Give the seconds until the key expires; None if never; `NotFound` when it is absent."""
        left: float | None = self._call("ttl", self.name, key)
        return left

    # Writing

    def set(
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
        if is_instance(value):
            value = encode_value(value)[1]
        revision: int = self._call(
            "set",
            self.name,
            key,
            value,
            _seconds(ttl),
            expires_at,
            if_absent,
            if_present,
            if_revision,
            keep_ttl,
        )
        return revision

    def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision. They must fit one frame."""
        values = {key: encode_value(value)[1] for key, value in mapping.items()}
        try:
            revision: int = self._call("set_many", self.name, values, _seconds(ttl), expires_at)
        except InvalidValue:
            for key in values:
                check_key(key)
            raise
        return revision

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        return bool(self._call("delete", self.name, key, if_revision))

    def expire(
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
        return bool(self._call("expire", self.name, key, *arguments))

    def touch(self, key: str, ttl: float | timedelta | None = None) -> bool:
        """Let the key live for ``ttl``, or the namespace's TTL, again; say if it was there."""
        return bool(self._call("touch", self.name, key, _seconds(ttl)))

    def upsert_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> Upserted:
        """Set those of these keys that are absent or have another value, in one transaction."""
        values = {key: encode_value(value)[1] for key, value in mapping.items()}
        row = self._call("upsert_many", self.name, values, _seconds(ttl), expires_at)
        return Upserted(*row)

    def delete_prefix(self, prefix: str) -> int:
        """Delete the keys that begin with ``prefix``, in one transaction; say how many."""
        return int(self._call("delete_prefix", self.name, prefix))

    def clear(self) -> None:
        """Delete every key, in one transaction."""
        self.delete_prefix("")

    def expire_prefix(
        self,
        prefix: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Let all keys that begin with ``prefix`` expire then, in one transaction; say how many."""
        return int(self._call("expire_prefix", self.name, prefix, _seconds(ttl), expires_at))

    def increment(
        self, key: str, by: Any = 1, *, default: Any = 0, ttl: float | timedelta | None = None
    ) -> Any:
        """Add to the number under the key, atomically; give the new one."""
        return self._call("increment", self.name, key, by, default, _seconds(ttl))

    def append(self, key: str, *items: Value, limit: int | None = None) -> int:
        """Append to the list under the key, atomically; give its length."""
        return int(self._call("append", self.name, key, list(items), limit))

    def history(self, key: str, limit: int | None = None) -> list[Version]:
        """Give what is kept of the key's past, oldest first, the present last."""
        return [Version(*row) for row in self._call("history", self.name, key, limit)]

    def rollback(
        self, key: str, revision: int | None = None, *, at: datetime | float | None = None
    ) -> int:
        """Set the key to what it was then: a new revision, which is given."""
        return int(self._call("rollback", self.name, key, revision, at))

    def find(
        self,
        *,
        limit: int | None = None,
        after: Entry | Place | None = None,
        reverse: bool = False,
        where: Mapping[str, Value] | None = None,
        **fields: Value,
    ) -> Iterator[Entry]:
        """Give the entries with these values in indexed fields, in the order of the first index."""
        rows = rows_of({**(where or {}), **fields})
        place = None if after is None else [after.key, after.value]
        found = self._client.listing("find", self.name, rows, limit, place, reverse)
        return (Entry(*row) for row in found)

    def settings(self) -> NamespaceSettings:
        """Give the namespace's settings: what `configure` of the store changes."""
        return settings_of(self._call("settings", self.name))

    def used(self) -> Used:
        """Give how much the namespace holds."""
        return Used(*self._call("used", self.name))

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return bool(self._call("persist", self.name, key))

    def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL goes with it."""
        revision: int = self._call("rename", self.name, old, new, replace)
        return revision

    # The mapping

    def __contains__(self, key: object) -> bool:
        try:
            return self._call("get", self.name, key) is not None
        except InvalidName:
            return False

    def __iter__(self) -> Iterator[str]:
        return cast("Iterator[str]", self._client.listing("keys", self.name))

    def __len__(self) -> int:
        return int(self._call("count", self.name))


def _seconds(ttl: float | timedelta | None) -> float | None:
    return ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
