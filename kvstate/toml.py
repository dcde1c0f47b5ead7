"""Settings as people read them: TOML text, as far as settings have kinds of values."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["as_toml", "spoken", "toml_value"]


def spoken(value: Any) -> Any:
    """Give settings with "never" for an infinite age, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: spoken(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [spoken(each) for each in value]
    return "never" if value == math.inf else value


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Give tables, tables in them and arrays of tables as a settings file has them."""
    return "\n".join(_lines((), tables)).strip("\n")


def _lines(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    own = {key: value for key, value in table.items() if not _is_table(value)}
    if path and (own or not table):
        yield f"\n[{'.'.join(path)}]"
    for key, value in own.items():
        yield f"{_key(key)} = {toml_value(value)}"
    for key, value in table.items():
        inner = (*path, _key(key))
        if isinstance(value, dict):
            yield from _lines(inner, value)
        elif _is_table(value):
            for each in value:
                yield f"\n[[{'.'.join(inner)}]]"
                yield from (f"{_key(k)} = {toml_value(v)}" for k, v in each.items())


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) else json.dumps(key)


def toml_value(value: object) -> str:
    """Give one value; a mapping as an inline table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON escapes what TOML wants escaped, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return f"{value:g}" if value.is_integer() and abs(value) < 1e6 else repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(each) for each in value) + "]"
    return str(value)
