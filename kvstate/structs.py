"""Structs, and plain values as structs: the only door of msgspec. Loading it costs 20 ms."""

from __future__ import annotations

from msgspec import MsgspecError, Struct, ValidationError, convert, to_builtins

__all__ = ["MsgspecError", "Struct", "ValidationError", "convert", "to_builtins"]
