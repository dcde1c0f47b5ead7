"""Values as bytes, and bytes with a checksum: the only door of cbor2 and xxhash.

*Values* are the store's model: None, bool, int (of any size), float, str, bytes, list, tuple (read
back as a list), dict (keys: str, bytes, int, float, bool), datetime, date, UUID, Decimal. They are
written as CBOR (RFC 8949). Three tags are our own, because CBOR has none: 27510 a datetime without
a time zone (ISO text), 27511 a datetime in a named zone ([ISO text, zone key, fold]), 27512 a
decimal that is not finite or a negative zero (text). Never pickle.

A *sealed* record is ``checksum (8) | body``, where the checksum is xxh3-64 over key and body: a
record that turned up under another key is as damaged as one with a flipped bit.
"""

from __future__ import annotations

import io
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import cbor2
import xxhash

from kvstate.errors import Damaged, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "DIGEST_BYTES",
    "SEAL_BYTES",
    "Hasher",
    "Value",
    "block_checksum",
    "decode",
    "digest",
    "encode",
    "encode_known",
    "encode_plain",
    "seal",
    "unseal",
]

Value: TypeAlias = Any
"""A value of the model; `Any`, since a recursive union helps nobody who calls ``get``."""

DEPTH_MAX = 128
_PIECE_BYTES = 1 << 16
SEAL_BYTES = 8
DIGEST_BYTES = 16
_NAIVE_TAG = 27510
_ZONED_TAG = 27511
_DECIMAL_TAG = 27512

Hasher = xxhash.xxh3_128
"""Streaming digest of content: ``update(data)``, then ``digest()``."""

digest: Callable[[bytes], bytes] = xxhash.xxh3_128_digest
block_checksum: Callable[[bytes | memoryview], int] = xxhash.xxh3_64_intdigest
_checksum: Callable[[bytes], bytes] = xxhash.xxh3_64_digest


def _refuse(value: object) -> InvalidValue:
    kind = type(value)
    return InvalidValue("value", f"{kind.__module__}.{kind.__qualname__} is no type of the model")


def _encode_datetime(encoder: cbor2.CBOREncoder, value: datetime) -> None:
    if value.tzinfo is None:
        encoder.encode_semantic(_NAIVE_TAG, value.isoformat())
    elif isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
        local = value.replace(tzinfo=None).isoformat()
        encoder.encode_semantic(_ZONED_TAG, [local, value.tzinfo.key, value.fold])
    else:
        encoder.encode_semantic(0, value.isoformat())


def _encode_decimal(encoder: cbor2.CBOREncoder, value: Decimal) -> None:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or (sign and not any(digits)):
        encoder.encode_semantic(_DECIMAL_TAG, str(value))
        return
    number = int("".join(map(str, digits)) or "0")
    encoder.encode_semantic(4, [exponent, -number if sign else number])


_PLAIN = frozenset({str, int, bytes, float, bool, type(None)})
_RICH = (datetime, date, UUID, Decimal, str, int, bytes, float)
_KEYS = (str, bytes, int, float)
_ENCODERS: dict[type, Callable[[cbor2.CBOREncoder, Any], Any]] = {
    datetime: _encode_datetime,
    Decimal: _encode_decimal,
}


def _check_model(value: object, depth: int = 0) -> None:
    """Refuse what is not of the model, at any depth, and what holds itself."""
    if type(value) in _PLAIN:
        return
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, _KEYS):
                raise InvalidValue("value", f"{key!r} cannot be a key of a mapping")
        items: Iterable[object] = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif isinstance(value, _RICH):
        return
    else:
        raise _refuse(value)
    if depth > DEPTH_MAX:
        raise InvalidValue("value", f"nested deeper than {DEPTH_MAX} levels, or holds itself")
    for item in items:
        if type(item) not in _PLAIN:
            _check_model(item, depth + 1)


def encode(value: Value) -> bytes:
    """Give a value's bytes; `InvalidValue` for what is not of the model."""
    try:
        if type(value) in _PLAIN:
            return cbor2.dumps(value)
        _check_model(value)
        return cbor2.dumps(value, encoders=_ENCODERS)
    except (cbor2.CBORError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("value", f"{type(value).__name__} cannot be kept: {error}") from None


def encode_known(value: Value) -> bytes:
    """Give the bytes of a value that is known to be of the model: faster than `encode`."""
    return cbor2.dumps(value, encoders=_ENCODERS)


encode_plain: Callable[[object], bytes] = cbor2.dumps
"""Give the bytes of what the store itself put together, unchecked: faster than `encode`."""


def _tag(tag: cbor2.CBORTag, _immutable: bool, /) -> Value:  # noqa: FBT001  (cbor2 calls it so)
    if tag.tag == _NAIVE_TAG:
        return datetime.fromisoformat(tag.value)
    if tag.tag == _ZONED_TAG:
        local, zone, fold = tag.value
        return datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone), fold=fold)
    if tag.tag == _DECIMAL_TAG:
        return Decimal(tag.value)
    raise InvalidValue("value", f"CBOR tag {tag.tag} is not of the model")


class _Pieces(io.BytesIO):
    """Large data in pieces: between them other threads get their turn."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size)


def decode(data: bytes) -> Value:
    """Give the value that these bytes hold; `InvalidValue` when they hold none of the model."""
    try:
        if len(data) <= _PIECE_BYTES:
            return cbor2.loads(data, tag_hook=_tag, max_depth=DEPTH_MAX + 8)
        pieces = _Pieces(data)
        decoder = cbor2.CBORDecoder(
            pieces, tag_hook=_tag, max_depth=DEPTH_MAX + 8, read_size=_PIECE_BYTES
        )
        return decoder.decode()
    except InvalidValue:
        raise
    except Exception as error:  # noqa: BLE001  (whatever a hostile frame makes the decoder raise)
        raise InvalidValue("bytes", f"not the CBOR of a value: {error}") from None


def seal(key: bytes, body: bytes) -> bytes:
    """Put the checksum over key and body before the body."""
    return _checksum(key + body) + body


def unseal(key: bytes, data: bytes) -> bytes:
    """Give the body of a sealed record, or raise `Damaged`."""
    body = data[SEAL_BYTES:]
    if _checksum(key + body) != data[:SEAL_BYTES]:
        raise Damaged(f"record {key!r}", "its checksum does not match")
    return body
