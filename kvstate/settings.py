"""What an open store may be told, with the price of each turn beside it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.policy import TIERS, Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "StoreSettings",
    "TierSettings",
    "format_compression",
    "parse_compression",
    "tier_paths",
]

_LEVEL_DEFAULT = 3
_LEVEL_MAX = 19


def parse_compression(text: str) -> int | None:
    """Give the level of "zstd:9" or "zstd", None for "none"; `InvalidValue` for anything else."""
    if text == "none":
        return None
    found = re.fullmatch(r"zstd(?::(\d{1,2}))?", text, re.ASCII)
    level = 0 if found is None else int(found[1] or _LEVEL_DEFAULT)
    if not 1 <= level <= _LEVEL_MAX:
        why = f"{text!r} is neither 'none' nor 'zstd' nor 'zstd:1' to 'zstd:{_LEVEL_MAX}'"
        raise InvalidValue("compression", why)
    return level


def format_compression(level: int | None) -> str:
    """Give a level as it is written in the settings file."""
    return "none" if level is None else f"zstd:{level}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TierSettings:
    """Settings of one tier; validated when made."""

    path: str | None = None
    """The tier's folder, relative to the store's; None for ``tiers/<tier>`` in the store."""
    compression_level: int | None = None
    """The level of zstd, 1 to 19: less disk, more time; None stores content as it is."""
    free_bytes_min: int = 16 << 20
    """What stays free on its file system: more room for others, `Full` comes sooner."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        if self.path is not None:
            _check_path(self.path)
        if self.compression_level is not None and not 1 <= self.compression_level <= _LEVEL_MAX:
            why = f"{self.compression_level!r} is not between 1 and {_LEVEL_MAX}"
            raise InvalidConfig("compression_level", why)
        if not 0 <= self.free_bytes_min <= 1 << 60:
            raise InvalidConfig(
                "free_bytes_min", f"{self.free_bytes_min!r} is not between 0 and {1 << 60}"
            )


def _check_path(path: str) -> None:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise InvalidConfig(
            "path",
            f"{path!r} is a URL: tiers on object stores are not available in this version; give "
            f"the path of a folder, such as one on a disk or a mounted network file system",
        )
    if not path or "\0" in path:
        raise InvalidConfig("path", f"{path!r} is no path of a folder")


def tier_paths(store: Path, tiers: tuple[TierSettings, ...]) -> tuple[Path, ...]:
    """Give the tiers' folders; `InvalidConfig` when one cannot be told from another's.

    Links above the folders are followed; the folders themselves need not be there.
    """
    given = _given(store, tiers)
    if not any(settings.path for settings in tiers):
        return tuple(given)  # every opening comes by here
    real = [Path(os.path.realpath(path.parent), path.name) for path in given]
    _check_apart(Path(os.path.realpath(store)), real)
    return tuple(given)


def _given(store: Path, tiers: tuple[TierSettings, ...]) -> list[Path]:
    return [
        Path(os.path.normpath(store / settings.path)) if settings.path else store / "tiers" / tier
        for tier, settings in zip(TIERS, tiers, strict=True)
    ]


def _check_apart(store: Path, paths: list[Path]) -> None:
    """Refuse folders of which one is another, or lies in it."""
    taken = {"the records": store / "records"}
    for tier, path in zip(TIERS, paths, strict=True):
        key, shown = f"tiers.{tier}.path", repr(str(path))
        if store.is_relative_to(path):
            raise InvalidConfig(key, f"{shown} is the store's own folder, or holds it")
        for other, folder in taken.items():
            if path.is_relative_to(folder) or folder.is_relative_to(path):
                keys = f"tiers.{other}.path, {key}" if other in TIERS else key
                what = f"the {other} tier" if other in TIERS else other
                why = f"{shown} and the folder of {what}, {str(folder)!r}, are one or overlap"
                raise InvalidConfig(keys, why)
        taken[tier] = path


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSettings:
    """Settings of one open store; validated when made, passed down, never global."""

    map_bytes: int = 1 << 40
    """Largest size of the record file: address space only; smaller makes `Full` come sooner."""
    readers_max: int = 1024
    """Reader slots for all processes together; each costs 64 bytes of the lock file."""
    inline_bytes_max: int = 64 * 1024
    """Content up to this size lives among the records: fewer fsyncs to write, one copy to read."""
    journal_bytes_max: int = 64 << 20
    """The journal is trimmed beyond this size: less reach for watch and audit, less disk."""
    journal_age_seconds: float = 30 * 86400.0
    """The journal is trimmed beyond this age."""
    hot_days: float = 7.0
    """An artifact leaves the hot tier at this age."""
    warm_days: float = 30.0
    """An artifact leaves the warm tier at this age."""
    cold_days: float = 90.0
    """An artifact is purged at this age."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """What else the lifecycle's rules say, in the shape of ``[lifecycle]``: floor, rules, ..."""
    move_bytes_per_second: int = 0
    """The most that a lifecycle run copies in a second; 0: no limit."""
    move_threads: int = 2
    """How many copies a lifecycle run has under way at once."""
    scrub_days: float = 30.0
    """The daemon scrubs everything once in so long; 0: never."""
    scrub_bytes_per_second: int = 100 << 20
    """The most that the daemon's scrub reads in a second; 0: no limit."""

    tiers: tuple[TierSettings, TierSettings, TierSettings] = (
        TierSettings(),
        TierSettings(),
        TierSettings(compression_level=_LEVEL_DEFAULT),
    )
    """The hot, the warm and the cold tier."""

    def policy(self) -> dict[str, Any]:
        """Give the rules of the lifecycle as plain data."""
        ages = {name: getattr(self, name) for name in ("hot_days", "warm_days", "cold_days")}
        return {**ages, **self.rules}

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        for name, low, high in (
            ("map_bytes", 1 << 20, 1 << 46),
            ("readers_max", 8, 1 << 16),
            ("inline_bytes_max", 0, 1 << 20),
            ("journal_bytes_max", 1 << 16, 1 << 46),
            ("journal_age_seconds", 1.0, 3.2e9),
            ("move_bytes_per_second", 0, 1 << 50),
            ("move_threads", 1, 64),
            ("scrub_days", 0, 36500),
            ("scrub_bytes_per_second", 0, 1 << 50),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidConfig(name, f"{value!r} is not between {low} and {high}")
        try:
            Policy.of(self.policy())
        except InvalidValue as error:
            raise InvalidConfig(str(error.facts[0]), str(error.facts[1])) from None
        if any(settings.path for settings in self.tiers):
            store = Path("<store>")  # where it is, is not known here: `tier_paths` looks again
            _check_apart(store, _given(store, self.tiers))
