"""Secondary indexes: which keys have which value in a field, in the order of the values.

An entry's key is ``X namespace-id field value key`` (no bytes behind it), where ``value`` is
written so that the order of the bytes is the order of the values:

    00 None   01 False   02 True   10 numbers   20 text   21 bytes   30 moments   31 moments
    without a zone   32 dates   33 UUIDs

Numbers go by the nearest double, text and bytes by their first 128 bytes; the record decides what
is equal. Lists and mappings have no order and no entry.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from kvstate.errors import InvalidValue, Unavailable
from kvstate.keyspace import after_prefix, field_prefix

if TYPE_CHECKING:
    from kvstate.codec import Value
    from kvstate.space import Field, Space

__all__ = [
    "Place",
    "Range",
    "Search",
    "after_of",
    "entries",
    "indexed",
    "key_of_entry",
    "rows_of",
    "where_of",
]

TEXT_BYTES: Final = 128
_BITS = Struct(">Q")
_DOUBLE = Struct(">d")
_SIGN: Final = 1 << 63
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  (for moments without a zone)
_MISSING: Final = object()
_PREFIX_BYTES: Final = 11
_SIZES: Final = {0: 1, 1: 1, 2: 1, 0x10: 9, 0x30: 9, 0x31: 9, 0x32: 9, 0x33: 17}


class Range(NamedTuple):
    """Values from ``low`` on, below ``high``; None is no bound."""

    low: Value = None
    high: Value = None


class Place(NamedTuple):
    """Where a search goes on: after this key, with this value."""

    key: str
    value: Value


def where_of(rows: Any) -> dict[str, Value]:
    """Give what to find by from ``[path, value]`` and ``[path, low, high]``, as a wire has it."""
    found: dict[str, Value] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) not in {2, 3} or not isinstance(row[0], str):
            raise InvalidValue("where", "it needs [path, value] or [path, low, high] each")
        found[row[0]] = row[1] if len(row) == 2 else Range(row[1], row[2])
    return found


def rows_of(where: dict[str, Value]) -> list[list[Value]]:
    """Give what to find by as a wire has it."""
    return [
        [path, *wanted] if isinstance(wanted, Range) else [path, wanted]
        for path, wanted in where.items()
    ]


def after_of(row: Any) -> Place | None:
    """Give where to go on from ``[key, value]``, as a wire has it."""
    if row is None:
        return None
    if not isinstance(row, list) or len(row) != 2:
        raise InvalidValue("after", "it needs the form [key, value]")
    return Place(*row)


def value_at(value: Value, path: str) -> Any:
    """Give what lies at a path in a value; a marker that equals nothing when there is nothing."""
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def ordered(value: Value) -> bytes | None:
    """Give bytes that sort as the values do; None for what has no place in an index."""
    if value is None:
        return b"\x00"
    if isinstance(value, bool):
        return b"\x02" if value else b"\x01"
    if isinstance(value, int | float | Decimal):
        return b"\x10" + _number(value)
    if isinstance(value, str):
        return b"\x20" + _text(value.encode())
    if isinstance(value, bytes):
        return b"\x21" + _text(value)
    if isinstance(value, datetime):
        aware = value.tzinfo is not None
        since = value - (_EPOCH if aware else _NAIVE_EPOCH)
        micros = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
        return (b"\x30" if aware else b"\x31") + _BITS.pack(micros + _SIGN)
    if isinstance(value, date):
        return b"\x32" + _BITS.pack(value.toordinal())
    if isinstance(value, UUID):
        return b"\x33" + value.bytes
    return None


def _number(value: float | Decimal) -> bytes:
    if math.isnan(value):
        raise InvalidValue("index", "NaN has no place in an order: an indexed field cannot hold it")
    try:
        double = float(value)
    except OverflowError:
        double = math.inf if value > 0 else -math.inf
    bits: int = _BITS.unpack(_DOUBLE.pack(double + 0.0))[0]
    return _BITS.pack(bits ^ (0xFFFFFFFFFFFFFFFF if bits & _SIGN else _SIGN))


def _text(data: bytes) -> bytes:
    return data[:TEXT_BYTES].replace(b"\0", b"\0\xff") + b"\0\0"


def indexed(value: Value, path: str) -> bytes | None:
    """Give the ordered bytes of what lies at a path in a value; None when there is nothing."""
    found = value_at(value, path)
    return None if found is _MISSING else ordered(found)


def entries(space: Space, key: bytes, value: Value) -> set[bytes]:
    """Give the index entries of a key with this value."""
    found = set()
    for field in space.fields:
        data = indexed(value, field.path)
        if data is not None:
            found.add(field_prefix(space.number, field.number) + data + key)
    return found


def key_of_entry(entry: bytes) -> tuple[bytes, bytes]:
    """Give the ordered value and the key of an index entry."""
    rest = entry[_PREFIX_BYTES:]
    size = _SIZES.get(rest[0])
    if size is None:
        size = 1
        while rest[size : size + 2] != b"\0\0":
            size += 2 if rest[size] == 0 else 1
        size += 2
    return rest[:size], rest[size:]


def field_named(space: Space, path: str) -> Field:
    """Give the index on a path; `InvalidValue` without one, `Unavailable` until it is built."""
    for field in space.fields:
        if field.path == path:
            if not field.ready:
                raise Unavailable(
                    f"index {path!r} of {space.name!r}",
                    "it is still being built; if nobody does, configure it again",
                    retry=True,
                )
            return field
    there = ", ".join(field.path for field in space.fields) or "none"
    raise InvalidValue("find", f"{space.name!r} has no index on {path!r}; it has: {there}")


class Search:
    """What `find` looks for: the range of the index to read, and what each record has to be."""

    def __init__(self, space: Space, where: dict[str, Value]) -> None:
        if not where:
            raise InvalidValue("find", "say what to find by: find(stage='failed')")
        self._where = where
        path, wanted = next(iter(where.items()))
        self._path = path
        self._field = field_named(space, path)
        for other in where:
            field_named(space, other)
        prefix = field_prefix(space.number, self._field.number)
        if isinstance(wanted, Range):
            low, high = _bound(path, wanted.low), _bound(path, wanted.high)
            self.start = prefix + low if low else prefix
            self.stop = prefix + high if high else after_prefix(prefix)
        else:
            exact = _bound(path, wanted, none=True)
            self.start = prefix + exact
            self.stop = after_prefix(self.start)
        self._prefix = prefix

    def place(self, key: bytes, value: Value) -> bytes:
        """Give the index entry of a key with this value: from where a search goes on."""
        data = indexed(value, self._path)
        if data is None:
            raise InvalidValue("after", f"{key!r} has nothing at {self._path!r}")
        return self._prefix + data + key

    def fits(self, entry: bytes, value: Value) -> bool:
        """Whether a record is what is looked for, and this its entry."""
        data, _ = key_of_entry(entry)
        if indexed(value, self._path) != data:
            return False
        return all(_is(value_at(value, path), wanted) for path, wanted in self._where.items())


def _bound(path: str, value: Value, *, none: bool = False) -> bytes:
    if value is None and not none:
        return b""
    data = ordered(value)
    if data is None:
        raise InvalidValue("find", f"{path!r}: a {type(value).__name__} is in no index")
    return data


def _is(found: Any, wanted: Value) -> bool:
    if isinstance(wanted, Range):
        if found is _MISSING:
            return False
        data = ordered(found)
        low, high = _bound("", wanted.low), _bound("", wanted.high)
        return data is not None and data >= low and (not high or data < high)
    if isinstance(found, bool) != isinstance(wanted, bool):
        return False
    return bool(found == wanted)
