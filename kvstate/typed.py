"""Values as instances of your own classes, on request: dataclasses and msgspec structs.

`encode_value` takes an instance where a value may stand and keeps its fields as a mapping;
`converted` makes an instance of what was kept. Nothing in the store names a class.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from kvstate.codec import encode
from kvstate.errors import InvalidValue

if TYPE_CHECKING:
    from kvstate.codec import Value

__all__ = ["converted", "encode_value", "is_instance"]

T = TypeVar("T")
_KEPT = (bytes, datetime, date, UUID, Decimal)


def is_instance(value: object) -> bool:
    """Whether this is an instance of a dataclass or a msgspec struct."""
    return is_dataclass(value) or hasattr(type(value), "__struct_fields__")


def encode_value(value: Value) -> tuple[bytes, Value]:
    """Give a value's bytes, and the value as it will be read; `InvalidValue` if it is none."""
    try:
        return encode(value), value
    except InvalidValue:
        if isinstance(value, type) or not is_instance(value):
            raise
    from kvstate.structs import MsgspecError, to_builtins  # noqa: PLC0415  (costs 20 ms)

    try:
        plain = to_builtins(value, builtin_types=_KEPT)
    except (MsgspecError, TypeError, ValueError) as error:
        raise InvalidValue("value", f"{type(value).__name__} cannot be kept: {error}") from None
    return encode(plain), plain


def converted(value: Any, as_type: type[T], name: str) -> T:
    """Give the value as an instance of this type; `InvalidValue` says what does not fit."""
    from kvstate.structs import MsgspecError, convert  # noqa: PLC0415

    try:
        return convert(value, as_type)
    except (MsgspecError, TypeError, ValueError) as error:
        raise InvalidValue(f"value of {name!r}", f"as {as_type!r}: {error}") from None
