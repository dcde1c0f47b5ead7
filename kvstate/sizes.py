"""Sizes as people write them."""

from __future__ import annotations

import re

from kvstate.errors import InvalidValue

__all__ = ["format_size", "parse_size"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTPE", 1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


def parse_size(text: str) -> int:
    """Give the bytes of "65536", "64KiB" or "1.5GB"; `InvalidValue` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if found is None or found[2] not in _UNITS:
        raise InvalidValue("size", f"{text!r} is no number of bytes like 65536, '64KiB' or '1.5GB'")
    unit = _UNITS[found[2]]
    return round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def format_size(size: int) -> str:
    """Give a size with three digits and a unit of 1024."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1000 or unit == "PiB":
            return f"{size} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1024
    raise AssertionError
