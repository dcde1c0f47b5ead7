"""Values as text that people and `jq` read, and back where that is exact.

JSON has no bytes, moments, decimals or identifiers; they are written as objects with one key that
begins with ``$``, so that reading gives the same value: ``{"$bytes": base64}``,
``{"$datetime": ISO}``, ``{"$date": ISO}``, ``{"$decimal": text}``, ``{"$uuid": text}``.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

from kvstate.errors import InvalidValue

if TYPE_CHECKING:
    from kvstate.codec import Value

__all__ = ["from_json", "text_of_value", "to_json"]


def _default(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, date):
        return {"$date": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, UUID):
        return {"$uuid": str(value)}
    raise InvalidValue("value", f"{type(value).__name__} has no form in JSON")


def _plain_keys(value: Value) -> Value:
    """Give the value with the keys of its mappings as text, which is all that JSON has."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else _key_text(key): _plain_keys(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain_keys(item) for item in value]
    return value


def _key_text(key: object) -> str:
    return base64.b64encode(key).decode() if isinstance(key, bytes) else json.dumps(key)


def to_json(value: Value, *, indent: int | None = None) -> str:
    """Give a value as JSON text."""
    return json.dumps(_plain_keys(value), default=_default, ensure_ascii=False, indent=indent)


_FROM = {
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$decimal": Decimal,
    "$uuid": UUID,
}


def _object(pairs: dict[str, Any]) -> Value:
    if len(pairs) == 1:
        ((key, item),) = pairs.items()
        if key in _FROM and isinstance(item, str):
            return _FROM[key](item)
    return pairs


def from_json(text: str | bytes) -> Value:
    """Give the value of a JSON text; `InvalidValue` says where it does not parse."""
    try:
        return json.loads(text, object_hook=_object)
    except (ValueError, RecursionError, InvalidOperation, binascii.Error) as error:
        raise InvalidValue("JSON", str(error)) from None


def text_of_value(value: Value) -> bytes:
    """Give the content of a value's file."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return to_json(value, indent=2).encode() + b"\n"
