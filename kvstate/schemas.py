"""JSON Schema for values: the only door of jsonschema-rs.

A value is checked as the mount and ``--json`` show it: a moment is ``{"$datetime": "..."}``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kvstate.codec import decode, encode
from kvstate.errors import InvalidValue, Unavailable
from kvstate.jsonview import to_json

if TYPE_CHECKING:
    from kvstate.codec import Value

__all__ = ["check_schema", "check_value"]


def check_schema(schema: Value) -> None:
    """Raise `InvalidValue` unless this is a JSON Schema, `Unavailable` without the library."""
    _validator(encode(schema))


def check_value(schema: Value, key: str, value: Value) -> None:
    """Raise `InvalidValue`, with the path of the misfit, unless the value fits the schema."""
    error = next(iter(_validator(encode(schema)).iter_errors(_shown(value))), None)
    if error is not None:
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.instance_path)
        raise InvalidValue(f"value of {key!r}", f"at ${path}: {error.message}")


def _shown(value: Value) -> Any:
    import json  # noqa: PLC0415

    return json.loads(to_json(value))


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    try:
        import jsonschema_rs  # noqa: PLC0415  (an extra)
    except ImportError:
        raise Unavailable(
            "schema", "this namespace has one, and checking it needs: pip install 'kvstate[schema]'"
        ) from None
    try:
        return jsonschema_rs.validator_for(_shown(decode(schema)))
    except (jsonschema_rs.ValidationError, ValueError, TypeError) as error:
        raise InvalidValue("schema", f"it is no JSON Schema: {error}") from None
