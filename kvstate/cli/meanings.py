"""What people type, as the library takes it: ages and moments, metadata, sizes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue
from kvstate.jsonview import from_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstate.codec import Value

__all__ = ["age_or_moment", "metadata_of"]


def age_or_moment(text: str | None, what: str) -> float | datetime | None:
    """Give "7d" as seconds, "2026-01-31" and other ISO texts as a moment (UTC unless they say)."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except InvalidValue:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        why = f"{text!r} is neither an age like '7d' nor a moment like '2026-01-31'"
        raise InvalidValue(what, why) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def metadata_of(texts: Iterable[str]) -> dict[str, Value]:
    """Give metadata: "KEY=VALUE" is text, "KEY:=VALUE" is JSON."""
    return dict(_pair(text) for text in texts)


def _pair(text: str) -> tuple[str, Value]:
    key, equals, value = text.partition("=")
    if not key.rstrip(":") or not equals:
        raise InvalidValue("--meta", f"{text!r} has not the form KEY=VALUE or KEY:=JSON")
    return (key[:-1], from_json(value)) if key.endswith(":") else (key, value)
