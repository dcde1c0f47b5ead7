"""Durations as people write them."""

from __future__ import annotations

import re

from kvstate.errors import InvalidValue

__all__ = ["parse_duration"]

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d|w)", re.ASCII)


def parse_duration(text: str) -> float:
    """Give the seconds of "90", "1h30m" or "7d"; `InvalidValue` for anything else."""
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text, re.ASCII):
        raise InvalidValue("duration", f"{text!r} has not the form '90', '1h30m' or '7d'")
    return sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text))
